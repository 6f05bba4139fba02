"""The score-function gradient and its baselines."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from xhat.errors import ConfigError
from xhat.gradients.base import Function, Gradient, honest
from xhat.gradients.reduction import Reduction

BASELINES = ("none", "lagged", "leave-one-out")


class Score(Gradient):
    r"""Score-function gradient, also called REINFORCE: f need not be differentiable, q only needs a log-density.

    .. math:: \nabla_\phi E_q[f] = E_q[(f(z) - b)\, \nabla_\phi \log q_\phi(z)] + E_q[\nabla_\phi f]

    for any b that does not depend on z. The last term is there when f itself holds φ.

    Args:
        baseline: ``"none"``; ``"lagged"``, a running average of the values of *earlier* calls; ``"leave-one-out"``, for each
            sample the mean of the others (needs ``samples`` ≥ 2).
        decay: of the running average, in [0, 1).

    Raises:
        ConfigError: an unknown baseline or a decay outside [0, 1).

    Source: Williams (1992); leave-one-out: Kool, van Hoof & Welling (2019).

    >>> from xhat.gradients import Mean
    >>> logit = torch.zeros(3, requires_grad=True)
    >>> q = torch.distributions.Bernoulli(logits=logit)
    >>> value = Score("leave-one-out").estimate(lambda z: (z - 0.499) ** 2, q, 2, Mean())
    >>> torch.autograd.grad(value.sum(), logit)[0].shape
    torch.Size([3])
    """

    unbiased = True
    requires = frozenset({"log_prob"})
    average: Tensor
    seen: Tensor

    def __init__(self, baseline: str = "none", decay: float = 0.9) -> None:
        super().__init__()
        if baseline not in BASELINES:
            raise ConfigError(f"baseline must be one of {', '.join(BASELINES)}, was {baseline!r}")
        if not 0 <= decay < 1:
            raise ConfigError(f"decay must be in [0, 1), was {decay}")
        self.baseline, self.decay = baseline, decay
        if baseline == "lagged":
            self.register_buffer("average", torch.zeros(()))
            self.register_buffer("seen", torch.zeros(()))

    @property
    def fewest_samples(self) -> int:
        return 2 if self.baseline == "leave-one-out" else 1

    def evaluations(self, samples: int) -> int:
        return samples

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        # Read before f, which may itself call this estimator (a deeper layer), at points that depend on z.
        before = self._before()
        z = q.sample((samples,))
        values = f(z)
        with torch.no_grad():
            if self.baseline == "leave-one-out":
                signal = reduce.leave_one_out(values)
            else:
                signal = reduce.signal(values, before)
            if self.baseline == "lagged":
                self._join(values)
        return honest(reduce(values), (signal * q.log_prob(z)).sum(0))

    def _before(self) -> Tensor | float:
        """The average of what came before; 0 where none is kept."""
        if self.baseline != "lagged":
            return 0.0
        # Dividing by 1 − decay^n makes it a weighted mean from the first value on.
        return self.average / (1 - self.decay**self.seen).clamp(min=1e-12)

    def _join(self, values: Tensor) -> None:
        """Let these values count for the calls to come."""
        if self.training:
            self.average.mul_(self.decay).add_((1 - self.decay) * values.mean().to(self.average.dtype))
            self.seen.add_(1)
