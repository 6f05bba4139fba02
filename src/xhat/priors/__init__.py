"""Priors p(z): conditionals without a context. Calling one gives the distribution."""

from xhat.priors.base import Prior, law_of
from xhat.priors.chain import Chain
from xhat.priors.elements import Bernoulli, Categorical, OneHotCategorical, Poisson, StandardNormal, Uniform
from xhat.priors.flow import Flow
from xhat.priors.given import Given
from xhat.priors.mixture import Mixture
from xhat.priors.vamp import VampPrior

__all__ = [
    "Bernoulli",
    "Categorical",
    "Chain",
    "Flow",
    "Given",
    "Mixture",
    "OneHotCategorical",
    "Poisson",
    "Prior",
    "StandardNormal",
    "Uniform",
    "VampPrior",
    "law_of",
]
