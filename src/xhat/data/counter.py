"""Random numbers as a function of a counter: the draw for a row is there without the draws for the rows before it.

Everything is whole-number arithmetic modulo 2⁶⁴, so that it is the same on every platform and with every version of torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2⁶⁴ over the golden ratio: its multiples are spread evenly
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MANTISSA = 24  # bits of a float32: a uniform draw has no more


def mixed(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that scatters neighbours: the last step of SplitMix64 (Steele, Lea & Flood 2014).

    >>> [int(value) >> 60 for value in mixed(np.arange(4, dtype=np.uint64))]
    [0, 5, 13, 1]
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return x ^ (x >> np.uint64(31))


def keys(seed: int, numbers: Any) -> np.ndarray:
    """A key, uint64, for each of the whole ``numbers``: what is drawn with one tells nothing of what is drawn with another."""
    start = mixed(np.array([seed & _MASK], np.uint64) + np.uint64(_GOLDEN))
    return mixed(start + (np.atleast_1d(np.asarray(numbers)).astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))


def uniform(seed: int, rows: np.ndarray, width: int) -> np.ndarray:
    """Uniform draws in [0, 1), float32 ``(n, width)``: a pure function of the seed, the row and the column.

    >>> whole = uniform(0, np.arange(5), 3)
    >>> bool((uniform(0, np.array([4, 2]), 3) == whole[[4, 2]]).all())
    True
    """
    counters = keys(seed, rows)[:, None] + np.arange(width, dtype=np.uint64) * np.uint64(_GOLDEN)
    return (mixed(counters) >> np.uint64(64 - _MANTISSA)).astype(np.float32) * np.float32(2.0**-_MANTISSA)
