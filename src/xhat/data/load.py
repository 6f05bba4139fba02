"""Loading: from a source to checked examples, split into train, valid and test."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from xhat.data.condition_values import condition_names, known_of, label_levels, learn_conditions, refuse_missing, rows_of
from xhat.data.conditions import Conditions
from xhat.data.dataset import Data
from xhat.data.learn import learn
from xhat.data.made import in_memory, on_disk
from xhat.data.memory import available_memory
from xhat.data.missing import without_gaps
from xhat.data.plausible import are_bytes
from xhat.data.preparation import Preparation
from xhat.data.raw import Raw, layout_of
from xhat.data.source_options import SourceOptions
from xhat.data.sources import read
from xhat.data.split_arrays import SPLITS, Part, completed, finite, storages
from xhat.data.splits import check_share, label_codes
from xhat.data.streams.opened import Opened, opened_for
from xhat.data.streams.split import sampled, spread
from xhat.data.streams.streamed import Streamed
from xhat.errors import ConfigError

BINARIZE = (None, "static", "dynamic", "threshold")
NONFINITE = ("refuse", "drop")
MISSING = ("refuse", "mask")
MEMORY = ("auto", "load", "stream")


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
    condition: str | Sequence[str] | None = None,
    missing: str = "refuse",
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
        condition: what everything is conditioned on: names of columns, which then are no part of x, or ``"label"`` for the
            labels. Text and labels become classes, numbers are standardised; ``data.conditions.described`` is what
            ``xhat.build(condition=…)`` takes.
        missing: ``"refuse"`` NaN (an empty cell of a table), or ``"mask"`` it: such values count as not observed, and nothing is
            learnt of them. For data in memory.

    Raises:
        DataError: the source cannot be read, or its values cannot be used as asked; says where, and the remedy.
        ConfigError: an option outside its range, or one that has no meaning for this source.

    >>> data = load_data(torch.arange(20).reshape(10, 2) / 7, valid=2, standardize=True)
    >>> len(data.train), len(data.valid), len(data.test)
    (7, 2, 1)
    >>> bool(data.train.tensor().mean(0).abs().max() < 1e-6)
    True
    >>> table = {"age": [40, 50, None, 70, 60], "height": [1.5, 1.6, 1.7, 1.8, 1.9], "sex": ["F", "M", "F", "M", "F"]}
    >>> data = load_data(table, valid=1, test=1, condition="sex", missing="mask")
    >>> data.columns, data.conditions.described
    (('age', 'height'), {'sex': ['F', 'M']})
    """
    for share, value in (("valid", valid), ("test", test)):
        check_share(share, value)
    _check_word("binarize", binarize, BINARIZE)
    _check_word("nonfinite", nonfinite, NONFINITE)
    if binarize and standardize:
        raise ConfigError("binarize makes 0 and 1 of the values and standardize real numbers: choose one of them")
    _check_word("memory", memory, MEMORY)
    _check_word("missing", missing, MISSING)
    names = condition_names(condition)
    options = SourceOptions(resize, array, labels, names)
    asked = Preparation(
        binarize=binarize,
        seed=seed,
        resize=resize,
        array=array,
        labels=labels if isinstance(labels, str | int) else None,
        missing=missing,
    )
    ways = {"standardize": standardize, "drop_constant": drop_constant}
    opened = opened_for(source, options, memory)
    if opened is not None:
        if nonfinite == "drop":
            raise ConfigError(
                "nonfinite='drop' would have to look at every value before training, and streamed data are read as they are "
                "needed: remove such rows from the source, or load it (memory='load', --memory load)"
            )
        if missing == "mask":
            raise ConfigError(
                "missing='mask' is for data in memory, and these are streamed: load them (memory='load', --memory load), or fill "
                "what is missing"
            )
        return _streamed(opened, asked, names, valid, test, ways)
    return _loaded(*read(source, options), asked, names, valid, test, nonfinite, ways)


def _loaded(
    name: str,
    raw: Raw,
    asked: Preparation,
    fields: tuple[str, ...],
    valid: float | int,
    test: float | int,
    nonfinite: str,
    ways: dict[str, Any],
) -> Data:
    """The data of arrays."""
    arrays = storages(name, raw)
    notes: list[str] = []
    codes, label_names = label_codes(raw.labels, [0 if rows is None else len(rows) for rows in arrays])
    parts = [
        None if rows is None else Part(rows, code, known_of(fields, beside, asked.labels, code, label_names))
        for rows, code, beside in zip(arrays, codes, (raw.beside, None, None), strict=True)
    ]
    whole = completed(name, finite(name, raw, parts, nonfinite, asked.missing, notes), valid, test, asked.seed)
    conditions = None
    if fields:
        conditions = learn_conditions(name, fields, whole[0].known, label_levels(fields, raw.beside, codes, label_names))
    conditioned = [
        rows_of(conditions, part.known, len(part.rows), f"the {which} examples of {name}")
        for which, part in zip(SPLITS, whole, strict=True)
    ]
    rows, observed = without_gaps([part.rows for part in whole], raw.columns, ways["drop_constant"], notes)
    start = dataclasses.replace(
        asked,
        bytes=are_bytes(rows),
        layout=raw.layout or layout_of(raw.train),
        dtype=raw.dtype or raw.train.dtype.newbyteorder("=").name,
        label_names=label_names,
        conditions=conditions,
    )
    learnt = learn(rows[0], raw.columns, start, **ways, observed=observed[0], condition=conditioned[0])
    told = learnt.preparation
    learnt.train.labels = whole[0].labels
    held, tested = (
        in_memory(told, learnt.conversion, rows[i], whole[i].labels, SPLITS[i], observed=observed[i], condition=conditioned[i])
        for i in (1, 2)
    )
    return Data(name, learnt.train, held, tested, learnt.kind, told, (*notes, *learnt.notes))


def _streamed(
    opened: Opened, asked: Preparation, fields: tuple[str, ...], valid: float | int, test: float | int, ways: dict[str, Any]
) -> Data:
    """The data of streams: as of arrays, but for what is learnt of the values, which may be of a sample."""
    parts, codes, label_names = spread(opened, valid, test, asked.seed)
    sample, complete = sampled(parts[0], asked.seed)
    notes = [f"streamed from disk: {opened.bytes / 2**30:.3g} GiB, with {available_memory() / 2**30:.3g} GiB of memory free"]
    notes += opened.notes
    if not complete:
        notes.append(f"kind and range are those of {len(sample)} of the training examples")
    conditions, conditioned = _streamed_conditions(opened, asked, fields, parts, codes, label_names)
    start = dataclasses.replace(
        asked,
        bytes=are_bytes([sample]),
        layout=opened.train.layout,
        dtype=opened.train.source_dtype,
        label_names=label_names,
        conditions=conditions,
    )
    learnt = learn(sample, opened.columns, start, whose="the" if complete else "these", **ways)
    told = learnt.preparation
    train, held, tested = (
        on_disk(told, learnt.conversion, parts[i], codes[i], SPLITS[i], condition=conditioned[i]) for i in range(3)
    )
    return Data(opened.name, train, held, tested, learnt.kind, told, (*notes, *learnt.notes))


def _streamed_conditions(
    opened: Opened,
    asked: Preparation,
    fields: tuple[str, ...],
    parts: list[Streamed],
    codes: list[Tensor | None],
    label_names: tuple[str, ...] | None,
) -> tuple[Conditions | None, list[Tensor | None]]:
    """What streamed examples are conditioned on; it is in memory."""
    if not fields:
        return None, [None] * len(parts)
    known = []
    for part, code in zip(parts, codes, strict=True):
        rows = part.rows.at(np.arange(len(part)))
        beside = {name: values[rows] for name, values in (opened.beside or {}).items()} if part.stream is opened.train else None
        known.append(known_of(fields, beside, asked.labels, code, label_names))
        refuse_missing(opened.name, known[-1], rows)
    conditions = learn_conditions(opened.name, fields, known[0], label_levels(fields, opened.beside, codes, label_names))
    return conditions, [
        rows_of(conditions, each, len(part), f"the {which} examples of {opened.name}")
        for which, each, part in zip(SPLITS, known, parts, strict=True)
    ]


def _check_word(name: str, word: Any, known: tuple[Any, ...]) -> None:
    if word not in known:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, known))}, not {word!r}: choose one of these")
