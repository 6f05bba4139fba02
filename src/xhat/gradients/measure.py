"""The measure-valued gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from xhat.distributions.support import split
from xhat.errors import ConfigError
from xhat.gradients.base import Function, Gradient, finite, honest, total
from xhat.gradients.components import categories_of
from xhat.gradients.features import offers
from xhat.gradients.reduction import Reduction
from xhat.gradients.weak import CONTINUOUS


class Measure(Gradient):
    r"""Measure-valued gradient: each element's derivative as a difference of two expectations, drawn with coupled noise.

    .. math:: \nabla_\theta E[f] = c_\theta\, (E_{q_+}[f] - E_{q_-}[f])

    with the other elements drawn from q. f need not be differentiable. It costs two values of f for each parameter of each
    element, so it is one for few elements; of finite elements, whose :math:`q_\pm` are single points, one for each category.

    Raises:
        ConfigError: :meth:`evaluations` without the law.

    Source: Mohamed, Rosca, Figurnov & Mnih (2020), the coupling included; weak derivatives: Pflug (1989).

    >>> import xhat
    >>> loc = torch.zeros(4, requires_grad=True)
    >>> xhat.expectation(lambda z: z**2, torch.distributions.Normal(loc, 1.0), "measure").shape
    torch.Size([4])
    """

    unbiased = True
    requires = frozenset({"weak derivative"})

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        if q is None:
            raise ConfigError("how many values of f this takes depends on the law: give it, evaluations(samples, q)")
        if offers(q, "components"):
            categories = categories_of(q)
            elements = categories.logits.shape[len(q.batch_shape) : -1].numel()
            return samples * (1 + elements * categories.count)
        base, axes = split(q)
        learned = sum(pair.parameter.requires_grad for pair in CONTINUOUS[type(base)](base))
        return samples * (1 + 2 * learned * base.batch_shape[len(base.batch_shape) - axes :].numel())

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        if offers(q, "components"):
            return _finite_elements(f, q, samples, reduce)
        base, axes = split(q)
        z = q.sample((samples,))
        values = f(z)
        surrogate = torch.zeros_like(values[0]).detach()
        for pair in CONTINUOUS[type(base)](base):
            if pair.parameter.requires_grad:
                with torch.no_grad():
                    above, below = pair.draw(samples)
                    gap = _swapped(f, z, above, axes) - _swapped(f, z, below, axes)
                    coefficient = (gap * pair.constant).mean(0)
                surrogate = surrogate + total(coefficient * pair.parameter, axes)
        return honest(reduce(values), surrogate)


def _swapped(f: Function, z: Tensor, other: Tensor, axes: int) -> Tensor:
    """f with one element of z after another replaced by its namesake in ``other``, as a tensor of z's shape."""
    event = z.shape[z.ndim - axes :]
    size = event.numel()
    own = torch.eye(size, dtype=torch.bool, device=z.device).reshape(size, *(1,) * (z.ndim - axes), *event)
    points = torch.where(own, other, z)
    values = f(points.flatten(0, 1)).unflatten(0, points.shape[:2])
    return values.movedim(0, -1).reshape(z.shape)


def _finite_elements(f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
    categories = categories_of(q)
    code = categories.sample(samples)
    values = f(categories.value(code))
    with torch.no_grad():
        elements = code.shape[code.ndim - categories.axes : -1]
        columns = []
        for k in range(categories.count):
            fixed = torch.zeros_like(code)
            fixed[..., k] = 1
            size = elements.numel()
            own = torch.eye(size, dtype=torch.bool, device=code.device)
            own = own.reshape(size, *(1,) * (code.ndim - categories.axes), *elements, 1)
            points = torch.where(own, fixed, code)
            at = f(categories.value(points.flatten(0, 1))).unflatten(0, points.shape[:2])
            columns.append(at.movedim(0, -1).reshape(code.shape[:-1]))
        each = torch.stack(columns, -1)
        # The weights sum to one, so any constant may be taken off: less is lost to rounding.
        coefficient = (categories.probs() * (each - each.mean(-1, keepdim=True))).mean(0)
    return honest(reduce(values), total(coefficient * finite(categories.logits), categories.axes))
