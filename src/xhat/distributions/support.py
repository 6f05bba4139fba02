"""What a law lives on: single points, or a continuum of so many dimensions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MixtureSameFamily, Multinomial, constraints

from xhat.distributions.delta import Delta

# Continuous supports of fewer dimensions than their event has numbers: a density on one of them is taken with respect
# to a measure of its own, and compares with no density on the whole space.
_THIN = {
    type(constraints.simplex): "the simplex",
    type(constraints.corr_cholesky): "correlation matrices",
    type(constraints.positive_definite): "symmetric matrices",
    type(constraints.positive_semidefinite): "symmetric matrices",
    type(constraints.symmetric): "symmetric matrices",
}


def split(law: Distribution) -> tuple[Distribution, int]:
    """The law under all :class:`Independent` wrappers, and how many axes they turn into event axes.

    A :class:`Delta` always factorises: it comes back with no event axis of its own.
    """
    axes = 0
    while isinstance(law, Independent):
        axes += law.reinterpreted_batch_ndims
        law = law.base_dist
    if isinstance(law, Delta):
        return Delta(law.value, 0, validate_args=False), axes + law.event_dim
    return law, axes


def join(law: Distribution, axes: int) -> Distribution:
    """The inverse of :func:`split`."""
    if axes == 0:
        return law
    return Delta(law.value, axes, validate_args=False) if isinstance(law, Delta) else Independent(law, axes)


def is_discrete(law: Distribution) -> bool:
    """Whether ``law`` is one of single points (its ``log_prob`` is a log mass), seen through :class:`Independent`.

    A point mass and a mixture of discrete laws count as discrete; a law that declares no support as continuous.

    >>> from torch.distributions import Bernoulli, Normal
    >>> is_discrete(Independent(Bernoulli(torch.full((3,), 0.5)), 1)), is_discrete(Normal(0.0, 1.0))
    (True, False)
    """
    return reference_measure(law) == "counting"


def reference_measure(law: Distribution) -> str:
    """What ``log_prob`` is a log density against: ``"counting"``, ``"Lebesgue"``, the latter on a thin set, or
    several of them one after the other."""
    base, _ = split(law)
    if isinstance(base, MixtureSameFamily):
        return reference_measure(base.component_distribution)
    support = _support(base)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is None:
        return "Lebesgue"
    own = getattr(support, "measure", None)  # a support of several layers, each of a kind of its own
    if own is not None:
        return str(own)
    if support.is_discrete:
        return "counting"
    return f"Lebesgue on {_THIN[type(support)]}" if type(support) in _THIN else "Lebesgue"


def extended_log_prob(law: Distribution, value: Tensor) -> Tensor:
    """``law.log_prob(value)``, and -inf outside the support, where torch would raise or return a number at random."""
    if not value.is_floating_point():
        value = value.to(torch.get_default_dtype())
    known = inside(law, value)
    if known is None or bool(known.all()):
        return law.log_prob(value)
    # Outside points are evaluated at some point inside: any will do, and a draw is one that every law can give.
    filler = law.sample()
    mask = known.reshape(known.shape + (1,) * len(law.event_shape))
    log_prob = law.log_prob(torch.where(mask, value, filler.to(value.dtype)))
    return torch.where(known, log_prob, -torch.inf)


def _support(law: Distribution) -> constraints.Constraint | None:
    try:
        return law.support
    except NotImplementedError:
        return None


def inside(law: Distribution, value: Tensor) -> Tensor | None:
    """Which events lie in the law's support; None where it declares none."""
    support = _support(law)
    if support is None:
        return None
    answer: Tensor = support.check(value)
    base, axes = split(law)
    if isinstance(base, Multinomial):
        # torch's constraint accepts fractions, and any total up to the count.
        counts = (value.sum(-1) == base.total_count) & (value == value.round()).all(-1)
        answer = answer & (counts.flatten(-axes).all(-1) if axes else counts)
    return answer
