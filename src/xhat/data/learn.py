"""What is learnt of the training examples: their kind, and how all examples are prepared."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from xhat.data.columns import columns_of, standardised
from xhat.data.conversion import Conversion
from xhat.data.examples import Examples
from xhat.data.kinds import Kind, kind_of
from xhat.data.made import in_memory
from xhat.data.preparation import Preparation
from xhat.data.scaling import column_list, constant_columns, refuse_constant, scaling_of
from xhat.errors import ConfigError, DataError


class Learnt(NamedTuple):
    """A preparation, what it does to rows of this source, the kind of what comes out, and what a user should hear of it."""

    preparation: Preparation
    conversion: Conversion
    kind: Kind
    notes: tuple[str, ...]
    train: Examples


def learn(
    rows: Tensor,
    names: Sequence[str] | None,
    start: Preparation,
    *,
    standardize: bool | None,
    drop_constant: bool,
    whose: str = "the",
    observed: Tensor | None = None,
    condition: Tensor | None = None,
) -> Learnt:
    """Learn how to prepare from training rows, or from a sample of them.

    Args:
        rows: ``(N, *event)`` as they are stored.
        names: of a table's columns, where the source has them.
        start: what was asked and is known: bytes, layout, binarisation.
        standardize: as for :func:`~xhat.data.load.load_data`.
        drop_constant: likewise.
        whose: what the notes call the training examples: ``the`` or ``these``.
        observed: which of the values are there, of the shape of ``rows``, whose others are some that are; None: all.
        condition: what the training examples are conditioned on.

    Raises:
        DataError: columns without variation, values that cannot be binarised.
        ConfigError: columns are to be left out of what is no table.
    """
    notes = []
    conversion = Conversion(scale=bool(start.bytes))
    if drop_constant:
        kept, note = _varying(rows, names)
        notes += note
        if kept is not None:
            names = None if names is None else [names[column] for column in kept]
            conversion, start = dataclasses.replace(conversion, columns=kept), dataclasses.replace(start, kept=kept)
    used = rows if conversion.columns is None else rows[:, list(conversion.columns)]
    start = dataclasses.replace(start, shape=tuple(used.shape[1:]), columns=columns_of(used, names))
    train = in_memory(start, conversion, rows, None, "train")
    notes += ["bytes are divided by 255"] * bool(start.bytes)
    if start.binarize is not None:
        notes.append(f"binarised ({start.binarize})")
    kind = kind_of(train)
    real_table = len(train.shape) == 1 and kind.name == "real"
    if real_table:
        refuse_constant(train.storage, names)
    if standardize or (standardize is None and real_table):
        seen = observed if observed is None or conversion.columns is None else observed[:, list(conversion.columns)]
        scaling = scaling_of(train.tensor() if start.bytes else train.storage, names, seen)
        start = dataclasses.replace(start, columns=standardised(start.columns, scaling))
        conversion = dataclasses.replace(conversion, scaling=start.scaling)
        train = in_memory(start, conversion, rows, None, "train")
        kind = kind_of(train)
        notes.append(f"standardised with the mean and standard deviation of {whose} training examples")
    if observed is not None or condition is not None:
        train = in_memory(start, conversion, rows, None, "train", observed=observed, condition=condition)
    return Learnt(start, conversion, kind, tuple(notes), train)


def _varying(rows: Tensor, names: Sequence[str] | None) -> tuple[tuple[int, ...] | None, list[str]]:
    """The positions of the columns that are not constant, or None where all are such, and a note on the others."""
    if rows.dim() != 2:
        raise ConfigError(
            f"drop_constant leaves out columns of a table, the examples have shape {tuple(rows.shape[1:])}: leave it out"
        )
    constant = constant_columns(rows)
    if not constant:
        return None, []
    dropped = set(constant)
    kept = tuple(column for column in range(rows.shape[1]) if column not in dropped)
    if not kept:
        raise DataError("every column has one value in all training examples, none is left: give columns that vary")
    return kept, [f"{column_list(constant, names)} one value throughout and was left out"]


def learn_plain(examples: Examples, names: Sequence[str] | None = None) -> Preparation:
    """What can be said of examples that nobody prepared: their shape, whether they are bytes, and their range."""
    if examples.streamed is not None:
        stream = examples.streamed.stream
        return Preparation(examples.shape, bytes=examples.scale, layout=stream.layout, dtype=stream.source_dtype)
    storage = examples.storage
    dtype = str(storage.dtype).removeprefix("torch.")
    return Preparation(examples.shape, columns_of(storage, names), bytes=examples.scale, dtype=dtype)
