"""Loading: from a source to checked examples, split into train, valid and test."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from xhat.data.examples import Examples
from xhat.data.kinds import Kind
from xhat.data.learn import learn
from xhat.data.made import in_memory, on_disk
from xhat.data.memory import available_memory
from xhat.data.plausible import are_bytes
from xhat.data.preparation import Preparation
from xhat.data.raw import Raw, layout_of
from xhat.data.scaling import Scaling
from xhat.data.source_options import SourceOptions
from xhat.data.sources import read
from xhat.data.split_arrays import SPLITS, completed, finite, storages
from xhat.data.splits import check_share, label_codes
from xhat.data.streams.opened import Opened, opened_for
from xhat.data.streams.split import sampled, spread
from xhat.errors import ConfigError

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
    parts = storages(name, raw)
    notes: list[str] = []
    codes, label_names = label_codes(raw.labels, [0 if part is None else len(part) for part in parts])
    parts, codes = finite(name, raw, parts, codes, nonfinite, notes)
    whole, codes = completed(name, parts, codes, valid, test, asked.seed)
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
