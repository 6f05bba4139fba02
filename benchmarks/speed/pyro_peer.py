"""Pyro, as its tutorial on variational autoencoders trains one."""

from __future__ import annotations

import pyro
import torch
from benchmarks.speed.contender import Contender, Epoch
from benchmarks.speed.dataset import as_floats, load
from benchmarks.speed.networks import Decoder, Encoder, count
from benchmarks.speed.tasks import LEARNING_RATE, Task
from pyro import distributions as dist
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Network(nn.Module):
    """The tutorial's pair of model and guide, with the task's networks."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.encoder, self.decoder = task, Encoder(task), Decoder(task)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = x.new_zeros((x.shape[0], self.task.latent)), x.new_ones((x.shape[0], self.task.latent))
            z = pyro.sample("latent", dist.Normal(loc, scale).to_event(1))
            # The tutorial's switch: what the observations are allowed to be was checked when they were loaded.
            law = dist.Bernoulli(logits=self.decoder(z), validate_args=False).to_event(1)
            pyro.sample("obs", law, obs=x.reshape(-1, self.task.features))

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            mean, log_variance = self.encoder(x)
            pyro.sample("latent", dist.Normal(mean, torch.exp(0.5 * log_variance)).to_event(1))


class Pyro(Contender):
    """``SVI`` with ``Trace_ELBO``, or with ``jit`` its ``JitTrace_ELBO``; batches from a DataLoader, as in the tutorial."""

    def __init__(self, task: Task, jit: bool = False) -> None:
        super().__init__(task)
        pyro.clear_param_store()
        self.network = Network(task)
        data = TensorDataset(torch.from_numpy(as_floats(load(task))))
        self.loader = DataLoader(data, batch_size=task.batch, shuffle=True, drop_last=True)
        elbo = JitTrace_ELBO(ignore_jit_warnings=True) if jit else Trace_ELBO()
        self.svi = SVI(self.network.model, self.network.guide, Adam({"lr": LEARNING_RATE}), loss=elbo)

    def epoch(self) -> Epoch:
        total = sum(self.svi.step(x) for (x,) in self.loader)
        return Epoch(len(self.loader), total / (len(self.loader) * self.task.batch))

    def parameters(self) -> int:
        return count(self.network)
