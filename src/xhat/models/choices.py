"""What a recipe can be made of: one row for each likelihood, posterior, prior, objective, gradient and network.

A row says how the part is made, and which options of a recipe it takes by which of its own arguments. What needs what, and every
refusal of an option that does not belong, come from these rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from xhat import conditionals, priors
from xhat.errors import ConfigError
from xhat.gradients import GRADIENTS as ESTIMATORS
from xhat.models.options import LEVELLED
from xhat.networks import MLP, ConvDecoder, ConvEncoder
from xhat.networks.base import Network
from xhat.objectives import CIWAE, ELBO, IWAE, MIWAE, PIWAE, Info, Renyi, TotalCorrelation

Options = dict[str, Any]


class Choice(NamedTuple):
    """A row: what makes the part, and the options that it takes, each with the argument that it becomes."""

    make: Callable[..., Any]
    options: dict[str, str] = {}  # noqa: RUF012 - a row is read, never written

    def __call__(self, o: Options, *arguments: Any, **more: Any) -> Any:
        """The part, with those of its options that were set."""
        set_ = {argument: o[option] for option, argument in self.options.items() if o.get(option) is not None}
        return self.make(*arguments, **set_, **more)


def chosen(table: Mapping[str, Choice], what: str, o: Options) -> Choice:
    """The row that the option ``what`` names.

    Raises:
        ConfigError: it names none; says which there are.
    """
    name = o[what]
    if not isinstance(name, str) or name not in table:
        raise ConfigError(f"{what} must be one of {', '.join(table)}, was {name!r}")
    return table[name]


_SCALE = {"scale": "scale", "per": "per", "minimum": "minimum"}
_LEVELS = {"levels": "levels"}

LIKELIHOODS: dict[str, Choice] = {
    "normal": Choice(conditionals.Normal, {**_SCALE, "link": "link"}),
    "multivariate-normal": Choice(conditionals.MultivariateNormal),
    "bernoulli": Choice(conditionals.Bernoulli),
    "continuous-bernoulli": Choice(conditionals.ContinuousBernoulli),
    "categorical": Choice(conditionals.Categorical, _LEVELS),
    "one-hot-categorical": Choice(conditionals.OneHotCategorical),
    "poisson": Choice(conditionals.Poisson),
    "discretised-normal": Choice(conditionals.DiscretisedNormal, {**_LEVELS, **_SCALE}),
    "logistic-mixture": Choice(conditionals.LogisticMixture, {**_LEVELS, "logistics": "components"}),
    "beta-binomial": Choice(conditionals.BetaBinomial, _LEVELS),
}

_FLOW = {"transforms": "transforms", "posterior_scale": "scale"}

POSTERIORS: dict[str, Choice] = {
    "normal": Choice(conditionals.Normal, {"posterior_scale": "scale"}),
    "multivariate-normal": Choice(conditionals.MultivariateNormal, {"posterior_scale": "scale"}),
    "bernoulli": Choice(conditionals.Bernoulli),
    "continuous-bernoulli": Choice(conditionals.ContinuousBernoulli),
    "categorical": Choice(conditionals.Categorical, _LEVELS),
    "one-hot-categorical": Choice(conditionals.OneHotCategorical),
    "poisson": Choice(conditionals.Poisson),
    "delta": Choice(conditionals.Delta),
    "iaf": Choice(partial(conditionals.Flow, kind="iaf"), _FLOW),
    "coupling": Choice(partial(conditionals.Flow, kind="coupling"), _FLOW),
}
OF_CATEGORIES = ("one-hot-categorical",)  # posteriors whose codes have an axis of categories

STANDARD: dict[str, Choice] = {
    "continuous-bernoulli": Choice(priors.Uniform),
    "bernoulli": Choice(priors.Bernoulli, {"learn_prior": "learn"}),
    "categorical": Choice(priors.Categorical, _LEVELS),
    "one-hot-categorical": Choice(priors.OneHotCategorical, {"learn_prior": "learn"}),
    "poisson": Choice(priors.Poisson),
}
"""The standard prior of each kind of posterior that has another than N(0, I)."""


def _standard(event: tuple[int, ...], shape: tuple[int, ...], o: Options, condition: int = 0) -> nn.Module:
    if condition:  # a law of the posterior's own kind, from the condition
        kind = o["posterior"] if o["posterior"] in STANDARD else "normal"
        network = MLP(condition, tuple(o["hidden"])[-1:], o["activation"])
        return priors.Given(POSTERIORS[kind](o, network, event))
    prior: nn.Module = STANDARD.get(o["posterior"], Choice(priors.StandardNormal))(o, event)
    return prior


def _vamp(event: tuple[int, ...], shape: tuple[int, ...], o: Options, condition: int = 0, **set_: Any) -> nn.Module:
    within = o["likelihood"] in ("bernoulli", "continuous-bernoulli", *LEVELLED)
    under = {"condition": condition} if condition else {"beside": o["condition_size"]} if o.get("condition_size") else {}
    return priors.VampPrior(event, shape, **{"components": 500, **set_}, bounds=(0.0, 1.0) if within else None, **under)


def _mixture(event: tuple[int, ...], shape: tuple[int, ...], o: Options, **set_: Any) -> nn.Module:
    return priors.Mixture(event[0], **{"components": 10, **set_})


def _flow(kind: str) -> Callable[..., nn.Module]:
    def make(event: tuple[int, ...], shape: tuple[int, ...], o: Options, **set_: Any) -> nn.Module:
        return priors.Flow(event[0], kind, **set_)

    return make


PRIORS: dict[str, Choice] = {
    "standard": Choice(_standard),
    "mixture": Choice(_mixture, {"components": "components"}),
    "vamp": Choice(_vamp, {"components": "components"}),
    "flow": Choice(_flow("autoregressive"), {"transforms": "transforms"}),
    "coupling": Choice(_flow("coupling"), {"transforms": "transforms"}),
    "spline": Choice(_flow("spline"), {"transforms": "transforms"}),
}

OBJECTIVES: dict[str, Choice] = {
    "elbo": Choice(
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
    "iwae": Choice(IWAE),
    "miwae": Choice(MIWAE, {"groups": "groups"}),
    "piwae": Choice(PIWAE, {"groups": "groups"}),
    "ciwae": Choice(CIWAE, {"share": "share"}),
    "renyi": Choice(Renyi, {"alpha": "alpha"}),
    "tc": Choice(TotalCorrelation, {"alpha": "alpha", "beta": "beta", "gamma": "gamma", "estimate": "estimate"}),
    "info": Choice(Info, {"alpha": "alpha", "mmd_weight": "lambda_", "kernel": "kernel", "bandwidth": "bandwidth"}),
}
SEVERAL = {"iwae": 50, "ciwae": 50, "renyi": 50, "miwae": 8, "piwae": 8}  # draws of the bounds of several, unless told otherwise

_OF_GRADIENTS = {
    "baseline": "baseline",
    "temperature": "temperature",
    "final_temperature": "final",
    "temperature_epochs": "epochs",
    "noise": "noise",
}


def _estimator(cls: type) -> Choice:
    """An estimator takes those of the options that its constructor names."""
    known = inspect.signature(cls).parameters
    return Choice(cls, {option: argument for option, argument in _OF_GRADIENTS.items() if argument in known})


GRADIENTS: dict[str, Choice] = {name: _estimator(cls) for name, cls in ESTIMATORS.items()}


def _mlp(
    shape: tuple[int, ...], code: tuple[int, ...], o: Options, up: Options, down: Options, hidden: tuple[int, ...]
) -> tuple[Network, Network]:
    return MLP(shape, tuple(hidden), o["activation"], **up), MLP(code, tuple(hidden)[::-1], o["activation"], **down)


def _conv(
    shape: tuple[int, ...],
    code: tuple[int, ...],
    o: Options,
    up: Options,
    down: Options,
    hidden: tuple[int, ...],
    channels: tuple[int, ...],
) -> tuple[Network, Network]:
    if len(tuple(hidden)) != 1:
        raise ConfigError(f"a convolutional network has one fully connected layer, but hidden was {tuple(hidden)}")
    maps, size = tuple(channels), hidden[0]
    encoder = ConvEncoder(shape, maps, size, o["activation"], **up)
    return encoder, ConvDecoder(code, shape, maps[::-1], size, o["activation"], **down)


NETWORKS: dict[str, Choice] = {
    "mlp": Choice(_mlp, {"hidden": "hidden"}),
    "conv": Choice(_conv, {"hidden": "hidden", "channels": "channels"}),
}

TABLES: dict[str, Mapping[str, Choice]] = {
    "network": NETWORKS,
    "likelihood": LIKELIHOODS,
    "posterior": POSTERIORS,
    "prior": PRIORS,
    "objective": OBJECTIVES,
    "gradient": GRADIENTS,
}


def needs(option: str) -> dict[str, tuple[str, ...]]:
    """The choices that an option belongs to, by table; empty where it belongs to none in particular.

    >>> needs("components")
    {'prior': ('mixture', 'vamp')}
    """
    found = {what: tuple(name for name, row in table.items() if option in row.options) for what, table in TABLES.items()}
    if option == "categories":
        found["posterior"] = OF_CATEGORIES
    return {what: names for what, names in found.items() if names}


def refuse_idle(given: Options, o: Options) -> None:
    """Refuse an option that none of the choices takes.

    Args:
        given: what the user set.
        o: all options.

    Raises:
        ConfigError: says where it belongs.
    """
    for option in given:
        places = {what: names for what, names in needs(option).items() if what in o}
        if places and not any(o[what] in names for what, names in places.items()):
            where = " or ".join(f"{what}={' or '.join(map(repr, names))}" for what, names in places.items())
            held = " and ".join(f"{what} is {o[what]!r}" for what in places)
            raise ConfigError(f"{option} is an option of {where}, but {held}: leave it out")
