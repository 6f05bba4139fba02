"""From the columns and labels of a source to what a model is conditioned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xhat.data.conditions import MOST_LEVELS, Conditions, Field
from xhat.data.set_aside import LABEL
from xhat.errors import ConfigError, DataError

# Values of one field: float64 are numbers, whole numbers are classes, text is classes, and objects are the cells of a csv file,
# which does not say what they are. NaN and empty text are no value.
Known = dict[str, np.ndarray]


def condition_names(condition: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names that a caller gave: one, several, or none.

    Raises:
        ConfigError: no names, or one twice.
    """
    names = (condition,) if isinstance(condition, str) else tuple(condition or ())
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise ConfigError(f"condition must be names of columns, each once, or 'label' for the labels, was {condition!r}")
    return names


def known_of(
    names: Sequence[str],
    columns: Mapping[str, np.ndarray] | None,
    labels: Any,
    codes: Tensor | None,
    label_names: Sequence[str] | None,
) -> Known:
    """The values of those fields that a source has.

    Args:
        names: of the fields.
        columns: of a table, those that were set aside.
        labels: what the labels are called, beside ``label``.
        codes: the labels ``(N,)``.
        label_names: what they stand for.
    """
    known: Known = {}
    for name in names:
        if columns is not None and name in columns:
            known[name] = columns[name]
        elif codes is not None and (name == LABEL or (isinstance(labels, str) and name == labels)):
            known[name] = codes.numpy() if label_names is None else np.array(label_names)[codes.numpy()]
    return known


def refuse_missing(where: str, known: Known, lines: Any = None, remedy: str = "") -> None:
    """Refuse a field that lacks a value.

    Args:
        where: what messages call the source.
        known: the values.
        lines: for messages, the rows of a table in its file.
        remedy: what can be done beside filling it.

    Raises:
        DataError: names the field and the row.
    """
    for name, values in known.items():
        missing = without_value(values)
        if missing.any():
            row = int(missing.argmax()) if lines is None else lines[int(missing.argmax())]
            raise DataError(
                f"{where} has no value of the condition {name!r} in row {row}, must have one for each example: fill it{remedy}"
            )


def without_value(values: np.ndarray) -> np.ndarray:
    """Which rows have no value."""
    if values.dtype.kind == "f":
        return np.isnan(values)
    return np.zeros(len(values), bool) if values.dtype.kind in "iu" else np.asarray(values == "")


def learn_conditions(where: str, names: Sequence[str], train: Known, levels: Mapping[str, Sequence[str]]) -> Conditions:
    """What the training examples are conditioned on: their classes in order of names, means and deviations of numbers.

    Args:
        where: what messages call the source.
        names: of the fields, in order.
        train: their values.
        levels: the classes of those whose order is settled.

    Raises:
        DataError: a field that is not there, or does not vary.

    >>> learn_conditions("x", ["sex"], {"sex": np.array(["M", "F"])}, {}).described
    {'sex': ['F', 'M']}
    """
    missing = [name for name in names if name not in train]
    if missing:
        remedy = "give labels, or leave the condition out" if missing[0] == LABEL else "name a column of a table, or 'label'"
        what = "labels" if missing[0] == LABEL else f"column {missing[0]!r}"
        raise DataError(f"{where} has no {what} for the condition: {remedy}")
    return Conditions(tuple(_field(where, name, train[name], levels.get(name)) for name in names))


def label_levels(
    fields: Sequence[str],
    columns: Mapping[str, np.ndarray] | None,
    codes: list[Tensor | None],
    label_names: tuple[str, ...] | None,
) -> dict[str, tuple[str, ...]]:
    """The classes of those fields that are the labels, in their order."""
    levels = label_names
    if levels is None:
        given = [code for code in codes if code is not None]
        levels = tuple(map(str, torch.cat(given).unique().tolist())) if given else ()
    return {name: levels for name in fields if name not in (columns or {})}


def _field(where: str, name: str, values: np.ndarray, levels: Sequence[str] | None) -> Field:
    numbers = _numbers(values) if levels is None else None
    if numbers is None:
        found = tuple(map(str, np.unique(values.astype(np.str_)))) if levels is None else tuple(levels)
        if not 2 <= len(found) <= MOST_LEVELS:
            raise DataError(
                f"{where}: the condition {name!r} must have from 2 to {MOST_LEVELS:,} classes in the training examples, had "
                f"{len(found)}: leave it out"
            )
        return Field(name, found)
    mean, std = float(numbers.mean()), float(numbers.std())
    if not std > 0:
        raise DataError(f"{where}: the condition {name!r} must vary, but all training examples have {mean:g}: leave it out")
    return Field(name, None, mean, std)


def _numbers(values: np.ndarray) -> np.ndarray | None:
    """The values as numbers, or None where they are classes."""
    if values.dtype.kind == "f":
        return values
    if values.dtype.kind != "O":
        return None
    try:
        return values.astype(np.float64)
    except ValueError:
        return None


def rows_of(conditions: Conditions | None, known: Known, count: int, where: str) -> Tensor | None:
    """The rows of numbers ``(N, C)``; None where nothing is conditioned on, or the source does not say all that is.

    Raises:
        DataError: an unknown class, or what is no number; says where.
    """
    if conditions is None or any(name not in known for name in conditions.names):
        return None
    try:
        return conditions.encode({name: known[name] for name in conditions.names}, count)
    except DataError as error:
        raise DataError(f"{where}: {error}; correct such examples, or leave them out") from error
