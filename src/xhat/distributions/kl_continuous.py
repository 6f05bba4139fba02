"""Closed forms for the other continuous laws, and for laws seen through one and the same map."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Exponential,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    Normal,
    Pareto,
    Transform,
    TransformedDistribution,
    Uniform,
    VonMises,
    Weibull,
    Wishart,
)
from torch.distributions import ContinuousBernoulli as TorchContinuousBernoulli
from torch.distributions.transforms import ComposeTransform, IndependentTransform

from xhat.distributions.continuous_bernoulli import ContinuousBernoulli
from xhat.distributions.kl_normal import matrix_excess, normal_normal
from xhat.distributions.kl_table import closed_form, from_torch, rule

_EULER_GAMMA = 0.57721566490153286061


@rule(Weibull, Weibull)
def weibull(p: Weibull, q: Weibull) -> Tensor:
    """Bauckhage, Computing the Kullback-Leibler divergence between two Weibull distributions (2013)."""
    ratio = q.concentration / p.concentration
    power = q.concentration * (p.scale / q.scale).log()
    return (power + torch.lgamma(1 + ratio)).exp() - 1 - ratio.log() - power - _EULER_GAMMA * (1 - ratio)


@rule(VonMises, VonMises)
def von_mises(p: VonMises, q: VonMises) -> Tensor:
    """From the mean resultant length I1/I0; the Bessel functions are scaled by exp(-concentration) to stay finite."""
    p_norm, q_norm = torch.special.i0e(p.concentration), torch.special.i0e(q.concentration)
    length = torch.special.i1e(p.concentration) / p_norm
    turn = 2 * length * q.concentration * (0.5 * (p.loc - q.loc)).sin().square()
    return turn + (1 - length) * (q.concentration - p.concentration) + (q_norm / p_norm).log()


@rule(Wishart, Wishart)
def wishart(p: Wishart, q: Wishart) -> Tensor:
    """torch's generic rule sums the degrees of freedom over the batch, and keeps no gradient in p."""
    size = p.event_shape[-1]
    p_tril, q_tril = p._unbroadcasted_scale_tril, q._unbroadcasted_scale_tril
    logdet = 2 * (p_tril.diagonal(dim1=-2, dim2=-1) / q_tril.diagonal(dim1=-2, dim2=-1)).log().sum(-1)
    halves = torch.arange(size, dtype=p.df.dtype, device=p.df.device) / 2
    digamma = torch.digamma(p.df.unsqueeze(-1) / 2 - halves).sum(-1)
    gammas = torch.mvlgamma(q.df / 2, size) - torch.mvlgamma(p.df / 2, size)
    return 0.5 * (p.df * matrix_excess(p_tril, q_tril) + (p.df - q.df) * (logdet + digamma)) + gammas


def _stable(law: ContinuousBernoulli | TorchContinuousBernoulli) -> ContinuousBernoulli:
    return law if isinstance(law, ContinuousBernoulli) else ContinuousBernoulli(law.logits, validate_args=False)


@rule(ContinuousBernoulli, ContinuousBernoulli)
@rule(ContinuousBernoulli, TorchContinuousBernoulli)
@rule(TorchContinuousBernoulli, ContinuousBernoulli)
@rule(TorchContinuousBernoulli, TorchContinuousBernoulli)
def continuous_bernoulli(p: ContinuousBernoulli, q: ContinuousBernoulli) -> Tensor:
    ours, theirs = _stable(p), _stable(q)
    # Measured from the end where p has its mass: from 0, terms as large as the logits would cancel.
    anchor, rest = ours._anchored()
    distance = (ours.mean - anchor) * (ours.logits - theirs.logits)
    return distance - rest + (theirs.log_normaliser - anchor * theirs.logits)


@rule(ContinuousBernoulli, Normal)
@rule(TorchContinuousBernoulli, Normal)
def continuous_bernoulli_normal(p: ContinuousBernoulli, q: Normal) -> Tensor:
    p = _stable(p)
    square = (p.variance + (p.mean - q.loc).square()) / q.scale.square()
    return 0.5 * (square + math.log(2 * math.pi)) + q.scale.log() - p.entropy()


@rule(ContinuousBernoulli, Exponential)
def continuous_bernoulli_exponential(p: ContinuousBernoulli, q: Exponential) -> Tensor:
    return q.rate * p.mean - q.rate.log() - p.entropy()


@rule(ContinuousBernoulli, Uniform)
@rule(TorchContinuousBernoulli, Uniform)
def continuous_bernoulli_uniform(p: ContinuousBernoulli, q: Uniform) -> Tensor:
    """torch's is infinite even when [0, 1] lies within q."""
    covered = (q.low <= 0) & (q.high >= 1)
    return torch.where(covered, (q.high - q.low).log() - _stable(p).entropy(), torch.inf)


@rule(Uniform, ContinuousBernoulli)
@rule(Uniform, TorchContinuousBernoulli)
def uniform_continuous_bernoulli(p: Uniform, q: ContinuousBernoulli) -> Tensor:
    """torch's is infinite when p reaches an end of [0, 1]."""
    q = _stable(q)
    covered = (p.low >= 0) & (p.high <= 1)
    return torch.where(covered, q.log_normaliser - p.mean * q.logits - (p.high - p.low).log(), torch.inf)


@rule(Beta, ContinuousBernoulli)
def beta_continuous_bernoulli(p: Beta, q: ContinuousBernoulli) -> Tensor:
    return q.log_normaliser - p.mean * q.logits - p.entropy()


@rule(HalfNormal, HalfNormal)
def half_normal(p: HalfNormal, q: HalfNormal) -> Tensor:
    return normal_normal(p.base_dist, q.base_dist)


@rule(HalfCauchy, HalfCauchy)
def half_cauchy(p: HalfCauchy, q: HalfCauchy) -> Tensor | None:
    return from_torch(p.base_dist, q.base_dist)


@rule(Gumbel, Gumbel)
@rule(Pareto, Pareto)
@rule(Gumbel, Pareto)
def known_to_torch(p: TransformedDistribution, q: TransformedDistribution) -> Tensor | None:
    return from_torch(p, q)


@rule(TransformedDistribution, TransformedDistribution)
def transformed(p: TransformedDistribution, q: TransformedDistribution) -> Tensor | None:
    """A one-to-one map changes no divergence, so that of the bases is the answer when both have the same maps."""
    if len(p.transforms) != len(q.transforms):
        return None
    for ours, theirs in zip(p.transforms, q.transforms, strict=True):
        # Maps that are equal today, but learned apart, would lose their gradients.
        same = ours is theirs or (ours == theirs and not (_learned(ours) or _learned(theirs)))
        if not (same and ours.bijective):
            return None
    return closed_form(p.base_dist, q.base_dist)


def _learned(transform: Transform) -> bool:
    if isinstance(transform, ComposeTransform):
        return any(_learned(part) for part in transform.parts)
    if isinstance(transform, IndependentTransform):
        return _learned(transform.base_transform)
    return any(isinstance(value, Tensor) and value.requires_grad for value in vars(transform).values())
