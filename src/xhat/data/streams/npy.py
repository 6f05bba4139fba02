"""A .npy file as a stream: its rows are read in blocks, or one by one where they are large."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from xhat.data.raw import as_events, layout_of, reading
from xhat.data.streams.base import Stream, Watched
from xhat.errors import DataError

# Rows that are read together and mixed with others. Part of what a seed means: with another figure the split is another.
BLOCK, BLOCK_ROWS = 2**20, 2**13
# From here on a row is read by itself as cheaply as among its neighbours.
_LARGE_ROW = 2**16
# A stream has at most so many blocks, so that lists of them stay small however large the file.
_BLOCKS = 2**20
# Bytes between two wanted rows that are read and thrown away rather than skipped, and bytes that are read at once.
_GAP, _SPAN = 2**15, 2**23


def pieces(count: int, row_bytes: int) -> tuple[np.ndarray, bool]:
    """The bounds of blocks of at most 1 MiB, and whether rows are so large that each is read by itself.

    >>> pieces(3000, 1024)[0].tolist(), pieces(3000, 100_000)
    ([0, 1024, 2048, 3000], (array([   0, 3000]), True))
    """
    if row_bytes >= _LARGE_ROW:
        return np.array([0, count]), True
    size = max(min(BLOCK // row_bytes, BLOCK_ROWS), -(-count // _BLOCKS))
    return np.append(np.arange(0, count, size), count), False


@final
class NpyStream(Stream):
    """One .npy file.

    Bytes and 32- and 64-bit floats are stored as they are; other numbers are converted as they are read. Nothing in the file is
    ever run.

    Args:
        path: the file.

    Raises:
        DataError: the file is damaged, in Fortran order, or holds no numbers.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/x.npy", np.arange(12, dtype=np.uint8).reshape(4, 3))
    ...     NpyStream(Path(folder, "x.npy")).read(torch.tensor([3, 0]))
    tensor([[ 9, 10, 11],
            [ 0,  1,  2]], dtype=torch.uint8)
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._file = Watched(path)
        with reading(path, ".npy file"), path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, self._kind = header(file)
            self._start = file.tell()
        self._refuse(path, shape, fortran)
        self._row = shape[1:]
        self._row_bytes = int(np.prod(self._row)) * self._kind.itemsize
        if self._file.size < self._start + shape[0] * self._row_bytes:
            raise DataError(
                f"{path} is cut short, it has {self._file.size} bytes and must have "
                f"{self._start + shape[0] * self._row_bytes}: fetch or write it again"
            )
        self._stored = _stored(self._kind)
        self.dtype = torch.from_numpy(np.empty(0, self._stored)).dtype
        empty = np.empty((0, *self._row), self._kind)
        self.shape, self.layout, self.source_dtype = (
            as_events(empty).shape[1:],
            layout_of(empty),
            self._kind.newbyteorder("=").name,
        )
        self.bounds, self.scattered = pieces(shape[0], self._row_bytes)

    def _refuse(self, path: Path, shape: tuple[int, ...], fortran: bool) -> None:
        kind = self._kind
        if kind.hasobject:
            raise DataError(
                f"{path} holds pickled Python objects, and unpickling would run code from the file: write it again with plain "
                "numeric arrays"
            )
        if kind.kind not in "biuf":
            raise DataError(f"{path} has dtype {kind}, must hold real numbers: convert it with numpy.asarray(x, dtype=float)")
        if len(shape) < 2:
            raise DataError(f"{path} has shape {shape}, must have shape (N, *event): reshape to (N, 1) with x.reshape(-1, 1)")
        if 0 in shape:
            raise DataError(f"{path} holds no examples, its shape is {shape}: give at least one example with one value")
        if fortran:
            raise DataError(
                f"{path} is in Fortran order, in which a row lies scattered over the whole file: write it again with "
                "numpy.save(path, numpy.ascontiguousarray(x))"
            )

    def read(self, indices: Tensor) -> Tensor:
        rows = indices.numpy()
        out = np.empty((len(rows), *self._row), self._kind)
        flat = out.view(np.uint8).reshape(len(rows), self._row_bytes)
        # Read, not mapped: the pages of a mapped file count as memory of the process, all 20 GB of it if it is let.
        with reading(self._file.path, ".npy file"), self._file.path.open("rb", buffering=0) as file:
            if len(rows):
                self._gather(file, rows, flat)
            self._file.check(os.fstat(file.fileno()))  # after the reading, so that a change in the middle of it is seen, too
        return torch.from_numpy(as_events(out).astype(self._stored, copy=False))

    def _gather(self, file: FileIO, rows: np.ndarray, out: np.ndarray) -> None:
        order = np.argsort(rows, kind="stable")
        ranked = rows[order]
        # Where the next row lies so far on that it is cheaper to seek; and at least every few MiB, which bounds the memory.
        apart = np.diff(ranked) * self._row_bytes > _GAP + self._row_bytes
        apart |= np.diff(ranked * self._row_bytes // _SPAN) != 0
        edges = np.concatenate([[0], np.flatnonzero(apart) + 1, [len(rows)]])
        for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            first, last = int(ranked[begin]), int(ranked[end - 1])
            span = np.empty((last + 1 - first, self._row_bytes), np.uint8)
            self._fill(file, span, self._start + first * self._row_bytes)
            out[order[begin:end]] = span[ranked[begin:end] - first]

    def _fill(self, file: FileIO, span: np.ndarray, offset: int) -> None:
        buffer = span.reshape(-1).data
        file.seek(offset)  # of a handle that no other thread has
        while buffer:
            count = file.readinto(buffer)
            if not count:
                raise EOFError(f"it ends before byte {offset + span.nbytes}")
            buffer = buffer[count:]

    def where(self, row: int) -> str:
        return f"{self.name}, row {row} (counted from 0)"


def _stored(kind: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that holds the values of another one, among those that examples have."""
    if kind.kind == "b" or kind == np.uint8:
        return np.dtype(np.uint8)
    # float32 holds every whole number of 16 bits
    small = kind.itemsize <= 2 if kind.kind in "iu" else kind.itemsize <= 4
    return np.dtype(np.float32 if small else np.float64)
