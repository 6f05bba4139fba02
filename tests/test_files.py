"""Model files: what was saved comes back; whatever else lies there is refused in one sentence, and nothing of it runs."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import xhat
from xhat.errors import CheckpointError
from xhat.models import files
from xhat.models.files import LONGEST, read_tensors, state_of, write_bytes, write_tensors
from xhat.parts import specification


def small(**options: Any) -> xhat.Model:
    torch.manual_seed(0)
    return xhat.build("vae", shape=(4,), latent=2, hidden=[8], **options)


def check_refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        xhat.load(path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_keeps_every_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    model = small().to(dtype)
    again = xhat.load(xhat.save(model, tmp_path / "m.safetensors"))
    held, got = model.state_dict(), again.state_dict()
    assert held.keys() == got.keys()
    assert all(held[name].dtype == got[name].dtype and torch.equal(held[name], got[name]) for name in held)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("vae", {"posterior": "multivariate-normal", "network": "conv", "channels": [2, 3], "per": "dimension"}),
        ("vae", {"posterior": "categorical", "likelihood": "categorical", "levels": 5, "gradient": "score"}),
        ("autoencoder", {"tied": True}),
        ("stacked", {"hidden": [8, 6]}),
        ("denoising", {"likelihood": "bernoulli"}),
    ],
)
def test_outline_agrees_with_the_model(tmp_path: Path, recipe: str, options: dict[str, Any]) -> None:
    model = xhat.build(recipe, shape=(1, 8, 8), **{"latent": 2, "hidden": [8], **options})
    again = xhat.load(xhat.save(model, tmp_path / "m.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_loading_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    place = xhat.save(small(), tmp_path / "m.safetensors")
    before = torch.random.get_rng_state()
    xhat.load(place)
    assert torch.equal(before, torch.random.get_rng_state())


def test_one_bit_flipped_anywhere_is_refused(tmp_path: Path) -> None:
    place = xhat.save(small(), tmp_path / "m.safetensors")
    whole = place.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    metadata = whole.index(b"__metadata__")
    draw = random.Random(0)
    regions = {"length": (0, 8), "header": (8, header), "metadata": (metadata, metadata + 900), "tensors": (header, len(whole))}
    for name, (first, last) in regions.items():
        for _ in range(64 if name == "length" else 100):
            position, bit = draw.randrange(first, last), draw.randrange(8)
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            place.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                xhat.load(place)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    place = xhat.save(small(), tmp_path / "m.safetensors")
    whole = place.read_bytes()
    for length in range(0, len(whole), 97):
        place.write_bytes(whole[:length])
        check_refusal(place)


class Payload:
    """Pickled, it makes a file when it is opened."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("start", [b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"])
def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path: Path, start: bytes) -> None:
    """The file begins with that length: 640 and 19,280 bytes, among others, start as pickles and zip files do."""
    wanted = int.from_bytes(start, "little")
    place = tmp_path / "m.safetensors"

    def length(filling: int) -> int:
        write_tensors(place, {"weight": torch.ones(3)}, {"kind": "model", "filling": "x" * filling})
        return int.from_bytes(place.read_bytes()[:8], "little")

    found = length(wanted - length(0))
    assert found == wanted
    assert place.read_bytes()[:2] == start
    tensors, metadata = read_tensors(place)
    assert torch.equal(tensors["weight"], torch.ones(3))
    assert metadata["kind"] == "model"


@pytest.mark.parametrize("kind", ["zip", "legacy", 0, 2, 5])
def test_a_renamed_pickle_is_refused_and_not_opened(tmp_path: Path, kind: str | int) -> None:
    place, trap = tmp_path / "m.safetensors", tmp_path / "trap"
    if isinstance(kind, int):
        place.write_bytes(pickle.dumps({"weights": Payload(trap)}, protocol=kind))
    else:
        torch.save(Payload(trap), place, _use_new_zipfile_serialization=kind == "zip")
    check_refusal(place)
    assert not trap.exists()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    check_refusal(tmp_path / "empty")
    check_refusal(tmp_path)
    check_refusal(tmp_path / "nowhere")
    check_refusal(tmp_path / "empty" / "below")


NETWORK = ("posterior", "arguments", "network", "arguments")


def changed(path: tuple[str, ...], value: Any) -> str:
    spec = specification(small())
    inner = spec["arguments"]
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return json.dumps(spec)


HOSTILE = {
    "a class of Python": '{"part": "os.system", "arguments": {"command": "true"}}',
    "a module path": '{"part": "subprocess.Popen", "arguments": {"args": "true"}}',
    "no class": '{"part": ["x"], "arguments": {}}',
    "arguments in a list": '{"part": "models.VAE", "arguments": [1]}',
    "nothing": "null",
    "a number": "5",
    "a part that is no model": '{"part": "networks.MLP", "arguments": {"in_shape": 4}}',
    "broken JSON": "{nope",
    "deep JSON": "[" * 90_000,
    "deep objects": '{"a":' * 15_000 + "1" + "}" * 15_000,
    "deep lists": "[" * 900 + "]" * 900,
    "deep parts": '{"part":"networks.MLP","arguments":{"in_shape":' * 300 + "4" + "}}" * 300,
    "a long text": '"' + "x" * LONGEST + '"',
    "a number of 5000 digits": '{"part":"networks.MLP","arguments":{"in_shape":' + "9" * 5000 + "}}",
    **{
        f"{name} {str(value)[:30]}": changed(path, value)
        for path, name, values in [
            ((*NETWORK, "in_shape"), "in_shape", [10**12, 10**30, [10**6, 10**6], -5, 0, "x", None, [[1]], 1.5, {}, []]),
            ((*NETWORK, "hidden"), "hidden", [[10**12], [10**5, 10**5], [-5], [0], "x", 5, None, [8] * 50]),
            ((*NETWORK, "activation"), "activation", ["x", None, []]),
            ((*NETWORK, "foo"), "unknown argument", [1]),
            ((*NETWORK, "self"), "self", [1]),
            (("posterior", "arguments", "event"), "event", [10**12, [10**5, 10**5], -1, "x", None]),
            (("prior", "arguments", "event"), "prior", [10**12, [10**5, 10**5], -1, "x", None]),
            (("likelihood", "arguments", "scale"), "scale", ["x", -1, 10**400, None]),
            (("objective",), "objective", [5, "x", [], {"part": "data.Masking", "arguments": {}}]),
            (("gradient",), "gradient", [5, "x", [], {"part": "networks.MLP", "arguments": {"in_shape": 3}}]),
            (("posterior",), "posterior", [None, 5, {"part": "priors.StandardNormal", "arguments": {"event": 2}}]),
        ]
        for value in values
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_specification_is_refused(tmp_path: Path, name: str) -> None:
    metadata = {"kind": "model", "xhat": "0", "specification": HOSTILE[name]}
    place = write_tensors(tmp_path / "m.safetensors", state_of(small()), metadata)
    check_refusal(place)


def test_nothing_large_is_made_before_sizes_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = {"kind": "model", "xhat": "0", "specification": changed((*NETWORK, "hidden"), [20_000, 20_000])}
    place = write_tensors(tmp_path / "m.safetensors", state_of(small()), metadata)
    real = torch.nn.Linear.reset_parameters

    def only_outlines(layer: torch.nn.Linear) -> None:
        assert layer.weight.is_meta
        real(layer)

    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", only_outlines)
    assert "does not match" in check_refusal(place)


def test_tensors_that_do_not_fit_leave_the_model_untouched(tmp_path: Path) -> None:
    place = xhat.save(small(), tmp_path / "m.safetensors")
    other = xhat.build("vae", shape=(5,), latent=2, hidden=[8])
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="does not match"):
        xhat.load(place, model=other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    state = state_of(small())
    name = next(iter(state))
    complex_ = write_tensors(tmp_path / "c.safetensors", {**state, name: state[name].to(torch.complex64)}, {"kind": "model"})
    with pytest.raises(CheckpointError, match="complex64"):
        xhat.load(complex_, model=small())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    place = xhat.save(small(), tmp_path / "m.safetensors")
    before = place.read_bytes()

    def refuse(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(CheckpointError, match="disk is full" if number == errno.ENOSPC else "cannot be written"):
        xhat.save(small(), place)
    assert place.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_only_plain_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "device").symlink_to("/dev/full")
    (tmp_path / "folder").mkdir()
    for name in ("device", "folder", "nowhere/file"):
        with pytest.raises(CheckpointError, match="cannot be written"):
            write_bytes(tmp_path / name, b"x")
    assert (tmp_path / "device").is_symlink()
    assert Path("/dev/full").is_char_device()


def test_the_checksum_covers_the_metadata(tmp_path: Path) -> None:
    place = write_tensors(tmp_path / "t", {"a": torch.arange(3.0)}, {"kind": "x"})
    assert read_tensors(place)[1]["kind"] == "x"
    place.write_bytes(place.read_bytes().replace(b'"kind":"x"', b'"kind":"y"'))
    with pytest.raises(CheckpointError, match="checksum"):
        read_tensors(place)
