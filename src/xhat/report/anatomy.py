"""Figures about the bound: what it is made of, what it misses of log p(x), and what each latent dimension tells."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from xhat.evaluation.anatomy import near_ceiling
from xhat.evaluation.diagnostics import COLLAPSED
from xhat.evaluation.result import Dimension, Evaluation
from xhat.report.style import AMBER, BLUE, GREY, INK, Figured, Key, Panel, drawing, svg
from xhat.report.subject import Subject

LIGHT = "#a9c8e2"  # of the blue
_MANY = 24  # latent dimensions, above which bars are not numbered


def found_by(result: Evaluation) -> str:
    """How log p(x) was found, as the end of a sentence."""
    ways = {"exact": "exact", "annealed": f"by annealed importance sampling with {result.samples} chains"}
    return ways.get(result.method or "", f"by importance sampling with {result.samples} draws")


class _Step(NamedTuple):
    """A line of a waterfall: a level, or a part that leads from one level to the next."""

    name: str
    start: float
    end: float
    colour: str

    @property
    def is_level(self) -> bool:
        return self.start == self.end


def bound_parts(subject: Subject) -> Figured | None:
    """From E log p(x|z) down to the bound, part by part; and from the bound up to log p(x), where refinement was measured."""
    result = subject.evaluation
    steps = _down(result)
    if not steps:
        return None
    panels = [Panel(_waterfall(steps, "anatomy", "The bound and its parts"), "What the bound is made of", "nats per example")]
    how = (
        "The first dot is what the code keeps of x; each bar is a part of the price of that code, and the last dot, the bound, "
        "is what is left. Mutual information is a price that buys something; the other bars are the mismatch between the codes' "
        "law and the prior."
    )
    caption = f"Means over {result.anatomy_examples:,} test examples."
    if result.mutual_information is not None and near_ceiling(result.mutual_information.value, result.anatomy_examples or 1):
        caption += (
            f" So many examples cannot show more mutual information than {math.log(result.anatomy_examples or 1):.2f} nats: "
            "its bar may be too short, that of KL(q(z) ‖ p(z)) or of the dimensions too long, and the total correlation off "
            "either way."
        )
    keys = [Key(BLUE, "mutual information", "square"), Key(AMBER, "mismatch with the prior", "square")]
    up = _up(result)
    if up:
        panels.append(Panel(_waterfall(up, "gaps", "The gap to log p(x)"), "What the bound misses", "nats per example"))
        how += (
            " Below, how far the bound stays from log p(x). The amortisation gap goes away when each example's posterior is "
            "refined by itself; the rest is beyond this family of posteriors, or beyond so many steps."
        )
        caption += (
            f" The amortisation gap is that of {result.refined_steps} steps on {result.refined_examples:,} examples; log p(x) is "
            f"{found_by(result)}. Either picture has draws of its own, so that their bounds differ a little."
        )
        keys.append(Key(GREY, "gap to log p(x)", "square"))
    return Figured("anatomy", "Anatomy", "Anatomy of the bound", how, panels, caption, "single", tuple(keys))


def _down(result: Evaluation) -> list[_Step]:
    """E log p(x|z), the parts of the KL, and the bound that they leave."""
    if result.reconstruction is None or result.mutual_information is None or result.marginal_kl is None:
        return []
    if not all(math.isfinite(part.value) for part in (result.reconstruction, result.mutual_information, result.marginal_kl)):
        return []
    parts = [("mutual information", result.mutual_information.value, BLUE)]
    if result.total_correlation is not None and result.dimension_wise_kl is not None:
        parts.append(("total correlation", result.total_correlation.value, AMBER))
        parts.append(("KL of the dimensions", result.dimension_wise_kl.value, AMBER))
    else:
        parts.append(("KL(q(z) ‖ p(z))", result.marginal_kl.value, AMBER))
    level = result.reconstruction.value
    steps = [_Step("E log p(x|z)", level, level, INK)]
    for name, value, colour in parts:
        steps.append(_Step(name, level, level - value, colour))
        level -= value
    return [*steps, _Step("ELBO", level, level, INK)]


def _up(result: Evaluation) -> list[_Step]:
    """The bound, what refining posteriors adds to it, the rest, and log p(x)."""
    if result.amortisation_gap is None or result.elbo is None or result.log_likelihood is None:
        return []
    elbo, log_px = result.elbo.value, result.log_likelihood.value
    refined = elbo + result.amortisation_gap.value
    if not (math.isfinite(refined) and math.isfinite(log_px)):
        return []
    return [
        _Step("ELBO", elbo, elbo, INK),
        _Step("amortisation gap", elbo, refined, GREY),
        _Step("the rest", refined, log_px, GREY),
        _Step("log p(x)", log_px, log_px, INK),
    ]


def _waterfall(steps: list[_Step], name: str, about: str) -> Markup:
    with drawing(460, 34 + 33 * len(steps)) as (figure, axes):
        ends = [end for step in steps for end in (step.start, step.end)]
        low, high = min(ends), max(ends)
        width = max(high - low, 1e-6)
        for place, step in enumerate(steps):
            if step.is_level:
                axes.plot([step.end], [place], "o", color=step.colour, markersize=8, zorder=4)
                text = _nats(step.end)
            else:
                axes.barh(place, step.end - step.start, left=step.start, height=0.6, color=step.colour, zorder=3)
                text = _nats(step.end - step.start, signed=True)
            right = max(step.start, step.end)
            axes.text(right + 0.025 * width, place, text, va="center", ha="left", color=INK, fontsize=10)
            if place + 1 < len(steps):
                axes.plot([step.end, step.end], [place, place + 1], color=GREY, linewidth=0.9, linestyle=(0, (2, 2)), zorder=2)
        axes.set_yticks(range(len(steps)), [step.name for step in steps])
        axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=10.5)
        axes.set_ylim(len(steps) - 0.5, -0.5)
        axes.set_xlim(low - 0.05 * width, high + 0.2 * width)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set_xlabel("nats")
        return svg(figure, name, about)


def _nats(value: float, signed: bool = False) -> str:
    return (f"{value:+.2f}" if signed else f"{value:.2f}").replace("-", "−")


def kl_bars(subject: Subject) -> Figured | None:
    """KL of each latent dimension, largest first, with the threshold of collapse, and how much of it is information on x."""
    result = subject.evaluation
    ranked = [each for each in result.dimensions or () if each.kl is not None]
    if ranked and all(math.isfinite(each.kl or 0.0) and math.isfinite(each.information) for each in ranked):
        return _ranked(ranked, result)
    kl = result.kl_per_dimension
    return _plain(kl) if kl and all(math.isfinite(each) for each in kl) else None


def _ranked(dimensions: list[Dimension], result: Evaluation) -> Figured:
    """Bars in the order of information, each its KL: the information in it, and the mismatch with the prior on top."""
    kl = np.array([max(each.kl or 0.0, 0.0) for each in dimensions])
    information = np.clip([each.information for each in dimensions], 0.0, kl)
    active = np.array([each.active for each in dimensions])
    with drawing(460, 240) as (figure, axes):
        place = np.arange(1, len(kl) + 1)
        axes.bar(place, kl, color=LIGHT, width=0.72)
        axes.bar(place, information, color=BLUE, width=0.72)
        top = _frame(axes, kl, [str(each.place + 1) for each in dimensions], "latent dimension, by information")
        if not active.all():
            still = place[~active]
            axes.plot(still, kl[~active] + 0.035 * top, "x", color=AMBER, markersize=5, markeredgewidth=1.4, clip_on=False)
        picture = svg(figure, "kl", "KL divergence and information of each latent dimension")
    count, used = len(kl), int(active.sum())
    caption = (
        f"Means over {result.anatomy_examples:,} test examples, at draws of z. {used} of {count} dimensions are active: the "
        f"variance of their mean over examples is above 0.01. {int((kl >= COLLAPSED).sum())} lie above {COLLAPSED:g} nats of KL; "
        f"the sum over all is {kl.sum():.2f} nats ({kl.sum() / math.log(2):.2f} bits)."
    )
    keys = [Key(BLUE, "information on x", "square"), Key(LIGHT, "mismatch with the prior", "square")]
    if not active.all():
        keys.append(Key(AMBER, "not active", "cross"))
    how = (
        "The most telling dimensions come first: the dark part of a bar is what the dimension tells about x by itself, the light "
        "part how far its codes are from the prior. A dimension marked with a cross moves with no example, and could be left out."
    )
    return Figured("kl", "KL", "Dimensions by information", how, [Panel(picture)], caption, "single", tuple(keys))


def _plain(values: tuple[float, ...]) -> Figured:
    """Where nothing but the KL is known."""
    kl = np.array(values)
    order = np.argsort(-kl, kind="stable")
    dead = kl[order] < COLLAPSED
    place = np.arange(1, len(kl) + 1)
    with drawing(460, 230) as (figure, axes):
        axes.bar(place[~dead], kl[order][~dead], color=BLUE, width=0.72)
        axes.bar(place[dead], kl[order][dead], color=AMBER, width=0.72)
        top = _frame(axes, kl, [str(index + 1) for index in order], "latent dimension")
        if dead.any():
            axes.plot(place[dead], np.full(int(dead.sum()), 0.025 * top), "x", color=AMBER, markersize=5, markeredgewidth=1.4)
        axes.axhline(COLLAPSED, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=4)
        picture = svg(figure, "kl", "KL divergence of each latent dimension")
    alive = int((~dead).sum())
    total = float(kl.sum())
    caption = (
        f"Mean over test examples. {alive} of {len(kl)} dimensions lie above {COLLAPSED:g} nats; the sum over all is "
        f"{total:.2f} nats ({total / math.log(2):.2f} bits)."
    )
    keys = [Key(BLUE, "in use", "square")]
    if dead.any():
        keys.append(Key(AMBER, "collapsed", "cross"))
    keys.append(Key(INK, f"threshold, {COLLAPSED:g} nats", "dashed"))
    how = (
        "How much each latent dimension tells about x: the higher the bar, the more; a dimension below the dashed line is "
        "the prior and nothing else."
    )
    return Figured("kl", "KL", "KL per latent dimension", how, [Panel(picture)], caption, "single", tuple(keys))


def _frame(axes: Axes, kl: np.ndarray, names: list[str], label: str) -> float:
    """Axes for bars from 0, one for each dimension; answers how high they go."""
    top = max(float(kl.max()), 2 * COLLAPSED)
    axes.set_ylim(0, 1.08 * top)
    middle, half = (len(kl) + 1) / 2, max(len(kl), 6) / 2 + 0.2
    axes.set_xlim(middle - half, middle + half)
    axes.set_ylabel("nats")
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", length=0)
    if len(kl) <= _MANY:
        axes.set_xticks(np.arange(1, len(kl) + 1), names)
        axes.set_xlabel(label)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_xlabel("latent dimensions, by rank")
    return top
