"""Combinations of bounds, priors and posteriors that make no sense: refused when the model is made, with the remedy."""

import pytest
import torch

import xhat
from xhat import gradients, objectives, priors
from xhat.errors import ConfigError


def build(**options):
    return xhat.build("vae", shape=(6,), latent=2, hidden=[4], **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build(objective="info", prior="mixture"), "a learned prior, and those of the prior Mixed have none: use a flow"),
        (lambda: build(objective="info", prior="vamp"), "needs a derivative through the draws of a learned prior"),
        (lambda: build(prior="mixture", components=0), "components must be at least 1, was 0"),
        (lambda: build(prior="vamp", components=0), "components must be at least 1, was 0"),
        (lambda: build(prior="nice"), "prior must be one of standard, mixture, vamp"),
        (lambda: build(components=3), "components is an option of prior='mixture' or 'vamp'"),
        (lambda: build(transforms=3), "transforms is an option of posterior='iaf' or 'coupling' or prior='flow'"),
        (lambda: build(posterior="beta-binomial"), "a law of pixels, not of codes"),
        (lambda: build(objective=["elbo"]), "objective must be one name, such as .elbo., was"),
        (lambda: build(objective="miwae", groups=10**12, samples=10**12), "groups × samples must be at most 10,000,000"),
        (lambda: build(capacity=1e39), "capacity must be at least 0 and at most 1e.30"),
        (lambda: build(beta=1e39), "beta must be at least 0 and at most 1e.30"),
        (lambda: build(capacity=True), "capacity must be at least 0"),
        (lambda: build(objective="iwae", capacity=2.0), "capacity is an option of objective='elbo'"),
        (lambda: build(objective="tc", prior="mixture"), "dimensions"),
        (lambda: xhat.build("hierarchical-vae", shape=(6,), latents=[]), r"latents must be the sizes of two layers or more"),
        (lambda: xhat.build("hierarchical-vae", shape=(6,), latents=[3]), r"latents must be the sizes of two layers or more"),
        (lambda: xhat.build("hierarchical-vae", shape=(6,), direction="up"), "direction must be one of bottom-up, ladder"),
    ],
)
def test_what_makes_no_sense_together_is_refused_by_name(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_noise_that_a_bound_of_several_draws_cannot_take_is_named_as_the_reason():
    parts = build()
    with pytest.raises(ConfigError, match="'pathwise' with these options serves no multi-sample bound; leave them out"):
        xhat.VAE(parts.prior, parts.posterior, parts.likelihood, objectives.IWAE(4), gradients.Pathwise("antithetic"))


@pytest.mark.parametrize("objective", ["info", "tc"])
def test_an_objective_that_compares_the_examples_of_a_batch_is_not_trained_on_batches_of_one(objective):
    with pytest.raises(ConfigError, match="batch_size is 1: it must be at least 2"):
        xhat.fit(build(objective=objective), torch.randn(8, 6), epochs=1, batch_size=1)


def test_no_prior_is_fitted_that_a_model_cannot_have():
    x = torch.randn(20, 6)
    code = xhat.build("autoencoder", shape=(6,), latent=2, hidden=[4])
    with pytest.raises(ConfigError, match="use kind='mixture' or 'flow'"):
        xhat.fit_prior(code, x, "vamp")
    ladder = xhat.build("hierarchical-vae", shape=(6,), latents=[2, 1], hidden=[4], between=[3], direction="ladder")
    with pytest.raises(ConfigError, match="a ladder goes down the layers of its own prior"):
        xhat.fit_prior(ladder, x)
    with pytest.raises(ConfigError, match="fit a prior to its codes with fit-prior"):
        code.sample(3)
    assert isinstance(xhat.fit_prior(code, x, components=2).sample(3), torch.Tensor)


def test_annealing_refuses_numbers_that_make_no_sense_before_anything_is_drawn():
    with pytest.raises(ConfigError, match="steps must be at least 1, was -4"):
        xhat.log_likelihood(build(), torch.randn(2, 6), method="annealed", steps=-4)


def test_a_prior_that_learns_can_be_a_flow_under_an_objective_that_draws_from_it():
    assert isinstance(build(objective="info", prior="flow", transforms=1).prior, priors.Flow)
