"""Models of several stochastic layers, from their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from torch import nn

from xhat import conditionals, priors
from xhat.conditionals import Chain, Headed, Ladder
from xhat.errors import ConfigError
from xhat.networks import MLP, Take
from xhat.networks.base import Network, as_shape

DIRECTIONS = ("bottom-up", "ladder")
LAYERS = ("normal", "bernoulli")


class Hierarchy(NamedTuple):
    r"""The parts of a model of L layers, all over the vector (z₁, …, z_L).

    Attributes:
        prior: :math:`p(z_L) \prod_i p(z_i \mid z_{i+1})`.
        posterior: of the direction that was asked for.
        decoder: the body of the likelihood, which takes the vector and looks at z₁ only, as in
            ``conditionals.Bernoulli(decoder, shape)``.
    """

    prior: nn.Module
    posterior: nn.Module
    decoder: Network


def hierarchy(
    shape: int | Sequence[int],
    latents: Sequence[int] = (100, 50),
    hidden: Sequence[int] = (200, 200),
    between: Sequence[int] = (100, 100),
    activation: str = "tanh",
    direction: str = "bottom-up",
    layer: str = "normal",
    posterior_scale: str | float = "softplus",
    learn_prior: bool = False,
    bodies: tuple[Network, Network] | None = None,
    prior_condition: int = 0,
) -> Hierarchy:
    r"""Prior, posterior and the likelihood's body of a model with L ≥ 2 stochastic layers.

    .. math:: p(x, z) = p(x \mid z_1)\, p(z_1 \mid z_2) \cdots p(z_{L-1} \mid z_L)\, p(z_L)

    The posterior goes ``"bottom-up"``, :math:`q(z_1 \mid x)\, q(z_2 \mid z_1) \cdots`, or is a ``"ladder"``, drawn from the top
    with the prior's own layers (:class:`xhat.conditionals.Ladder`).

    Args:
        shape: of one example.
        latents: numbers in z₁, …, z_L.
        hidden: sizes of the hidden layers from x up to z₁, and the other way round from z₁ down to x.
        between: the same from each layer of z to the next.
        activation: a name of ``xhat.networks.base.ACTIVATIONS``.
        direction: ``"bottom-up"`` or ``"ladder"``.
        layer: the law of each layer, ``"normal"`` or, bottom-up only, ``"bernoulli"``.
        posterior_scale: how the σ of Normal layers is made positive, in the posterior and in the prior; or a number.
        learn_prior: of Bernoulli layers, whether the top layer's probabilities are trained.
        bodies: a body from x up and one from z₁ down, such as convolutional ones, in place of those that ``hidden`` describes;
            bodies that take a condition make a model with one.
        prior_condition: C, if the layers of z are to depend on a condition of so many numbers; 0 if x alone does.

    Raises:
        ConfigError: fewer than two layers; an unknown direction or layer, or two that do not go together; bodies that do not fit.

    Source: two Normal layers, bottom-up: Burda, Grosse & Salakhutdinov (2016), whose sizes are the defaults; ladder: Sønderby,
    Raiko, Maaløe, Sønderby & Winther (2016).

    >>> import torch
    >>> from xhat import VAE
    >>> parts = hierarchy((1, 28, 28), latents=(20, 10, 5), hidden=[30], between=[15], direction="ladder")
    >>> model = VAE(parts.prior, parts.posterior, conditionals.Bernoulli(parts.decoder, (1, 28, 28)))
    >>> model.encode(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 35])
    """
    event = as_shape(shape, "shape")
    if not isinstance(latents, list | tuple) or len(latents) < 2:
        raise ConfigError(f"latents must be the sizes of two layers or more, such as [100, 50], was {latents!r}")
    sizes = [as_shape(size, "each of latents")[0] for size in latents]
    _check_choice("direction", direction, DIRECTIONS)
    _check_choice("layer", layer, LAYERS)
    if layer == "bernoulli" and direction == "ladder":
        raise ConfigError("a ladder multiplies Normal densities, but layer was 'bernoulli': use direction='bottom-up'")
    if learn_prior and layer != "bernoulli":
        raise ConfigError(f"learn_prior trains the probabilities of Bernoulli layers, but layer was {layer!r}: leave it out")

    def conditional(network: Network, size: int) -> Headed:
        return conditionals.Bernoulli(network, size) if layer == "bernoulli" else _normal(network, size, posterior_scale)

    up, down = bodies or (MLP(event, hidden, activation), MLP(sizes[0], tuple(hidden)[::-1], activation))
    known: dict[str, Any] = {"condition": prior_condition} if prior_condition else {}
    prior: nn.Module = priors.StandardNormal(sizes[-1])
    if layer == "bernoulli":
        prior = priors.Bernoulli(sizes[-1], learn=learn_prior)
    if prior_condition:
        prior = priors.Given(conditional(MLP(prior_condition, tuple(between)[-1:], activation), sizes[-1]))
    for i in reversed(range(len(sizes) - 1)):
        network: Network = MLP(sizes[i + 1], tuple(between)[::-1], activation, **known)
        above = sum(sizes[i + 1 :])  # p(z_i | z_{i+1}) is handed all the layers above
        prior = priors.Chain(prior, conditional(network if above == sizes[i + 1] else Take(network, above), sizes[i]))
    posterior: nn.Module
    if direction == "ladder":
        posterior = Ladder(_estimates(up, sizes, between, activation, posterior_scale))
    else:
        layers = [conditional(up, sizes[0])]
        layers += [conditional(MLP(a, between, activation, **known), b) for a, b in pairwise(sizes)]
        posterior = layers.pop()
        while layers:
            posterior = Chain(layers.pop(), posterior)
    return Hierarchy(prior, posterior, Take(down, sum(sizes)))


def _normal(network: Network, size: int, scale: str | float) -> conditionals.Normal:
    return conditionals.Normal(network, size, scale)


def _estimates(
    up: Network, sizes: Sequence[int], between: Sequence[int], activation: str, scale: str | float
) -> list[conditionals.Normal]:
    """The ladder's deterministic way up: each body goes on from the features of the one before."""
    bodies = [up]
    for _ in sizes[1:]:
        features = getattr(bodies[-1], "out_features", None)
        if not isinstance(features, int):
            raise ConfigError(
                f"a ladder goes on from the features of {type(bodies[-1]).__name__}, which does not say how many it puts out: "
                "give it an attribute out_features"
            )
        bodies.append(MLP(features, between, activation))
    return [_normal(body, size, scale) for body, size in zip(bodies, sizes, strict=True)]


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}, was {value!r}")
