"""The run that a command is about: its folder, its data read again, and other data prepared as those were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xhat.cli.options import DataOptions, fingerprint
from xhat.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from xhat.data import Data, Examples, Preparation
    from xhat.models.base import Model
    from xhat.training.folder import RunFolder


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
    words = all(
        isinstance(options.get(name), str | None) for name in ("binarize", "nonfinite", "array", "labels", "memory", "missing")
    )
    flags = all(isinstance(options.get(name), bool | None) for name in ("standardize", "drop_constant"))
    size, condition = options.get("resize"), options.get("condition")
    return (
        numbers
        and words
        and flags
        and (size is None or (_is_list(int)(size) and len(size) == 2))
        and (condition is None or _is_list(str)(condition))
    )


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


def run_data(folder: RunFolder, **changed: Any) -> Data:
    """The data that a run was trained on, read again; ``changed`` are other options than the run's.

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
    data = load_data(told["source"], seed=told.get("seed", 0), **{**options, **changed})
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
    if held is not None and held != fingerprint(told["source"]):
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
        return _applied(_preparation_of(model), source, told_of(folder))
    if split not in ("train", "valid", "test", "all"):
        raise ConfigError(f"split must be one of train, valid, test, all, was {split!r}")
    told = _known(folder)
    if split == "all":
        examples = _applied(_preparation_of(model), told["source"], told, drop=_drops(told))
        _refuse_changed(folder, told)
        return examples
    part: Examples = getattr(run_data(folder), split)
    return part.fixed(int(told.get("seed", 0)))


def unscaled_examples_for(folder: RunFolder, model: Model, source: str | None, split: str) -> Examples:
    """The same examples in the data's own units: what was standardised is left as it was."""
    import dataclasses

    if source is None and split != "all":
        part: Examples = getattr(run_data(folder, standardize=False), split)
        return part.fixed(int(_known(folder).get("seed", 0)))
    told = told_of(folder) if source is not None else _known(folder)
    preparation = _preparation_of(model)
    columns = tuple(dataclasses.replace(column, mean=None, std=None) for column in preparation.columns)
    plain = dataclasses.replace(preparation, columns=columns)
    return _applied(plain, told["source"] if source is None else source, told, drop=source is None and _drops(told))


def _preparation_of(model: Model) -> Preparation:
    from xhat.data import Preparation

    layout = "plain" if len(model.event_shape) == 1 else "channels-first"
    return model.preparation or Preparation(model.event_shape, layout=layout)


def _drops(told: dict[str, Any]) -> bool:
    return bool(told.get("options", {}).get("nonfinite") == "drop")


def _applied(preparation: Preparation, source: str, told: dict[str, Any], drop: bool = False) -> Examples:
    """All of a source, prepared; what looks as if it were not meant is said in a line."""
    import sys
    import warnings

    from xhat.errors import DataWarning

    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always", DataWarning)
        examples = preparation.apply(source, memory=told.get("options", {}).get("memory", "auto"), drop=drop)
    for remark in remarks:
        if issubclass(remark.category, DataWarning):
            print(f"xhat: {remark.message}", file=sys.stderr)
        else:
            warnings.warn_explicit(remark.message, remark.category, remark.filename, remark.lineno)
    return examples
