"""Importance sampling of log p(x), with draws from the posterior."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Normal
from torch.nn import functional as F

from xhat.data import Batch
from xhat.distributions.observed import observed_log_prob
from xhat.distributions.standard_normal import StandardNormal
from xhat.distributions.support import split
from xhat.models.base import Model


class Importance:
    r"""Weights :math:`w = p(x|z)\, p(z) / q(z|x)` of draws from q(z|x)."""

    def begin(self, model: Model, batch: Batch, chunk: int) -> Callable[[int], Tensor]:
        """What makes so many log weights of each example, ``(count, B)``; the encoder runs once.

        No more than ``chunk`` are asked for at once, which is all the same here.
        """
        posed = model.pose(batch)
        draws, log_px = _draws(posed.q, posed.prior), log_prob_at(batch.x, batch.observed)

        def weights(count: int) -> Tensor:
            z, log_ratio = draws(count)
            return log_px(posed.likelihood(z)) + log_ratio

        return weights


def _draws(q: Distribution, p: Distribution) -> Callable[[int], tuple[Tensor, Tensor]]:
    r"""What makes so many draws of q, ``(count, *shape)``, each with :math:`\log p(z) - \log q(z)`.

    Of axis-aligned Normals, :math:`z = \mu + \sigma n` and :math:`p = N(m, s^2)`, the logarithm is a quadratic of the noise,

    .. math:: \sum_j \tfrac12 n_j^2 \bigl(1 - \tfrac{\sigma_j^2}{s_j^2}\bigr) - n_j \tfrac{\sigma_j (\mu_j - m_j)}{s_j^2}
              - \tfrac12 \tfrac{(\mu_j - m_j)^2}{s_j^2} + \log \tfrac{\sigma_j}{s_j} ,

    whose coefficients are had once for all draws.
    """
    (base, axes), (prior, prior_axes) = split(q), split(p)
    if not (type(base) is Normal and (type(prior) is Normal or type(prior) is StandardNormal) and axes == prior_axes > 0):

        def general(count: int) -> tuple[Tensor, Tensor]:
            z = q.sample((count,))
            return z, p.log_prob(z) - q.log_prob(z)

        return general
    narrower, off = base.scale / prior.scale, (base.loc - prior.loc) / prior.scale
    curve, slope = (1 - narrower.square()) / 2, -narrower * off
    constant = (narrower.log() - off.square() / 2).flatten(-axes).sum(-1)

    def normal(count: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(count, *base.loc.shape, dtype=base.loc.dtype, device=base.loc.device)
        quadratic = torch.addcmul(slope, curve, noise) * noise
        return torch.addcmul(base.loc, base.scale, noise), quadratic.flatten(-axes).sum(-1) + constant

    return normal


def log_prob_at(x: Tensor, observed: Tensor | None = None) -> Callable[[Distribution], Tensor]:
    r"""``law.log_prob(x)`` as a function of the law, for very many laws at the same x: without a derivative, and quicker.

    Where not all of x was observed, the log density of what was (:func:`~xhat.distributions.observed.observed_log_prob`).

    Of Bernoulli elements it is one pass instead of six, :math:`-\sum_j \mathrm{softplus}((1 - 2 x_j)\, l_j)` with logits l, which
    for x in {0, 1} is the same number; each term is rounded by itself, so large logits cancel nothing. Any other law, and
    values between 0 and 1, go to the law's own formula.

    >>> from torch.distributions import Independent
    >>> law = Independent(Bernoulli(logits=torch.tensor([[0.0, 3.0], [1.0, -2.0]])), 1)
    >>> x = torch.tensor([1.0, 0.0])
    >>> torch.allclose(log_prob_at(x)(law), law.log_prob(x))
    True
    """
    binary = bool(((x == 0) | (x == 1)).all())
    signs = 1 - 2 * x

    def log_prob(law: Distribution) -> Tensor:
        base, axes = split(law)
        if not (binary and axes and type(base) is Bernoulli and "logits" in vars(base)):
            return observed_log_prob(law, x, observed)
        with torch.no_grad():
            turned = base.logits * signs  # new memory, which may be written over
            each = F.softplus(turned)
            if observed is not None:
                each = each.where(observed, 0.0)
            return each.flatten(-axes).sum(-1).neg_()

    return log_prob
