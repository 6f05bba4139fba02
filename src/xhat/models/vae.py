"""The variational autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from xhat.conditionals import event_of
from xhat.data import Corruption
from xhat.errors import ConfigError
from xhat.gradients import Gradient, Pathwise
from xhat.models.base import Model
from xhat.objectives import ELBO, NegativeLogLikelihood, Objective, SquaredError


class VAE(Model):
    r"""Variational autoencoder: any prior p(z), posterior q(z|x) and likelihood p(x|z) that live on the same points.

    Args:
        prior: a module whose call gives p(z); see ``xhat.priors``.
        posterior: a conditional from x to z.
        likelihood: a conditional from z to x.
        objective: what is minimised; the negative ELBO unless given.
        gradient: how the derivative gets through z; reparameterised unless given.
        corruption: what the encoder's input goes through in training (a denoising VAE). The bound stays one: q(z|x̃) is as good a
            law as any.
        condition: the names of what all is conditioned on, such as ``{"label": 10, "age": "real"}`` (see
            :class:`xhat.data.Conditions`), for networks that take as many numbers; without it, conditions are numbers without
            names.

    Raises:
        ConfigError: parts that do not fit each other, by name.

    Source: Kingma & Welling (2013); denoising: Im et al. (2017).

    >>> import torch
    >>> from xhat import conditionals, gradients, objectives, priors
    >>> from xhat.networks import MLP
    >>> model = VAE(
    ...     prior=priors.StandardNormal(20),
    ...     posterior=conditionals.Normal(MLP(784, [400]), event=(20,), scale="softplus"),
    ...     likelihood=conditionals.Bernoulli(MLP(20, [400]), event=(1, 28, 28)),
    ...     objective=objectives.ELBO(beta=1.0),
    ...     gradient=gradients.Pathwise(),
    ... )
    >>> model.loss(torch.zeros(5, 1, 28, 28)).shape, model.sample(3).shape
    (torch.Size([5]), torch.Size([3, 1, 28, 28]))
    """

    def __init__(
        self,
        prior: nn.Module,
        posterior: nn.Module,
        likelihood: nn.Module,
        objective: Objective | None = None,
        gradient: Gradient | None = None,
        corruption: Corruption | None = None,
        condition: Mapping[str, Any] | None = None,
    ) -> None:
        event_of(prior, "prior")
        if isinstance(objective, SquaredError | NegativeLogLikelihood):
            raise ConfigError(
                f"a VAE is trained on a bound, and {type(objective).__name__} leaves its prior out: use objectives.ELBO, or "
                "xhat.Autoencoder"
            )
        super().__init__(
            prior,
            posterior,
            likelihood,
            ELBO() if objective is None else objective,
            Pathwise() if gradient is None else gradient,
            corruption,
            condition,
        )
