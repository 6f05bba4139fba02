"""The order of an epoch over a stream: shuffled, and computed where it is asked."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from xhat.data.counter import keys
from xhat.data.permutation import permuted

# Rows that are mixed with each other, and read together: some dozens of blocks of 1 MiB or of 8,192 rows.
WINDOW, WINDOW_ROWS = 2**25, 2**18
_KEPT = 4  # windows whose order is remembered, as a batch at a time is asked of it; and
_LARGEST_KEPT = 2**21  # rows of the largest one that is


class Order(ABC):
    """Abstract: in which order n examples are gone through. ``order[start:stop]`` are the indices of that stretch, int64."""

    @abstractmethod
    def __len__(self) -> int:
        """How many examples there are."""

    @abstractmethod
    def __getitem__(self, stretch: slice) -> Tensor:
        """The indices of the examples from ``start`` up to ``stop``, int64."""


@final
class InOrder(Order):
    """One after the other.

    >>> InOrder(5)[1:3]
    tensor([1, 2])
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, stretch: slice) -> Tensor:
        return torch.arange(*stretch.indices(self._count), dtype=torch.int64)


class Seen(NamedTuple):
    """Where a stretch of the order lies: in which windows, and at which offset within its window each example."""

    windows: np.ndarray
    offsets: np.ndarray


@final
class Windows(Order):
    """Pieces of rows that lie together, in random order; and windows of several such pieces, each shuffled as a whole.

    So every example comes once, neighbours in the file seldom follow each other, and what is read together lies together. With
    one piece the order is a random one of all examples. Memory does not grow with their number.

    Args:
        starts: the positions at which the pieces begin, int64 ``(J + 1,)``, the last one the number of examples.
        seed: of all that is random.
        pieces: how many pieces a window has.

    >>> order = Windows(np.array([0, 4, 8, 10]), seed=0, pieces=2)
    >>> sorted(order[:].tolist()) == list(range(10)), torch.equal(order[3:7], order[:][3:7])
    (True, True)
    """

    def __init__(self, starts: np.ndarray, seed: int, pieces: int) -> None:
        count = len(starts) - 1
        self._starts, self._seed, self._pieces = starts, seed, pieces
        self._piece = permuted(np.arange(count), count, keys(seed, 0))
        # Where each piece, and where each window begins in the epoch
        self._begins = np.concatenate([[0], np.cumsum(np.diff(starts)[self._piece])])
        self._firsts = np.append(self._begins[:-1:pieces], self._begins[-1])
        self._shuffled: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, stretch: slice) -> Tensor:
        start, stop, step = stretch.indices(len(self))
        seen = self.seen(np.arange(start, stop, step))
        places = self._firsts[seen.windows] + seen.offsets
        rank = np.searchsorted(self._begins, places, "right") - 1
        return torch.from_numpy(self._starts[self._piece[rank]] + places - self._begins[rank])

    @property
    def windows(self) -> int:
        """How many windows there are."""
        return len(self._firsts) - 1

    def seen(self, places: np.ndarray) -> Seen:
        """The windows and the offsets of these places in the epoch, each ``(m,)``."""
        windows = np.searchsorted(self._firsts, places, "right") - 1
        offsets = np.empty_like(places)
        for window in np.unique(windows).tolist():
            inside = windows == window
            offsets[inside] = self._offsets(window, places[inside] - self._firsts[window])
        return Seen(windows, offsets)

    def _offsets(self, window: int, inner: np.ndarray) -> np.ndarray:
        size, key = int(self._firsts[window + 1] - self._firsts[window]), keys(self._seed, window + 1)
        if size > _LARGEST_KEPT:
            return permuted(inner, size, key)
        with self._lock:
            if window not in self._shuffled:
                self._shuffled[window] = permuted(np.arange(size), size, key)
                while len(self._shuffled) > _KEPT:
                    self._shuffled.popitem(last=False)
            return self._shuffled[window][inner]

    def spanned(self, start: int, stop: int) -> tuple[int, int]:
        """The first and the last window that a stretch of the epoch lies in."""
        first, last = np.searchsorted(self._firsts, [start, stop - 1], "right") - 1
        return int(first), int(last)

    def content(self, window: int) -> np.ndarray:
        """The positions of the examples of a window, piece by piece: what the offsets are counted in."""
        ranks = range(window * self._pieces, min((window + 1) * self._pieces, len(self._piece)))
        pieces = [int(self._piece[rank]) for rank in ranks]
        return np.concatenate([np.arange(self._starts[piece], self._starts[piece + 1]) for piece in pieces])
