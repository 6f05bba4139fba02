"""What a law, and a function, offer to an estimator."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Binomial,
    Categorical,
    Cauchy,
    Distribution,
    GeneralizedPareto,
    Gumbel,
    Independent,
    Kumaraswamy,
    Laplace,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    Pareto,
    StudentT,
    TransformedDistribution,
    Uniform,
    Weibull,
    constraints,
)

from xhat.distributions import Delta, Levels
from xhat.distributions.chain import Chain
from xhat.distributions.support import split
from xhat.gradients.weak import has_weak_derivative

FEATURES = {
    "rsample": "a reparameterised sample (rsample)",
    "log_prob": "a log_prob whose derivative tells how the law moves (no point mass, no bounds that depend on its parameters)",
    "symmetric": "a reparameterised sample that is symmetric about a centre (Normal, Laplace, Student's t, Cauchy, Uniform)",
    "icdf": "an inverse distribution function in each element (icdf)",
    "finite": "a finite support of independent elements",
    "components": "independent elements with finitely many values each (Bernoulli, Categorical, OneHotCategorical, Levels)",
    "relaxable": "independent elements whose values can be mixed (Bernoulli, OneHotCategorical, Levels)",
    "bernoulli": "independent Bernoulli elements",
    "weak derivative": (
        "a weak derivative in every parameter that is learned (Normal, Exponential, Gamma's rate, Weibull's scale, Poisson, "
        "Bernoulli, Categorical, OneHotCategorical, Levels)"
    ),
    "layers": "several stochastic layers (xhat.distributions.Chain)",
}

OF_FUNCTIONS = {
    "differentiable f": "an f that is differentiable in z",
    "log weight": "the log weight log p(x, z) - log q(z) of a bound",
}

_SYMMETRIC = (Normal, Laplace, StudentT, Cauchy, Uniform, MultivariateNormal, LowRankMultivariateNormal)
_COMPONENTS = (Bernoulli, Categorical, OneHotCategorical, Levels)
_RELAXABLE = (Bernoulli, OneHotCategorical, Levels)
# Made from a law with bounds, which their own support shows nothing of.
_UNMOVED = (Gumbel, Kumaraswamy, Weibull)

_TESTS: dict[str, Callable[[Distribution, Distribution], bool]] = {
    "rsample": lambda q, base: _has_rsample(q),
    "log_prob": lambda q, base: type(q).log_prob is not Distribution.log_prob and not _moving_support(q),
    "symmetric": lambda q, base: isinstance(base, _SYMMETRIC),
    "icdf": lambda q, base: isinstance(base, MultivariateNormal) or _has_icdf(base),
    "finite": lambda q, base: isinstance(base, _COMPONENTS) or (q.event_shape == () and _has_one_support(base)),
    "components": lambda q, base: isinstance(base, _COMPONENTS),
    "relaxable": lambda q, base: isinstance(base, _RELAXABLE),
    "bernoulli": lambda q, base: isinstance(base, Bernoulli),
    "weak derivative": lambda q, base: has_weak_derivative(base),
    "layers": lambda q, base: isinstance(q, Chain),
}


def features(q: Distribution) -> set[str]:
    """What a law offers to estimators, of :data:`FEATURES`.

    >>> import torch
    >>> sorted(features(torch.distributions.Poisson(1.0)))
    ['log_prob', 'weak derivative']
    """
    base, _ = split(q)
    return {name for name, test in _TESTS.items() if test(q, base)}


def offers(q: Distribution, name: str) -> bool:
    """Whether a law has one of :data:`FEATURES`."""
    return _TESTS[name](q, split(q)[0])


def _has_rsample(q: Distribution) -> bool:
    """Whether a draw moves as the law does: what torch calls rsample of one-hot vectors is a biased straight-through."""
    if isinstance(q, Chain):
        return _has_rsample(q.first) and _has_rsample(q.pattern)
    return bool(q.has_rsample) and not isinstance(split(q)[0], OneHotCategoricalStraightThrough)


def _has_one_support(base: Distribution) -> bool:
    """Whether all elements of a batch have the same finite support, which torch can list."""
    if isinstance(base, Binomial):
        return bool((base.total_count == base.total_count.max()).all())
    return bool(base.has_enumerate_support)


def _has_icdf(base: Distribution) -> bool:
    if isinstance(base, TransformedDistribution) and type(base).icdf is TransformedDistribution.icdf:
        monotone = all(transform.domain.event_dim == 0 and transform.bijective for transform in base.transforms)
        return monotone and _has_icdf(base.base_dist)
    return type(base).icdf is not Distribution.icdf and base.has_rsample and base.event_shape == ()


def _moving_support(q: Distribution) -> bool:
    """Whether mass moves in a way that ∇ log q does not see: a point mass, or bounds made of the law's parameters."""
    if isinstance(q, Independent):
        return _moving_support(q.base_dist)
    if isinstance(q, _UNMOVED):
        return False
    if isinstance(q, Chain):
        return _moving_support(q.first) or _moving_support(q.pattern)
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
