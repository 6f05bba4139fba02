"""Laws at their limits: logits of ±40 and of ±∞, temperatures near 0, hundreds of elements, single numbers, other shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from catalogue import EXPECTATIONS, F64, GRADIENTS, OF_BOUNDS, numbers
from proofs import FITS, REPEATS, UNBIASED, away, independent, one_hots, shown, within
from xhat.distributions import Levels
from xhat.gradients import REBAR, RELAX, Concrete, Gradient, GumbelRao, STGumbel, expectation

INF = math.inf


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def bent_bits(z: Tensor) -> Tensor:
    return (z.sum(-1) - 1.3) ** 2 + z[..., 0] * z[..., 2]


def bent_categories(z: Tensor) -> Tensor:
    return (z * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=z.dtype)).sum(-1) ** 2


def bent_pairs(z: Tensor) -> Tensor:
    return (z[..., 0, 0] + 2 * z[..., 1, 1] + z[..., 0, 1] * z[..., 1, 0]) ** 2


def _pair(logits: Tensor) -> td.Distribution:
    return one_hots(logits.unflatten(-1, (2, 2)))


LIMITS: dict[str, tuple[Callable, tuple[float, ...], Callable]] = {
    "bits of ±40": (independent, (40.0, -40.0, 0.5), bent_bits),
    "bits of ±100": (independent, (100.0, -100.0, 0.5), bent_bits),
    "certain bits": (independent, (INF, -INF, 0.5), bent_bits),
    "a category of 40": (lambda a: td.OneHotCategorical(logits=a), (40.0, -40.0, 0.0, 1.0), bent_categories),
    "a category of -40": (lambda a: td.OneHotCategorical(logits=a), (0.0, -40.0, 0.0, 1.0), bent_categories),
    "an impossible category": (lambda a: td.OneHotCategorical(logits=a), (0.3, -INF, 0.0, 1.0), bent_categories),
    "two impossible ones": (lambda a: td.OneHotCategorical(logits=a), (0.3, -INF, -INF, 1.0), bent_categories),
    "a certain one": (lambda a: td.OneHotCategorical(logits=a), (0.3, -INF, -INF, -INF), bent_categories),
    "two variables of 40": (_pair, (40.0, 0.0, 40.0, 0.0), bent_pairs),
    "one certain, one not": (_pair, (-INF, 0.0, 0.3, 0.0), bent_pairs),
    "levels": (Levels, (0.3, -INF, 0.0, 1.0), lambda z: (z + 1) ** 2),
    "numbers of categories": (lambda a: td.Categorical(logits=a), (0.3, -INF, 40.0, 1.0), lambda z: (z + 1.0) ** 2),
}
AT_LIMITS = [
    (name, limit)
    for limit, (law, at, _) in LIMITS.items()
    for name in GRADIENTS
    if name not in OF_BOUNDS and GRADIENTS[name]().lacks(law(torch.tensor(at))) is None
]


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "limit"), AT_LIMITS)
def test_at_its_limits_a_law_has_a_finite_value_and_the_exact_gradient(name, limit, dtype):
    law, at, f = LIMITS[limit]
    logits = torch.tensor(at, dtype=dtype).requires_grad_()
    exact = expectation(f, law(logits), "enumerate")
    (exact_slope,) = torch.autograd.grad(exact, logits)
    assert exact_slope.isfinite().all()
    estimator = GRADIENTS[name]().to(dtype)
    for samples in sorted({estimator.usable(1), estimator.usable(4)}):
        wide = logits.detach().expand(REPEATS, -1).clone().requires_grad_()
        q = law(wide)
        value = expectation(f, q, shown(estimator, q), samples)
        (slopes,) = torch.autograd.grad(value.sum(), wide)
        assert value.isfinite().all()
        assert slopes.isfinite().all()
        loss = estimator.auxiliary_loss()
        if loss is not None:
            loss.backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in estimator.parameters())
        rounding = 1e-5 if dtype is torch.float32 else 1e-9
        for estimates, truth in [(value.detach(), exact.detach())] + [(slopes, exact_slope)] * estimator.unbiased:
            off = (estimates.mean(0) - truth).abs()
            assert (off <= 4.5 * estimates.std(0) / math.sqrt(REPEATS) + rounding * (1 + truth.abs())).all()


def test_what_cannot_be_drawn_counts_for_nothing_even_where_f_is_infinite_there():
    logits = torch.tensor([[0.3, -INF, 0.0], [-INF, 1.0, 0.5]], dtype=F64, requires_grad=True)

    def f(z: Tensor) -> Tensor:
        blocked = td.OneHotCategorical(logits=logits, validate_args=False).log_prob(z)
        return torch.where(blocked.isfinite(), z[..., 2] ** 2, INF)

    for name in ("enumerate", "sum-and-sample", "unordered-set", "carms", "rloo"):
        for samples in {GRADIENTS[name]().usable(2), GRADIENTS[name]().usable(3)}:
            value = expectation(f, td.OneHotCategorical(logits=logits), name, samples)
            (slope,) = torch.autograd.grad(value.sum(), logits)
            assert value.isfinite().all()
            assert slope.isfinite().all()


@pytest.mark.parametrize("law", ["bits in a wave", "several one-hot Categoricals", "Levels"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Concrete(1e-3),
        lambda: STGumbel(1e-3),
        lambda: GumbelRao(temperature=1e-3),
        lambda: REBAR(1e-3),
        lambda: RELAX(temperature=1e-3),
        lambda: Concrete(1e3),
        lambda: REBAR(1e3),
    ],
    ids=["concrete", "st-gumbel", "gumbel-rao", "rebar", "relax", "concrete, hot", "rebar, hot"],
)
def test_temperatures_near_0_and_very_high_stay_finite(make, law):
    row = EXPECTATIONS[law]
    for dtype in (torch.float32, F64):
        estimator = make()
        wide = [p.expand(REPEATS, *p.shape).to(dtype).clone().requires_grad_() for p in row.parameters]
        value = expectation(lambda z, wide=wide: row.f(z.to(F64), *[p.to(F64) for p in wide]), row.law(*wide), estimator)
        for slope in torch.autograd.grad(value.sum(), wide):
            assert slope.isfinite().all()
        loss = estimator.auxiliary_loss()
        if loss is not None:
            loss.backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in estimator.parameters())


@pytest.mark.parametrize("temperature", [0.05, 5.0])
@pytest.mark.parametrize("law", ["bits in a wave", "one-hot Categorical"])
def test_rebar_is_unbiased_at_every_temperature(law, temperature):
    row = EXPECTATIONS[law]
    at = [p.clone().requires_grad_() for p in row.parameters]
    wide = [p.expand(5 * REPEATS, *p.shape).clone().requires_grad_() for p in row.parameters]
    value = expectation(lambda z: row.f(z, *wide), row.law(*wide), REBAR(temperature), 2)
    within(torch.autograd.grad(value.sum(), wide)[0], torch.autograd.grad(row.exact(*at).sum(), at)[0])


# Many elements, and few


def _many(kind: str) -> tuple[Tensor, Callable[[Tensor], td.Distribution], Tensor]:
    """Logits, law and the weights of a linear f, of what stands in practice."""
    if kind == "200 bits":
        return torch.randn(5, 200, dtype=F64), independent, torch.randn(5, 200, dtype=F64)
    # No category so rare that its standard error is a matter of luck.
    return 0.3 * torch.randn(3, 20, 10, dtype=F64), one_hots, torch.randn(3, 20, 10, dtype=F64)


MANY = [
    (name, kind)
    for kind in ("200 bits", "20 categoricals of 10")
    for name in GRADIENTS
    if name not in OF_BOUNDS and GRADIENTS[name]().lacks(_many(kind)[1](_many(kind)[0])) is None
]


@pytest.mark.parametrize(("name", "kind"), MANY)
def test_many_elements_with_a_batch(name, kind):
    """Shapes are right, and the gradient of a linear f is unbiased in every coordinate (of 1000, or 600)."""
    torch.manual_seed(1)
    logits, law, weights = _many(kind)
    estimator = GRADIENTS[name]()
    judged = estimator.unbiased or name in ("straight-through", "reinmax")
    repeats = 12 if name == "measure" else 500 if judged else 20

    def f(z: Tensor) -> Tensor:
        return (z * weights).flatten(z.ndim - weights.ndim + 1).sum(-1)

    wide = logits.expand(repeats, *logits.shape).clone().requires_grad_()
    q = law(wide)
    value = expectation(f, q, shown(estimator, q), estimator.usable(2))
    (slopes,) = torch.autograd.grad(value.sum(), wide)
    assert value.shape == (repeats, len(logits))
    at = logits.clone().requires_grad_()
    mean = law(at).mean
    exact = (mean * weights).flatten(1).sum(1)
    within(value.detach(), exact.detach())
    (exact_slope,) = torch.autograd.grad(exact.sum(), at)
    if name == "measure":  # with few repeats the tails are heavier than a Normal's
        within(slopes, exact_slope, errors=12)
    elif judged:
        off = away(slopes, exact_slope)
        # Of a thousand coordinates one or two lie beyond three and a half; none may lie far out.
        assert off.max() < 5.5
        assert (off > 3).double().mean() < 0.02
        assert off.square().mean() < 1.6


@pytest.mark.parametrize("name", sorted({name for name, _ in FITS}))
def test_laws_of_a_single_number_of_two_event_axes_of_no_batch_and_expanded_ones(name):
    estimator = GRADIENTS[name]()
    like = torch.tensor(0.3, dtype=F64, requires_grad=True)
    table = torch.randn(2, 3, 4, dtype=F64, requires_grad=True)
    laws: list[td.Distribution] = [
        td.Bernoulli(logits=like),
        td.Bernoulli(probs=torch.tensor([0.0, 1.0, 0.5], dtype=F64, requires_grad=True)),
        td.Independent(td.Bernoulli(logits=table), 2),
        td.Independent(td.Bernoulli(logits=table), 3),
        td.Bernoulli(logits=table).expand((5, 2, 3, 4)),
        td.OneHotCategorical(logits=table[0, 0]),
        td.OneHotCategorical(probs=table.softmax(-1)),
        td.Independent(td.OneHotCategorical(logits=table), 2),
        td.Normal(like, 1.0),
        td.Normal(like, torch.ones(3, 2, dtype=F64)),
        td.Independent(td.Normal(table, 1.0), 2),
        td.Exponential(table.exp()),
        td.Poisson(like.exp()),
    ]
    served = 0
    for q in laws:
        if estimator.lacks(q) is not None:
            continue
        served += 1

        def f(z: Tensor, axes: int = len(q.event_shape)) -> Tensor:
            return ((z - 0.3) ** 2).flatten(z.ndim - axes).sum(-1) if axes else (z - 0.3) ** 2

        value = expectation(f, q, shown(estimator, q), estimator.usable(2))
        assert value.shape == q.batch_shape
        value.sum().backward()
        assert value.isfinite().all()
    assert served
    assert like.grad is None or like.grad.isfinite()
    assert table.grad is None or table.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted({name for name, _ in UNBIASED}))
def test_half_of_the_parameters_may_be_fixed(name):
    """A law of which only one parameter is learned, or none: nothing else is asked for a gradient."""
    inside = torch.tensor(2.0, dtype=F64, requires_grad=True)
    for q in (td.Normal(numbers(0.3), numbers(1.0).requires_grad_()), td.Bernoulli(logits=numbers(0.3, 0.1))):
        estimator: Gradient = GRADIENTS[name]()
        if estimator.lacks(q) is None:
            value = expectation(lambda z: inside * z**2, q, shown(estimator, q), estimator.usable(2))
            value.sum().backward()
            assert inside.grad.isfinite()
