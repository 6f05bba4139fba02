"""Model files: safetensors with a JSON description and a checksum. Nothing in them can run.

A file is written beside its place, synced to disk and renamed: a crash leaves the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from xhat.conditionals import event_of
from xhat.data import Preparation
from xhat.data.preparation_json import from_config, from_json, to_json
from xhat.errors import CheckpointError, ConfigError, DataError, XhatError
from xhat.models import recipes  # noqa: F401 - fills the table of parts that a file may name
from xhat.models.base import Model
from xhat.parts import rebuild, specification
from xhat.version import __version__

FORMAT = "xhat 1"
MODEL_FILE, CONFIG_FILE = "model.safetensors", "config.json"
LONGEST = 100_000  # characters of a specification; a recipe's has about a thousand


def save(model: nn.Module, path: str | Path) -> Path:
    """Write a model: its weights, what was done to its training data, and the specification that rebuilds it if all its parts are
    xhat's.

    Args:
        model: any model.
        path: a file; ``.safetensors`` is usual. Its folder must exist.

    Raises:
        CheckpointError: the file cannot be written; what was there before is untouched.

    >>> import tempfile, torch, xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = xhat.load(xhat.save(model, f"{folder}/model.safetensors"))
    >>> all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    True
    """
    try:
        described = json.dumps(specification(model))
    except ConfigError:
        described = ""  # parts of the user's own: the weights alone
    metadata = {"kind": "model", "xhat": __version__, "specification": described}
    told: Preparation | None = getattr(model, "preparation", None)
    if told is not None:
        metadata["preparation"] = to_json(told)
    return write_tensors(path, state_of(model), metadata)


def load(path: str | Path, model: nn.Module | None = None) -> Any:
    """Read a model that :func:`save` wrote, in evaluation mode.

    Args:
        path: the file, or a run folder that holds ``model.safetensors``. A file from before models kept what was done to their
            training data gets it from the ``config.json`` beside it.
        model: a model with parts of your own, into which the weights are put; not needed when all parts are xhat's.

    Raises:
        CheckpointError: the file is missing, damaged, foreign (a pickle is refused, never opened), or does not match.
    """
    place = Path(path)
    if place.is_dir():
        place = place / MODEL_FILE
    tensors, metadata = read_tensors(place)
    if model is None:
        described = metadata.get("specification", "")
        if not described:
            raise CheckpointError(f"{place} holds weights of a model with parts of its own: pass it, xhat.load(path, model=…)")
        model = rebuilt(described, tensors, str(place))
    put_state(model, tensors, str(place))
    told = _preparation(metadata, place)
    if told is not None:
        kept: Any = model
        kept.preparation = told
    return model.eval()


def _preparation(metadata: dict[str, str], place: Path) -> Preparation | None:
    """What the file says of its training data, or, of a file from before it did, what the run's config.json says."""
    if "preparation" in metadata:
        with _preparing(place):
            return from_json(metadata["preparation"])
    config = place.with_name(CONFIG_FILE)
    if place.name != MODEL_FILE or not config.is_file():
        return None
    try:
        held = json.loads(config.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{config} cannot be read: {error}") from error
    told = held.get("data") if isinstance(held, dict) else None
    if not isinstance(told, dict) or "shape" not in told:
        return None
    with _preparing(config):
        return from_config(told)


@contextlib.contextmanager
def _preparing(place: Path) -> Iterator[None]:
    """Turns what is wrong with a preparation into one sentence that names the file."""
    try:
        yield
    except DataError as error:
        raise CheckpointError(f"{place} is damaged: {error}; restore it from a copy, or train again") from error


def rebuilt(described: str, tensors: dict[str, Tensor], where: str) -> Model:
    """The model that a specification describes, made only if its tensors are those at hand.

    It is first made on the meta device, where a tensor has a shape and no memory: whatever sizes a stranger's file names,
    nothing larger than the tensors that the file brings is ever allocated.

    Args:
        described: the specification, as JSON.
        tensors: the model's tensors by name.
        where: what messages call the file.

    Raises:
        CheckpointError: the specification makes no model, or one with other tensors.
    """
    if len(described) > LONGEST:
        raise CheckpointError(f"{where}: its description has {len(described):,} characters, must have at most {LONGEST:,}")
    with _describing(where):
        spec = json.loads(described)
        with torch.device("meta"):
            outline = rebuild(spec)
        if not isinstance(outline, Model):
            raise CheckpointError(f"{type(outline).__name__} is no model")
        prior = getattr(outline, "prior", None)
        if isinstance(prior, nn.Module) and event_of(prior, "prior") != outline.latent_shape:
            raise CheckpointError("its prior and its posterior draw events of different shapes")
        needed = state_of(outline)
    _check_state(needed, tensors, where)
    with _describing(where), torch.random.fork_rng(devices=[]):  # fresh weights are replaced at once; leave the stream alone
        model: Model = rebuild(spec)
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return model.to(dtypes.pop()) if len(dtypes) == 1 else model


@contextlib.contextmanager
def _describing(where: str) -> Iterator[None]:
    """Turns whatever parts raise when a file gives them arguments of a wrong type, sign or size into one sentence."""
    try:
        yield
    except (
        XhatError,
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{where}: its description does not make a model: {reason}") from error


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors by name; one that goes by several names is there once."""
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        key = (tensor.data_ptr() or id(tensor), tuple(tensor.shape), tensor.stride())  # on the meta device all addresses are 0
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        state[name] = tensor.detach()
    return state


def put_state(model: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Put tensors into a model.

    Raises:
        CheckpointError: names or shapes differ; the model is untouched.
    """
    own = state_of(model)
    _check_state(own, tensors, where)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _check_state(own: dict[str, Tensor], tensors: dict[str, Tensor], where: str) -> None:
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        raise CheckpointError(
            f"{where} does not match this model: it lacks {missing[:3]} and has {extra[:3]} that the model does not"
        )
    for name, tensor in own.items():
        held = tensors[name]
        if tensor.shape != held.shape or not torch.can_cast(held.dtype, tensor.dtype):
            raise CheckpointError(
                f"{where} does not match this model: {name} has shape {tuple(held.shape)} ({held.dtype}), the model needs "
                f"{tuple(tensor.shape)} ({tensor.dtype})"
            )


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """sha256 over every name, dtype, shape and byte, and over what the metadata say."""
    digest = hashlib.sha256()
    for key in sorted(metadata):
        digest.update(f"{key}={metadata[key]}\0".encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write tensors and metadata with a checksum.

    Raises:
        CheckpointError: the disk is full, the folder is read-only or missing.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    told = {**metadata, "format": FORMAT}
    return write_bytes(path, to_bytes(held, {**told, "sha256": _digest(held, told)}))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what :func:`write_tensors` wrote, and check every byte of it.

    Raises:
        CheckpointError: the file is missing, damaged, a pickle, or somebody else's.
    """
    place = Path(path)
    try:
        with place.open("rb") as file:
            start = file.read(9)
        # safetensors begin with the length of a header, whose bytes may look like a pickle's, and then comes the header's "{"
        if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and start[8:] != b"{":
            raise CheckpointError(f"{place} is a pickle, which could run code when it is opened: refused; xhat reads safetensors")
        with safe_open(place, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError as error:
        raise CheckpointError(f"{place} does not exist: train a model with xhat train … --out first") from error
    except OSError as error:
        raise CheckpointError(f"{place} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, UnicodeDecodeError, ValueError) as error:
        raise CheckpointError(f"{place} is damaged or no safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{place} was not written by xhat (format {metadata.get('format')!r}, expected {FORMAT!r})")
    claimed = metadata.pop("sha256", "")
    if claimed != _digest(tensors, metadata):
        raise CheckpointError(f"{place} is damaged: its checksum does not match; restore it from a copy or train again")
    return tensors, metadata


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file so that a crash at any moment leaves the old one or the new one.

    Raises:
        CheckpointError: the disk is full, the folder is read-only or missing; what was there before is untouched.
    """
    place = Path(path)
    beside = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        if place.exists() and not place.is_file():  # renaming onto a device, as root, would replace the device
            raise OSError(errno.EINVAL, "it is no plain file")
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(place)
        _sync_folder(place.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise unwritable(place, error) from error
    return place


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritable(place: Path, error: OSError) -> CheckpointError:
    """The sentence for a file that cannot be written."""
    if error.errno == errno.ENOSPC:
        return CheckpointError(f"{place} cannot be written, the disk is full: free some space or choose another folder")
    return CheckpointError(f"{place} cannot be written ({error.strerror or error}): choose another folder")
