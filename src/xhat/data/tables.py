"""Tables of numbers: CSV and Parquet, with one column set aside as labels if asked."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from xhat.data.raw import Raw, reading, refuse_empty
from xhat.data.set_aside import set_aside, text_cells
from xhat.errors import DataError

_MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
_DELIMITERS = ",;\t"


def read_csv(path: Path, labels: str | int | None = None, condition: Sequence[str] = (), strict: bool = True) -> Raw:
    """Numbers separated by commas, semicolons or tabs; empty cells and the usual words for missing become NaN.

    The first line is a header when some column has text there and a number (or nothing) in the second line.

    Args:
        path: the file, in UTF-8.
        labels: the column of labels, by name or by position from 0; it may hold text.
        condition: columns that are set aside, by name; they too may hold text.
        strict: refuse a condition that is not there.

    Raises:
        DataError: text among the numbers, lines of different lengths, a damaged file, no such column.
    """
    refuse_empty(path)
    with reading(path, "CSV file"), path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = max(_DELIMITERS, key=file.readline().count)  # the first one if none occurs: one column
        file.seek(0)
        try:
            lines = csv.reader(file, delimiter=delimiter)
            return _table(path, ((lines.line_num, line) for line in lines if line), labels, condition, strict)
        except csv.Error as error:
            raise DataError(f"{path} is no readable CSV file ({error}): write it again as plain text") from error


def _table(path: Path, lines: Any, labels: str | int | None, condition: Sequence[str], strict: bool) -> Raw:
    first = [next(lines, None), next(lines, None)]
    head = [line for line in first if line is not None]
    names = _header(head)
    if len(head) <= (names is not None):
        raise DataError(f"{path} holds no rows below its header: give at least one row of numbers")
    width = len(head[0][1])
    aside = set_aside(path, names, width, labels, condition, strict)
    places = aside.rest([f"column {i + 1}" if names is None else f"column {names[i]!r}" for i in range(width)])
    values, rows = array("d"), array("q")
    kept: dict[int, list[str]] = {position: [] for position in sorted(aside.positions, reverse=True)}
    for source in (head[names is not None :], lines):
        for number, cells in source:
            if len(cells) != width:
                raise DataError(
                    f"{path}, row {number} has {len(cells)} cells, the first row has {width}, and all must have as "
                    "many: correct that row"
                )
            for position, column in kept.items():
                cell = cells.pop(position).strip()
                column.append(_label(path, number, cell) if position == aside.label else _cell(cell))
            try:
                values.extend(map(float, cells))
            except ValueError:
                del values[len(rows) * len(places) :]  # extend had taken some of this row already
                values.extend(_number(path, number, place, cell) for place, cell in zip(places, cells, strict=True))
            rows.append(number)
    table = np.array(values, dtype=np.float64).reshape(len(rows), -1)
    return Raw(
        table,
        train_labels=None if aside.label is None else np.array(kept[aside.label]),
        columns=None if names is None else aside.rest(names),
        rows=np.array(rows, dtype=np.int64),
        places=places,
        beside={name: np.array(kept[position], dtype=object) for name, position in aside.beside.items()},
    )


def _is_word(cell: str) -> bool:
    if cell.strip().lower() in _MISSING:
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return False


def _header(head: list[tuple[int, list[str]]]) -> tuple[str, ...] | None:
    if not head:
        return None
    cells = head[0][1]
    if len(head) == 1:
        return tuple(cells) if all(map(_is_word, cells)) else None
    turns = any(_is_word(above) and not _is_word(below) for above, below in zip(cells, head[1][1], strict=False))
    return tuple(cell.strip() for cell in cells) if turns else None


def _cell(cell: str) -> str:
    return "" if cell.lower() in _MISSING else cell


def _label(path: Path, row: int, cell: str) -> str:
    if cell.lower() in _MISSING:
        raise DataError(f"{path}, row {row} has no label: fill it, or remove that row")
    return cell


def _number(path: Path, row: int, place: str, cell: str) -> float:
    if cell.strip().lower() in _MISSING:
        return float("nan")
    try:
        return float(cell)
    except ValueError as error:
        raise _text_error(path, row, place, cell) from error


def _text_error(path: Path, row: int, place: str, cell: str) -> DataError:
    return DataError(
        f"{path}, row {row}, {place} holds the text {cell[:40]!r}, must be a number: code the column as numbers, remove it, or "
        "set it aside: labels=NAME (--labels NAME) if it is the class, condition=NAME (--condition NAME) to condition on"
    )


def read_parquet(path: Path, labels: str | int | None = None, condition: Sequence[str] = (), strict: bool = True) -> Raw:
    """The numeric columns of a Parquet file; nulls become NaN.

    Args:
        path: the file.
        labels: the column of labels, by name or by position from 0; it may hold text.
        condition: columns that are set aside, by name; they too may hold text.
        strict: refuse a condition that is not there.

    Raises:
        DataError: a column that holds no numbers, a damaged file, no such column, or pyarrow is not installed.
    """
    with opened_parquet(path) as file:
        table = file.read(use_threads=False)
    names = tuple(table.column_names)
    if table.num_rows == 0 or not names:
        raise DataError(f"{path} holds no rows: give at least one row of numbers")
    aside = set_aside(path, names, len(names), labels, condition, strict)
    columns = [_numeric(path, name, table.column(i)) for i, name in enumerate(names) if i not in aside.positions]
    return Raw(
        np.stack(columns, axis=1),
        train_labels=None if aside.label is None else label_column(path, table.column(aside.label)),
        columns=aside.rest(names),
        rows=np.arange(1, table.num_rows + 1),
        places=aside.rest([f"column {name!r}" for name in names]),
        beside={name: column_beside(path, name, table.column(position)) for name, position in aside.beside.items()},
    )


def column_beside(path: Path, name: str, column: Any) -> np.ndarray:
    """A column of a Parquet file that the examples are conditioned on: text, or numbers; a null is empty text, or NaN."""
    kind = column.type
    if _is_text(getattr(kind, "value_type", kind)):  # of a column of text that is kept as a dictionary
        return text_cells(column.to_pylist())
    return _numeric(path, name, column)


@contextmanager
def opened_parquet(path: Path, metadata: Any = None) -> Iterator[Any]:
    """A Parquet file, open; whatever is wrong with it is said in one sentence.

    Args:
        path: the file.
        metadata: of the same file, where it was read before.

    Raises:
        DataError: the file is empty or damaged, or pyarrow is not installed.
    """
    refuse_empty(path)
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow, which is not installed: pip install 'xhat[data]'") from error
    with reading(path, "Parquet file"):
        try:
            with parquet.ParquetFile(path, metadata=metadata) as file:
                yield file
        except pyarrow.ArrowException as error:
            reason = str(error).split("\n")[0]
            raise DataError(f"{path} is no readable Parquet file ({reason}): fetch or write it again") from error


def _numeric(path: Path, name: str, column: Any) -> np.ndarray:
    if _is_text(column.type):
        row = next((i for i, cell in enumerate(column.to_pylist()) if cell is not None), 0)
        raise _text_error(path, row + 1, f"column {name!r}", str(column[row]))
    refuse_column(path, name, column.type)
    return np.asarray(column.cast("float64").to_numpy(), dtype=np.float64)


def refuse_column(path: Path, name: str, kind: Any) -> None:
    """Refuse a column of a Parquet file by its type.

    Raises:
        DataError: it holds no numbers.
    """
    from pyarrow import types

    if _is_text(kind):
        raise DataError(
            f"{path}, column {name!r} holds text, must hold numbers: code the column as numbers, remove it, or set it aside: "
            "labels=NAME (--labels NAME) if it is the class, condition=NAME (--condition NAME) to condition on"
        )
    if not (types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)):
        raise DataError(f"{path}, column {name!r} holds values of type {kind}, must be numbers: convert the column, or remove it")


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind)


def label_column(path: Path, column: Any) -> np.ndarray:
    """The labels, none of which may be missing."""
    cells = column.to_pylist()
    if None in cells:
        raise DataError(f"{path}, row {cells.index(None) + 1} has no label: fill it, or remove that row")
    return np.array(cells)
