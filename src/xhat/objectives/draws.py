"""A bound from its log weights at draws of q, and the measures that are logged beside it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xhat.distributions import relaxed_log_prob
from xhat.gradients import LogMeanExp, LogWeight, Reduction
from xhat.objectives.posed import Posed


class Drawn(NamedTuple):
    r"""The bound, with its gradient; and what the same draws say without one.

    Attributes:
        bound: ``(B,)``, with its gradient.
        measures: each ``(B,)``, in nats: ``elbo`` (the mean of the log weights with β = 1), ``log_px_given_z`` and ``kl``
            (sampled).
        z: the draws, ``(S, B, *latent)``.
        log_weights: :math:`\log w_k`, with β = 1, ``(S, B)``.
    """

    bound: Tensor
    measures: dict[str, Tensor]
    z: Tensor
    log_weights: Tensor

    @property
    def iwae(self) -> Tensor:
        """The importance-weighted bound of all the draws, ``(B,)``, whatever the loss is made of."""
        return LogMeanExp()(self.log_weights)


def drawn(posed: Posed, samples: int, reduce: Reduction, weight: Tensor | float = 1.0) -> Drawn:
    r"""Reduce the log weights of S draws, :math:`\log p(x|z_k) - \beta (\log q(z_k|x) - \log p(z_k))`, to one number an example.

    The encoder has run already, once for each example; the decoder gets all S·B codes at once, and the target is broadcast
    against what it puts out.

    Args:
        posed: the problem.
        samples: S.
        reduce: the mean (ELBO) or the log-mean-exp (IWAE).
        weight: β, 1 in a bound.
    """
    q, p = posed.q, posed.prior
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    seen_q: list[Tensor] = []

    def log_joint(z: Tensor) -> Tensor:
        log_px, log_pz = posed.log_px(z), relaxed_log_prob(p, z)
        if not seen:
            seen.append((z.detach(), log_px.detach(), log_pz.detach()))
        return log_px + weight * log_pz

    bound = posed.expectation(LogWeight(log_joint, q, weight, seen_q), samples, reduce)
    # The first call is at the points that the value is made of; what else an estimator looks at is not measured.
    with torch.no_grad():
        count = posed.gradient.points(samples, q)
        z, log_px, log_pz = (part[:count] for part in seen[0])
        # An estimator that looks at log p alone has not said what log q is.
        log_q = seen_q[0][:count] if seen_q else relaxed_log_prob(q, z)
        log_ratio = log_q - log_pz
        log_weights = log_px - log_ratio
        weights = posed.gradient.weights(q, z)
        log_px, kl = (_averaged(term, weights) for term in (log_px, log_ratio))
    return Drawn(bound, {"elbo": log_px - kl, "log_px_given_z": log_px, "kl": kl}, z, log_weights)


def _averaged(term: Tensor, weights: Tensor | None) -> Tensor:
    """The mean over points, ``(S, B)``, or with weights their sum, to which an impossible point adds nothing."""
    return term.mean(0) if weights is None else torch.where(weights > 0, weights * term, 0.0).sum(0)
