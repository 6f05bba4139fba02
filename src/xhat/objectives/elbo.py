"""The evidence lower bound and its training variants."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from xhat.distributions import has_closed_form, kl_per_dimension
from xhat.distributions.kl_table import closed_form
from xhat.errors import ConfigError, whole_number
from xhat.gradients import Gradient, LeaveOneOut, Mean, expectation
from xhat.objectives.base import Chassis, Objective, Terms
from xhat.objectives.draws import at_draws

KL = ("auto", "analytic", "sampled")


class ELBO(Objective):
    r"""Negative evidence lower bound, with a weight on its KL term.

    .. math:: L = -E_{q(z|x)}[\log p(x|z)] + \beta\, KL(q(z|x) \,\|\, p(z))

    The logged measure ``elbo`` is the true bound (β = 1, no free bits) whatever the loss is.

    Args:
        beta: weight of the KL at the end of the warm-up; 1 is the bound itself.
        warmup: epochs over which the weight rises from 0 to ``beta``, linearly.
        free_bits: λ in nats; each latent dimension's KL, averaged over the batch, is paid for only above λ.
        kl: ``"analytic"`` (closed form), ``"sampled"`` (log q − log p at the samples) or ``"auto"`` (closed form where there
            is one).
        samples: L, draws of z for each example.

    Raises:
        ConfigError: a negative weight, or free bits with a sampled KL.

    Source: Kingma & Welling (2013); β: Higgins et al. (2017); warm-up: Bowman et al. (2016); free bits: Kingma et al. (2016).

    >>> import xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="bernoulli", beta=4.0, beta_warmup=10)
    >>> model.objective.at(epoch=5.0)
    >>> model.objective.weight
    tensor(2.)
    """

    name = "elbo"
    needs_prior = True
    weight: Tensor

    def __init__(
        self, beta: float = 1.0, warmup: float = 0.0, free_bits: float = 0.0, kl: str = "auto", samples: int = 1
    ) -> None:
        super().__init__()
        for option, value in (("beta", beta), ("warmup", warmup), ("free_bits", free_bits)):
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ConfigError(f"{option} must be at least 0, was {value!r}")
        if kl not in KL:
            raise ConfigError(f"kl must be one of {', '.join(KL)}, was {kl!r}")
        if free_bits > 0 and kl == "sampled":
            raise ConfigError("free_bits needs the KL of each dimension, which only kl='analytic' has")
        whole_number("samples", samples)
        self.beta, self.warmup, self.free_bits, self.kl, self.samples = beta, warmup, free_bits, kl, samples
        # A tensor, so that a schedule changes no constant of a compiled program.
        self.register_buffer("weight", torch.tensor(0.0 if warmup > 0 else float(beta)))

    def fits(self, q: Distribution, p: Distribution) -> None:
        if (self.kl == "analytic" or self.free_bits > 0) and not has_closed_form(q, p):
            raise ConfigError(
                "the KL of this posterior and prior has no closed form, which kl='analytic' and free_bits need: use "
                "kl='sampled' without free_bits"
            )

    def at(self, epoch: float) -> None:
        if self.warmup > 0:
            self.weight.fill_(self.beta * min(1.0, epoch / self.warmup))

    def forward(self, model: Chassis, x: Tensor, target: Tensor) -> Terms:
        q, p = model.posterior(x), model.prior()
        gradient = _of_means(model.gradient)
        gradient.see(x)
        # A path derivative of the whole bound needs log q itself: there the KL is never taken in closed form.
        path = "log weight" in gradient.requires
        if path and self.free_bits > 0:
            raise ConfigError(
                "free_bits needs the KL of each dimension in closed form, and a path derivative (stl, dreg) the whole log "
                "weight: use free_bits=0 or gradient='pathwise'"
            )
        whole = self.kl == "sampled" or (self.kl == "auto" and path)
        kl = None if whole else closed_form(q, p)
        if kl is not None:
            return self._analytic(model, target, (q, p), gradient, kl)
        self.fits(q, p)
        bound, measures = at_draws(model, target, (q, p), gradient, self.samples, self.reduction, self.weight)
        return Terms(-bound, measures)

    def _analytic(
        self, model: Chassis, target: Tensor, laws: tuple[Distribution, Distribution], gradient: Gradient, kl: Tensor
    ) -> Terms:
        q, p = laws
        log_px = expectation(lambda z: model.likelihood(z).log_prob(target), q, gradient, self.samples)
        paid = kl
        if self.free_bits > 0:
            each = kl_per_dimension(q, p).flatten(1)
            above = each.mean(0) > self.free_bits
            # What no dimension has alone (the correlations of a full covariance) is paid for in full, or this were no bound.
            paid = (each * above).sum(1) + self.free_bits * (~above).sum() + (kl - each.sum(1))
        return Terms(self.weight * paid - log_px, {"elbo": log_px - kl, "log_px_given_z": log_px, "kl": kl})


def _of_means(gradient: Gradient) -> Gradient:
    """The model's estimator; where that serves multi-sample bounds only (vimco), its relative for a mean.

    A model that is trained on such a bound is asked for its ELBO all the same.
    """
    return gradient if Mean.name in gradient.reductions else LeaveOneOut()
