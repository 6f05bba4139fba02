"""Missing values: NaN in the user's data becomes a mask, and the rows become complete."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xhat.data.scaling import column_list
from xhat.errors import DataError

OFFER = "missing='mask' (--missing mask)"  # what messages say of it


def observed_of(rows: Tensor) -> Tensor | None:
    """Which values of rows ``(N, *event)`` are there; None where all are."""
    if not rows.is_floating_point() or not bool(rows.isnan().any()):
        return None
    return ~rows.isnan()


def filled(rows: Tensor, observed: Tensor | None, fill: Tensor) -> Tensor:
    """The rows with a number in place of what is missing: of each column or channel the one in ``fill``, ``(C,)``.

    >>> rows = torch.tensor([[1.0, float("nan")]])
    >>> filled(rows, observed_of(rows), torch.tensor([7.0, 8.0]))
    tensor([[1., 8.]])
    """
    if observed is None:
        return rows
    return torch.where(observed, rows, fill.to(rows.dtype).reshape(-1, *(1,) * (rows.dim() - 2)))


def fill_of(rows: Tensor, observed: Tensor | None, names: Sequence[str] | None, drop_constant: bool) -> Tensor:
    """Of each column, or channel, its first value that is there: what it stands for changes neither range nor kind.

    Args:
        rows: the training examples.
        observed: which of their values are there.
        names: of the columns, for messages.
        drop_constant: let a column without any value pass, as one that is constant.

    Raises:
        DataError: a column without any value.
    """
    if observed is None:
        return rows.flatten(2)[0, :, 0] if rows.dim() > 2 else rows[0]
    by_column = rows.transpose(0, 1).flatten(1)
    seen = observed.transpose(0, 1).flatten(1)
    empty = (~seen.any(1)).nonzero().flatten().tolist()
    if empty and not (drop_constant and rows.dim() == 2):
        raise DataError(
            f"{column_list(empty, names)} no value in any of the {len(rows)} training examples and must have one: leave it out, "
            "or fill it"
        )
    first = by_column.gather(1, seen.to(torch.uint8).argmax(1, keepdim=True))[:, 0]
    return first.nan_to_num(0.0)


def without_gaps(
    parts: list[Tensor], names: tuple[str, ...] | None, drop_constant: bool, notes: list[str]
) -> tuple[list[Tensor], list[Tensor | None]]:
    """The rows of each split with something in place of what is missing, and which values are there."""
    observed = [observed_of(rows) for rows in parts]
    if all(mask is None for mask in observed):
        return parts, observed
    fill = fill_of(parts[0], observed[0], names, drop_constant)
    lost = sum(int((~mask).sum()) for mask in observed if mask is not None)
    notes.append(f"{lost / sum(rows.numel() for rows in parts):.1%} of the values are missing and count as not observed")
    return [filled(rows, mask, fill) for rows, mask in zip(parts, observed, strict=True)], observed
