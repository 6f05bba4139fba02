"""The evidence lower bound and its training variants."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from xhat.distributions import has_closed_form, kl_per_dimension, relaxed_log_prob
from xhat.distributions.kl_table import closed_form
from xhat.errors import ConfigError, whole_number
from xhat.gradients import LogWeight, expectation
from xhat.objectives.base import Chassis, Objective, Terms

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
        model.gradient.see(x)
        # A path derivative of the whole bound needs log q itself: there the KL is never taken in closed form.
        path = "log weight" in model.gradient.requires
        if path and self.free_bits > 0:
            raise ConfigError(
                "free_bits needs the KL of each dimension in closed form, and a path derivative (stl, dreg) the whole log "
                "weight: use free_bits=0 or gradient='pathwise'"
            )
        whole = self.kl == "sampled" or (self.kl == "auto" and path)
        kl = None if whole else closed_form(q, p)
        if kl is not None:
            return self._analytic(model, target, q, p, kl)
        self.fits(q, p)
        return self._sampled(model, target, q, p)

    def _analytic(self, model: Chassis, target: Tensor, q: Distribution, p: Distribution, kl: Tensor) -> Terms:
        log_px = expectation(lambda z: model.likelihood(z).log_prob(target), q, model.gradient, self.samples)
        paid = kl
        if self.free_bits > 0:
            each = kl_per_dimension(q, p).flatten(1)
            above = each.mean(0) > self.free_bits
            # What no dimension has alone (the correlations of a full covariance) is paid for in full, or this were no bound.
            paid = (each * above).sum(1) + self.free_bits * (~above).sum() + (kl - each.sum(1))
        return Terms(self.weight * paid - log_px, {"elbo": log_px - kl, "log_px_given_z": log_px, "kl": kl})

    def _sampled(self, model: Chassis, target: Tensor, q: Distribution, p: Distribution) -> Terms:
        seen: list[tuple[Tensor, Tensor, Tensor]] = []

        def log_joint(z: Tensor) -> Tensor:
            log_px, log_pz = model.likelihood(z).log_prob(target), relaxed_log_prob(p, z)
            if not seen:
                seen.append((z.detach(), log_px.detach(), log_pz.detach()))
            return log_px + self.weight * log_pz

        bound = expectation(LogWeight(log_joint, q, self.weight), q, model.gradient, self.samples)
        # The first call is at the points that the value is made of; what else an estimator looks at is not measured.
        with torch.no_grad():
            count = model.gradient.points(self.samples, q)
            z, log_px, log_pz = (part[:count] for part in seen[0])
            log_ratio = q.log_prob(z) - log_pz
            weights = model.gradient.weights(q, z)
            log_px, kl = (_averaged(term, weights) for term in (log_px, log_ratio))
        return Terms(-bound, {"elbo": log_px - kl, "log_px_given_z": log_px, "kl": kl})


def _averaged(term: Tensor, weights: Tensor | None) -> Tensor:
    """The mean over points, ``(S, B)``, or with weights their sum, to which an impossible point adds nothing."""
    return term.mean(0) if weights is None else torch.where(weights > 0, weights * term, 0.0).sum(0)
