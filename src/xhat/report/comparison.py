"""A picture of gradients compared: bias and spread of each, and variance against cost."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from xhat.gradients import Comparison, Row
from xhat.report.style import AMBER, BLUE, FAINT, GREY, INK, RC

HEIGHT = 0.34  # inches for each gradient
WIDEST = 6.0  # of the spread: what lies beyond is cut, and marked


def comparison_png(comparison: Comparison, title: str, dpi: int = 150) -> bytes:
    """The picture as a PNG.

    Left, the estimates' projection on the true gradient, whose mean is 1 without bias: box 25 to 75 %, line 5 to 95 %, a dot at
    the mean. Right, the variance of one estimate against its time; what lies lower and further left is better, and along a
    dashed line variance × time is the same.
    """
    rows = sorted(comparison, key=lambda row: row.variance)
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        mpl.rcParams.update({"figure.facecolor": "white", "font.size": 11})
        figure = Figure(figsize=(13, max(4.2, 1.7 + HEIGHT * len(rows))))
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        _spread(left, rows)
        _cost(right, rows, comparison.recommended)
        figure.suptitle(title, x=0.02, ha="left", fontsize=13, color=INK)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _colour(row: Row) -> str:
    return BLUE if row.unbiased else AMBER


def _spread(axes: Axes, rows: Sequence[Row]) -> None:
    reach = max((abs(q - 1) for row in rows for q in (row.spread[1], row.spread[3])), default=1.0)
    reach = min(WIDEST, max(0.5, 1.6 * reach))
    for place, row in enumerate(rows):
        colour = _colour(row)
        low, first, _, third, high = row.spread
        axes.plot([low, high], [place, place], color=colour, linewidth=1.4, alpha=0.55, zorder=2)
        axes.barh(place, third - first, left=first, height=0.5, color=colour, alpha=0.3, zorder=2)
        axes.plot([row.mean], [place], "o", color=colour, markersize=6, zorder=4)
        for end, beyond, mark in ((1 - reach, low < 1 - reach, "<"), (1 + reach, high > 1 + reach, ">")):
            if beyond:
                axes.plot([end], [place], mark, color=colour, markersize=5, clip_on=False, zorder=5)
    axes.axvline(1, color=INK, linewidth=1.1, zorder=3)
    axes.set_xlim(1 - reach, 1 + reach)
    axes.set_yticks(range(len(rows)), [f"{row.name}   {place + 1}" for place, row in enumerate(rows)], color=INK)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("estimate along the true gradient (truth = 1): mean, 25 to 75 %, 5 to 95 %")
    for unbiased, colour, name in ((True, BLUE, "unbiased"), (False, AMBER, "biased")):
        if any(row.unbiased == unbiased for row in rows):
            axes.plot([], [], "o", color=colour, label=name)
    axes.set_title("Bias and spread", loc="left", color=INK)
    axes.legend(loc="upper right", bbox_to_anchor=(1.0, 1.09), ncols=2, frameon=False, labelcolor=FAINT, borderaxespad=0.0)


def _cost(axes: Axes, rows: Sequence[Row], recommended: str | None) -> None:
    positive = [row.variance for row in rows if row.variance > 0]
    floor = min(positive) / 10 if positive else 1.0
    axes.set_xscale("log")
    axes.set_yscale("log")
    points = [(1e6 * row.seconds, row.variance if row.variance > 0 else floor, row) for row in rows]
    times = [x for x, _, _ in points]
    wide, slim = max(times) * 1.9, min(times) / 1.3
    tall = max(y for _, y, _ in points) * 3
    axes.set_xlim(slim, wide)
    axes.set_ylim(floor / 2, tall)
    for power in range(math.floor(math.log10(slim * floor)) - 1, math.ceil(math.log10(wide * tall)) + 2):
        axes.plot([slim, wide], [10.0**power / slim, 10.0**power / wide], "--", color=GREY, linewidth=0.6, alpha=0.5, zorder=1)
    for place, (x, y, row) in enumerate(points):
        best = row.name == recommended
        mark = "v" if row.variance == 0 else "o"
        size = 17 if best else 14
        axes.plot([x], [y], mark, color=_colour(row), markersize=size, markeredgecolor="white", zorder=4 + best)
        axes.text(x, y, str(place + 1), color="white", fontsize=8, ha="center", va="center_baseline", zorder=6)
        if best:
            axes.plot([x], [y], mark, color="none", markersize=size + 7, markeredgecolor=INK, zorder=5)
    near = math.log10(wide / slim) < 2
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if near else (1.0,)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("time of one estimate, µs")
    axes.set_ylabel("variance of one estimate (▼ none)" if len(positive) < len(rows) else "variance of one estimate")
    title = "Variance against cost" + (" (ringed: recommended)" if recommended else "")
    axes.set_title(title, loc="left", color=INK)
