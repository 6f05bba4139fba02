"""A normalising flow: the law of what an invertible map makes of a simple law's draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.distributions import Distribution, Transform, constraints
from torch.types import _size

from xhat.distributions.shapes import broadcast
from xhat.errors import ConfigError


class _Drawn(NamedTuple):
    """The last draw and its log density; whether gradients were on, and z had one; how often z had been written to."""

    z: Tensor
    log_prob: Tensor
    graph: bool
    moves: bool
    version: int | None


class Flow(Distribution):
    r"""The law of :math:`z = T(u)`, an invertible map of all of space, where u has a base law b.

    .. math:: \log p(z) = \log b(u) - \log \left| \det \frac{\partial T}{\partial u} \right|, \qquad u = T^{-1}(z)

    in nats, by whichever of the two directions is given: many maps are quick in one only. There is no formula for its mean.

    A draw's log density comes with the draw, so ``log_prob(z)`` right after ``z = law.rsample()`` inverts nothing. It is known by
    the tensor itself, and for values alone (gradients switched off) also by its memory, so a detached z is known, too. Its
    derivative is the total one in the law's parameters, along z's path and at a fixed z; one in z itself it does not have, so
    take that at ``z.detach().requires_grad_()``. What was drawn without a graph and is asked for with one (the score) is
    computed anew, and so is what was written to in between.

    Args:
        base: the law b of u, reparameterised.
        transforms: the map's steps, in the order in which they are applied; each keeps the event's shape.
        normalising: whether the steps lead from z to u, not from u to z: then it is the density of a foreign z that takes one
            pass, and a draw that takes the inverse.

    Shapes: draws ``(*sample, *batch, *event)``, log densities ``(*sample, *batch)``; batch and event are the base's.

    Raises:
        ConfigError: a base without ``rsample``; no step; a step on events with more axes than the base's.

    Source: Rezende & Mohamed (2015).

    >>> from torch.distributions import Independent, Normal
    >>> from torch.distributions.transforms import AffineTransform
    >>> law = Flow(Independent(Normal(torch.zeros(2), 1.0), 1), [AffineTransform(1.0, 3.0)])
    >>> torch.allclose(law.log_prob(torch.ones(2)), Normal(1.0, 3.0).log_prob(torch.ones(2)).sum())
    True
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(
        self,
        base: Distribution,
        transforms: Sequence[Transform],
        normalising: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        if not base.has_rsample:
            raise ConfigError(f"a flow needs a base law with rsample, was {type(base).__name__}: use a Normal")
        if not transforms:
            raise ConfigError("a flow must have at least one transform, had none: without one it is its base law")
        axes = len(base.event_shape)
        for transform in transforms:
            if max(transform.domain.event_dim, transform.codomain.event_dim) > axes:
                raise ConfigError(
                    f"a flow's transforms must act on events with {axes} axes, as the base law's have, but "
                    f"{type(transform).__name__} needs {transform.domain.event_dim}: wrap the base law in Independent"
                )
        self.base, self.transforms, self.normalising = base, tuple(transforms), normalising
        self._last: _Drawn | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: _size, _instance: Any = None) -> Flow:
        base = self.base.expand(batch_shape)
        return Flow(base, self.transforms, self.normalising, validate_args=self._validate_args)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """Draws ``(*sample, *batch, *event)`` that carry a derivative; the law keeps the last ones and their log density."""
        u = self.base.rsample(torch.Size(sample_shape))
        z, change = self._inverse(u) if self.normalising else self._forward(u)
        self._last = _Drawn(z, self.base.log_prob(u) - change, torch.is_grad_enabled(), z.requires_grad, _version(z))
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, ``(*sample, *batch)``; no pass at all for the last draw, else one pass or the inverse's."""
        if self._validate_args:
            self._validate_sample(value)
        known = self._known(value)
        if known is not None:
            return known
        # A value without the batch's axes is the same point for all of the batch.
        value = value.expand(broadcast(value.shape, self.batch_shape + self.event_shape))
        u, change = self._forward(value) if self.normalising else self._inverse(value)
        log_prob: Tensor = self.base.log_prob(u) + change
        return log_prob

    def _known(self, value: Tensor) -> Tensor | None:
        """The log density of a value that is the last draw; None for any other."""
        last, wanted = self._last, torch.is_grad_enabled()
        if last is None or (wanted and not last.graph):  # its derivative was not kept
            return None
        if wanted and value.requires_grad != last.moves:  # z was made a variable of its own since
            return None
        if not torch.compiler.is_compiling() and (last.version is None or _version(last.z) != last.version):
            return None
        if value is not last.z and (wanted or not _same_memory(value, last.z)):
            return None
        return (last.log_prob if wanted else last.log_prob.detach()).clone()  # the caller may write to what he gets

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The steps one after the other, and the log of how much they stretch space."""
        change = x.new_zeros(())
        for transform in self.transforms:
            x, stretch = _called(transform, x)
            change = change + self._summed(transform, stretch)
        return x, change

    def _inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The way back, and the log of how much it stretches space."""
        change = y.new_zeros(())
        for transform in reversed(self.transforms):
            x = transform.inv(y)
            change = change - self._summed(transform, transform.log_abs_det_jacobian(x, y))
            y = x
        return y, change

    def _summed(self, transform: Transform, stretch: Tensor) -> Tensor:
        """A step's log stretch of the whole event; an elementwise step tells that of each element."""
        axes = len(self.event_shape) - transform.domain.event_dim
        return stretch.sum(tuple(range(-axes, 0))) if axes else stretch


def _called(transform: Transform, x: Tensor) -> tuple[Tensor, Tensor]:
    """A step's value and log stretch, at once where it can (zuko's): its network then runs once."""
    at_once = getattr(transform, "call_and_ladj", None)
    if at_once is not None:
        y, stretch = at_once(x)
        return y, stretch
    y = transform(x)
    return y, transform.log_abs_det_jacobian(x, y)


def _version(z: Tensor) -> int | None:
    """How often a tensor was written to; None where that cannot be told."""
    return None if torch.compiler.is_compiling() or z.is_inference() else z._version


def _same_memory(value: Tensor, z: Tensor) -> bool:
    """Whether two tensors are the same numbers in the same place, as a tensor and its detached twin are."""
    if torch.compiler.is_compiling() or is_functorch_wrapped_tensor(value) or is_functorch_wrapped_tensor(z):
        return False
    return value.dtype == z.dtype and value.device == z.device and value.is_set_to(z)
