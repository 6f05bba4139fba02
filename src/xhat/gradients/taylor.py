"""Score-function gradients whose control variate is a Taylor expansion of f."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from xhat.gradients.base import Function, Gradient, Pending, finite, honest, lift, slope, total
from xhat.gradients.components import components_of
from xhat.gradients.reduction import Reduction


class MuProp(Gradient):
    r"""Score-function gradient of what a first-order expansion at the mean leaves, plus the expansion's own gradient.

    .. math:: g = [f(b) - f(p) - f'(p)^\top (b - p)]\, \nabla \log q(b) + f'(p)^\top \nabla p

    f must be differentiable and make sense at the mean p.

    Source: Gu, Levine, Sutskever & Mnih (2016).

    >>> import xhat
    >>> logits = torch.zeros(4, requires_grad=True)
    >>> xhat.expectation(lambda z: z**2, torch.distributions.Bernoulli(logits=logits), "muprop").shape
    torch.Size([4])
    """

    unbiased = True
    requires = frozenset({"relaxable", "differentiable f"})

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        return samples + 1

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        law = components_of(q)
        code = law.sample(samples)
        values = f(law.value(code))
        mean = law.probs()
        at, rise = slope(lambda c: f(law.value(c)), mean.unsqueeze(0))
        with torch.no_grad():
            left = values - at - total(rise * (code - mean), law.axes)
            coefficient = (lift(left, law.axes) * law.score(code)).mean(0)
        return honest(reduce(values), total(coefficient * finite(law.logits) + rise[0] * mean, law.axes))


class DoubleCV(Gradient):
    r"""Leave-one-out with a second control variate from f's derivative at the other draws, at no further values of f.

    .. math:: g = \frac1S \sum_k \Big[f(b_k) - \alpha h_k - \frac{1}{S-1} \sum_{j \ne k} (f(b_j) - \alpha h_j)\Big]
              \nabla \log q(b_k) + \alpha \bar v^\top \nabla p, \qquad h_k = v_k^\top (b_k - p)

    where :math:`v_k` is the mean of :math:`\nabla f(b_j)` over the draws other than k and :math:`\bar v` that over all. No
    :math:`h_j` has another mean than zero given the other draws, so none needs a correction but the draw's own. Between two draws
    the noise of the two derivatives cancels to second order: for a quadratic f and α = 1 what is left of f is its curvature. α is
    learned on the variance, from 0, where this is leave-one-out.

    Source: Titsias & Shi (2022).

    >>> import xhat
    >>> logits = torch.zeros(4, requires_grad=True)
    >>> xhat.expectation(lambda z: z**2, torch.distributions.Bernoulli(logits=logits), "double-cv", samples=2).shape
    torch.Size([4])
    """

    unbiased = True
    requires = frozenset({"relaxable", "differentiable f"})

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(()))
        self._loss = Pending()

    @property
    def fewest_samples(self) -> int:
        return 2

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        return samples

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        law = components_of(q)
        code = law.sample(samples)
        values, rise = slope(lambda c: f(law.value(c)), code, keep=True)
        mean = law.probs()
        with torch.no_grad():
            others = (rise.sum(0) - rise) / (samples - 1)
            along = total(others * (code - mean), law.axes)
            leave, correction = (x - (x.sum(0) - x) / (samples - 1) for x in (values, along))
            score = law.score(code)
            plain = (lift(leave, law.axes) * score).mean(0)
            removed = (lift(correction, law.axes) * score).mean(0)
        # The mean of the second control variate.
        through = total(others.mean(0) * mean, law.axes)
        alpha = self.alpha.detach()
        if self.training and law.logits.requires_grad:
            known = law.pull(others.mean(0))
            gap = plain - self.alpha * (removed - known)
            self._loss.value = total(law.project(gap).square(), law.axes).mean()
        surrogate = total((plain - alpha * removed) * finite(law.logits), law.axes) + alpha * through
        return honest(values.mean(0), surrogate)

    def auxiliary_loss(self) -> Tensor | None:
        return self._loss.take()
