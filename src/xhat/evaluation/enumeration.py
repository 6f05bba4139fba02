"""The evidence of a model whose code takes few values: the sum over all of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from xhat.distributions import Chain
from xhat.gradients.components import categories_of
from xhat.gradients.enumeration import support_of
from xhat.gradients.features import offers
from xhat.models.base import Model

LIMIT = 2**16


def count_of(law: Distribution) -> int | None:
    """How many values a law of no batch takes; None where they are not finitely many independent elements, layer by layer."""
    if isinstance(law, Chain):
        counts = [count_of(law.first), count_of(law.pattern)]
        return None if None in counts else math.prod(count for count in counts if count is not None)
    if not offers(law, "components"):
        return None
    categories = categories_of(law)
    elements: int = categories.logits.shape[len(law.batch_shape) : -1].numel()
    return int(categories.count**elements)


def values_of(law: Distribution) -> Tensor:
    """Every value of such a law, ``(N, *batch, *event)``; of several layers, each with each."""
    if not isinstance(law, Chain):
        return support_of(law)
    above = values_of(law.first)
    return law.join(above, values_of(law.then(above))).flatten(0, 1)


def enumerated_log_px(model: Model, x: Tensor, elements: int) -> Tensor:
    r"""Exact log evidence, :math:`\log p(x) = \log \sum_z p(z)\, p(x|z)` over every z, ``(B,)`` in float64.

    The decoder runs once for each z, whatever the number of examples.
    """
    p = model.prior()
    z = values_of(p)
    log_pz = p.log_prob(z).double()
    chunk = max(1, elements // (len(x) * model.numbers))
    top = x.new_full((len(x),), -math.inf, dtype=torch.float64)
    for some, log_some in zip(z.split(chunk), log_pz.split(chunk), strict=True):
        log_px = model.likelihood(some).log_prob(x.unsqueeze(1)).double()
        top = torch.logaddexp(top, (log_px + log_some).logsumexp(1))
    return top
