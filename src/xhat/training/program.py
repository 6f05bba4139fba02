"""One step of training as tensors only: the one text that every engine runs, traces or captures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xhat.data import Batch
from xhat.gradients import Gradient
from xhat.models.base import Stage
from xhat.networks.bayesian_models import is_bayesian, kl
from xhat.objectives import Terms

Derived = tuple[Tensor, tuple[Tensor | None, ...], tuple[str, ...]]
"""Means over the batch of the loss and the measures, ``(M,)``; a derivative for each parameter; the M names."""


class Program:
    """The loss of a batch and its derivative. Nothing in it reads a tensor's value, so nothing waits for a device.

    Args:
        stage: what is trained.
        gradient: the estimator, which may have a loss of its own.
        parameters: what the derivative is taken in.
        count: how many examples the divergence of random weights is shared among.
    """

    def __init__(self, stage: Stage, gradient: Gradient, parameters: Sequence[nn.Parameter], count: int) -> None:
        self.module, self.gradient, self.parameters, self.count = stage.module, gradient, list(parameters), count
        self.samples = stage.objective.samples
        # Random weights are paid for as every latent is: their divergence from the prior, shared among the examples.
        self.random_weights = is_bayesian(stage.module)

    @property
    def described(self) -> str:
        """What the program is made of, for messages."""
        objective = getattr(self.module, "objective", None)
        parts = [type(part).__name__ for part in (self.module, objective, self.gradient) if part is not None]
        return f"{parts[0]} with {' and '.join(parts[1:])}"

    def __call__(self, x: Tensor | Batch) -> Derived:
        return self.derived(*self.value(x))

    def derived(self, total: Tensor, values: Tensor, names: tuple[str, ...]) -> Derived:
        """What :meth:`value` gave, with the derivatives."""
        return values, torch.autograd.grad(total, self.parameters, allow_unused=True), names

    def value(self, x: Tensor | Batch) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """What is derived, with what the estimator adds; the loss and the measures, ``(M,)``; their names."""
        terms: Terms = self.module(x)
        loss = terms.loss.mean()
        measures = {name: values.detach().mean() for name, values in terms.measures.items()}
        if self.random_weights:
            weights_kl = kl(self.module)
            loss = loss + weights_kl / self.count
            measures["weights_kl"] = weights_kl.detach()
        auxiliary = self.gradient.auxiliary_loss()
        total = loss if auxiliary is None else loss + auxiliary
        values = torch.stack([loss.detach(), *(value.to(loss.dtype) for value in measures.values())])
        return total, values, ("loss", *measures)
