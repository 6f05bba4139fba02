"""Streams: rows that stay on disk, and are read when they are wanted."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from xhat.data.raw import reading, refuse_empty
from xhat.errors import DataError


class Stream(ABC):
    """Abstract: N rows on disk. It keeps no file open between reads, and may be read by several threads at once.

    Attributes:
        name: what messages call it.
        shape: of one row, ``(*event)``.
        dtype: of the tensors that are read; uint8, float32 or float64.
        bounds: the rows at which pieces begin that are cheap to read together, int64 ``(J + 1,)``, the last one N.
        scattered: whether single rows from anywhere are as cheap to read; there is one piece then.
        workers: how many threads read it faster than one does.
        layout: how the source holds an example, as in :class:`~xhat.data.preparation.Preparation`.
        source_dtype: NumPy's name of the type that the source holds.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    bounds: np.ndarray
    scattered: bool = False
    workers: int = 1
    layout: str = "plain"
    source_dtype: str = "float32"

    def __len__(self) -> int:
        return int(self.bounds[-1])

    @property
    def block(self) -> int:
        """Rows of the largest piece."""
        return int(np.diff(self.bounds).max())

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in memory."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @abstractmethod
    def read(self, indices: Tensor) -> Tensor:
        """The rows at ``indices``, int64 ``(n,)`` from 0, in their order: ``(n, *event)`` in the stored dtype.

        Raises:
            DataError: a file is damaged, or has changed since the stream was opened; names the file.
        """

    @abstractmethod
    def where(self, row: int) -> str:
        """What a message calls a row: its file, and its place in there."""


class _Version(NamedTuple):
    """What changes when a file does."""

    size: int
    modified: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Version:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


class Watched:
    """A file that must stay as it was when it was first seen."""

    def __init__(self, path: Path) -> None:
        refuse_empty(path)
        with reading(path, "file"):
            self.path, self._version = path, _Version.of(path.stat())

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._version.size

    def check(self, status: os.stat_result | None = None) -> None:
        """Refuse a file that has changed.

        Raises:
            DataError: it has, or is gone.
        """
        with reading(self.path, "file"):
            now = _Version.of(status or self.path.stat())
        if now != self._version:
            raise DataError(
                f"{self.path} has changed while it was being read ({self.size} bytes before, {now.size} now): "
                "leave it alone during training, and start again"
            )
