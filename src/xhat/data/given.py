"""What a user gives to a model. A float tensor is in the model's own units; all else is as the user has it."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from xhat.data.examples import Examples, as_examples
from xhat.data.frames import is_frame, read_frame
from xhat.data.learn import learn_plain
from xhat.data.preparation import Preparation
from xhat.errors import DataError


def in_own_units(x: Any) -> bool:
    """Whether x is a float tensor, which is taken as it is."""
    return isinstance(x, Tensor) and x.is_floating_point()


def given(x: Any, preparation: Preparation | None, where: str = "x") -> Examples:
    """Examples of whatever a user gives to a model, prepared as its training data were.

    Args:
        x: Examples, which are prepared already; a float tensor, in the model's own units; or data as the user has them: a path, a
            data frame, an array, a list, bytes.
        preparation: the model's; without one, arrays are taken as :func:`~xhat.data.as_examples` takes them.
        where: what messages call x.

    Raises:
        DataError: the data do not suit the preparation, or were prepared in another way.

    >>> import numpy as np, torch, xhat
    >>> told = xhat.load_data(np.arange(12.0).reshape(6, 2) ** 1.5).preparation
    >>> given(np.zeros((1, 2)), told).tensor().lt(-1).all(), given(torch.zeros(1, 2), told).tensor()
    (tensor(True), tensor([[0., 0.]]))
    """
    if isinstance(x, Examples):
        _check_units(x, preparation, where)
        return x
    if in_own_units(x):
        return as_examples(x, where)
    if preparation is not None:
        return preparation.apply(x, where=where)
    if isinstance(x, str | os.PathLike):
        raise DataError(
            f"{where} is the path {str(x)!r}, and a path needs a model that knows how its training data were prepared: read it "
            "with xhat.load_data(path), and train on what that gives"
        )
    if not is_frame(x):
        return as_examples(x, where)
    raw = read_frame(x, where=where)
    examples = as_examples(raw.train, where)
    examples.preparation = learn_plain(examples, raw.columns)
    return examples


def _check_units(x: Examples, preparation: Preparation | None, where: str) -> None:
    """Refuse examples that were standardised, or whose condition was, by other figures than the model's training data.

    Raises:
        DataError: says how they are prepared alike.
    """
    own = x.preparation
    if own is not None and preparation is not None and preparation.columns and own.columns and not own.same_units(preparation):
        raise DataError(
            f"{where} was standardised, or divided by 255, otherwise than the data that the model was trained on: give the "
            "source itself, or model.preparation.apply(source)"
        )
    pair = (None, None) if own is None or preparation is None else (own.conditions, preparation.conditions)
    if None not in pair and pair[0] != pair[1]:
        raise DataError(
            f"{where} is conditioned on {pair[0]}, in other numbers than the data that the model was trained on: give the source "
            "itself, or model.preparation.apply(source)"
        )


def preparation_of(x: Examples, own: Preparation | None) -> Preparation:
    """What a model remembers that is trained on x: how x was prepared, what it knew before, or what can be seen of x."""
    return x.preparation or own or learn_plain(x)
