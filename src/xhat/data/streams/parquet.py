"""A Parquet file as a stream: its row groups are its blocks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from xhat.data.set_aside import set_aside
from xhat.data.streams.base import Stream, Watched
from xhat.data.tables import column_beside, label_column, opened_parquet, refuse_column
from xhat.errors import DataError

# Decoded row groups that are kept for the next read, in bytes; the last one is kept in any case.
_KEPT = 2**26
# The largest row group, decoded: two of them are in memory while the one is trained on and the next is read.
_LARGEST = 2**28
_ADVISED = 2**24  # what a message suggests instead
_COLUMNS_AT_ONCE = 2**24  # bytes of columns on their way from the file to the array


@final
class ParquetStream(Stream):
    """The numeric columns of one Parquet file; a null is NaN, and refused when it is fetched.

    Args:
        path: the file.
        labels: a column that is left out, by name or by position from 0.
        condition: columns that are left out too, by name; :meth:`beside` reads them.
        strict: refuse a condition that is not there.

    Raises:
        DataError: a column that holds no numbers, row groups too large to be read one at a time, a damaged file, or pyarrow is
            not installed.
    """

    def __init__(self, path: Path, labels: str | int | None = None, condition: Sequence[str] = (), strict: bool = True) -> None:
        self.name = str(path)
        self._file = Watched(path)
        with opened_parquet(path) as file:
            self._metadata = file.metadata
            schema = file.schema_arrow
        names = tuple(schema.names)
        if self._metadata.num_rows == 0 or not names:
            raise DataError(f"{path} holds no rows: give at least one row of numbers")
        if len(set(names)) < len(names):
            raise DataError(f"{path} has several columns of one name, which cannot be told apart: rename them")
        self._aside = set_aside(path, names, len(names), labels, condition, strict)
        self.label = None if self._aside.label is None else names[self._aside.label]
        self.columns = self._aside.rest(names)
        for position, name in enumerate(names):
            if position not in self._aside.positions:
                refuse_column(path, name, schema.field(position).type)
        small = all(_is_small(schema.field(name).type) for name in self.columns)
        self.dtype = torch.float32 if small else torch.float64
        self.shape = (len(self.columns),)
        self.source_dtype = str(self.dtype).removeprefix("torch.")
        sizes = [self._metadata.row_group(group).num_rows for group in range(self._metadata.num_row_groups)]
        groups = [group for group, size in enumerate(sizes) if size]
        self._groups = groups
        self.bounds = np.concatenate([[0], np.cumsum([sizes[group] for group in groups])]).astype(np.int64)
        if self.block * self.row_bytes > _LARGEST:
            raise DataError(
                f"{path} has row groups of {self.block} rows, {self.block * self.row_bytes / 2**20:.0f} MiB each in memory and "
                f"must have at most {_LARGEST / 2**20:.0f} MiB to be streamed: write it again with "
                f"row_group_size={max(1, _ADVISED // self.row_bytes)}"
            )
        self._held: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, indices: Tensor) -> Tensor:
        rows = indices.numpy()
        place = np.searchsorted(self.bounds, rows, "right") - 1
        out = np.empty((len(rows), *self.shape), np.float32 if self.dtype == torch.float32 else np.float64)
        with self._lock:  # one decodes, and the others find it done
            for group in np.unique(place).tolist():
                chosen = place == group
                out[chosen] = self._group(group)[rows[chosen] - self.bounds[group]]
        return torch.from_numpy(out)

    def _group(self, group: int) -> np.ndarray:
        if group in self._held:
            self._held.move_to_end(group)
            return self._held[group]
        size = int(self.bounds[group + 1] - self.bounds[group])
        # Room first: what is to go must be gone before the new one is decoded.
        room = _KEPT - size * self.row_bytes
        while self._held and sum(held.nbytes for held in self._held.values()) > room:
            self._held.popitem(last=False)
        values = np.empty((size, len(self.columns)), np.float32 if self.dtype == torch.float32 else np.float64)
        at_once = max(1, _COLUMNS_AT_ONCE // (size * 8))
        self._file.check()
        with opened_parquet(self._file.path, self._metadata) as file:
            for first in range(0, len(self.columns), at_once):
                names = list(self.columns[first : first + at_once])
                table = file.read_row_group(self._groups[group], columns=names, use_threads=False)
                for offset, name in enumerate(names):
                    values[:, first + offset] = table.column(name).cast("float64").to_numpy()
        self._file.check()
        self._held[group] = values
        return values

    def labels(self) -> np.ndarray | None:
        """The column of labels, all of it."""
        if self.label is None:
            return None
        return label_column(self._file.path, self._column(self.label))

    def beside(self) -> dict[str, np.ndarray]:
        """The columns that the examples are conditioned on, all of them."""
        return {name: column_beside(self._file.path, name, self._column(name)) for name in self._aside.beside}

    def _column(self, name: str) -> Any:
        self._file.check()
        with opened_parquet(self._file.path, self._metadata) as file:
            return file.read(columns=[name], use_threads=False).column(name)

    def where(self, row: int) -> str:
        return f"{self.name}, row {row} (counted from 0)"


def _is_small(kind: Any) -> bool:
    """Whether float32 holds every value of the type."""
    from pyarrow import types

    if types.is_integer(kind):
        return bool(kind.bit_width <= 16)
    return types.is_boolean(kind) or types.is_float16(kind) or types.is_float32(kind)
