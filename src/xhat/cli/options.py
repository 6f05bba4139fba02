"""How data are read, as options of the commands; and the options that a run was made with, read back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xhat.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from xhat.data import Data, Examples
    from xhat.models.base import Model
    from xhat.training.folder import RunFolder

DIGITS = "digits"  # the one source that is a word


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How the data are read.

    Attributes:
        binarize: "dynamic" (drawn anew each time), "static" (drawn once) or "threshold".
        resize: height and width of a folder of images, such as 64x64.
        valid: share or number of validation examples.
        test: share or number of test examples.
        standardize: bring each column to mean 0 and standard deviation 1; what tables of reals get unless told otherwise.
        drop_constant: leave out columns that are constant.
        nonfinite: "refuse" NaN and infinity, or "drop" their rows.
        array: which array of an npz file.
        labels: column or array of labels.
        memory: "load" the data into memory, "stream" them from disk, or "auto": the former if they fit.
    """

    binarize: str | None = None
    resize: str | None = None
    valid: float = 0.1
    test: float = 0.1
    standardize: bool | None = None
    drop_constant: bool = False
    nonfinite: str = "refuse"
    array: str | None = None
    labels: str | None = None
    memory: str = "auto"

    def keywords(self) -> dict[str, Any]:
        """Keywords of ``xhat.load_data``."""
        from dataclasses import asdict

        values = asdict(self)
        values["resize"] = None if self.resize is None else _height_width(self.resize)
        for share in ("valid", "test"):
            if values[share] >= 1 and float(values[share]).is_integer():
                values[share] = int(values[share])  # a number of examples
        return values


def _height_width(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and 0 < int(height) <= 10_000 and 0 < int(width) <= 10_000):
        raise ConfigError(f"resize must be HEIGHTxWIDTH, each from 1 to 10000, such as 64x64, was {text!r}")
    return int(height), int(width)


def described(source: str, seed: int, options: dict[str, Any], data: Data) -> dict[str, Any]:
    """What config.json says of the data: enough to read them again, and others like them."""
    scaling = None
    if data.scaling is not None:
        scaling = {"mean": data.scaling.mean.tolist(), "std": data.scaling.std.tolist()}
    path = Path(source)
    return {
        "source": str(path.resolve()) if source != DIGITS and path.exists() else source,
        "sha256": _fingerprint(source),
        "seed": seed,
        # What "auto" came to here, so that the split is the same wherever the run goes on
        "options": {**options, "memory": "stream" if data.streamed else "load"},
        "shape": list(data.shape),
        "kind": data.kind.name,
        "bytes": data.bytes,
        "kept": None if data.kept is None else list(data.kept),
        "columns": None if data.columns is None else list(data.columns),
        "label_names": None if data.label_names is None else list(data.label_names),
        "scaling": scaling,
    }


def _fingerprint(source: str) -> str | None:
    """sha256 of the files that a source consists of; None for what comes with a library."""
    import hashlib

    from xhat.data.sources import files_of

    if source == DIGITS:
        return None
    digest = hashlib.sha256()
    for path in files_of(source):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def run_folder(path: Path) -> RunFolder:
    """A run folder that is there.

    Raises:
        ConfigError: the path is something else.
    """
    from xhat.training.folder import RunFolder

    if path.is_file():
        raise ConfigError(f"{path} is a file, must be a run folder: name the folder that xhat train made")
    return RunFolder(path)


def told_of(folder: RunFolder) -> dict[str, Any]:
    """What config.json says of the run's data; empty where it says nothing.

    Raises:
        CheckpointError: what it says makes no sense.
    """
    told = folder.config().get("data")
    if not isinstance(told, dict) or "source" not in told:
        return {}
    wrong = [name for name, fits in _FITS.items() if name in told and not fits(told[name])]
    if not wrong and told.get("scaling") is not None:
        wrong = [] if _fits_scaling(told["scaling"], told.get("shape")) else ["scaling"]
    if wrong:
        raise CheckpointError(
            f"{folder.config_file} is damaged, what it says of the data's {', '.join(wrong)} makes no sense: restore it from a "
            "copy, or train again"
        )
    return told


def _is_list(of: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(item, of) for item in value)


def _fits_options(options: Any) -> bool:
    if not isinstance(options, dict) or not options.keys() <= DataOptions.__dataclass_fields__.keys():
        return False
    numbers = all(isinstance(options.get(name, 0.1), int | float) for name in ("valid", "test"))
    words = all(isinstance(options.get(name), str | None) for name in ("binarize", "nonfinite", "array", "labels", "memory"))
    flags = all(isinstance(options.get(name), bool | None) for name in ("standardize", "drop_constant"))
    size = options.get("resize")
    return numbers and words and flags and (size is None or (_is_list(int)(size) and len(size) == 2))


def _fits_scaling(scaling: Any, shape: Any) -> bool:
    import torch

    try:
        mean, std = (torch.tensor(scaling[name], dtype=torch.float64) for name in ("mean", "std"))
    except (TypeError, ValueError, KeyError, RuntimeError):
        return False
    return list(mean.shape) == list(std.shape) == shape and bool(mean.isfinite().all()) and bool((std > 0).all())


# What config.json may say of the data; whoever edits it by hand should hear of a slip, not see a traceback
_FITS: dict[str, Callable[[Any], bool]] = {
    "source": lambda value: isinstance(value, str),
    "sha256": lambda value: isinstance(value, str | None),
    "seed": lambda value: isinstance(value, int),
    "options": _fits_options,
    "shape": _is_list(int),
    "bytes": lambda value: isinstance(value, bool),
    "kept": lambda value: value is None or _is_list(int)(value),
    "columns": lambda value: value is None or _is_list(str)(value),
    "label_names": lambda value: value is None or _is_list(str)(value),
}


def run_data(folder: RunFolder) -> Data:
    """The data that a run was trained on, read again.

    Raises:
        ConfigError: the run does not say which they were.
        DataError: they cannot be read any more, or have changed.
        CheckpointError: config.json is damaged.
    """
    from xhat.data import load_data

    told = _known(folder)
    options = dict(told.get("options", {}))
    if options.get("resize") is not None:
        options["resize"] = tuple(options["resize"])
    data = load_data(told["source"], seed=told.get("seed", 0), **options)
    _refuse_changed(folder, told)
    return data


def _known(folder: RunFolder) -> dict[str, Any]:
    told = told_of(folder)
    if not told:
        raise ConfigError(
            f"{folder.config_file} does not say where its data came from, as when it was trained from Python: evaluate, "
            "encode and reconstruct take other data by --data"
        )
    return told


def _refuse_changed(folder: RunFolder, told: dict[str, Any]) -> None:
    held = told.get("sha256")
    if held is not None and held != _fingerprint(told["source"]):
        raise DataError(
            f"{told['source']} has changed since {folder.path} was trained on it, so its split is another: restore it, name data "
            "with --data where a command has that, or train again"
        )


def examples_for(folder: RunFolder, model: Model, source: str | None, split: str) -> Examples:
    """Examples for a trained model, prepared as its training data were.

    Args:
        folder: the run.
        model: its model.
        source: other data than the run's own, all of them; or None.
        split: of the run's own data, "train", "valid", "test" or "all".
    """
    if source is not None:
        return _applied(model, source, told_of(folder))
    if split not in ("train", "valid", "test", "all"):
        raise ConfigError(f"split must be one of train, valid, test, all, was {split!r}")
    told = _known(folder)
    if split == "all":
        examples = _applied(model, told["source"], told, drop=told.get("options", {}).get("nonfinite") == "drop")
        _refuse_changed(folder, told)
        return examples
    part: Examples = getattr(run_data(folder), split)
    return part.fixed(int(told.get("seed", 0)))


def _applied(model: Model, source: str, told: dict[str, Any], drop: bool = False) -> Examples:
    """All of a source, prepared; what looks as if it were not meant is said in a line."""
    import sys
    import warnings

    from xhat.data import Preparation
    from xhat.errors import DataWarning

    layout = "plain" if len(model.event_shape) == 1 else "channels-first"
    preparation = model.preparation or Preparation(model.event_shape, layout=layout)
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always", DataWarning)
        examples = preparation.apply(source, memory=told.get("options", {}).get("memory", "auto"), drop=drop)
    for remark in remarks:
        if issubclass(remark.category, DataWarning):
            print(f"xhat: {remark.message}", file=sys.stderr)
        else:
            warnings.warn_explicit(remark.message, remark.category, remark.filename, remark.lineno)
    return examples
