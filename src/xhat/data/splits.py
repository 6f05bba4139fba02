"""Splits and labels: who is in train, valid and test, and which class each one belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from xhat.errors import ConfigError, DataError

_FEWEST_TO_TRAIN = 2  # one example has no spread, so nothing can be learnt from it
_PURPOSES = {"split": 0, "train": 1, "valid": 2, "test": 3}


class Split(NamedTuple):
    """Positions of the examples of each split, in the order in which they were drawn."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def seed_for(seed: int, purpose: str) -> int:
    """A seed of its own for each use of randomness, so that the draws of one use do not follow those of another."""
    return (seed * 1_000_003 + _PURPOSES[purpose]) % 2**63


def split(count: int, valid: float | int, test: float | int, seed: int, name: str) -> Split:
    """A random split of ``count`` examples; a pure function of its arguments.

    Args:
        count: how many examples there are.
        valid: share in (0, 1) or number of validation examples; 0 where the source brings them.
        test: likewise for testing.
        seed: of the permutation.
        name: of the source, for messages.

    Raises:
        DataError: fewer than two examples are left to train on.

    >>> [len(part) for part in split(10, 0.1, 3, seed=0, name="x")]
    [6, 1, 3]
    """
    sizes = part_sizes(count, valid, test, name)[1:]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_for(seed, "split"))).numpy()
    return Split(order[sum(sizes) :], order[sizes[1] : sum(sizes)], order[: sizes[1]])


def part_sizes(count: int, valid: float | int, test: float | int, name: str) -> tuple[int, int, int]:
    """How many of ``count`` examples are for training, for validation and for testing.

    Raises:
        DataError: fewer than two are left to train on.
    """
    sizes = [_size(share, count) for share in (valid, test)]
    rest = count - sum(sizes)
    if rest < _FEWEST_TO_TRAIN:
        others = f" besides {sizes[0]} for validation and {sizes[1]} for testing" if sum(sizes) else ""
        raise DataError(
            f"{name} needs at least {_FEWEST_TO_TRAIN} training examples{others}, has {count} in all: "
            "give more examples, or ask for smaller valid and test"
        )
    return rest, sizes[0], sizes[1]


def _size(share: float | int, count: int) -> int:
    if isinstance(share, int):
        return share
    return max(1, round(share * count))


def check_share(name: str, share: float | int) -> None:
    """Refuse a share that is neither a fraction nor a number of examples.

    Raises:
        ConfigError: a fraction outside (0, 1), or a number below 1.
    """
    fits = share >= 1 if isinstance(share, int) and not isinstance(share, bool) else 0 < share < 1
    if isinstance(share, bool) or not fits:
        raise ConfigError(
            f"{name} must be a fraction between 0 and 1 or a whole number of examples from 1, not {share!r}: "
            f"{name}=0.1 takes a tenth"
        )


def label_codes(
    labels: Sequence[np.ndarray | None], sizes: Sequence[int]
) -> tuple[list[torch.Tensor | None], tuple[str, ...] | None]:
    """The labels of all splits as int64, and the class names if they were text (codes then follow their order).

    Raises:
        DataError: not one label for each example, or labels that are neither text nor whole numbers.

    >>> codes, names = label_codes([np.array(["cat", "ant", "cat"])], [3])
    >>> codes[0].tolist(), names
    ([1, 0, 1], ('ant', 'cat'))
    """
    flat = [None if part is None else _flat(part, size) for part, size in zip(labels, sizes, strict=True)]
    given = [part for part in flat if part is not None]
    if not given:
        return [None] * len(flat), None
    joined = np.concatenate(given)
    codes, names = _whole(joined), None
    if codes is None:
        if joined.dtype.kind != "U":
            raise DataError("labels must be whole numbers or text, these are real numbers: leave labels out")
        texts, codes = np.unique(joined, return_inverse=True)
        names = tuple(str(text) for text in texts)
    pieces = iter(np.split(codes, np.cumsum([len(part) for part in given])[:-1]))
    return [None if part is None else torch.from_numpy(next(pieces).astype(np.int64)) for part in flat], names


def _flat(labels: np.ndarray, size: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.size != size or labels.shape[:1] != (size,):
        raise DataError(
            f"labels must be one for each of the {size} examples, their shape is {labels.shape}: give labels of shape ({size},)"
        )
    if labels.dtype.kind not in "biufU":
        raise DataError(f"labels must be whole numbers or text, their dtype is {labels.dtype}: convert them")
    return labels.reshape(size)


def _whole(labels: np.ndarray) -> np.ndarray | None:
    """The labels as whole numbers, or None where they are something else."""
    if labels.dtype.kind == "U":
        try:
            labels = labels.astype(np.float64)
        except ValueError:
            return None
    if labels.dtype.kind != "f":
        return labels
    exact = np.isfinite(labels) & (np.abs(labels) < 2**53) & (labels == np.round(labels))
    return labels if bool(exact.all()) else None
