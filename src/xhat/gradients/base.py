"""What every gradient estimator is, what a law offers it, and how a surrogate is hidden behind an honest value."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Distribution,
    GeneralizedPareto,
    Independent,
    MixtureSameFamily,
    Pareto,
    TransformedDistribution,
    Uniform,
    constraints,
)

from xhat.distributions import Delta
from xhat.gradients.reduction import Reduction
from xhat.parts import Part

Function = Callable[[Tensor], Tensor]
"""What an expectation is taken of: maps ``(S, *batch, *event)`` to ``(S, *batch)``."""

FEATURES = {
    "rsample": "a reparameterised sample (rsample)",
    "log_prob": "a log_prob whose derivative tells how the law moves (no point mass, no bounds that depend on its parameters)",
}


def features(q: Distribution) -> set[str]:
    """What a law offers to estimators, of :data:`FEATURES`.

    >>> sorted(features(torch.distributions.Normal(0.0, 1.0))), sorted(features(torch.distributions.Poisson(1.0)))
    (['log_prob', 'rsample'], ['log_prob'])
    """
    found = set()
    if q.has_rsample:
        found.add("rsample")
    if type(q).log_prob is not Distribution.log_prob and not _moving_support(q):
        found.add("log_prob")
    return found


def _moving_support(q: Distribution) -> bool:
    """Whether mass moves in a way that ∇ log q does not see: a point mass, or bounds made of the law's parameters."""
    if isinstance(q, Independent):
        return _moving_support(q.base_dist)
    if isinstance(q, MixtureSameFamily):
        return _moving_support(q.component_distribution)
    if isinstance(q, TransformedDistribution):
        bounded = q.base_dist.support not in (constraints.real, constraints.real_vector)
        moved = any(
            isinstance(transform, AffineTransform)
            and any(isinstance(end, Tensor) and end.requires_grad for end in (transform.loc, transform.scale))
            for transform in q.transforms
        )
        return _moving_support(q.base_dist) or (bounded and moved)
    return isinstance(q, Delta | Uniform | Pareto | GeneralizedPareto)


class _Honest(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, surrogate: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        once = _Once.apply(grad, *ctx.saved_tensors)
        return once, once


class _Once(torch.autograd.Function):
    """A gradient that cannot be differentiated again.

    It is tied to what it was the gradient of: ``once_differentiable`` raises only where the incoming gradient has a history of
    its own, so the plain second derivative of a surrogate would slip through it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, value: Tensor, surrogate: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(
            "a score-function gradient cannot be differentiated a second time, its second derivative would be wrong: "
            "use gradient='pathwise' where the law has it"
        )


def honest(value: Tensor, surrogate: Tensor) -> Tensor:
    """The number ``value``, whose gradient is value's own plus the surrogate's.

    A surrogate is right once: its second derivative is not that of the expectation. So differentiating twice raises.

    >>> a = torch.tensor(3.0, requires_grad=True)
    >>> y = honest(a.detach() ** 2, 2 * a)
    >>> y.item(), torch.autograd.grad(y, a)[0].item()
    (9.0, 2.0)
    """
    return _Honest.apply(value, surrogate)


class Gradient(Part, nn.Module, abc.ABC):
    """An estimator of E_q[f] and its derivative.

    A class declares ``unbiased`` (a test proves it), what it ``requires`` of a law (:data:`FEATURES`), and the fewest
    ``samples`` that it can use. State (a running baseline, a control variate's parameters) lives in it as an ``nn.Module``'s.
    """

    unbiased: ClassVar[bool]
    requires: ClassVar[frozenset[str]]

    @property
    def fewest_samples(self) -> int:
        """The smallest ``samples`` that the estimator is defined for."""
        return 1

    @abc.abstractmethod
    def evaluations(self, samples: int) -> int:
        """How many values of f one estimate takes, in all."""

    @abc.abstractmethod
    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        """``reduce`` of f at draws of q, ``(*batch)``, with this estimator's gradient."""

    def auxiliary_loss(self) -> Tensor | None:
        """What trains the estimator's own parameters, for the last estimate; None when there are none."""
        return None

    def lacks(self, q: Distribution) -> str | None:
        """What the law does not offer that the estimator needs, in words; None when it fits."""
        missing = sorted(self.requires - features(q))
        return " and ".join(FEATURES[name] for name in missing) if missing else None
