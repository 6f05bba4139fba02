"""A picture of a sweep: what each trial came to, against each option that was varied."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from xhat.report.style import AMBER, BLUE, GREY, INK, RC

ACROSS = 3  # panels in a row
WHISKER = 1.5  # interquartile ranges beyond the middle half of the values; what lies further out is marked at the edge


def sweep_png(trials: Sequence[dict[str, Any]], logarithmic: Sequence[str], metric: str, best: int, dpi: int = 150) -> bytes:
    """One panel an option; finished trials in blue, those that were cut short in grey, the best in amber.

    Args:
        trials: each with ``trial``, ``state``, ``value`` and ``parameters``; a value that is a string is a choice.
        logarithmic: options whose axis is logarithmic.
        metric: what the values are.
        best: the number of the best trial.
        dpi: dots an inch.
    """
    names = list(trials[0]["parameters"])
    columns = min(ACROSS, len(names))
    rows = math.ceil(len(names) / columns)
    limits = _limits([trial["value"] for trial in trials if trial["state"] == "complete"])
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        mpl.rcParams.update({"figure.facecolor": "white", "font.size": 11})
        figure = Figure(figsize=(1.2 + 4.2 * columns, 0.9 + 3.4 * rows))
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
        for axes, name in zip(panels, names, strict=False):
            _panel(axes, trials, name, name in logarithmic, best, limits)
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        for row in range(rows):
            panels[row * columns].set_ylabel(metric.replace("_", " "))
        finished = sum(trial["state"] == "complete" for trial in trials)
        title = f"{finished} finished trials (blue), the best (amber)"
        if finished < len(trials):
            title += f", {len(trials) - finished} cut short (grey)"
        if any(not limits[0] <= trial["value"] <= limits[1] for trial in trials):
            title += "; triangles lie beyond the edge"
        figure.suptitle(title, x=0.02, ha="left", fontsize=12 if columns > 1 else 10, color=INK, wrap=True)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _limits(values: list[float]) -> tuple[float, float]:
    """The range to show: one trial that went astray must not press the others flat."""
    ordered = sorted(values)
    lower, upper = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    reach = WHISKER * (upper - lower)
    low, high = max(ordered[0], lower - reach), min(ordered[-1], upper + reach)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _panel(
    axes: Axes, trials: Sequence[dict[str, Any]], name: str, logarithmic: bool, best: int, limits: tuple[float, float]
) -> None:
    chosen = [trial["parameters"][name] for trial in trials]
    words = sorted({value for value in chosen if isinstance(value, str)}, key=_by_size)
    for trial, value in zip(trials, chosen, strict=True):
        spread = 0.12 * math.sin(2.4 * trial["trial"])  # trials of one choice stand beside each other
        across = words.index(value) + spread if words else value
        is_best, finished = trial["trial"] == best, trial["state"] == "complete"
        colour = AMBER if is_best else BLUE if finished else GREY
        low, high = limits
        inside = low <= trial["value"] <= high
        mark = "o" if inside else "^" if trial["value"] > high else "v"
        height = min(max(trial["value"], low), high)
        axes.plot(
            [across], [height], mark, color=colour, ms=9 if is_best else 6, alpha=0.9, zorder=3 if is_best else 2, clip_on=inside
        )
    if words:
        axes.set_xticks(range(len(words)), words)
        axes.set_xlim(-0.5, len(words) - 0.5)
    elif logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(*limits)
    axes.set_xlabel(name)


def _by_size(word: str) -> tuple[int, float, str]:
    try:
        return 0, float(word), word
    except ValueError:
        return 1, 0.0, word
