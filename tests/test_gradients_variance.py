"""Exact variances of estimators, and what the theory says of them.

The figures are those of the problem's own papers: one bit with (b - t)², and x² under a Normal.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributions as td

from catalogue import EXPECTATIONS, F64, GRADIENTS, numbers
from proofs import REPEATS, exactly, forced_bits, forced_repelled, forced_uniforms, independent, within
from xhat.gradients import ARMS, CARMS, DisARM, Pathwise, Score, antithetic, expectation


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# One bit


def one_bit(name: str, samples: int, t: float, p: float, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """Exact mean and variance of the gradient of E[(b - t)²] in the logit."""
    logits = numbers(math.log(p / (1 - p)))
    if name == "arms":
        weight = forced_repelled(monkeypatch, numbers(min(p, 1 - p)), samples)
    else:
        weight = (forced_uniforms if name in ("arm", "disarm") else forced_bits)(monkeypatch, logits, samples)
    found = exactly(GRADIENTS[name](), samples, logits, independent, lambda z, at: ((z - t) ** 2).sum(-1), weight)
    return found.mean.item(), found.variance.item()


@pytest.mark.parametrize(
    ("t", "p", "name", "samples", "known"),
    [
        (t, p, name, samples, known)
        for t, p, row in ((0.499, 0.5, (1.5625e-2, 2.5e-7, 8.333e-8, 0.0)), (0.45, 0.3, (1.5594e-2, 6.09e-4, 3.39e-4, 2.94e-4)))
        for (name, samples), known in zip((("score", 1), ("rloo", 2), ("arm", 2), ("disarm", 2)), row, strict=True)
    ],
)
def test_exact_moments_for_one_bit(t, p, name, samples, known, monkeypatch):
    mean, variance = one_bit(name, samples, t, p, monkeypatch)
    assert mean == pytest.approx(p * (1 - p) * (1 - 2 * t), rel=1e-9)
    assert variance == pytest.approx(known, rel=1e-3, abs=1e-15)


def test_the_exact_moments_are_those_of_real_draws():
    t, p = 0.45, 0.3
    for name, samples, known in (("score", 1, 1.5594e-2), ("rloo", 2, 6.09e-4), ("arm", 2, 3.39e-4), ("disarm", 2, 2.94e-4)):
        logits = torch.full((200_000,), math.log(p / (1 - p)), dtype=F64, requires_grad=True)
        value = expectation(lambda z: (z - t) ** 2, td.Bernoulli(logits=logits), name, samples)
        (slopes,) = torch.autograd.grad(value.sum(), logits)
        within((slopes - p * (1 - p) * (1 - 2 * t)).square(), torch.tensor(known, dtype=F64), errors=5)


@pytest.mark.parametrize("samples", [2, 3, 5])
@pytest.mark.parametrize("name", ["score", "score, leave-one-out", "rloo", "double-cv", "muprop", "arms"])
def test_exactly_unbiased_for_any_number_of_draws(name, samples, monkeypatch):
    mean, _ = one_bit(name, samples, 0.3, 0.8, monkeypatch)
    assert mean == pytest.approx(0.16 * 0.4, rel=1e-9)


def test_a_linear_f_leaves_no_noise_where_its_slope_is_known(monkeypatch):
    logits = numbers(0.4, -1.0)
    for name, samples in (("muprop", 1), ("double-cv", 2), ("double-cv", 3)):
        weight = forced_bits(monkeypatch, logits, samples)
        estimator = GRADIENTS[name]()
        for alpha in estimator.parameters():
            torch.nn.init.ones_(alpha)
        found = exactly(estimator, samples, logits, independent, lambda z, at: 3 * z[..., 0] - z[..., 1], weight)
        p = logits.sigmoid()
        torch.testing.assert_close(found.mean, numbers(3.0, -1.0) * p * (1 - p))
        assert found.variance.abs().max() < 1e-12


def _crooked(z: Tensor) -> Tensor:
    return (z[..., 0] - 0.3) * (z[..., 1] + 2 * z[..., 2]) + (z.sum(-1) - 1.2).exp()


def test_two_draws_of_arms_are_disarm(monkeypatch):
    logits = numbers(0.7, -1.3, 0.1).expand(500, 3)
    u = torch.rand(1, 500, 3, dtype=F64)
    monkeypatch.setattr(torch, "rand", lambda *size, **kind: u)
    # The rarer event is hit where u lies at the end that makes the bit unlike its likelier value.
    up = torch.where(logits < 0, u, 1 - u)
    monkeypatch.setattr(antithetic, "_repelled", lambda rare, count: torch.cat([up > 1 - rare, up < rare]))
    slopes = []
    for estimator in (DisARM(), ARMS()):
        at = logits.clone().requires_grad_()
        value = expectation(_crooked, independent(at), estimator, 2)
        slopes.append((value.detach(), torch.autograd.grad(value.sum(), at)[0]))
    torch.testing.assert_close(slopes[0], slopes[1])


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_carms_on_bits_is_arms(samples):
    slopes = []
    for estimator in (ARMS(), CARMS()):
        torch.manual_seed(1)
        at = numbers(0.7, -1.3, 0.1).expand(500, 3).clone().requires_grad_()
        value = expectation(_crooked, independent(at), estimator, samples)
        slopes.append((value.detach(), torch.autograd.grad(value.sum(), at)[0]))
    torch.testing.assert_close(slopes[0], slopes[1])


def test_disarm_has_no_more_variance_than_arm(monkeypatch):
    for p in (0.05, 0.3, 0.5, 0.9):
        logits = numbers(math.log(p / (1 - p)), 0.3)
        found = {}
        for name in ("arm", "disarm"):
            with monkeypatch.context() as patch:
                weight = forced_uniforms(patch, logits, 2)
                found[name] = exactly(GRADIENTS[name](), 2, logits, independent, lambda z, at: (z.sum(-1) - 0.4) ** 2, weight)
        assert (found["disarm"].variance < found["arm"].variance).all()


@pytest.mark.parametrize("law", ["bits in a wave", "several one-hot Categoricals", "one-hot Categorical"])
@pytest.mark.parametrize(
    "name", ["rloo", "measure", "enumerate", "arm", "disarm", "arms", "carms", "sum-and-sample", "muprop", "double-cv, stirred"]
)
def test_a_constant_added_to_f_changes_nothing(name, law):
    """Their baselines take all of it away, draw by draw: that is what baselines are for."""
    row, estimator, slopes = EXPECTATIONS[law], GRADIENTS[name](), []
    if estimator.lacks(row.law(*row.parameters)) is not None:
        return
    for constant in (0.0, 1000.0):
        torch.manual_seed(1)
        at = [p.expand(50, *p.shape).clone().requires_grad_() for p in row.parameters]
        value = expectation(lambda z, at=at, c=constant: row.f(z, *at) + c, row.law(*at), estimator, estimator.usable(3))
        slopes.append(torch.autograd.grad(value.sum(), at)[0])
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-8, atol=1e-8)


# A Normal


class ForcedNormal(td.Normal):
    def sample(self, sample_shape=()):
        return (self.loc + self.scale * self.noise).detach()

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * self.noise


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


def test_exact_moments_for_a_square_under_a_normal():
    mean, variance = normal_moments(Score(), lambda z: z**2)
    np.testing.assert_allclose(mean, [2, 2], rtol=1e-8)
    np.testing.assert_allclose(variance, [30, 136], rtol=1e-8)
    mean, variance = normal_moments(Pathwise(), lambda z: z**2)
    np.testing.assert_allclose(mean, [2, 2], rtol=1e-8)
    np.testing.assert_allclose(variance, [4, 12], rtol=1e-8)


COUPLED = (16 / (2 * math.pi) * (2 - math.pi / 2), 8.0)


def test_the_same_variances_from_real_draws():
    at = [torch.ones(200_000, dtype=F64, requires_grad=True) for _ in range(2)]
    for name, known in (("score", (30, 136)), ("pathwise", (4, 12)), ("measure", COUPLED)):
        value = expectation(lambda z: z**2, td.Normal(*at), name)
        for slopes, variance in zip(torch.autograd.grad(value.sum(), at), known, strict=True):
            within(slopes, torch.tensor(2.0, dtype=F64))
            within((slopes - 2).square(), torch.tensor(float(variance), dtype=F64))


def test_the_coupled_measure_valued_variances_are_integrals():
    """With its Rayleigh, and with its Maxwell and uniform numbers, laid out on quadrature nodes."""
    from scipy import integrate, stats

    assert COUPLED[0] == pytest.approx(1.093, abs=5e-4)
    for k, known in ((1, 2.0), (2, COUPLED[0] + 4)):
        moment = integrate.quad(
            lambda r, k=k: (((1 + r) ** 2 - (1 - r) ** 2) / math.sqrt(2 * math.pi)) ** k * stats.rayleigh.pdf(r), 0, 30
        )[0]
        assert moment == pytest.approx(known, rel=1e-8)
    for k, known in ((1, 2.0), (2, 8.0 + 4)):
        moment = integrate.dblquad(
            lambda u, m, k=k: sum(((1 + s * m) ** 2 - (1 + s * m * u) ** 2) ** k for s in (-1, 1)) / 2 * stats.maxwell.pdf(m),
            0,
            30,
            0,
            1,
        )[0]
        assert moment == pytest.approx(known, rel=1e-8)


def test_mirrored_and_quasi_random_draws_have_less_variance_where_they_should():
    variance = {}
    for name in ("pathwise", "pathwise, antithetic", "pathwise, sobol"):
        at = [torch.full((REPEATS,), v, dtype=F64, requires_grad=True) for v in (1.0, 0.5)]
        value = expectation(lambda z: z**2, td.Normal(*at), GRADIENTS[name](), 16)
        variance[name] = torch.stack([s.var() for s in torch.autograd.grad(value.sum(), at)])
    assert variance["pathwise, antithetic"][0] < 1e-20  # ∂μ of z² is odd about the centre but for its mean
    assert (variance["pathwise, sobol"] < 0.2 * variance["pathwise"]).all()


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


# Monte Carlo (theory 2)


def test_an_estimate_has_the_variance_of_f_over_the_number_of_draws():
    q = td.Normal(torch.zeros(20_000, dtype=F64), 1.0)
    for samples in (1, 4, 16):
        values = expectation(lambda z: z**2, q, samples=samples)
        within(values, torch.tensor(1.0, dtype=F64))
        within((values - 1).square(), torch.tensor(2.0 / samples, dtype=F64))
