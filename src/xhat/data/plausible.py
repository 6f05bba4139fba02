"""Whether new values are in the units that the training data were in. To mistake bytes for levels in [0, 1] would be silent."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xhat.data.columns import ranges
from xhat.errors import DataError, DataWarning

if TYPE_CHECKING:
    from xhat.data.preparation import Preparation

_NO_LEVELS = 2.0  # up to here a value may be a level in [0, 1] that a resized picture overshot
_REMEDY = "or a float torch tensor, which is taken in the model's own units"


def scale_of(preparation: Preparation, rows: Tensor, where: str) -> bool:
    """Whether stored rows ``(N, *event)``, of the columns that are used, are to be divided by 255.

    Bytes are, where the training data were bytes or levels in [0, 1]; so are numbers of another type that go from 0 to 255, where
    the training data were bytes.

    Raises:
        DataError: the values cannot be in the units of the training data.
    """
    stored_as_bytes = rows.dtype == torch.uint8
    low, high = (float(bound) for bound in torch.aminmax(rows))
    pictures = rows.dim() > 2
    if preparation.bytes is None:
        return stored_as_bytes and (are_bytes([rows]) if preparation.layout != "plain" else high > 1)
    if preparation.bytes:
        return stored_as_bytes or _as_bytes(low, high, where)
    if preparation.unit and stored_as_bytes:
        named = preparation.names is not None
        return not named and (high > 1 or not preparation.whole)
    if preparation.unit and pictures and high > _NO_LEVELS:
        raise DataError(
            f"{where} goes up to {high:g}, must lie in [0, 1] as what the model was trained on: divide it by its greatest level "
            f"(255 for bytes), give bytes (uint8), {_REMEDY}"
        )
    if pictures and preparation.whole and not preparation.unit and 0 < high <= 1 and not all(ranges(rows)[2]):
        raise DataError(
            f"{where} holds levels in [0, 1], must hold whole numbers as what the model was trained on, which went up to "
            f"{max(column.high or 0 for column in preparation.columns):g}: multiply it, or give {_REMEDY.removeprefix('or ')}"
        )
    return False


def _as_bytes(low: float, high: float, where: str) -> bool:
    if low < 0 or high > 255:
        raise DataError(
            f"{where} goes from {low:g} to {high:g}, must go from 0 to 255 as the bytes that the model was trained on: rescale "
            f"it, {_REMEDY}"
        )
    if 0 < high <= 1:
        raise DataError(
            f"{where} goes up to {high:g}, must go from 0 to 255 as the bytes that the model was trained on: multiply it by 255, "
            f"give bytes (uint8), {_REMEDY}"
        )
    return True


def are_bytes(parts: list[Tensor]) -> bool:
    """Whether the values are grey levels in bytes. All splits are asked: a dark test split is still an image.

    A table whose bytes stay below 255 is a table of small whole numbers, and is left as it is.
    """
    if parts[0].dtype != torch.uint8:
        return False
    highest = max(int(part.max()) for part in parts)
    return highest > 1 and (parts[0].dim() > 2 or highest == 255)


def warn_beyond(preparation: Preparation, rows: Tensor, where: str) -> None:
    """Warn of stored rows ``(N, *event)`` that lie beyond the training range by more than that range is wide.

    Whole numbers may be off by 1 in any case.

    It names the first column concerned, or the first channel, and the value that lies farthest off.

    Warns:
        DataWarning: once for each call.
    """
    columns = preparation.columns
    if len(columns) != rows.shape[1] or any(column.low is None or column.high is None for column in columns):
        return
    low, high = (torch.tensor([getattr(column, end) for column in columns], dtype=torch.float64) for end in ("low", "high"))
    least, most, _ = ranges(rows)
    room = (high - low).clamp(min=torch.tensor([float(column.whole) for column in columns], dtype=torch.float64))
    below = low - room - torch.tensor(least, dtype=torch.float64)
    above = torch.tensor(most, dtype=torch.float64) - high - room
    beyond = torch.nonzero(torch.maximum(below, above) > 0).flatten().tolist()
    if not beyond:
        return
    first = beyond[0]
    value = least[first] if below[first] > above[first] else most[first]
    kind = "channel" if rows.dim() > 2 else "column"
    name = repr(columns[first].name) if columns[first].name is not None else str(first)
    others = len(beyond) - 1
    more = f", and so it is with {others} other {kind}{'s' * (others > 1)}" if others else ""
    warnings.warn(
        f"{where}: {kind} {name} holds {value:g}, far outside the {columns[first].low:g} to {columns[first].high:g} of the "
        f"training data{more}: are the units the same?",
        DataWarning,
        stacklevel=2,
    )
