"""Gradients through samples: every estimator that declares itself unbiased is, on every law that it fits.

Where an estimator's randomness can be enumerated or integrated, draws are forced, and its mean and variance come out exactly;
elsewhere its mean over many independent estimates is held against the exact gradient, each coordinate at 4 standard errors.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributions as td

import xhat
from catalogue import EXPECTATIONS, F64, GRADIENTS, bits, numbers
from xhat import gradients
from xhat.distributions import Delta, Levels
from xhat.errors import ConfigError
from xhat.gradients import Mean, Pathwise, Score, expectation, gradient_of, honest

REPEATS = 4000


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def leaves(row) -> list[Tensor]:
    return [p.clone().requires_grad_() for p in row.parameters]


def within(estimates: Tensor, exact: Tensor, errors: float = 4.0) -> None:
    """Independent estimates (R, …) have this mean."""
    stderr = estimates.std(0) / math.sqrt(len(estimates))
    away = (estimates.mean(0) - exact).abs()
    assert (away <= errors * stderr + 1e-9).all(), f"off by {(away / stderr).max():.1f} standard errors"


FITS = [
    (name, law)
    for name, law in itertools.product(GRADIENTS, EXPECTATIONS)
    if GRADIENTS[name]().lacks(EXPECTATIONS[law].law(*leaves(EXPECTATIONS[law]))) is None
]
MISFITS = [pair for pair in itertools.product(GRADIENTS, EXPECTATIONS) if pair not in FITS]


def test_every_estimator_of_the_library_has_a_row_and_what_it_fits_is_as_known():
    assert {type(make()) for make in GRADIENTS.values()} >= set(gradients.GRADIENTS.values())
    assert {law for name, law in FITS if name == "pathwise"} == set(EXPECTATIONS) - {"Bernoulli", "ten bits", "Levels", "Poisson"}
    assert {law for name, law in FITS if name == "score"} == set(EXPECTATIONS) - {"Delta", "Uniform", "Pareto"}


# The generic proof


@pytest.mark.parametrize(("name", "law"), FITS)
def test_what_is_declared_unbiased_is(name, law):
    row, estimator = EXPECTATIONS[law], GRADIENTS[name]()
    assert estimator.unbiased
    samples = max(3, estimator.fewest_samples)
    exact_at = leaves(row)
    exact_value = row.exact(*exact_at)
    exact = torch.autograd.grad(exact_value.sum(), exact_at)
    # Each repeat is one row of a batch, with parameters of its own: a baseline is shared, gradients are not.
    wide = [p.expand(REPEATS, *p.shape).clone().requires_grad_() for p in row.parameters]

    def f(z: Tensor) -> Tensor:
        return row.f(z, *wide)

    for _ in range(3):  # a lagged baseline has something to lag behind
        value = expectation(f, row.law(*wide), estimator, samples)
    assert value.shape == (REPEATS, *exact_value.shape)
    within(value.detach(), exact_value.detach())
    for estimates, truth in zip(torch.autograd.grad(value.sum(), wide), exact, strict=True):
        within(estimates, truth)


@pytest.mark.parametrize(("name", "law"), FITS)
def test_the_value_is_the_plain_average_of_f_whatever_the_gradient(name, law):
    row, estimator = EXPECTATIONS[law], GRADIENTS[name]()
    parameters = leaves(row)
    seen = []

    def f(z: Tensor) -> Tensor:
        values = row.f(z, *parameters)
        seen.append(values.detach())
        return values

    value = expectation(f, row.law(*parameters), estimator, samples=5)
    assert estimator.evaluations(5) == sum(len(values) for values in seen) == 5
    assert torch.equal(value.detach(), torch.cat(seen).mean(0))
    assert value.requires_grad


@pytest.mark.parametrize(("name", "law"), MISFITS)
def test_what_does_not_fit_is_refused_before_anything_is_drawn(name, law):
    row = EXPECTATIONS[law]

    def f(z: Tensor) -> Tensor:
        raise AssertionError("f was called")

    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match=r"needs .* does not have; gradients that fit: [a-z]+"):
        expectation(f, row.law(*leaves(row)), GRADIENTS[name](), samples=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_pathwise_through_bits_names_what_fits():
    q = td.Independent(td.Bernoulli(logits=torch.zeros(3)), 1)
    with pytest.raises(ConfigError, match=r"'pathwise' needs .*rsample.* Independent\(Bernoulli\) .* that fit: score$"):
        expectation(lambda z: z.sum(-1), q)


def _one() -> Tensor:
    return torch.ones(2, dtype=F64, requires_grad=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: td.Uniform(torch.zeros(2, dtype=F64), _one()),
        lambda: td.Pareto(_one(), _one()),
        lambda: td.GeneralizedPareto(_one(), _one(), _one()),
        lambda: Delta(_one()),
        lambda: td.Independent(td.Uniform(torch.zeros(2, dtype=F64), _one()), 1),
        lambda: td.TransformedDistribution(td.Exponential(torch.ones(2, dtype=F64)), [td.AffineTransform(_one(), 1.0)]),
        lambda: td.MixtureSameFamily(
            td.Categorical(logits=torch.zeros(2, dtype=F64)), td.Uniform(torch.zeros(2, dtype=F64), _one())
        ),
    ],
    ids=["Uniform", "Pareto", "GeneralizedPareto", "Delta", "Independent", "shifted", "mixture"],
)
def test_the_score_is_refused_where_the_support_moves(make):
    with pytest.raises(ConfigError, match=r"the gradient 'score' needs a log_prob whose derivative tells how the law moves"):
        expectation(lambda z: z.sum(-1) if z.ndim > 1 else z, make(), "score")


# Exact means and variances, with forced draws


class ForcedBernoulli(td.Bernoulli):
    """Draws that the test chooses, ``(S, *batch)``."""

    def sample(self, sample_shape=()):
        return self.forced


class ForcedNormal(td.Normal):
    def sample(self, sample_shape=()):
        return (self.loc + self.scale * self.noise).detach()

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * self.noise


def bernoulli_moments(estimator, samples: int, t: float, p: float) -> tuple[float, float]:
    """Exact mean and variance of the gradient of E[(b − t)²] in the logit: all draws of `samples` bits, with their weights."""
    draws = bits(samples)
    logits = torch.full((len(draws),), math.log(p / (1 - p)), dtype=F64, requires_grad=True)
    q = ForcedBernoulli(logits=logits)
    q.forced = draws.T
    value = expectation(lambda b: (b - t) ** 2, q, estimator, samples)
    (slope,) = torch.autograd.grad(value.sum(), logits)
    weight = (draws * p + (1 - draws) * (1 - p)).prod(1)
    mean = (weight * slope).sum().item()
    return mean, (weight * slope**2).sum().item() - mean**2


def normal_moments(estimator, f, loc: float = 1.0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean and variance of the one-draw gradient in (loc, scale), by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weight = torch.tensor(weights / math.sqrt(2 * math.pi))
    at = [torch.full((len(nodes),), v, dtype=F64, requires_grad=True) for v in (loc, scale)]
    q = ForcedNormal(*at)
    q.noise = torch.tensor(nodes)[None]
    slopes = torch.autograd.grad(expectation(f, q, estimator).sum(), at)
    means = [(weight * s).sum().item() for s in slopes]
    return np.array(means), np.array([(weight * s**2).sum().item() - m**2 for s, m in zip(slopes, means, strict=True)])


@pytest.mark.parametrize(
    ("t", "p", "single", "pair"), [(0.499, 0.5, 1.5625e-2, 2.5e-7), (0.45, 0.3, 1.5594e-2, 6.09e-4)], ids=["even", "uneven"]
)
def test_exact_moments_for_one_bit(t, p, single, pair):
    truth = p * (1 - p) * (1 - 2 * t)
    mean, variance = bernoulli_moments(Score(), 1, t, p)
    assert mean == pytest.approx(truth, rel=1e-9)
    assert variance == pytest.approx(single, rel=1e-3)
    mean, variance = bernoulli_moments(Score("leave-one-out"), 2, t, p)
    assert mean == pytest.approx(truth, rel=1e-9)
    assert variance == pytest.approx(pair, rel=1e-3)


@pytest.mark.parametrize("samples", [2, 3, 5])
@pytest.mark.parametrize("name", ["score", "score, leave-one-out"])
def test_exactly_unbiased_for_any_number_of_draws(name, samples):
    mean, _ = bernoulli_moments(GRADIENTS[name](), samples, 0.3, 0.8)
    assert mean == pytest.approx(0.16 * 0.4, rel=1e-9)


def test_exact_moments_for_a_square_under_a_normal():
    mean, variance = normal_moments(Score(), lambda z: z**2)
    np.testing.assert_allclose(mean, [2, 2], rtol=1e-8)
    np.testing.assert_allclose(variance, [30, 136], rtol=1e-8)
    mean, variance = normal_moments(Pathwise(), lambda z: z**2)
    np.testing.assert_allclose(mean, [2, 2], rtol=1e-8)
    np.testing.assert_allclose(variance, [4, 12], rtol=1e-8)


def test_the_same_variances_from_real_draws():
    at = [torch.ones(100_000, dtype=F64, requires_grad=True) for _ in range(2)]
    for name, known in (("score", (30, 136)), ("pathwise", (4, 12))):
        value = expectation(lambda z: z**2, td.Normal(*at), name)
        for slopes, variance in zip(torch.autograd.grad(value.sum(), at), known, strict=True):
            squares = (slopes - 2).square()
            within(squares, torch.tensor(float(variance), dtype=F64))


def test_pathwise_is_not_always_the_better_one():
    omega = 6.0
    means = {}
    for name, limit in (("pathwise", omega**2 / 2), ("score", 0.5)):
        mean, variance = normal_moments(GRADIENTS[name](), lambda z: torch.cos(omega * z), loc=0.3)
        assert variance[0] == pytest.approx(limit, rel=0.02)
        means[name] = mean[0]
    assert means["pathwise"] == pytest.approx(-omega * math.sin(omega * 0.3) * math.exp(-(omega**2) / 2), abs=1e-9)
    assert means["score"] == pytest.approx(means["pathwise"], abs=1e-9)


@pytest.mark.parametrize("k", [1, 4, 32])
def test_why_the_variance_is_high(k):
    """Theory 7.3's table: ½|z|² under N(0, I) in k dimensions."""
    loc = torch.zeros(20_000, k, dtype=F64, requires_grad=True)
    q = td.Independent(td.Normal(loc, 1.0), 1)
    best = (k + 2) / 2
    for name, f, variance in (
        ("pathwise", lambda z: 0.5 * z.square().sum(-1), 1.0),
        ("score", lambda z: 0.5 * z.square().sum(-1), (k + 2) * (k + 4) / 4),
        ("score", lambda z: 0.5 * z.square().sum(-1) - best, (k + 2) / 2),
    ):
        (slopes,) = torch.autograd.grad(expectation(f, q, name).sum(), loc)
        within(slopes[:, 0].square(), torch.tensor(variance, dtype=F64))
    assert ((32 + 2) * (32 + 4) / 4, (32 + 2) / 2) == (306, 17)


def test_a_jump_is_invisible_to_pathwise_and_not_to_the_score():
    loc = torch.full((REPEATS,), 0.4, dtype=F64, requires_grad=True)
    q = td.Normal(loc, 1.0)

    def jump(z: Tensor) -> Tensor:
        return (1 + z.sign()) / 2

    assert torch.autograd.grad(expectation(jump, q).sum(), loc)[0].abs().max() == 0
    (slopes,) = torch.autograd.grad(expectation(jump, q, "score", 4).sum(), loc)
    within(slopes, q.log_prob(torch.zeros(REPEATS, dtype=F64)).exp()[0].detach())


def test_a_kink_does_no_harm():
    loc = torch.full((REPEATS,), 0.4, dtype=F64, requires_grad=True)
    (slopes,) = torch.autograd.grad(expectation(torch.relu, td.Normal(loc, 1.0), samples=4).sum(), loc)
    within(slopes, td.Normal(0.0, 1.0).cdf(torch.tensor(0.4, dtype=F64)))


@pytest.mark.parametrize("law", ["Gamma", "Beta", "Student's t", "continuous Bernoulli"])
def test_a_draw_moves_as_its_distribution_function_says(law):
    """Theory 7.2: ∂z/∂φ = −(∂F/∂φ) / q, with F differentiated numerically."""
    from scipy import stats

    cdfs = {
        "Gamma": lambda z, a, b: stats.gamma.cdf(z, a, scale=1 / b),
        "Beta": stats.beta.cdf,
        "Student's t": lambda z, df, loc, scale: stats.t.cdf(z, df, loc, scale),
        "continuous Bernoulli": lambda z, a: np.expm1(a * z) / np.expm1(a),
    }
    values = [p.clone().reshape(-1)[:1] + 0.1 for p in EXPECTATIONS[law].parameters]
    at = [v.clone().requires_grad_() for v in values]
    q = EXPECTATIONS[law].law(*at)
    z = q.rsample()
    density = q.log_prob(z.detach()).exp().item()
    for i, slope in enumerate(torch.autograd.grad(z.sum(), at)):
        if law == "Student's t" and i == 0:
            continue  # torch moves it with its Gamma at a fixed Normal: another velocity of the same flow
        h = 1e-5
        ends = []
        for sign in (1, -1):
            moved = [v.item() + (sign * h if i == j else 0.0) for j, v in enumerate(values)]
            ends.append(float(cdfs[law](z.item(), *moved)))
        assert slope.item() == pytest.approx(-(ends[0] - ends[1]) / (2 * h) / density, rel=1e-4)


# Traps


def test_a_mean_of_f_times_a_mean_of_scores_is_not_what_is_computed():
    logits = numbers(0.3).requires_grad_()
    q = ForcedBernoulli(logits=logits)
    q.forced = numbers(0.0, 1.0, 1.0)[:, None]
    p = q.probs.item()

    def f(b: Tensor) -> Tensor:
        return 3 * b + 1

    (slope,) = torch.autograd.grad(expectation(f, q, "score", 3).sum(), logits)
    right = (1 * (0 - p) + 4 * (1 - p) + 4 * (1 - p)) / 3
    wrong = (1 + 4 + 4) / 3 * ((0 - p) + (1 - p) + (1 - p)) / 3
    assert slope.item() == pytest.approx(right, rel=1e-12)
    assert slope.item() != pytest.approx(wrong, rel=1e-3)


@pytest.mark.parametrize("name", ["score", "score, leave-one-out", "score, lagged"])
def test_signals_multiply_each_example_before_the_sum_over_the_batch(name):
    """The gradient of an example is the same whoever stands beside it in the batch, and each meets its own f."""
    logits = torch.zeros(3, dtype=F64, requires_grad=True)
    q = ForcedBernoulli(logits=logits)
    q.forced = numbers(1, 0, 1, 0, 0, 1).reshape(2, 3)
    weights = numbers(1.0, 100.0, -7.0)
    value = expectation(lambda b: b * weights, q, GRADIENTS[name](), 2)
    (together,) = torch.autograd.grad(value.sum(), logits)
    for i in range(3):
        one = torch.zeros(1, dtype=F64, requires_grad=True)
        alone = ForcedBernoulli(logits=one)
        alone.forced = q.forced[:, i : i + 1]
        (slope,) = torch.autograd.grad(expectation(lambda b, i=i: b * weights[i], alone, GRADIENTS[name](), 2).sum(), one)
        torch.testing.assert_close(slope, together[i : i + 1])


def test_leave_one_out_is_the_formula_and_a_baseline_with_its_own_sample_shrinks_the_gradient():
    values = torch.randn(4, 5, dtype=F64)
    others = torch.stack([values[[j for j in range(4) if j != i]].mean(0) for i in range(4)])
    torch.testing.assert_close(Mean().leave_one_out(values), (values - others) / 4)
    torch.testing.assert_close(values - others, 4 / 3 * (values - values.mean(0)))
    for samples in (1, 2, 3):
        draws = bits(samples)
        p = 0.3
        weight = (draws * p + (1 - draws) * (1 - p)).prod(1)
        f = (draws.T - 0.2) ** 2
        own = (weight * (Mean().signal(f, f.mean(0)) * (draws.T - p)).sum(0)).sum().item()
        assert own == pytest.approx((1 - 1 / samples) * p * (1 - p) * 0.6, abs=1e-12)


def test_leave_one_out_needs_two_draws_and_an_f_of_the_right_shape():
    q = td.Independent(td.Bernoulli(logits=torch.zeros(4, 3)), 1)
    with pytest.raises(ConfigError, match="needs samples of at least 2, was 1"):
        expectation(lambda z: z.sum(-1), q, Score("leave-one-out"), samples=1)
    with pytest.raises(ConfigError, match="samples must be at least 1, was 0"):
        expectation(lambda z: z.sum(-1), q, "score", samples=0)
    for wrong in (lambda z: z, lambda z: z.sum((-1, -2)), lambda z: z.sum(), lambda z: z.sum(-1).mean(0)):
        with pytest.raises(ConfigError, match=r"f must map .* here \(2, 4, 3\) to \(2, 4\), but it returned"):
            expectation(wrong, q, "score", samples=2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gradient_of("reparam"), "gradient must be one of pathwise, score, was 'reparam'"),
        (lambda: gradient_of("pathwise", baseline="none"), r"the gradient 'pathwise' .*option"),
        (lambda: Score("mean"), "baseline must be one of none, lagged, leave-one-out"),
        (lambda: Score("lagged", decay=1.0), r"decay must be in \[0, 1\)"),
    ],
)
def test_unknown_estimators_and_options_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize("name", ["score", "score, lagged", "score, leave-one-out"])
def test_differentiating_a_surrogate_twice_raises(name):
    logits = numbers(0.2, -0.3).requires_grad_()
    value = expectation(lambda z: (z * logits).square(), td.Bernoulli(logits=logits), GRADIENTS[name](), 2)
    (slope,) = torch.autograd.grad(value.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
        torch.autograd.grad(slope.sum(), logits, retain_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
        slope.sum().backward(retain_graph=True)
    with pytest.raises(
        RuntimeError, match="cannot be differentiated a second time"
    ):  # with a history in the incoming gradient too
        torch.autograd.grad(torch.autograd.grad(value.square().sum(), logits, create_graph=True)[0].sum(), logits)


def test_a_second_derivative_through_a_deeper_layer_raises_too():
    loc = numbers(0.3).requires_grad_()

    def f(y: Tensor) -> Tensor:
        return expectation(lambda b: b, td.Bernoulli(logits=y), "score")

    value = expectation(f, td.Normal(loc, 1.0))
    (slope,) = torch.autograd.grad(value.sum(), loc, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
        torch.autograd.grad(slope.sum(), loc)


def test_the_pathwise_second_derivative_is_right():
    at = [torch.full((REPEATS,), v, dtype=F64, requires_grad=True) for v in (0.5, 0.8)]
    value = expectation(lambda z: z**3, td.Normal(*at), samples=4)
    dloc, dscale = torch.autograd.grad(value.sum(), at, create_graph=True)
    second = [*torch.autograd.grad(dloc.sum(), at, retain_graph=True), torch.autograd.grad(dscale.sum(), at)[1]]
    for estimates, exact in zip(second, (6 * 0.5, 6 * 0.8, 6 * 0.5), strict=True):  # of μ³ + 3μσ²
        within(estimates, torch.tensor(exact, dtype=F64))


def test_honest_has_the_value_of_one_and_the_gradient_of_both():
    a = torch.tensor(3.0, dtype=F64, requires_grad=True)
    y = honest(a**2, 5 * a - 1000)
    assert y.item() == 9
    assert torch.autograd.grad(y, a)[0].item() == 6 + 5


# Several layers


@pytest.mark.parametrize("inner", ["score", "score, leave-one-out", "pathwise"])
@pytest.mark.parametrize("outer", ["score", "score, leave-one-out", "score, lagged"])
def test_a_nested_expectation_is_right(outer, inner):
    """E over b of E over y given b, with gradients in both laws' parameters; y Normal, or a bit below a bit."""
    at = [torch.full((REPEATS,), v, dtype=F64, requires_grad=True) for v in (0.4, -0.6, 0.9)]
    first, second = GRADIENTS[outer](), GRADIENTS[inner]()

    def below(b: Tensor) -> td.Distribution:
        return td.Normal(at[1] + at[2] * b, 0.7)

    def f(b: Tensor) -> Tensor:
        return expectation(lambda y: y**2 * (1 + b) + b, below(b), second, 3)

    for _ in range(3):
        value = expectation(f, td.Bernoulli(logits=at[0]), first, 3)
    slopes = torch.autograd.grad(value.sum(), at)
    truth = numbers(0.4, -0.6, 0.9).requires_grad_()
    p = truth[0].sigmoid()
    exact = (1 - p) * (truth[1] ** 2 + 0.49) + p * (2 * ((truth[1] + truth[2]) ** 2 + 0.49) + 1)
    within(value.detach(), exact.detach())
    (known,) = torch.autograd.grad(exact, truth)
    for estimates, slope in zip(slopes, known, strict=True):
        within(estimates, slope)


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


# The lagged baseline


def lagged_slope(estimator: Score, draw: float) -> float:
    logits = numbers(0.0).requires_grad_()
    q = ForcedBernoulli(logits=logits)
    q.forced = numbers(draw)[None]
    return torch.autograd.grad(expectation(lambda b: 10 + b, q, estimator).sum(), logits)[0].item()


def test_the_lagged_baseline_is_the_weighted_mean_of_earlier_values_only():
    estimator = Score("lagged", decay=0.5)
    assert lagged_slope(estimator, 1.0) == pytest.approx(11 * 0.5)  # nothing came before
    assert lagged_slope(estimator, 0.0) == pytest.approx((10 - 11) * -0.5)
    mean = (0.25 * 11 + 0.5 * 10) / 0.75
    assert lagged_slope(estimator, 1.0) == pytest.approx((11 - mean) * 0.5)


def test_the_lagged_baseline_stays_as_it_is_in_evaluation_mode():
    estimator = Score("lagged")
    lagged_slope(estimator, 1.0)
    before = {name: value.clone() for name, value in estimator.state_dict().items()}
    estimator.eval()
    assert lagged_slope(estimator, 0.0) == lagged_slope(estimator, 0.0) == pytest.approx((10 - 11) * -0.5, rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in estimator.state_dict().items())


def test_the_lagged_baseline_is_saved_and_restored():
    estimator, again = Score("lagged"), Score("lagged")
    for draw in (1.0, 0.0, 1.0):
        lagged_slope(estimator, draw)
    again.load_state_dict(estimator.state_dict())
    assert lagged_slope(again, 1.0) == lagged_slope(estimator, 1.0)
    assert estimator.average != 0


def test_the_lagged_baseline_holds_nothing_of_a_deeper_layer_that_shares_it():
    """The deeper layer's values are taken at this layer's draw: a baseline that has met them would depend on that draw."""
    estimator, slopes = Score("lagged", decay=0.0), []
    for draw in (0.0, 1.0):
        estimator.load_state_dict({"average": torch.tensor(2.0), "seen": torch.tensor(1.0)})
        logits = numbers(0.0).requires_grad_()
        q = ForcedBernoulli(logits=logits)
        q.forced = numbers(draw)[None]

        def f(b: Tensor) -> Tensor:
            return expectation(lambda y: 0 * y + 100 * b, td.Bernoulli(probs=torch.full_like(b, 0.5)), estimator)

        (slope,) = torch.autograd.grad(expectation(f, q, estimator).sum(), logits)
        slopes.append(slope.item())
    assert slopes == [pytest.approx((0 - 2) * -0.5), pytest.approx((100 - 2) * 0.5)]


# Monte Carlo (theory 2)


def test_an_estimate_has_the_variance_of_f_over_the_number_of_draws():
    q = td.Normal(torch.zeros(20_000, dtype=F64), 1.0)
    for samples in (1, 4, 16):
        values = expectation(lambda z: z**2, q, samples=samples)
        within(values, torch.tensor(1.0, dtype=F64))
        within((values - 1).square(), torch.tensor(2.0 / samples, dtype=F64))


def test_the_public_name_is_this_function():
    assert xhat.expectation is expectation
    q = Levels(torch.zeros(2, 3, dtype=F64))
    assert expectation(lambda z: z, q, "score", 6).shape == (2,)
