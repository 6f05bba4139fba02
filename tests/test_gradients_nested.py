"""Expectations within expectations: several stochastic layers, each with an estimator of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributions as td

from catalogue import F64, GRADIENTS, OF_BOUNDS, numbers
from proofs import REPEATS, within
from xhat.errors import ConfigError
from xhat.gradients import expectation

ON_A_BIT = [
    name
    for name, make in GRADIENTS.items()
    if name not in OF_BOUNDS
    and make().unbiased
    and make().lacks(td.Bernoulli(logits=torch.zeros(1))) is None
    and name != "score, network"
]
# Their temperature is learned through f's second derivative, which a surrogate below does not have.
LEARNED = {"rebar", "rebar, stirred", "relax", "relax, stirred", "relax, network"}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def at_repeated() -> list[Tensor]:
    return [torch.full((2 * REPEATS,), v, dtype=F64, requires_grad=True) for v in (0.4, -0.6, 0.9)]


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        *[(outer, "pathwise") for outer in ON_A_BIT],
        *[(outer, "score, leave-one-out") for outer in ON_A_BIT if outer not in LEARNED],
        *[(outer, inner) for outer in ("score", "score, leave-one-out", "score, lagged") for inner in ("score", "measure")],
    ],
)
def test_a_nested_expectation_is_right(outer, inner):
    """E over b of E over y given b, with gradients in both laws' parameters; y is Normal, below a bit."""
    at = at_repeated()
    first, second = GRADIENTS[outer](), GRADIENTS[inner]()

    def f(b: Tensor) -> Tensor:
        return expectation(lambda y: y**2 * (1 + b) + b, td.Normal(at[1] + at[2] * b, 0.7), second, 3)

    for _ in range(3):
        value = expectation(f, td.Bernoulli(logits=at[0]), first, first.usable(3))
    truth = numbers(0.4, -0.6, 0.9).requires_grad_()
    p = truth[0].sigmoid()
    exact = (1 - p) * (truth[1] ** 2 + 0.49) + p * (2 * ((truth[1] + truth[2]) ** 2 + 0.49) + 1)
    within(value.detach(), exact.detach())
    (known,) = torch.autograd.grad(exact, truth)
    for estimates, slope in zip(torch.autograd.grad(value.sum(), at), known, strict=True):
        within(estimates, slope)


@pytest.mark.parametrize("inner", ON_A_BIT)
@pytest.mark.parametrize("outer", ["disarm", "score, lagged"])
def test_a_bit_below_a_bit_is_right(outer, inner):
    at = at_repeated()
    first, second = GRADIENTS[outer](), GRADIENTS[inner]()

    def f(b: Tensor) -> Tensor:
        below = td.Bernoulli(logits=at[1] + at[2] * b)
        return expectation(lambda y: (y - 0.3) ** 2 * (1 + b) + 2 * b * y.exp(), below, second, second.usable(2))

    for _ in range(2):
        value = expectation(f, td.Bernoulli(logits=at[0]), first, first.usable(2))
    truth = numbers(0.4, -0.6, 0.9).requires_grad_()

    def given(b: float) -> Tensor:
        p = (truth[1] + truth[2] * b).sigmoid()
        return (1 - p) * (0.09 * (1 + b) + 2 * b) + p * (0.49 * (1 + b) + 2 * b * math.e)

    exact = (1 - truth[0].sigmoid()) * given(0.0) + truth[0].sigmoid() * given(1.0)
    within(value.detach(), exact.detach())
    (known,) = torch.autograd.grad(exact, truth)
    for estimates, slope in zip(torch.autograd.grad(value.sum(), at), known, strict=True):
        within(estimates, slope)


@pytest.mark.parametrize("name", sorted(LEARNED))
def test_a_temperature_is_not_learned_through_a_surrogate(name):
    at = numbers(0.3, -0.2).requires_grad_()

    def f(b: Tensor) -> Tensor:
        return expectation(lambda y: y**2, td.Normal(at * b, 1.0), "score")

    with pytest.raises(ConfigError, match="use learn_temperature=False"):
        expectation(f, td.Bernoulli(logits=at), GRADIENTS[name](), 1)


def test_a_normal_above_a_bit_is_right():
    at = [torch.full((REPEATS,), v, dtype=F64, requires_grad=True) for v in (0.4, 0.5)]

    def f(y: Tensor) -> Tensor:
        return expectation(lambda b: (b - 0.3) ** 2 + b * y, td.Bernoulli(logits=y), "score", 2)

    value = expectation(f, td.Normal(*at), samples=3)

    def exact(loc: Tensor, scale: Tensor) -> Tensor:
        nodes, weights = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(60))
        y = loc + scale * nodes
        return (weights / math.sqrt(2 * math.pi) * ((1 - y.sigmoid()) * 0.09 + y.sigmoid() * (0.49 + y))).sum()

    truth = [numbers(0.4).requires_grad_(), numbers(0.5).requires_grad_()]
    known = torch.autograd.grad(exact(*truth), truth)
    for estimates, slope in zip(torch.autograd.grad(value.sum(), at), known, strict=True):
        within(estimates, slope[0])
