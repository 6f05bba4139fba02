r"""Laws of independent elements with finitely many values, seen as codes: bits, or one-hot vectors of K numbers.

A code is what an estimator draws, relaxes and scores; :meth:`value` turns it into what f takes. For Bernoulli elements a code
and its logits have the event's own shape; for categories they are ``(…, *elements, K)``.
"""

from __future__ import annotations

import abc
from typing import cast

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, OneHotCategorical
from torch.nn import functional as F

from xhat.distributions import Levels
from xhat.distributions.kl_discrete import categorical_log_probs
from xhat.distributions.support import split


class Components(abc.ABC):
    """A law's elements.

    Attributes:
        logits: what the estimators differentiate in, ``(*batch, *code)``.
        axes: the number of a code's axes.
    """

    logits: Tensor
    axes: int

    @abc.abstractmethod
    def noise(self, samples: int) -> Tensor:
        """What makes ``harden(logits + noise)`` a draw: logistic for bits, Gumbel for categories; ``(S, *batch, *code)``."""

    @abc.abstractmethod
    def harden(self, perturbed: Tensor) -> Tensor:
        """The code of perturbed logits."""

    @abc.abstractmethod
    def soften(self, perturbed: Tensor, temperature: Tensor | float) -> Tensor:
        """The relaxed code: sigmoid or softmax of perturbed logits over the temperature."""

    @abc.abstractmethod
    def given(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Perturbed logits drawn from their law given the code, and how each moves with its own logit at fixed noise."""

    @abc.abstractmethod
    def probs(self) -> Tensor:
        """The code's mean, with the graph of the law, ``(*batch, *code)``."""

    @abc.abstractmethod
    def score(self, code: Tensor) -> Tensor:
        """A tensor whose product with ``logits`` has the derivative of log q(code)."""

    @abc.abstractmethod
    def pull(self, slope: Tensor) -> Tensor:
        """The derivative of ``slope · probs()`` in ``logits``, without a graph."""

    @abc.abstractmethod
    def project(self, gradient: Tensor) -> Tensor:
        """A gradient in ``logits`` as one in unnormalised logits."""

    @abc.abstractmethod
    def value(self, code: Tensor) -> Tensor:
        """What f takes for a code, hard or relaxed."""

    def sample(self, samples: int) -> Tensor:
        """Codes drawn from the law, ``(S, *batch, *code)``."""
        with torch.no_grad():
            return self.harden(self.logits + self.noise(samples))


class Bits(Components):
    """Bernoulli elements; logits are the law's own."""

    def __init__(self, base: Bernoulli, axes: int) -> None:
        self.logits, self.axes = base.logits, axes

    def noise(self, samples: int) -> Tensor:
        u = torch.rand((samples, *self.logits.shape), dtype=self.logits.dtype, device=self.logits.device)
        return torch.logit(u, eps=torch.finfo(u.dtype).tiny)

    def harden(self, perturbed: Tensor) -> Tensor:
        return (perturbed > 0).to(perturbed.dtype)

    def soften(self, perturbed: Tensor, temperature: Tensor | float) -> Tensor:
        return (perturbed / temperature).sigmoid()

    def given(self, code: Tensor) -> tuple[Tensor, Tensor]:
        # With b = 1 the uniform number behind the noise lies in (1-p, 1): 1-p + pv. Then z = log(1 + v e^a) - log(1 - v); for
        # b = 0 the same with both signs turned.
        sign = 2 * code - 1
        v = torch.rand_like(code)
        inner = sign * self.logits.detach() + v.log()
        return sign * (F.softplus(inner) - torch.log1p(-v)), inner.sigmoid()

    def probs(self) -> Tensor:
        return self.logits.sigmoid()

    def score(self, code: Tensor) -> Tensor:
        return code - self.logits.detach().sigmoid()

    def pull(self, slope: Tensor) -> Tensor:
        p = self.logits.detach().sigmoid()
        return slope * p * (1 - p)

    def project(self, gradient: Tensor) -> Tensor:
        return gradient

    def value(self, code: Tensor) -> Tensor:
        return code


class Categories(Components):
    """Categorical elements as one-hot codes; logits are normalised. Bernoulli elements, too, may be seen as two categories."""

    def __init__(self, base: Distribution, axes: int) -> None:
        self.base = base
        if isinstance(base, Bernoulli):
            self.logits = torch.stack([F.logsigmoid(-base.logits), F.logsigmoid(base.logits)], -1)
        elif isinstance(base, Levels):
            self.logits = base.logits.log_softmax(-1)
        else:
            # A one-hot vector's law holds that of its number.
            self.logits = categorical_log_probs(
                base._categorical if isinstance(base, OneHotCategorical) else cast(Categorical, base)
            )
        self.axes = axes + 1

    @property
    def count(self) -> int:
        """K."""
        return self.logits.shape[-1]

    def noise(self, samples: int) -> Tensor:
        return (
            -torch.empty((samples, *self.logits.shape), dtype=self.logits.dtype, device=self.logits.device).exponential_().log()
        )

    def one_hot(self, index: Tensor) -> Tensor:
        """Codes of category numbers."""
        return F.one_hot(index, self.count).to(self.logits.dtype)

    def harden(self, perturbed: Tensor) -> Tensor:
        return self.one_hot(perturbed.argmax(-1))

    def soften(self, perturbed: Tensor, temperature: Tensor | float) -> Tensor:
        return (perturbed / temperature).softmax(-1)

    def given(self, code: Tensor) -> tuple[Tensor, Tensor]:
        # The largest of the perturbed logits is Gumbel(0), whichever it is; the others are Gumbels cut off at it.
        wait = torch.empty_like(code).exponential_()
        top = (code * wait).sum(-1, keepdim=True)
        scaled = wait * (-self.logits.detach()).exp()
        chosen = code > 0
        perturbed = torch.where(chosen, -top.log(), -(scaled + top).log())
        return perturbed, torch.where(chosen, 0.0, scaled / (scaled + top)).nan_to_num(nan=1.0)

    def probs(self) -> Tensor:
        return self.logits.exp()

    def score(self, code: Tensor) -> Tensor:
        return code

    def pull(self, slope: Tensor) -> Tensor:
        return slope * self.logits.detach().exp()

    def project(self, gradient: Tensor) -> Tensor:
        return gradient - self.logits.detach().exp() * gradient.sum(-1, keepdim=True)

    def value(self, code: Tensor) -> Tensor:
        if isinstance(self.base, OneHotCategorical):
            return code
        if isinstance(self.base, Bernoulli):
            return code[..., 1]
        if isinstance(self.base, Levels):
            return code @ self.base.values
        return code.argmax(-1)


def log_mass(q: Distribution, z: Tensor) -> Tensor:
    """``q.log_prob(z)``, also for bits that are certain, where torch multiplies an infinite logit by 0."""
    base, axes = split(q)
    if not isinstance(base, Bernoulli):
        return q.log_prob(z)
    each = torch.where(z > 0.5, F.logsigmoid(base.logits), F.logsigmoid(-base.logits))
    return each.sum(tuple(range(-axes, 0))) if axes else each


def components_of(q: Distribution) -> Components:
    """The elements of a law that has :data:`features` ``"components"``."""
    base, axes = split(q)
    return Bits(base, axes) if isinstance(base, Bernoulli) else Categories(base, axes)


def categories_of(q: Distribution) -> Categories:
    """The same with bits as two categories."""
    return Categories(*split(q))
