"""Refinement at evaluation, against the best bounds that are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from catalogue import EVENT, F64, LATENT, bits, examples, from_recipe, vae
from xhat import VAE, conditionals, gradients, objectives, priors
from xhat.conditionals import Headed
from xhat.errors import ConfigError, DataError
from xhat.evaluation.refinement import refine
from xhat.networks import MLP

SIGMA = 0.8


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def linear(kind: type[Headed]) -> VAE:
    """x | z ~ N(Wz + b, σ²), z ~ N(0, 1): the posterior is Normal, with a covariance that is not diagonal."""
    model = VAE(priors.StandardNormal(2), kind(MLP(EVENT, []), LATENT), conditionals.Normal(MLP(LATENT, []), EVENT, scale=SIGMA))
    with torch.no_grad():
        model.likelihood.head.linear.weight.copy_(torch.tensor([[1.0, 0.7], [0.3, 0.9], [0.8, 0.5]]))
    return model.double()


def known(model: VAE, x: Tensor) -> tuple[Tensor, float]:
    """log p(x), and how far below it the best axis-aligned Normal stays: its precisions are the posterior's diagonal ones."""
    weight, bias = (value.detach() for value in (model.likelihood.head.linear.weight, model.likelihood.head.linear.bias))
    marginal = td.MultivariateNormal(bias, weight @ weight.T + SIGMA**2 * torch.eye(3, dtype=F64))
    precision = torch.eye(2, dtype=F64) + weight.T @ weight / SIGMA**2
    return marginal.log_prob(x), 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()


def test_an_axis_aligned_normal_is_refined_to_the_best_of_its_kind():
    model = linear(conditionals.Normal)
    x = torch.randn(20, 3, dtype=F64)
    log_px, price = known(model, x)
    assert price > 0.1
    found = refine(model, x, steps=200, lr=0.1, samples=16, measured=2000)
    best = log_px - price
    assert ((found.refined - best).abs() <= 4 * found.refined_stderr + 5e-3).all()
    assert ((best - found.elbo) > 0.1).all()  # the random encoder was worse
    assert ((found.gap - (best - found.elbo)).abs() <= 4 * found.refined_stderr + 5e-3).all()
    over = (found.refined - best).mean().item()
    assert abs(over) <= 4 * found.refined_stderr.square().mean().sqrt().item() / math.sqrt(20) + 2e-3


def test_a_full_covariance_is_refined_to_the_evidence():
    model = linear(conditionals.MultivariateNormal)
    x = torch.randn(20, 3, dtype=F64)
    log_px, _ = known(model, x)
    found = refine(model, x, steps=250, lr=0.1)
    torch.testing.assert_close(found.refined, log_px, atol=1e-3, rtol=0)
    assert (found.refined_stderr < 2e-3).all()  # where q is the posterior every log weight is log p(x)
    torch.testing.assert_close(found.gap, log_px - found.elbo, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("gradient", "samples"), [(gradients.Enumerate, 1), (gradients.LeaveOneOut, 2)])
def test_a_bit_is_refined_to_the_evidence_by_the_models_own_gradient(gradient, samples):
    model = VAE(
        priors.Bernoulli(1, probs=0.4),
        conditionals.Bernoulli(MLP(EVENT, []), 1),
        conditionals.Bernoulli(MLP(1, []), EVENT),
        objectives.ELBO(samples=samples),
        gradient(),
    ).double()
    x, z = bits(3), bits(1)
    with torch.no_grad():
        log_px = model.likelihood(z[:, None].expand(-1, 8, -1)).log_prob(x) + model.prior().log_prob(z)[:, None]
    found = refine(model, x, steps=150, lr=0.3, samples=samples)
    torch.testing.assert_close(found.refined, log_px.logsumexp(0), atol=0.02, rtol=0)
    torch.testing.assert_close(found.refined - found.elbo, found.gap)


def test_both_bounds_are_measured_at_the_same_noise_that_no_step_has_seen():
    """With a rate of almost 0 nothing moves, and the gap is 0 although either bound has a standard error."""
    model = vae("normal", "bernoulli").double()
    x = examples(model, 6).double()
    found = refine(model, x, steps=1, lr=1e-12, measured=50)
    assert found.gap.abs().max() < 1e-9
    assert (found.elbo_stderr > 1e-3).all()
    away = (found.elbo - model.elbo(x, samples=20_000)) / found.elbo_stderr
    assert away.abs().max() < 4
    assert torch.equal(refine(model, x, steps=5, seed=3).refined, refine(model, x, steps=5, seed=3).refined)
    assert not torch.equal(refine(model, x, steps=5, seed=3).refined, refine(model, x, steps=5, seed=4).refined)
    assert torch.equal(refine(model, x, steps=5).elbo, refine(model, x, steps=9).elbo)  # however many steps went before


def test_the_standard_errors_are_those_of_the_draws():
    model = linear(conditionals.Normal)
    x = torch.randn(1, 3, dtype=F64).expand(400, 3)
    found = refine(model, x, steps=3, measured=20)
    for name in ("elbo", "refined", "gap"):
        spread, told = getattr(found, name).std(), getattr(found, f"{name}_stderr").square().mean().sqrt()
        if name == "elbo":  # the others start at steps of their own
            assert spread.item() == pytest.approx(told.item(), rel=0.2)
        else:
            assert spread >= 0.8 * told


def test_nothing_of_the_model_changes():
    for name, gradient in (("normal", gradients.Pathwise()), ("bernoulli", gradients.Score("lagged"))):
        model = vae(name, "bernoulli")
        model.gradient = gradient
        model.train()
        state = {key: value.clone() for key, value in model.state_dict().items()}
        needed = [p.requires_grad for p in model.parameters()]
        before = torch.get_rng_state()
        found = refine(model, examples(model, 5), steps=4)
        assert not any(value.requires_grad for value in found[:6])
        assert all(p.grad is None for p in model.parameters())
        assert [p.requires_grad for p in model.parameters()] == needed
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert model.training
        if name == "normal":  # examples drew from torch's generator, and refine did not
            torch.set_rng_state(before)
            examples(model, 5)
            after = torch.get_rng_state()
            torch.set_rng_state(before)
            refine(model, examples(model, 5), steps=2)
            assert torch.equal(torch.get_rng_state(), after)


def test_examples_come_in_batches_and_every_one_is_refined(monkeypatch):
    model, seen = linear(conditionals.MultivariateNormal), []
    x = torch.randn(7, 3, dtype=F64)
    monkeypatch.setattr("xhat.evaluation.refinement.ELEMENTS", 3 * model.numbers * 8)
    found = refine(model, x, steps=100, lr=0.2, measured=5, progress=seen.append)
    assert seen == [3, 3, 1]
    torch.testing.assert_close(found.refined, known(model, x)[0], atol=0.02, rtol=0)
    assert found.gap.shape == (7,)


def test_what_cannot_be_refined_is_refused():
    x = torch.zeros(2, *EVENT)
    model = vae("normal", "bernoulli")
    with pytest.raises(ConfigError, match="has no prior and so cannot have a bound to refine"):
        refine(from_recipe("autoencoder normal"), torch.zeros(2, 1, 8, 8))
    layers = from_recipe("bernoulli vae, two layers")
    with pytest.raises(ConfigError, match=r"a Chain has none: use one of xhat\.conditionals"):
        refine(layers, torch.zeros(2, 1, 8, 8))
    for name, value in (("steps", 0), ("samples", 0), ("measured", 1), ("lr", 0.0), ("lr", math.nan)):
        with pytest.raises(ConfigError, match=f"{name} must be"):
            refine(model, x, **{name: value})
    with pytest.raises(DataError, match=r"example 1 holds 0\.5"):
        refine(model, torch.tensor([[0.0] * 3, [0.5] * 3]))
