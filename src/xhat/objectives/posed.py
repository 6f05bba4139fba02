"""The inference problem of one batch: everything that an objective, or a measure, asks of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.distributions import Distribution

from xhat.data import Batch
from xhat.distributions import relaxed_log_prob
from xhat.distributions.observed import observed_log_prob
from xhat.errors import ConfigError
from xhat.gradients import Gradient, Mean, Reduction, expectation
from xhat.gradients.base import Function


class Posed(NamedTuple):
    """A posterior q(z|x), a prior p(z), a likelihood p(x|z) and the target x, with all that is known of the batch bound in them.

    Attributes:
        q: the posterior, of batch shape ``(B,)``.
        p: the prior, of batch shape ``()``, or ``(B,)`` where it depends on the condition; None where there is none.
        likelihood: maps z, ``(*lead, B, *latent)``, to the law of x; condition and exposure are bound in it.
        target: the clean examples, and which of their values were observed.
        gradient: how a derivative gets through z.
        seen: what the encoder saw, ``(B, *event)``; the target, or a corruption of it.
    """

    q: Distribution
    p: Distribution | None
    likelihood: Callable[[Tensor], Distribution]
    target: Batch
    gradient: Gradient
    seen: Tensor

    @property
    def prior(self) -> Distribution:
        """The prior, which must be there.

        Raises:
            ConfigError: there is none.
        """
        if self.p is None:
            raise ConfigError("this needs a prior p(z), which an autoencoder does not have: train a VAE for that")
        return self.p

    def log_px(self, z: Tensor) -> Tensor:
        """log p(x|z) of what was observed, ``(*lead, B)``, nats."""
        return observed_log_prob(self.likelihood(z), self.target.x, self.target.observed)

    def log_ratio(self, z: Tensor) -> Tensor:
        """log q(z|x) − log p(z), ``(*lead, B)``, nats."""
        # q first: a flow knows the density of its last draw only
        log_q = relaxed_log_prob(self.q, z)
        return log_q - relaxed_log_prob(self.prior, z)

    def log_weight(self, z: Tensor, beta: Tensor | float = 1.0) -> Tensor:
        """log p(x|z) − β (log q(z|x) − log p(z)), ``(*lead, B)``, nats."""
        log_ratio = self.log_ratio(z)
        return self.log_px(z) - beta * log_ratio

    def error(self, z: Tensor) -> Tensor:
        """The squared error of the likelihood's mean, summed over what was observed, ``(*lead, B)``."""
        return squared_error(self.likelihood(z).mean, self.target.x, self.target.observed)

    def expectation(self, f: Function, samples: int, reduce: Reduction | None = None) -> Tensor:
        """E_q[f], ``(B,)``, with the gradient's own derivative."""
        self.gradient.see(self.seen)
        return expectation(f, self.q, self.gradient, samples, Mean() if reduce is None else reduce)


def squared_error(mean: Tensor, x: Tensor, observed: Tensor | None = None) -> Tensor:
    r"""The squared error :math:`\sum_j (x_j - \hat x_j)^2`, summed over what was observed, ``(*lead, B)``.

    Args:
        mean: x̂, ``(*lead, B, *event)``.
        x: the examples, ``(B, *event)``.
        observed: of x's shape, which of its values count; all of them unless given.
    """
    each = (mean - x).square()
    if observed is not None:
        each = each.where(observed, 0.0)
    return each.flatten(mean.ndim - x.ndim + 1).sum(-1)
