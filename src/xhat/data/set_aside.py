"""Which columns of a table are set aside: the labels, and what the examples are conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xhat.errors import DataError

LABEL = "label"  # the word for the labels of a source, whatever they are called there


class Aside(NamedTuple):
    """The columns that leave x: ``label``, the position of the labels or None, and ``beside``, positions by name."""

    label: int | None
    beside: dict[str, int]

    @property
    def positions(self) -> set[int]:
        """All of them."""
        return {*self.beside.values()} | ({self.label} if self.label is not None else set())

    def rest(self, names: Sequence[str]) -> tuple[str, ...]:
        """The names of the other columns."""
        return tuple(name for position, name in enumerate(names) if position not in self.positions)


def set_aside(
    where: Any, names: Sequence[str] | None, width: int, labels: str | int | None, condition: Sequence[str], strict: bool
) -> Aside:
    """Find the columns that are set aside.

    Args:
        where: what messages call the table.
        names: of its columns, where it has them.
        width: how many columns it has.
        labels: the column of labels, by name or by position from 0.
        condition: the columns that the examples are conditioned on; ``label`` is the labels, or a column of that name.
        strict: refuse a condition that is not there, as in training data; new data may come without it.

    Raises:
        DataError: no such column, or none is left.

    >>> set_aside("the table", ["age", "sex", "x"], 3, None, ["sex"], strict=True).rest(["age", "sex", "x"])
    ('age', 'x')
    """
    label = None if labels is None else column_position(where, labels, names, width)
    place = {} if names is None else {name: position for position, name in enumerate(names)}
    if label is None and LABEL in condition:
        label = place.get(LABEL)
    beside = {name: place[name] for name in condition if name in place and not (place[name] == label and name in (labels, LABEL))}
    unknown = [name for name in condition if name not in place and not (name == LABEL and label is not None)]
    if unknown and strict:
        known = f"{width} columns without names" if names is None else f"the columns {', '.join(names)}"
        raise DataError(f"{where} has no column {unknown[0]!r} for the condition, it has {known}: name one of its columns")
    found = Aside(label, beside)
    if len(found.positions) >= width and condition:
        raise DataError(f"{where} has {width} columns, and the condition takes all of them away: leave one for x")
    return found


def column_position(where: Any, labels: str | int, names: Sequence[str] | None, width: int) -> int:
    """Where the column of labels stands among ``width`` columns, from its name or a position from 0.

    Raises:
        DataError: there is none, or it is the only one.
    """
    try:
        position = list(names).index(str(labels)) if names is not None and labels in names else int(labels)
    except ValueError:
        position = width
    if not -width <= position < width:
        known = f"{width} columns" if names is None else f"the columns {', '.join(names)}"
        raise DataError(f"{where} has no column {labels!r} for the labels, it has {known}: give a name, or a position from 0")
    if width == 1:
        raise DataError(f"{where} has one column only, and labels={labels!r} takes it away: leave labels out")
    return position % width


def text_cells(cells: Sequence[Any]) -> np.ndarray:
    """Cells of text, those without a value as empty text."""
    return np.array(["" if _is_nothing(cell) else str(cell) for cell in cells], dtype=np.str_)


def _is_nothing(cell: Any) -> bool:
    return cell is None or (not isinstance(cell, str) and str(cell) in ("nan", "<NA>", "NaT"))
