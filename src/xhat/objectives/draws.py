"""A model's bound from its log weights at draws of q, and the measures that are logged beside it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from xhat.distributions import relaxed_log_prob
from xhat.gradients import Gradient, LogWeight, Reduction, expectation
from xhat.objectives.base import Chassis


class AtDraws(NamedTuple):
    """The bound, ``(B,)``, with its gradient; and what the same draws say without one, each ``(B,)``, in nats."""

    bound: Tensor
    measures: dict[str, Tensor]


def at_draws(
    model: Chassis,
    target: Tensor,
    laws: tuple[Distribution, Distribution],
    gradient: Gradient,
    samples: int,
    reduce: Reduction,
    weight: Tensor | float = 1.0,
) -> AtDraws:
    r"""Reduce the log weights of S draws, :math:`\log p(x|z_k) - \beta (\log q(z_k|x) - \log p(z_k))`, to one number an example.

    The encoder has run already, once for each example; the decoder gets all S·B codes at once, and the target is broadcast
    against what it puts out.

    Args:
        model: for its likelihood.
        target: the clean examples, ``(B, *event)``.
        laws: the posterior q, of batch shape ``(B,)``, and the prior p.
        gradient: the estimator.
        samples: S.
        reduce: the mean (ELBO) or the log-mean-exp (IWAE).
        weight: β, 1 in a bound.

    Returns:
        The bound and the measures ``elbo`` (the mean of the log weights with β = 1), ``log_px_given_z`` and ``kl`` (sampled).
    """
    q, p = laws
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def log_joint(z: Tensor) -> Tensor:
        log_px, log_pz = model.likelihood(z).log_prob(target), relaxed_log_prob(p, z)
        if not seen:
            seen.append((z.detach(), log_px.detach(), log_pz.detach()))
        return log_px + weight * log_pz

    bound = expectation(LogWeight(log_joint, q, weight), q, gradient, samples, reduce)
    # The first call is at the points that the value is made of; what else an estimator looks at is not measured.
    with torch.no_grad():
        count = gradient.points(samples, q)
        z, log_px, log_pz = (part[:count] for part in seen[0])
        log_ratio = q.log_prob(z) - log_pz
        weights = gradient.weights(q, z)
        log_px, kl = (_averaged(term, weights) for term in (log_px, log_ratio))
    return AtDraws(bound, {"elbo": log_px - kl, "log_px_given_z": log_px, "kl": kl})


def _averaged(term: Tensor, weights: Tensor | None) -> Tensor:
    """The mean over points, ``(S, B)``, or with weights their sum, to which an impossible point adds nothing."""
    return term.mean(0) if weights is None else torch.where(weights > 0, weights * term, 0.0).sum(0)
