"""Data for a model that is trained already: read and prepared as its training data were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xhat.data.examples import Examples, as_storage, check_finite, check_size, drawn
from xhat.data.load import are_bytes, binarized
from xhat.data.raw import Raw, as_events
from xhat.data.scaling import Scaling
from xhat.data.sources import Choices, read
from xhat.data.splits import label_codes
from xhat.errors import DataError


def load_like(source: Any, told: dict[str, Any]) -> Examples:
    """All examples of a source, unsplit, prepared like a run's training data.

    Args:
        source: whatever ``load_data`` reads.
        told: what the run's config.json says of its data: ``options`` of ``load_data``, ``seed``, ``shape``, ``columns``
            and ``scaling``. Columns that the run left out are left out here too, and the values are standardised by the
            run's own means and deviations.

    Raises:
        DataError: the source cannot be read, holds NaN or infinity, or has examples of another shape.

    >>> told = {"shape": [2], "scaling": {"mean": [1.0, 1.0], "std": [2.0, 4.0]}}
    >>> load_like([[1.0, 5.0], [3.0, 1.0]], told).tensor()
    tensor([[0., 1.],
            [1., 0.]])
    """
    options, seed = told.get("options", {}), int(told.get("seed", 0))
    name, raw = _read(source, options)
    arrays = [array for array in raw.splits if array is not None]
    parts = [as_storage(as_events(array), name) for array in arrays]
    labels, _ = label_codes(raw.labels, [0 if array is None else len(array) for array in raw.splits])
    codes = [code for code in labels if code is not None]
    whole = _columns(torch.cat(parts), raw.columns, told.get("columns"))
    check_size(whole, name)
    check_finite(whole, name)
    shape = tuple(told.get("shape", whole.shape[1:]))
    if tuple(whole.shape[1:]) != shape:
        raise DataError(
            f"{name} has examples of shape {tuple(whole.shape[1:])}, the model was trained on {shape}: give such data"
        )
    examples = Examples(whole, torch.cat(codes) if len(codes) == len(arrays) else None, scale=are_bytes([whole]))
    if options.get("binarize") == "threshold":
        examples = binarized(examples, "threshold", seed, "test")
    elif options.get("binarize"):
        examples = drawn(examples, seed)
    if told.get("scaling") is not None:
        scaling = Scaling(*(torch.tensor(told["scaling"][key], dtype=torch.float64) for key in ("mean", "std")))
        examples = Examples(scaling.apply(examples.tensor().double()).float(), examples.labels)
    return examples


def _read(source: Any, options: dict[str, Any]) -> tuple[str, Raw]:
    resize, labels = options.get("resize"), options.get("labels")
    choices = Choices(None if resize is None else (int(resize[0]), int(resize[1])), options.get("array"), labels)
    if labels is None:
        return read(source, choices)
    try:
        return read(source, choices)
    except DataError:
        return read(source, choices._replace(labels=None))  # new examples seldom come with labels


def _columns(whole: Tensor, names: tuple[str, ...] | None, wanted: list[str] | None) -> Tensor:
    """The run's columns, by name, in the run's order."""
    if names is None or wanted is None or list(names) == list(wanted):
        return whole
    missing = [name for name in wanted if name not in names]
    if missing:
        raise DataError(f"the data lack the columns {', '.join(missing[:5])}, which the model was trained on: give them too")
    return whole[:, [names.index(name) for name in wanted]]


def read_array(path: str | Path, name: str) -> Tensor:
    """One float array from an npy, npz (the array ``name``) or csv file, as it is; a csv column ``label`` is left out.

    Raises:
        DataError: the file cannot be read.
    """
    ending = Path(path).suffix.lower()
    if ending == ".csv":
        try:
            _, raw = read(path, Choices(labels="label"))
        except DataError:
            _, raw = read(path)
    else:
        _, raw = read(path, Choices(array=name if ending == ".npz" else None))
    values = as_storage(raw.train, str(path)).float()
    check_finite(values, str(path))
    return values
