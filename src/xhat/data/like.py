"""Data for a model that is trained already: read and prepared as its training data were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xhat.data.choices import Choices
from xhat.data.examples import Examples, drawn
from xhat.data.load import are_bytes, binarized, opened_for
from xhat.data.opened import Opened
from xhat.data.raw import Raw, as_events
from xhat.data.rows import AllRows
from xhat.data.scaling import Scaling
from xhat.data.sources import read
from xhat.data.splits import label_codes
from xhat.data.storage import as_storage, check_finite, check_size
from xhat.data.streamed import Streamed
from xhat.data.streams import Shards
from xhat.errors import DataError


def load_like(source: Any, told: dict[str, Any], *, drop: bool = False) -> Examples:
    """All examples of a source, unsplit, in its own order, prepared like a run's training data.

    Args:
        source: whatever ``load_data`` reads.
        told: what the run's config.json says of its data: ``options`` of ``load_data``, ``seed``, ``shape``, ``columns``,
            ``kept``, ``bytes``, ``label_names`` and ``scaling``. Columns that the run left out are left out here too, and the
            values are standardised by the run's own means and deviations. A class that the run does not know is -1.
        drop: leave out examples with NaN or infinity, instead of refusing them.

    Raises:
        DataError: the source cannot be read, holds NaN or infinity, or has examples of another shape.

    >>> told = {"shape": [2], "scaling": {"mean": [1.0, 1.0], "std": [2.0, 4.0]}}
    >>> load_like([[1.0, 5.0], [3.0, 1.0]], told).tensor()
    tensor([[0., 1.],
            [1., 0.]])
    """
    options, seed = told.get("options", {}), int(told.get("seed", 0))
    opened = opened_for(source, _choices(told), options.get("memory", "auto"))
    if opened is not None:
        return _streamed(opened, told)
    name, raw, whole = _read(source, told)
    codes = _codes(raw, told.get("label_names"))
    finite = (whole.abs() <= torch.finfo(torch.float32).max).flatten(1).all(1) if whole.is_floating_point() else None
    if drop and finite is not None and bool(finite.any()):
        whole, codes = whole[finite], None if codes is None else codes[finite]
    check_finite(whole, name, raw.rows, None if raw.places is None else _picked(raw.places, raw.columns, told))
    scale = whole.dtype == torch.uint8 and bool(told["bytes"]) if "bytes" in told else are_bytes([whole])
    examples = Examples(whole, codes, scale=scale)
    if options.get("binarize") == "threshold":
        examples = binarized(examples, "threshold", seed, "test")
    elif options.get("binarize"):
        examples = drawn(examples, seed)
    if told.get("scaling") is not None:
        scaling = Scaling(*(torch.tensor(told["scaling"][key], dtype=torch.float64) for key in ("mean", "std")))
        examples = Examples(scaling.apply(examples.tensor().double()).float(), examples.labels)
    return examples


def _read(source: Any, told: dict[str, Any]) -> tuple[str, Raw, Tensor]:
    """The source with the run's choices; without its labels where the source has none, as new examples seldom do."""
    choices = _choices(told)
    if choices.labels is None:
        return _shaped(source, choices, told)
    try:
        return _shaped(source, choices, told)
    except DataError as first:
        try:
            return _shaped(source, choices._replace(labels=None), told)
        except DataError as second:
            raise (second if "for the labels" in str(first) else first) from None


def _choices(told: dict[str, Any]) -> Choices:
    options = told.get("options", {})
    resize = options.get("resize")
    size = None if resize is None else (int(resize[0]), int(resize[1]))
    return Choices(size, options.get("array"), options.get("labels"))


def _streamed(opened: Opened, told: dict[str, Any]) -> Examples:
    """The same of what stays on disk: every value is looked at when it is fetched."""
    options, streams = told.get("options", {}), [part for part in opened.splits if part is not None]
    stream = streams[0] if len(streams) == 1 else Shards(streams, opened.name)
    columns = None
    if len(stream.shape) == 1:
        columns = tuple(int(column) for column in _picked(range(stream.shape[0]), opened.columns, told))
    held = (len(columns),) if columns is not None else stream.shape
    shape = tuple(told.get("shape", held))
    if held != shape and not (len(shape) == 3 and held == (1, *shape[1:])):
        raise _other_shape(opened.name, held, shape)
    scale = stream.dtype == torch.uint8 and bool(told["bytes"] if "bytes" in told else len(shape) > 1)
    binarize, scaling = options.get("binarize"), None
    if told.get("scaling") is not None:
        scaling = Scaling(*(torch.tensor(told["scaling"][key], dtype=torch.float64) for key in ("mean", "std")))
    drawn_by = int(told.get("seed", 0)) if binarize in ("static", "dynamic") else None
    prepared = Streamed(
        stream,
        AllRows(stream.bounds),
        shape,
        scale=scale,
        unit=binarize is not None,
        columns=columns,
        scaling=scaling,
        threshold=binarize == "threshold",
        seed=drawn_by,
    )
    return Examples(prepared, _stream_labels(opened, told.get("label_names")))


def _stream_labels(opened: Opened, wanted: list[str] | None) -> Tensor | None:
    sizes = [0 if part is None else len(part) for part in opened.splits]
    return _numbered(*label_codes(opened.labels, sizes), sum(part is not None for part in opened.splits), wanted)


def _shaped(source: Any, choices: Choices, told: dict[str, Any]) -> tuple[str, Raw, Tensor]:
    name, raw = read(source, choices)
    parts = [as_storage(as_events(array) if array.ndim else array, name) for array in raw.splits if array is not None]
    for part in parts:
        check_size(part, name)
    whole = torch.cat(parts)
    if whole.dim() == 2:
        whole = torch.stack(_picked(whole.unbind(1), raw.columns, told), 1)
    shape = tuple(told.get("shape", whole.shape[1:]))
    if len(shape) == 3 and tuple(whole.shape[1:]) == (1, *shape[1:]):
        whole = whole.expand(-1, *shape)  # grey images where the run's are in colour
    if tuple(whole.shape[1:]) != shape:
        raise _other_shape(name, tuple(whole.shape[1:]), shape)
    return name, raw, whole


def _codes(raw: Raw, wanted: list[str] | None) -> Tensor | None:
    """The labels as the run numbers them, if all examples have one."""
    sizes = [0 if array is None else len(array) for array in raw.splits]
    return _numbered(*label_codes(raw.labels, sizes), sum(array is not None for array in raw.splits), wanted)


def _numbered(codes: list[Tensor | None], names: tuple[str, ...] | None, parts: int, wanted: list[str] | None) -> Tensor | None:
    given = [code for code in codes if code is not None]
    if len(given) < parts:
        return None
    whole = torch.cat(given)
    if names is None or wanted is None:
        return whole
    return torch.tensor([wanted.index(name) if name in wanted else -1 for name in names])[whole]


def _other_shape(name: str, held: tuple[int, ...], wanted: tuple[int, ...]) -> DataError:
    return DataError(f"{name} has examples of shape {held}, the model was trained on {wanted}: give such data")


def _picked(columns: Sequence[Any], names: tuple[str, ...] | None, told: dict[str, Any]) -> tuple[Any, ...]:
    """Of what there is for each column, that for the run's columns, by name or position, in the run's order."""
    wanted, kept = told.get("columns"), told.get("kept")
    if names is not None and wanted is not None:
        missing = [name for name in wanted if name not in names]
        if missing:
            raise DataError(f"the data lack the columns {', '.join(missing[:5])}, which the model was trained on: give them too")
        return tuple(columns[names.index(name)] for name in wanted)
    if kept is not None and len(columns) > max(len(kept), *kept):
        return tuple(columns[position] for position in kept)
    return tuple(columns)


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
