"""Conditionals: modules that map a context to a distribution, p(y | context).

A posterior q(z|x) is a conditional, and so is a likelihood p(x|z). Each takes a network (any ``nn.Module``) and the event shape;
the last layer is made here, in the size that the law needs.
"""

from xhat.conditionals.base import Conditional, positive
from xhat.conditionals.discrete import Bernoulli, Categorical, ContinuousBernoulli, Poisson
from xhat.conditionals.normal import Delta, MultivariateNormal, Normal

CONDITIONALS: dict[str, type[Conditional]] = {
    "normal": Normal,
    "multivariate-normal": MultivariateNormal,
    "bernoulli": Bernoulli,
    "continuous-bernoulli": ContinuousBernoulli,
    "categorical": Categorical,
    "poisson": Poisson,
    "delta": Delta,
}

__all__ = [
    "CONDITIONALS",
    "Bernoulli",
    "Categorical",
    "Conditional",
    "ContinuousBernoulli",
    "Delta",
    "MultivariateNormal",
    "Normal",
    "Poisson",
    "positive",
]
