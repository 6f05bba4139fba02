"""The plain autoencoder, and the denoising one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from xhat.conditionals import Headed, event_of
from xhat.data import Corruption
from xhat.errors import ConfigError
from xhat.gradients import Pathwise
from xhat.models.base import Model
from xhat.networks import tie
from xhat.objectives import ELBO, Objective, SquaredError


class Autoencoder(Model):
    r"""Autoencoder: a code z = g(x) and a reconstruction x̂ = f(z), trained to bring x̂ close to x.

    Args:
        posterior: the encoder, usually ``conditionals.Delta``: a deterministic code.
        likelihood: the decoder as a law of x; its mean is x̂.
        objective: the squared error unless given; or ``NegativeLogLikelihood``.
        corruption: what the encoder's input goes through in training; the target stays the clean x. That is a denoising
            autoencoder.
        tied: whether the decoder uses the encoder's weights, transposed (both must be MLPs that mirror each other).
        prior: a law of the codes, from which new examples are sampled; no part of the training. :func:`xhat.fit_prior` makes one
            of the codes of a trained autoencoder.
        condition: the names of what all is conditioned on; see :class:`xhat.VAE`.

    Raises:
        ConfigError: parts that do not fit each other; an objective that needs a prior.

    Source: Hinton & Salakhutdinov (2006); denoising: Vincent et al. (2008).

    >>> import torch
    >>> from xhat import conditionals
    >>> from xhat.networks import MLP
    >>> model = Autoencoder(
    ...     posterior=conditionals.Delta(MLP(784, [400]), event=30),
    ...     likelihood=conditionals.Normal(MLP(30, [400]), event=(1, 28, 28), scale=1.0),
    ... )
    >>> model.reconstruct(torch.rand(5, 1, 28, 28)).shape
    torch.Size([5, 1, 28, 28])
    """

    points: ClassVar[bool] = True

    def __init__(
        self,
        posterior: nn.Module,
        likelihood: nn.Module,
        objective: Objective | None = None,
        corruption: Corruption | None = None,
        tied: bool = False,
        prior: nn.Module | None = None,
        condition: Mapping[str, Any] | None = None,
    ) -> None:
        if prior is not None:
            event_of(prior, "prior")
        if isinstance(objective, ELBO):
            raise ConfigError("an Autoencoder has no prior, so it has no ELBO: use objectives.SquaredError, or a VAE")
        if tied:
            if not isinstance(posterior, Headed) or not isinstance(likelihood, Headed):
                raise ConfigError("tied weights need conditionals of xhat on MLPs: use conditionals.Delta and Normal")
            tie((posterior.network, posterior.head), (likelihood.network, likelihood.head))
        objective = SquaredError() if objective is None else objective
        super().__init__(prior, posterior, likelihood, objective, Pathwise(), corruption, condition)
