"""Conditionals: modules that map a context to a distribution, p(y | context).

A posterior q(z|x) is a conditional, and so is a likelihood p(x|z). Each takes a network (any ``nn.Module``) and the event shape;
the last layer is made here, in the size that the law needs.
"""

from xhat.conditionals.base import Conditional, Headed, condition_of, event_of, positive
from xhat.conditionals.chain import Chain
from xhat.conditionals.discrete import Bernoulli, Categorical, ContinuousBernoulli, OneHotCategorical, Poisson
from xhat.conditionals.discretised import BetaBinomial, DiscretisedNormal, LogisticMixture
from xhat.conditionals.flow import Flow
from xhat.conditionals.ladder import Ladder
from xhat.conditionals.normal import Delta, MultivariateNormal, Normal

__all__ = [
    "Bernoulli",
    "BetaBinomial",
    "Categorical",
    "Chain",
    "Conditional",
    "ContinuousBernoulli",
    "Delta",
    "DiscretisedNormal",
    "Flow",
    "Headed",
    "Ladder",
    "LogisticMixture",
    "MultivariateNormal",
    "Normal",
    "OneHotCategorical",
    "Poisson",
    "condition_of",
    "event_of",
    "positive",
]
