"""How data are read, as options of the commands; and the options that a run was made with, read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xhat.errors import ConfigError

if TYPE_CHECKING:
    from xhat.data import Data, Examples
    from xhat.training.folder import RunFolder


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

    def keywords(self) -> dict[str, Any]:
        """Keywords of ``xhat.load_data``."""
        from dataclasses import asdict

        values = asdict(self)
        values["resize"] = None if self.resize is None else _height_width(self.resize)
        for share in ("valid", "test"):
            if values[share] >= 1:
                values[share] = int(values[share])  # a number of examples
        return values


def _height_width(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise ConfigError(f"resize must be HEIGHTxWIDTH, such as 64x64, was {text!r}")
    return int(height), int(width)


def described(source: str, seed: int, options: dict[str, Any], data: Data) -> dict[str, Any]:
    """What config.json says of the data: enough to read them again, and others like them."""
    scaling = None
    if data.scaling is not None:
        scaling = {"mean": data.scaling.mean.tolist(), "std": data.scaling.std.tolist()}
    path = Path(source)
    return {
        "source": str(path.resolve()) if path.exists() else source,
        "seed": seed,
        "options": options,
        "shape": list(data.shape),
        "kind": data.kind.name,
        "columns": None if data.columns is None else list(data.columns),
        "label_names": None if data.label_names is None else list(data.label_names),
        "scaling": scaling,
    }


def run_data(folder: RunFolder) -> Data:
    """The data that a run was trained on, read again.

    Raises:
        ConfigError: the run does not say which they were.
        DataError: they cannot be read any more.
    """
    from xhat.data import load_data

    told = folder.config().get("data")
    if not isinstance(told, dict) or "source" not in told:
        raise ConfigError(f"{folder.config_file} does not say where its data came from: name them with --data")
    options = dict(told["options"])
    if options.get("resize") is not None:
        options["resize"] = tuple(options["resize"])
    return load_data(told["source"], seed=told["seed"], **options)


def examples_for(folder: RunFolder, source: str | None, split: str) -> tuple[Examples, dict[str, Any]]:
    """Examples for a trained model, prepared as its training data were, and what config.json says of those.

    Args:
        folder: the run.
        source: other data than the run's own, all of them; or None.
        split: of the run's own data, "train", "valid", "test" or "all".
    """
    from xhat.data import load_like

    told = folder.config().get("data") or {}
    if source is not None:
        return load_like(source, told), told
    if split not in ("train", "valid", "test", "all"):
        raise ConfigError(f"split must be one of train, valid, test, all, was {split!r}")
    if split == "all":
        return load_like(told["source"], told), told
    examples: Examples = getattr(run_data(folder), split)
    return examples.fixed(int(told["seed"])), told
