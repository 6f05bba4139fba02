"""What was done to a user's data before it became x; a model keeps it, so that new data are treated as its training data were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from xhat.data.apply import apply
from xhat.data.columns import Column
from xhat.data.conditions import Conditions
from xhat.data.conversion import Conversion
from xhat.data.invert import invert
from xhat.data.scaling import Scaling
from xhat.data.source_options import SourceOptions
from xhat.errors import DataError

if TYPE_CHECKING:
    from xhat.data.examples import Examples

# How the source held its examples: as x has them; or pictures without an axis of channels, with it first, or with it last.
LAYOUTS = ("plain", "grey", "channels-first", "channels-last")


@dataclass(frozen=True)
class Preparation:
    """What was done to the training data, and how the same is done to others.

    :func:`~xhat.load_data` learns it from the training examples, :func:`~xhat.fit` gives it to the model, and it travels in the
    model's file. A float torch tensor is in the model's own units; whatever else a model is given (a path, a data frame, an
    array, a list, bytes) goes through it.

    Attributes:
        shape: of one example of x; None where it is not known.
        columns: of a table its columns, of pictures their channels, in the order of x; empty where they are not known.
        bytes: whether values are divided by 255; None where it is not known.
        layout: how the source holds an example: ``plain``, as x does, or pictures ``grey``, ``channels-first`` or
            ``channels-last``.
        dtype: of the source's array.
        kept: of a table without names from which columns were left out, the positions of those that are used.
        binarize: ``static`` and ``dynamic`` draw 0 or 1, ``threshold`` is 1 above a half; None leaves values as they are.
        seed: of these draws.
        resize: height and width that pictures of a folder are brought to.
        array: which array of an .npz file is used.
        labels: the column or array of labels.
        label_names: what the labels 0, 1, … stand for.
        conditions: what the examples are conditioned on: columns that are no part of x, or the labels; None: nothing.
        missing: ``refuse`` NaN, or ``mask`` it: it is then a value that was not observed.

    >>> import xhat
    >>> table = {"age": np.arange(20, 70, 5), "height": np.linspace(150.0, 199.5, 10)}
    >>> told = xhat.load_data(table).preparation
    >>> x = told.apply(table)
    >>> x.shape, told.names
    ((2,), ('age', 'height'))
    >>> told.invert(x.tensor())["age"]
    array([20, 25, 30, 35, 40, 45, 50, 55, 60, 65])
    """

    shape: tuple[int, ...] | None = None
    columns: tuple[Column, ...] = ()
    bytes: bool | None = None
    layout: str = "plain"
    dtype: str = "float32"
    kept: tuple[int, ...] | None = None
    binarize: str | None = None
    seed: int = 0
    resize: tuple[int, int] | None = None
    array: str | None = None
    labels: str | int | None = None
    label_names: tuple[str, ...] | None = None
    conditions: Conditions | None = None
    missing: str = "refuse"

    def apply(self, source: Any, *, memory: str = "auto", drop: bool = False, where: str = "x") -> Examples:
        """All examples of a source, unsplit, in its own order, prepared as the training data were.

        Columns are matched by their names where both have them. A label that the training data did not have is -1. The examples
        carry the condition where the source has all of its fields, and a mask where values are missing.

        Args:
            source: whatever :func:`~xhat.load_data` reads; also a float tensor, which is then in the user's units.
            memory: ``"load"``, ``"stream"`` or ``"auto"``, as for ``load_data``.
            drop: leave out examples with infinity, with NaN that is not masked or without a condition, instead of refusing them.
            where: what messages call a source in memory.

        Raises:
            DataError: the source cannot be read, holds infinity (or NaN, unless that is masked), has examples of another shape,
                lacks columns, holds values in other units than the training data, or an unknown class of the condition.
        """
        return apply(self, source, memory=memory, drop=drop, where=where)

    def invert(self, x: Tensor | np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
        """Values of x ``(N, *event)`` in the units, types and order of the user's data.

        A table with named columns becomes a dict of columns, of which ``pandas.DataFrame(…)`` makes a frame; columns that held
        whole numbers hold whole numbers. Pictures become what they were: bytes, with their channels where they were. Columns that
        were left out are not there, and what was binarised stays so.

        Raises:
            DataError: x has another shape.
        """
        return invert(self, x)

    @cached_property
    def names(self) -> tuple[str, ...] | None:
        """The names of the columns of a table, or None where the source has none."""
        found = tuple(column.name for column in self.columns if column.name is not None)
        return found if found and len(found) == len(self.columns) else None

    @cached_property
    def scaling(self) -> Scaling | None:
        """The map to standardised units, or None where nothing is standardised."""
        pairs = [(column.mean, column.std) for column in self.columns]
        if self.shape is None or not pairs or any(None in pair for pair in pairs):
            return None
        width = (len(pairs), *(1,) * (len(self.shape) - 1))
        mean, std = (torch.tensor(part, dtype=torch.float64).reshape(width) for part in zip(*pairs, strict=True))
        return Scaling(mean.expand(self.shape).clone(), std.expand(self.shape).clone())

    @property
    def unit(self) -> bool:
        """Whether all training values are known to lie in [0, 1], in the units of the source."""
        bounds = [(column.low, column.high) for column in self.columns]
        return bool(bounds) and all(low is not None and high is not None and low >= 0 and high <= 1 for low, high in bounds)

    @property
    def whole(self) -> bool:
        """Whether all training values are known to be whole numbers, in the units of the source."""
        return bool(self.columns) and all(column.whole for column in self.columns)

    @property
    def source_options(self) -> SourceOptions:
        """Which part of a source is meant; what a new source has no use for is passed over."""
        names = () if self.conditions is None else self.conditions.names
        return SourceOptions(self.resize, self.array, self.labels, names, asked=False)

    def conversion(self, names: Sequence[str] | None, width: int, scale: bool) -> Conversion:
        """What is done to stored rows.

        Args:
            names: of a table's columns, where the source has them.
            width: how many columns, or channels, it has.
            scale: whether its values are divided by 255.

        Raises:
            DataError: columns are missing.
        """
        chosen = self._chosen(names, width) if self.shape is None or len(self.shape) == 1 else None
        return Conversion(chosen, scale, self.scaling)

    def _chosen(self, names: Sequence[str] | None, width: int) -> tuple[int, ...] | None:
        if names is not None and self.names is not None:
            place = {name: position for position, name in enumerate(names)}
            missing = [name for name in self.names if name not in place]
            if missing:
                raise DataError(
                    f"the data lack the columns {', '.join(missing[:5])}, which the model was trained on: give them too"
                )
            chosen = tuple(place[name] for name in self.names)
            return None if chosen == tuple(range(width)) else chosen
        if self.kept is not None and width > max(len(self.kept), *self.kept):
            return self.kept
        return None

    def same_units(self, other: Preparation) -> bool:
        """Whether x of the one means what x of the other means: standardised alike, and levels in [0, 1] where one has them."""
        one, two = ([(column.mean, column.std) for column in each.columns if column.mean is not None] for each in (self, other))
        return one == two and (self.bytes == other.bytes or all(each.bytes or each.unit for each in (self, other)))
