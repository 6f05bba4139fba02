"""The kind of the data: what the values look like, and which likelihood they suggest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from xhat.data.examples import Examples

_CHUNK = 4096  # examples looked at together: temporaries stay small however large the data set
_GRIDS = (16, 255)  # the top level of the two codings of grey that are met: 0..16 (digits) and bytes
_LARGEST_COUNT = 10_000  # beyond it a Poisson's log probability loses its digits in float32, and a normal fits as well


class Kind(NamedTuple):
    """What the values look like.

    ``name`` is ``binary`` (0 and 1), ``grey`` or ``colour`` (levels spread over [0, 1]), ``unit`` (real, in [0, 1]),
    ``counts`` (0, 1, 2, ...) or ``real``. ``likelihood`` is the recipe name that fits, ``why`` one sentence, and
    ``levels`` the number of grey levels, or None where there are none.
    """

    name: str
    likelihood: str
    why: str
    levels: int | None = None


def kind_of(examples: Examples) -> Kind:
    """The kind of the values of ``examples``, all of which are looked at.

    >>> kind_of(Examples(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))).name
    'binary'
    >>> kind_of(Examples(torch.tensor([[0.0, 0.313], [0.5, 1.0]])))[:2]
    ('unit', 'continuous-bernoulli')
    """
    if examples.binarize is not None:
        return _binary("the values are drawn anew as 0 or 1 at each fetch")
    storage = examples.storage
    low, high = (float(bound) for bound in torch.aminmax(storage))
    if examples.scale:
        if _all(storage, lambda x: (x == 0) | (x == 255)):
            return _binary("the values are 0 and 1")
        return _levels(examples.shape, 256)
    if low < 0:
        return _real("the values are real numbers")
    if high <= 1:
        return _within_unit(examples)
    if not _all(storage, lambda x: x == x.round()):
        return _real("the values are real numbers")
    if high > _LARGEST_COUNT:
        return _real(f"the values are whole numbers up to {high:g}, so large that a normal serves better than a count")
    why = f"the values are whole numbers from {low:g} to {high:g}"
    if len(examples.shape) > 1 and high in _GRIDS:
        why += f"; if they are grey levels, divide them by {high:g} first"
    return Kind("counts", "poisson", why)


def _within_unit(examples: Examples) -> Kind:
    storage = examples.storage
    if storage.dtype == torch.uint8 or _all(storage, lambda x: (x == 0) | (x == 1)):
        return _binary("the values are 0 and 1")
    for top in _GRIDS:
        if _on_grid(storage, top):
            return _levels(examples.shape, top + 1)
    return Kind(
        "unit",
        "continuous-bernoulli",
        "the values are real numbers in [0, 1], on which the continuous Bernoulli is normalised and the Bernoulli not",
    )


def _on_grid(storage: Tensor, top: int) -> bool:
    """Whether all values are k / top with whole k, and no coarser grid would do ({0, 1/2, 1} are not 17 greys)."""
    divisor = 0
    for chunk in _chunks(storage):
        steps = chunk * top
        level = steps.round()
        # a float32 k / top is off by at most 2e-5 of a step; half-precision sources are not taken for levels
        if not bool(((steps - level).abs() <= 1e-4).all()):
            return False
        divisor = math.gcd(divisor, *(int(k) for k in level.unique()))
    return divisor == 1


def _chunks(storage: Tensor) -> Iterator[Tensor]:
    return (storage[start : start + _CHUNK] for start in range(0, len(storage), _CHUNK))


def _all(storage: Tensor, condition: Callable[[Tensor], Tensor]) -> bool:
    return all(bool(condition(chunk).all()) for chunk in _chunks(storage))


def _binary(why: str) -> Kind:
    return Kind("binary", "bernoulli", why)


def _real(why: str) -> Kind:
    return Kind("real", "normal", why)


def _levels(shape: tuple[int, ...], levels: int) -> Kind:
    name = "colour" if len(shape) == 3 and shape[0] in (3, 4) else "grey"
    return Kind(
        name,
        "normal",
        f"the values are {levels} levels of {name}, for which 'normal' is simple, 'discretised-normal' or 'beta-binomial' over "
        f"{levels} levels give honest bits per dimension, and binarising (--binarize dynamic) allows 'bernoulli'",
        levels,
    )
