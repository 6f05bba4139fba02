"""How the variance of a gradient falls with the batch when weights are random: one shared draw, local draws, flipout.

    python benchmarks/flipout.py [REPEATS]

A Bayesian 8-16-1 network (tanh, σ = 0.2) on made-up regression data of 512 examples, squared error, float64. For each batch size
and sampling, batches are drawn at random, and each is differentiated twice with fresh weights: half the squared difference of the
two gradients has the variance that the weights cause as its mean, without that of the choice of the batch. Prints it, summed over
the means μ and over the raw scales ρ, with its slope against the batch size on logarithmic scales, over all sizes and over the
last two: -1 is 1/B, 0 is no gain. Then checks that the samplings' mean gradients agree coordinate by coordinate, and times a
training step of a 784-400-10 network.
"""

import math
import sys
import time
from itertools import combinations

import torch
from torch import nn

from xhat.networks import bayesian, kl
from xhat.networks.bayesian_linear import SAMPLINGS

BATCHES = (1, 4, 16, 64, 256)
EXAMPLES = 512
SIGMAS = 4.0


def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network that has no random weights yet, and data."""
    x = torch.randn(EXAMPLES, 8, dtype=torch.float64)
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3] + 0.1 * torch.randn(EXAMPLES, 1, dtype=torch.float64)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).double(), x, y


def pairs(net: nn.Module, x: torch.Tensor, y: torch.Tensor, batch: int, repeats: int) -> torch.Tensor:
    """Two gradients for each of many batches, ``(repeats, 2, parameters)``."""
    parameters = list(net.parameters())
    found = []
    for _ in range(repeats):
        chosen = torch.randint(EXAMPLES, (batch,))
        for _ in range(2):
            grads = torch.autograd.grad((net(x[chosen]) - y[chosen]).square().mean(), parameters)
            found.append(torch.cat([grad.flatten() for grad in grads]))
    return torch.stack(found).unflatten(0, (repeats, 2))


def slope(values: list[float], last: int = len(BATCHES)) -> float:
    """Of log variance against log batch size, by least squares over the last few sizes."""
    a = torch.tensor(BATCHES[-last:], dtype=torch.float64).log()
    b = torch.tensor(values[-last:], dtype=torch.float64).log()
    return float(((a - a.mean()) * (b - b.mean())).sum() / (a - a.mean()).square().sum())


def variances(repeats: int) -> bool:
    """Prints the table and the comparison of the means; whether they agree."""
    model, x, y = problem()
    nets = {sampling: bayesian(model, sampling, initial_scale=0.2) for sampling in SAMPLINGS}
    names = [name for name, p in nets["shared"].named_parameters() for _ in range(p.numel())]
    scales = torch.tensor([name.endswith("raw_scale") for name in names])
    table: dict[tuple[str, str], list[float]] = {(part, sampling): [] for part in "μρ" for sampling in SAMPLINGS}
    error, worst, beyond, compared = 0.0, 0.0, 0, 0
    for batch in BATCHES:
        means = {}
        for sampling, net in nets.items():
            grads = pairs(net, x, y, batch, repeats)
            halves = (grads[:, 0] - grads[:, 1]).square() / 2
            for part, which in (("μ", ~scales), ("ρ", scales)):
                sums = halves[:, which].sum(1)
                table[part, sampling].append(float(sums.mean()))
                error = max(error, float(sums.std() / math.sqrt(repeats) / sums.mean()))
            each = grads.mean(1)  # the two of a pair share their batch, so a pair is one draw
            means[sampling] = (each.mean(0), each.var(0) / repeats)
        for a, b in combinations(SAMPLINGS, 2):
            z = (means[a][0] - means[b][0]).abs() / (means[a][1] + means[b][1]).sqrt()
            worst, beyond, compared = max(worst, float(z.max())), beyond + int((z > SIGMAS).sum()), compared + len(z)
    print("| B | " + " | ".join(f"{sampling}, {part}" for part, sampling in table) + " |")
    print("|---|" + "---|" * len(table))
    for row, batch in enumerate(BATCHES):
        print(f"| {batch} | " + " | ".join(f"{values[row]:.3g}" for values in table.values()) + " |")
    print("| slope | " + " | ".join(f"**{slope(values):+.2f}**" for values in table.values()) + " |")
    print(f"| slope, {BATCHES[-2]} to {BATCHES[-1]} | " + " | ".join(f"{slope(v, 2):+.2f}" for v in table.values()) + " |")
    print(f"\n{repeats} pairs of gradients for each; relative standard error of a variance at most {error:.2f}")
    chance = compared * math.erfc(SIGMAS / math.sqrt(2))
    print(
        f"mean gradients: {compared} comparisons of coordinates, the farthest apart {worst:.2f} standard errors, "
        f"{beyond} beyond {SIGMAS:.0f} ({chance:.2f} expected by chance)"
    )
    return beyond == 0


def times(batch: int = 128, repeats: int = 60) -> None:
    """Prints the median time of forward, backward and KL of one batch."""
    model = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 10))
    x, y = torch.rand(batch, 784), torch.randint(10, (batch,))
    nets = {"no random weights": model} | {sampling: bayesian(model, sampling) for sampling in SAMPLINGS}
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    for step in range(repeats + 5):
        for name, net in nets.items():  # in turn, so that whatever else the machine does falls on all alike
            start = time.perf_counter()
            loss = nn.functional.cross_entropy(net(x), y)
            if net is not model:
                loss = loss + kl(net) / 60_000
            loss.backward()
            net.zero_grad()
            if step >= 5:
                seconds[name].append(time.perf_counter() - start)
    print(f"\n| 784-400-10, B = {batch}, float32 | step, ms |")
    print("|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {1000 * sorted(taken)[len(taken) // 2]:.2f} |")


def main(repeats: int = 2000) -> int:
    torch.manual_seed(0)
    agree = variances(repeats)
    times()
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:2])))
