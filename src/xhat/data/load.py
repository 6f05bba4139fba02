"""Loading: from a source to checked examples, split into train, valid and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xhat.data.choices import Choices
from xhat.data.examples import Examples, check_unit_range, drawn
from xhat.data.kinds import Kind, kind_of
from xhat.data.load_streamed import finished, sampled, spread
from xhat.data.memory import available_memory, fits
from xhat.data.opened import STREAMABLE, Opened, is_small, open_streams
from xhat.data.raw import Raw, as_events
from xhat.data.scaling import Scaling, column_list, constant_columns, refuse_constant, scaling_of
from xhat.data.sources import read
from xhat.data.splits import check_share, label_codes, seed_for, split
from xhat.data.storage import as_storage, check_size, first_nonfinite
from xhat.data.streams import Stream
from xhat.errors import ConfigError, DataError

SPLITS = ("train", "valid", "test")
BINARIZE = (None, "static", "dynamic", "threshold")
NONFINITE = ("refuse", "drop")
MEMORY = ("auto", "load", "stream")


@dataclass(frozen=True)
class Data:
    """A data set, split, with what was learnt about it.

    ``shape`` is the event shape, ``scaling`` is None unless the values were standardised, ``label_names`` and
    ``columns`` are None unless the source has them, ``kept`` the positions of a table's columns where constant ones were left
    out, ``bytes`` whether the values were divided by 255, and ``notes`` says what was done to the data on the way.
    """

    name: str
    train: Examples
    valid: Examples
    test: Examples
    shape: tuple[int, ...]
    kind: Kind
    scaling: Scaling | None = None
    label_names: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    bytes: bool = False
    kept: tuple[int, ...] | None = None

    @property
    def streamed(self) -> bool:
        """Whether the examples stay on disk and are read when they are fetched."""
        return not self.train.resident

    def describe(self) -> str:
        """Two or three lines for the command line: how many, of what shape and kind, and what suits them.

        >>> print(load_data(torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(5, 1)).describe())
        the array: 10 examples of shape (2,), 8 to train, 1 to validate, 1 to test
        kind binary, suggested likelihood 'bernoulli': the values are 0 and 1
        """
        sizes = [len(getattr(self, name)) for name in SPLITS]
        lines = [
            f"{self.name}: {sum(sizes)} examples of shape {self.shape}, {sizes[0]} to train, {sizes[1]} to validate, "
            f"{sizes[2]} to test" + self._classes(),
            f"kind {self.kind.name}, suggested likelihood '{self.kind.likelihood}': {self.kind.why}",
        ]
        return "\n".join(lines + ["; ".join(self.notes)] * bool(self.notes))

    def _classes(self) -> str:
        if self.train.labels is None:
            return ""
        return f"; {len(self.label_names or set(self.train.labels.tolist()))} classes"


def load_data(
    source: Any,
    *,
    seed: int = 0,
    valid: float | int = 0.1,
    test: float | int = 0.1,
    resize: tuple[int, int] | None = None,
    binarize: str | None = None,
    standardize: bool | None = None,
    drop_constant: bool = False,
    nonfinite: str = "refuse",
    array: str | None = None,
    labels: Any = None,
    memory: str = "auto",
) -> Data:
    """Read a source, check it, split it.

    What would take more than a quarter of the memory that is free stays on disk, where the format allows it, and is read as it is
    fetched. Its split is another than in memory, though as much a function of the seed: name ``memory`` where it must be one and
    the same on every machine.

    Args:
        source: ``"digits"``, the path of a file or a folder, or an array ``(N, *event)``.
        seed: the split and every binarisation drawn once are a pure function of it.
        valid: share in (0, 1) or number of validation examples, taken from train; unused if the source brings them.
        test: likewise for testing.
        resize: (height, width) for a folder of images.
        binarize: ``"static"`` draws each value once as Bernoulli(value); ``"dynamic"`` draws the training examples
            anew at every fetch, the others once; ``"threshold"`` is 1 above a half.
        standardize: bring every column to mean 0 and standard deviation 1, as measured on train (every channel,
            for images). None does so for tables of real numbers.
        drop_constant: leave out the columns of a table that are constant on train.
        nonfinite: ``"refuse"`` NaN and infinity, or ``"drop"`` the rows that hold them.
        array: which array of an .npz file to use.
        labels: the column or array of labels by name (or position, from 0); for an array in memory the labels.
        memory: ``"load"`` the source into memory, ``"stream"`` it from disk (.npy and .parquet files, folders of such files,
            folders of images), or ``"auto"``: the former if it fits.

    Raises:
        DataError: the source cannot be read, or its values cannot be used as asked; says where, and the remedy.
        ConfigError: an option outside its range, or one that has no meaning for this source.

    >>> data = load_data(torch.arange(20).reshape(10, 2) / 7, valid=2, standardize=True)
    >>> len(data.train), len(data.valid), len(data.test)
    (7, 2, 1)
    >>> bool(data.train.tensor().mean(0).abs().max() < 1e-6)
    True
    """
    for share, value in (("valid", valid), ("test", test)):
        check_share(share, value)
    _check_word("binarize", binarize, BINARIZE)
    _check_word("nonfinite", nonfinite, NONFINITE)
    if binarize and standardize:
        raise ConfigError("binarize makes 0 and 1 of the values and standardize real numbers: choose one of them")
    _check_word("memory", memory, MEMORY)
    choices = Choices(resize, array, labels)
    opened = opened_for(source, choices, memory)
    if opened is not None:
        return _streamed(opened, seed, valid, test, binarize, standardize, drop_constant, nonfinite)
    name, raw = read(source, choices)
    parts = _storages(name, raw)
    notes: list[str] = []
    codes, label_names = label_codes(raw.labels, [0 if part is None else len(part) for part in parts])
    parts, codes = _finite(name, raw, parts, codes, nonfinite, notes)
    whole, codes = _completed(name, parts, codes, valid, test, seed)
    columns, kept = raw.columns, None
    if drop_constant:
        whole, columns, kept = _varying(whole, columns, notes)
    scale = are_bytes(whole)
    splits = [Examples(part, code, scale=scale) for part, code in zip(whole, codes, strict=True)]
    if scale:
        notes.append("bytes are divided by 255")
    if binarize is not None:
        splits = [binarized(part, binarize, seed, which) for part, which in zip(splits, SPLITS, strict=True)]
        notes.append(f"binarised ({binarize})")
    kind, scaling = kind_of(splits[0]), None
    table = len(splits[0].shape) == 1
    if table and kind.name == "real":
        refuse_constant(splits[0].storage, columns)
    if standardize or (standardize is None and table and kind.name == "real"):
        scaling = scaling_of(splits[0].storage if not scale else splits[0].tensor(), columns)
        splits = [_standardized(part, scaling) for part in splits]
        kind = kind_of(splits[0])
        notes.append("standardised with the mean and standard deviation of the training examples")
    shape = splits[0].shape
    return Data(name, splits[0], splits[1], splits[2], shape, kind, scaling, label_names, columns, tuple(notes), scale, kept)


def opened_for(source: Any, choices: Choices, memory: str) -> Opened | None:
    """The source's streams, if it is to be streamed; else None.

    Raises:
        ConfigError: it is to be, and cannot be.
    """
    if memory == "load" or (memory == "auto" and is_small(source)):
        return None
    opened = open_streams(source, choices)
    if opened is None and memory == "stream":
        raise ConfigError(f"{source!r} cannot be streamed, but {STREAMABLE} can: leave memory='stream' (--memory stream) out")
    if opened is not None and memory == "auto" and fits(opened.bytes) and not isinstance(source, Stream):
        return None
    return opened


def _streamed(
    opened: Opened,
    seed: int,
    valid: float | int,
    test: float | int,
    binarize: str | None,
    standardize: bool | None,
    drop_constant: bool,
    nonfinite: str,
) -> Data:
    """The data of streams: as of arrays, but for what is learnt of the values, which may be of a sample."""
    if nonfinite == "drop":
        raise ConfigError(
            "nonfinite='drop' would have to look at every value before training, and streamed data are read as they are needed: "
            "remove such rows from the source, or load it (memory='load', --memory load)"
        )
    parts, codes, label_names = spread(opened, valid, test, seed)
    sample, complete = sampled(parts[0], seed)
    notes = [f"streamed from disk: {opened.bytes / 2**30:.3g} GiB, with {available_memory() / 2**30:.3g} GiB of memory free"]
    notes += opened.notes
    if not complete:
        notes.append(f"kind and range are those of {len(sample)} of the training examples")
    columns, kept = opened.columns, None
    if drop_constant:
        (sample,), columns, kept = _varying([sample], columns, notes)
    scale = are_bytes([sample])
    held = Examples(sample, scale=scale)
    if scale:
        notes.append("bytes are divided by 255")
    if binarize is not None:
        held = binarized(held, binarize, seed, "train")
        notes.append(f"binarised ({binarize})")
    kind, scaling = kind_of(held), None
    table = len(held.shape) == 1
    if table and kind.name == "real":
        refuse_constant(held.storage, columns)
    if standardize or (standardize is None and table and kind.name == "real"):
        scaling = scaling_of(held.storage if not scale else held.tensor(), columns)
        kind = kind_of(_standardized(held, scaling))
        whose = "the" if complete else "these"
        notes.append(f"standardised with the mean and standard deviation of {whose} training examples")
    prepared = {"scale": scale, "columns": kept, "scaling": scaling, "shape": held.shape}
    own, watched, tested = finished(parts, codes, binarize, seed, **prepared)
    about = (held.shape, kind, scaling, label_names, columns, tuple(notes), scale, kept)
    return Data(opened.name, own, watched, tested, *about)


def _check_word(name: str, word: Any, known: tuple[Any, ...]) -> None:
    if word not in known:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, known))}, not {word!r}: choose one of these")


def _storages(name: str, raw: Raw) -> list[Tensor | None]:
    """The arrays of the source as tensors in the layout of networks, all of one event shape."""
    parts: list[Tensor | None] = []
    for which, array in zip(SPLITS, raw.splits, strict=True):
        if array is None:
            parts.append(None)
            continue
        said = name if which == "train" else f"the {which} split of {name}"
        storage = as_storage(as_events(array) if array.ndim else array, said)
        check_size(storage, said)
        if parts and parts[0] is not None and parts[0].shape[1:] != storage.shape[1:]:
            raise DataError(
                f"{said} has examples of shape {tuple(storage.shape[1:])}, the training examples have "
                f"{tuple(parts[0].shape[1:])}, and all splits must have one shape: correct the source"
            )
        parts.append(storage)
    return parts


def _finite(
    name: str,
    raw: Raw,
    parts: list[Tensor | None],
    codes: list[Tensor | None],
    nonfinite: str,
    notes: list[str],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The same without NaN and infinity, by refusal or by leaving rows out."""
    kept, dropped = list(parts), 0
    labels = list(codes)
    for i, (which, part) in enumerate(zip(SPLITS, parts, strict=True)):
        bad = None if part is None else first_nonfinite(part)
        if part is None or bad is None:
            continue
        if nonfinite == "refuse":
            raise DataError(
                f"{name if which == 'train' else f'the {which} split of {name}'} holds {float(part[bad]):g} "
                f"at {_place(bad, raw)}, must be finite: fill it, or leave such rows out with nonfinite='drop' "
                "(--nonfinite drop)"
            )
        good = (part.abs() <= torch.finfo(torch.float32).max).flatten(1).all(1)
        if not bool(good.any()):
            raise DataError(f"every example of {name} holds a NaN or infinity, none is left: fill the missing values")
        dropped += int((~good).sum())
        code = codes[i]
        kept[i], labels[i] = part[good], None if code is None else code[good]
    if dropped:
        notes.append(f"{dropped} example{'s' * (dropped > 1)} with NaN or infinity left out")
    return kept, labels


def _place(index: tuple[int, ...], raw: Raw) -> str:
    if len(index) == 2 and raw.rows is not None and raw.places is not None:
        return f"row {raw.rows[index[0]]}, {raw.places[index[1]]}"
    if len(index) == 2:
        return f"row {index[0]}, column {index[1]} (counted from 0)"
    return f"index {index} (counted from 0)"


def _completed(
    name: str,
    parts: list[Tensor | None],
    codes: list[Tensor | None],
    valid: float | int,
    test: float | int,
    seed: int,
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Three splits: those of the source as they are, and those that it lacks drawn from its training examples."""
    whole, labels = parts[0], codes[0]
    if whole is None:
        raise DataError(f"{name} has no training examples: give an array called train")
    shares = [0 if given is not None else share for given, share in zip(parts[1:], (valid, test), strict=True)]
    positions = split(len(whole), shares[0], shares[1], seed, name)
    result: list[Tensor] = []
    result_labels: list[Tensor | None] = []
    for position, given, code in zip(positions, [None, *parts[1:]], codes, strict=True):
        if given is not None:
            result.append(given)
            result_labels.append(code)
            continue
        # nothing is drawn from a training split that stays whole, so it keeps its order and its memory
        index = torch.from_numpy(position) if len(position) < len(whole) else slice(None)
        result.append(whole[index])
        result_labels.append(None if labels is None else labels[index])
    return result, result_labels


def _varying(
    parts: list[Tensor], columns: tuple[str, ...] | None, notes: list[str]
) -> tuple[list[Tensor], tuple[str, ...] | None, tuple[int, ...] | None]:
    """The same without the columns that are constant on train, and the positions of those that are left."""
    if parts[0].dim() != 2:
        raise ConfigError(
            f"drop_constant leaves out columns of a table, the examples have shape {tuple(parts[0].shape[1:])}: leave it out"
        )
    constant = constant_columns(parts[0])
    if not constant:
        return parts, columns, None
    kept = [column for column in range(parts[0].shape[1]) if column not in set(constant)]
    if not kept:
        raise DataError("every column has one value in all training examples, none is left: give columns that vary")
    notes.append(f"{column_list(constant, columns)} one value throughout and was left out")
    names = None if columns is None else tuple(columns[i] for i in kept)
    return [part[:, kept] for part in parts], names, tuple(kept)


def are_bytes(parts: list[Tensor]) -> bool:
    """Whether the values are grey levels in bytes. All splits are asked: a dark test split is still an image.

    A table whose bytes stay below 255 is a table of small whole numbers, and is left as it is.
    """
    if parts[0].dtype != torch.uint8:
        return False
    highest = max(int(part.max()) for part in parts)
    return highest > 1 and (parts[0].dim() > 2 or highest == 255)


def binarized(part: Examples, how: str, seed: int, which: str) -> Examples:
    check_unit_range(part)
    if how == "threshold":
        above = part.storage > (127 if part.scale else 0.5)
        return Examples(above.to(torch.uint8), part.labels)
    if how == "dynamic" and which == "train":
        return Examples(part.storage, part.labels, scale=part.scale, binarize="dynamic")
    return drawn(part, seed_for(seed, which))


def _standardized(part: Examples, scaling: Scaling) -> Examples:
    values = (part.tensor() if part.scale else part.storage).double()
    return Examples(scaling.apply(values).to(torch.float32), part.labels)
