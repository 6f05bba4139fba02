"""The laws of xhat.distributions: normalised, drawn from as declared, stable; and which have a divergence."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch import distributions as td

from xhat.distributions import ContinuousBernoulli, Delta, Levels, has_closed_form, is_discrete, kl_divergence
from xhat.errors import ConfigError, DataError

F64 = torch.float64
LOGITS = [0.0, 1e-6, 1e-3, 0.1, 1.0, 10.0, 40.0, -40.0, 100.0]


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# Continuous Bernoulli


def quadrature(logit: float) -> tuple[float, float, float, float]:
    """log of the normaliser, mean, variance and entropy, without the law's own formulas."""
    top = max(logit, 0.0)  # the weight is exp(logit x - top), at most 1

    def moment(power: int, centre: float = 0.0) -> float:
        cut = min(1.0, 50 / abs(logit)) if logit else 0.5
        ends = (0.0, cut, 1.0) if logit <= 0 else (0.0, 1 - cut, 1.0)
        parts = [
            integrate.quad(lambda x: (x - centre) ** power * math.exp(logit * x - top), a, b, epsrel=1e-13, epsabs=0)[0]
            for a, b in itertools.pairwise(ends)
            if b > a
        ]
        return math.fsum(parts)

    mass = moment(0)
    mean = moment(1) / mass
    return math.log(mass) + top, mean, moment(2, mean) / mass, math.log(mass) + top - logit * mean


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_against_quadrature(logit: float) -> None:
    law = ContinuousBernoulli(torch.tensor(logit, dtype=F64))
    log_normaliser, mean, variance, entropy = quadrature(logit)
    assert law.log_normaliser.item() == pytest.approx(log_normaliser, rel=1e-12, abs=1e-14)
    assert law.mean.item() == pytest.approx(mean, rel=1e-12)
    assert law.variance.item() == pytest.approx(variance, rel=1e-10)
    assert law.entropy().item() == pytest.approx(entropy, rel=1e-10, abs=1e-13)
    for x in (0.0, 0.2, 0.5, 0.97, 1.0):
        point = torch.tensor(x, dtype=F64)
        assert law.log_prob(point).item() == pytest.approx(x * logit - log_normaliser, rel=1e-12, abs=1e-13)
        below = integrate.quad(lambda y: math.exp(y * logit - log_normaliser), 0, x, epsrel=1e-12, points=[x * 0.9])[0]
        assert law.cdf(point).item() == pytest.approx(below, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("logit", [-8.0, -1.5, 0.7, 3.0, 9.0])
def test_continuous_bernoulli_agrees_with_torch_where_torch_is_accurate(logit: float) -> None:
    at = torch.tensor(logit, dtype=F64)
    ours, theirs = ContinuousBernoulli(at), td.ContinuousBernoulli(logits=at)
    x = torch.linspace(0.01, 0.99, 9, dtype=F64)
    for name in ("log_prob", "cdf", "icdf"):
        torch.testing.assert_close(getattr(ours, name)(x), getattr(theirs, name)(x), rtol=1e-9, atol=1e-9)
    for a, b in ((ours.mean, theirs.mean), (ours.variance, theirs.variance), (ours.entropy(), theirs.entropy())):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_continuous_bernoulli_derivatives_join_across_the_branches() -> None:
    """The mean is the derivative of the log normaliser and the variance that of the mean, also at the seams."""
    logit = torch.tensor([*LOGITS, 0.2499, 0.2501, -0.9999, 1.0001], dtype=F64, requires_grad=True)
    law = ContinuousBernoulli(logit)
    (slope,) = torch.autograd.grad(law.log_normaliser.sum(), logit, create_graph=True)
    torch.testing.assert_close(slope, law.mean, rtol=1e-12, atol=1e-13)
    (curvature,) = torch.autograd.grad(slope.sum(), logit)
    torch.testing.assert_close(curvature, law.variance, rtol=1e-10, atol=1e-13)
    (slope_of_mean,) = torch.autograd.grad(law.mean.sum(), logit)
    torch.testing.assert_close(slope_of_mean, law.variance, rtol=1e-10, atol=1e-13)


def test_continuous_bernoulli_quantiles_and_their_gradient() -> None:
    logit = torch.tensor([*LOGITS, -1.0, 0.2499, 0.2501, -100.0], dtype=F64, requires_grad=True)
    law = ContinuousBernoulli(logit)
    u = torch.linspace(0.0, 1.0, 11, dtype=F64)[:, None]
    x = law.icdf(u)
    assert ((x >= 0) & (x <= 1)).all()
    torch.testing.assert_close(x[0], torch.zeros_like(x[0]), rtol=0, atol=1e-14)
    torch.testing.assert_close(x[-1], torch.ones_like(x[0]), rtol=0, atol=1e-14)
    torch.testing.assert_close(law.cdf(x), u.expand_as(x), rtol=1e-9, atol=1e-12)
    # Implicit function theorem: dx/dl = -(dF/dl) / p(x), with F the distribution function.
    inner = law.icdf(u[1:-1])
    (pathwise,) = torch.autograd.grad(inner.sum(), logit)
    at = inner.detach()
    weights = -1 / law.log_prob(at).exp().detach()
    (implicit,) = torch.autograd.grad((weights * law.cdf(at)).sum(), logit)
    torch.testing.assert_close(pathwise, implicit, rtol=1e-6, atol=1e-9)


def test_continuous_bernoulli_float32_extremes_are_finite() -> None:
    logit = torch.tensor([0.0, 1e-8, 40.0, -40.0, 100.0, -100.0, 1e4, -1e4], requires_grad=True)
    law = ContinuousBernoulli(logit)
    torch.manual_seed(0)
    draws = law.rsample((2000,))
    x = torch.tensor([0.0, 0.5, 1.0])[:, None]
    for value in (draws, law.log_prob(x), law.mean, law.variance, law.entropy(), law.cdf(x), law.icdf(x)):
        assert value.isfinite().all()
        (gradient,) = torch.autograd.grad(value.sum(), logit)
        assert gradient.isfinite().all()
    assert ((draws >= 0) & (draws <= 1)).all()


def test_continuous_bernoulli_draws() -> None:
    torch.manual_seed(1)
    for logit in (-40.0, -0.3, 0.0, 0.2, 5.0):
        law = ContinuousBernoulli(torch.tensor(logit, dtype=F64))
        draws = law.sample((4000,))
        assert stats.kstest(draws.numpy(), lambda x, law=law: law.cdf(torch.as_tensor(x)).numpy()).pvalue > 1e-3
    wide = law.expand((3, 2))
    assert wide.rsample((4,)).shape == (4, 3, 2)


# Levels


def test_levels_is_normalised_and_its_moments_are_those_of_the_enumeration() -> None:
    law = Levels(noise(0, 3, 2, 7), low=-1.0, high=2.0)
    support = law.enumerate_support()
    assert support.shape == (7, 3, 2)
    assert law.enumerate_support(expand=False).shape == (7, 1, 1)
    mass = law.log_prob(support).exp()
    one = torch.ones(3, 2, dtype=F64)
    torch.testing.assert_close(mass.sum(0), one)
    mean = (mass * support).sum(0)
    torch.testing.assert_close(law.mean, mean)
    torch.testing.assert_close(law.variance, (mass * (support - mean) ** 2).sum(0))
    torch.testing.assert_close(law.entropy(), -(mass * mass.log()).sum(0))
    torch.testing.assert_close(law.mode, support.gather(0, mass.argmax(0)[None])[0])
    assert Levels(torch.tensor([0.0, -math.inf])).entropy().item() == 0.0


def test_levels_draws_have_the_declared_frequencies() -> None:
    torch.manual_seed(0)
    law = Levels(noise(0, 2, 5))
    draws = law.sample((20_000,))
    assert draws.shape == (20_000, 2)
    for i, level in enumerate(law.values):
        share = (draws == level).double().mean(0)
        p = law.probs[:, i]
        assert ((share - p).abs() < 4 * (p * (1 - p) / 20_000).sqrt()).all()
    assert law.log_prob(draws).isfinite().all()


@pytest.mark.parametrize(
    ("batch", "value"),
    [((4, 3), (3,)), ((3,), (5, 4, 3)), ((4, 3), (5, 4, 1)), ((4, 1), (3,)), ((), (2, 3)), ((2, 3), ())],
)
def test_levels_log_prob_broadcasts(batch: tuple[int, ...], value: tuple[int, ...]) -> None:
    logits = noise(0, *batch, 6).requires_grad_()
    law = Levels(logits)
    x = law.values.detach()[torch.randint(6, value, generator=torch.Generator().manual_seed(1))]
    shape = torch.broadcast_shapes(batch, value)
    index = (x * 5).round().long().expand(shape)
    dense = logits.log_softmax(-1).expand((*shape, 6)).gather(-1, index[..., None])[..., 0]
    ours = law.log_prob(x)
    torch.testing.assert_close(ours, dense)
    weight = noise(2, *shape)
    gradients = [torch.autograd.grad((weight * y).sum(), logits)[0] for y in (ours, dense)]
    torch.testing.assert_close(*gradients)


def test_levels_takes_what_an_image_file_holds() -> None:
    law = Levels(torch.zeros(256))
    x = torch.arange(256) / 255
    torch.testing.assert_close(law.log_prob(x), torch.full((256,), -math.log(256)))
    deep = Levels(torch.zeros(65536))
    assert deep.log_prob(torch.arange(65536) / 65535).isfinite().all()
    assert Levels(torch.zeros(2)).log_prob(torch.tensor([0, 1])).shape == (2,)


def test_levels_refuses() -> None:
    law = Levels(torch.zeros(3, 5))
    with pytest.raises(DataError, match=r"5 equally spaced levels from 0\.0 to 1\.0"):
        law.log_prob(torch.tensor([0.0, 0.3, 1.0]))
    with pytest.raises(DataError):
        law.log_prob(torch.tensor([0.0, 1.25, 1.0]))
    with pytest.raises(ConfigError, match="at least 2 levels"):
        Levels(torch.zeros(3, 1))
    with pytest.raises(ConfigError, match="above low"):
        Levels(torch.zeros(3, 2), low=1.0)
    assert law.expand((2, 3)).batch_shape == (2, 3)


# Delta


def test_delta() -> None:
    value = noise(0, 4, 2, 3).requires_grad_()
    law = Delta(value, 2)
    assert (law.batch_shape, law.event_shape) == ((4,), (2, 3))
    z = law.rsample((5,))
    assert z.shape == (5, 4, 2, 3)
    z.sum().backward()
    assert (value.grad == 5).all()
    assert (law.mean is value, law.mode is value) == (True, True)
    assert (law.variance == 0).all()
    torch.testing.assert_close(law.entropy(), torch.zeros(4, dtype=F64))
    torch.testing.assert_close(law.log_prob(z), torch.zeros(5, 4, dtype=F64))
    off = value.detach().clone()
    off[1, 0, 2] += 1e-9
    assert law.log_prob(off).tolist() == [0.0, -math.inf, 0.0, 0.0]
    assert not law.sample().requires_grad
    assert law.expand((6, 4)).sample().shape == (6, 4, 2, 3)
    with pytest.raises(ConfigError, match="event_dim"):
        Delta(torch.zeros(3), 2)


# Which laws are discrete


@pytest.mark.parametrize(
    ("law", "discrete"),
    [
        (td.Bernoulli(torch.tensor(0.5)), True),
        (td.Independent(td.Categorical(torch.ones(3, 4)), 1), True),
        (td.OneHotCategoricalStraightThrough(torch.ones(3)), True),
        (td.Poisson(torch.tensor(1.0)), True),
        (td.Multinomial(3, torch.ones(3)), True),
        (Levels(torch.zeros(3)), True),
        (td.Independent(Delta(torch.zeros(3)), 1), True),
        (td.MixtureSameFamily(td.Categorical(torch.ones(2)), td.Poisson(torch.ones(2))), True),
        (td.MixtureSameFamily(td.Categorical(torch.ones(2)), td.Normal(torch.ones(2), 1.0)), False),
        (td.RelaxedOneHotCategorical(torch.tensor(1.0), torch.ones(3)), False),
        (td.Independent(td.Normal(torch.zeros(3), 1.0), 1), False),
        (td.LogNormal(0.0, 1.0), False),
        (ContinuousBernoulli(torch.tensor(0.0)), False),
    ],
)
def test_is_discrete(law: td.Distribution, discrete: bool) -> None:
    assert is_discrete(law) is discrete


def test_a_law_without_a_support_counts_as_continuous() -> None:
    class Bare(td.Distribution):
        arg_constraints = {}  # noqa: RUF012

    assert not is_discrete(Bare())


# Which laws have a divergence


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def plane(size: int) -> td.Distribution:
    return td.MultivariateNormal(torch.zeros(size), torch.eye(size))


SIMPLEX = t(0.2, 0.5, 0.3)

REFUSED: dict[str, tuple[td.Distribution, td.Distribution, str]] = {
    "delta/continuous": (Delta(t(0.0)), td.Normal(t(0.0), t(1.0)), "Delta .*counting.*Normal.*Lebesgue"),
    "continuous/delta": (td.Normal(t(0.0), t(1.0)), Delta(t(0.0)), "Normal"),
    "discrete/continuous": (td.Bernoulli(t(0.5)), ContinuousBernoulli(t(0.5)), "Bernoulli"),
    "simplex/cube": (td.Dirichlet(SIMPLEX), td.Independent(td.Beta(SIMPLEX, SIMPLEX), 1), "simplex"),
    "event shapes": (plane(3), plane(4), r"\(3,\).*\(4,\)"),
    "batch shapes": (td.Normal(noise(1, 3), 1.0), td.Normal(noise(1, 4), 1.0), r"\(3,\).*\(4,\)"),
    "no closed form": (td.StudentT(t(3.0)), td.Normal(t(0.0), t(1.0)), "StudentT.*Normal.*samples=1000"),
    "counts": (td.Binomial(2, t(0.5)), td.Binomial(3, t(0.5)), "Binomial"),
    "categories": (td.Categorical(SIMPLEX), td.Categorical(t(0.5, 0.5)), "Categorical"),
    "grids": (Levels(noise(1, 3)), Levels(noise(1, 3), high=2.0), "Levels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    p, q, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        kl_divergence(p, q)


def test_infinite_divergences() -> None:
    for p, q in [
        (td.Normal(t(0.0), t(1.0)), td.Gamma(t(1.0), t(1.0))),
        (td.Binomial(3, t(0.5)), td.Binomial(2, t(0.5))),
        (td.Multinomial(3, SIMPLEX), td.Multinomial(2, SIMPLEX)),
        (td.Uniform(t(0.0), t(2.0)), ContinuousBernoulli(t(1.0))),
        (Delta(t(1.0)), Delta(t(2.0))),
        (Delta(t(0.5)), td.Bernoulli(t(0.5))),
        (Delta(t(-1.0)), td.Poisson(t(0.5))),
        (Delta(t(1.0, 1.0, 0.0), 1), td.OneHotCategorical(SIMPLEX)),
        (Delta(t(1.0, 1.0, 0.0), 1), td.Multinomial(5, SIMPLEX)),
        (Delta(t(0.55)), Levels(noise(1, 6))),
    ]:
        assert (kl_divergence(p, q) == math.inf).all()
    assert kl_divergence(td.Binomial(3, t(0.0)), td.Binomial(2, t(0.5))).item() == pytest.approx(2 * math.log(2))


def test_a_learned_map_or_count_is_not_taken_for_equal() -> None:
    def law(loc: Tensor) -> td.Distribution:
        return td.TransformedDistribution(td.Normal(t(0.0), t(1.0)), [td.AffineTransform(loc, 1.0)])

    fixed = t(1.0)
    assert has_closed_form(law(fixed), law(fixed.clone()))
    assert not has_closed_form(law(fixed.clone().requires_grad_()), law(fixed))
    folded = [td.TransformedDistribution(td.Normal(t(m), t(1.0)), [td.AbsTransform()]) for m in (-1.0, 1.0)]
    assert not has_closed_form(*folded)
    count = t(2.0).requires_grad_()
    assert not has_closed_form(td.NegativeBinomial(count, t(0.5)), td.NegativeBinomial(count, t(0.4)))
