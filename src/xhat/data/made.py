"""Examples made of stored rows as a preparation says, whether the rows are in memory or on disk."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from xhat.data.conversion import Conversion
from xhat.data.counter import uniform
from xhat.data.examples import Examples, check_unit_range, drawn
from xhat.data.splits import seed_for
from xhat.data.streams.streamed import Streamed

if TYPE_CHECKING:
    from xhat.data.preparation import Preparation

_CHUNK = 4096  # examples that are worked on together


def in_memory(
    preparation: Preparation,
    conversion: Conversion,
    rows: Tensor,
    labels: Tensor | None,
    split: str | None = None,
    *,
    observed: Tensor | None = None,
    condition: Tensor | None = None,
) -> Examples:
    """Examples of rows that are in memory. Bytes stay bytes, and floats the caller's own, unless they are standardised.

    Args:
        preparation: how they are binarised.
        conversion: what is done to the rows.
        rows: ``(N, *event)``, of the columns that the source has.
        labels: ``(N,)``, or None.
        split: which one it is of the training data, which says by what draws it is binarised; None for other data, of which each
            example is drawn as a function of the seed and of its place.
        observed: which of the values are there, of the shape of ``rows``; None: all.
        condition: ``(N, C)``, what the examples are conditioned on, or None.

    Raises:
        DataError: values that cannot be binarised.
    """
    mask = None if observed is None else _converted(Conversion(conversion.columns), observed, preparation.shape)[0]
    return _complete(preparation, conversion, rows, labels, split).with_beside(mask, condition)


def _complete(
    preparation: Preparation, conversion: Conversion, rows: Tensor, labels: Tensor | None, split: str | None
) -> Examples:
    """Examples of rows that have all their values."""
    storage, scale = _converted(conversion, rows, preparation.shape)
    examples = Examples(storage, labels, scale=scale, preparation=preparation)
    how = preparation.binarize
    if how is None:
        return examples
    check_unit_range(examples)
    if how == "threshold":
        above = examples.storage > (127 if examples.scale else 0.5)
        return Examples(above.to(torch.uint8), labels, preparation=preparation)
    if how == "dynamic" and split == "train":
        return Examples(examples.storage, labels, scale=examples.scale, binarize="dynamic", preparation=preparation)
    return _drawn_by_place(examples, preparation.seed) if split is None else drawn(examples, seed_for(preparation.seed, split))


def _converted(conversion: Conversion, rows: Tensor, shape: tuple[int, ...] | None) -> tuple[Tensor, bool]:
    """What is stored, and whether it is divided by 255 when it is fetched."""
    if conversion.scaling is None and (not conversion.scale or rows.dtype == torch.uint8):
        if conversion.columns is not None:
            rows = rows[:, list(conversion.columns)]
        if shape is not None and tuple(rows.shape[1:]) != shape:
            rows = rows.expand(-1, *shape) if rows.dim() == len(shape) + 1 else rows.reshape(-1, *shape)
        return rows, conversion.scale
    width = rows.shape[1:] if conversion.columns is None else (len(conversion.columns),)
    result = torch.empty(len(rows), *(width if shape is None else shape))
    for chunk, out in zip(rows.split(_CHUNK), result.split(_CHUNK), strict=True):
        conversion.into(chunk.numpy(), out.numpy())
    return result, False


def _drawn_by_place(examples: Examples, seed: int) -> Examples:
    """One draw of every value, as a stream's are drawn: of each example by itself."""
    result = torch.empty(examples.storage.shape, dtype=torch.uint8)
    for first in range(0, len(examples), _CHUNK):
        grey = examples[first : first + _CHUNK].flatten(1).numpy()
        ones = uniform(seed, np.arange(first, first + len(grey)), grey.shape[1]) < grey
        result[first : first + _CHUNK] = torch.from_numpy(ones).reshape(-1, *examples.shape)
    return Examples(result, examples.labels, preparation=examples.preparation)


def on_disk(
    preparation: Preparation,
    conversion: Conversion,
    part: Streamed,
    labels: Tensor | None,
    split: str | None = None,
    *,
    condition: Tensor | None = None,
) -> Examples:
    """The same of rows on disk, to which it is all done when they are fetched.

    Args:
        preparation: how they are binarised.
        conversion: what is done to the rows.
        part: where they are.
        labels: ``(N,)``, or None.
        split: as for :func:`in_memory`.
        condition: likewise.
    """
    how = preparation.binarize
    shape = part.shape if preparation.shape is None else preparation.shape
    part = dataclasses.replace(part, shape=shape, conversion=conversion, unit=how is not None)
    if how == "dynamic" and split == "train":
        return Examples(part, labels, binarize="dynamic", preparation=preparation, condition=condition)
    if how == "threshold":
        part = dataclasses.replace(part, threshold=True)
    elif how is not None:
        part = dataclasses.replace(part, seed=preparation.seed if split is None else seed_for(preparation.seed, split))
    return Examples(part, labels, preparation=preparation, condition=condition)
