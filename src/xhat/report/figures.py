"""Figures about training: curves."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from xhat.report.style import AMBER, BLUE, GREY, Figured, Key, Panel, drawing, panel_size, svg

_MEASURES = {
    "elbo": ("Evidence lower bound", "nats per example"),
    "log_px_given_z": ("log p(x|z)", "nats per example"),
    "kl": ("KL(q(z|x) ‖ p(z))", "nats per example"),
    "loss": ("Loss", "per example"),
    "squared_error": ("Squared error of x̂", "per example"),
}

Rows = list[dict[str, Any]]


def training_curves(rows: Rows) -> Figured | None:
    """Train and validation measures per epoch, a panel for each measure of one stage or for each stage of several."""
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    several = len(stages) > 1
    plots = []
    for stage in stages:
        own = [row for row in rows if row["stage"] == stage]
        best = next((row["epoch"] for row in reversed(own) if row.get("improved")), None)
        plots += [_Plot(stage, own, measure, best) for measure in _worth_showing(own)[: 1 if several else None]]
    if not plots:
        return None
    panels = []
    for place, plot in enumerate(plots):
        name, unit = _MEASURES.get(plot.measure, (plot.measure.replace("_", " ").capitalize(), "per example"))
        title, note = name, unit
        if several:
            title, note = plot.stage.capitalize(), f"{name[0].lower()}{name[1:]}, {unit}"
            note += f"; best epoch {plot.best}" if plot.best is not None else ""
        size = panel_size(len(plots), 0.7) if len(plots) > 1 else (460.0, 250.0)
        panels.append(Panel(_curve(plot, size, f"{name} of {plot.stage} by epoch", f"curve-{place}"), title, note))
    keys = [Key(GREY, "training", "line")]
    if any(key.startswith("valid_") for key in rows[-1]):
        keys.append(Key(BLUE, "validation", "line"))
    caption = "Means over examples, an epoch at a time. Training values are averaged while the weights still move."
    if any(plot.best is not None for plot in plots):
        keys.append(Key(AMBER, "best epoch" if several else f"best epoch, {plots[0].best}", "dot"))
        caption += " The dot marks the epoch that was best on validation examples."
    if any(plot.cut_off for plot in plots):
        caption += " The steep first epochs lie outside the picture where they would flatten the rest."
    how = (
        "Each stage trains one layer on the codes of the one below; the last trains them all. Errors of different stages are "
        "not comparable: the layers see different things."
        if several
        else "Curves that level out have converged; a validation curve that turns back while training goes on improving shows "
        "overfitting."
    )
    return Figured("training", "Training", "Training", how, panels, caption, "grid" if len(panels) > 1 else "single", tuple(keys))


class _Plot(NamedTuple):
    """One measure of one stage."""

    stage: str
    rows: Rows
    measure: str
    best: int | None

    def line(self, part: str) -> tuple[list[int], list[float]]:
        """Epochs and finite values of ``train`` or ``valid``."""
        name = f"{part}_{self.measure}"
        points = [(row["epoch"], row[name]) for row in self.rows if name in row and math.isfinite(row[name])]
        return [epoch for epoch, _ in points], [value for _, value in points]

    @property
    def limits(self) -> tuple[float, float] | None:
        """From the lowest to the highest value after the first tenth of the epochs, with a margin."""
        later: list[float] = []
        for part in ("train", "valid"):
            values = self.line(part)[1]
            later += values[len(values) // 10 :]
        if len(self.rows) < 10 or not later or min(later) == max(later):
            return None
        margin = 0.08 * (max(later) - min(later))
        return min(later) - margin, max(later) + margin

    @property
    def cut_off(self) -> bool:
        values = [*self.line("train")[1], *self.line("valid")[1]]
        return self.limits is not None and (min(values) < self.limits[0] or max(values) > self.limits[1])


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


def _curve(plot: _Plot, size: tuple[float, float], about: str, name: str) -> Markup:
    with drawing(*size) as (figure, axes):
        for part, colour in (("train", GREY), ("valid", BLUE)):
            epochs, values = plot.line(part)
            if not epochs:
                continue
            axes.plot(epochs, values, color=colour, marker="o" if len(epochs) == 1 else None, markersize=4)
            if part == "valid" and plot.best in epochs:
                value = values[epochs.index(plot.best)]
                axes.plot(plot.best, value, "o", color=AMBER, markersize=7.5, markeredgecolor="white", zorder=5)
        if plot.limits is not None:
            axes.set_ylim(*plot.limits)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set_xlabel("epoch")
        _whole_epochs(axes, [row["epoch"] for row in plot.rows])
        return svg(figure, name, about)


def _whole_epochs(axes: Axes, epochs: list[int]) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    low, high = min(epochs), max(epochs)
    margin = max(0.5, 0.03 * (high - low))
    axes.set_xlim(low - margin, high + margin)
