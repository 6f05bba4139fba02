"""Walks through the latent space: from one code, one latent variable moves and the others stay."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from xhat.conditionals import condition_of
from xhat.models.base import quiet
from xhat.networks import Take
from xhat.report.subject import Subject

_MOST = 8  # walks
_CATEGORIES = 16  # of one variable


class Range(NamedTuple):
    """Where walks go in each number of the code, ``(numbers,)`` each, and how to say it."""

    low: Tensor
    high: Tensor
    words: str


class Walk(NamedTuple):
    """The codes ``(steps, numbers)`` in which one variable takes the ``positions``; ``start`` is where it stands at first."""

    variable: int
    worth: str
    positions: Tensor
    codes: Tensor
    start: float


def range_of(subject: Subject) -> Range:
    """Three standard deviations of a Normal prior, a bit's two values, or what the codes span."""
    if subject.has_prior and not condition_of(subject.model.prior):  # type: ignore[arg-type]
        with quiet(subject.model):
            prior = subject.model.prior()
        base = getattr(prior, "base_dist", prior)
        if isinstance(base, Normal):
            mean, spread = prior.mean.flatten().cpu(), prior.stddev.flatten().cpu()
            return Range(mean - 3 * spread, mean + 3 * spread, "from −3 to 3 standard deviations of the prior")
        if isinstance(base, Bernoulli):
            zeros = torch.zeros(subject.codes.shape[1])
            return Range(zeros, zeros + 1, "from 0 to 1")
    low, high = torch.quantile(subject.codes, torch.tensor([0.01, 0.99]), dim=0)
    return Range(low, high, "over the middle 98 % of the codes")


def walks(subject: Subject, steps: int) -> tuple[list[Walk], str]:
    """Up to eight walks, those of the most telling variables first, and how they were chosen and go, in words."""
    where, places = range_of(subject), _places(subject)
    kl = subject.evaluation.kl_per_dimension
    by_kl = bool(kl) and len(kl or ()) == len(places)
    spread = [float(subject.codes[:, place].double().var(0, correction=0).sum()) for place in places]
    values = np.array(kl if by_kl else spread)
    order = np.argsort(-values, kind="stable")[:_MOST].tolist()
    found = []
    for index in order:
        worth = f"{values[index]:.2f} nats" if by_kl else f"variance {values[index]:.3g}"
        found.append(_walk(subject, where, index, places[index], worth, steps))
    by = "KL" if by_kl else "variance of the codes"
    total = len(places)
    chosen = (
        f"all dimensions, by {by}" if len(found) == total else f"the {len(found)} of {total} dimensions with the largest {by}"
    )
    words = "through its categories" if any(place.stop - place.start > 1 for place in places) else where.words
    return found, f"({chosen}), moved {words}"


def _places(subject: Subject) -> list[slice]:
    """Where in the flat code each variable lies that the decoder looks at: of several layers it may see the first alone."""
    network = getattr(subject.model.likelihood, "network", None)
    reach = math.prod(network.taken) if isinstance(network, Take) else subject.codes.shape[1]
    places, start = [], 0
    for width in subject.model.variables:
        if start + width <= reach:
            places.append(slice(start, start + width))
        start += width
    return places


def _walk(subject: Subject, where: Range, index: int, place: slice, worth: str, steps: int) -> Walk:
    width = place.stop - place.start
    typical = subject.typical
    if width == 1:
        positions = torch.linspace(float(where.low[place]), float(where.high[place]), steps)
        codes, moved, start = typical.repeat(steps, 1), positions.unsqueeze(1), float(typical[place])
    else:  # one of K categories after the other, the first of them if there are many
        moved = torch.eye(width)[:_CATEGORIES]
        positions = torch.arange(1.0, len(moved) + 1)
        codes, start = typical.repeat(len(moved), 1), float(typical[place].argmax()) + 1
    codes[:, place] = moved
    return Walk(index, worth, positions, codes, start)
