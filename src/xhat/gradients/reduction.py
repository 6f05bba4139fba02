"""How the values of several samples become one number, and what each sample's signal is then."""

from __future__ import annotations

import abc
import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from xhat.errors import ConfigError, whole_number
from xhat.parts import Part


class Form(NamedTuple):
    r"""A multi-sample reduction by three numbers: the average over ``groups`` of :math:`\beta\,\text{mean} + (1-\beta) R_\alpha`.

    :math:`R_\alpha` is Rényi's (:class:`Renyi`): the log-mean-exp for α = 0.
    """

    beta: float = 0.0
    alpha: float = 0.0
    groups: int = 1


def doubled(share: Tensor, form: Form) -> Tensor:
    r"""What the path of each sample is multiplied with once more, when log q's own derivative is reparameterised away.

    .. math:: \frac1{c_i} \Big( c_i - \frac{\partial^2 R}{\partial f_i^2} \Big),
              \qquad c_i = \frac{\partial R}{\partial f_i} = \frac1M \Big( \frac{\beta}{K} + (1 - \beta) s_i \Big),

    with s the weights :math:`w^{1-\alpha}` normalised in a group; the numerator is
    :math:`\frac1M \big(\frac{\beta}{K} + (1-\beta)(\alpha s_i + (1-\alpha) s_i^2)\big)`.

    Args:
        share: c, ``(S, *batch)``.
        form: of the reduction.
    """
    beta, alpha, groups = form
    if beta == 1:
        return torch.ones_like(share)
    floor = beta * groups / share.shape[0]
    own = (groups * share - floor) / (1 - beta)
    if beta == 0:
        return alpha + (1 - alpha) * own
    own = own.clamp(0.0, 1.0)  # which the difference of two roundings can leave
    return (floor + (1 - beta) * own * (alpha + (1 - alpha) * own)) / (floor + (1 - beta) * own)


class Reduction(Part, abc.ABC):
    """From ``(S, *batch)`` to ``(*batch)``: a mean, or what makes a multi-sample bound of log weights.

    Attributes:
        name: its own.
        family: what a gradient must serve, of ``Gradient.reductions``: ``"mean"``, or ``"log-mean-exp"`` for all those whose
            samples meet each other in a log-mean-exp.
        form: of a multi-sample bound, for its path derivatives; None for what is linear in the values.
    """

    name: ClassVar[str]
    family: ClassVar[str] = "log-mean-exp"
    form: Form | None = Form()

    @abc.abstractmethod
    def __call__(self, values: Tensor) -> Tensor:
        """The reduced value, ``(*batch)``."""

    @abc.abstractmethod
    def signal(self, values: Tensor, baseline: Tensor | float) -> Tensor:
        """What multiplies each sample's score, ``(S, *batch)``, given a baseline that does not depend on that sample."""

    @abc.abstractmethod
    def leave_one_out(self, values: Tensor) -> Tensor:
        """The signal whose baseline is, for each sample, made of the others; needs S ≥ 2."""

    def doubly(self, values: Tensor) -> Tensor | float:
        """What the path's derivative is multiplied with once more, when log q's own derivative is reparameterised away."""
        if self.form is None:
            return 1.0
        share: Tensor = torch.func.grad(lambda v: self(v).sum())(values)
        return doubled(share, self.form)


class Mean(Reduction):
    r"""The arithmetic mean, :math:`\frac{1}{S}\sum_i f_i`.

    A sample's score meets its own value only: the other samples' values would add noise and no signal.
    """

    name = "mean"
    family = "mean"
    form = None

    def __call__(self, values: Tensor) -> Tensor:
        return values.squeeze(0) if len(values) == 1 else values.mean(0)

    def signal(self, values: Tensor, baseline: Tensor | float) -> Tensor:
        return (values - baseline) / values.shape[0]

    def leave_one_out(self, values: Tensor) -> Tensor:
        count = values.shape[0]
        others = (values.sum(0, keepdim=True) - values) / (count - 1)
        return self.signal(values, others)


class LogMeanExp(Reduction):
    r"""The logarithm of a mean of exponentials, :math:`\log \frac{1}{S} \sum_i e^{f_i}`: with log weights, the IWAE bound.

    Source: Burda, Grosse & Salakhutdinov (2016); the leave-one-out signal, whose baseline puts the geometric mean of the other
    weights in a sample's place: Mnih & Rezende (2016).

    >>> LogMeanExp()(torch.tensor([0.0, 0.0, 0.0]))
    tensor(0.)
    """

    name = "log-mean-exp"

    def __call__(self, values: Tensor) -> Tensor:
        return values.logsumexp(0) - math.log(values.shape[0])

    def signal(self, values: Tensor, baseline: Tensor | float) -> Tensor:
        # The bound is no sum over samples: every score meets the whole of it.
        return (self(values) - baseline).expand_as(values)

    def leave_one_out(self, values: Tensor) -> Tensor:
        return _without_own(self, values)


def _without_own(bound: Reduction, values: Tensor) -> Tensor:
    """What each sample's value adds to the bound, beside the mean of the others' values in its place; ``(S, *batch)``."""
    count = values.shape[0]
    own = torch.eye(count, dtype=torch.bool, device=values.device).reshape(count, count, *(1,) * (values.ndim - 1))
    each = values.unsqueeze(1).expand(count, *values.shape)
    others = torch.where(own, 0.0, each).sum(0) / (count - 1)  # no difference: of a value -inf it would be no number
    baseline = bound(torch.where(own, others, each))
    return bound(values) - torch.where(baseline > -math.inf, baseline, 0.0)  # 0 where all the others are impossible


_MEAN, _LOG_MEAN_EXP = Mean(), LogMeanExp()
LARGEST_ORDER = 1e6


class Renyi(Reduction):
    r"""Rényi's mean, the logarithm of a power mean of weights: with log weights f, the variational Rényi bound.

    .. math:: R_\alpha = \frac{1}{1-\alpha} \log \frac1S \sum_i e^{(1-\alpha) f_i}

    It falls as α rises: the log-mean-exp for α = 0, the mean for α = 1 (the limit). Near α = 1, where that quotient would cancel,
    it is made as the mean and what is above it,
    :math:`\bar f + \frac{1}{1-\alpha} \log \big(1 + \frac1S \sum_i (e^{(1-\alpha)(f_i - \bar f)} - 1)\big)`.

    Args:
        alpha: α, a number from -1e6 to 1e6.

    Raises:
        ConfigError: it is not one.

    Source: Li & Turner (2016).

    >>> Renyi(0.5)(torch.tensor([0.0, 0.0, 3.0])) < LogMeanExp()(torch.tensor([0.0, 0.0, 3.0]))
    tensor(True)
    """

    name = "renyi"

    def __init__(self, alpha: float) -> None:
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) <= LARGEST_ORDER:
            limits = f"-{LARGEST_ORDER:.0f} to {LARGEST_ORDER:.0f}"
            raise ConfigError(f"alpha must be a number from {limits}, was {alpha!r}: use 0 for IWAE, 1 for the ELBO")
        self.alpha = float(alpha)
        self.form = Form(alpha=self.alpha)

    def __call__(self, values: Tensor) -> Tensor:
        power, mean = 1 - self.alpha, values.mean(0)
        if not power:
            return mean
        off = power * (values - mean)
        near = off.abs().amax(0) < 1  # not where a value is infinite
        rest = torch.where(near, off, 0.0).expm1().mean(0).log1p() / power
        return torch.where(near, mean + rest, _LOG_MEAN_EXP(power * values) / power)

    def signal(self, values: Tensor, baseline: Tensor | float) -> Tensor:
        return (self(values) - baseline).expand_as(values) if self.alpha != 1 else _MEAN.signal(values, baseline)

    def leave_one_out(self, values: Tensor) -> Tensor:
        return _without_own(self, values) if self.alpha != 1 else _MEAN.leave_one_out(values)


class Blend(Reduction):
    r"""Between a mean and a log-mean-exp, :math:`\beta \frac1S \sum_i f_i + (1-\beta) \log \frac1S \sum_i e^{f_i}`.

    With log weights, the convex combination of the ELBO and the IWAE bound.

    Args:
        beta: β, the mean's share, in [0, 1].

    Raises:
        ConfigError: β outside it.

    Source: Rainforth et al. (2018).

    >>> Blend(0.5)(torch.tensor([2.0, 2.0]))
    tensor(2.)
    """

    name = "blend"

    def __init__(self, beta: float) -> None:
        if not isinstance(beta, int | float) or isinstance(beta, bool) or not 0 <= beta <= 1:
            raise ConfigError(f"beta, the mean's share, must be in [0, 1], was {beta!r}")
        self.beta = float(beta)
        self.form = Form(beta=self.beta)

    def __call__(self, values: Tensor) -> Tensor:
        return self._of(_MEAN(values), _LOG_MEAN_EXP(values))

    def signal(self, values: Tensor, baseline: Tensor | float) -> Tensor:
        return self._of(_MEAN.signal(values, baseline), _LOG_MEAN_EXP.signal(values, baseline))

    def leave_one_out(self, values: Tensor) -> Tensor:
        return self._of(_MEAN.leave_one_out(values), _LOG_MEAN_EXP.leave_one_out(values))

    def _of(self, mean: Tensor, bound: Tensor) -> Tensor:
        # An infinite mean, of an impossible sample, that does not count at all must not spoil the rest.
        return bound if self.beta == 0 else self.beta * mean + (1 - self.beta) * bound


class Grouped(Reduction):
    r"""The average over M groups of a log-mean-exp over K samples, :math:`\frac1M \sum_m \log \frac1K \sum_k e^{f_{km}}`.

    S = MK; sample i belongs to group i mod M, which matters to nobody, for the samples are independent. A sample's score meets
    the bound of its own group only.

    Args:
        groups: M.

    Raises:
        ConfigError: M is no whole number of at least 1, or does not divide the number of samples.

    Source: Rainforth et al. (2018).

    >>> Grouped(2)(torch.tensor([1.0, 5.0, 1.0, 5.0, 1.0, 5.0]))  # groups of three ones and three fives
    tensor(3.)
    """

    name = "grouped"

    def __init__(self, groups: int) -> None:
        whole_number("groups", groups)
        self.groups = groups
        self.form = Form(groups=groups)

    def __call__(self, values: Tensor) -> Tensor:
        return _LOG_MEAN_EXP(self._apart(values)).mean(0)

    def signal(self, values: Tensor, baseline: Tensor | float) -> Tensor:
        each = self._apart(values)
        if len(each) == 1:
            return _MEAN.signal(values, baseline)
        return _LOG_MEAN_EXP.signal(each, baseline).flatten(0, 1) / self.groups

    def leave_one_out(self, values: Tensor) -> Tensor:
        each = self._apart(values)
        if len(each) == 1:  # a mean, in which the other groups are the others
            return _MEAN.leave_one_out(values)
        return _LOG_MEAN_EXP.leave_one_out(each).flatten(0, 1) / self.groups

    def _apart(self, values: Tensor) -> Tensor:
        """``(K, M, *batch)``."""
        count = values.shape[0]
        if count % self.groups:
            raise ConfigError(
                f"samples must be a multiple of the number of groups, {self.groups}, was {count}: use M · K of them"
            )
        return values.unflatten(0, (count // self.groups, self.groups))
