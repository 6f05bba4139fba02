"""What examples may be stored as, and what they must be before they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xhat.errors import DataError

STORED = (torch.uint8, torch.float32, torch.float64)
_EXACT_IN_FLOAT32 = 2**24


def as_storage(x: Any, where: str) -> Tensor:
    """``x`` as a uint8, float32 or float64 tensor of the same values, sharing memory where it can."""
    tensor: Tensor = (x if isinstance(x, Tensor) else _from_numpy(x, where)).detach()
    if tensor.is_complex():
        raise DataError(f"{where} holds complex numbers, must hold real ones: stack x.real and x.imag on an event axis")
    if tensor.dtype in STORED:
        return tensor
    if tensor.dtype == torch.bool:
        return tensor.to(torch.uint8)
    if tensor.is_floating_point():
        return tensor.to(torch.float32)
    # float32 is exact up to 2**24; beyond it (time stamps) float64 keeps the digits until the data are standardised
    large = tensor.numel() > 0 and int(tensor.abs().max()) > _EXACT_IN_FLOAT32
    return tensor.to(torch.float64 if large else torch.float32)


def _from_numpy(x: Any, where: str) -> Tensor:
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise DataError(f"{where} is no rectangular array of numbers ({error}): make all rows equally long") from error
    if array.dtype.kind not in "biufc":
        raise DataError(f"{where} has dtype {array.dtype}, must hold numbers: convert it with numpy.asarray(x, dtype=float)")
    if array.dtype.kind == "c":
        array = array.astype(np.complex128)
    elif array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        array = array.astype(np.float64 if array.dtype.itemsize > 8 else np.float32)
    elif array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.float64 if array.dtype.itemsize == 8 else np.int64)  # torch's own unsigned lack max
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    # torch cannot share memory that is read-only or runs backwards
    shareable = native.flags.writeable and all(stride >= 0 for stride in native.strides)
    return torch.from_numpy(native if shareable else native.copy())


def check_size(storage: Tensor, where: str) -> None:
    """Refuse what has no examples, or no event axis."""
    shape = tuple(storage.shape)
    if len(shape) < 2:
        raise too_flat(where, shape)
    if storage.numel() == 0:
        raise DataError(f"{where} holds no examples, its shape is {shape}: give at least one example with one value")


def too_flat(where: str, shape: tuple[int, ...]) -> DataError:
    """The error for an array that has no axis of examples and one of events."""
    if not shape:
        return DataError(f"{where} is a single number, must have shape (N, *event): give an array of examples")
    if shape == (0,):
        return DataError(f"{where} holds no examples: give an array of shape (N, *event)")
    return DataError(
        f"{where} has 1 axis of length {shape[0]}, must have shape (N, *event): "
        "reshape to (N, 1) with x.reshape(-1, 1), or to (1, D) if it is one example"
    )


def check_finite(storage: Tensor, where: str, rows: Any = None, places: Sequence[str] | None = None, offer: str = "") -> None:
    """Refuse NaN and infinity, and what float32 cannot hold.

    Args:
        storage: ``(N, *event)``.
        where: what messages call it.
        rows: for messages, the rows of a table in its file.
        places: for messages, what its columns are called.
        offer: what else may be done about NaN.

    Raises:
        DataError: names the first bad entry.
    """
    position = first_nonfinite(storage)
    if position is None:
        return
    value = float(storage[position])
    index = ", ".join(map(str, position))
    offer = offer if np.isnan(value) else ""
    place = f"row {position[0]}, column {position[1]}" if len(position) == 2 else f"index ({index})"
    wrong = f"{value:g}" if not np.isfinite(value) else f"{value:g}, too large for float32,"
    if rows is not None and places is not None:
        place, remedy = f"row {rows[position[0]]}, {places[position[1]]}", "fill it"
    else:
        place, remedy = f"{place} (x[{index}], counted from 0)", "remove or fill that row"
    raise DataError(f"{where} holds {wrong} at {place}, must be finite: {remedy}{offer}")


def first_nonfinite(storage: Tensor) -> tuple[int, ...] | None:
    """Where the first entry stands that is not finite as float32, or None."""
    if storage.dtype == torch.uint8 or storage.numel() == 0:
        return None
    limit = torch.finfo(torch.float32).max
    low, high = torch.aminmax(storage)  # NaN propagates: one pass, no copy, for the usual case that all is well
    if low >= -limit and high <= limit:
        return None
    bad = ~(storage.abs() <= limit)
    return tuple(int(axis) for axis in np.unravel_index(int(bad.flatten().to(torch.uint8).argmax()), storage.shape))
