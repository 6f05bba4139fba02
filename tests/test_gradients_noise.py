"""Pathwise gradients with antithetic and quasi-random noise: unbiased, each draw by itself from the law, and worth their name."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch import distributions as td

import xhat
from catalogue import F64, numbers
from proofs import within
from xhat.errors import ConfigError
from xhat.gradients import Pathwise, expectation

R = 4000


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


SYMMETRIC = {
    "Normal": (td.Normal, (0.7, 1.3), stats.norm(0.7, 1.3)),
    "Laplace": (td.Laplace, (0.7, 1.3), stats.laplace(0.7, 1.3)),
    "Student's t": (td.StudentT, (3.5, 0.7, 1.3), stats.t(3.5, 0.7, 1.3)),
    "Cauchy": (td.Cauchy, (0.7, 1.3), stats.cauchy(0.7, 1.3)),
    "Uniform": (td.Uniform, (-0.5, 1.3), stats.uniform(-0.5, 1.8)),
}
INVERTIBLE = {
    "Normal": SYMMETRIC["Normal"],
    "Laplace": SYMMETRIC["Laplace"],
    "Cauchy": SYMMETRIC["Cauchy"],
    "Uniform": SYMMETRIC["Uniform"],
    "Exponential": (td.Exponential, (0.7,), stats.expon(scale=1 / 0.7)),
    "LogNormal": (td.LogNormal, (0.2, 0.5), stats.lognorm(0.5, scale=math.exp(0.2))),
    "Weibull": (td.Weibull, (1.2, 1.7), stats.weibull_min(1.7, scale=1.2)),
    "Gumbel": (td.Gumbel, (0.3, 0.8), stats.gumbel_r(0.3, 0.8)),
    "HalfNormal": (td.HalfNormal, (0.7,), stats.halfnorm(scale=0.7)),
    "squashed Normal": (
        lambda loc, scale: td.TransformedDistribution(td.Normal(loc, scale), [td.SigmoidTransform()]),
        (0.3, 0.8),
        None,
    ),
}
ROWS = [("antithetic", name) for name in SYMMETRIC] + [("sobol", name) for name in INVERTIBLE]


def law_of(noise: str, name: str, count: int = R) -> tuple[list[Tensor], td.Distribution, object]:
    make, values, known = (SYMMETRIC if noise == "antithetic" else INVERTIBLE)[name]
    at = [torch.full((count,), v, dtype=F64, requires_grad=True) for v in values]
    return at, make(*at), known


@pytest.mark.parametrize(("noise", "name"), ROWS)
def test_each_draw_by_itself_is_from_the_law(noise, name):
    """Draw by draw, the first and the last among them: the rows of the batch are independent, so a test of fit may be used."""
    _, q, known = law_of(noise, name)
    z = Pathwise(noise).draw(q, 6).detach()
    for i in (0, 2, 3, 5):
        fit = stats.kstest(z[i], known.cdf) if known is not None else stats.ks_2samp(z[i], q.sample())
        assert fit.pvalue > 1e-4, f"draw {i}"


@pytest.mark.parametrize(("noise", "name"), ROWS)
def test_the_gradient_and_the_value_are_unbiased(noise, name):
    """Against plain noise with many more draws, for a bounded f that bends."""

    def f(z: Tensor) -> Tensor:
        return torch.sin(1.3 * z) + torch.exp(-((z - 1) ** 2))

    at, q, _ = law_of(noise, name)
    value = expectation(f, q, Pathwise(noise), 4)
    slopes = torch.autograd.grad(value.sum(), at)
    other, plain_q, _ = law_of(noise, name)
    plain = expectation(f, plain_q, "pathwise", 16)
    within(value.detach() - plain.detach(), 0.0)
    for slope, known in zip(slopes, torch.autograd.grad(plain.sum(), other), strict=True):
        within(slope - known, 0.0)


def test_the_exact_gradient_of_a_square():
    at, q, _ = law_of("sobol", "Normal")
    for noise in ("antithetic", "sobol"):
        slopes = torch.autograd.grad(expectation(lambda z: z**2, q, Pathwise(noise), 2).sum(), at, retain_graph=True)
        within(slopes[0], 2 * 0.7)
        within(slopes[1], 2 * 1.3)


# Antithetic


@pytest.mark.parametrize("name", SYMMETRIC)
def test_mirror_images_remove_the_odd_part_of_f(name):
    at, q, _ = law_of("antithetic", name, count=100)
    centre = q.mean if name == "Uniform" else at[-2]
    value = expectation(lambda z: 3 * (z - centre.detach()) + (z - centre.detach()) ** 3, q, Pathwise("antithetic"), 4)
    assert value.abs().max() < 1e-6 * (value.abs().max() + 1) + 1e-3 * (name == "Cauchy")
    linear = expectation(lambda z: 3 * z, q, Pathwise("antithetic"), 4)
    torch.testing.assert_close(linear.detach(), 3 * centre.detach(), atol=1e-6, rtol=1e-6)
    slopes = torch.autograd.grad(linear.sum(), at)
    known = [1.5, 1.5] if name == "Uniform" else [3.0, 0.0]
    for slope, truth in zip(slopes[-2:], known, strict=True):
        torch.testing.assert_close(slope, torch.full_like(slope, truth), atol=1e-6, rtol=1e-6)


def test_mirror_images_come_in_pairs():
    for samples in (1, 3, 7):
        with pytest.raises(ConfigError, match=f"an even number of samples, half of them mirror images, was {samples}"):
            expectation(lambda z: z, td.Normal(torch.zeros(2), 1.0), Pathwise("antithetic"), samples)
    assert Pathwise("antithetic").usable(3) == 4
    q = td.Normal(torch.tensor([0.7, -1.0]), 1.0)
    z = Pathwise("antithetic").draw(q, 6)
    torch.testing.assert_close(z[:3] + z[3:], 2 * q.loc.expand(3, 2))


@pytest.mark.parametrize("noise", ["antithetic", "sobol"])
def test_a_full_covariance(noise):
    """Moments and gradient of a full Normal; for mirror images a linear f has no noise."""
    loc = numbers(0.4, -0.7).expand(R, 2).clone().requires_grad_()
    factor = torch.tensor([[0.9, 0.0], [0.5, 0.6]], dtype=F64).expand(R, 2, 2).clone().requires_grad_()
    q = td.MultivariateNormal(loc, scale_tril=factor.tril())
    z = Pathwise(noise).draw(q, 4).detach()
    covariance = (factor @ factor.mT)[0].detach()
    for draw in z:
        within(draw, loc[0].detach())
        away = draw - loc.detach()
        within(away[:, :, None] * away[:, None, :], covariance)
    value = expectation(lambda z: z[..., 0] ** 2 * z[..., 1], q, Pathwise(noise), 4)
    slopes = torch.autograd.grad(value.sum(), (loc, factor))
    known = [numbers(0.4, -0.7).requires_grad_(), torch.tensor([[0.9, 0.0], [0.5, 0.6]], dtype=F64, requires_grad=True)]
    c = known[1] @ known[1].T
    exact = known[0][0] ** 2 * known[0][1] + 2 * known[0][0] * c[0, 1] + known[0][1] * c[0, 0]
    for slope, truth in zip(slopes, torch.autograd.grad(exact, known), strict=True):
        within(slope, truth.tril() if truth.ndim == 2 else truth)


def test_independent_events_and_a_low_rank_covariance():
    loc = torch.zeros(R, 3, dtype=F64, requires_grad=True)
    wide = td.Independent(td.Normal(loc, 1.0), 1)
    for noise in ("antithetic", "sobol"):
        value = expectation(lambda z: (z + 0.3).square().sum(-1) * z[..., 0], wide, Pathwise(noise), 4)
        (slope,) = torch.autograd.grad(value.sum(), loc)
        within(slope[:, 0], 3 * (1 + 0.09) + 2)  # ∂/∂μ₀ of E[(Σ (z + 0.3)²) z₀]
        within(slope[:, 1], 0.0)
    low = td.LowRankMultivariateNormal(loc, torch.ones(3, 1, dtype=F64), torch.ones(3, dtype=F64))
    value = expectation(lambda z: 2 * z.sum(-1), low, Pathwise("antithetic"), 2)
    torch.testing.assert_close(value.detach(), torch.zeros(R, dtype=F64))


@pytest.mark.parametrize(
    ("noise", "law"),
    [
        ("antithetic", lambda: td.Gamma(torch.ones(2), 1.0)),
        ("antithetic", lambda: td.LogNormal(torch.zeros(2), 1.0)),
        ("antithetic", lambda: td.Exponential(torch.ones(2))),
        ("antithetic", lambda: td.Dirichlet(torch.ones(2, 3))),
        ("antithetic", lambda: td.MixtureSameFamily(td.Categorical(torch.ones(2)), td.Normal(torch.zeros(2), 1.0))),
        ("sobol", lambda: td.Gamma(torch.ones(2), 1.0)),
        ("sobol", lambda: td.Beta(torch.ones(2), 1.0)),
        ("sobol", lambda: td.StudentT(torch.ones(2))),
        ("sobol", lambda: td.Dirichlet(torch.ones(2, 3))),
        ("sobol", lambda: td.Poisson(torch.ones(2))),
    ],
)
def test_laws_without_a_centre_or_an_inverse_are_refused(noise, law):
    q = law()
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match=r"'pathwise' needs .*(symmetric about a centre|inverse distribution function)"):
        expectation(lambda z: z.sum(-1) if q.event_shape else z, q, Pathwise(noise), 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_event_wider_than_the_points_is_refused():
    q = td.Independent(td.Normal(torch.zeros(21202), 1.0), 1)
    with pytest.raises(ConfigError, match="an event of at most 21201 numbers, as many as Sobol' points have"):
        expectation(lambda z: z.sum(-1), q, Pathwise("sobol"), 4)


def test_an_unknown_noise_is_refused():
    with pytest.raises(ConfigError, match="noise must be one of independent, antithetic, sobol, was 'halton'"):
        Pathwise("halton")


# Sobol'


@pytest.mark.parametrize(
    ("name", "f"),
    [("Normal", torch.tanh), ("Exponential", lambda z: torch.exp(-z)), ("squashed Normal", lambda z: torch.sin(z) + 0.3 * z**2)],
)
def test_quasi_random_noise_beats_independent_noise_by_far(name, f):
    """64 points of an f that is smooth in the uniform numbers: the variance of value and gradient, and how fast it falls."""
    variances = {}
    for noise, samples in (("independent", 64), ("sobol", 64), ("sobol", 16)):
        at, q, _ = law_of("sobol", name, count=1000)
        value = expectation(f, q, Pathwise(noise), samples)
        slopes = torch.autograd.grad(value.sum(), at)
        variances[noise, samples] = [value.detach().var().item(), *(slope.var().item() for slope in slopes)]
    for plain, quasi, fewer in zip(*variances.values(), strict=True):
        assert plain > 20 * quasi
        assert fewer > 6 * quasi  # 4 if the variance fell as 1/S


def test_quasi_random_noise_in_eight_dimensions():
    loc = torch.zeros(1000, 8, dtype=F64, requires_grad=True)
    q = td.Independent(td.Normal(loc, 1.0), 1)
    variances = []
    for noise in ("independent", "sobol"):
        value = expectation(lambda z: torch.sin(z + 0.5).sum(-1) + 0.1 * z[..., 0] * z[..., 7], q, Pathwise(noise), 64)
        variances.append(value.detach().var().item())
    assert variances[0] > 20 * variances[1]


def test_rows_of_a_batch_are_independent_and_so_are_calls():
    q = td.Independent(td.Normal(torch.zeros(R, 2, dtype=F64), 1.0), 1)
    z = Pathwise("sobol").draw(q, 3)
    assert abs(torch.corrcoef(torch.stack([z[0, 1:, 0], z[0, :-1, 0]]))[0, 1]) < 4 / math.sqrt(R)
    assert abs(torch.corrcoef(torch.stack([z[1, :, 0], z[1, :, 1]]))[0, 1]) < 4 / math.sqrt(R)
    again = Pathwise("sobol").draw(q, 3)
    assert abs(torch.corrcoef(torch.stack([z[0, :, 0], again[0, :, 0]]))[0, 1]) < 4 / math.sqrt(R)
    values = expectation(lambda z: z.sum(-1).exp(), q, Pathwise("sobol"), 8)
    halves = torch.stack([values[: R // 2], values[R // 2 :]])
    assert abs(torch.corrcoef(halves)[0, 1]) < 4 / math.sqrt(R / 2)


@pytest.mark.parametrize("noise", ["antithetic", "sobol"])
def test_a_seed_of_the_callers_repeats_the_draws_and_another_does_not(noise):
    q = td.Normal(torch.zeros(3), 1.0)

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return expectation(lambda z: z.exp(), q, Pathwise(noise), 4)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@pytest.mark.parametrize("noise", ["antithetic", "sobol"])
def test_dtype_and_shape_are_those_of_the_law(noise):
    for dtype in (torch.float32, F64):
        q = td.Independent(td.Normal(torch.zeros(4, 2, 3, dtype=dtype), 1.0), 2)
        z = Pathwise(noise).draw(q, 6)
        assert z.shape == (6, 4, 2, 3)
        assert z.dtype == dtype
        assert z.isfinite().all()
    scalar = td.Normal(torch.tensor(0.0), 1.0)
    assert Pathwise(noise).draw(scalar, 2).shape == (2,)


@pytest.mark.parametrize("noise", ["antithetic", "sobol"])
def test_a_model_trains_on_it(noise):
    """By its options in a recipe, and with the loss's mean unchanged."""
    torch.manual_seed(0)
    model = xhat.VAE(
        xhat.priors.StandardNormal(2),
        xhat.conditionals.Normal(xhat.networks.MLP(4, [6], "tanh"), 2),
        xhat.conditionals.Bernoulli(xhat.networks.MLP(2, [6], "tanh"), 4),
        xhat.objectives.ELBO(samples=4),
        Pathwise(noise),
    ).double()
    x = torch.bernoulli(torch.full((1, 4), 0.5, dtype=F64)).expand(4000, 4)
    mine = model.loss(x)
    model.gradient = Pathwise()
    within(mine.detach() - model.loss(x).detach(), 0.0)
    assert mine.var() < model.loss(x).var() * 0.8
