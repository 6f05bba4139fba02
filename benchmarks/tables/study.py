"""What a row of the tables is: models that are trained alike, what is measured of them, and what was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import xhat


@dataclass(frozen=True)
class Variant:
    """A model and how it is trained.

    Attributes:
        name: what the table calls it.
        build: makes it, untrained, of parts of xhat.
        cpu: settings of ``xhat.fit`` for a budget of minutes on two cores.
        full: those of the publication.
        published: the figure that the source gives for the full schedule, if any.
        trained: trains it otherwise than by ``xhat.fit``: gets the settings, the data and the seed.
    """

    name: str
    build: Callable[[], xhat.Model]
    cpu: Mapping[str, Any]
    full: Mapping[str, Any]
    published: str = ""
    trained: Callable[[Mapping[str, Any], Any, int], xhat.Model] | None = None


@dataclass(frozen=True)
class Figures:
    """What was measured of one trained model: a mean and its standard error for each name; and values for each example."""

    means: dict[str, tuple[float, float]]
    each: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A comparison: ``better`` minus ``than`` in ``figure`` should be at least (or with ``most`` at most) so much."""

    text: str
    figure: str
    better: str
    than: str | None = None
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Study:
    """A row: its variants, on one data set, with one way of measuring."""

    name: str
    title: str
    model: str
    data: str
    setting: str
    source: str
    variants: tuple[Variant, ...]
    measure: Callable[[xhat.Model, Any], Figures]
    asked: tuple[Asked, ...]
    seeds: tuple[int, ...] = (0,)
    # What is done with trained models afterwards: from the variants' models and the data to further variants' figures.
    afterwards: Callable[[dict[str, xhat.Model], Any], dict[str, Figures]] | None = None


def nats(log_px: Tensor) -> tuple[float, float]:
    """The mean over examples and its standard error."""
    return float(log_px.mean()), float(log_px.std() / len(log_px) ** 0.5)


def evidence(samples: int, examples: int | None = None) -> Callable[[xhat.Model, Any], Figures]:
    """NLL by importance sampling, the ELBO, and the active units (variance of the posterior's mean above 0.01)."""

    def measure(model: xhat.Model, split: Any) -> Figures:
        test = split.test if examples is None else split.test[:examples]
        torch.manual_seed(1)
        found = xhat.log_likelihood(model, test, samples=samples)
        with torch.no_grad():
            elbo = torch.cat([model.elbo(part, samples=10).double() for part in test.split(200)])
            means = torch.cat([model.encode(part) for part in split.test.split(1000)]).flatten(1)
        active = float((means.var(0) > 0.01).sum())
        each = {"NLL": -found.log_px, "−ELBO": -elbo}
        return Figures({**{name: nats(values) for name, values in each.items()}, "active units": (active, 0.0)}, each)

    return measure
