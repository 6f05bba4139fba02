"""What an objective asks of a model, and what it answers."""

from __future__ import annotations

import abc
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor, nn
from torch.distributions import Distribution

from xhat.gradients import Gradient, Mean, Reduction
from xhat.parts import Part

LARGEST = 1e30  # of a weight: float32 ends at 3e38


class Terms(NamedTuple):
    """What one batch gives: the loss to minimise and the measures to log, each ``(B,)``, summed over the event."""

    loss: Tensor
    measures: dict[str, Tensor]


class Chassis(Protocol):
    """What an objective uses of a model."""

    gradient: Gradient

    def prior(self) -> Distribution: ...
    def posterior(self, x: Tensor) -> Distribution: ...
    def likelihood(self, z: Tensor) -> Distribution: ...


class Objective(Part, nn.Module, abc.ABC):
    """Maps a model and a batch to :class:`Terms`.

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
    def forward(self, model: Chassis, x: Tensor, target: Tensor) -> Terms:
        """The terms for an encoder's input ``x`` and a target, both ``(B, *event)``; they differ when x is corrupted."""

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
