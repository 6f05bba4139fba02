"""The evidence of a model whose code takes few values: the sum over all of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from xhat.distributions import Chain
from xhat.distributions.observed import observed_log_prob
from xhat.gradients.components import categories_of
from xhat.gradients.enumeration import support_of
from xhat.gradients.features import offers
from xhat.objectives import Posed

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


def enumerated_log_px(posed: Posed, chunk: int) -> Tensor:
    r"""Exact log evidence, :math:`\log p(x) = \log \sum_z p(z)\, p(x|z)` over every z, ``(B,)`` in float64.

    The decoder runs once for each z, whatever the number of examples; under a condition, once for each z and example.

    Args:
        posed: the problem.
        chunk: values of z at once.
    """
    p, target = posed.prior, posed.target
    z = values_of(p)
    log_pz = p.log_prob(z).double()
    top = target.x.new_full((target.size,), -math.inf, dtype=torch.float64)
    alone = target.condition is None and target.exposure is None
    for some, log_some in zip(z.split(chunk), log_pz.split(chunk), strict=True):
        if alone:
            observed = None if target.observed is None else target.observed.unsqueeze(1)
            log_px = observed_log_prob(posed.likelihood(some), target.x.unsqueeze(1), observed).double()
            top = torch.logaddexp(top, (log_px + log_some).logsumexp(1))
            continue
        at = some if p.batch_shape else some.unsqueeze(1).expand(len(some), target.size, *some.shape[1:])
        log_joint = posed.log_px(at).double() + (log_some if p.batch_shape else log_some.unsqueeze(1))
        top = torch.logaddexp(top, log_joint.logsumexp(0))
    return top
