"""The splits of a source in memory: as they are stored, without NaN, and those that it lacks drawn from its training examples."""

from __future__ import annotations

import torch
from torch import Tensor

from xhat.data.raw import Raw, as_events
from xhat.data.splits import split
from xhat.data.storage import as_storage, check_size, first_nonfinite
from xhat.errors import DataError

SPLITS = ("train", "valid", "test")


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


def finite(
    name: str,
    raw: Raw,
    parts: list[Tensor | None],
    codes: list[Tensor | None],
    nonfinite: str,
    notes: list[str],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The same without NaN and infinity, by refusal or by leaving rows out."""
    kept, dropped = list(parts), 0
    labels = list(codes)
    for i, (which, part) in enumerate(zip(SPLITS, parts, strict=True)):
        bad = None if part is None else first_nonfinite(part)
        if part is None or bad is None:
            continue
        if nonfinite == "refuse":
            raise DataError(
                f"{name if which == 'train' else f'the {which} split of {name}'} holds {float(part[bad]):g} "
                f"at {_place(bad, raw)}, must be finite: fill it, or leave such rows out with nonfinite='drop' "
                "(--nonfinite drop)"
            )
        good = (part.abs() <= torch.finfo(torch.float32).max).flatten(1).all(1)
        if not bool(good.any()):
            raise DataError(f"every example of {name} holds a NaN or infinity, none is left: fill the missing values")
        dropped += int((~good).sum())
        code = codes[i]
        kept[i], labels[i] = part[good], None if code is None else code[good]
    if dropped:
        notes.append(f"{dropped} example{'s' * (dropped > 1)} with NaN or infinity left out")
    return kept, labels


def _place(index: tuple[int, ...], raw: Raw) -> str:
    if len(index) == 2 and raw.rows is not None and raw.places is not None:
        return f"row {raw.rows[index[0]]}, {raw.places[index[1]]}"
    if len(index) == 2:
        return f"row {index[0]}, column {index[1]} (counted from 0)"
    return f"index {index} (counted from 0)"


def completed(
    name: str,
    parts: list[Tensor | None],
    codes: list[Tensor | None],
    valid: float | int,
    test: float | int,
    seed: int,
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Three splits: those of the source as they are, and those that it lacks drawn from its training examples."""
    whole, labels = parts[0], codes[0]
    if whole is None:
        raise DataError(f"{name} has no training examples: give an array called train")
    shares = [0 if given is not None else share for given, share in zip(parts[1:], (valid, test), strict=True)]
    positions = split(len(whole), shares[0], shares[1], seed, name)
    result: list[Tensor] = []
    result_labels: list[Tensor | None] = []
    for position, given, code in zip(positions, [None, *parts[1:]], codes, strict=True):
        if given is not None:
            result.append(given)
            result_labels.append(code)
            continue
        # nothing is drawn from a training split that stays whole, so it keeps its order and its memory
        index = torch.from_numpy(position) if len(position) < len(whole) else slice(None)
        result.append(whole[index])
        result_labels.append(None if labels is None else labels[index])
    return result, result_labels
