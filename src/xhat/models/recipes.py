"""Models by name, for people who do not want to build networks. There is no class per paper: a recipe is a row of defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from xhat import conditionals, priors
from xhat.conditionals import CONDITIONALS, Conditional
from xhat.data import corruption_from
from xhat.errors import ConfigError, whole_number
from xhat.gradients import gradient_of
from xhat.models.autoencoder import Autoencoder
from xhat.models.base import Model
from xhat.models.options import ModelOptions
from xhat.models.stacked import Stacked
from xhat.models.vae import VAE
from xhat.networks import MLP, ConvDecoder, ConvEncoder
from xhat.networks.base import Network, as_shape
from xhat.objectives import ELBO, NegativeLogLikelihood, Objective, SquaredError

Options = dict[str, Any]

_CODE: Options = {
    "latent": 16,
    "activation": "relu",
    "corruption": None,
    "likelihood": "normal",
    "link": "identity",
    "levels": 256,
}
_NETWORK: Options = {"network": "mlp", "hidden": (400,), "channels": (32, 64)}
_VARIATIONAL: Options = {
    "posterior": "normal",
    "posterior_scale": "softplus",
    "scale": "softplus",
    "per": "shared",
    "minimum": 1e-4,
    "beta": 1.0,
    "beta_warmup": 0.0,
    "free_bits": 0.0,
    "kl": "auto",
    "samples": 1,
    "gradient": "pathwise",
    "baseline": None,
}

# Options that mean something beside certain choices only.
NEEDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "channels": ("network", ("conv",)),
    "scale": ("likelihood", ("normal",)),
    "per": ("likelihood", ("normal",)),
    "minimum": ("likelihood", ("normal",)),
    "link": ("likelihood", ("normal",)),
    "posterior_scale": ("posterior", ("normal", "multivariate-normal")),
    "baseline": ("gradient", ("score",)),
}

PRIOR_OF: dict[str, type[priors.Prior]] = {
    "normal": priors.StandardNormal,
    "multivariate-normal": priors.StandardNormal,
    "bernoulli": priors.Bernoulli,
    "categorical": priors.Categorical,
    "poisson": priors.Poisson,
    "continuous-bernoulli": priors.Uniform,
}


def _networks(shape: tuple[int, ...], o: Options) -> tuple[Network, Network]:
    if o["network"] == "mlp":
        hidden = tuple(o["hidden"])
        return MLP(shape, hidden, o["activation"]), MLP(o["latent"], hidden[::-1], o["activation"])
    if o["network"] != "conv":
        raise ConfigError(f"network must be mlp or conv, was {o['network']!r}")
    if len(tuple(o["hidden"])) != 1:
        raise ConfigError(f"a convolutional network has one fully connected layer, but hidden was {tuple(o['hidden'])}")
    channels, hidden = tuple(o["channels"]), o["hidden"][0]
    up = ConvEncoder(shape, channels, hidden, o["activation"])
    return up, ConvDecoder(o["latent"], shape, channels[::-1], hidden, o["activation"])


def _conditional(name: str, what: str) -> type[Conditional]:
    if name not in CONDITIONALS:
        raise ConfigError(f"{what} must be one of {', '.join(CONDITIONALS)}, was {name!r}")
    return CONDITIONALS[name]


def _likelihood(network: Network, shape: tuple[int, ...], o: Options) -> Conditional:
    cls = _conditional(o["likelihood"], "likelihood")
    if cls is conditionals.Delta:
        raise ConfigError("a Delta likelihood gives every other x probability 0: use likelihood='normal'")
    if cls is conditionals.Normal:
        return conditionals.Normal(network, shape, o["scale"], o["per"], o["link"], o["minimum"])
    if cls is conditionals.Categorical:
        return conditionals.Categorical(network, shape, o["levels"])
    return cls(network, shape)  # type: ignore[call-arg]


def _posterior(network: Network, o: Options) -> Conditional:
    cls = _conditional(o["posterior"], "posterior")
    if cls is conditionals.Normal:
        return conditionals.Normal(network, o["latent"], o["posterior_scale"])
    if cls is conditionals.MultivariateNormal:
        return conditionals.MultivariateNormal(network, o["latent"], o["posterior_scale"])
    if cls is conditionals.Categorical:
        return conditionals.Categorical(network, o["latent"], o["levels"])
    return cls(network, o["latent"])  # type: ignore[call-arg]


def _code_parts(shape: tuple[int, ...], o: Options) -> tuple[Conditional, Conditional, Objective]:
    up, down = _networks(shape, o)
    squared = o["likelihood"] == "normal"
    likelihood = _likelihood(down, shape, {**o, "scale": 1.0, "per": "shared", "minimum": 1e-4})
    return conditionals.Delta(up, o["latent"]), likelihood, SquaredError() if squared else NegativeLogLikelihood()


def _autoencoder(shape: tuple[int, ...], o: Options) -> Model:
    posterior, likelihood, objective = _code_parts(shape, o)
    return Autoencoder(posterior, likelihood, objective, _corruption(o), o["tied"])


def _stacked(shape: tuple[int, ...], o: Options) -> Model:
    posterior, likelihood, objective = _code_parts(shape, {**o, "network": "mlp"})
    return Stacked(posterior, likelihood, objective, _corruption(o))


def _vae(shape: tuple[int, ...], o: Options) -> Model:
    up, down = _networks(shape, o)
    prior = PRIOR_OF.get(o["posterior"], priors.StandardNormal)
    gradient_options = {} if o["baseline"] is None else {"baseline": o["baseline"]}
    return VAE(
        priors.Categorical(o["latent"], o["levels"]) if prior is priors.Categorical else prior(o["latent"]),
        _posterior(up, o),
        _likelihood(down, shape, o),
        ELBO(o["beta"], o["beta_warmup"], o["free_bits"], o["kl"], o["samples"]),
        gradient_of(o["gradient"], **gradient_options),
        _corruption(o),
    )


def _corruption(o: Options) -> Any:
    return None if o["corruption"] is None else corruption_from(o["corruption"])


class Recipe(NamedTuple):
    """A row: what it is, how it is put together, and the options that it has with their defaults."""

    about: str
    make: Callable[[tuple[int, ...], Options], Model]
    defaults: Options


RECIPES: dict[str, Recipe] = {
    "autoencoder": Recipe(
        "a deterministic code; with hidden=[] a linear one, which spans the principal components",
        _autoencoder,
        {**_CODE, **_NETWORK, "tied": False},
    ),
    "denoising": Recipe(
        "an autoencoder whose encoder sees a corrupted example and whose target is the clean one",
        _autoencoder,
        {**_CODE, **_NETWORK, "tied": False, "corruption": "masking:0.5"},
    ),
    "stacked": Recipe(
        "a deep autoencoder, trained greedily layer by layer, then unrolled and fine-tuned",
        _stacked,
        {**_CODE, "hidden": (256, 64)},
    ),
    "vae": Recipe(
        "a variational autoencoder with any posterior and likelihood, trained on the ELBO",
        _vae,
        {**_CODE, **_NETWORK, **_VARIATIONAL},
    ),
}


def build(recipe: str, shape: int | Sequence[int], **options: Any) -> Model:
    """A model from a name.

    Args:
        recipe: a name of ``xhat.RECIPES``.
        shape: the event shape of one example, ``(1, 28, 28)`` or ``(30,)``.
        **options: fields of :class:`xhat.models.options.ModelOptions`; which of them a recipe has is in its ``defaults``.

    Raises:
        ConfigError: an unknown recipe; an option that it does not have, or that makes no sense; parts that do not fit.

    >>> model = build("vae", shape=(1, 28, 28), latent=20, hidden=[400], likelihood="bernoulli")
    >>> sum(p.numel() for p in model.parameters())
    652824
    """
    if recipe not in RECIPES:
        raise ConfigError(f"recipe must be one of {', '.join(RECIPES)}, was {recipe!r}")
    row = RECIPES[recipe]
    known = [field.name for field in fields(ModelOptions)]
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in row.defaults:
            reason = f"the recipe {recipe!r} has no option {name!r}" if name in known else f"there is no option {name!r}"
            raise ConfigError(f"{reason}; its options are {', '.join(row.defaults)}")
    chosen = {**row.defaults, **given}
    for name, (what, values) in NEEDS.items():
        if name in given and what in chosen and chosen[what] not in values:
            raise ConfigError(f"{name} is an option of {what}={' or '.join(map(repr, values))}, but {what} is {chosen[what]!r}")
    whole_number("latent", chosen["latent"])
    for name in ("hidden", "channels"):
        if name in given and not isinstance(given[name], list | tuple):
            raise ConfigError(f"{name} must be a list of sizes, such as [400, 200], was {given[name]!r}")
    if "levels" in given and "categorical" not in (chosen["likelihood"], chosen.get("posterior")):
        raise ConfigError(f"levels is an option of 'categorical', but the likelihood is {chosen['likelihood']!r}")
    return row.make(as_shape(shape, "shape"), chosen)


def given_options(options: ModelOptions) -> Options:
    """The options that were set, as keywords of :func:`build`."""
    return {name: value for name, value in asdict(options).items() if value is not None}
