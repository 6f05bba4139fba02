"""From the options of a recipe to the parts of a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from xhat import conditionals
from xhat.conditionals import Headed
from xhat.data import Corruption, corruption_from
from xhat.errors import ConfigError, whole_number
from xhat.gradients import Gradient
from xhat.models.choices import (
    GRADIENTS,
    LIKELIHOODS,
    NETWORKS,
    OBJECTIVES,
    OF_CATEGORIES,
    POSTERIORS,
    PRIORS,
    SEVERAL,
    Options,
    chosen,
)
from xhat.models.options import LEVELLED
from xhat.networks import MLP
from xhat.networks.base import Network
from xhat.objectives import Objective


def networks_for(shape: tuple[int, ...], o: Options) -> tuple[Network, Network]:
    """The bodies of the encoder and of the decoder."""
    networks: tuple[Network, Network] = chosen(NETWORKS, "network", o)(
        o, shape, code_shape(o), o, known_of(o, mask=True), known_of(o)
    )
    return networks


def known_of(o: Options, mask: bool = False) -> dict[str, Any]:
    """What a network takes beside its input, as keywords: nothing of a model without a condition that sees whole examples."""
    known: dict[str, Any] = {"condition": o["condition_size"]} if o.get("condition_size") else {}
    return {**known, "masked": True} if mask and o.get("masked") else known


def between_layers(o: Options) -> dict[str, Any]:
    """The same of a network between two layers of z, which a condition changes only if the prior depends on it."""
    return known_of(o) if o.get("prior_condition") else {}


def code_shape(o: Options) -> tuple[int, ...]:
    """The shape of z, or of one layer of it."""
    if o.get("posterior") not in OF_CATEGORIES:
        return (o["latent"],)
    whole_number("categories", o["categories"])
    return (o["latent"], o["categories"])


def likelihood_for(network: Network, shape: tuple[int, ...], o: Options) -> Headed:
    """p(x|z) on a body."""
    if o["likelihood"] == "delta":
        raise ConfigError("a Delta likelihood gives every other x probability 0: use likelihood='normal'")
    likelihood: Headed = chosen(LIKELIHOODS, "likelihood", o)(o, network, shape)
    return likelihood


def posterior_for(network: Network, o: Options) -> Headed:
    """q(z|x) on a body, or a further layer of z."""
    if o["posterior"] in LEVELLED[1:]:
        raise ConfigError(f"{o['posterior']} is a law of pixels, not of codes: use posterior='normal'")
    code = code_shape(o)
    posterior: Headed = chosen(POSTERIORS, "posterior", o)(o, network, code[0] if len(code) == 1 else code)
    return posterior


def prior_for(shape: tuple[int, ...], o: Options) -> nn.Module:
    """p(z), on the posterior's points, or its topmost layer."""
    o = {"prior": "standard", **o}
    prior: nn.Module = chosen(PRIORS, "prior", o)(o, code_shape(o), shape, o, **between_layers(o))
    return prior


def gradient_for(shape: tuple[int, ...], o: Options) -> Gradient:
    """The estimator with those of its options that were set."""
    if isinstance(o["gradient"], Gradient):
        return o["gradient"]
    row = chosen(GRADIENTS, "gradient", o)
    if o["baseline"] == "network":
        o = {**o, "baseline": MLP(shape, (100,), "tanh")}
    gradient: Gradient = row(o)
    return gradient


def objective_for(gradient: Gradient, o: Options) -> Objective:
    """What is trained on; where nobody says how many draws, as many as are usual, or the next number that the gradient takes."""
    name, samples = o["objective"], o["samples"]
    row = chosen(OBJECTIVES, "objective", o)
    if name in SEVERAL and o["noise"] not in (None, "independent"):
        raise ConfigError(
            f"noise={o['noise']!r} makes draws that depend on each other, and objective={name!r} is a bound of independent ones: "
            "leave noise out"
        )
    if samples is None and name in SEVERAL:
        samples = gradient.usable(SEVERAL[name])
    elif samples is None:  # the usual gradients of a discrete code compare draws with each other
        samples = gradient.usable(2) if "layers" in o else 1
    objective: Objective = row(o, samples=samples)
    return objective


def corruption_for(o: Options) -> Corruption | None:
    """The noise on the encoder's input, if any."""
    return None if o["corruption"] is None else corruption_from(o["corruption"])


def code_for(network: Network, o: Options) -> conditionals.Delta:
    """The deterministic code of an autoencoder, on a body."""
    return conditionals.Delta(network, o["latent"])
