"""How the values of several samples become one number, and what each sample's signal is then."""

from __future__ import annotations

import abc
import math
from typing import ClassVar

import torch
from torch import Tensor

from xhat.parts import Part


class Reduction(Part, abc.ABC):
    """From ``(S, *batch)`` to ``(*batch)``: a mean, or a log-mean-exp for multi-sample bounds."""

    name: ClassVar[str]

    @abc.abstractmethod
    def __call__(self, values: Tensor) -> Tensor:
        """The reduced value, ``(*batch)``."""

    @abc.abstractmethod
    def signal(self, values: Tensor, baseline: Tensor | float) -> Tensor:
        """What multiplies each sample's score, ``(S, *batch)``, given a baseline that does not depend on that sample."""

    @abc.abstractmethod
    def leave_one_out(self, values: Tensor) -> Tensor:
        """The signal whose baseline is, for each sample, made of the others; needs S ≥ 2."""

    @abc.abstractmethod
    def doubly(self, values: Tensor) -> Tensor | float:
        """What the path's derivative is multiplied with once more, when log q's own derivative is reparameterised away."""


class Mean(Reduction):
    r"""The arithmetic mean, :math:`\frac{1}{S}\sum_i f_i`.

    A sample's score meets its own value only: the other samples' values would add noise and no signal.
    """

    name = "mean"

    def __call__(self, values: Tensor) -> Tensor:
        return values.mean(0)

    def signal(self, values: Tensor, baseline: Tensor | float) -> Tensor:
        return (values - baseline) / values.shape[0]

    def leave_one_out(self, values: Tensor) -> Tensor:
        count = values.shape[0]
        others = (values.sum(0, keepdim=True) - values) / (count - 1)
        return self.signal(values, others)

    def doubly(self, values: Tensor) -> Tensor | float:
        return 1.0


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
        count = values.shape[0]
        others = (values.sum(0, keepdim=True) - values) / (count - 1)
        own = torch.eye(count, dtype=torch.bool, device=values.device).reshape(count, count, *(1,) * (values.ndim - 1))
        replaced = torch.where(own, others.unsqueeze(1), values.unsqueeze(0))
        return self(values) - (replaced.logsumexp(1) - math.log(count))

    def doubly(self, values: Tensor) -> Tensor | float:
        return values.softmax(0)
