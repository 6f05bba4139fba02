"""Figures about training and about single latent dimensions: curves and bars."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from xhat.evaluation.diagnostics import COLLAPSED
from xhat.report.style import AMBER, BLUE, GREY, INK, Figured, Key, Panel, drawing, svg
from xhat.report.subject import Subject

_MEASURES = {
    "elbo": ("evidence lower bound", "nats per example"),
    "log_px_given_z": ("log p(x|z)", "nats per example"),
    "kl": ("KL(q(z|x) ‖ p(z))", "nats per example"),
    "loss": ("loss", "per example"),
    "squared_error": ("squared error of x̂", "per example"),
}
_MANY = 32  # latent dimensions, above which bars are not numbered

Rows = list[dict[str, Any]]


def training_curves(rows: Rows) -> Figured | None:
    """Train and validation measures per epoch, a panel for each measure of one stage or for each stage of several."""
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    if not stages:
        return None
    panels = []
    several = len(stages) > 1
    marked = validated = False
    for stage in stages:
        own = [row for row in rows if row["stage"] == stage]
        best = next((row["epoch"] for row in reversed(own) if row.get("improved")), None)
        marked = marked or best is not None
        validated = validated or any(key.startswith("valid_") for row in own for key in row)
        for measure in _worth_showing(own)[: 1 if several else None]:
            name, unit = _MEASURES.get(measure, (measure.replace("_", " "), "per example"))
            title = f"{stage[:1].upper()}{stage[1:]}" if several else f"{name[:1].upper()}{name[1:]}"
            note = f"{name}, {unit}" if several else unit
            if best is not None:
                note += f"; best epoch {best}"
            about = f"{name} of {stage} by epoch"
            panels.append(Panel(_curve(own, measure, best, about, f"curve-{len(panels)}"), title, note))
    if not panels:
        return None
    keys = [Key(GREY, "training", "line")]
    if validated:
        keys.append(Key(BLUE, "validation", "line"))
    if marked:
        keys.append(Key(AMBER, "best epoch", "dot"))
    how = (
        "Each stage trains one layer on the codes of the one below; the last trains them all. Errors of different stages are "
        "not comparable: the layers see different things."
        if several
        else "Curves that level out have converged; a validation curve that turns back while training goes on improving shows "
        "overfitting."
    )
    caption = "Means over examples, an epoch at a time. Training values are averaged while the weights still move."
    if marked:
        caption += " The dot marks the epoch that was best on validation examples."
    return Figured("training", "Training", how, panels, caption, "grid" if len(panels) > 1 else "single", tuple(keys))


def _worth_showing(rows: Rows) -> list[str]:
    """The bound and its two terms where there are such, else the loss, and other measures that differ from it."""
    names = [key.removeprefix("train_") for key in rows[-1] if key.startswith("train_")]
    if "elbo" in names:
        return [name for name in ("elbo", "log_px_given_z", "kl") if name in names]
    others = [name for name in names if name != "loss"]
    same = [name for name in others if all(row.get(f"train_{name}") == row.get("train_loss") for row in rows)]
    if same:
        return same[:1] + [name for name in others if name not in same]
    return ["loss", *others]


def _curve(rows: Rows, measure: str, best: int | None, about: str, name: str) -> Markup:
    with drawing(360, 230) as (figure, axes):
        drawn: list[float] = []
        for part, colour in (("train", GREY), ("valid", BLUE)):
            points = [(row["epoch"], row[f"{part}_{measure}"]) for row in rows if f"{part}_{measure}" in row]
            points = [(epoch, value) for epoch, value in points if math.isfinite(value)]
            if not points:
                continue
            epochs, values = zip(*points, strict=True)
            axes.plot(epochs, values, color=colour, marker="o" if len(points) == 1 else None, markersize=4)
            drawn += values
            if part == "valid" and best in epochs:
                axes.plot(best, values[epochs.index(best)], "o", color=AMBER, markersize=7, markeredgecolor="white", zorder=5)
        if drawn and _starts_far_out(drawn):
            axes.set_yscale("log")
        axes.set_xlabel("epoch")
        _whole_epochs(axes, [row["epoch"] for row in rows])
        return svg(figure, name, about)


def _starts_far_out(values: list[float]) -> bool:
    return min(values) > 0 and max(values) > 30 * min(values)


def _whole_epochs(axes: Axes, epochs: list[int]) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    low, high = min(epochs), max(epochs)
    margin = max(0.5, 0.03 * (high - low))
    axes.set_xlim(low - margin, high + margin)


def kl_bars(subject: Subject) -> Figured | None:
    """KL of each latent dimension, largest first, with the threshold of collapse."""
    values = subject.evaluation.kl_per_dimension
    if not values:
        return None
    kl = np.array(values)
    order = np.argsort(-kl, kind="stable")
    dead = kl[order] < COLLAPSED
    place = np.arange(len(kl))
    with drawing(560, 270) as (figure, axes):
        axes.bar(place[~dead], kl[order][~dead], color=BLUE, width=0.72)
        axes.bar(place[dead], kl[order][dead], color=AMBER, width=0.72)
        top = max(float(kl.max()), 2 * COLLAPSED)
        if dead.any():
            axes.plot(place[dead], np.full(int(dead.sum()), 0.025 * top), "x", color=AMBER, markersize=5, markeredgewidth=1.4)
        axes.axhline(COLLAPSED, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=4)
        axes.set_ylim(0, 1.06 * top)
        axes.set_xlim(-0.7, max(len(kl), 4) - 0.3)
        axes.set_ylabel("nats")
        axes.grid(axis="x", visible=False)
        axes.tick_params(axis="x", length=0)
        if len(kl) <= _MANY:
            axes.set_xticks(place, [str(index + 1) for index in order])
            axes.set_xlabel("latent dimension")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
            axes.set_xlabel("latent dimensions, by rank (from 0)")
        picture = svg(figure, "kl", "KL divergence of each latent dimension")
    alive = int((~dead).sum())
    total = float(kl.sum())
    caption = (
        f"Mean over test examples. {alive} of {len(kl)} dimensions lie above {COLLAPSED:g} nats; all together carry {total:.2f} nats "
        f"({total / math.log(2):.2f} bits)."
    )
    keys = [Key(BLUE, "in use", "square")]
    if dead.any():
        keys.append(Key(AMBER, "collapsed", "cross"))
    keys.append(Key(INK, f"threshold, {COLLAPSED:g} nats", "dashed"))
    how = (
        "How much each latent dimension tells about x: the higher the bar, the more; a dimension below the dashed line is the prior "
        "and nothing else."
    )
    return Figured("kl", "KL per latent dimension", how, [Panel(picture)], caption, "single", tuple(keys))
