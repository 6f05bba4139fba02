"""The variances that are known exactly, measured: E(b − t)² of one bit in its logit, and E z² under N(1, 1) in μ and σ.

python benchmarks/known_variances.py
"""

import math

import torch
from torch.distributions import Bernoulli, Normal

import xhat

COUNT = 1_000_000
F64 = torch.float64
BITS = {
    (0.499, 0.5): {"score": 1.5625e-2, "rloo": 2.5e-7, "arm": 8.333e-8, "disarm": 0.0},
    (0.45, 0.3): {"score": 1.5594e-2, "rloo": 6.09e-4, "arm": 3.39e-4, "disarm": 2.94e-4},
}
SQUARE = {"score": (30.0, 136.0), "pathwise": (4.0, 12.0), "measure": (1.093, 8.0)}


def shown(draws: torch.Tensor) -> str:
    """The variance of draws and its standard error."""
    centred = (draws - draws.mean()).square()
    return f"{centred.mean():.4g} ± {centred.std() / math.sqrt(len(draws)):.1g}"


def main() -> None:
    torch.manual_seed(0)
    print("| problem | gradient | values of f | known | measured |\n|---|---|---:|---:|---:|")
    for (t, p), known in BITS.items():
        logit = torch.full((COUNT,), math.log(p / (1 - p)), dtype=F64, requires_grad=True)
        for name, variance in known.items():
            samples = 1 if name == "score" else 2
            value = xhat.expectation(lambda b, t=t: (b - t) ** 2, Bernoulli(logits=logit), name, samples)
            (slope,) = torch.autograd.grad(value.sum(), logit)
            print(f"| (b − {t})², p = {p} | `{name}` | {samples} | {variance:.4g} | {shown(slope)} |")
    loc, scale = (torch.ones(COUNT, dtype=F64, requires_grad=True) for _ in range(2))
    for name, variances in SQUARE.items():
        q = Normal(loc, scale)
        count = xhat.gradients.gradient_of(name).evaluations(1, q)
        slopes = torch.autograd.grad(xhat.expectation(lambda z: z**2, q, name).sum(), (loc, scale))
        for what, slope, variance in zip("μσ", slopes, variances, strict=True):
            print(f"| z², N(1, 1), ∂{what} | `{name}` | {count} | {variance:.4g} | {shown(slope)} |")


if __name__ == "__main__":
    main()
