"""What a row of the tables is: models that are trained alike, what is measured of them, and what was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
        build_full: makes it for the published schedule, where that takes another model (a longer warm-up, say).
        trained: trains it otherwise than by ``xhat.fit``: gets the settings, the data and the seed.
    """

    name: str
    build: Callable[[], xhat.Model]
    cpu: Mapping[str, Any]
    full: Mapping[str, Any]
    published: str = ""
    build_full: Callable[[], xhat.Model] | None = None
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
    notes: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()  # rows whose variants it is compared with, on the same data
    # What is done with trained models afterwards: from the variants' models and the data to further variants' figures.
    afterwards: Callable[[dict[str, xhat.Model], Any], dict[str, Figures]] | None = None

    @property
    def about_data(self) -> str:
        return ABOUT[self.data]


ABOUT = {
    "static": "MNIST, the fixed binarisation of Larochelle & Murray (2011): 50,000 to train, 10,000 to choose, 10,000 to test",
    "dynamic": "MNIST, binarised anew at every fetch: 59,000 to train, 1,000 to watch, 10,000 to test, drawn once",
    "grey": "MNIST, 256 grey levels: 54,000 to train, 6,000 to choose, 10,000 to test",
}
