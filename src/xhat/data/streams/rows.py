"""Which rows of a stream a set of examples consists of: arithmetic instead of lists."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, final

import numpy as np

from xhat.data.counter import keys
from xhat.data.permutation import permuted


class Rows(ABC):
    """Abstract: the rows of n examples, by their positions 0 to n - 1.

    ``starts`` are the positions at which pieces begin whose rows lie close together, int64 ``(J + 1,)``, the last one n.
    """

    starts: np.ndarray

    def __len__(self) -> int:
        return int(self.starts[-1])

    @abstractmethod
    def at(self, positions: np.ndarray) -> np.ndarray:
        """The rows at these positions, int64 ``(m,)``."""


@final
class AllRows(Rows):
    """Every row, in the stream's order."""

    def __init__(self, bounds: np.ndarray) -> None:
        self.starts = bounds

    def at(self, positions: np.ndarray) -> np.ndarray:
        return positions


@final
class Share(Rows):
    """Of each piece of a stream some rows, drawn by a seed: a random split that keeps neighbours together.

    Args:
        bounds: the rows at which the stream's pieces begin, ``(J + 1,)``.
        skipped: how many rows of each piece, in its random order, belong to others before, ``(J,)``.
        taken: how many rows of each piece follow them and belong here, ``(J,)``.
        seed: of the random orders; parts of one split share it.
    """

    def __init__(self, bounds: np.ndarray, skipped: np.ndarray, taken: np.ndarray, seed: int) -> None:
        self.bounds, self.skipped, self.seed = bounds, skipped, seed
        self.starts = np.concatenate([[0], np.cumsum(taken)]).astype(np.int64)

    def at(self, positions: np.ndarray) -> np.ndarray:
        piece = np.searchsorted(self.starts, positions, "right") - 1
        rank = self.skipped[piece] + positions - self.starts[piece]
        first = self.bounds[piece]
        return first + permuted(rank, self.bounds[piece + 1] - first, keys(self.seed, piece))


class Parts(NamedTuple):
    """The three parts of a random split."""

    train: Rows
    valid: Rows
    test: Rows


def parted(bounds: np.ndarray, valid: int, test: int, seed: int) -> Parts:
    """A random split of all rows in which each piece of the stream is represented by its share.

    The pieces are part of what the seed means: with other pieces the split is another.

    Args:
        bounds: the rows at which the stream's pieces begin, ``(J + 1,)``.
        valid: how many rows are for validation.
        test: how many are for testing; the rest is for training.
        seed: of the draw.

    >>> parts = parted(np.array([0, 6, 10]), valid=1, test=4, seed=0)
    >>> [len(part) for part in parts], np.diff(parts.test.starts).tolist()
    ([5, 1, 4], [2, 2])
    >>> sorted(row for part in parts for row in part.at(np.arange(len(part))).tolist()) == list(range(10))
    True
    """
    count = int(bounds[-1])
    # In Python's whole numbers, which do not overflow. Both counts rise by at most the rows that there are to take from.
    tested = [row * test // count for row in bounds.tolist()]
    left = [row - taken for row, taken in zip(bounds.tolist(), tested, strict=True)]
    validated = [rest * valid // (count - test) if valid else 0 for rest in left]
    tests, valids, sizes = (np.diff(np.array(each, dtype=np.int64)) for each in (tested, validated, bounds))
    return Parts(
        Share(bounds, tests + valids, sizes - tests - valids, seed),
        Share(bounds, tests, valids, seed),
        Share(bounds, np.zeros_like(tests), tests, seed),
    )


@final
class Stretch(Rows):
    """The positions ``start`` to ``stop`` of other rows."""

    def __init__(self, parent: Rows, start: int, stop: int) -> None:
        self.parent, self.start = parent, start
        self.starts = np.unique(np.clip(parent.starts, start, stop)) - start

    def at(self, positions: np.ndarray) -> np.ndarray:
        return self.parent.at(positions + self.start)


@final
class Listed(Rows):
    """Rows that were named one by one."""

    def __init__(self, parent: Rows, positions: np.ndarray) -> None:
        self._rows = parent.at(positions)
        self.starts = np.array([0, len(positions)])

    def at(self, positions: np.ndarray) -> np.ndarray:
        return self._rows[positions]
