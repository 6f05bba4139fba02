"""The aggregate posterior q(z) of a data set, estimated at a batch's draws from the posteriors of that batch."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical

from xhat.distributions import relaxed_log_prob
from xhat.distributions.support import split
from xhat.errors import ConfigError
from xhat.gradients import GRADIENTS, Gradient
from xhat.gradients.base import Path

ESTIMATES = ("stratified", "weighted")
ELEMENTS = 2**24  # numbers at once of all pairs of a batch, where no gradient has to keep them


class Shares(NamedTuple):
    """Logarithms of the weights with which the posteriors of a batch enter q(z) at a draw of one of them."""

    own: Tensor
    other: Tensor


class Aggregate(NamedTuple):
    r"""The estimates :math:`\log \hat q(z)` and :math:`\sum_j \log \hat q(z_j)` at each draw, ``(S, B)``, in nats."""

    joint: Tensor
    product: Tensor


def shares(estimate: str, size: Tensor, batch: int, like: Tensor) -> Shares:
    r"""The weights of a batch of B examples of N: the one that z was drawn for, and others of the rest, all equally likely.

    .. math:: \hat q(z) = \frac1N q(z|x_i) + \frac{N-1}{N(B-1)} \sum_{k \ne i} q(z|x_k)
              \qquad\text{or}\qquad \hat q(z) = \frac1{NB} \sum_k q(z|x_k)

    The first, stratified, is unbiased: x_i is one of N, and each of the other N − 1 is in the batch with the same probability.
    The paper lets one of the others make up the total, with the weight (N − B + 1)/(N(B − 1)), and gives the rest 1/(B − 1); the
    order of a batch means nothing, and the average of those weights over it is this one: as unbiased, never of a larger variance,
    and exact where the batch is the whole data set. The second, weighted, is too small on average, by a factor of B in its own
    term and of B(N − 1)/(B − 1) in the others: it is q(z)/N where the batch is the whole data set.

    Args:
        estimate: ``"stratified"`` or ``"weighted"``.
        size: N, 0 where it is not known, which gives NaN. A batch of more than N examples is taken for the whole data set.
        batch: B. Alone in its batch, an example stands for all in the stratified estimate: there is nothing to tell of others.
        like: for the dtype and the device.
    """
    whole = torch.where(size > 0, size.clamp(min=batch).to(like.dtype), torch.nan).log()
    if estimate == "weighted":
        each = -whole - math.log(batch)
        return Shares(each, each)
    if batch == 1:
        return Shares(torch.zeros_like(whole) * whole, whole)
    # log(1 − 1/N), which is as exact for a large N as for a small one
    rest = torch.log1p(-(-whole).exp())
    return Shares(-whole, rest - math.log(batch - 1))


def aggregate(q: Distribution, z: Tensor, weights: Shares) -> Aggregate:
    """Estimate log q(z), and the same of each dimension apart, at the draws of a batch.

    Args:
        q: the batch's posteriors, ``(B,)``, with independent dimensions; see :func:`independent`.
        z: draws of them, ``(S, B, *event)``.
        weights: what :func:`shares` gives.
    """
    base, _ = split(q)
    samples, batch = z.shape[:2]
    own = torch.eye(batch, dtype=torch.bool, device=z.device)
    table = torch.where(own, weights.own, weights.other).repeat(samples, 1)  # a row for each draw
    rows = max(1, ELEMENTS // (batch * max(1, q.event_shape.numel())))
    found = []
    for points, row in zip(z.flatten(0, 1).split(rows), table.split(rows), strict=True):
        # Every draw under every posterior: (rows, B, dimensions)
        each = relaxed_log_prob(base, points.unsqueeze(1)).reshape(len(points), batch, -1)
        joint = (each.sum(-1) + row).logsumexp(1)
        product = (each + row.unsqueeze(-1)).logsumexp(1).sum(-1)
        found.append(torch.stack([joint, product]))
    joint, product = torch.cat(found, 1).unflatten(1, (samples, batch))
    return Aggregate(joint, product)


def independent(law: Distribution) -> bool:
    """Whether the dimensions of a law's draws are independent; a one-hot vector is one dimension."""
    base, _ = split(law)
    return not base.event_shape or isinstance(base, OneHotCategorical)


def need_path(objective: str, gradient: Gradient) -> None:
    """Refuse an estimator that weighs each example by its own f, for an objective that couples the examples of a batch.

    Raises:
        ConfigError: names the estimators that only follow the draw's own path.
    """
    if isinstance(gradient, Path):
        return
    fitting = ", ".join(name for name, cls in GRADIENTS.items() if issubclass(cls, Path))
    raise ConfigError(
        f"{objective} couples the examples of a batch, so that the loss of one depends on the draws of the others and the "
        f"gradient of {type(gradient).__name__} is wrong: use one that follows the draws themselves ({fitting})"
    )
