"""From rows as they are stored to the units that a model is trained in: the one place where that arithmetic stands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xhat.data.scaling import Scaling


@dataclass(frozen=True)
class Conversion:
    """Columns picked, bytes divided by 255, values standardised; each step only where it is asked.

    It is arithmetic of NumPy, which many threads may do at once: rows of a stream go through it when they are fetched, and those
    in memory when they are loaded.

    Attributes:
        columns: of a table, the positions of those that are used, in their order.
        scale: divide by 255.
        scaling: standardise.

    >>> out = np.empty((1, 2), np.float32)
    >>> Conversion(columns=(2, 0), scale=True).into(np.array([[0, 7, 255]], np.uint8), out)
    >>> out.tolist()
    [[1.0, 0.0]]
    """

    columns: tuple[int, ...] | None = None
    scale: bool = False
    scaling: Scaling | None = None

    def into(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Fill ``out``, float32 ``(n, *event)``, from stored rows; a grey image becomes as many equal channels as it has."""
        if self.columns is not None:
            rows = rows[:, list(self.columns)]
        if rows.ndim != out.ndim:  # an axis of one channel, which the one has and the other has not
            rows = rows.reshape(out.shape)
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite
            if self.scaling is None and self.scale:
                np.divide(rows, np.float32(255), out=out, dtype=np.float32, casting="unsafe")
            elif self.scaling is None:
                out[...] = rows
            else:
                grey = np.divide(rows, np.float32(255), dtype=np.float32, casting="unsafe") if self.scale else rows
                mean, std = (part.double().numpy() for part in self.scaling)
                out[...] = (grey.astype(np.float64) - mean) / std


AS_STORED = Conversion()
