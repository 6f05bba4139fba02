"""From the options of a recipe to the parts of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from xhat import conditionals, priors
from xhat.conditionals import CONDITIONALS, Headed
from xhat.data import Corruption, corruption_from
from xhat.errors import ConfigError, whole_number
from xhat.gradients import Gradient, gradient_of
from xhat.models.options import LEVELLED
from xhat.networks import MLP, ConvDecoder, ConvEncoder
from xhat.networks.base import Network
from xhat.objectives import CIWAE, ELBO, IWAE, MIWAE, PIWAE, Info, Objective, Renyi, TotalCorrelation

Options = dict[str, Any]

PRIOR_OF: dict[str, type[priors.Prior]] = {
    "normal": priors.StandardNormal,
    "multivariate-normal": priors.StandardNormal,
    "bernoulli": priors.Bernoulli,
    "categorical": priors.Categorical,
    "one-hot-categorical": priors.OneHotCategorical,
    "poisson": priors.Poisson,
    "continuous-bernoulli": priors.Uniform,
}

LEARNED_PRIORS = ("standard", "mixture", "vamp", "flow", "coupling", "spline")
FLOWS = ("iaf", "coupling")  # posteriors

# What each objective is called with: the option, and the argument that it becomes.
OBJECTIVES: dict[str, tuple[Callable[..., Objective], dict[str, str]]] = {
    "elbo": (
        ELBO,
        {
            "beta": "beta",
            "beta_warmup": "warmup",
            "free_bits": "free_bits",
            "kl": "kl",
            "capacity": "capacity",
            "capacity_warmup": "capacity_warmup",
        },
    ),
    "iwae": (IWAE, {}),
    "miwae": (MIWAE, {"groups": "groups"}),
    "piwae": (PIWAE, {"groups": "groups"}),
    "ciwae": (CIWAE, {"share": "share"}),
    "renyi": (Renyi, {"alpha": "alpha"}),
    "tc": (TotalCorrelation, {"alpha": "alpha", "beta": "beta", "gamma": "gamma", "estimate": "estimate"}),
    "info": (Info, {"alpha": "alpha", "mmd_weight": "lambda_", "kernel": "kernel", "bandwidth": "bandwidth"}),
}
SEVERAL = {"iwae": 50, "ciwae": 50, "renyi": 50, "miwae": 8, "piwae": 8}  # draws of the bounds of several, unless told otherwise


def networks_for(shape: tuple[int, ...], o: Options) -> tuple[Network, Network]:
    """The bodies of the encoder and of the decoder."""
    beside, down_beside = known_of(o, mask=True), known_of(o)
    if o["network"] == "mlp":
        hidden = tuple(o["hidden"])
        return MLP(shape, hidden, o["activation"], **beside), MLP(code_shape(o), hidden[::-1], o["activation"], **down_beside)
    if o["network"] != "conv":
        raise ConfigError(f"network must be mlp or conv, was {o['network']!r}")
    if len(tuple(o["hidden"])) != 1:
        raise ConfigError(f"a convolutional network has one fully connected layer, but hidden was {tuple(o['hidden'])}")
    channels, hidden = tuple(o["channels"]), o["hidden"][0]
    up = ConvEncoder(shape, channels, hidden, o["activation"], **beside)
    return up, ConvDecoder(code_shape(o), shape, channels[::-1], hidden, o["activation"], **down_beside)


def known_of(o: Options, mask: bool = False) -> dict[str, Any]:
    """What a network takes beside its input, as keywords: nothing of a model without a condition that sees whole examples."""
    known: dict[str, Any] = {"condition": o["condition_size"]} if o.get("condition_size") else {}
    return {**known, "masked": True} if mask and o.get("masked") else known


def between_layers(o: Options) -> dict[str, Any]:
    """The same of a network between two layers of z, which a condition changes only if the prior depends on it."""
    return known_of(o) if o.get("prior_condition") else {}


def code_shape(o: Options) -> tuple[int, ...]:
    """The shape of z, or of one layer of it."""
    if o.get("posterior") != "one-hot-categorical":
        return (o["latent"],)
    whole_number("categories", o["categories"])
    return (o["latent"], o["categories"])


def _conditional(name: str, what: str) -> type[Headed]:
    if name not in CONDITIONALS:
        raise ConfigError(f"{what} must be one of {', '.join(CONDITIONALS)}, was {name!r}")
    return CONDITIONALS[name]


def likelihood_for(network: Network, shape: tuple[int, ...], o: Options) -> Headed:
    """p(x|z) on a body."""
    cls = _conditional(o["likelihood"], "likelihood")
    if cls is conditionals.Delta:
        raise ConfigError("a Delta likelihood gives every other x probability 0: use likelihood='normal'")
    if cls is conditionals.Normal:
        return conditionals.Normal(network, shape, o["scale"], o["per"], o["link"], o["minimum"])
    if cls is conditionals.DiscretisedNormal:
        return conditionals.DiscretisedNormal(network, shape, o["levels"], o["scale"], o["per"], o["minimum"])
    if cls is conditionals.LogisticMixture:
        return conditionals.LogisticMixture(network, shape, o["levels"], o["logistics"])
    if cls in (conditionals.Categorical, conditionals.BetaBinomial):
        return cls(network, shape, o["levels"])
    return cls(network, shape)  # type: ignore[call-arg]


def posterior_for(network: Network, o: Options) -> Headed:
    """q(z|x) on a body, or a further layer of z."""
    if o["posterior"] in FLOWS:
        return conditionals.Flow(network, o["latent"], o["posterior"], o["transforms"], scale=o["posterior_scale"])
    if o["posterior"] in LEVELLED[1:]:
        raise ConfigError(f"{o['posterior']} is a law of pixels, not of codes: use posterior='normal'")
    cls = _conditional(o["posterior"], "posterior")
    if cls is conditionals.Normal:
        return conditionals.Normal(network, o["latent"], o["posterior_scale"])
    if cls is conditionals.MultivariateNormal:
        return conditionals.MultivariateNormal(network, o["latent"], o["posterior_scale"])
    if cls is conditionals.Categorical:
        return conditionals.Categorical(network, o["latent"], o["levels"])
    return cls(network, code_shape(o))  # type: ignore[call-arg]


def prior_for(shape: tuple[int, ...], o: Options) -> nn.Module:
    """p(z), on the posterior's points, or its topmost layer."""
    kind = o.get("prior", "standard")
    if kind not in LEARNED_PRIORS:
        raise ConfigError(f"prior must be one of {', '.join(LEARNED_PRIORS)}, was {kind!r}")
    under = between_layers(o)
    if kind == "mixture":
        return priors.Mixture(o["latent"], 10 if o["components"] is None else o["components"], **under)
    if kind == "vamp":
        within = o["likelihood"] in ("bernoulli", "continuous-bernoulli", *LEVELLED)
        if not under and o.get("condition_size"):
            under = {"beside": o["condition_size"]}
        return priors.VampPrior(
            code_shape(o), shape, 500 if o["components"] is None else o["components"], (0.0, 1.0) if within else None, **under
        )
    if kind != "standard":
        return priors.Flow(o["latent"], "autoregressive" if kind == "flow" else kind, o["transforms"], **under)
    if under:  # a law of the posterior's own kind, from the condition
        return priors.Given(posterior_for(MLP(o["condition_size"], tuple(o["hidden"])[-1:], o["activation"]), _plain(o)))
    prior = PRIOR_OF.get(o["posterior"], priors.StandardNormal)
    if prior is priors.Categorical:
        return priors.Categorical(o["latent"], o["levels"])
    return prior(code_shape(o), learn=True) if o.get("learn_prior") else prior(code_shape(o))  # type: ignore[call-arg]


def _plain(o: Options) -> Options:
    """The same options, with the plain Normal where the posterior is made of one."""
    return {**o, "posterior": "normal"} if o["posterior"] in (*FLOWS, "multivariate-normal") else o


def gradient_for(shape: tuple[int, ...], o: Options) -> Gradient:
    """The estimator with those of its options that were set."""
    names = {"final_temperature": "final", "temperature_epochs": "epochs"}
    set_ = ("baseline", "temperature", "final_temperature", "temperature_epochs", "noise")
    options = {names.get(name, name): o[name] for name in set_ if o[name] is not None}
    if o["baseline"] == "network":
        options["baseline"] = MLP(shape, (100,), "tanh")
    return gradient_of(o["gradient"], **options)


def objective_for(gradient: Gradient, o: Options) -> Objective:
    """What is trained on; where nobody says how many draws, as many as are usual, or the next number that the gradient takes."""
    name, samples = o["objective"], o["samples"]
    if not isinstance(name, str) or name not in OBJECTIVES:
        raise ConfigError(f"objective must be one of {', '.join(OBJECTIVES)}, was {name!r}")
    if name in SEVERAL and o["noise"] not in (None, "independent"):
        raise ConfigError(
            f"noise={o['noise']!r} makes draws that depend on each other, and objective={name!r} is a bound of independent ones: "
            "leave noise out"
        )
    if samples is None and name in SEVERAL:
        samples = gradient.usable(SEVERAL[name])
    elif samples is None:  # the usual gradients of a discrete code compare draws with each other
        samples = gradient.usable(2) if "layers" in o else 1
    make, arguments = OBJECTIVES[name]
    return make(samples=samples, **{argument: o[option] for option, argument in arguments.items() if o[option] is not None})


def corruption_for(o: Options) -> Corruption | None:
    """The noise on the encoder's input, if any."""
    return None if o["corruption"] is None else corruption_from(o["corruption"])
