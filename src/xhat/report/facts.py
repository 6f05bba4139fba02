"""What the report says in words and numbers: title, cards, the table of measures, the configuration."""

from __future__ import annotations

import json
import math
import re
import shlex
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from xhat import conditionals, priors
from xhat.evaluation.evaluate import Evaluation, Measure
from xhat.models.recipes import RECIPES
from xhat.report.anatomy import found_by
from xhat.report.subject import Subject

_LONG = 90  # characters of a value, above which it is folded


class Card(NamedTuple):
    """A key figure."""

    name: str
    value: str
    doubt: str
    unit: str


class Row(NamedTuple):
    """A line of the table of measures."""

    name: str
    value: str
    doubt: str
    unit: str
    about: str


class Definition(NamedTuple):
    """A line of the configuration; ``folded`` values open on demand."""

    name: str
    value: str
    folded: bool


class Group(NamedTuple):
    """A part of the configuration."""

    heading: str
    lines: list[Definition]


def title(config: dict[str, Any], subject: Subject) -> str:
    """What was trained on what."""
    recipe = str(config.get("recipe") or "")
    row = RECIPES.get(recipe)
    return f"{row.title if row else _words(type(subject.model).__name__).capitalize()} on {subject.data.name}"


def lead(subject: Subject) -> str:
    """One sentence on the model's parts."""
    model, data = subject.model, subject.data
    variables = model.variables
    parts = [f"{len(variables)} latent dimension{'s' * (len(variables) != 1)}"]
    if max(variables) > 1 and len(set(variables)) == 1:
        parts[0] += f" of {variables[0]} categories"
    prior = getattr(model, "prior", None)
    if prior is not None:
        parts.append(f"{_law(prior).removesuffix(' prior')} prior")
        parts.append(f"{_law(model.posterior)} posterior")
    else:
        parts.append("no prior")
    parts.append(f"{_words(type(model.likelihood).__name__)} likelihood")
    if model.corruption is not None:
        parts.append(f"{_words(type(model.corruption).__name__)} as corruption")
    weights = sum(p.numel() for p in model.parameters())
    count = len(data.train) + len(data.valid) + len(data.test)
    size = f"{data.shape[0]:,} columns" if len(data.shape) == 1 else f"shape {' × '.join(map(str, data.shape))}"
    return f"{', '.join(parts)}; {weights:,} parameters. The data: {count:,} examples of {size}, {data.kind.name}."


def _law(part: nn.Module) -> str:
    """A prior or a posterior by the name of its first layer, and how many layers it has."""
    layers = _layers(part)
    return (f"{len(layers)}-layer " if len(layers) > 1 else "") + _words(type(layers[0]).__name__)


def _layers(part: nn.Module) -> list[nn.Module]:
    if isinstance(part, conditionals.Chain):
        return [*_layers(part.first), *_layers(part.then)]
    if isinstance(part, conditionals.Ladder):
        return list(part.estimates)
    return [*_layers(part.below), *_layers(part.top)] if isinstance(part, priors.Chain) else [part]


def _words(name: str) -> str:
    return (
        re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
        .lower()
        .replace("bernoulli", "Bernoulli")
        .replace("poisson", "Poisson")
        .replace("one hot", "one-hot")
    )


def _number(value: float, doubt: float | None = None) -> str:
    """A number with two figures of its doubt, or with four or five figures of its own."""
    if not math.isfinite(value):
        return "–"
    if doubt is not None and math.isfinite(doubt) and doubt > 0:
        places = min(6, max(0, 1 - math.floor(math.log10(doubt))))
    else:
        places = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
        places = min(places, 6)
    return f"{value:,.{places}f}".replace("-", "−")


def cards(result: Evaluation) -> list[Card]:
    """The key figures."""

    def of(name: str, measure: Measure | None, unit: str) -> list[Card]:
        if measure is None:
            return []
        return [Card(name, _number(*measure), _number(measure.stderr, measure.stderr), unit)]

    name = "log p(x|c)" if result.conditioned else "log p(x)"
    found = of(name, result.log_likelihood, "nats per example") + of("ELBO", result.elbo, "nats per example")
    if result.bits_per_dimension is not None:
        found.append(Card("bits per dimension", _number(result.bits_per_dimension), "", f"of {name}"))
    found += of("log p(x|c) − log p(x)", result.class_gain, "nats: what the class is worth")
    found += of("squared error of x̂", result.squared_error, "per example")
    found += of("after denoising", result.denoised_error, "squared error per example")
    found += of("before denoising", result.corrupted_error, "squared error per example")
    found.append(Card("active units", f"{result.active_units}", "", f"of {result.latent} latent dimensions"))
    return found


_ABOUT: dict[str, tuple[str, str, str]] = {
    "examples": ("test examples", "", "N"),
    "samples": ("draws of z per example", "", "K, of log p(x); annealed chains where it was annealed"),
    "elbo": ("ELBO", "nats", "evidence lower bound"),
    "log_likelihood": ("log p(x)", "nats", ""),
    "log_likelihood_mc_stderr": ("doubt of log p(x) from sampling z", "nats", "standard error of the mean, for these examples"),
    "log_likelihood_shortfall": (
        "shortfall of log p(x)",
        "nats",
        "about how far the mean is too low, or more: it does not shrink with more examples, only with K",
    ),
    "ess": ("effective sample size, mean", "draws", "of K"),
    "ess_smallest": ("effective sample size, smallest", "draws", "of K"),
    "bits_per_dimension": ("bits per dimension", "bits", "−log p(x) / (ln 2 · dimensions)"),
    "kl": ("KL(q(z|x) ‖ p(z))", "nats", "in closed form where there is one, else at draws of z"),
    "squared_error": ("squared error of x̂", "", "summed over the event, from the code's mean"),
    "corrupted_error": ("squared error of the corrupted x̃", "", "against the clean x"),
    "denoised_error": ("squared error of x̂ from x̃", "", "against the clean x"),
    "active_units": ("active units", "dimensions", "variance of the code's mean over examples above 0.01"),
    "latent": ("latent dimensions", "dimensions", ""),
    "train_elbo": ("ELBO on training examples", "nats", "a value far above the ELBO is overfitting"),
    "anatomy_examples": ("examples of the next measures", "", "the bound is taken apart on so many of them"),
    "reconstruction": ("E log p(x|z)", "nats", "the bound is this less the KL"),
    "mutual_information": ("mutual information I(x; z)", "nats", "at most the logarithm of the number of these examples"),
    "marginal_kl": ("KL(q(z) ‖ p(z))", "nats", "of the average posterior; with the mutual information it makes up the KL"),
    "total_correlation": ("total correlation", "nats", "how far q(z) is from independent dimensions; part of KL(q(z) ‖ p(z))"),
    "dimension_wise_kl": ("KL of each dimension, summed", "nats", "KL(q(z_j) ‖ p(z_j)); the other part"),
    "amortisation_gap": ("amortisation gap", "nats", "what refining the posterior of each example by itself adds to the ELBO"),
    "refined_examples": ("examples that were refined", "", ""),
    "refined_steps": ("steps of refinement", "", ""),
    "class_gain": ("log p(x|c) − log p(x)", "nats", "what the class is worth; p(x) is the average over classes"),
    "class_gain_examples": ("examples of that", "", ""),
    "observed_share": ("share of values that were observed", "", "all measures are of these"),
    "unseen_examples": ("examples of which nothing was observed", "", ""),
    "likelihood_scale": ("smallest σ of the likelihood", "", "in the units that the model sees"),
}


_OF_DRAWS = ("samples", "log_likelihood_mc_stderr", "log_likelihood_shortfall")


def measures(result: Evaluation) -> list[Row]:
    """The table of measures: every field that has a value, known here or not."""
    rows = []
    held = result._asdict()
    for field in [name for name in _ABOUT if name in held] + [name for name in held if name not in _ABOUT]:
        value = held[field]
        if field in _OF_DRAWS and (result.log_likelihood is None or result.method == "exact"):
            continue  # nothing was drawn
        name, unit, about = _ABOUT.get(field, (field.replace("_", " "), "", ""))
        if result.conditioned:
            name = name.replace("log p(x)", "log p(x|c)") if field != "class_gain" else name
        if field == "log_likelihood":
            about = found_by(result) + ("" if result.method == "exact" else "; a lower bound in expectation")
        if isinstance(value, Measure):
            rows.append(Row(name, _number(*value), _number(value.stderr, value.stderr), unit, about))
        elif isinstance(value, int) and not isinstance(value, bool):
            rows.append(Row(name, f"{value:,}", "", unit, about))
        elif isinstance(value, float):
            rows.append(Row(name, _number(value), "", unit, about))
    return rows


def configuration(config: dict[str, Any], subject: Subject) -> list[Group]:
    """Settings, model, data and versions, in groups of definitions."""
    data = subject.data
    sizes = f"{len(data.train):,} to train, {len(data.valid):,} to validate, {len(data.test):,} to test"
    given = config.get("data")
    about_data = _lines(given) if isinstance(given, dict) else []
    about_data += [
        Definition("examples", sizes, False),
        Definition("kind", f"{data.kind.name}: {data.kind.why}", False),
    ]
    if data.notes:
        about_data.append(Definition("on the way", "; ".join(data.notes), False))
    known = {"xhat", "torch", "settings", "model", "command", "data"}
    options = {key: value for key, value in config.items() if key not in known}
    for name in ("options", "model_options"):
        nested = options.pop(name, None)
        if isinstance(nested, dict):
            options.update({key: value for key, value in nested.items() if value is not None})
        elif nested is not None:
            options[name] = nested
    about_model = _lines(options)
    if config.get("model") is not None:
        about_model.append(Definition("specification", json.dumps(config["model"], indent=1, ensure_ascii=False), True))
    settings = config.get("settings")
    groups = [
        Group("Model", about_model),
        Group("Data", about_data),
        Group("Training", _lines(settings) if isinstance(settings, dict) else []),
        Group("Versions", _lines({"xhat": config.get("xhat"), "torch": config.get("torch"), "numpy": np.__version__})),
    ]
    return [group for group in groups if group.lines]


def _lines(values: dict[str, Any]) -> list[Definition]:
    lines = []
    for name, value in values.items():
        if value is None:
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        lines.append(Definition(str(name).replace("_", " "), text, len(text) > _LONG))
    return lines


def command(config: dict[str, Any]) -> str | None:
    """The command that made the run."""
    held = config.get("command")
    if isinstance(held, list | tuple):
        return shlex.join(str(word) for word in held)
    return held if isinstance(held, str) and held else None
