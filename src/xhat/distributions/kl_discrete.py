r"""Closed forms for discrete laws, exact where a probability is 0, or far below torch's clamp at its machine epsilon.

All of them are sums of :math:`q - p + p\ln(p/q) \ge 0`, which add up to the divergence because p and q have equal sums.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Distribution,
    Geometric,
    Multinomial,
    NegativeBinomial,
    OneHotCategorical,
    Poisson,
)
from torch.nn.functional import logsigmoid

from xhat.distributions.delta import Delta
from xhat.distributions.kl_table import rule
from xhat.distributions.levels import Levels
from xhat.distributions.support import extended_log_prob, is_discrete

_NEAR = 0.25
_SERIES = (1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040, 1 / 40320, 1 / 362880, 1 / 3628800, 1 / 39916800)


def terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    r""":math:`q - p + p\ln(p/q)` from logarithms: q where p = 0, inf where q = 0 < p."""
    log_p, log_q = torch.broadcast_tensors(log_p, log_q)
    p, q = log_p.exp(), log_q.exp()
    both = log_p.isfinite() & log_q.isfinite()
    gap = torch.where(both, log_q, 0.0) - torch.where(both, log_p, 0.0)
    near = gap.abs() < _NEAR
    close = torch.where(near, gap, 0.0)
    tail = torch.full_like(close, _SERIES[-1])
    for coefficient in reversed(_SERIES[:-1]):
        tail = tail * close + coefficient
    finite = torch.where(near, p * close * close * tail, q - p - p * gap)
    return torch.where(both, finite, torch.where(log_p == -torch.inf, q, torch.inf))


def _log(probs: Tensor) -> Tensor:
    """The logarithm, with a gradient of 0 and not NaN where the probability is 0."""
    zero = probs <= 0
    return probs.masked_fill(zero, 1.0).log().masked_fill(zero, -torch.inf)


def _from_logits(law: Distribution) -> bool:
    """Whether the law was made from logits. torch derives the other parameter with a clamp, so it matters which."""
    if isinstance(law, Geometric):  # keeps no note of it, but fills in the other parameter only when asked
        return "probs" not in vars(law)
    return getattr(law, "_param", None) is vars(law).get("logits")


def categorical_log_probs(law: Categorical) -> Tensor:
    return law.logits if _from_logits(law) else _log(law.probs)


def binary_log_probs(law: Bernoulli | Geometric | NegativeBinomial | Binomial) -> tuple[Tensor, Tensor]:
    """log P(failure), log P(success)."""
    if _from_logits(law):
        return logsigmoid(-law.logits), logsigmoid(law.logits)
    one = law.probs >= 1
    failure = torch.log1p(-law.probs.masked_fill(one, 0.0)).masked_fill(one, -torch.inf)
    return failure, _log(law.probs)


def _binary(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> Tensor:
    return terms(p[0], q[0]) + terms(p[1], q[1])


@rule(Bernoulli, Bernoulli)
def bernoulli(p: Bernoulli, q: Bernoulli) -> Tensor:
    return _binary(binary_log_probs(p), binary_log_probs(q))


@rule(Categorical, Categorical)
def categorical(p: Categorical, q: Categorical) -> Tensor | None:
    log_p, log_q = categorical_log_probs(p), categorical_log_probs(q)
    if log_p.shape[-1] != log_q.shape[-1]:
        return None
    return terms(log_p, log_q).sum(-1)


@rule(OneHotCategorical, OneHotCategorical)
def one_hot(p: OneHotCategorical, q: OneHotCategorical) -> Tensor | None:
    return categorical(p._categorical, q._categorical)


@rule(Levels, Levels)
def levels(p: Levels, q: Levels) -> Tensor | None:
    if (p.low, p.high, p.count) != (q.low, q.high, q.count):
        return None
    return terms(p.logits.log_softmax(-1), q.logits.log_softmax(-1)).sum(-1)


@rule(Multinomial, Multinomial)
def multinomial(p: Multinomial, q: Multinomial) -> Tensor | None:
    one = categorical(p._categorical, q._categorical)
    if one is None or p.total_count == q.total_count:
        return None if one is None else p.total_count * one
    return torch.full_like(one, torch.inf)  # counts with different totals share no value


@rule(Binomial, Binomial)
def binomial(p: Binomial, q: Binomial) -> Tensor | None:
    if bool((p.total_count < q.total_count).any()):
        return None
    p_log, q_log = binary_log_probs(p), binary_log_probs(q)
    equal = p.total_count * _binary(p_log, q_log)
    # A count that q cannot reach has a positive probability under p, unless p never leaves 0.
    at_zero = -q.total_count * q_log[0]
    more = torch.where(p_log[1] == -torch.inf, at_zero, torch.inf)
    return torch.where(p.total_count == q.total_count, equal, more)


@rule(Geometric, Geometric)
def geometric(p: Geometric, q: Geometric) -> Tensor:
    p_log, q_log = binary_log_probs(p), binary_log_probs(q)
    return _binary(p_log, q_log) * (-p_log[1]).exp()  # so many trials are expected, each worth one Bernoulli


@rule(NegativeBinomial, NegativeBinomial)
def negative_binomial(p: NegativeBinomial, q: NegativeBinomial) -> Tensor | None:
    # A count that is being learned would need the gradient of a sum without closed form.
    learned = p.total_count.requires_grad or q.total_count.requires_grad
    if learned or not bool((p.total_count == q.total_count).all()):
        return None
    p_log, q_log = binary_log_probs(p), binary_log_probs(q)
    return p.total_count * _binary(p_log, q_log) * (-p_log[0]).exp()


@rule(Poisson, Poisson)
def poisson(p: Poisson, q: Poisson) -> Tensor:
    return terms(_log(p.rate), _log(q.rate))


@rule(Delta, Bernoulli)
def delta_bernoulli(p: Delta, q: Bernoulli) -> Tensor:
    failure, success = binary_log_probs(q)
    return torch.where(p.value == 0, -failure, torch.where(p.value == 1, -success, torch.inf))


@rule(Delta, Categorical)
def delta_categorical(p: Delta, q: Categorical) -> Tensor:
    categories = torch.arange(q.probs.shape[-1], device=p.value.device)
    chosen = p.value.unsqueeze(-1) == categories
    return torch.where(chosen, -categorical_log_probs(q), torch.inf).amin(-1)


@rule(Delta, OneHotCategorical)
def delta_one_hot(p: Delta, q: OneHotCategorical) -> Tensor:
    inside = ((p.value == 0) | (p.value == 1)).all(-1) & (p.value.sum(-1) == 1)
    chosen = torch.where(p.value == 1, -categorical_log_probs(q._categorical), torch.inf).amin(-1)
    return torch.where(inside, chosen, torch.inf)


@rule(Delta, Distribution)
def delta_discrete(p: Delta, q: Distribution) -> Tensor | None:
    return -extended_log_prob(q, p.value) if is_discrete(q) else None
