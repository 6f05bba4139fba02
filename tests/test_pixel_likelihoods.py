"""Likelihoods of grey levels: they sum to 1, are the masses of scipy also in the far tails, and start broad."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import xhat
from catalogue import F64
from xhat import conditionals, gradients, objectives, priors
from xhat.distributions import BetaBinomial, DiscretisedNormal, LogisticMixture, is_discrete
from xhat.distributions.grid import Grid, OnGrid
from xhat.errors import ConfigError, DataError
from xhat.evaluation.evidence import bits_per_dimension
from xhat.networks import MLP

F32 = torch.float32


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def between(low: float, high: float, *shape: int) -> Tensor:
    """Numbers whose logarithms are uniform."""
    return torch.empty(shape, dtype=F64).uniform_(math.log(low), math.log(high)).exp()


def normals(n: int, levels: int) -> DiscretisedNormal:
    return DiscretisedNormal(torch.empty(n, dtype=F64).uniform_(-1.0, 2.0), between(1e-4, 30.0, n), levels)


def mixtures(n: int, levels: int) -> LogisticMixture:
    return LogisticMixture(3 * torch.randn(n, 4, dtype=F64), 0.5 + torch.randn(n, 4, dtype=F64), between(1e-4, 30, n, 4), levels)


def beta_binomials(n: int, levels: int) -> BetaBinomial:
    return BetaBinomial(between(1e-6, 1e4, n), between(1e-6, 1e4, n), levels)


LAWS = {"normal": normals, "mixture": mixtures, "beta-binomial": beta_binomials}
PARAMETERS = {"normal": ("loc", "scale"), "mixture": ("logits", "loc", "scale"), "beta-binomial": ("alpha", "beta")}


def parameters(law: OnGrid, name: str) -> list[Tensor]:
    return [getattr(law, parameter) for parameter in PARAMETERS[name]]


def made(law: OnGrid, values: list[Tensor]) -> OnGrid:
    return type(law)(*values, levels=law.levels)


@pytest.mark.parametrize(("alpha", "beta"), [(1e-3, 1e-3), (1e-4, 3e-4), (1e-5, 1e-5), (0.5, 2.0), (300.0, 7.0)])
def test_beta_binomial_draws_follow_the_law_down_to_the_smallest_parameters(alpha, beta):
    law = BetaBinomial(torch.tensor(alpha), torch.tensor(beta))
    drawn = law.sample((20_000,))
    for values, expected, variance in (
        (drawn, law.mean, law.variance),
        ((drawn == 0).float(), *(lambda p: (p, p * (1 - p)))(law.log_prob(torch.tensor(0.0)).exp())),
        (((drawn > 0) & (drawn < 1)).float(), *(lambda p: (p, p * (1 - p)))(law.log_prob(law.values[1:-1]).exp().sum())),
    ):
        assert (values.mean() - expected).abs() < 4.5 * (variance / len(drawn)).sqrt() + 1e-4


# Masses


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize("name", LAWS)
def test_the_masses_sum_to_one(name, levels):
    law = LAWS[name](300, levels)
    total = law.log_prob(law.enumerate_support()).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(300, dtype=F64), rtol=0, atol=1e-10)
    single = made(law, [value.float() for value in parameters(law, name)])
    log_mass = single.log_prob(single.enumerate_support())
    assert log_mass.dtype == F32
    torch.testing.assert_close(log_mass.double().exp().sum(0), torch.ones(300, dtype=F64), rtol=0, atol=1e-5)


def by_density(loc: float, scale: float, k: int, levels: int) -> float:
    """The log mass of an inner level, without distribution functions: the density over the bin, beside its largest value."""
    low, high = ((k + side - 0.5) / (levels - 1) for side in (0, 1))
    top = min(max(loc, low), high)
    peak = -0.5 * ((top - loc) / scale) ** 2

    def density(t: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * ((t - loc) / scale) ** 2 - peak)

    # The density falls off from top by e within this width; beyond fifty of them there is nothing.
    width = scale * min(1.0, scale / max(abs(top - loc), scale))
    cuts = sorted({low, high, *(c for i in (1, 4, 12, 50) for c in (top - i * width, top + i * width) if low < c < high)})
    nodes, weights = np.polynomial.legendre.leggauss(40)
    panels = [(b - a) / 2 * (weights * density((a + b) / 2 + (b - a) / 2 * nodes)).sum() for a, b in itertools.pairwise(cuts)]
    mass = math.fsum(panels)
    return math.log(mass) + peak - math.log(scale) - 0.5 * math.log(2 * math.pi)


@pytest.mark.parametrize("dtype", [F64, F32])
def test_a_rounded_normal_is_the_integral_of_its_density_in_the_tails_and_in_narrow_bins(dtype):
    cases = [
        (loc, scale, k, levels)
        for levels, ks in ((3, (1,)), (17, (1, 8, 15)), (256, (1, 128, 254)))
        for loc in (0.5, 0.0, 1.3, -20.0, 100.0)
        for scale in (1e-3, 0.02, 0.0625, 0.3, 3.0, 200.0)
        for k in ks
    ]
    for levels in (3, 17, 256):
        rows = [case for case in cases if case[3] == levels]
        loc, scale, k = (torch.tensor([row[i] for row in rows], dtype=dtype) for i in range(3))
        ours = DiscretisedNormal(loc, scale, levels).log_prob(k / (levels - 1))
        # The parameters as they are in this precision
        points = zip(loc.tolist(), scale.tolist(), [row[2] for row in rows], strict=True)
        exact = torch.tensor([by_density(a, b, i, levels) for a, b, i in points], dtype=F64)
        assert exact.min() < -1e6
        # A level such as 128/255 is itself off by 3e-8 in float32, which is 3e-5 of the smallest σ.
        rtol, atol = (1e-10, 1e-10) if dtype == F64 else (3e-6, 6e-5)
        torch.testing.assert_close(ours.double(), exact, rtol=rtol, atol=atol)


def test_the_ends_of_a_rounded_normal_have_all_beyond_them():
    for loc, scale in ((0.5, 0.1), (-3.0, 0.05), (7.0, 2.0)):
        law = DiscretisedNormal(torch.tensor(loc, dtype=F64), torch.tensor(scale, dtype=F64), 17)
        ends = law.log_prob(torch.tensor([0.0, 1.0], dtype=F64))
        assert ends[0].item() == pytest.approx(stats.norm.logcdf(1 / 32, loc, scale), rel=1e-12, abs=1e-15)
        assert ends[1].item() == pytest.approx(stats.norm.logsf(31 / 32, loc, scale), rel=1e-12, abs=1e-15)


def test_a_mixture_is_the_sum_of_differences_of_logistic_functions():
    law = LogisticMixture(torch.randn(50, 3, dtype=F64), torch.rand(50, 3, dtype=F64), between(0.01, 1.0, 50, 3), levels=17)
    x = law.values[:, None, None]
    below, above = (stats.logistic.cdf(((x + side / 32) - law.loc) / law.scale) for side in (-1, 1))
    below[0], above[-1] = 0.0, 1.0
    mass = (law.logits.softmax(-1) * torch.from_numpy(above - below)).sum(-1)
    torch.testing.assert_close(law.log_prob(law.enumerate_support()).exp(), mass, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("dtype", [F64, F32])
def test_the_mass_of_a_logistic_is_exact_where_both_functions_round_to_one(dtype):
    """Far out the mass is that of an exponential law, e^(-d/s) (1 - e^(-width/s)) e^(h/s), up to e^(-d/s) of itself."""
    loc, scale, levels = -4.0, 0.05, 17
    law = LogisticMixture(*(torch.tensor([value], dtype=dtype) for value in (0.0, loc, scale)), levels=levels)
    k = torch.arange(1, levels - 1, dtype=dtype)
    exact = [-(i / 16 - 1 / 32 - loc) / scale + math.log1p(-math.exp(-1 / 16 / scale)) for i in range(1, levels - 1)]
    tolerance = 1e-13 if dtype == F64 else 1e-6
    torch.testing.assert_close(law.log_prob(k / 16).double(), torch.tensor(exact, dtype=F64), rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_a_beta_binomial_is_scipys(levels, dtype):
    for low, high in ((1e-6, 0.1), (0.05, 20.0), (10.0, 1e4), (1e-6, 1e4)):
        alpha, beta = (between(low, high, 2000).to(dtype) for _ in range(2))
        k = torch.randint(levels, (2000,))
        exact = stats.betabinom.logpmf(k.numpy(), levels - 1, alpha.double().numpy(), beta.double().numpy())
        ours = BetaBinomial(alpha, beta, levels).log_prob((k / (levels - 1)).to(dtype))
        # scipy's own error is that of lgamma at 10⁴; float32 adds the rounding of the result.
        tolerance = 2e-10 if dtype == F64 else 2e-7
        torch.testing.assert_close(ours.double(), torch.from_numpy(exact), rtol=tolerance, atol=tolerance)


def test_a_beta_binomial_of_ones_is_uniform_and_of_large_numbers_binomial():
    one = torch.ones((), dtype=F64)
    law = BetaBinomial(one, one)
    torch.testing.assert_close(law.log_prob(law.values), torch.full((256,), -math.log(256), dtype=F64))
    law = BetaBinomial(3e8 * one, 7e8 * one, levels=11)
    binomial = torch.from_numpy(stats.binom.logpmf(range(11), 10, 0.3))
    torch.testing.assert_close(law.log_prob(law.values), binomial, rtol=1e-6, atol=1e-6)


# Moments and draws


@pytest.mark.parametrize("name", LAWS)
def test_moments_and_entropy_are_those_of_the_enumeration(name, monkeypatch):
    monkeypatch.setattr("xhat.distributions.discretised.ELEMENTS", 1000)  # several blocks of edges
    law = LAWS[name](150, 256)
    support = law.enumerate_support()
    log_p = law.log_prob(support)
    mass = log_p.exp()
    mean = (mass * support).sum(0)
    torch.testing.assert_close(law.mean, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(law.variance, (mass * (support - mean).square()).sum(0), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(law.entropy(), -(mass * log_p).sum(0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LAWS)
def test_draws_have_the_masses_as_frequencies(name):
    law = {
        "normal": DiscretisedNormal(torch.tensor([0.1, 0.6]), torch.tensor([0.3, 0.15]), 9),
        "mixture": LogisticMixture(
            torch.tensor([[0.0, 1.0], [0.5, -1.0]]), torch.tensor([[0.1, 0.8], [0.5, 1.2]]), torch.tensor(0.1), 9
        ),
        "beta-binomial": BetaBinomial(torch.tensor([0.4, 3.0]), torch.tensor([0.7, 1.5]), 9),
    }[name]
    n = 40_000
    draws = law.sample((n,))
    assert draws.shape == (n, 2)
    assert law.support.check(draws).all()
    mass = law.log_prob(law.enumerate_support()).double().exp()
    for i in range(2):
        counts = (draws[:, i] * 8).round().long().bincount(minlength=9)
        assert stats.chisquare(counts.numpy(), (n * mass[:, i] / mass[:, i].sum()).numpy()).pvalue > 1e-4


# Gradients


@pytest.mark.parametrize("levels", [2, 5, 256])
@pytest.mark.parametrize("name", LAWS)
def test_gradients_match_finite_differences(name, levels):
    law = {"normal": normals, "mixture": mixtures, "beta-binomial": beta_binomials}[name](6, levels)
    if name == "normal":  # narrow bins, wide bins and far tails
        loc = torch.tensor([0.5, 0.4, 1.5, -1.0, 0.9, 0.45], dtype=F64)
        law = DiscretisedNormal(loc, torch.tensor([5.0, 0.1, 0.02, 0.1, 0.004, 0.5], dtype=F64), levels)
    elif name == "mixture":
        law = LogisticMixture(law.logits, law.loc, between(0.05, 1.0, 6, 4), levels)
    else:
        law = BetaBinomial(between(0.1, 100, 6), between(0.1, 100, 6), levels)
    values = [value.clone().requires_grad_() for value in parameters(law, name)]
    x = law.values[torch.tensor([0, 1, levels // 2, levels - 2, levels - 1])][:, None]
    assert torch.autograd.gradcheck(lambda *p: made(law, list(p)).log_prob(x), values, eps=1e-7, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("name", LAWS)
def test_values_and_gradients_stay_finite_at_extremes(name, dtype):
    rows = {
        "normal": ([0.0, 0.5, 1.0, -1e4, 1e4, 0.5 / 255], [1e-5, 1e-3, 1.0, 1e12]),
        "mixture": ([0.0, 0.5, 1.0, -1e4, 1e4, 0.5 / 255], [1e-5, 1e-3, 1.0, 1e12]),
        "beta-binomial": ([1e-8, 1e-3, 1.0, 1e3, 1e6], [1e-8, 1e-3, 1.0, 1e3, 1e6]),
    }[name]
    first, second = torch.cartesian_prod(*(torch.tensor(row, dtype=dtype) for row in rows)).unbind(-1)
    for levels in (2, 256, 4096):
        values = [first.clone(), second.clone()]
        if name == "mixture":
            values = [torch.zeros(len(first), 2, dtype=dtype), *(torch.stack([v, v.flip(0)], -1) for v in values)]
        for value in values:
            value.requires_grad_()
        law = {"normal": DiscretisedNormal, "mixture": LogisticMixture, "beta-binomial": BetaBinomial}[name](
            *values, levels=levels
        )
        ends = torch.tensor([0.0, 1 / (levels - 1), (levels // 2) / (levels - 1), 1.0], dtype=dtype)[:, None]
        log_mass = law.log_prob(ends)
        assert log_mass.isfinite().all()
        assert (log_mass <= 1e-6).all()
        for slope in torch.autograd.grad(log_mass.sum(), values):
            assert slope.isfinite().all()
        assert law.mean.isfinite().all()
        assert law.support.check(law.sample((3,))).all()


@pytest.mark.parametrize("name", LAWS)
def test_float32_gradients_are_those_of_float64(name):
    law = LAWS[name](400, 256)
    if name != "beta-binomial":
        law = made(law, [*parameters(law, name)[:-1], parameters(law, name)[-1].clamp(0.01, 2.0)])
    x = law.values[torch.randint(256, (400,))]
    slopes = []
    for dtype in (F32, F64):
        values = [value.float().to(dtype).requires_grad_() for value in parameters(law, name)]
        slopes.append(torch.autograd.grad(made(law, values).log_prob(x.float().to(dtype)).sum(), values))
    for ours, exact in zip(*slopes, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-3)


# The law as torch's own


@pytest.mark.parametrize("name", LAWS)
def test_shapes_expand_and_broadcast(name):
    law = LAWS[name](3, 5)
    assert is_discrete(torch.distributions.Independent(law, 1))
    assert (law.batch_shape, law.event_shape) == ((3,), ())
    wide = law.expand((2, 3))
    x = wide.sample((4,))
    assert x.shape == (4, 2, 3)
    torch.testing.assert_close(wide.log_prob(x), law.log_prob(x))
    assert wide.enumerate_support().shape == (5, 2, 3)
    assert law.enumerate_support(expand=False).shape == (5, 1)
    assert law.log_prob(torch.tensor([[0], [1]])).shape == (2, 3)
    assert not law.sample().requires_grad
    torch.testing.assert_close(wide.mean, law.mean.expand(2, 3))


@pytest.mark.parametrize("name", LAWS)
def test_a_law_refuses_values_off_its_grid_and_parameters_that_make_no_sense(name):
    law = LAWS[name](3, 5)
    for value in (0.3, 1.25, -0.25, math.nan):
        with pytest.raises(DataError, match=r"log_prob: every value must be one of 5 equally spaced levels from 0 to 1"):
            law.log_prob(torch.tensor(value))
    with pytest.raises(ConfigError, match="levels must be at least 2, was 1"):
        type(law)(*parameters(law, name), levels=1)
    with pytest.raises(ValueError, match=PARAMETERS[name][-1]):
        type(law)(*(-value.abs() for value in parameters(law, name)), validate_args=True)


def test_the_grid_takes_every_level_and_nothing_between():
    for count in (2, 17, 256):
        grid = Grid(0.0, 1.0, count)
        assert grid.check(torch.arange(count) / (count - 1)).all()
        assert not grid.check((torch.arange(count - 1) + 0.5) / (count - 1)).any()


# Conditionals


MADE = {
    "discretised-normal": lambda network, event, levels: conditionals.DiscretisedNormal(network, event, levels),
    "shared": lambda network, event, levels: conditionals.DiscretisedNormal(network, event, levels, per="shared"),
    "dimension": lambda network, event, levels: conditionals.DiscretisedNormal(network, event, levels, "exp", "dimension"),
    "fixed": lambda network, event, levels: conditionals.DiscretisedNormal(network, event, levels, scale=0.1),
    "logistic-mixture": lambda network, event, levels: conditionals.LogisticMixture(network, event, levels, components=3),
    "one logistic": lambda network, event, levels: conditionals.LogisticMixture(network, event, levels, 1, "softplus"),
    "beta-binomial": lambda network, event, levels: conditionals.BetaBinomial(network, event, levels),
    "beta-binomial-exp": lambda network, event, levels: conditionals.BetaBinomial(network, event, levels, scale="exp"),
}
WIDTHS = {"discretised-normal": 2, "logistic-mixture": 9, "one logistic": 3, "beta-binomial": 2, "beta-binomial-exp": 2}


def model(name: str, event: tuple[int, ...], levels: int) -> xhat.VAE:
    return xhat.VAE(
        priors.StandardNormal(2),
        conditionals.Normal(MLP(event, [6]), 2),
        MADE[name](MLP(2, [6]), event, levels),
        objectives.ELBO(),
        gradients.Pathwise(),
    )


@pytest.mark.parametrize("name", MADE)
def test_before_training_the_law_is_broad(name):
    """In the mean over all levels no more than 0.6 bits above the uniform law's 8 bits, but for a σ that is fixed."""
    conditional = MADE[name](MLP(2), (3, 2), 256)
    assert conditional.width == WIDTHS.get(name, 1)
    law = conditional.law(torch.zeros(1, *conditional.head.shape))
    x = (torch.arange(256) / 255).reshape(256, 1, 1, 1).expand(256, 1, 3, 2)
    bits = -law.log_prob(x).mean() / math.log(2) / 6
    torch.testing.assert_close(law.mean, torch.full((1, 3, 2), 0.5))
    if name != "fixed":
        assert 7.999 < bits < 8.6
    if name.startswith("beta"):
        assert bits == pytest.approx(8.0, abs=1e-3)


@pytest.mark.parametrize("name", MADE)
def test_a_model_trains_on_grey_images_counts_bits_and_comes_back_from_a_file(name, tmp_path):
    data = xhat.load_data("digits")
    assert data.kind.levels == 17
    vae = model(name, tuple(data.shape), 17)
    x = data.train[:64]
    before = [parameter.detach().clone() for parameter in vae.parameters()]
    history = xhat.fit(vae, x, epochs=1, batch_size=64)
    assert math.isfinite(history.rows[0]["train_loss"])
    assert all(p.isfinite().all() for p in vae.parameters())
    assert all(not torch.equal(p, q) for p, q in zip(before, vae.parameters(), strict=True) if p.numel() > 1)
    result = xhat.evaluate(vae, x, samples=5)
    assert result.bits_per_dimension == pytest.approx(-result.log_likelihood.value / math.log(2) / 64)
    assert 0.5 < bits_per_dimension(vae, -64 * math.log(2)) < 1.5
    again = xhat.load(xhat.save(vae, tmp_path / "model.safetensors"))
    z = torch.randn(4, 2)
    assert torch.equal(again.likelihood(z).log_prob(vae.given(x)[:4]), vae.likelihood(z).log_prob(vae.given(x)[:4]))
    assert type(again.likelihood) is type(vae.likelihood)


@pytest.mark.parametrize("name", MADE)
def test_data_off_the_grid_is_refused_with_place_and_remedy(name):
    conditional = MADE[name](MLP(2), (3,), 17)
    x = torch.zeros(4, 3)
    conditional.check(x + 5 / 16, "the data")
    x[2, 1] = 0.3
    with pytest.raises(
        DataError,
        match=r"example 2 holds 0.3 at \(1,\), outside the support .* \(17 equally spaced levels from 0 to 1\): set levels",
    ):
        conditional.check(x, "the data")


@pytest.mark.parametrize("name", MADE)
def test_events_of_several_axes_keep_their_order(name):
    conditional, flat = (MADE[name](MLP(2), event, 5).double() for event in ((2, 3), (6,)))
    raw = torch.randn(4, *conditional.head.shape, dtype=F64)
    law = conditional.law(raw)
    x = law.sample()
    same = flat.law(raw.flatten(2))
    torch.testing.assert_close(law.log_prob(x), same.log_prob(x.flatten(1)))
    torch.testing.assert_close(law.mean.flatten(1), same.mean)


def test_parameters_keep_to_their_bounds():
    raw = torch.linspace(-300.0, 300.0, 61)[:, None, None].expand(-1, 2, 1)
    law = conditionals.BetaBinomial(MLP(2), 1, minimum=0.01, largest=50.0).law(raw).base_dist
    assert 0.01 <= law.alpha.min() < 0.011
    assert 42 < law.alpha.max() <= 50.01
    assert (law.alpha.diff(dim=0) >= 0).all()
    scale = conditionals.DiscretisedNormal(MLP(2), 1, minimum=0.02).law(raw).base_dist.scale
    assert scale.min() >= 0.02
    scale = conditionals.LogisticMixture(MLP(2), 1, components=1, minimum=0.02).law(torch.full((1, 3, 1), -99.0)).base_dist.scale
    assert scale.min() >= 0.02


REFUSED = [
    (lambda n: conditionals.DiscretisedNormal(n, 2, levels=1), "levels must be at least 2"),
    (lambda n: conditionals.DiscretisedNormal(n, 2, levels=2.5), "levels must be a whole number"),
    (lambda n: conditionals.DiscretisedNormal(n, 2, scale="relu"), "scale must be one of softplus, exp"),
    (lambda n: conditionals.DiscretisedNormal(n, 2, scale=-1.0), "was -1.0"),
    (lambda n: conditionals.DiscretisedNormal(n, 2, per="pixel"), "per must be one of network, dimension, shared"),
    (lambda n: conditionals.DiscretisedNormal(n, 2, minimum=0.0), "minimum must be above 0"),
    (lambda n: conditionals.LogisticMixture(n, 2, components=0), "components, the number of logistics, must be at least 1"),
    (lambda n: conditionals.LogisticMixture(n, 2, scale="relu"), "scale must be one of softplus, exp"),
    (lambda n: conditionals.LogisticMixture(n, 2, levels=1), "levels must be at least 2"),
    (lambda n: conditionals.BetaBinomial(n, 2, levels=1), "levels must be at least 2"),
    (lambda n: conditionals.BetaBinomial(n, 2, scale="relu"), "scale must be one of softplus, exp"),
    (lambda n: conditionals.BetaBinomial(n, 2, largest=0.5), "largest must be above 1"),
    (lambda n: conditionals.BetaBinomial(n, 2, minimum=-1.0), "minimum must be above 0"),
]


@pytest.mark.parametrize(("row", "words"), REFUSED)
def test_options_that_make_no_sense_are_refused(row, words):
    with pytest.raises(ConfigError, match=words):
        row(MLP(2))
