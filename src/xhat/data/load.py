"""Loading: from a source to checked examples, split into train, valid and test."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xhat.data.examples import Examples
from xhat.data.kinds import Kind
from xhat.data.learn import learn
from xhat.data.load_streamed import sampled, spread
from xhat.data.made import in_memory, on_disk
from xhat.data.memory import available_memory
from xhat.data.opened import Opened, opened_for
from xhat.data.plausible import are_bytes
from xhat.data.preparation import Preparation
from xhat.data.raw import Raw, as_events, layout_of
from xhat.data.scaling import Scaling
from xhat.data.source_options import SourceOptions
from xhat.data.sources import read
from xhat.data.splits import check_share, label_codes, split
from xhat.data.storage import as_storage, check_size, first_nonfinite
from xhat.errors import ConfigError, DataError

SPLITS = ("train", "valid", "test")
BINARIZE = (None, "static", "dynamic", "threshold")
NONFINITE = ("refuse", "drop")
MEMORY = ("auto", "load", "stream")


@dataclass(frozen=True)
class Data:
    """A data set, split, with what was learnt about it.

    ``kind`` says what the values look like, ``preparation`` what was done to them and how the same is done to others, and
    ``notes`` what a user should hear of it. ``scaling`` is None unless the values were standardised, ``label_names`` and
    ``columns`` are None unless the source has them, ``kept`` the positions of a table's columns where constant ones were left
    out, and ``bytes`` whether the values were divided by 255.
    """

    name: str
    train: Examples
    valid: Examples
    test: Examples
    kind: Kind
    preparation: Preparation
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The event shape, without N."""
        return self.train.shape

    @property
    def scaling(self) -> Scaling | None:
        return self.preparation.scaling

    @property
    def label_names(self) -> tuple[str, ...] | None:
        return self.preparation.label_names

    @property
    def columns(self) -> tuple[str, ...] | None:
        return self.preparation.names

    @property
    def kept(self) -> tuple[int, ...] | None:
        return self.preparation.kept

    @property
    def bytes(self) -> bool:
        return bool(self.preparation.bytes)

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
    options = SourceOptions(resize, array, labels)
    asked = Preparation(
        binarize=binarize, seed=seed, resize=resize, array=array, labels=labels if isinstance(labels, str | int) else None
    )
    ways = {"standardize": standardize, "drop_constant": drop_constant}
    opened = opened_for(source, options, memory)
    if opened is not None:
        if nonfinite == "drop":
            raise ConfigError(
                "nonfinite='drop' would have to look at every value before training, and streamed data are read as they are "
                "needed: remove such rows from the source, or load it (memory='load', --memory load)"
            )
        return _streamed(opened, asked, valid, test, ways)
    return _loaded(*read(source, options), asked, valid, test, nonfinite, ways)


def _loaded(
    name: str, raw: Raw, asked: Preparation, valid: float | int, test: float | int, nonfinite: str, ways: dict[str, Any]
) -> Data:
    """The data of arrays."""
    parts = _storages(name, raw)
    notes: list[str] = []
    codes, label_names = label_codes(raw.labels, [0 if part is None else len(part) for part in parts])
    parts, codes = _finite(name, raw, parts, codes, nonfinite, notes)
    whole, codes = _completed(name, parts, codes, valid, test, asked.seed)
    start = dataclasses.replace(
        asked,
        bytes=are_bytes(whole),
        layout=raw.layout or layout_of(raw.train),
        dtype=raw.dtype or raw.train.dtype.newbyteorder("=").name,
        label_names=label_names,
    )
    learnt = learn(whole[0], raw.columns, start, **ways)
    told = learnt.preparation
    learnt.train.labels = codes[0]
    rest = zip(SPLITS[1:], whole[1:], codes[1:], strict=True)
    held, tested = (in_memory(told, learnt.conversion, rows, code, which) for which, rows, code in rest)
    return Data(name, learnt.train, held, tested, learnt.kind, told, (*notes, *learnt.notes))


def _streamed(opened: Opened, asked: Preparation, valid: float | int, test: float | int, ways: dict[str, Any]) -> Data:
    """The data of streams: as of arrays, but for what is learnt of the values, which may be of a sample."""
    parts, codes, label_names = spread(opened, valid, test, asked.seed)
    sample, complete = sampled(parts[0], asked.seed)
    notes = [f"streamed from disk: {opened.bytes / 2**30:.3g} GiB, with {available_memory() / 2**30:.3g} GiB of memory free"]
    notes += opened.notes
    if not complete:
        notes.append(f"kind and range are those of {len(sample)} of the training examples")
    start = dataclasses.replace(
        asked,
        bytes=are_bytes([sample]),
        layout=opened.train.layout,
        dtype=opened.train.source_dtype,
        label_names=label_names,
    )
    learnt = learn(sample, opened.columns, start, whose="the" if complete else "these", **ways)
    told = learnt.preparation
    each = zip(SPLITS, parts, codes, strict=True)
    train, held, tested = (on_disk(told, learnt.conversion, part, code, which) for which, part, code in each)
    return Data(opened.name, train, held, tested, learnt.kind, told, (*notes, *learnt.notes))


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
