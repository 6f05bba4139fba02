"""Objectives: the bound is a bound, its estimates are unbiased, and its weights do what their formulas say.

Models with two latent dimensions are summed or integrated over a grid, which gives log p(x) and the ELBO to many digits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

import xhat
from catalogue import EVENT, F64, LATENT, RANDOM, bits, single, vae
from xhat import VAE, conditionals, gradients, objectives, priors
from xhat.data import Batch, Masking
from xhat.distributions import has_closed_form, is_discrete
from xhat.errors import ConfigError
from xhat.networks import MLP
from xhat.objectives import ELBO, NegativeLogLikelihood, SquaredError


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def within(estimates: Tensor, exact: Tensor | float, errors: float = 4.0, slack: float = 1e-9) -> None:
    stderr = estimates.detach().std(0) / math.sqrt(len(estimates))
    away = (estimates.detach().mean(0) - exact).abs()
    assert (away <= errors * stderr + slack).all(), f"off by {(away / stderr).max():.1f} standard errors"


def grid(q: td.Distribution) -> tuple[Tensor, Tensor]:
    """Points (n, 1, 2) and log weights (n, 1) that turn an integral over two latents into a sum."""
    base = single(q)
    if isinstance(base, td.OneHotCategorical):
        vectors = base.enumerate_support(False).double().reshape(-1, 1, *q.event_shape)
        return vectors, torch.zeros(len(vectors), 1)
    if is_discrete(q):
        known = base.enumerate_support(False).flatten() if base.has_enumerate_support else torch.arange(40.0, dtype=F64)
        axis, weight = known.double(), torch.ones(len(known), dtype=F64)
    elif base.support is constraints.unit_interval:
        nodes, weights = np.polynomial.legendre.leggauss(60)
        axis, weight = torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2)
    else:
        reach = max(8.0, (q.mean.abs() + 10 * q.variance.sqrt()).max().item())
        axis = torch.linspace(-reach, reach, 301, dtype=F64)
        weight = torch.full_like(axis, (axis[1] - axis[0]).item())
    both = weight.log()[:, None] + weight.log()
    return torch.cartesian_prod(axis, axis)[:, None], both.reshape(-1, 1)


class Exact(NamedTuple):
    log_px: Tensor
    elbo: Tensor
    gap: Tensor
    error: float  # of the grid, by what it misses of q's mass: tiny unless a density has a kink


def exact(model: VAE, x: Tensor, seen: Tensor | None = None) -> Exact:
    """log p(x), the ELBO and KL(q(z|x) ‖ p(z|x)), each (B,), by summing over the grid."""
    q = model.posterior(x if seen is None else seen)
    z, log_weight = grid(q)
    z = z.expand(-1, len(x), -1)
    log_joint = model.likelihood(z).log_prob(x) + model.prior().log_prob(z)
    log_q = q.log_prob(z)
    log_px = (log_joint + log_weight).logsumexp(0)
    mass = (log_q + log_weight).exp()
    error = (mass.sum(0) - 1).abs().max().item()
    assert error < 5e-3
    return Exact(log_px, (mass * (log_joint - log_q)).sum(0), (mass * (log_q - (log_joint - log_px))).sum(0), error)


def spread(model: VAE) -> VAE:
    """The model with weights large enough for bounds to be far from tight, in float64."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model.double()


X = bits(3)[[1, 4, 7]]
KLS = [
    (posterior, kl)
    for posterior in RANDOM
    for kl in ("analytic", "sampled")
    if kl == "sampled" or (lambda m: has_closed_form(m.posterior(torch.zeros(1, *EVENT)), m.prior()))(vae(posterior, "bernoulli"))
]


def test_every_posterior_with_its_own_prior_has_a_closed_form():
    # The laws of grey levels are likelihoods; as a posterior's, their KL is sampled.
    of_pixels = {"discretised-normal", "logistic-mixture", "beta-binomial"}
    assert {posterior for posterior, kl in KLS if kl == "analytic"} == {n for n in RANDOM if not n.startswith(tuple(of_pixels))}


# Theory 6.3 and 6.4


@pytest.mark.parametrize("posterior", RANDOM)
def test_the_bound_is_below_log_px_by_the_divergence_to_the_posterior(posterior):
    truth = exact(spread(vae(posterior, "bernoulli")), X)
    assert (truth.elbo < truth.log_px).all()
    torch.testing.assert_close(truth.log_px - truth.elbo, truth.gap, rtol=1e-7, atol=1e-8 + 20 * truth.error)


def test_log_px_sums_to_one_over_all_x():
    model = spread(vae("normal", "bernoulli"))
    assert exact(model, bits(3)).log_px.exp().sum().item() == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize(("posterior", "kl"), KLS)
def test_both_estimates_of_the_bound_are_unbiased(posterior, kl):
    model = spread(vae(posterior, "bernoulli", kl))
    truth = exact(model, X)
    many = X.repeat(1500, 1)
    torch.manual_seed(1)
    elbo = model.elbo(many, samples=2).reshape(1500, 3)
    within(elbo, truth.elbo.detach(), slack=1e-9 + 20 * truth.error)
    terms = model(many)
    within(terms.measures["elbo"].reshape(1500, 3), truth.elbo.detach(), slack=1e-9 + 20 * truth.error)
    torch.testing.assert_close(terms.loss.detach(), -terms.measures["elbo"].detach())
    torch.testing.assert_close(terms.measures["elbo"], terms.measures["log_px_given_z"] - terms.measures["kl"])


@pytest.mark.parametrize(("posterior", "kl"), [pair for pair in KLS if pair[0] in ("normal", "multivariate-normal", "bernoulli")])
def test_the_gradient_of_the_loss_is_that_of_the_exact_bound(posterior, kl):
    model = spread(vae(posterior, "bernoulli", kl))
    parameters = list(model.parameters())
    truth = torch.autograd.grad(-exact(model, X).elbo.mean(), parameters)
    many = X.repeat(10, 1)
    repeats = [torch.autograd.grad(model.loss(many).mean(), parameters) for _ in range(100)]
    for i, slope in enumerate(truth):
        within(torch.stack([row[i] for row in repeats]), slope, errors=4.5)  # 80 coordinates


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
def test_more_draws_leave_the_mean_and_shrink_the_spread(kl):
    model = spread(vae("normal", "bernoulli", kl))
    x = X[:1].repeat(3000, 1)
    few, many = model.elbo(x, samples=1), model.elbo(x, samples=9)
    within(few, exact(model, X[:1]).elbo.detach())
    within(many, exact(model, X[:1]).elbo.detach())
    assert (few.var() / many.var()).item() == pytest.approx(9, rel=0.2)


def test_sampled_kl_has_no_variance_at_the_posterior_and_analytic_has():
    """x | z ~ N(z, 1), z ~ N(0, 1): the posterior is N(x/2, 1/2)."""
    model = VAE(
        priors.StandardNormal(1),
        conditionals.Normal(MLP(1), 1, scale=math.sqrt(0.5)),
        conditionals.Normal(MLP(1), 1, scale=1.0),
    ).double()
    with torch.no_grad():
        for conditional, slope in ((model.posterior, 0.5), (model.likelihood, 1.0)):
            conditional.head.linear.weight.fill_(slope)
            conditional.head.linear.bias.zero_()
    x = torch.full((500, 1), 1.7, dtype=F64)
    evidence = td.Normal(0.0, math.sqrt(2.0)).log_prob(torch.tensor(1.7, dtype=F64))
    sampled = ELBO(kl="sampled")(model.pose(Batch(x))).measures["elbo"]
    torch.testing.assert_close(sampled, evidence.expand(500))
    analytic = ELBO(kl="analytic")(model.pose(Batch(x))).measures["elbo"]
    assert analytic.std() > 0.1
    within(analytic, evidence)


# Theory 6.5: weights


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize(
    ("beta", "warmup", "epoch", "weight"),
    [
        (1.0, 0.0, 0.0, 1.0),
        (4.0, 0.0, 3.0, 4.0),
        (0.0, 0.0, 0.0, 0.0),
        (2.0, 10.0, None, 0.0),
        (2.0, 10.0, 2.5, 0.5),
        (2.0, 10.0, 99.0, 2.0),
    ],
)
def test_the_weight_of_the_kl_and_its_warm_up(beta, warmup, epoch, weight, kl):
    model = spread(vae("normal", "bernoulli"))
    objective = ELBO(beta, warmup, kl=kl, samples=3)
    if epoch is not None:
        objective.at(epoch)
    assert objective.weight.item() == pytest.approx(weight)
    torch.manual_seed(1)
    terms = objective(model.pose(Batch(X)))
    torch.manual_seed(1)
    plain = ELBO(kl=kl, samples=3)(model.pose(Batch(X)))
    torch.testing.assert_close(terms.loss, weight * plain.measures["kl"] - plain.measures["log_px_given_z"])
    torch.testing.assert_close(terms.measures["elbo"], plain.measures["elbo"])  # what is reported always has β = 1
    if weight >= 1 and kl == "analytic":
        assert (-terms.loss <= terms.measures["elbo"]).all()  # still a bound, a looser one


def test_the_warm_up_is_linear_and_its_weight_is_saved(tmp_path):
    model = xhat.build("vae", (4,), latent=2, hidden=[3], beta=3.0, beta_warmup=8.0)
    for epoch in range(12):
        model.objective.at(epoch)
        assert model.objective.weight.item() == pytest.approx(3 * min(1, epoch / 8))
    model.objective.at(2.0)
    assert xhat.load(xhat.save(model, tmp_path / "m.safetensors")).objective.weight.item() == pytest.approx(0.75)


def kl_each(q: td.Distribution) -> Tensor:
    mu, variance = q.mean, q.variance
    return 0.5 * (mu**2 + variance - 1 - variance.log())


@pytest.mark.parametrize("free_bits", [0.02, 0.1, 0.3, 100.0])
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_free_bits_are_the_minibatch_formula(free_bits, beta):
    model = spread(vae("normal", "bernoulli"))
    torch.manual_seed(1)
    terms = ELBO(beta, free_bits=free_bits)(model.pose(Batch(X)))
    each = kl_each(model.posterior(X))
    expected = -terms.measures["log_px_given_z"].mean() + beta * each.mean(0).clamp(min=free_bits).sum()
    torch.testing.assert_close(terms.loss.mean(), expected)
    torch.manual_seed(1)
    torch.testing.assert_close(terms.measures["elbo"], ELBO()(model.pose(Batch(X))).measures["elbo"])
    assert (-terms.loss.mean() <= terms.measures["elbo"].mean() + 1e-12).item()


def test_a_dimension_below_its_free_bits_gets_no_gradient_and_one_above_gets_all():
    model = spread(vae("normal", "bernoulli"))
    each = kl_each(model.posterior(X)).mean(0).detach()
    assert each[0] != each[1]
    between = each.mean().item()
    q = model.posterior(X)
    for free_bits, paid in ((100.0, 0 * each), (between, (each > between) * 1.0), (0.0, 1 + 0 * each)):
        torch.manual_seed(1)
        terms = ELBO(free_bits=free_bits)(model.pose(Batch(X)))
        parameters = list(model.posterior.parameters())
        slopes = torch.autograd.grad((terms.loss + terms.measures["log_px_given_z"]).mean(), parameters)
        q = model.posterior(X)
        known = torch.autograd.grad((kl_each(q) * paid).sum(1).mean(), parameters)
        for a, b in zip(slopes, known, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_free_bits_with_a_full_covariance_still_give_a_bound():
    """The divergences of the marginals leave the correlations out; they are paid for in full all the same."""
    model = VAE(
        priors.StandardNormal(2),
        conditionals.MultivariateNormal(MLP(EVENT), 2),
        conditionals.Bernoulli(MLP(2), EVENT),
        ELBO(free_bits=1e-9),
    ).double()
    with torch.no_grad():  # strongly correlated
        model.posterior.head.linear.weight.zero_()
        model.posterior.head.linear.bias.copy_(torch.tensor([0.3, -0.2, 0.5, 3.0, -1.0]))
    torch.manual_seed(1)
    terms = model(X)
    torch.testing.assert_close(terms.loss, -terms.measures["elbo"])
    assert (terms.measures["kl"] - kl_each(model.posterior(X)).sum(1)).min() > 1.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ELBO(beta=-1.0), "beta must be at least 0 and at most 1e.30, was -1"),
        (lambda: ELBO(beta=math.nan), "beta must be at least 0 and at most 1e.30, was nan"),
        (lambda: ELBO(warmup=-1.0), "warmup must be"),
        (lambda: ELBO(free_bits=-0.1), "free_bits must be"),
        (lambda: ELBO(kl="closed"), "kl must be one of auto, analytic, sampled"),
        (lambda: ELBO(free_bits=0.1, kl="sampled"), "free_bits needs the KL of each dimension"),
        (lambda: ELBO(samples=0), "samples must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


class Mixture(torch.nn.Module):
    """A prior of the user's own, with which no KL has a closed form."""

    event = LATENT

    def forward(self):
        parts = td.Independent(td.Normal(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 0.8), 1)
        return td.MixtureSameFamily(td.Categorical(torch.ones(2)), parts)


def test_without_a_closed_form_the_kl_is_sampled_or_refused():
    def model(**options):
        posterior = conditionals.Normal(MLP(EVENT, [4]), LATENT)
        return VAE(Mixture(), posterior, conditionals.Bernoulli(MLP(LATENT, [4]), EVENT), ELBO(**options))

    sampled = model().double()
    within(sampled.elbo(X.repeat(1500, 1), 2).reshape(1500, 3), exact(sampled, X).elbo.detach())
    for options in ({"kl": "analytic"}, {"free_bits": 0.1}):
        with pytest.raises(ConfigError, match="closed form"):
            model(**options).loss(X.float())


# Theory 6.6: denoising


def test_a_denoising_bound_is_a_bound_and_the_mixture_lies_between():
    model = spread(vae("bernoulli", "bernoulli"))
    model.corruption = Masking(0.4)
    x = X[2:]  # all ones, so that every mask is another input
    seen = bits(3)
    weight = 0.6 ** seen.sum(1) * 0.4 ** (3 - seen.sum(1))
    each = exact(model, x.expand(8, 3), seen)
    denoising = (weight * each.elbo).sum()
    terms = model(x.repeat(4000, 1))
    within(terms.measures["elbo"], denoising.detach())
    z, _ = grid(model.posterior(x))
    q = model.posterior(seen)
    log_mixture = (q.log_prob(z.expand(-1, 8, -1)) + weight.log()).logsumexp(1)
    log_joint = (model.likelihood(z).log_prob(x) + model.prior().log_prob(z)).squeeze(1)
    between = (log_mixture.exp() * (log_joint - log_mixture)).sum()
    assert denoising < between < each.log_px[0]


# xhat.bound


@pytest.mark.parametrize("gradient", ["pathwise", "score", gradients.Score("leave-one-out")])
def test_bound_is_the_closed_form_with_an_unbiased_gradient(gradient):
    repeats, x = 4000, 0.8
    at = [torch.full((repeats,), v, dtype=F64, requires_grad=True) for v in (0.2, 0.9, 0.5)]
    q = td.Normal(at[0], at[1])
    value = xhat.bound(
        lambda z: td.Normal(0.0, 1.0).log_prob(z) + td.Normal(at[2] * z, 0.6).log_prob(torch.tensor(x, dtype=F64)),
        q,
        gradient=gradient,
        samples=3,
    )
    truth = [torch.tensor(v, dtype=F64, requires_grad=True) for v in (0.2, 0.9, 0.5)]
    loc, scale, slope = truth
    log_px = td.Normal(slope * loc, 0.6).log_prob(torch.tensor(x, dtype=F64)) - (slope * scale) ** 2 / (2 * 0.36)
    closed = log_px - 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log())
    within(value, closed.detach())
    assert closed < td.Normal(0.0, math.sqrt(0.25 + 0.36)).log_prob(torch.tensor(x))
    for estimates, known in zip(torch.autograd.grad(value.sum(), at), torch.autograd.grad(closed, truth), strict=True):
        within(estimates, known)


def test_bound_refuses_an_objective_that_it_does_not_know():
    q = td.Normal(torch.zeros(2), 1.0)
    with pytest.raises(ConfigError, match="objective must be one of elbo, iwae, was 'vae'"):
        xhat.bound(q.log_prob, q, objective="vae")


def test_more_draws_make_the_multi_sample_bound_tighter():
    """IWAE: it never falls with the number of draws and goes to log p(x)."""
    x, repeats = 0.8, 4000
    q = td.Normal(torch.full((repeats,), 0.2, dtype=F64), 0.9)

    def log_joint(z: Tensor) -> Tensor:
        return td.Normal(0.0, 1.0).log_prob(z) + td.Normal(0.5 * z, 0.6).log_prob(torch.tensor(x, dtype=F64))

    log_px = td.Normal(0.0, math.sqrt(0.25 + 0.36)).log_prob(torch.tensor(x, dtype=F64)).item()
    means = [xhat.bound(log_joint, q, "iwae", samples=samples).mean().item() for samples in (1, 4, 16, 200)]
    assert means == sorted(means)
    assert means[0] < log_px - 0.05
    assert means[-1] == pytest.approx(log_px, abs=0.005)


# Errors of a deterministic code (theory 1.1)


def test_squared_error_is_summed_over_the_event_and_never_averaged():
    model = xhat.build("autoencoder", (2, 3), latent=2, hidden=[4]).double()
    x = torch.randn(5, 2, 3, dtype=F64)
    terms = SquaredError()(model.pose(Batch(x)))
    expected = torch.stack(
        [
            sum((a - b) ** 2 for a, b in zip(p.flatten(), q.flatten(), strict=True))
            for p, q in zip(x, model.reconstruct(x), strict=True)
        ]
    )
    torch.testing.assert_close(terms.loss, expected)
    assert set(terms.measures) == {"squared_error"}  # and no likelihood


def test_the_negative_log_likelihood_is_the_laws_own():
    model = xhat.build("autoencoder", (6,), latent=2, hidden=[4], likelihood="bernoulli").double()
    x = torch.randint(0, 2, (5, 6)).double()
    terms = NegativeLogLikelihood()(model.pose(Batch(x)))
    torch.testing.assert_close(terms.loss, -model.likelihood(model.encode(x)).log_prob(x))
    torch.testing.assert_close(terms.measures["squared_error"], (model.reconstruct(x) - x).square().sum(1))
    assert torch.equal(model.loss(x), terms.loss)
    assert isinstance(model.objective, objectives.NegativeLogLikelihood)


def test_the_error_is_taken_against_the_clean_example():
    model = xhat.build("denoising", (6,), latent=2, hidden=[4], corruption="masking:1.0").double()
    x = torch.rand(5, 6, dtype=F64)
    blank = model.reconstruct(torch.zeros_like(x))
    torch.testing.assert_close(model.loss(x), (blank - x).square().sum(1))
