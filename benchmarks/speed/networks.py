"""The networks of the PyTorch contenders: the same layers, whoever trains them."""

from __future__ import annotations

from itertools import pairwise

from benchmarks.speed.tasks import Task
from torch import Tensor, nn

from xhat.networks import ConvDecoder, ConvEncoder


def layers(sizes: list[int]) -> list[nn.Module]:
    """Linear layers with ReLU after each."""
    return [module for a, b in pairwise(sizes) for module in (nn.Linear(a, b), nn.ReLU())]


class Encoder(nn.Module):
    """x ↦ (mean, log variance); one layer makes both, which is a product less than the two of most tutorials."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        if task.channels:
            self.body: nn.Module = ConvEncoder(task.shape, task.channels, task.hidden[0])
        else:
            self.body = nn.Sequential(nn.Flatten(), *layers([task.features, *task.hidden]))
        self.head = nn.Linear(task.hidden[-1], 2 * task.latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.head(self.body(x)).chunk(2, dim=-1)
        return mean, log_variance


class Decoder(nn.Module):
    """z ↦ what the likelihood takes: logits, or means; flat unless convolutions made it."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        if task.channels:
            body = ConvDecoder(task.latent, task.shape, task.channels[::-1], task.hidden[-1])
            self.layers = nn.Sequential(body, body.head((1, *task.shape)), nn.Flatten(1, 2))
        else:
            sizes = [task.latent, *task.hidden[::-1]]
            self.layers = nn.Sequential(*layers(sizes), nn.Linear(sizes[-1], task.features))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class Deep(nn.Module):
    """A deterministic autoencoder: x ↦ x̂, flat."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        up = [task.features, *task.hidden]
        self.layers = nn.Sequential(
            nn.Flatten(),
            *layers(up),
            nn.Linear(up[-1], task.latent),
            *layers([task.latent, *up[:0:-1]]),
            nn.Linear(up[1], up[0]),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def count(*modules: nn.Module) -> int:
    """Trained numbers."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
