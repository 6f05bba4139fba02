"""A shuffle that is computed and not kept: position to row, for any number of rows, in no memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from xhat.data.counter import keys, mixed
from xhat.errors import ConfigError, whole_number

LARGEST = 2**62
# Of many bits each, Luby & Rackoff need 4 rounds; of few, it takes more until all orders are equally likely (a test counts them).
_ROUNDS, _ROUNDS_OF_FEW, _FEW = 10, 32, 7
_AT_ONCE = 2**16  # positions that are worked on together, so that what is needed on the way stays small
_POWERS = 2 ** np.arange(63, dtype=np.int64)


class Permutation:
    r"""A bijection of :math:`\{0, \dots, n - 1\}`, drawn by a seed, evaluated wherever it is asked.

    A Feistel network permutes the smallest power of two that holds n; what falls outside is sent through again until it falls
    inside (cycle walking), on average fewer than twice. The same on every platform.

    Args:
        n: from 1 to 2⁶².
        seed: a whole number.

    Raises:
        ConfigError: n is out of this range.

    Source: Luby & Rackoff (1988); cycle walking: Black & Rogaway (2002).

    >>> order = Permutation(10, seed=0)
    >>> sorted(order[:].tolist()) == list(range(10)), len(order)
    (True, 10)
    >>> torch.equal(order(torch.tensor([3, 4])), order[3:5])
    True
    """

    def __init__(self, n: int, seed: int) -> None:
        whole_number("n", n)
        if n > LARGEST:
            raise ConfigError(f"a permutation is of at most 2**62 numbers, n was {n}: take fewer")
        self.n, self.seed = int(n), int(seed)
        self._key = keys(self.seed, 0)

    def __len__(self) -> int:
        return self.n

    def __call__(self, positions: Tensor) -> Tensor:
        """The numbers at these positions, int64 of the same shape.

        Raises:
            ConfigError: a position is not in ``range(n)``.
        """
        flat = positions.reshape(-1).numpy()
        if flat.size and not (flat.min() >= 0 and flat.max() < self.n):
            raise ConfigError(f"positions must be from 0 to {self.n - 1}, were from {flat.min()} to {flat.max()}")
        return torch.from_numpy(permuted(flat, self.n, self._key)).reshape(positions.shape)

    def __getitem__(self, stretch: slice) -> Tensor:
        """The numbers of a stretch of positions, int64."""
        return self(torch.arange(*stretch.indices(self.n), dtype=torch.int64))


def permuted(positions: np.ndarray, sizes: Any, key: np.ndarray) -> np.ndarray:
    """Where each position goes in a permutation of its own size and key, int64 ``(m,)``.

    Args:
        positions: int64 ``(m,)``, each from 0 to below its size.
        sizes: how many numbers each permutation is of, one or ``(m,)``.
        key: uint64 of :func:`~xhat.data.counter.keys`, ``(1,)`` or ``(m,)``.
    """
    n = np.atleast_1d(np.asarray(sizes, dtype=np.int64))
    if len(positions) > _AT_ONCE:
        cuts = [slice(first, first + _AT_ONCE) for first in range(0, len(positions), _AT_ONCE)]
        parts = [permuted(positions[cut], n if len(n) == 1 else n[cut], key if len(key) == 1 else key[cut]) for cut in cuts]
        return np.concatenate(parts)
    result = _network(positions, n, key)
    while True:
        outside = np.flatnonzero(result >= n)
        if not len(outside):
            return result
        walking = result[outside]
        own_n = n if len(n) == 1 else n[outside]
        own_key = key if len(key) == 1 else key[outside]
        result[outside] = _network(walking, own_n, own_key)


def _network(positions: np.ndarray, n: np.ndarray, key: np.ndarray) -> np.ndarray:
    """A permutation of the smallest power of two that is not below n, by rounds that each change one half of the bits."""
    bits = np.searchsorted(_POWERS, n).astype(np.uint64)
    low = bits >> np.uint64(1)
    one = np.uint64(1)
    low_mask, high_mask = (one << low) - one, (one << (bits - low)) - one
    x = positions.astype(np.uint64)
    left, right = x >> low, x & low_mask
    few = bits <= _FEW
    for number in range(_ROUNDS_OF_FEW if few.any() else _ROUNDS):
        if number == _ROUNDS:  # the large ones of the permutations rest
            low_mask, high_mask = low_mask * few, high_mask * few
        round_key = mixed(key + np.uint64(number))
        if number % 2:
            right = right ^ (mixed(left + round_key) & low_mask)
        else:
            left = left ^ (mixed(right + round_key) & high_mask)
    return ((left << low) | right).astype(np.int64)
