"""Conditionals: every law is normalised, is its formula, is drawn from as declared, and its gradient is right."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor, nn

import xhat
from catalogue import CONDITIONALS, EVENT, F64, LATENT, RANDOM, law_of, single
from xhat import conditionals
from xhat.conditionals import positive
from xhat.distributions import Delta, is_discrete
from xhat.errors import ConfigError, DataError
from xhat.models.choices import LIKELIHOODS, POSTERIORS
from xhat.networks import MLP

DELTAS = [name for name in CONDITIONALS if name not in RANDOM]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(name: str, context: int = 2, event: tuple[int, ...] = EVENT) -> conditionals.Headed:
    return CONDITIONALS[name](MLP(context, [5], "tanh"), event).double()


def raw_of(conditional: conditionals.Headed, *batch: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*batch, *conditional.head.shape, dtype=F64)


def test_every_conditional_of_the_library_has_a_row():
    made = {type(row(MLP(2), (2,))) for row in CONDITIONALS.values()}
    rows = {**LIKELIHOODS, **POSTERIORS}.values()
    assert {row.make for row in rows if isinstance(row.make, type)} <= made


# Density


def points(law: torch.distributions.Distribution) -> tuple[Tensor, Tensor | float]:
    """Points of a law of single numbers, batch shape (B, 1), and what each weighs in a sum over them."""
    base = single(law)
    if is_discrete(law):
        known = base.enumerate_support() if base.has_enumerate_support else None
        return (torch.arange(4000.0, dtype=F64).reshape(-1, 1, 1) if known is None else known), 1.0
    if base.support is torch.distributions.constraints.unit_interval:
        nodes, weights = np.polynomial.legendre.leggauss(200)
        return torch.tensor((nodes + 1) / 2).reshape(-1, 1, 1), torch.tensor(weights / 2).reshape(-1, 1)
    # Panels of one standard deviation, counted from the mean, where a density may have a kink
    nodes, weights = (torch.tensor(a) for a in np.polynomial.legendre.leggauss(20))
    steps = (torch.arange(-40, 40, dtype=F64)[:, None] + (nodes + 1) / 2).reshape(-1, 1, 1)
    return law.mean + steps * law.variance.sqrt(), (weights / 2).repeat(80)[:, None] * law.variance.sqrt().squeeze(-1)


@pytest.mark.parametrize("name", RANDOM)
def test_it_integrates_or_sums_to_one(name):
    event = EVENT if name == "one-hot-categorical" else (1,)  # one variable
    conditional = make(name, event=event)
    law = conditional.law(raw_of(conditional, 4, scale=2.0))
    z, weight = points(law)
    total = (law.log_prob(z.expand(-1, 4, *event)).exp() * weight).sum(0)
    torch.testing.assert_close(total, torch.ones(4, dtype=F64), rtol=0, atol=1e-9)


def softplus(a: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(-np.abs(a))) + np.maximum(a, 0)


def normal(x, loc, scale):
    return stats.norm.logpdf(x, loc, scale).sum(-1)


def full(x, raw, diagonal):
    rows = []
    for value, numbers in zip(x.reshape(-1, 3), raw.reshape(-1, 9), strict=True):
        factor = np.zeros((3, 3))
        factor[np.tril_indices(3)] = numbers[3:]
        factor[np.diag_indices(3)] = diagonal(np.diag(factor))
        rows.append(stats.multivariate_normal.logpdf(value, numbers[:3], factor @ factor.T))
    return np.array(rows).reshape(x.shape[:-1])


def continuous_bernoulli(x, logit):
    def log_normaliser(a):
        return math.log(integrate.quad(lambda t: math.exp(a * t), 0, 1, epsabs=0, epsrel=1e-13)[0])

    return (x * logit - np.vectorize(log_normaliser)(logit)).sum(-1)


def levels(x, raw):  # raw (…, level, event)
    index = np.rint(x * 4).astype(int)[..., None, :]
    return (np.take_along_axis(raw, index, -2).squeeze(-2) - special.logsumexp(raw, axis=-2)).sum(-1)


# By scipy or by hand, from the raw numbers (…, parameters, event) of an event of 3.
FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "normal": lambda x, a: normal(x, a[..., 0, :], 1e-4 + softplus(a[..., 1, :])),
    "normal-exp": lambda x, a: normal(x, a[..., 0, :], 1e-4 + np.exp(a[..., 1, :])),
    "normal-fixed": lambda x, a: normal(x, a[..., 0, :], 0.7),
    "normal-shared": lambda x, a: normal(x, a[..., 0, :], 1.0 + 1e-4),
    "normal-dimension": lambda x, a: normal(x, special.expit(a[..., 0, :]), 1.0 + 1e-4),
    "multivariate-normal": lambda x, a: full(x, a, lambda d: 1e-4 + softplus(d)),
    "multivariate-normal-exp": lambda x, a: full(x, a, lambda d: 1e-4 + np.exp(d)),
    "bernoulli": lambda x, a: stats.bernoulli.logpmf(x, special.expit(a[..., 0, :])).sum(-1),
    "continuous-bernoulli": lambda x, a: continuous_bernoulli(x, a[..., 0, :]),
    "categorical": levels,
    "one-hot-categorical": lambda x, a: (x * special.log_softmax(a[..., 0, :], axis=-1)).sum(-1),
    "poisson": lambda x, a: stats.poisson.logpmf(x, 1e-6 + softplus(a[..., 0, :])).sum(-1),
    "poisson-exp": lambda x, a: stats.poisson.logpmf(x, 0.5 + np.exp(a[..., 0, :])).sum(-1),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_log_prob_is_the_formula(name):
    conditional = make(name)
    raw = raw_of(conditional, 2, 5)
    law = conditional.law(raw)
    x = law.sample()
    expected = torch.from_numpy(np.asarray(FORMULAS[name](x.numpy(), raw.numpy())))
    # A learned σ starts from a float32 number.
    torch.testing.assert_close(law.log_prob(x).detach(), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", RANDOM)
def test_gradients_of_log_prob_match_finite_differences(name):
    conditional = make(name)
    raw = raw_of(conditional, 3).requires_grad_()
    x = conditional.law(raw).sample()
    learned = [p for key, p in conditional.named_parameters() if not key.startswith(("network", "head"))]

    def log_prob(numbers: Tensor, *others: Tensor) -> Tensor:
        return conditional.law(numbers).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, (raw, *learned))
    (slope,) = torch.autograd.grad(log_prob(raw).sum(), raw)
    assert slope.abs().sum() > 0


@pytest.mark.parametrize("name", DELTAS)
def test_a_point_mass_is_one_on_its_point_and_passes_gradients_through(name):
    conditional = make(name)
    raw = raw_of(conditional, 4).requires_grad_()
    law = conditional.law(raw)
    assert torch.equal(law.log_prob(law.mean), torch.zeros(4, dtype=F64))
    assert torch.equal(law.log_prob(law.mean + 1), torch.full((4,), -math.inf, dtype=F64))
    assert torch.equal(law.rsample((2,))[1], law.mean)
    assert torch.autograd.gradcheck(lambda a: conditional.law(a).rsample(), raw)


# Draws


@pytest.mark.parametrize("name", CONDITIONALS)
def test_shapes_of_a_batch_of_batches(name):
    conditional = make(name)
    law = conditional(torch.randn(6, 4, 2, dtype=F64))
    assert law.batch_shape == (6, 4)
    assert law.event_shape == EVENT
    z = law.sample((5,))
    assert z.shape == (5, 6, 4, *EVENT)
    assert law.log_prob(z).shape == (5, 6, 4)
    assert law.mean.shape == (6, 4, *EVENT)
    assert not z.requires_grad


@pytest.mark.parametrize("name", CONDITIONALS)
def test_a_batch_of_contexts_equals_one_by_one(name):
    conditional = make(name)
    context = torch.randn(3, 4, 2, dtype=F64)
    together = conditional(context)
    x = together.sample()
    for i in range(3):
        for j in range(4):
            alone = conditional(context[i, j])
            assert alone.batch_shape == ()
            torch.testing.assert_close(alone.mean, together.mean[i, j])
            if name in RANDOM:
                torch.testing.assert_close(alone.log_prob(x[i, j]), together.log_prob(x)[i, j])


@pytest.mark.parametrize("name", RANDOM)
def test_draws_lie_in_the_support_and_have_the_mean_and_variance_declared(name):
    conditional = make(name)
    law = conditional.law(raw_of(conditional, 4))
    z = law.sample((20_000,))
    conditional.check(z.reshape(-1, *EVENT), "draws")
    assert law.log_prob(z).isfinite().all()
    spread = law.variance.sqrt()
    assert ((z.mean(0) - law.mean).abs() <= 4 * spread / math.sqrt(len(z))).all()
    squares = (z - law.mean).square()
    assert ((squares.mean(0) - law.variance).abs() <= 4 * squares.std(0) / math.sqrt(len(z))).all()


@pytest.mark.parametrize("name", [name for name, row in RANDOM.items() if law_of(row).has_rsample])
def test_reparameterised_draws_carry_a_gradient(name):
    conditional = make(name)
    raw = raw_of(conditional, 4).requires_grad_()
    (slope,) = torch.autograd.grad(conditional.law(raw).rsample((3,)).square().sum(), raw)
    assert (slope.abs().flatten(1).sum(1) > 0).all()


@pytest.mark.parametrize("size", [40.0, 100.0])
@pytest.mark.parametrize("name", RANDOM)
def test_extreme_outputs_stay_finite_in_float32(name, size):
    conditional = CONDITIONALS[name](MLP(2, [5]), (2,))
    for signs in (1.0, -1.0, None):
        raw = torch.full((4, *conditional.head.shape), size)
        raw = raw * (torch.randn_like(raw).sign() if signs is None else signs)
        raw.requires_grad_()
        law = conditional.law(raw)
        x = law.sample((50,))
        at_one = torch.ones_like(x)
        for value in (x, at_one):
            log_prob = conditional.law(raw).log_prob(value)
            assert log_prob.isfinite().all()
            assert torch.autograd.grad(log_prob.sum(), raw)[0].isfinite().all()
        assert x.isfinite().all()
        assert law.mean.isfinite().all()


# The head and the context


HEADS = {
    "normal": (2, 3),
    "normal-fixed": (1, 3),
    "normal-shared": (1, 3),
    "multivariate-normal": (3 + 6,),
    "bernoulli": (1, 3),
    "continuous-bernoulli": (1, 3),
    "categorical": (5, 3),
    "one-hot-categorical": (1, 3),
    "poisson": (1, 3),
    "delta": (1, 3),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_law_sizes_the_head(name):
    conditional = make(name)
    assert conditional.head.shape == HEADS[name]
    assert conditional.head.linear.out_features == math.prod(HEADS[name])


@pytest.mark.parametrize("name", CONDITIONALS)
def test_a_context_of_the_wrong_shape_is_refused(name):
    with pytest.raises(ConfigError, match=r"takes a context of shape \(\*batch, 2\), was \(4, 3\)"):
        make(name)(torch.zeros(4, 3, dtype=F64))
    with pytest.raises(ConfigError, match="takes 2 values"):
        make(name).bind((3,), "posterior")


@pytest.mark.parametrize("name", CONDITIONALS)
def test_foreign_networks_serve_every_law(name):
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh())
    conditional = CONDITIONALS[name](network, LATENT)
    assert conditional(torch.randn(3, 7, 2)).sample().shape == (3, 7, *LATENT)


def test_events_of_several_axes_keep_their_order():
    """Element (i, j) of the event gets the parameters at (i, j), for every law that takes such events."""
    for cls, options in ((conditionals.Normal, {}), (conditionals.Categorical, {"levels": 4}), (conditionals.Bernoulli, {})):
        conditional = cls(MLP(2), event=(2, 3), **options).double()
        raw = raw_of(conditional, 5)
        law = conditional.law(raw)
        x = law.sample()
        flat = cls(MLP(2), event=(6,), **options).double().law(raw.flatten(2))
        torch.testing.assert_close(law.log_prob(x), flat.log_prob(x.flatten(1)))
        torch.testing.assert_close(law.mean.flatten(1), flat.mean)


# Theory 5.1: scales


def test_softplus_is_nearly_linear_for_large_positive_and_exponential_for_large_negative_numbers():
    a = torch.linspace(3, 30, 50, dtype=F64)
    sp = positive(a, minimum=0.0)
    assert ((sp - a) >= 0).all()  # torch's own is a itself from 20 on
    assert ((sp - a) < torch.exp(-a) + 1e-14).all()
    gap = torch.exp(-a) - positive(-a, minimum=0.0)
    assert (gap > -1e-16).all()
    assert (gap <= 0.5 * torch.exp(-2 * a) + 1e-16).all()
    near = torch.linspace(-0.1, 0.1, 9, dtype=F64)
    torch.testing.assert_close(positive(near, minimum=0.0), math.log(2) + near / 2 + near**2 / 8, rtol=0, atol=1e-6)


def test_scales_are_bounded_away_from_zero_and_grow_with_their_raw_number():
    a = torch.linspace(-200, 200, 401, dtype=F64, requires_grad=True)
    for transform in ("softplus", "exp"):
        scale = positive(a, transform, 0.01)
        assert scale.min() >= 0.01
        assert scale.isfinite().all()
        assert (scale.diff() >= 0).all()
    (slope,) = torch.autograd.grad(positive(a).sum(), a)
    torch.testing.assert_close(slope, torch.sigmoid(a.detach()))
    with pytest.raises(ConfigError, match="scale must be one of softplus, exp"):
        positive(a, "square")


def test_a_full_covariance_is_positive_definite_and_its_factor_unique():
    conditional = make("multivariate-normal")
    raw = raw_of(conditional, 10, scale=3.0)
    law = conditional.law(raw)
    assert torch.linalg.eigvalsh(law.covariance_matrix).min() > 0
    torch.testing.assert_close(torch.linalg.cholesky(law.covariance_matrix), law.scale_tril, rtol=1e-6, atol=1e-8)
    assert raw.shape[-1] == 3 + 3 * 4 // 2
    assert (law.scale_tril.diagonal(dim1=-2, dim2=-1) >= conditional.minimum).all()


def test_shared_scales_start_at_one_and_are_one_number_or_one_an_element():
    for per, count in (("shared", 1), ("dimension", 6)):
        for transform in ("softplus", "exp"):
            conditional = conditionals.Normal(MLP(2), event=(2, 3), scale=transform, per=per)
            torch.testing.assert_close(conditional(torch.zeros(4, 2)).stddev, torch.full((4, 2, 3), 1.0001))
            assert conditional.raw_scale.numel() == count


# Theory 5.2: the decoder is a law


def test_the_cross_entropy_is_no_density_on_grey_values_and_the_continuous_bernoulli_is():
    for rho, integral in ((0.5, 0.5), (0.9, 0.364), (0.3, None)):
        total = integrate.quad(lambda x, r=rho: r**x * (1 - r) ** (1 - x), 0, 1)[0]
        exact = 0.5 if rho == 0.5 else (2 * rho - 1) / (math.log(rho) - math.log(1 - rho))
        assert total == pytest.approx(exact, rel=1e-12)
        assert total < 1
        if integral is not None:
            assert total == pytest.approx(integral, abs=5e-4)
        logit = math.log(rho / (1 - rho))
        conditional = conditionals.ContinuousBernoulli(MLP(1), 1).double()
        law = conditional.law(torch.full((1, 1, 1), logit, dtype=F64))
        x = 0.2
        formula = x * math.log(rho) + (1 - x) * math.log(1 - rho) - math.log(total)
        assert law.log_prob(torch.full((1, 1), x, dtype=F64)).item() == pytest.approx(formula, rel=1e-10)
        mean = 0.5 if rho == 0.5 else rho / (2 * rho - 1) - 1 / logit
        assert law.mean.item() == pytest.approx(mean, rel=1e-10)


def test_squared_error_is_a_unit_normal_without_its_constant():
    law = conditionals.Normal(MLP(2), event=(3, 4), scale=1.0).double()(torch.randn(5, 2, dtype=F64))
    x = torch.randn(5, 3, 4, dtype=F64)
    half = 0.5 * (x - law.mean).square().sum((1, 2))
    torch.testing.assert_close(-law.log_prob(x), half + 12 / 2 * math.log(2 * math.pi))


def test_the_best_shared_variance_is_the_mean_squared_error():
    conditional = conditionals.Normal(MLP(2), event=4, per="shared", scale="exp", minimum=1e-12).double()
    context, x = torch.randn(50, 2, dtype=F64), 3 * torch.randn(50, 4, dtype=F64)
    best = (x - conditional(context).mean).square().mean()
    with torch.no_grad():
        conditional.raw_scale.fill_(0.5 * math.log(best) / conditionals.normal.GAIN)
    torch.testing.assert_close(conditional(context).variance[0, 0], best)
    (slope,) = torch.autograd.grad(conditional(context).log_prob(x).mean(), conditional.raw_scale)
    assert abs(slope.item()) < 1e-9


def test_a_categorical_that_knows_nothing_costs_eight_bits_a_pixel():
    conditional = conditionals.Categorical(MLP(2), event=(1, 2, 2))
    law = conditional.law(torch.zeros(1, *conditional.head.shape))
    nats = -law.log_prob(torch.full((1, 1, 2, 2), 37 / 255)).item() / 4
    assert nats == pytest.approx(5.545, abs=5e-4)
    assert nats / math.log(2) == pytest.approx(8.0, abs=1e-6)


def test_every_one_of_256_grey_levels_is_met_exactly():
    conditional = conditionals.Categorical(MLP(2), event=256)
    raw = torch.randn(1, 256, 256)
    x = (torch.arange(256, dtype=torch.uint8).float() / 255).reshape(1, 256)
    expected = raw[0].log_softmax(0).diagonal().sum()
    torch.testing.assert_close(conditional.law(raw).log_prob(x)[0], expected)
    conditional.check(x, "x")


# What is refused


REFUSED_OPTIONS = [
    (lambda n: conditionals.Normal(n, 2, scale="relu"), "scale must be one of softplus, exp or a positive number"),
    (lambda n: conditionals.Normal(n, 2, scale=-1.0), "was -1.0"),
    (lambda n: conditionals.Normal(n, 2, scale=math.inf), "was inf"),
    (lambda n: conditionals.Normal(n, 2, per="pixel"), "per must be one of network, dimension, shared"),
    (lambda n: conditionals.Normal(n, 2, link="tanh"), "link must be one of identity, sigmoid"),
    (lambda n: conditionals.Normal(n, 2, minimum=0.0), "minimum must be above 0"),
    (lambda n: conditionals.MultivariateNormal(n, 2, minimum=math.nan), "minimum must be above 0 and finite, was nan"),
    (lambda n: conditionals.Poisson(n, 2, minimum=-1.0), "minimum must be above 0 and finite, was -1.0"),
    (lambda n: conditionals.MultivariateNormal(n, (2, 2)), "an event with one axis"),
    (lambda n: conditionals.MultivariateNormal(n, 2, scale="relu"), "scale must be"),
    (lambda n: conditionals.Categorical(n, 2, levels=1), "levels must be at least 2"),
    (lambda n: conditionals.OneHotCategorical(n, (3, 1)), r"at least 2 categories, was \(3, 1\)"),
    (lambda n: conditionals.Poisson(n, 2, scale="relu"), "scale must be"),
    (lambda n: conditionals.Bernoulli(n, 0), "event must be"),
    (lambda n: conditionals.Delta(n, 2, link="tanh"), "link must be"),
]


@pytest.mark.parametrize(("row", "words"), REFUSED_OPTIONS)
def test_options_that_make_no_sense_are_refused(row, words):
    with pytest.raises(ConfigError, match=words):
        row(MLP(2))


REFUSED_VALUES = {
    "bernoulli": (0.3, "binarise the data"),
    "continuous-bernoulli": (1.5, "scale the data"),
    "categorical": (0.3, "set levels"),
    "poisson": (0.5, "a law of counts"),
    "normal": (math.nan, "the Normal likelihood"),
}


@pytest.mark.parametrize("name", REFUSED_VALUES)
def test_values_outside_the_support_are_refused_with_place_and_remedy(name):
    value, remedy = REFUSED_VALUES[name]
    x = torch.zeros(4, 3)
    x[2, 1] = value
    with pytest.raises(DataError, match=rf"the data: example 7 holds {value:g} at \(1,\), outside.*{remedy}"):
        make(name).check(x, "the data", first=5)


# Files


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("role", ["posterior", "likelihood"])
def test_a_round_trip_through_a_file_changes_no_bit(name, role, tmp_path):
    from catalogue import vae

    model = (vae(name, "normal") if role == "posterior" else vae("normal", name)).double()
    again = xhat.load(xhat.save(model, tmp_path / "m.safetensors"))
    context = torch.randn(4, *EVENT, dtype=F64) if role == "posterior" else torch.randn(4, *LATENT, dtype=F64)
    old, new = getattr(model, role)(context), getattr(again, role)(context)
    x = old.sample()
    assert torch.equal(old.log_prob(x), new.log_prob(x))
    assert torch.equal(old.mean, new.mean)
    assert type(single(old)) is type(single(new))
    assert not isinstance(old, Delta)
