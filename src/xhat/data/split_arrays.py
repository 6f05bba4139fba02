"""The splits of a source in memory: as they are stored, without NaN, and those that it lacks drawn from its training examples."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from xhat.data.condition_values import Known, refuse_missing, without_value
from xhat.data.missing import OFFER, observed_of
from xhat.data.raw import Raw, as_events
from xhat.data.splits import split
from xhat.data.storage import as_storage, check_size, first_nonfinite
from xhat.errors import DataError

SPLITS = ("train", "valid", "test")


class Part(NamedTuple):
    """The examples of one split: rows as they are stored, labels, and what they are conditioned on."""

    rows: Tensor
    labels: Tensor | None
    known: Known

    def at(self, index: Tensor) -> Part:
        """Those at the positions ``(n,)``."""
        known = {name: values[index.numpy()] for name, values in self.known.items()}
        return Part(self.rows[index], None if self.labels is None else self.labels[index], known)


def storages(name: str, raw: Raw) -> list[Tensor | None]:
    """The arrays of the source as tensors in the layout of networks, all of one event shape."""
    parts: list[Tensor | None] = []
    for which, array in zip(SPLITS, raw.splits, strict=True):
        if array is None:
            parts.append(None)
            continue
        said = name if which == "train" else f"the {which} split of {name}"
        storage = as_storage(as_events(array) if array.ndim else array, said)
        check_size(storage, said)
        if parts and parts[0] is not None and parts[0].shape[1:] != storage.shape[1:]:
            raise DataError(
                f"{said} has examples of shape {tuple(storage.shape[1:])}, the training examples have "
                f"{tuple(parts[0].shape[1:])}, and all splits must have one shape: correct the source"
            )
        parts.append(storage)
    return parts


def finite(name: str, raw: Raw, parts: list[Part | None], nonfinite: str, missing: str, notes: list[str]) -> list[Part | None]:
    """The same without infinity and, unless they are to be masked, without NaN: by refusal or by leaving rows out."""
    kept, dropped = list(parts), 0
    for i, (which, part) in enumerate(zip(SPLITS, parts, strict=True)):
        if part is None:
            continue
        said = name if which == "train" else f"the {which} split of {name}"
        gaps = missing == "mask" and observed_of(part.rows) is not None
        values = part.rows.nan_to_num(0.0, math.inf, -math.inf) if gaps else part.rows
        bad = first_nonfinite(values)
        lacking = any(without_value(column).any() for column in part.known.values())
        if bad is None and not lacking:
            continue
        if nonfinite == "refuse" and bad is not None:
            offer = f", or let NaN stand for what was not observed with {OFFER}" if bool(part.rows[bad].isnan()) else ""
            raise DataError(
                f"{said} holds {float(part.rows[bad]):g} at {_place(bad, raw)}, must be finite: fill it, or leave such rows out "
                f"with nonfinite='drop' (--nonfinite drop){offer}"
            )
        if nonfinite == "refuse":
            refuse_missing(said, part.known, raw.rows, ", or leave such rows out with nonfinite='drop' (--nonfinite drop)")
        good = (values.abs() <= torch.finfo(torch.float32).max).flatten(1).all(1)
        for column in part.known.values():
            good &= torch.from_numpy(~without_value(column))
        if not bool(good.any()):
            raise DataError(f"every example of {name} holds a NaN or infinity, none is left: fill the missing values")
        dropped += int((~good).sum())
        kept[i] = part.at(good.nonzero().flatten())
    if dropped:
        notes.append(f"{dropped} example{'s' * (dropped > 1)} with NaN or infinity left out")
    return kept


def _place(index: tuple[int, ...], raw: Raw) -> str:
    if len(index) == 2 and raw.rows is not None and raw.places is not None:
        return f"row {raw.rows[index[0]]}, {raw.places[index[1]]}"
    if len(index) == 2:
        return f"row {index[0]}, column {index[1]} (counted from 0)"
    return f"index {index} (counted from 0)"


def completed(name: str, parts: list[Part | None], valid: float | int, test: float | int, seed: int) -> list[Part]:
    """Three splits: those of the source as they are, and those that it lacks drawn from its training examples."""
    whole = parts[0]
    if whole is None:
        raise DataError(f"{name} has no training examples: give an array called train")
    shares = [0 if given is not None else share for given, share in zip(parts[1:], (valid, test), strict=True)]
    positions = split(len(whole.rows), shares[0], shares[1], seed, name)
    result: list[Part] = []
    for position, given in zip(positions, [None, *parts[1:]], strict=True):
        # nothing is drawn from a training split that stays whole, so it keeps its order and its memory
        stays = len(position) == len(whole.rows)
        result.append(given if given is not None else whole if stays else whole.at(torch.from_numpy(position)))
    return result
