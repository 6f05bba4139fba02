"""Writing a .npy file row by row: what does not fit in memory is never held in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from torch import Tensor

from xhat.errors import CheckpointError, ConfigError


class NpyWriter:
    """A .npy file of so many rows, which appears in its place when all of them are written, and not before.

    Args:
        path: where to; the folder is there.
        count: how many rows there will be.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
        ConfigError: on leaving, another number of rows was written than was said.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with NpyWriter(Path(folder, "x.npy"), 3) as writer:
    ...         writer.add(torch.zeros(2, 4))
    ...         writer.add(torch.ones(1, 4))
    ...     np.load(Path(folder, "x.npy")).shape
    (3, 4)
    """

    def __init__(self, path: Path, count: int) -> None:
        self._path, self._count, self._written = path, count, 0
        self._beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file: BinaryIO | None = None

    def __enter__(self) -> NpyWriter:
        with self._writing():
            self._file = self._beside.open("wb")
        return self

    def add(self, rows: Tensor) -> None:
        """Write the next rows, ``(n, *event)``."""
        values = np.ascontiguousarray(rows.cpu().numpy())
        with self._writing():
            if self._file is None:
                raise OSError("the file is not open")
            if self._written == 0:
                header = {"descr": values.dtype.str, "fortran_order": False, "shape": (self._count, *values.shape[1:])}
                np.lib.format.write_array_header_1_0(self._file, header)
            self._file.write(values.data)
        self._written += len(values)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        complete = self._written == self._count
        with self._writing():
            if self._file is not None:
                if kind is None and complete:
                    self._file.flush()
                    os.fsync(self._file.fileno())
                self._file.close()
            if kind is None and complete:
                self._beside.replace(self._path)
        self._discard()
        if kind is None and not complete:
            raise ConfigError(
                f"{self._path} was to have {self._count} rows and got {self._written}: give as many as were announced"
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
            self._discard()
            raise CheckpointError(
                f"{self._path} cannot be written ({error}): free some space, or choose another place"
            ) from error

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self._beside.unlink(missing_ok=True)


def write_rows(path: Path, count: int, blocks: Iterable[Tensor]) -> None:
    """Write a .npy file of ``count`` rows, block by block.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    with NpyWriter(path, count) as writer:
        for block in blocks:
            writer.add(block)
