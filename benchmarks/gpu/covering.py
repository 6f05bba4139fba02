"""The models that are tried on the device: the tests' own catalogue, and every gradient with a law that it serves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from xhat import VAE, conditionals, objectives, priors
from xhat.errors import ConfigError
from xhat.models.base import Model
from xhat.networks import MLP

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import catalogue

LAWS = {
    "one-hot": (
        lambda: conditionals.OneHotCategorical(MLP(6, [5]), event=(2, 3)),
        lambda: priors.OneHotCategorical((2, 3)),
    ),
    "bernoulli": (lambda: conditionals.Bernoulli(MLP(6, [5]), event=(3,)), lambda: priors.Bernoulli(3)),
    "normal": (lambda: conditionals.Normal(MLP(6, [5]), event=(3,)), lambda: priors.StandardNormal(3)),
}
OBJECTIVES = {"elbo": lambda: objectives.ELBO(samples=4), "iwae": lambda: objectives.IWAE(4)}


def model_with(gradient: str, law: str, objective: str) -> Model:
    """A model of six bits.

    Raises:
        ConfigError: the three do not fit.
    """
    torch.manual_seed(0)
    posterior, prior = (make() for make in LAWS[law])
    likelihood = conditionals.Bernoulli(MLP(posterior.event, [5]), event=(6,))
    return VAE(prior, posterior, likelihood, OBJECTIVES[objective](), catalogue.GRADIENTS[gradient]())


def with_gradients() -> dict[str, Callable[[], Model]]:
    """Every gradient with the first law that it serves, under each objective that it serves."""
    rows: dict[str, Callable[[], Model]] = {}
    for gradient in catalogue.GRADIENTS:
        for objective in OBJECTIVES:
            for law in LAWS:
                try:
                    model_with(gradient, law, objective).loss(torch.zeros(2, 6))
                except (ConfigError, RuntimeError):  # it does not fit, or has a network for another context
                    continue
                rows[f"{gradient}, {law}, {objective}"] = lambda g=gradient, a=law, o=objective: model_with(g, a, o)
                break
    return rows


def spread(rows: dict[str, Callable[[], Model]], number: int, of: int) -> dict[str, Callable[[], Model]]:
    """One of several shares of the rows, each with some of every kind."""
    return dict(list(rows.items())[number::of])
