"""How the values of f at S samples become one number, and what each sample's signal is then."""

from __future__ import annotations

import abc

from torch import Tensor

from xhat.parts import Part


class Reduction(Part, abc.ABC):
    """From ``(S, *batch)`` to ``(*batch)``: a mean here; a log-mean-exp for multi-sample bounds."""

    @abc.abstractmethod
    def __call__(self, values: Tensor) -> Tensor:
        """The reduced value, ``(*batch)``."""

    @abc.abstractmethod
    def signal(self, values: Tensor, baseline: Tensor | float) -> Tensor:
        """What multiplies each sample's score, ``(S, *batch)``, given a baseline that does not depend on that sample."""

    @abc.abstractmethod
    def leave_one_out(self, values: Tensor) -> Tensor:
        """The signal whose baseline is, for each sample, made of the others; needs S ≥ 2."""


class Mean(Reduction):
    r"""The arithmetic mean, :math:`\frac{1}{S}\sum_i f_i`.

    A sample's score meets its own value only: the other samples' values would add noise and no signal.
    """

    def __call__(self, values: Tensor) -> Tensor:
        return values.mean(0)

    def signal(self, values: Tensor, baseline: Tensor | float) -> Tensor:
        return (values - baseline) / values.shape[0]

    def leave_one_out(self, values: Tensor) -> Tensor:
        count = values.shape[0]
        others = (values.sum(0, keepdim=True) - values) / (count - 1)
        return self.signal(values, others)
