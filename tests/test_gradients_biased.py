"""Estimators that are declared biased: their bias is shown, and so are the cases in which it vanishes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from catalogue import EXPECTATIONS, F64, GRADIENTS, OF_BOUNDS, numbers
from proofs import REPEATS, away, exactly, forced_bits, forced_categories, independent, one_hots, repeated, within
from xhat.gradients import Concrete, Gradient, GumbelRao, ReinMax, STGumbel, StraightThrough, expectation

NAMES = [name for name, make in GRADIENTS.items() if name not in OF_BOUNDS and not make().unbiased]
LOGITS = numbers(0.7, -1.3, 0.2)
TABLE = torch.tensor([[0.2, 0.9, -0.5], [1.0, -1.0, 0.3]], dtype=F64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_these_are_declared_biased_and_no_others():
    assert {name.partition(",")[0] for name in NAMES} == {"concrete", "straight-through", "st-gumbel", "gumbel-rao", "reinmax"}


@pytest.mark.parametrize("law", ["bits in a wave", "one-hot Categorical"])
@pytest.mark.parametrize("name", NAMES)
def test_the_bias_shows_where_f_bends(name, law):
    samples = 150 if name == "concrete, cold" else 10
    found = repeated(EXPECTATIONS[law], GRADIENTS[name](), samples, calls=1)
    assert away(found.slopes[0], found.exact_slopes[0]).max() > 6


def truth(logits: Tensor, law: Callable, f: Callable) -> Tensor:
    at = logits.clone().requires_grad_()
    return torch.autograd.grad(expectation(lambda z: f(z, at), law(at), "enumerate"), at)[0]


# Where it vanishes


def linear(z: Tensor, logits: Tensor) -> Tensor:
    return (numbers(1.0, -2.0, 0.5) * z).sum(-1) * (1 + logits[..., 0]) + logits.square().sum(-1)


def multilinear(z: Tensor, logits: Tensor) -> Tensor:
    """Linear in each bit, whatever the others are."""
    return z[..., 0] * (1 - 3 * z[..., 1]) + 2 * z[..., 0] * z[..., 1] * z[..., 2] * logits[..., 1] + z[..., 2]


def quadratic(z: Tensor, logits: Tensor) -> Tensor:
    """Quadratic in each bit, whatever the others are."""
    return (z[..., 0] - 0.3).square() * (2 + z[..., 1].square()) + 3 * (z[..., 1] - 2 * z[..., 2] + logits[..., 0]).square()


def crossed(z: Tensor, logits: Tensor) -> Tensor:
    """Linear in each one-hot vector, whatever the other is."""
    matrix = numbers(0.3, -1.0, 2.0, 1.0, 0.0, -0.5, 4.0, 0.7, 0.1).reshape(3, 3)
    return torch.einsum("...i,ij,...j->...", z[..., 0, :], matrix, z[..., 1, :]) + logits[..., 0, 0]


def squared(z: Tensor, logits: Tensor) -> Tensor:
    """Quadratic in each one-hot vector, with products of its own coordinates, whatever the other is."""
    first, second = z[..., 0, :], z[..., 1, :]
    turned = first[..., 0] - 0.7 * first[..., 1] + 2 * first[..., 2]
    return (turned - 0.3).square() * (1 + second[..., 1]) + (second * numbers(1.0, 2.0, -1.0)).sum(-1).square()


@pytest.mark.parametrize("f", [linear, multilinear], ids=["linear", "multilinear"])
@pytest.mark.parametrize("estimator", [StraightThrough(), ReinMax()], ids=["straight-through", "reinmax"])
def test_exact_on_f_that_is_linear_in_each_bit(estimator, f, monkeypatch):
    exact = truth(LOGITS, independent, f)
    found = exactly(estimator, 1, LOGITS, independent, f, forced_bits(monkeypatch, LOGITS, 1))
    torch.testing.assert_close(found.mean, exact)


@pytest.mark.parametrize("estimator", [StraightThrough(), ReinMax()], ids=["straight-through", "reinmax"])
def test_exact_on_f_that_is_linear_in_each_one_hot_vector(estimator, monkeypatch):
    exact = truth(TABLE, one_hots, crossed)
    found = exactly(estimator, 1, TABLE, one_hots, crossed, forced_categories(monkeypatch, TABLE, 1))
    torch.testing.assert_close(found.mean, exact)


@pytest.mark.parametrize(
    ("logits", "law", "f", "force"),
    [(LOGITS, independent, quadratic, forced_bits), (TABLE, one_hots, squared, forced_categories)],
    ids=["bits", "one-hot"],
)
def test_reinmax_is_exact_on_quadratic_f_and_straight_through_is_not(logits, law, f, force, monkeypatch):
    exact = truth(logits, law, f)
    weight = force(monkeypatch, logits, 1)
    torch.testing.assert_close(exactly(ReinMax(), 1, logits, law, f, weight).mean, exact)
    assert (exactly(StraightThrough(), 1, logits, law, f, weight).mean - exact).abs().max() > 0.05


def test_reinmax_on_a_cubic_is_off_by_what_the_trapezoid_leaves_out(monkeypatch):
    """The trapezoidal rule on f' = 3 b² gives 3/2 where the integral is 1."""
    logits = numbers(0.4)
    found = exactly(ReinMax(), 1, logits, independent, lambda z, at: (z**3).sum(-1), forced_bits(monkeypatch, logits, 1))
    p = logits.sigmoid()
    torch.testing.assert_close(found.mean, 1.5 * p * (1 - p))


def test_straight_through_bits_and_bits_as_two_categories_agree_for_reinmax(monkeypatch):
    """A bit is a category of two: ReinMax's gradient in the logit is the same either way."""
    logits = numbers(0.4)
    bit = exactly(ReinMax(), 1, logits, independent, lambda z, at: (z**3 + z).sum(-1), forced_bits(monkeypatch, logits, 1))
    pair = torch.stack([torch.zeros(1, dtype=F64), logits], -1)
    monkeypatch.undo()
    weight = forced_categories(monkeypatch, pair, 1)
    pair_moments = exactly(ReinMax(), 1, pair, one_hots, lambda z, at: (z[..., 1] ** 3 + z[..., 1]).sum(-1), weight)
    torch.testing.assert_close(pair_moments.mean[0, 1], bit.mean[0])
    torch.testing.assert_close(pair_moments.mean[0, 0], -bit.mean[0])


# Temperatures


def steep(z: Tensor) -> Tensor:
    return torch.exp(2 * z)


def slopes_of(estimator: Gradient, repeats: int, samples: int = 1) -> Tensor:
    logits = torch.full((repeats,), -0.5, dtype=F64, requires_grad=True)
    value = expectation(steep, td.Bernoulli(logits=logits), estimator, samples)
    return torch.autograd.grad(value.sum(), logits)[0]


def test_as_the_temperature_falls_the_bias_falls_and_the_variance_grows():
    p = numbers(-0.5).sigmoid()
    exact = (p * (1 - p) * (torch.e**2 - 1)).squeeze()
    found = [slopes_of(Concrete(temperature), 400_000) for temperature in (2.0, 1.0, 0.5, 0.25, 0.1)]
    biases = [(s.mean() - exact).abs().item() for s in found]
    variances = [s.var().item() for s in found]
    assert biases == sorted(biases, reverse=True)
    assert variances == sorted(variances)
    assert biases[-1] < 0.06 * biases[0]
    assert all(away(s, exact) > 6 for s in found)
    within(slopes_of(Concrete(0.01), 400_000), exact)


def test_a_schedule_falls_geometrically_and_stays():
    for make in (Concrete, STGumbel, lambda *args, **options: GumbelRao(10, *args, **options)):
        estimator = make(1.0, final=0.01, epochs=10)
        temperatures = []
        for epoch in (0, 5, 10, 50):
            estimator.at(epoch)
            temperatures.append(estimator.schedule.now.item())
        assert temperatures == pytest.approx([1.0, 0.1, 0.01, 0.01])
        fixed = make(0.3)
        fixed.at(7)
        assert fixed.schedule.now.item() == pytest.approx(0.3)
    estimator = Concrete(1.0, final=0.01, epochs=10)
    before = slopes_of(estimator, REPEATS).var()
    estimator.at(5)
    assert slopes_of(estimator, REPEATS).var() > 2 * before


def test_a_schedule_s_place_is_saved_and_restored():
    estimator, again = Concrete(1.0, final=0.01, epochs=10), Concrete(1.0, final=0.01, epochs=10)
    estimator.at(5)
    again.load_state_dict(estimator.state_dict())
    assert again.schedule.now.item() == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["bits", "categories"])
def test_gumbel_rao_has_the_mean_of_st_gumbel_and_less_variance(kind):
    row = EXPECTATIONS["bits in a wave" if kind == "bits" else "several one-hot Categoricals"]
    found = {}
    for name, estimator in (("plain", STGumbel()), ("few", GumbelRao(draws=2)), ("many", GumbelRao(draws=30))):
        found[name] = repeated(row, estimator, 1, repeats=20_000, calls=1).slopes[0]
    variance = {name: slopes.var(0) for name, slopes in found.items()}
    for better, worse in (("few", "plain"), ("many", "few")):
        error = ((found[better].var(0) + found[worse].var(0)) / 20_000).sqrt()
        assert ((found[better].mean(0) - found[worse].mean(0)).abs() < 4 * error + 1e-12).all()
        assert variance[better].sum() < variance[worse].sum()


def test_gumbel_rao_of_one_draw_is_st_gumbel_in_law():
    found = [repeated(EXPECTATIONS["one-hot Categorical"], e, 1, 20_000, calls=1).slopes[0] for e in (STGumbel(), GumbelRao(1))]
    for moment in (1, 2):
        first, second = found[0] ** moment, found[1] ** moment
        assert ((first.mean(0) - second.mean(0)).abs() < 4 * ((first.var(0) + second.var(0)) / 20_000).sqrt() + 1e-12).all()


def test_the_draw_given_the_code_has_the_law_of_a_draw_with_that_code():
    """What GumbelRao, REBAR and RELAX redraw: joined with the code it has the unconditional law."""
    from scipy import stats

    from xhat.gradients.components import components_of

    for q in (
        td.Bernoulli(logits=numbers(0.7).expand(20_000, 1)),
        td.OneHotCategorical(logits=numbers(0.2, 0.9, -0.5).expand(20_000, 3)),
    ):
        law = components_of(q)
        code = law.sample(1)
        again, moved = law.given(code)
        assert torch.equal(law.harden(again), code)
        assert ((moved >= 0) & (moved <= 1)).all()
        plain = law.logits + law.noise(1)
        for k in range(again.shape[-1]):
            assert stats.ks_2samp(again[..., k].flatten().numpy(), plain[..., k].flatten().numpy()).pvalue > 1e-3
