"""Log masses of finite laws between their points, for gradients that mix values."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, MixtureSameFamily, OneHotCategorical
from torch.nn import functional as F

from xhat.distributions.chain import Chain
from xhat.distributions.levels import Levels
from xhat.distributions.support import split


def relaxed_log_prob(law: Distribution, value: Tensor) -> Tensor:
    r"""``law.log_prob(value)``, carried on to values between those of the law, continuous in them and differentiable.

    A relaxation's derivative is that of what lies between the points: torch's one-hot law takes the largest element for the
    chosen one there, and a law of levels the nearest level; both have no derivative and jump. Here a Bernoulli bit b has
    :math:`b l - \mathrm{softplus}(l)`, a one-hot vector :math:`\sum_k z_k \log \pi_k`, a level the straight line between its
    neighbours; chains and mixtures are made of those. At the law's own points it is the law's; any other law's ``log_prob`` stays
    as it is.

    Shapes: as ``log_prob``, in nats.

    >>> law = OneHotCategorical(torch.tensor([0.25, 0.75]))
    >>> relaxed_log_prob(law, torch.tensor([[0.0, 1.0], [0.5, 0.5]])).exp()  # 0.75, and its geometric mean with 0.25
    tensor([0.7500, 0.4330])
    """
    if isinstance(law, Chain):
        first, second = law.split(value)
        return relaxed_log_prob(law.first, first) + relaxed_log_prob(law.then(first), second)
    base, axes = split(law)
    if isinstance(base, Bernoulli):
        logits, value = torch.broadcast_tensors(base.logits, value)
        each = -F.binary_cross_entropy_with_logits(logits, value, reduction="none")
    elif isinstance(base, OneHotCategorical):
        impossible = (base.logits.isneginf() & (value > 0)).any(-1)
        each = (value * base.logits.clamp(min=torch.finfo(base.logits.dtype).min)).sum(-1)
        each = torch.where(impossible, -torch.inf, each)
    elif isinstance(base, Levels):
        each = _between(base, value)
    elif isinstance(base, MixtureSameFamily):
        parts = relaxed_log_prob(base.component_distribution, base._pad(value))
        each = (parts + base.mixture_distribution.logits).logsumexp(-1)
    else:
        return law.log_prob(value)
    return each.flatten(each.ndim - axes).sum(-1) if axes else each


def _between(law: Levels, value: Tensor) -> Tensor:
    """The straight line between two levels' log masses; what is off a level by rounding alone counts as on it."""
    place = (value - law.low) / (law.high - law.low) * (law.count - 1)
    with torch.no_grad():
        lower = place.floor().clamp(0, law.count - 2)
        share = place - lower
        near = share.round()
        on = (share - near).abs() < 8 * law.count * torch.finfo(share.dtype).eps
    share = place - lower
    share = torch.where(on, near + (share - share.detach()), share)
    index = lower.long()
    # A level that is never drawn has no line to it: far down is far enough.
    ends = [law._choose(i).clamp(min=-1e4) for i in (index, index + 1)]
    return ends[0] + share * (ends[1] - ends[0]) - law.logits.logsumexp(-1)
