"""A preparation as JSON, and back; whatever a file says is looked at before it is believed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from xhat.data.columns import Column
from xhat.data.conditions import Conditions
from xhat.data.preparation import LAYOUTS, Preparation
from xhat.errors import ConfigError, DataError

_COLUMN = [field.name for field in dataclasses.fields(Column)]
LONGEST = 100_000_000  # characters; a million columns have less


def to_json(preparation: Preparation) -> str:
    """The JSON that :func:`from_json` reads; columns are written as lists, name by name.

    >>> from_json(to_json(Preparation(shape=(1, 28, 28), bytes=True)))
    Preparation(shape=(1, 28, 28), columns=(), bytes=True, ...)
    """
    plain = _FITS.keys() - {"conditions"}
    told = {name: value for name, value in vars(preparation).items() if name in plain and value is not None}
    lists = {name: [getattr(column, name) for column in preparation.columns] for name in _COLUMN}
    if preparation.conditions is not None:
        told["conditions"] = preparation.conditions.described
    told["columns"] = {name: values for name, values in lists.items() if any(value is not None for value in values)}
    return json.dumps(told, allow_nan=False)


def from_json(text: str) -> Preparation:
    """The preparation that was written.

    Raises:
        DataError: the text is damaged, or makes no sense.
    """
    try:
        told = json.loads(text) if len(text) <= LONGEST else None
    except (ValueError, RecursionError) as error:
        raise DataError(f"its preparation is no JSON ({error})") from error
    if not isinstance(told, dict):
        raise DataError("its preparation must be an object")
    lists = told.pop("columns", {})
    wrong = [name for name, value in told.items() if name not in _FITS or not _FITS[name](value)]
    if wrong:
        raise DataError(f"its preparation says {wrong[0]!r} = {str(told[wrong[0]])[:40]!r}, which makes no sense")
    columns = _columns(lists)
    described = told.pop("conditions", None)
    shape = told.get("shape")
    if columns and (not shape or len(columns) != shape[0]):
        raise DataError(f"its preparation has {len(columns)} columns for examples of shape {shape}")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    return Preparation(columns=columns, conditions=None if described is None else _conditions(described), **values)


def _conditions(described: Any) -> Conditions:
    try:
        return Conditions.of(described)
    except ConfigError as error:
        raise DataError(f"its preparation has a condition that makes no sense: {error}") from error


def _columns(lists: Any) -> tuple[Column, ...]:
    if not isinstance(lists, dict) or not lists.keys() <= set(_COLUMN):
        raise DataError("its preparation has columns that make no sense")
    if not lists:
        return ()
    wrong = [name for name, values in lists.items() if not (isinstance(values, list) and all(map(_COLUMN_FITS[name], values)))]
    if wrong or len({len(values) for values in lists.values()}) > 1 or ("mean" in lists) != ("std" in lists):
        raise DataError(f"its preparation has columns whose {', '.join(wrong) or 'lists'} make no sense")
    if "mean" in lists and any((one is None) != (two is None) for one, two in zip(lists["mean"], lists["std"], strict=True)):
        raise DataError("its preparation standardises some columns without a mean or a deviation")
    rows = zip(*lists.values(), strict=True)
    return tuple(Column(**dict(zip(lists, row, strict=True))) for row in rows)


def from_config(told: dict[str, Any]) -> Preparation:
    """The preparation of a run that was made before models kept theirs, from what its config.json says of its data.

    Raises:
        DataError: it makes no sense.

    >>> from_config({"shape": [2], "scaling": {"mean": [1, 1], "std": [2, 4]}}).apply([[1.0, 5.0], [3.0, 1.0]]).tensor()
    tensor([[0., 1.],
            [1., 0.]])
    """
    options = told.get("options") or {}
    shape = told.get("shape")
    held = {name: told[name] for name in ("bytes", "kept", "seed", "label_names", "conditions") if told.get(name) is not None}
    held |= {
        name: options[name] for name in ("binarize", "resize", "array", "labels", "missing") if options.get(name) is not None
    }
    lists: dict[str, list[Any]] = {}
    if told.get("columns") is not None:
        lists["name"] = told["columns"]
    if told.get("scaling") is not None:
        lists |= {name: _by_axis(told["scaling"], name, shape) for name in ("mean", "std")}
    # Whatever is not a table then came with its channels first, or was brought to that order
    layout = "plain" if shape is not None and len(shape) == 1 else "channels-first"
    return from_json(json.dumps({"shape": shape, "layout": layout, "dtype": "float64", "columns": lists, **held}))


def _by_axis(scaling: Any, name: str, shape: Any) -> list[float]:
    """A number for each column or channel, out of one for each element of the event."""
    try:
        values = torch.tensor(scaling[name], dtype=torch.float64)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise DataError("its scaling makes no sense") from error
    if not isinstance(shape, list) or list(values.shape) != shape:
        raise DataError(f"its scaling has shape {list(values.shape)}, its examples {shape}")
    flat = values.reshape(shape[0], -1)
    if not bool((flat == flat[:, :1]).all()):
        raise DataError("its scaling is not the same all over a channel")
    return flat[:, 0].tolist()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sizes(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(_is_whole(item) and item >= least for item in value)


def _is_dtype(value: Any) -> bool:
    return isinstance(value, str) and value in {np.dtype(code).name for code in "?bBhHiIlLqQefdg"}


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _fits_conditions(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_fits_field, value.values()))


def _fits_field(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_number, value.values()))
    return _is_whole(value) or value == "real" or _texts(value)


# What a file may say, field by field; whoever edits it by hand should hear of a slip, not see a traceback
_FITS: dict[str, Callable[[Any], bool]] = {
    "shape": lambda value: value is None or _sizes(1)(value),
    "bytes": lambda value: isinstance(value, bool),
    "layout": lambda value: value in LAYOUTS,
    "dtype": _is_dtype,
    "kept": _sizes(0),
    "binarize": lambda value: value in ("static", "dynamic", "threshold"),
    "seed": _is_whole,
    "resize": lambda value: _sizes(1)(value) and len(value) == 2,
    "array": lambda value: isinstance(value, str),
    "labels": lambda value: isinstance(value, str) or _is_whole(value),
    "label_names": _texts,
    "conditions": _fits_conditions,
    "missing": lambda value: value in ("refuse", "mask"),
}
_COLUMN_FITS: dict[str, Callable[[Any], bool]] = {
    "name": lambda value: isinstance(value, str | None),
    "whole": lambda value: isinstance(value, bool),
    "low": lambda value: value is None or _is_number(value),
    "high": lambda value: value is None or _is_number(value),
    "mean": lambda value: value is None or _is_number(value),
    "std": lambda value: value is None or (_is_number(value) and value > 0),
}
