"""What a model is conditioned on: named classes and covariates, and the numbers that they become."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xhat.errors import ConfigError, DataError

MOST_LEVELS = 10_000


class Field(NamedTuple):
    """One thing that is known of every example.

    Attributes:
        name: what it is called.
        levels: the names of its classes, in order; None for a real number.
        loc: of a real number, what is subtracted before a network sees it.
        scale: and what it is divided by then.
    """

    name: str
    levels: tuple[str, ...] | None
    loc: float = 0.0
    scale: float = 1.0

    @property
    def size(self) -> int:
        """How many numbers it becomes: one for a real number, else one for each class."""
        return 1 if self.levels is None else len(self.levels)

    @property
    def told(self) -> str:
        """What a value of it must be, for messages."""
        if self.levels is None:
            return "a number"
        return "one of " + ", ".join(self.levels[:12]) + (", …" if len(self.levels) > 12 else "")


@dataclass(frozen=True)
class Conditions:
    """The fields of a condition, in order; what each example has of them becomes a row of ``size`` numbers.

    A class becomes a one-hot vector, a real number itself, less ``loc`` and over ``scale``.

    >>> known = Conditions.of({"label": 3, "age": {"mean": 40.0, "std": 10.0}})
    >>> known.size
    4
    >>> known.encode({"label": [2, "0"], "age": [50, 40]})
    tensor([[0., 0., 1., 1.],
            [1., 0., 0., 0.]])
    """

    fields: tuple[Field, ...]

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Conditions:
        """From a description, which is plain data.

        Args:
            described: by name, a number of classes (then called "0", "1", …), a list of the names of classes, ``"real"``, or
                ``{"mean": m, "std": s}`` for a real number that is standardised.

        Raises:
            ConfigError: no field, or a description that is none of these.
        """
        if not isinstance(described, Mapping) or not described:
            raise ConfigError(
                f"condition must name at least one field, such as {{'label': 10, 'age': 'real'}}, was {described!r}"
            )
        return cls(tuple(_field(str(name), what) for name, what in described.items()))

    @property
    def described(self) -> dict[str, Any]:
        """The plain data that :meth:`of` takes."""
        return {field.name: _described(field) for field in self.fields}

    @property
    def names(self) -> tuple[str, ...]:
        """The fields' names, in order."""
        return tuple(field.name for field in self.fields)

    def __str__(self) -> str:
        return ", ".join(f"{field.name} ({field.told})" for field in self.fields)

    @property
    def size(self) -> int:
        """C, how many numbers a row has."""
        return sum(field.size for field in self.fields)

    def encode(self, values: Mapping[str, Any], count: int | None = None, base: Tensor | None = None) -> Tensor:
        """Rows of numbers, ``(N, C)`` float32, from the fields' values.

        Args:
            values: by name, one value for all rows or a value for each.
            count: N; where every value is one for all, it must be given.
            base: ``(N, C)``, rows whose numbers stand for the fields that ``values`` leaves out.

        Raises:
            DataError: a field that is unknown or missing, a class that the field does not have, a number that is not finite,
                numbers of values that differ.
        """
        if not isinstance(values, Mapping):
            raise DataError(f"a condition must give values by name, such as {{{self.names[0]!r}: …}}, was {values!r}")
        unknown = [str(name) for name in values if str(name) not in self.names]
        if unknown:
            raise DataError(f"the condition has no field {unknown[0]!r}: its fields are {', '.join(self.names)}")
        given = {str(name): _listed(value) for name, value in values.items()}
        lengths = {len(value) for value in given.values() if value is not None and len(value) != 1}
        if base is not None:
            lengths.add(len(base))
        if len(lengths | ({count} if count is not None else set())) > 1:
            raise DataError(
                f"a condition must have one value for all examples or one for each, had {sorted(lengths)} for {count}"
            )
        rows = count if count is not None else (lengths.pop() if lengths else 1)
        parts = []
        first = 0
        for field in self.fields:
            if field.name in given:
                own = _encoded(field, given[field.name])
                parts.append(own.expand(rows, field.size) if len(own) == 1 else own)
            elif base is not None:
                parts.append(base[:, first : first + field.size].to("cpu", torch.float32))
            else:
                raise DataError(f"the condition lacks the field {field.name!r}: give all of {', '.join(self.names)}")
            first += field.size
        return torch.cat(parts, 1)

    def decode(self, rows: Tensor) -> dict[str, list[Any]]:
        """The fields' values of rows ``(N, C)``: names of classes, and numbers in their own units."""
        result: dict[str, list[Any]] = {}
        first = 0
        for field in self.fields:
            part = rows[:, first : first + field.size].detach().cpu()
            if field.levels is None:
                result[field.name] = (part[:, 0].double() * field.scale + field.loc).tolist()
            else:
                result[field.name] = [field.levels[i] for i in part.argmax(1).tolist()]
            first += field.size
        return result


def _field(name: str, what: Any) -> Field:
    if isinstance(what, bool):
        what = None
    if isinstance(what, int):
        if not 2 <= what <= MOST_LEVELS:
            raise ConfigError(f"the condition {name!r} must have from 2 to {MOST_LEVELS:,} classes, had {what}")
        return Field(name, tuple(map(str, range(what))))
    if what == "real":
        return Field(name, None)
    if isinstance(what, Mapping) and set(what) == {"mean", "std"}:
        loc, scale = float(what["mean"]), float(what["std"])
        if not (math.isfinite(loc) and 0 < scale < math.inf):
            raise ConfigError(f"the condition {name!r} must have a finite mean and a std above 0, had {what!r}")
        return Field(name, None, loc, scale)
    if isinstance(what, Sequence) and not isinstance(what, str):
        levels = tuple(map(str, what))
        if not 2 <= len(levels) <= MOST_LEVELS or len(set(levels)) < len(levels):
            raise ConfigError(f"the condition {name!r} must have from 2 to {MOST_LEVELS:,} different classes, had {len(levels)}")
        return Field(name, levels)
    raise ConfigError(
        f"the condition {name!r} must be a number of classes, a list of their names, 'real', or a mean and a std by name, was "
        f"{what!r}"
    )


def _described(field: Field) -> Any:
    if field.levels is None:
        return "real" if (field.loc, field.scale) == (0.0, 1.0) else {"mean": field.loc, "std": field.scale}
    numbered = field.levels == tuple(map(str, range(len(field.levels))))
    return len(field.levels) if numbered else list(field.levels)


def _listed(value: Any) -> list[Any]:
    """A value or a column of them as a list."""
    if isinstance(value, str | int | float | bool | np.generic):
        return [value]
    return list(value.tolist() if isinstance(value, Tensor) else np.asarray(value).ravel().tolist())


def _encoded(field: Field, values: list[Any]) -> Tensor:
    """``(n, size)`` from the values of one field."""
    if field.levels is None:
        try:
            numbers = torch.tensor([float(value) for value in values], dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"the condition {field.name!r} must be numbers, and one was no number: {error}") from error
        if not bool(numbers.isfinite().all()):
            raise DataError(f"the condition {field.name!r} must be finite numbers, and one was not: fill it in")
        return ((numbers - field.loc) / field.scale).float()[:, None]
    places = {level: place for place, level in enumerate(field.levels)}
    indices = []
    for value in values:
        name = _class_name(value)
        if name not in places:
            raise DataError(f"the condition {field.name!r} has no class {name!r}: it must be {field.told}")
        indices.append(places[name])
    return torch.nn.functional.one_hot(torch.tensor(indices), len(field.levels)).float()


def _class_name(value: Any) -> str:
    """A class by name: a whole number goes without its fraction, as tables hold it."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
