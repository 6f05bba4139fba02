"""Small problems on which gradients are compared: each has a law, a function, and parameters to differentiate in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, Normal, OneHotCategorical
from torch.nn import functional as F

from xhat.gradients.base import Function, LogWeight

F64 = torch.float64


class Problem(NamedTuple):
    """What :func:`xhat.gradients.compare` needs.

    Attributes:
        about: what it is, in a line.
        draw: makes the law and the function from the parameters.
        parameters: tensors in which the derivative is taken.
        exact: the true gradient where there is a formula; else None.
        budget: values of f for one estimate, unless somebody says otherwise.
    """

    about: str
    draw: Callable[[], tuple[Distribution, Function]]
    parameters: Sequence[Tensor]
    exact: Sequence[Tensor] | None = None
    budget: int = 4


def toy() -> Problem:
    """E(b − t)² of one Bernoulli element, in its logit."""
    logit = torch.tensor([0.3], dtype=F64).logit().requires_grad_()

    def draw() -> tuple[Distribution, Function]:
        return Bernoulli(logits=logit), lambda b: (b - 0.45) ** 2

    return Problem("E(b - 0.45)², b Bernoulli(0.3), derivative in its logit", draw, [logit])


def polynomial() -> Problem:
    """E z² under N(1, 1), whose derivatives are 2 in μ and 2 in σ."""
    loc, scale = torch.ones(1, dtype=F64, requires_grad=True), torch.ones(1, dtype=F64, requires_grad=True)

    def draw() -> tuple[Distribution, Function]:
        return Normal(loc, scale), lambda z: z**2

    two = torch.full((1,), 2.0, dtype=F64)
    return Problem("E z², z ~ N(1, 1), derivatives in μ and σ", draw, [loc, scale], [two, two], budget=6)


def logistic() -> Problem:
    """The ELBO of Bayesian logistic regression on generated data, with an axis-aligned Normal over 5 weights."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, dtype=F64, generator=generator)
    weights = torch.tensor([1.5, -1.0, 0.5, 0.0, 2.0], dtype=F64)
    y = (torch.rand(200, dtype=F64, generator=generator) < (x @ weights).sigmoid()).double()
    loc = torch.zeros(5, dtype=F64, requires_grad=True)
    raw = torch.full((5,), -1.0, dtype=F64, requires_grad=True)
    prior = Independent(Normal(torch.zeros(5, dtype=F64), 1.0), 1)

    def draw() -> tuple[Distribution, Function]:
        q = Independent(Normal(loc, F.softplus(raw)), 1)

        def log_joint(z: Tensor) -> Tensor:
            logits = z @ x.T
            return (y * logits - F.softplus(logits)).sum(-1) + prior.log_prob(z)

        return q, LogWeight(log_joint, q)

    return Problem("ELBO of logistic regression, 200 × 5 generated, Normal over the weights", draw, [loc, raw])


def discrete_vae() -> Problem:
    """The ELBO of a VAE with 8 Bernoulli latents on 16 generated examples of 20 pixels, in its encoder."""
    generator = torch.Generator().manual_seed(0)
    shapes = (torch.rand(4, 20, dtype=F64, generator=generator) < 0.4).double()
    flips = (torch.rand(16, 20, dtype=F64, generator=generator) < 0.1).double()
    x = (shapes.repeat(4, 1) - flips).abs()
    encoder = (0.3 * torch.randn(20, 8, dtype=F64, generator=generator)).requires_grad_()
    hidden = torch.randn(8, 16, dtype=F64, generator=generator)
    decoder = torch.randn(16, 20, dtype=F64, generator=generator) / 2

    def draw() -> tuple[Distribution, Function]:
        q = Independent(Bernoulli(logits=(x - 0.4) @ encoder, validate_args=False), 1, validate_args=False)

        def log_joint(z: Tensor) -> Tensor:
            logits = ((2 * z - 1) @ hidden).tanh() @ decoder
            return (x * logits - F.softplus(logits)).sum(-1) - 8 * torch.log(torch.tensor(2.0, dtype=F64))

        return q, LogWeight(log_joint, q)

    return Problem("ELBO of a VAE with 8 Bernoulli latents, 16 generated examples, derivative in the encoder", draw, [encoder])


def categories() -> Problem:
    """E of a smooth function of three one-hot variables with five categories each."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, dtype=F64, generator=generator).requires_grad_()
    scores = torch.randn(3, 5, dtype=F64, generator=generator)

    def draw() -> tuple[Distribution, Function]:
        q = Independent(OneHotCategorical(logits=logits, validate_args=False), 1, validate_args=False)
        return q, lambda z: ((z * scores).sum((-1, -2)) - 0.5).square()

    return Problem("E of a square of scores of three variables with five categories, derivative in their logits", draw, [logits])


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "toy": toy,
    "polynomial": polynomial,
    "logistic": logistic,
    "discrete-vae": discrete_vae,
    "categories": categories,
}
