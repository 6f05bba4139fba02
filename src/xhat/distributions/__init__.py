"""Laws that torch lacks, and the Kullback-Leibler divergence between any two laws.

Every law is a plain :class:`torch.distributions.Distribution`, so it goes wherever torch's own go. The divergences live
in xhat's own table and fall back on torch's; nothing is registered with torch.
"""

from xhat.distributions.beta_binomial import BetaBinomial
from xhat.distributions.chain import Chain, widths
from xhat.distributions.continuous_bernoulli import ContinuousBernoulli
from xhat.distributions.delta import Delta
from xhat.distributions.discretised import DiscretisedNormal, LogisticMixture
from xhat.distributions.flow import Flow
from xhat.distributions.kl import Estimate, has_closed_form, kl_divergence, kl_per_dimension
from xhat.distributions.levels import Levels
from xhat.distributions.relaxed import relaxed_log_prob
from xhat.distributions.support import is_discrete

__all__ = [
    "BetaBinomial",
    "Chain",
    "ContinuousBernoulli",
    "Delta",
    "DiscretisedNormal",
    "Estimate",
    "Flow",
    "Levels",
    "LogisticMixture",
    "has_closed_form",
    "is_discrete",
    "kl_divergence",
    "kl_per_dimension",
    "relaxed_log_prob",
    "widths",
]
