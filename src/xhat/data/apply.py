"""New data for a model that is trained already: read whole, and prepared as its training data were."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from xhat.data.condition_values import Known, known_of, refuse_missing, rows_of, without_value
from xhat.data.examples import Examples
from xhat.data.made import in_memory, on_disk
from xhat.data.missing import OFFER, filled, observed_of
from xhat.data.plausible import scale_of, warn_beyond
from xhat.data.raw import as_events
from xhat.data.source_options import SourceOptions
from xhat.data.sources import read
from xhat.data.splits import label_codes
from xhat.data.storage import as_storage, check_finite, check_size
from xhat.data.streams import Shards, Stream
from xhat.data.streams.opened import Opened, opened_for
from xhat.data.streams.rows import AllRows
from xhat.data.streams.streamed import Streamed
from xhat.errors import DataError

if TYPE_CHECKING:
    from xhat.data.preparation import Preparation

_T = TypeVar("_T")
_OFFER = f", or train a model with {OFFER}"
_LOOKED_AT = 4096  # rows of a stream from whose values their units are told


def apply(preparation: Preparation, source: Any, *, memory: str, drop: bool, where: str) -> Examples:
    """See :meth:`~xhat.data.preparation.Preparation.apply`."""
    opened = _with_or_without_labels(preparation.source_options, lambda options: opened_for(source, options, memory))
    if opened is not None:
        return _of_streams(preparation, opened)
    held = _with_or_without_labels(preparation.source_options, lambda options: _read(preparation, source, options, where))
    rows, labels, lines = held.rows, held.labels, held.lines
    conversion = preparation.conversion(held.names, rows.shape[1], scale=False)
    used = rows if conversion.columns is None else rows[:, list(conversion.columns)]
    _check_shape(preparation, held.name, tuple(used.shape[1:]))
    known, observed = held.known, observed_of(rows) if preparation.missing == "mask" else None
    if observed is not None:
        seen = observed if conversion.columns is None else observed[:, list(conversion.columns)]
        used = filled(used, seen, _in_range(preparation, used.shape[1]))
        rows = filled(rows, observed, torch.zeros(rows.shape[1]))
    if drop:
        good = torch.ones(len(used), dtype=torch.bool)
        if used.is_floating_point():
            good = (used.abs() <= torch.finfo(torch.float32).max).flatten(1).all(1)
        for column in known.values():
            good &= torch.from_numpy(~without_value(column))
        if bool(good.any()) and not bool(good.all()):
            rows, used, labels = rows[good], used[good], None if labels is None else labels[good]
            observed = None if observed is None else observed[good]
            lines = None if lines is None else lines[good.numpy()]
            known = {name: column[good.numpy()] for name, column in known.items()}
    places = held.places
    if places is not None and conversion.columns is not None:
        places = tuple(places[column] for column in conversion.columns)
    check_finite(used, held.name, lines, places, "" if preparation.missing == "mask" else _OFFER)
    condition = _condition(preparation, known, len(rows), held.name, lines)
    scale = scale_of(preparation, used, held.name)
    if not scale:
        warn_beyond(preparation, used, held.name)
    conversion = preparation.conversion(held.names, rows.shape[1], scale)
    return in_memory(preparation, conversion, rows, labels, observed=observed, condition=condition)


class _Held(NamedTuple):
    """All rows of a source as they are stored, and what is known of them."""

    name: str
    rows: Tensor
    labels: Tensor | None
    names: tuple[str, ...] | None
    lines: Any
    places: tuple[str, ...] | None
    known: Known


def _with_or_without_labels(options: SourceOptions, read_as: Callable[[SourceOptions], _T]) -> _T:
    """What is read of a source, without its labels where it has none, as new examples seldom do."""
    if options.labels is None:
        return read_as(options)
    try:
        return read_as(options)
    except DataError as first:
        try:
            return read_as(options._replace(labels=None))
        except DataError as second:
            raise (second if "for the labels" in str(first) else first) from None


def _read(preparation: Preparation, source: Any, options: SourceOptions, where: str) -> _Held:
    name, raw = read(source, options, where)
    parts = []
    for array in raw.splits:
        if array is not None:
            parts.append(as_storage(array if preparation.layout == "plain" or not array.ndim else as_events(array), name))
            check_size(parts[-1], name)
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    sizes = [0 if array is None else len(array) for array in raw.splits]
    codes, names = label_codes(raw.labels, sizes)
    labels = _numbered(codes, names, len(parts), preparation.label_names)
    known = _known(preparation, raw.beside, codes, names, len(parts))
    return _Held(name, whole, labels, raw.columns, raw.rows, raw.places, known)


def _known(
    preparation: Preparation, beside: Mapping[str, np.ndarray] | None, codes: list[Tensor | None], names: Any, parts: int
) -> Known:
    """What the source says of the fields that the training data were conditioned on."""
    if preparation.conditions is None:
        return {}
    given = [code for code in codes if code is not None]
    whole = torch.cat(given) if len(given) == parts else None
    return known_of(preparation.conditions.names, beside, preparation.labels, whole, names)


def _condition(preparation: Preparation, known: Known, count: int, where: str, lines: Any = None) -> Tensor | None:
    refuse_missing(where, known, lines)
    return rows_of(preparation.conditions, known, count, where)


def _in_range(preparation: Preparation, width: int) -> Tensor:
    """A number for each column, or channel, that lies in the range of the training data."""
    lows = [column.low or 0.0 for column in preparation.columns]
    return torch.tensor(lows if len(lows) == width else [0.0] * width, dtype=torch.float64)


def _of_streams(preparation: Preparation, opened: Opened) -> Examples:
    """The same of what stays on disk: its units are told from its first rows, and every value is looked at when it is fetched."""
    streams = [part for part in opened.splits if part is not None]
    stream: Stream = streams[0] if len(streams) == 1 else Shards(streams, opened.name)
    conversion = preparation.conversion(opened.columns, stream.shape[0], scale=False)
    rows = stream.read(torch.arange(min(len(stream), _LOOKED_AT)))
    if conversion.columns is not None:
        rows = rows[:, list(conversion.columns)]
    _check_shape(preparation, opened.name, tuple(rows.shape[1:]))
    scale = scale_of(preparation, rows, opened.name)
    if not scale:
        warn_beyond(preparation, rows, opened.name)
    conversion = preparation.conversion(opened.columns, stream.shape[0], scale)
    sizes = [0 if part is None else len(part) for part in opened.splits]
    codes, names = label_codes(opened.labels, sizes)
    labels = _numbered(codes, names, len(streams), preparation.label_names)
    condition = _condition(preparation, _known(preparation, opened.beside, codes, names, len(streams)), len(stream), opened.name)
    shape = tuple(rows.shape[1:]) if preparation.shape is None else preparation.shape
    return on_disk(preparation, conversion, Streamed(stream, AllRows(stream.bounds), shape), labels, condition=condition)


def _check_shape(preparation: Preparation, name: str, held: tuple[int, ...]) -> None:
    """Refuse examples of another shape. Grey images will do for a model of colour, and an axis of one channel more or less.

    Raises:
        DataError: says which shape they have, and which they must have.
    """
    wanted = preparation.shape
    if wanted is None or held == wanted or (1, *held) == wanted or held == (1, *wanted):
        return
    if len(wanted) == 3 and held == (1, *wanted[1:]):
        return
    raise DataError(f"{name} has examples of shape {held}, the model was trained on {wanted}: give such data")


def _numbered(
    codes: list[Tensor | None], names: tuple[str, ...] | None, parts: int, wanted: tuple[str, ...] | None
) -> Tensor | None:
    """The labels as the training data number them, if all examples have one."""
    given = [code for code in codes if code is not None]
    if len(given) < parts:
        return None
    whole = torch.cat(given)
    if names is None or wanted is None:
        return whole
    place = {name: number for number, name in enumerate(wanted)}
    return torch.tensor([place.get(name, -1) for name in names])[whole]
