"""Loading what stays on disk: the split, and what is learnt of the values from a part of them."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from xhat.data.splits import label_codes, part_sizes, seed_for
from xhat.data.streams.opened import Opened
from xhat.data.streams.rows import AllRows, Rows, parted
from xhat.data.streams.streamed import Streamed
from xhat.errors import DataError

SPLITS = ("train", "valid", "test")
# Bytes of training examples from which kind and scaling are learnt: enough for means and rare levels, and quickly read.
SAMPLE = 2**25
_CHUNK = 4096  # examples that are looked at together
_FROM_START = 0.25  # of the sample; the rest is drawn from everywhere


class Spread(NamedTuple):
    """The examples of each split on disk, as they are stored, and their labels."""

    parts: list[Streamed]
    codes: list[Tensor | None]
    label_names: tuple[str, ...] | None


def spread(opened: Opened, valid: float | int, test: float | int, seed: int) -> Spread:
    """Three splits: those of the source as they are, and those that it lacks drawn from its training examples.

    Raises:
        DataError: splits of several shapes, or too few examples to train on.
    """
    train = opened.train
    shares = [0 if given is not None else share for given, share in zip(opened.splits[1:], (valid, test), strict=True)]
    _, valids, tests = part_sizes(len(train), shares[0], shares[1], opened.name)
    drawn = parted(train.bounds, valids, tests, seed_for(seed, "split")) if valids or tests else None
    parts: list[Streamed] = []
    for which, given, rows in zip(SPLITS, opened.splits, drawn or (AllRows(train.bounds), None, None), strict=True):
        stream = train if given is None else given
        own: Rows = rows if rows is not None and (given is None or which == "train") else AllRows(stream.bounds)
        if stream.shape != train.shape:
            raise DataError(
                f"the {which} split of {opened.name} has examples of shape {stream.shape}, the training examples have "
                f"{train.shape}, and all splits must have one shape: correct the source"
            )
        parts.append(Streamed(stream, own, stream.shape))
    lengths = [0 if stream is None else len(stream) for stream in opened.splits]
    codes, names = label_codes(opened.labels, lengths)
    kept: list[Tensor | None] = []
    for part, code in zip(parts, codes, strict=True):
        whole = codes[0] if part.stream is train else code
        kept.append(None if whole is None else whole[torch.from_numpy(part.rows.at(np.arange(len(part))))])
    return Spread(parts, kept, names)


def sampled(part: Streamed, seed: int) -> tuple[Tensor, bool]:
    """Stored rows to learn from, ``(n, *stored)``, and whether they are all that there are.

    Rows of the first pieces, and others from everywhere, drawn by the seed.

    Raises:
        DataError: one of them is not finite.
    """
    size = max(2, SAMPLE // part.stream.row_bytes)
    if len(part) <= size:
        positions = np.arange(len(part))
    else:
        first = int(size * _FROM_START)
        drawn = part.order(seed)[: size - first].numpy()
        positions = np.unique(np.concatenate([np.arange(first), drawn]))
    raw = part.raw(positions)
    for first in range(0, len(raw), _CHUNK):
        some = slice(first, first + _CHUNK)
        part.prepared(raw[some], partial(positions.__getitem__, some))  # refuses what is not finite
    return torch.from_numpy(raw), len(positions) == len(part)
