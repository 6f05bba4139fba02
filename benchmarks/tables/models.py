"""The models of the tables, by the sizes that the publications give."""

from __future__ import annotations

import xhat
from benchmarks.tables.datasets import SHAPE
from xhat import conditionals, gradients, objectives, priors
from xhat.networks import MLP

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
