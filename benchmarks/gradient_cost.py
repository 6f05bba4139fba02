"""What the library's gradients cost beside code written by hand, and beside each other.

    python benchmarks/gradient_cost.py

Two figures, each a median over interleaved rounds: a step (forward and backward) of a 784-400-20 VAE with batch 128 through
``xhat.expectation(f, q, "pathwise")``, over the same step with ``z = q.rsample((1,)); f(z).mean(0)``; and DisARM over
leave-one-out with 200 Bernoulli latents, a 200-200-200-784 decoder, batch 100, two values of f each.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal
from torch.nn import functional as F

import xhat

ROUNDS, STEPS = 41, 20


def rounds(steps: dict[str, Callable[[], Tensor]], parameters: list[Tensor]) -> dict[str, list[float]]:
    """Seconds of one step, by round: every contender takes its turn in each, in an order that changes."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(ROUNDS + 2):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            for _ in range(STEPS):
                for p in parameters:
                    p.grad = None
                steps[name]().backward()
            if turn >= 2:  # the first rounds warm up
                times[name].append((time.perf_counter() - start) / STEPS)
    return times


def told(times: dict[str, list[float]], over: str, under: str) -> None:
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name:<24} {1000 * middle:7.3f} ms (quartiles {1000 * low:.3f} to {1000 * high:.3f})")
    # Rounds are paired, so that what slows the machine for a while slows both.
    ratios = [a / b for a, b in zip(times[over], times[under], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"{over} / {under}: {middle:.3f} (quartiles {low:.3f} to {high:.3f})\n")


def pathwise() -> None:
    encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
    decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))
    x = torch.rand(128, 784).round()

    def law() -> tuple[Independent, Tensor]:
        loc, raw = encoder(x).chunk(2, -1)
        scale = F.softplus(raw)
        kl = 0.5 * (scale.square() + loc.square() - 1 - 2 * scale.log()).sum(-1)
        return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False), kl

    def f(z: Tensor) -> Tensor:
        logits = decoder(z)
        return (x * logits - F.softplus(logits)).sum(-1)

    def by_hand() -> Tensor:
        q, kl = law()
        z = q.rsample((1,))
        return (kl - f(z).mean(0)).mean()

    def by_name() -> Tensor:
        q, kl = law()
        return (kl - xhat.expectation(f, q, "pathwise")).mean()

    times = rounds({"by hand": by_hand, "expectation": by_name}, [*encoder.parameters(), *decoder.parameters()])
    told(times, "expectation", "by hand")


def antithetic() -> None:
    decoder = nn.Sequential(
        nn.Linear(200, 200), nn.LeakyReLU(0.3), nn.Linear(200, 200), nn.LeakyReLU(0.3), nn.Linear(200, 784)
    )  # fmt: skip
    logits = torch.randn(100, 200, requires_grad=True)
    x = torch.rand(100, 784).round()

    def f(z: Tensor) -> Tensor:
        pixels = decoder(z)
        return (x * pixels - F.softplus(pixels)).sum(-1)

    def step(gradient: str) -> Callable[[], Tensor]:
        estimator = xhat.gradients.gradient_of(gradient)
        q = Independent(Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)
        return lambda: -xhat.expectation(f, q, estimator, samples=2).mean()

    steps = {name: step(name) for name in ("rloo", "disarm", "arm", "arms", "double-cv")}
    told(rounds(steps, [logits, *decoder.parameters()]), "disarm", "rloo")


if __name__ == "__main__":
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    pathwise()
    antithetic()
