"""xhat, by its public interface: the one place that knows how it is called."""

from __future__ import annotations

from typing import Any

import torch
from benchmarks.speed.contender import Contender, Epoch
from benchmarks.speed.dataset import load
from benchmarks.speed.networks import count
from benchmarks.speed.tasks import LEARNING_RATE, Task
from torch import nn

import xhat
from xhat import conditionals, objectives, priors
from xhat.networks import MLP, ConvDecoder, ConvEncoder

FOREVER = 1_000_000  # epochs: training goes on for as long as it is asked for steps


class Xhat(Contender):
    """``xhat.train`` as users call it; a round takes steps from it until an epoch is over.

    Each step is seen by the caller, as a progress bar sees it: that is part of what is timed.
    """

    def __init__(self, task: Task, engine: str = "auto", precision: str = "float32") -> None:
        super().__init__(task)
        torch.manual_seed(0)
        self.model = model_of(task)
        self.steps = xhat.train(
            self.model,
            torch.from_numpy(load(task)),
            epochs=FOREVER,
            batch_size=task.batch,
            lr=LEARNING_RATE,
            keep="last",
            seed=0,
            device=task.device,
            engine=engine,
            precision=precision,
        )

    def epoch(self) -> Epoch:
        for number, step in enumerate(self.steps, start=1):
            if step.record is not None:
                return Epoch(number, step.record["train_loss"])
        raise RuntimeError("training ended by itself")

    def parameters(self) -> int:
        return count(self.model)


def model_of(task: Task) -> xhat.Model:
    """The task's model, of xhat's own parts."""
    up, down = _networks(task)
    if task.kind == "autoencoder":
        return xhat.Autoencoder(conditionals.Delta(up, task.latent), conditionals.Normal(down, task.shape, scale=1.0))
    likelihood: Any = conditionals.Bernoulli(down, task.shape)
    if task.likelihood == "normal":
        likelihood = conditionals.Normal(down, task.shape, scale=1.0)
    objective = objectives.IWAE(samples=task.samples) if task.kind == "iwae" else objectives.ELBO(samples=task.samples)
    return xhat.VAE(priors.StandardNormal(task.latent), conditionals.Normal(up, (task.latent,)), likelihood, objective)


def _networks(task: Task) -> tuple[nn.Module, nn.Module]:
    if task.channels:
        size = task.hidden[0]
        return ConvEncoder(task.shape, task.channels, size), ConvDecoder(task.latent, task.shape, task.channels[::-1], size)
    return MLP(task.shape, task.hidden), MLP(task.latent, task.hidden[::-1])
