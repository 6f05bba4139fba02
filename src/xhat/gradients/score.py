"""The score-function gradient and its baselines."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from xhat.errors import ConfigError
from xhat.gradients.base import Function, Gradient, Pending, honest
from xhat.gradients.baselines import ContextBaseline, Lagged
from xhat.gradients.reduction import Reduction

BASELINES = ("none", "lagged", "leave-one-out")


class Score(Gradient):
    r"""Score-function gradient, also called REINFORCE: f need not be differentiable, q only needs a log-density.

    .. math:: \nabla_\phi E_q[f] = E_q[(f(z) - b)\, \nabla_\phi \log q_\phi(z)] + E_q[\nabla_\phi f]

    for any b that does not depend on z. The last term is there when f itself holds φ.

    Args:
        baseline: ``"none"``; ``"lagged"``, a running average of the values of *earlier* calls; ``"leave-one-out"``, for each
            sample the mean of the others (needs ``samples`` ≥ 2); or a network of the context, trained on the squared error
            through :meth:`auxiliary_loss`. A model shows it the context; elsewhere call ``see(context)`` first.
        decay: of the running average, in [0, 1).

    Raises:
        ConfigError: an unknown baseline, a decay outside [0, 1), or a network that was shown no context.

    Source: Williams (1992); the network: Mnih & Gregor (2014); leave-one-out: Kool, van Hoof & Welling (2019).

    >>> from xhat.gradients import Mean
    >>> logit = torch.zeros(3, requires_grad=True)
    >>> q = torch.distributions.Bernoulli(logits=logit)
    >>> value = Score("leave-one-out").estimate(lambda z: (z - 0.499) ** 2, q, 2, Mean())
    >>> torch.autograd.grad(value.sum(), logit)[0].shape
    torch.Size([3])
    """

    unbiased = True
    requires = frozenset({"log_prob"})
    reductions = frozenset({"mean", "log-mean-exp"})

    def __init__(self, baseline: str | nn.Module = "none", decay: float = 0.9) -> None:
        super().__init__()
        if not isinstance(baseline, nn.Module) and baseline not in BASELINES:
            raise ConfigError(f"baseline must be one of {', '.join(BASELINES)}, or a network of the context, was {baseline!r}")
        lagged = Lagged(decay)  # refuses a bad decay, whatever the baseline
        self.kind = "network" if isinstance(baseline, nn.Module) else baseline
        # Under the argument's name, so that a saved model finds the network again.
        self.baseline = baseline
        self.learned = ContextBaseline(baseline, decay) if isinstance(baseline, nn.Module) else None
        self.lagged = lagged if self.kind == "lagged" else None
        self._context: Tensor | None = None
        self._loss = Pending()

    @property
    def fewest_samples(self) -> int:
        return 2 if self.kind == "leave-one-out" else 1

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        return samples

    def see(self, context: Tensor) -> None:
        if self.learned is not None:
            self._context = context.detach()

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        # Read before f, which may itself call this estimator (a deeper layer), at points that depend on z.
        before, context = self._before(), self._context
        z = q.sample((samples,))
        values = f(z)
        with torch.no_grad():
            signal = reduce.leave_one_out(values) if self.kind == "leave-one-out" else reduce.signal(values, before)
        if self.lagged is not None:
            self.lagged.join(values)
        if self.learned is not None and context is not None and self.training:
            self._loss.value = self.learned.loss(context, values if reduce.form is None else reduce(values))
            self.learned.join(values)
        return honest(reduce(values), (signal * q.log_prob(z)).sum(0))

    def _before(self) -> Tensor | float:
        """What no draw of this call has touched; 0 where no baseline is kept."""
        if self.lagged is not None:
            return self.lagged()
        if self.learned is None:
            return 0.0
        if self._context is None:
            raise ConfigError("the baseline is a network of the context and was shown none: call gradient.see(context) first")
        return self.learned(self._context)

    def auxiliary_loss(self) -> Tensor | None:
        return self._loss.take()


class LeaveOneOut(Gradient):
    r"""Score-function gradient in which each sample's baseline is made of the others.

    .. math:: \nabla_\phi E_q[f] \approx \sum_i (R(f_1 .. f_S) - R(f_{-i})) \nabla_\phi \log q(z_i)

    With R the mean and :math:`f_i` replaced by the mean of the others this is RLOO.

    Source: Kool, van Hoof & Welling (2019); Salimans & Knowles (2014).

    >>> import xhat
    >>> logits = torch.zeros(4, requires_grad=True)
    >>> xhat.expectation(lambda z: z, torch.distributions.Bernoulli(logits=logits), "rloo", samples=2).shape
    torch.Size([4])
    """

    unbiased = True
    requires = frozenset({"log_prob"})
    reductions = frozenset({"mean", "log-mean-exp"})

    @property
    def fewest_samples(self) -> int:
        return 2

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        return samples

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        return leave_one_out(f, q, samples, reduce)


class VIMCO(Gradient):
    r"""The leave-one-out gradient of a multi-sample bound, :math:`\log \frac{1}{S} \sum_i w_i`.

    A sample's baseline is the bound with its weight replaced by the geometric mean of the others; of several groups, the others
    of its own group. The bound's direct derivative, whose mean is not zero for S > 1, is kept.

    Source: Mnih & Rezende (2016).

    >>> import xhat
    >>> logits = torch.zeros(4, requires_grad=True)
    >>> q = torch.distributions.Bernoulli(logits=logits)
    >>> xhat.bound(lambda z: -z, q, objective="iwae", gradient="vimco", samples=5).shape
    torch.Size([4])
    """

    unbiased = True
    requires = frozenset({"log_prob"})
    reductions = frozenset({"log-mean-exp"})

    @property
    def fewest_samples(self) -> int:
        return 2

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        return samples

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        return leave_one_out(f, q, samples, reduce)


def leave_one_out(f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
    """The estimate that :class:`LeaveOneOut` and :class:`VIMCO` share."""
    z = q.sample((samples,))
    values = f(z)
    with torch.no_grad():
        signal = reduce.leave_one_out(values)
    return honest(reduce(values), (signal * q.log_prob(z)).sum(0))
