"""NumPy's files: one array (.npy), or several with names (.npz)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xhat.data.raw import Raw, reading, refuse_empty
from xhat.errors import DataError

SPLITS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
_DATA = ("x", "data", "images", "arr_0")
_LABELS = ("y", "labels", "label", "targets", "target")


def read_npy(path: Path) -> Raw:
    """One array; pickled objects are refused.

    Raises:
        DataError: the file is damaged, or holds objects.
    """
    refuse_empty(path)
    with reading(path, ".npy file"), path.open("rb") as file:
        # lib.format, not np.load: that would also open a zip, whatever the file is called
        return Raw(np.lib.format.read_array(file, allow_pickle=False))


def read_npz(path: Path, array: str | None = None, labels: str | None = None) -> Raw:
    """Several named arrays: ``train``/``valid``/``test`` (also ``x_train`` and the like) are taken as splits, else
    the one that is called ``x``, ``data``, ``images`` or ``arr_0``, else the only one that is not labels.

    Args:
        path: the file.
        array: the name of the array to use, where these rules do not find it.
        labels: the name of the array of labels, where it is not ``y``, ``labels`` or ``target``.

    Raises:
        DataError: the file is damaged, holds objects, or does not say which array is meant.
    """
    refuse_empty(path)
    with reading(path, ".npz file"), path.open("rb") as file:
        content = np.load(file, allow_pickle=False)
        if not isinstance(content, Mapping):
            raise DataError(f"{path} is no .npz file but a single array: rename it to end in .npy")
        return _choose(path, content, array, labels)


def _choose(path: Path, content: Mapping[str, np.ndarray], array: str | None, labels: str | None) -> Raw:
    names = {name.lower(): name for name in content}
    if labels is not None and labels not in content:
        raise DataError(f"{path} has no array {labels!r} for the labels, it has {_listed(content)}: name one of these")
    if array is None:
        found = {split: _find(names, _split_names(aliases)) for split, aliases in SPLITS.items()}
        if found["train"] is not None:
            chosen: dict[str, Any] = {split: content[name] for split, name in found.items() if name is not None}
            for split in tuple(chosen):
                name = _find(names, _label_names(SPLITS[split]))
                if name is not None:
                    chosen[f"{split}_labels"] = content[name]
            return Raw(**chosen)
    label = labels or _find(names, _LABELS)
    if array is None:
        others = [name for name in content if name != label]
        array = _find(names, _DATA) or (others[0] if len(others) == 1 else None)
        if array is None:
            raise DataError(
                f"{path} holds the arrays {_listed(content)}, and no name says which are the data: "
                "choose one with array=NAME (--array NAME)"
            )
    if array not in content:
        raise DataError(f"{path} has no array {array!r}, it has {_listed(content)}: choose one with array=NAME")
    values = content[array]
    if label is None or label == array:
        return Raw(values)
    found_labels = content[label]
    # An array that only happens to be called y may belong to another of the arrays, unless it was asked for
    fits = found_labels.shape[:1] == values.shape[:1]
    return Raw(values, train_labels=found_labels if fits or labels else None)


def _find(names: Mapping[str, str], candidates: tuple[str, ...]) -> str | None:
    return next((names[candidate] for candidate in candidates if candidate in names), None)


def _split_names(aliases: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(form.format(a) for a in aliases for form in ("{}", "x_{}", "{}_x", "{}_images", "{}_data"))


def _label_names(aliases: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(form.format(a) for a in aliases for form in ("y_{}", "{}_y", "{}_labels", "labels_{}"))


def _listed(content: Mapping[str, np.ndarray]) -> str:
    return ", ".join(content) or "none"
