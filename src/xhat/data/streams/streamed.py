"""Rows of a stream as examples: what is done to them between the disk and the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from xhat.data.batch import Batch
from xhat.data.conversion import AS_STORED, Conversion
from xhat.data.counter import uniform
from xhat.data.streams.base import Stream
from xhat.data.streams.order import WINDOW, WINDOW_ROWS, Windows
from xhat.data.streams.rows import Rows
from xhat.errors import DataError

Check = Callable[[Tensor | Batch, str, int], None]


@final
@dataclass(frozen=True)
class Streamed:
    """Examples on disk, and how they are prepared: arithmetic of NumPy, which many threads may do at once.

    Attributes:
        stream: where the rows are.
        rows: which of them.
        unit: refuse what lies outside [0, 1], as binarisation must.
        shape: of one example; grey images become as many equal channels as it has.
        conversion: what is done to the rows before anything else.
        threshold: 1 above a half, else 0.
        seed: draw each value as Bernoulli(value), a function of this seed and of the row.
        check: called with each batch that was fetched, what to call it, and 0.
    """

    stream: Stream
    rows: Rows
    shape: tuple[int, ...]
    conversion: Conversion = AS_STORED
    unit: bool = False
    threshold: bool = False
    seed: int | None = None
    check: Check | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def scale(self) -> bool:
        """Whether values are divided by 255."""
        return self.conversion.scale

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored rows."""
        return self.stream.dtype

    @property
    def windowed(self) -> bool:
        """Whether rows should be read window by window, as single ones are dear."""
        return not self.stream.scattered and len(self.rows.starts) > 2

    def order(self, seed: int) -> Windows:
        """A shuffled order: a function of the seed."""
        largest = int(np.diff(self.rows.starts).max())
        pieces = max(1, min(WINDOW // (largest * self.stream.row_bytes), WINDOW_ROWS // largest)) if self.windowed else 1
        return Windows(self.rows.starts, seed, pieces)

    def raw(self, positions: np.ndarray) -> np.ndarray:
        """The rows at these positions as they are stored, ``(n, *stored)``."""
        return self.stream.read(torch.from_numpy(self.rows.at(positions))).numpy()

    def fetch(self, positions: np.ndarray, out: Tensor | None = None) -> Tensor:
        """A float32 batch ``(n, *event)`` of what is at these positions."""
        return self.prepared(self.raw(positions), lambda: positions, out)

    def prepared(self, raw: np.ndarray, positions: Callable[[], np.ndarray], out: Tensor | None = None) -> Tensor:
        """Rows as a float32 batch.

        Args:
            raw: as they are stored, ``(n, *stored)``.
            positions: gives theirs, ``(n,)``; called where they are needed.
            out: a tensor ``(n, *event)`` to be filled.

        Raises:
            DataError: a value is not finite, or not what the model or the binarisation needs; names the row and its file.
        """
        batch = torch.empty(len(raw), *self.shape) if out is None else out
        values = batch.numpy()
        self.conversion.into(raw, values)
        self._refuse(values, positions)
        if self.threshold:
            values[...] = values > 0.5
        elif self.seed is not None:
            flat = values.reshape(len(values), -1)
            flat[...] = uniform(self.seed, self.rows.at(positions()), flat.shape[1]) < flat
        if self.check is not None:
            self._checked(self.check, batch, positions)
        return batch

    def _refuse(self, values: np.ndarray, positions: Callable[[], np.ndarray]) -> None:
        if self.stream.dtype.is_floating_point and not np.isfinite(values).all():
            place = np.argwhere(~np.isfinite(values))[0]
            raise DataError(
                f"{self._where(positions()[place[0]])} holds {values[tuple(place)]:g} at {tuple(place[1:].tolist())}, must be "
                "finite: fill it, remove that row, or load the data (memory='load', --memory load) with missing='mask'"
            )
        if self.unit and not self.scale and len(values) and not (values.min() >= 0 and values.max() <= 1):
            place = np.argwhere((values < 0) | (values > 1))[0]
            raise DataError(
                f"{self._where(positions()[place[0]])} holds {values[tuple(place)]:g}, and binarisation needs values in [0, 1]: "
                "rescale them, or leave it out"
            )

    def _where(self, position: int) -> str:
        return self.stream.where(int(self.rows.at(np.array([position]))[0]))

    def _checked(self, check: Check, batch: Tensor, positions: Callable[[], np.ndarray]) -> None:
        try:
            check(batch, self.stream.name, 0)
        except DataError:
            for example, position in zip(batch.split(1), positions(), strict=True):
                check(example, self._where(position), 0)  # the one that is at fault is called by its file and its row
            raise

    def bytes(self) -> int:
        """Bytes of all examples as one float32 tensor."""
        return 4 * len(self) * math.prod(self.shape)
