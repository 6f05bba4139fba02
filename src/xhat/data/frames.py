"""Data frames, and whatever else has columns with names: of pandas, polars or pyarrow, or a dict of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from xhat.data.raw import Raw
from xhat.data.set_aside import set_aside, text_cells
from xhat.errors import DataError


def is_frame(x: Any) -> bool:
    """Whether x has columns that are asked for by name.

    >>> is_frame({"age": [1, 2]}), is_frame(np.zeros((2, 2)))
    (True, False)
    """
    if isinstance(x, Mapping):
        return True
    if isinstance(x, np.ndarray):
        return x.dtype.names is not None
    return not isinstance(x, Tensor) and (hasattr(x, "columns") or hasattr(x, "column_names")) and hasattr(x, "__getitem__")


def read_frame(
    frame: Any, labels: Any = None, where: str = "the data frame", condition: Sequence[str] = (), strict: bool = True
) -> Raw:
    """The columns of a frame as a table of numbers.

    Args:
        frame: what :func:`is_frame` knows.
        labels: the column of labels by its name, or the labels themselves.
        where: what messages call the frame.
        condition: columns that are set aside, by name; they may hold text.
        strict: refuse a condition that is not there.

    Raises:
        DataError: no columns, several of one name, of several lengths, or one that holds no numbers; names the column.

    >>> read_frame({"age": [40, 50], "kind": ["a", "b"]}, labels="kind").train
    array([[40.],
           [50.]])
    """
    held = _names(frame)
    names = [str(name) for name in held]
    if not names:
        raise DataError(f"{where} has no columns: give at least one column of numbers")
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise DataError(f"{where} has several columns called {twice!r}, which cannot be told apart: rename them")
    named = labels if isinstance(labels, str) else None
    if named is not None and named not in names:
        raise DataError(f"{where} has no column {named!r} for the labels, it has {', '.join(names)}: give one of these")
    aside = set_aside(where, names, len(names), named, condition, strict and labels is None)
    pairs = [pair for position, pair in enumerate(zip(held, names, strict=True)) if position not in aside.positions]
    values = [_numbers(frame[own], name, where) for own, name in pairs]
    if len({len(column) for column in values}) > 1:
        raise DataError(f"{where} has columns of several lengths, must have one value of each column in each row: correct it")
    if aside.label is not None and (labels is None or named is not None):
        labels = _texts(frame[held[aside.label]])
    plain = names == [str(number) for number in range(len(names))]  # the positions, which are no names
    columns = None if plain else aside.rest(names)
    table = np.stack(values, axis=1)
    return Raw(
        table,
        train_labels=None if labels is None else np.asarray(labels),
        columns=columns,
        rows=np.arange(len(table)),
        places=None if columns is None else tuple(f"column {name!r}" for name in columns),
        beside={name: _beside(frame[held[position]], name, where) for name, position in aside.beside.items()},
    )


def _names(frame: Any) -> list[Any]:
    if isinstance(frame, Mapping):
        return list(frame)
    if isinstance(frame, np.ndarray):
        return list(frame.dtype.names or ())
    return list(frame.column_names if hasattr(frame, "column_names") else frame.columns)


def _numbers(column: Any, name: str, where: str) -> np.ndarray:
    array = np.asarray(column)
    if array.dtype.kind not in "biuf":
        try:
            # numbers with gaps are objects to NumPy; pandas makes them floats, and the gaps NaN
            plain = isinstance(column, list | tuple | np.ndarray)
            array = _with_gaps(array) if plain else column.to_numpy(dtype=np.float64, na_value=np.nan)
        except (AttributeError, TypeError, ValueError) as error:
            shown = str(array.reshape(-1)[0])[:40] if array.size else ""
            raise DataError(
                f"{where}, column {name!r} holds {shown!r} ({array.dtype}), must hold numbers: code the column as numbers, "
                "remove it, or set it aside: labels=NAME if it is the class, condition=NAME to condition on"
            ) from error
    if array.ndim != 1:
        raise DataError(f"{where}, column {name!r} has shape {array.shape}, must hold one number for each row: take it apart")
    return array.astype(np.float64)


def _with_gaps(cells: np.ndarray) -> np.ndarray:
    if any(isinstance(cell, str) for cell in cells.tolist()):
        raise ValueError("text is no number")
    return np.array([np.nan if cell is None else cell for cell in cells.tolist()], dtype=np.float64)


def _beside(column: Any, name: str, where: str) -> np.ndarray:
    """A column that the examples are conditioned on: text where it holds text or categories, else numbers."""
    array = np.asarray(column)
    category = str(getattr(column, "dtype", "")).lower().startswith("categor")
    if array.ndim == 1 and (category or array.dtype.kind in "UT" or any(isinstance(cell, str) for cell in array.tolist())):
        return text_cells(array.tolist())
    return _numbers(column, name, where)


def _texts(column: Any) -> np.ndarray:
    array = np.asarray(column)
    return array.astype(str) if array.dtype.kind == "O" else array
