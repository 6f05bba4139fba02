"""The mean of several importance-weighted bounds; and each half of the model trained by the bound that suits it."""

from __future__ import annotations

import torch
from torch import Tensor

from xhat.distributions import relaxed_log_prob
from xhat.errors import ConfigError, whole_number
from xhat.gradients import honest
from xhat.gradients.reduction import Grouped
from xhat.objectives.base import Objective, Terms
from xhat.objectives.draws import drawn
from xhat.objectives.posed import Posed

MOST = 10_000_000  # draws of z for each example, which no memory holds


class MIWAE(Objective):
    r"""Negative mean of M importance-weighted bounds of K draws each ("multiply importance-weighted").

    .. math:: L = -E\Big[\frac1M \sum_{m=1}^M \log \frac1K \sum_{k=1}^K w_{km}\Big], \qquad
              w_{km} = \frac{p(x, z_{km})}{q(z_{km}|x)}

    Its expectation is that of IWAE with K draws, whatever M is. A large M makes the gradient less noisy, which a large K does not
    for the encoder: of M · K draws, K decides how tight the bound is. M = 1 is IWAE, K = 1 the ELBO with M draws.

    Beside ``miwae``, the bound itself, ``iwae``, the bound of all M · K draws, is logged at the same draws, and the ELBO's own
    measures ``elbo``, ``log_px_given_z`` and the sampled ``kl``, so that runs with different objectives compare.

    Gradients that serve it are IWAE's: each weighs a draw by its own group alone.

    Args:
        groups: M, the bounds that are averaged.
        samples: K, the draws of each. The attribute ``samples`` is the number of all draws, M · K.

    Shapes: ``loss`` and every measure ``(B,)``, in nats.

    Raises:
        ConfigError: ``groups`` or ``samples`` is no whole number of at least 1. A gradient that serves no multi-sample bound,
            such as ``stl``, is refused when the model is put together.

    Source: Rainforth et al. (Tighter variational bounds are not necessarily better, 2018).

    >>> import torch, xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="bernoulli")
    >>> model.objective = MIWAE(groups=3, samples=5)
    >>> terms = model(torch.ones(2, 4))
    >>> terms.loss.shape, sorted(terms.measures)
    (torch.Size([2]), ['elbo', 'iwae', 'kl', 'log_px_given_z', 'miwae'])
    >>> bool((terms.measures["miwae"] <= terms.measures["iwae"]).all())
    True
    """

    name = "miwae"
    needs_prior = True

    def __init__(self, groups: int = 8, samples: int = 8) -> None:
        super().__init__()
        whole_number("groups", groups)
        whole_number("samples", samples)
        self.groups, self.samples = groups, _all(groups, samples)
        self.reduction = Grouped(groups)  # type: ignore[misc]

    def forward(self, posed: Posed) -> Terms:
        found = drawn(posed, self.samples, self.reduction)
        return Terms(-found.bound, {"miwae": found.bound.detach(), "iwae": found.iwae, **found.measures})


class PIWAE(Objective):
    r"""MIWAE for the posterior, IWAE for the likelihood and the prior ("partially importance-weighted").

    .. math:: \nabla_\phi L = -\nabla_\phi\, \mathrm{MIWAE}_{M,K}, \qquad \nabla_\theta L = -\nabla_\theta\, \mathrm{IWAE}_{MK}

    at the same M · K draws: the tight bound for the likelihood and the prior, θ, which it only helps; the less noisy gradient for
    the posterior, φ. The number that is told as the loss is that of MIWAE; no one function has this gradient.

    The decoder runs twice, the second time at the draws as plain numbers, so a likelihood with noise of its own (dropout) meets
    other noise there: use MIWAE for it. θ and φ are told apart by where they are used. What serves two ends, such as the encoder
    under a VampPrior, gets the sum: IWAE's gradient for its part in the prior, MIWAE's for its part in the posterior.

    Beside ``miwae``, the loss's bound, ``iwae``, θ's, is logged, and the ELBO's own measures.

    Args:
        groups: M, the bounds that are averaged for the posterior.
        samples: K, the draws of each. The attribute ``samples`` is the number of all draws, M · K.

    Shapes: ``loss`` and every measure ``(B,)``, in nats.

    Raises:
        ConfigError: ``groups`` or ``samples`` is no whole number of at least 1. A gradient that serves no multi-sample bound,
            such as ``stl``, is refused when the model is put together.

    Source: Rainforth et al. (Tighter variational bounds are not necessarily better, 2018).

    >>> import torch, xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="bernoulli")
    >>> model.objective = PIWAE(groups=3, samples=5)
    >>> terms = model(torch.ones(2, 4))
    >>> bool((terms.loss == -terms.measures["miwae"]).all())
    True
    """

    name = "piwae"
    needs_prior = True

    def __init__(self, groups: int = 8, samples: int = 8) -> None:
        super().__init__()
        whole_number("groups", groups)
        whole_number("samples", samples)
        self.groups, self.samples = groups, _all(groups, samples)
        self.reduction = Grouped(groups)  # type: ignore[misc]

    def forward(self, posed: Posed) -> Terms:
        found = drawn(posed, self.samples, self.reduction)
        bound = found.bound
        if torch.is_grad_enabled():
            log_joint = posed.log_px(found.z) + relaxed_log_prob(posed.prior, found.z)
            more = (self._lacking(found.log_weights) * log_joint).sum(0)
            bound = honest(bound, more)
        return Terms(-bound, {"miwae": found.bound.detach(), "iwae": found.iwae, **found.measures})

    def _lacking(self, log_weights: Tensor) -> Tensor:
        """What a draw's share in IWAE has above that in MIWAE, ``(S, B)``."""
        grouped = log_weights.unflatten(0, (-1, self.groups)).softmax(0) / self.groups
        return log_weights.softmax(0) - grouped.flatten(0, 1)


def _all(groups: int, samples: int) -> int:
    """How many draws there are together."""
    if groups * samples > MOST:
        raise ConfigError(f"groups × samples must be at most {MOST:,}, was {groups * samples:,}: use fewer of either")
    return groups * samples
