"""What an objective is given, and what it answers."""

from __future__ import annotations

import abc
from typing import ClassVar, NamedTuple

from torch import Tensor, nn
from torch.distributions import Distribution

from xhat.gradients import Gradient, Mean, Reduction
from xhat.objectives.posed import Posed
from xhat.parts import Part

LARGEST = 1e30  # of a weight: float32 ends at 3e38


class Terms(NamedTuple):
    """What one batch gives: the loss to minimise and the measures to log, each ``(B,)``, summed over the event."""

    loss: Tensor
    measures: dict[str, Tensor]


class Objective(Part, nn.Module, abc.ABC):
    """Maps the problem of a batch to :class:`Terms`.

    Attributes:
        samples: the number of draws of z for each example.
        reduction: how they become one number, which the model's gradient must serve.
        needs_prior: whether it asks for p(z), which an autoencoder does not have.
    """

    reduction: ClassVar[Reduction] = Mean()
    needs_prior: ClassVar[bool] = False

    fewest_examples: ClassVar[int] = 1  # in a batch; with fewer, what it compares them for is not there

    samples: int = 1
    warmup: float = 0.0  # epochs until the objective is what it will be
    name: str

    @abc.abstractmethod
    def forward(self, posed: Posed) -> Terms:
        """The terms of the problem that a model poses for a batch (``model.pose(batch)``)."""

    def fits(self, q: Distribution, p: Distribution) -> None:
        """Refuse, when a model is put together, a posterior and a prior that the objective cannot serve.

        Raises:
            ConfigError: says what is missing.
        """

    def serves(self, gradient: Gradient) -> None:
        """Refuse an estimator whose derivative would not be that of this objective, though it fits the law.

        Raises:
            ConfigError: says why, and names the estimators that do.
        """

    @property
    def coupled(self) -> str:
        """What couples the examples, so that the loss of a batch depends on how it is cut, in words; empty where nothing does."""
        return ""

    def at(self, epoch: float) -> None:
        """Tell the objective how far training is, for schedules such as β warm-up."""

    def settled(self, epoch: float) -> bool:
        """Whether :meth:`at` changes nothing from here on, so that several steps may be taken at once.

        Not so where ``at`` is somebody's own, unless that one says it here.
        """
        return type(self).at is Objective.at
