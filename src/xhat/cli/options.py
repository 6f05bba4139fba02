"""How data are read, as options of the commands, and what a run writes down of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xhat.errors import ConfigError

if TYPE_CHECKING:
    from xhat.data import Data

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
        condition: columns that everything is conditioned on, such as diagnosis,age; "label" for the labels. They leave x.
        missing: "refuse" NaN and empty cells, or "mask" them: they count as not observed, and reconstruct fills them.
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
    condition: str | None = None
    missing: str = "refuse"

    def keywords(self) -> dict[str, Any]:
        """Keywords of ``xhat.load_data``."""
        from dataclasses import asdict

        values = asdict(self)
        values["resize"] = None if self.resize is None else _height_width(self.resize)
        values["condition"] = None if self.condition is None else self.condition.split(",")
        for share in ("valid", "test"):
            if values[share] >= 1 and float(values[share]).is_integer():
                values[share] = int(values[share])  # a number of examples
        return values


def _height_width(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and 0 < int(height) <= 10_000 and 0 < int(width) <= 10_000):
        raise ConfigError(f"resize must be HEIGHTxWIDTH, each from 1 to 10000, such as 64x64, was {text!r}")
    return int(height), int(width)


def beside_x(data: Data) -> dict[str, Any]:
    """What ``xhat.build`` must know of the data: what they are conditioned on, and whether values may be missing."""
    condition = None if data.conditions is None else data.conditions.described
    return {"condition": condition, "masked": data.preparation.missing == "mask"}


def described(source: str, seed: int, options: dict[str, Any], data: Data) -> dict[str, Any]:
    """What config.json says of the data: enough to read them again, and others like them."""
    scaling = None
    if data.scaling is not None:
        scaling = {"mean": data.scaling.mean.tolist(), "std": data.scaling.std.tolist()}
    path = Path(source)
    return {
        "source": str(path.resolve()) if source != DIGITS and path.exists() else source,
        "sha256": fingerprint(source),
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
        "conditions": None if data.conditions is None else data.conditions.described,
    }


def fingerprint(source: str) -> str | None:
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


def named_values(text: str | None) -> dict[str, str] | None:
    """Values by name, from ``label=3,age=40``; a comma without a name after it belongs to the value.

    Raises:
        ConfigError: a name without a value, or twice.

    >>> named_values("label=3,place=Bath, England")
    {'label': '3', 'place': 'Bath, England'}
    """
    if text is None:
        return None
    values: dict[str, str] = {}
    name = ""
    for piece in text.split(","):
        before, equals, value = piece.partition("=")
        if equals and before.strip() and before.strip() not in values:
            name = before.strip()
            values[name] = value.strip()
        elif name and not equals:
            values[name] += f",{piece}"
        else:
            raise ConfigError(f"a condition must be values by name, each once, such as label=3,age=40, was {text!r}")
    return values
