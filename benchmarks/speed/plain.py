"""PyTorch by hand: the loops that people write."""

from __future__ import annotations

import contextlib
import math

import torch
from benchmarks.speed.contender import Contender, Epoch
from benchmarks.speed.dataset import as_floats, load
from benchmarks.speed.networks import Decoder, Deep, Encoder, count
from benchmarks.speed.tasks import LEARNING_RATE, Task
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Loss(nn.Module):
    """The mean loss of a batch, as most tutorials write it.

    ``once`` is for several samples: whether the encoder sees each example once, rather than once a sample.
    """

    def __init__(self, task: Task, once: bool = False) -> None:
        super().__init__()
        self.task, self.once = task, once
        if task.kind == "autoencoder":
            self.whole = Deep(task)
        else:
            self.encoder, self.decoder = Encoder(task), Decoder(task)

    def forward(self, x: Tensor) -> Tensor:
        if self.task.kind == "autoencoder":
            return (self.whole(x) - x.flatten(1)).square().sum(1).mean()
        if self.task.kind == "iwae":
            return self.importance_weighted(x)
        mean, log_variance = self.encoder(x)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)
        return (self.reconstruction(self.decoder(z), x) + kl).mean()

    def reconstruction(self, out: Tensor, x: Tensor) -> Tensor:
        out, x = out.flatten(1), x.flatten(1)
        if self.task.likelihood == "normal":
            return 0.5 * (out - x).square().sum(1)
        return F.binary_cross_entropy_with_logits(out, x, reduction="none").sum(1)

    def importance_weighted(self, x: Tensor) -> Tensor:
        """Burda et al. (2016): the batch is repeated K times, and the bound is the mean weight's logarithm."""
        samples = self.task.samples
        if self.once:
            mean, log_variance = (part.repeat(samples, 1) for part in self.encoder(x))
            x = x.repeat(samples, *[1] * (x.ndim - 1))
        else:
            x = x.repeat(samples, *[1] * (x.ndim - 1))
            mean, log_variance = self.encoder(x)
        noise = torch.randn_like(mean)
        z = mean + torch.exp(0.5 * log_variance) * noise
        log_weight = -self.reconstruction(self.decoder(z), x) + 0.5 * (noise.square() + log_variance - z.square()).sum(1)
        return math.log(samples) - log_weight.view(samples, -1).logsumexp(0).mean()


class Plain(Contender):
    """A hand-written loop.

    Args:
        task: what to train.
        loader: batches from a DataLoader on a TensorDataset, shuffled, as PyTorch's tutorials do; else by indexing a tensor.
        fused: Adam in one kernel, which PyTorch has but does not choose by itself.
        compiled: the loss, so forward and backward, by torch.compile.
        autocast: bfloat16 by torch.autocast.
        once: see :class:`Loss`.
    """

    def __init__(
        self,
        task: Task,
        loader: bool = False,
        fused: bool = True,
        compiled: bool = False,
        autocast: bool = False,
        once: bool = False,
    ) -> None:
        super().__init__(task)
        torch.manual_seed(0)
        self.x = torch.from_numpy(as_floats(load(task))).to(task.device)
        self.module = Loss(task, once).to(task.device)
        self.loss = torch.compile(self.module) if compiled else self.module
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=LEARNING_RATE, fused=fused)
        self.loader = DataLoader(TensorDataset(self.x), batch_size=task.batch, shuffle=True, drop_last=True) if loader else None
        self.autocast = autocast

    def batches(self):
        if self.loader is not None:
            for (x,) in self.loader:
                yield x
            return
        order = torch.randperm(len(self.x), device=self.x.device)
        for rows in order[: len(order) // self.task.batch * self.task.batch].split(self.task.batch):
            yield self.x[rows]

    def epoch(self) -> Epoch:
        total, steps = 0.0, 0
        for x in self.batches():
            self.optimizer.zero_grad()
            with torch.autocast(self.task.device, torch.bfloat16) if self.autocast else contextlib.nullcontext():
                loss = self.loss(x)
            loss.backward()
            self.optimizer.step()
            total, steps = total + loss.item(), steps + 1
        return Epoch(steps, total / steps)

    def parameters(self) -> int:
        return count(self.module)
