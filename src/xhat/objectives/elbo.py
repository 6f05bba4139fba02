"""The evidence lower bound and its training variants."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from xhat.distributions import has_closed_form, kl_per_dimension
from xhat.distributions.kl_table import closed_form
from xhat.errors import ConfigError, whole_number
from xhat.gradients import Gradient, LeaveOneOut, Mean
from xhat.objectives.base import LARGEST, Objective, Terms
from xhat.objectives.draws import drawn
from xhat.objectives.posed import Posed

KL = ("auto", "analytic", "sampled")


class ELBO(Objective):
    r"""Negative evidence lower bound, with a weight on its KL term.

    .. math:: L = -E_{q(z|x)}[\log p(x|z)] + \beta\, KL(q(z|x) \,\|\, p(z))

    With a capacity C the KL is drawn to C instead of to 0, from below as from above, example by example:
    :math:`\beta\,|KL(q(z|x) \,\|\, p(z)) - C|`, with C rising linearly from 0.

    The logged measure ``elbo`` is the true bound (β = 1, no free bits, no capacity) whatever the loss is.

    Args:
        beta: weight of the KL at the end of the warm-up; 1 is the bound itself.
        warmup: epochs over which the weight rises from 0 to ``beta``, linearly.
        free_bits: λ in nats; each latent dimension's KL, averaged over the batch, is paid for only above λ.
        kl: ``"analytic"`` (closed form), ``"sampled"`` (log q − log p at the samples) or ``"auto"`` (closed form where there
            is one).
        samples: L, draws of z for each example.
        capacity: C at the end of its rise, in nats; 0 is the KL itself.
        capacity_warmup: epochs over which C rises from 0, linearly.

    Raises:
        ConfigError: a negative weight; free bits or a capacity with a sampled KL, with a path derivative, or with each other.

    Source: Kingma & Welling (2013); β: Higgins et al. (2017); warm-up: Bowman et al. (2016); free bits: Kingma et al. (2016);
    capacity: Burgess et al. (2018).

    >>> import xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="bernoulli", beta=4.0, beta_warmup=10)
    >>> model.objective.at(epoch=5.0)
    >>> model.objective.weight
    tensor(2.)
    """

    name = "elbo"
    needs_prior = True
    weight: Tensor
    allowed: Tensor

    def __init__(
        self,
        beta: float = 1.0,
        warmup: float = 0.0,
        free_bits: float = 0.0,
        kl: str = "auto",
        samples: int = 1,
        capacity: float = 0.0,
        capacity_warmup: float = 0.0,
    ) -> None:
        super().__init__()
        weights = {"beta": beta, "warmup": warmup, "free_bits": free_bits}
        for option, value in {**weights, "capacity": capacity, "capacity_warmup": capacity_warmup}.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST:
                raise ConfigError(f"{option} must be at least 0 and at most {LARGEST:g}, was {value!r}")
        if kl not in KL:
            raise ConfigError(f"kl must be one of {', '.join(KL)}, was {kl!r}")
        if free_bits > 0 and kl == "sampled":
            raise ConfigError("free_bits needs the KL of each dimension, which only kl='analytic' has")
        if capacity > 0 and kl == "sampled":
            raise ConfigError(
                "capacity needs the KL itself, for the absolute value of a sampled KL is not unbiased: use kl='analytic'"
            )
        if capacity > 0 and free_bits > 0:
            raise ConfigError(
                "capacity and free_bits both say what KL is paid for, and cannot be had together: leave one of them out"
            )
        if capacity_warmup > 0 and capacity == 0:
            raise ConfigError(f"capacity_warmup is the time in which capacity rises, and needs one above 0, was {capacity!r}")
        whole_number("samples", samples)
        self.beta, self.free_bits, self.kl, self.samples, self.capacity = beta, free_bits, kl, samples, capacity
        self.beta_warmup, self.capacity_warmup = warmup, capacity_warmup
        self.warmup = max(warmup, capacity_warmup)
        # Tensors, so that a schedule changes no constant of a compiled program.
        self.register_buffer("weight", torch.tensor(beta * _risen(0.0, warmup)))
        if capacity > 0:
            self.register_buffer("allowed", torch.tensor(capacity * _risen(0.0, capacity_warmup)))

    @property
    def coupled(self) -> str:
        return "free_bits averages the KL over the batch" if self.free_bits > 0 else ""

    def fits(self, q: Distribution, p: Distribution) -> None:
        if (self.kl == "analytic" or self.free_bits > 0 or self.capacity > 0) and not has_closed_form(q, p):
            raise ConfigError(
                "the KL of this posterior and prior has no closed form, which kl='analytic', free_bits and capacity need: use "
                "kl='sampled' without free_bits or capacity"
            )

    def serves(self, gradient: Gradient) -> None:
        option = "free_bits" if self.free_bits > 0 else "capacity" if self.capacity > 0 else ""
        if option and "log weight" in gradient.requires:
            what = "the KL of each dimension" if option == "free_bits" else "the KL"
            raise ConfigError(
                f"{option} needs {what} in closed form, and a path derivative (stl, dreg) the whole log weight: use "
                f"{option}=0 or gradient='pathwise'"
            )

    def at(self, epoch: float) -> None:
        self.weight.fill_(self.beta * _risen(epoch, self.beta_warmup))
        if self.capacity > 0:
            self.allowed.fill_(self.capacity * _risen(epoch, self.capacity_warmup))

    def settled(self, epoch: float) -> bool:
        return type(self).at is ELBO.at and epoch >= self.warmup

    def forward(self, posed: Posed) -> Terms:
        posed = posed._replace(gradient=_of_means(posed.gradient))
        q, p = posed.q, posed.prior
        self.serves(posed.gradient)
        # A path derivative of the whole bound needs log q itself: there the KL is never taken in closed form.
        path = "log weight" in posed.gradient.requires
        whole = self.kl == "sampled" or (self.kl == "auto" and path)
        kl = None if whole else closed_form(q, p)
        if kl is not None:
            return self._analytic(posed, kl)
        self.fits(q, p)
        found = drawn(posed, self.samples, self.reduction, self.weight)
        return Terms(-found.bound, found.measures)

    def _analytic(self, posed: Posed, kl: Tensor) -> Terms:
        q, p = posed.q, posed.prior
        log_px = posed.expectation(posed.log_px, self.samples)
        paid = kl
        if self.free_bits > 0:
            each = kl_per_dimension(q, p).flatten(1)
            above = each.mean(0) > self.free_bits
            # What no dimension has alone (the correlations of a full covariance) is paid for in full, or this were no bound.
            paid = (each * above).sum(1) + self.free_bits * (~above).sum() + (kl - each.sum(1))
        elif self.capacity > 0:
            paid = (kl - self.allowed).abs()
        return Terms(self.weight * paid - log_px, {"elbo": log_px - kl, "log_px_given_z": log_px, "kl": kl})


def _risen(epoch: float, epochs: float) -> float:
    """The share of its end that a linear schedule over so many epochs has come to."""
    return min(1.0, epoch / epochs) if epochs > 0 else 1.0


def _of_means(gradient: Gradient) -> Gradient:
    """The model's estimator; where that serves multi-sample bounds only (vimco), its relative for a mean.

    A model that is trained on such a bound is asked for its ELBO all the same.
    """
    return gradient if Mean.name in gradient.reductions else LeaveOneOut()
