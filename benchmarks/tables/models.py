"""The models of the tables, by the sizes that the publications give."""

from __future__ import annotations

import torch
from benchmarks.tables.datasets import SHAPE, mean_pixels
from torch import nn

import xhat
from xhat import conditionals, gradients, objectives, priors
from xhat.networks import MLP, Take

TINY = 1e-6  # the smallest σ: the publications have none


def one_layer(
    hidden: tuple[int, ...],
    latent: int,
    activation: str,
    objective: xhat.objectives.Objective | None = None,
    gradient: str = "pathwise",
    prior: xhat.Model | None = None,
) -> xhat.VAE:
    """A Bernoulli likelihood, an axis-aligned Normal posterior with σ = exp(·), networks that mirror each other."""
    return xhat.VAE(
        priors.StandardNormal(latent) if prior is None else prior,
        conditionals.Normal(MLP(SHAPE, hidden, activation), latent, scale="exp", minimum=TINY),
        conditionals.Bernoulli(MLP(latent, hidden[::-1], activation), SHAPE),
        objectives.ELBO() if objective is None else objective,
        gradients.GRADIENTS[gradient](),
    )


def two_layers(objective: xhat.objectives.Objective | None = None, ladder: bool = False) -> xhat.VAE:
    """Burda et al.'s: 784-200-200-100-100-100-50 upwards, the same downwards, tanh, every σ = exp(·); or a ladder upwards."""

    def normal(size: int | tuple[int, ...], hidden: tuple[int, ...], latent: int) -> conditionals.Normal:
        return conditionals.Normal(MLP(size, hidden, "tanh"), latent, scale="exp", minimum=TINY)

    first, event = normal(SHAPE, (200, 200), 100), (150,)
    return xhat.VAE(
        priors.Chain(priors.StandardNormal(50), normal(50, (100, 100), 100)),
        conditionals.Ladder([first, normal(200, (100, 100), 50)])
        if ladder
        else conditionals.Chain(first, normal(100, (100, 100), 50)),
        conditionals.Bernoulli(Take(MLP(100, (200, 200), "tanh"), event), SHAPE),
        objectives.ELBO() if objective is None else objective,
    )


def begun(model: xhat.VAE) -> xhat.VAE:
    """The model with the weights that Burda et al.'s published code begins with.

    Those of Glorot & Bengio (2010), biases of 0, and the decoder's last bias at the log odds of the mean training image. With
    torch's own, the tanh decoder learns that image first, saturates on the way, and two layers take many epochs to recover.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    last = [layer for layer in model.likelihood.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        last.bias.copy_(mean_pixels().clamp(0.001, 0.999).logit().flatten())
    return model


def gated(prior: str = "standard", warmup: float = 0.0) -> xhat.VAE:
    """Tomczak & Welling's: gated 300-300 both ways, 40 codes, with N(0, I) or 500 pseudo-inputs."""
    objective = objectives.ELBO(warmup=warmup)
    if prior == "standard":
        return one_layer((300, 300), 40, "gated", objective)
    return one_layer((300, 300), 40, "gated", objective, prior=priors.VampPrior(40, SHAPE, components=500, bounds=(0.0, 1.0)))


def flow_posterior(kind: str) -> xhat.VAE:
    """784-400-40 with a normalising flow on the encoder's Normal."""
    return xhat.VAE(
        priors.StandardNormal(40),
        conditionals.Flow(MLP(SHAPE, (400,)), 40, kind=kind),
        conditionals.Bernoulli(MLP(40, (400,)), SHAPE),
    )


def beta_binomial() -> xhat.VAE:
    """Townsend et al.'s: 784-200-50, beta-binomial pixels."""
    return xhat.VAE(
        priors.StandardNormal(50),
        conditionals.Normal(MLP(SHAPE, (200,)), 50, scale="exp", minimum=TINY),
        conditionals.BetaBinomial(MLP(50, (200,)), SHAPE),
    )
