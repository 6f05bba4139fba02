"""From x back to the user's data: their units, types and order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from xhat.errors import DataError

if TYPE_CHECKING:
    from xhat.data.preparation import Preparation


def invert(preparation: Preparation, x: Tensor | np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
    """See :meth:`~xhat.data.preparation.Preparation.invert`."""
    values = torch.as_tensor(x).detach().cpu().double()
    shape = preparation.shape
    if shape is not None and tuple(values.shape[1:]) != shape:
        raise DataError(f"x must have shape (N, {', '.join(map(str, shape))}) to be turned back, was {tuple(values.shape)}")
    if preparation.scaling is not None:
        values = preparation.scaling.invert(values)
    array = (values * 255 if preparation.bytes else values).numpy()
    if preparation.names is not None:
        columns = zip(preparation.columns, array.T, strict=True)
        return {str(column.name): _typed(part, "int64" if column.whole else "float64") for column, part in columns}
    if preparation.layout == "grey":
        array = array[:, 0]
    elif preparation.layout == "channels-last":
        array = np.moveaxis(array, 1, -1)
    return _typed(array, "uint8" if preparation.bytes else preparation.dtype)


def _typed(values: np.ndarray, dtype: str) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return values > 0.5
    if kind.kind not in "iu":
        return np.ascontiguousarray(values, dtype=kind)
    limits = np.iinfo(kind)
    # float64 does not hold the greatest of 64 bits: one step below, or it would overflow
    top = np.nextafter(float(limits.max), 0) if kind.itemsize == 8 else limits.max
    return np.clip(np.round(values), limits.min, top).astype(kind)
