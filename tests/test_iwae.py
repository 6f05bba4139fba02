"""The importance-weighted objective: its value and its gradients against quadrature, enumeration and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributions as td

import xhat
from catalogue import F64, bits, examples, from_recipe
from xhat import VAE, conditionals, gradients, objectives, priors
from xhat.data import Batch
from xhat.distributions.unvalidated import unvalidated
from xhat.errors import ConfigError
from xhat.networks import MLP
from xhat.objectives import ELBO, IWAE

X = torch.tensor([[0.9, -1.4, 0.3], [-0.2, 0.8, 2.0]], dtype=F64)
BITS = bits(3)[[1, 4, 7]]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def within(estimates: Tensor, exact: Tensor | float, errors: float = 4.0) -> None:
    stderr = estimates.detach().std(0) / math.sqrt(len(estimates))
    away = (estimates.detach().mean(0) - exact).abs()
    assert (away <= errors * stderr + 1e-10).all(), f"off by {(away / stderr).max():.1f} standard errors"


def linear_normal(latent: int, samples: int = 10, gradient: gradients.Gradient | None = None) -> VAE:
    """x | z ~ N(Wz + b, 0.7²): log p(x) is a Normal's; the posterior is far from the true one."""
    torch.manual_seed(3)
    model = VAE(
        priors.StandardNormal(latent),
        conditionals.Normal(MLP(3), latent),
        conditionals.Normal(MLP(latent), 3, scale=0.7),
        IWAE(samples),
        gradient,
    ).double()
    torch.manual_seed(0)
    return model


def evidence(model: VAE, x: Tensor) -> Tensor:
    w, b = (p.detach() for p in model.likelihood.head.parameters())
    return td.MultivariateNormal(b, w @ w.T + 0.49 * torch.eye(3, dtype=F64)).log_prob(x)


def log_weight(model: VAE, x: Tensor, target: Tensor, z: Tensor) -> Tensor:
    return model.likelihood(z).log_prob(target) + model.prior().log_prob(z) - model.posterior(x).log_prob(z)


def integral(model: VAE, x: Tensor, target: Tensor, samples: int, nodes: int = 40) -> Tensor:
    """E[log 1/K Σ w] for a one-dimensional Normal z by Gauss-Hermite in all K noises, differentiable in everything."""
    at, mass = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(nodes))
    q = model.posterior(x).base_dist
    z = q.loc + q.scale * at.reshape(-1, 1, 1)
    w = log_weight(model, x, target, z)
    places = torch.cartesian_prod(*[torch.arange(nodes)] * samples).reshape(-1, samples)
    share = (mass / mass.sum())[places].prod(1)
    return (share[:, None] * (w[places].logsumexp(1) - math.log(samples))).sum(0)


# The value


def test_more_draws_come_closer_to_the_exact_evidence_from_below():
    model, count = linear_normal(2), 3000
    many = X.repeat(count, 1)
    exact = evidence(model, X)
    means, errors = [], []
    for objective in (ELBO(), IWAE(10), IWAE(100)):
        bound = -objective(model.pose(Batch(many))).loss.detach().reshape(count, 2)
        means.append(bound.mean(0))
        errors.append(bound.std(0) / math.sqrt(count))
    for (low, high), (a, b) in zip(itertools.pairwise(means), itertools.pairwise(errors), strict=True):
        assert (high - low > 5 * (a**2 + b**2).sqrt()).all()
    assert (means[2] <= exact + 4 * errors[2]).all()
    assert (exact - means[2] < (exact - means[0]) / 3).all()


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_the_mean_is_the_integral_over_all_draws(samples):
    """A logarithm of K ± 1 or weights that are not of independent draws would be found."""
    model, count = linear_normal(1, samples), 6000
    terms = model(X.repeat(count, 1))
    exact = integral(model, X, X, samples).detach()
    within(terms.measures["iwae"].reshape(count, 2), exact)
    within(-terms.loss.reshape(count, 2), exact)
    within(terms.measures["elbo"].reshape(count, 2), integral(model, X, X, 1).detach())


@pytest.mark.parametrize("samples", [1, 2, 5, 7])
def test_the_loss_and_its_measures_are_those_of_the_very_draws(samples):
    model = linear_normal(2, samples)
    torch.manual_seed(1)
    terms = model(X)
    torch.manual_seed(1)
    z = model.posterior(X).rsample((samples,))
    w = log_weight(model, X, X, z)
    torch.testing.assert_close(terms.loss, -w.exp().mean(0).log())
    torch.testing.assert_close(terms.measures["elbo"], w.mean(0).detach())
    torch.testing.assert_close(terms.measures["log_px_given_z"], model.likelihood(z).log_prob(X).mean(0).detach())
    torch.testing.assert_close(terms.measures["elbo"], terms.measures["log_px_given_z"] - terms.measures["kl"])
    assert torch.equal(terms.measures["iwae"], -terms.loss)
    assert set(terms.measures) == {"iwae", "elbo", "log_px_given_z", "kl"}
    assert not any(value.requires_grad for value in terms.measures.values())


@pytest.mark.parametrize("gradient", ["pathwise", "dreg", "score"])
def test_one_draw_is_the_elbo_with_a_sampled_divergence_exactly(gradient):
    model = linear_normal(2, 1, gradients.GRADIENTS[gradient]())
    found = []
    for objective in (IWAE(1), ELBO(kl="sampled", samples=1)):
        torch.manual_seed(1)
        terms = objective(model.pose(Batch(X)))
        found.append((terms.loss, terms.measures, torch.autograd.grad(terms.loss.sum(), list(model.parameters()))))
    (loss, measures, slopes), (known, others, known_slopes) = found
    assert torch.equal(loss, known)
    assert all(torch.equal(measures[name], value) for name, value in others.items())
    for a, b in zip(slopes, known_slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


def test_far_away_weights_neither_overflow_nor_vanish():
    model = linear_normal(2, 9)
    x = torch.cat([torch.tensor([[3e4, -3e4, 0.0]], dtype=F64), X])  # beside others that are not far
    loss = model.loss(x)
    assert 1e6 < loss[0].item() < math.inf
    assert loss[1:].max().item() < 100
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(loss.sum(), list(model.parameters())))


@pytest.mark.parametrize("cut", [(1, 4), (2, 2, 1), (1, 1, 1, 1, 1)])
def test_an_example_has_the_same_bound_in_any_batch(monkeypatch, cut):
    """Each example keeps its noise: nothing is normalised, or reduced, over the batch."""
    model, samples = linear_normal(2, 5), 5
    x, noise = torch.randn(5, 3, dtype=F64), torch.randn(samples, 5, 2, dtype=F64)
    start = 0

    def rsample(law: td.Normal, shape=()):
        assert tuple(shape) == (samples,)
        return law.loc + law.scale * noise[:, start : start + len(law.loc)]

    monkeypatch.setattr(td.Normal, "rsample", rsample)
    whole, pieces = model(x), []
    for count in cut:
        pieces.append(model(x[start : start + count]))
        start += count
    torch.testing.assert_close(torch.cat([piece.loss for piece in pieces]), whole.loss, rtol=1e-13, atol=1e-13)
    for name, value in whole.measures.items():
        torch.testing.assert_close(torch.cat([piece.measures[name] for piece in pieces]), value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", ["pathwise", "dreg", "vimco"])
@pytest.mark.parametrize("samples", [3, 8])
def test_the_encoder_runs_once_and_the_decoder_on_exactly_k_codes_of_each_example(monkeypatch, gradient, samples):
    model = linear_normal(2, samples, gradients.GRADIENTS[gradient]())
    rows: dict[str, list[int]] = {"posterior": [], "likelihood": []}
    for name, seen in rows.items():
        getattr(model, name).network.register_forward_hook(lambda module, given, out, seen=seen: seen.append(len(given[0])))
    targets, log_prob = [], td.Independent.log_prob

    def watched(law: td.Independent, value: Tensor) -> Tensor:
        if law.event_shape == (3,):
            targets.append(tuple(value.shape))
        return log_prob(law, value)

    monkeypatch.setattr(td.Independent, "log_prob", watched)
    model(X).loss.sum().backward()
    assert rows == {"posterior": [2], "likelihood": [samples * 2]}
    assert targets == [(2, 3)]  # broadcast, not repeated


# Gradients


@pytest.mark.parametrize("gradient", ["pathwise", "dreg", "score", "rloo", "vimco"])
def test_every_gradient_that_fits_has_the_integrals_derivative_as_its_mean(gradient):
    """Through the encoder: x is a leaf, each of its rows an estimate; the target stays."""
    samples, count = 3, 20_000
    model = linear_normal(1, samples, gradients.GRADIENTS[gradient]())
    one = X[:1].clone().requires_grad_()
    (exact,) = torch.autograd.grad(-integral(model, one, X[:1], samples).sum(), one)
    assert exact.abs().max() > 0.05
    x = X[:1].repeat(count, 1).requires_grad_()
    loss = model.objective(model.pose(Batch(X[:1].repeat(count, 1)), seen=x)).loss
    within(torch.autograd.grad(loss.sum(), x)[0], exact[0])


def test_the_decoder_gets_the_same_from_both_paths_and_the_encoder_less_noise_from_dreg():
    samples, count = 60, 400
    x = X[:1].repeat(count, 1).requires_grad_()
    found = {}
    for name in ("pathwise", "dreg"):
        model = linear_normal(2, samples, gradients.GRADIENTS[name]())
        torch.manual_seed(1)
        loss = model.objective(model.pose(Batch(X[:1].repeat(count, 1)), seen=x)).loss
        found[name] = torch.autograd.grad(loss.sum(), [x, *model.likelihood.parameters()])
    for a, b in zip(found["pathwise"][1:], found["dreg"][1:], strict=True):
        torch.testing.assert_close(a, b)
    assert found["dreg"][0].var(0).sum() < 0.75 * found["pathwise"][0].var(0).sum()
    difference = found["pathwise"][0] - found["dreg"][0]
    within(difference, 0.0)


def codes_of_bits(gradient: str, samples: int, layers: int = 1) -> VAE:
    torch.manual_seed(2)
    model = xhat.build(
        "bernoulli-vae",
        (3,),
        latent=2,
        hidden=[4],
        activation="tanh",
        likelihood="bernoulli",
        objective="iwae",
        gradient=gradient,
        samples=samples,
        layers=layers,
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(2 * torch.rand_like(parameter) - 1)
    return model


def enumerated(model: VAE, x: Tensor, target: Tensor, samples: int) -> Tensor:
    """The bound's expectation as a sum over all K-tuples of codes, ``(B,)``."""
    points = bits(model.latent_shape[0])
    z = points[:, None].expand(-1, len(x), -1)
    w, log_q = log_weight(model, x, target, z), model.posterior(x).log_prob(z)
    tuples = torch.cartesian_prod(*[torch.arange(len(points))] * samples).reshape(-1, samples)
    return (log_q[tuples].sum(1).exp() * (w[tuples].logsumexp(1) - math.log(samples))).sum(0)


@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize("gradient", ["vimco", "rloo", "score"])
def test_a_discrete_bound_and_its_gradient_are_the_enumerated_ones(monkeypatch, gradient, samples):
    """All tuples of draws are put through the estimator, each with its probability: no Monte Carlo is left."""
    model = codes_of_bits(gradient, samples)
    parameters = list(model.parameters())
    assert len(parameters) == 4 + 1 + 4
    tuples = torch.cartesian_prod(*[torch.arange(4)] * samples).reshape(-1, samples)
    draws = bits(2)[tuples].movedim(1, 0)
    for x in BITS:
        rows = x.expand(len(tuples), -1)
        share = model.posterior(rows).log_prob(draws).sum(0).exp().detach()
        assert share.sum().item() == pytest.approx(1, abs=1e-12)
        with monkeypatch.context() as patch:
            patch.setattr(td.Bernoulli, "sample", lambda law, shape=(): draws)
            loss = model(rows).loss
        exact = -enumerated(model, x[None], x[None], samples).sum()
        torch.testing.assert_close((share * loss).sum(), exact)
        found = torch.autograd.grad((share * loss).sum(), parameters)
        for a, b in zip(found, torch.autograd.grad(exact, parameters), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("gradient", ["vimco", "rloo"])
def test_two_discrete_layers_are_one_draw_of_the_bound(gradient):
    samples, count = 2, 20_000
    model = codes_of_bits(gradient, samples, layers=2)
    assert type(model.gradient) is gradients.GRADIENTS[gradient]
    one = BITS[:1].clone().requires_grad_()
    exact = -enumerated(model, one, BITS[:1], samples)
    (slope,) = torch.autograd.grad(exact.sum(), one)
    x = BITS[:1].repeat(count, 1).requires_grad_()
    loss = model.objective(model.pose(Batch(BITS[:1].repeat(count, 1)), seen=x)).loss
    within(loss[:, None], exact.detach())
    within(torch.autograd.grad(loss.sum(), x)[0], slope[0])


@pytest.mark.parametrize("gradient", ["vimco", "rloo", "score"])
def test_a_model_with_this_objective_still_tells_its_elbo(gradient):
    """VIMCO serves no mean; the ELBO's value and derivative are right all the same."""
    model = codes_of_bits(gradient, 3)
    exact = enumerated(model, BITS, BITS, 1)
    within(model.elbo(BITS.repeat(4000, 1)).reshape(4000, 3), exact.detach())
    one = BITS[:1].clone().requires_grad_()
    (slope,) = torch.autograd.grad(enumerated(model, one, BITS[:1], 1).sum(), one)
    x = BITS[:1].repeat(20_000, 1).requires_grad_()
    terms = ELBO(samples=2)(model.pose(Batch(BITS[:1].repeat(20_000, 1)), seen=x))
    within(-torch.autograd.grad(terms.loss.sum(), x)[0], slope[0])


# In a compiled program


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
@pytest.mark.parametrize(
    "gradient",
    [
        "pathwise",
        "vimco",
        "dreg",
    ],
)
def test_it_traces_as_one_program(gradient):
    model = codes_of_bits("vimco", 3) if gradient == "vimco" else linear_normal(2, 3, gradients.GRADIENTS[gradient]())
    x = BITS if gradient == "vimco" else X
    torch._dynamo.reset()
    found = []
    with unvalidated():
        for run in (model, torch.compile(model, fullgraph=True, backend="eager")):
            torch.manual_seed(1)
            terms = run(x)
            derivatives = torch.autograd.grad(terms.loss.sum(), list(model.parameters()))
            found.append((terms.loss, *terms.measures.values(), *derivatives))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


# As a part of models


def test_it_is_the_same_after_a_file(tmp_path):
    model = codes_of_bits("vimco", 7)
    loaded = xhat.load(xhat.save(model, tmp_path / "m.safetensors"))
    assert type(loaded.objective) is IWAE
    assert loaded.objective.samples == 7
    torch.manual_seed(1)
    known = model.float().loss(BITS.float())
    torch.manual_seed(1)
    torch.testing.assert_close(loaded.float().loss(BITS.float()), known)


@pytest.mark.parametrize("name", ["iwae", "iwae, dreg", "bernoulli iwae", "bernoulli iwae, two layers"])
def test_it_is_evaluated_like_any_other_model(name):
    model = from_recipe(name)
    found = xhat.evaluate(model, examples(model, 20), samples=50)
    assert found.elbo.value <= found.log_likelihood.value + 0.5


@pytest.mark.parametrize(
    ("recipe", "options", "samples"),
    [
        ("vae", {}, 1),
        ("vae", {"objective": "iwae"}, 50),
        ("vae", {"objective": "iwae", "samples": 5}, 5),
        ("bernoulli-vae", {}, 2),
        ("bernoulli-vae", {"objective": "iwae", "gradient": "vimco"}, 50),
        ("categorical-vae", {"objective": "iwae"}, 50),
    ],
)
def test_a_recipe_takes_as_many_draws_as_its_objective_usually_does(recipe, options, samples):
    model = xhat.build(recipe, (4,), latent=2, hidden=[3], **options)
    assert type(model.objective) is (IWAE if "objective" in options else ELBO)
    assert model.objective.samples == samples


def _build(recipe: str = "vae", **options: object) -> VAE:
    return xhat.build(recipe, (4,), **{"latent": 2, "hidden": [3], "objective": "iwae", **options})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: IWAE(0), "samples must be at least 1, was 0"),
        (lambda: IWAE(2.5), "samples must be a whole number"),
        (lambda: _build(gradient="stl"), "the gradient 'stl' serves no multi-sample bound; gradients that do: pathwise"),
        (lambda: _build("bernoulli-vae", gradient="disarm"), "'disarm' serves no multi-sample bound; gradients that do: score"),
        (lambda: _build(gradient="vimco", samples=1), "'vimco' needs samples of at least 2, was 1; use 2"),
        (
            lambda: _build("bernoulli-vae", objective="elbo", gradient="vimco"),
            "'vimco' is one for multi-sample bounds; use .*iwae",
        ),
        (lambda: _build(noise="sobol"), "noise='sobol' makes draws that depend on each other.*: leave noise out"),
        (lambda: _build(objective="vae"), "objective must be one of elbo, iwae, miwae, piwae, ciwae, renyi, tc, info, was 'vae'"),
        (lambda: _build(beta=2.0), "beta is an option of objective='elbo' or 'tc', but objective is 'iwae': leave it out"),
        (lambda: _build(beta_warmup=2.0), "beta_warmup is an option of objective='elbo'"),
        (lambda: _build(free_bits=0.1), "free_bits is an option of objective='elbo'"),
        (lambda: _build(kl="analytic"), "kl is an option of objective='elbo'"),
        (
            lambda: xhat.Autoencoder(conditionals.Delta(MLP(4), 2), conditionals.Normal(MLP(2), 4, scale=1.0), objectives.IWAE()),
            "Autoencoder has no prior, which the objective IWAE needs: use objectives.SquaredError, or a VAE",
        ),
    ],
)
def test_what_makes_no_sense_together_is_refused_by_name(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
