"""Models by name, for people who do not want to build networks. There is no class per paper: a recipe is a row of defaults."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from xhat import conditionals, priors
from xhat.conditionals import Headed
from xhat.data import Conditions
from xhat.errors import ConfigError, whole_number
from xhat.gradients import Layers
from xhat.models.assembly import (
    between_layers,
    code_for,
    code_shape,
    corruption_for,
    gradient_for,
    likelihood_for,
    networks_for,
    objective_for,
    posterior_for,
    prior_for,
)
from xhat.models.autoencoder import Autoencoder
from xhat.models.base import Model
from xhat.models.choices import Options, refuse_idle
from xhat.models.hierarchy import hierarchy
from xhat.models.options import ModelOptions
from xhat.models.stacked import Stacked
from xhat.models.vae import VAE
from xhat.networks import MLP, Take
from xhat.networks.base import as_shape
from xhat.objectives import NegativeLogLikelihood, Objective, SquaredError

_CODE: Options = {
    "latent": 16,
    "activation": "relu",
    "corruption": None,
    "likelihood": "normal",
    "link": "identity",
    "levels": 256,
    "logistics": 5,
}
_NETWORK: Options = {"network": "mlp", "hidden": (400,), "channels": (32, 64)}
_VARIATIONAL: Options = {
    "prior": "standard",
    "components": None,
    "posterior": "normal",
    "transforms": 3,
    "posterior_scale": "softplus",
    "scale": "softplus",
    "per": "shared",
    "minimum": 1e-4,
    "objective": "elbo",
    # None: as the objective has it
    "beta": None,
    "beta_warmup": None,
    "free_bits": None,
    "capacity": None,
    "capacity_warmup": None,
    "kl": None,
    "groups": None,
    "share": None,
    "alpha": None,
    "gamma": None,
    "estimate": None,
    "mmd_weight": None,
    "kernel": None,
    "bandwidth": None,
    "samples": None,  # as many as the objective, the code and the gradient usually take
    "gradient": "pathwise",
    "baseline": None,
    "temperature": None,
    "final_temperature": None,
    "temperature_epochs": None,
    "noise": None,
    "categories": 10,
    "prior_condition": False,
}
_OF_NORMAL_CODES = ("posterior", "posterior_scale", "categories", "prior", "components", "transforms")
_DISCRETE: Options = {
    **{name: value for name, value in _VARIATIONAL.items() if name not in _OF_NORMAL_CODES},
    "layers": 1,
    "learn_prior": True,
    "gradient": "rloo",
}


def _code_parts(shape: tuple[int, ...], o: Options) -> tuple[Headed, Headed, Objective]:
    up, down = networks_for(shape, o)
    squared = o["likelihood"] == "normal"
    likelihood = likelihood_for(down, shape, {**o, "scale": 1.0, "per": "shared", "minimum": 1e-4})
    return code_for(up, o), likelihood, SquaredError() if squared else NegativeLogLikelihood()


def _autoencoder(shape: tuple[int, ...], o: Options) -> Model:
    posterior, likelihood, objective = _code_parts(shape, o)
    return Autoencoder(posterior, likelihood, objective, corruption_for(o), o["tied"], **_named(o))


def _stacked(shape: tuple[int, ...], o: Options) -> Model:
    posterior, likelihood, objective = _code_parts(shape, {**o, "network": "mlp"})
    return Stacked(posterior, likelihood, objective, corruption_for(o), **_named(o))


def _named(o: Options) -> Options:
    """The names of the condition, where there is one, as a keyword of a model."""
    return {} if o["condition"] is None else {"condition": o["condition"]}


def _vae(shape: tuple[int, ...], o: Options) -> Model:
    up, down = networks_for(shape, o)
    gradient = gradient_for(shape, o)
    likelihood, objective = likelihood_for(down, shape, o), objective_for(gradient, o)
    prior, posterior = prior_for(shape, o), posterior_for(up, o)
    return VAE(prior, posterior, likelihood, objective, gradient, corruption_for(o), **_named(o))


def _hierarchical(shape: tuple[int, ...], o: Options) -> Model:
    if len(o["latents"]) < 2:
        raise ConfigError(f"latents must be the sizes of two layers or more, such as [32, 16], was {list(o['latents'])}")
    bodies = networks_for(shape, {**o, "latent": o["latents"][0]})
    parts = hierarchy(
        shape,
        o["latents"],
        between=o["between"],
        activation=o["activation"],
        direction=o["direction"],
        posterior_scale=o["posterior_scale"],
        bodies=bodies,
        prior_condition=o["condition_size"] if o["prior_condition"] else 0,
    )
    gradient = gradient_for(shape, o)
    likelihood, objective = likelihood_for(parts.decoder, shape, o), objective_for(gradient, o)
    return VAE(parts.prior, parts.posterior, likelihood, objective, gradient, corruption_for(o), **_named(o))


def _discrete(posterior: str) -> Callable[[tuple[int, ...], Options], Model]:
    def make(shape: tuple[int, ...], o: Options) -> Model:
        o = {**o, "posterior": posterior}
        whole_number("layers", o["layers"])
        if o["layers"] > 2:
            raise ConfigError(f"layers must be 1 or 2, was {o['layers']}: chain more of them with conditionals.Chain")
        return _vae(shape, o) if o["layers"] == 1 else _two_layers(shape, o)

    return make


def _two_layers(shape: tuple[int, ...], o: Options) -> Model:
    """x → z₁ → z₂ upwards, z₂ → z₁ → x downwards, with the same hidden layers on each of the four ways."""
    up, down = networks_for(shape, o)
    code, hidden = code_shape(o), tuple(o["hidden"])
    further = posterior_for(MLP(code, hidden, o["activation"], **between_layers(o)), o)
    below = posterior_for(MLP(code, hidden[::-1], o["activation"], **between_layers(o)), o)
    posterior = conditionals.Chain(posterior_for(up, o), further)
    gradient = gradient_for(shape, o)
    if o["objective"] == "elbo":  # the logarithm of a mean is no sum over layers: there one estimator takes both as one draw
        gradient = Layers([gradient, gradient_for(shape, o)])
    return VAE(
        priors.Chain(prior_for(shape, o), below),
        posterior,
        likelihood_for(Take(down, posterior.event), shape, o),
        objective_for(gradient, o),
        gradient,
        corruption_for(o),
        **_named(o),
    )


class Recipe(NamedTuple):
    """A row: its name for people, what it is, how it is put together, and the options that it has with their defaults."""

    title: str
    about: str
    make: Callable[[tuple[int, ...], Options], Model]
    defaults: Options

    @property
    def variational(self) -> bool:
        """Whether it has a prior, and so a likelihood of x that had better suit the data."""
        return "beta" in self.defaults


RECIPES: dict[str, Recipe] = {
    "autoencoder": Recipe(
        "Autoencoder",
        "a deterministic code; with hidden=[] a linear one, which spans the principal components",
        _autoencoder,
        {**_CODE, **_NETWORK, "tied": False},
    ),
    "denoising": Recipe(
        "Denoising autoencoder",
        "an autoencoder whose encoder sees a corrupted example and whose target is the clean one",
        _autoencoder,
        {**_CODE, **_NETWORK, "tied": False, "corruption": "masking:0.5"},
    ),
    "stacked": Recipe(
        "Stacked autoencoder",
        "a deep autoencoder, trained greedily layer by layer, then unrolled and fine-tuned",
        _stacked,
        {**_CODE, "hidden": (256, 64)},
    ),
    "vae": Recipe(
        "Variational autoencoder",
        "a variational autoencoder with any prior, posterior and likelihood, trained on any bound",
        _vae,
        {**_CODE, **_NETWORK, **_VARIATIONAL},
    ),
    "hierarchical-vae": Recipe(
        "Hierarchical variational autoencoder",
        "a variational autoencoder with two or more layers of Normal codes, inferred from the bottom up or by a ladder",
        _hierarchical,
        {
            **{name: value for name, value in _CODE.items() if name != "latent"},
            **_NETWORK,
            **{name: value for name, value in _VARIATIONAL.items() if name == "posterior_scale" or name not in _OF_NORMAL_CODES},
            "latents": (32, 16),
            "between": (64,),
            "direction": "bottom-up",
        },
    ),
    "bernoulli-vae": Recipe(
        "Variational autoencoder with bits",
        "a variational autoencoder whose code is made of bits, in one or two stochastic layers",
        _discrete("bernoulli"),
        {**_CODE, **_NETWORK, **_DISCRETE},
    ),
    "categorical-vae": Recipe(
        "Variational autoencoder with categories",
        "a variational autoencoder whose code is made of one-hot vectors, in one or two stochastic layers",
        _discrete("one-hot-categorical"),
        {**_CODE, **_NETWORK, **_DISCRETE, "categories": 10},
    ),
}


def build(
    recipe: str,
    shape: int | Sequence[int],
    *,
    condition: Mapping[str, Any] | None = None,
    masked: bool = False,
    **options: Any,
) -> Model:
    """A model from a name.

    Args:
        recipe: a name of ``xhat.RECIPES``.
        shape: the event shape of one example, ``(1, 28, 28)`` or ``(30,)``.
        condition: what everything is conditioned on, by name: a number of classes, a list of their names, ``"real"``, or
            ``{"mean": m, "std": s}``; see :class:`xhat.data.Conditions`. Encoder and decoder see it, and with
            ``prior_condition=True`` the prior.
        masked: whether the encoder sees which values were observed; for examples of which some were not.
        **options: fields of :class:`xhat.models.options.ModelOptions`; which of them a recipe has is in its ``defaults``.

    Raises:
        ConfigError: an unknown recipe; an option that it does not have, or that makes no sense; parts that do not fit.

    >>> model = build("vae", shape=(1, 28, 28), latent=20, hidden=[400], likelihood="bernoulli")
    >>> sum(p.numel() for p in model.parameters())
    652824
    """
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise ConfigError(f"recipe must be one of {', '.join(RECIPES)}, was {recipe!r}")
    row = RECIPES[recipe]
    known = [field.name for field in fields(ModelOptions)]
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in row.defaults:
            reason = f"the recipe {recipe!r} has no option {name!r}" if name in known else f"there is no option {name!r}"
            raise ConfigError(f"{reason}; its options are {', '.join(row.defaults)}")
        if isinstance(row.defaults[name], str) and not isinstance(given[name], Hashable):
            raise ConfigError(f"{name} must be one name, such as {row.defaults[name]!r}, was {given[name]!r}")
    size = 0 if condition is None else Conditions.of(condition).size
    chosen = {**row.defaults, **given, "condition": condition, "condition_size": size, "masked": masked}
    if chosen.get("prior_condition") and condition is None:
        raise ConfigError("prior_condition lets the prior depend on a condition, and there is none: give condition=…")
    refuse_idle(given, chosen)
    if "latent" in chosen:
        whole_number("latent", chosen["latent"])
    for name in ("hidden", "channels", "latents", "between"):
        if name in given and not isinstance(given[name], list | tuple):
            raise ConfigError(f"{name} must be a list of sizes, such as [400, 200], was {given[name]!r}")
    return row.make(as_shape(shape, "shape"), chosen)


def given_options(options: ModelOptions) -> Options:
    """The options that were set, as keywords of :func:`build`."""
    return {name: value for name, value in asdict(options).items() if value is not None}
