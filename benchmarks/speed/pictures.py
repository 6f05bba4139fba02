"""The report's pictures, in the hand of xhat's own figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from benchmarks.speed.rows import ROWS, Row
from benchmarks.speed.sizes import AXES, LIMIT
from benchmarks.speed.table import CONTENDERS
from benchmarks.speed.verdicts import ran
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xhat.report.style import AMBER, BLUE, FAINT, GREY, INK, RC

LIGHT = "#8db9d8"  # xhat without the compiler: its colour, paler
DPI = 160
DECADE = 10.0  # the least that a curve's vertical axis spans


@contextlib.contextmanager
def _figure(width: float, height: float, path: Path) -> Iterator[Figure]:
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC | {"figure.facecolor": "white"})  # pages have dark modes, pictures have not
        figure = Figure(figsize=(width / 72, height / 72))
        yield figure
        figure.savefig(path, dpi=DPI, metadata={"Software": None})


def colour(name: str) -> str:
    """Blue is xhat, amber a limit, grey the others."""
    if name.startswith("xhat"):
        return LIGHT if "eager" in name else BLUE
    return AMBER if name.startswith("limit") else GREY


def bars(rows: dict[str, Any], path: Path) -> None:
    """A step's time for each contender of each row, the quickest on top."""
    shown = {name: row for name, row in ROWS.items() if any(ran(rows.get(name, {}), key) for key in row.entrants)}
    counts = [sum(ran(rows[name], key) for key in row.entrants) for name, row in shown.items()]
    with _figure(640, 21 * sum(counts) + 62 * len(shown), path) as figure:
        axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=counts)[:, 0]
        for ax, (name, row) in zip(axes, shown.items(), strict=True):
            _bars(ax, row, rows[name])


def _bars(ax: Axes, row: Row, results: dict[str, Any]) -> None:
    keys = sorted((key for key in row.entrants if ran(results, key)), key=lambda key: median(results[key]["seconds"]))
    milliseconds = [[1e3 * second for second in results[key]["seconds"]] for key in keys]
    middles = [median(values) for values in milliseconds]
    spread = [
        [middle - min(values) for middle, values in zip(middles, milliseconds, strict=True)],
        [max(values) - middle for middle, values in zip(middles, milliseconds, strict=True)],
    ]
    ax.barh(range(len(keys)), middles, color=[colour(key) for key in keys], height=0.72)
    ax.errorbar(middles, range(len(keys)), xerr=spread, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    for index, (middle, values) in enumerate(zip(middles, milliseconds, strict=True)):
        ax.annotate(
            f"{middle:.3g}",
            (max(values), index),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=FAINT,
        )
    ax.set_yticks(range(len(keys)), [CONTENDERS[key].label for key in keys])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlim(0, 1.08 * max(max(values) for values in milliseconds))
    ax.set_title(f"{row.title}: milliseconds a step", loc="left", fontsize=10.5, color=INK)


def curves(sizes: dict[str, Any], path: Path) -> None:
    """Microseconds an example against each size."""
    with _figure(820, 300, path) as figure:
        axes = figure.subplots(1, len(AXES), squeeze=False)[0]
        for ax, (name, axis) in zip(axes, AXES.items(), strict=True):
            for contender, by_size in sizes[name].items():
                _curve(ax, contender, by_size)
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.set_xticks(list(axis.tasks), [_short(size) for size in axis.tasks])
            ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
            ax.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            ax.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
            low, high = ax.get_ylim()
            wider = max(1.0, DECADE / (high / low)) ** 0.5  # or noise on a flat line looks like steps
            ax.set_ylim(low / wider, high * wider)
            ax.yaxis.set_minor_locator(mpl.ticker.NullLocator())
            ax.set_xlabel(axis.label)
            ax.set_title(axis.title, loc="left", fontsize=10, color=INK)
        axes[0].set_ylabel("µs an example")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9.5)


def _curve(ax: Axes, contender: str, by_size: dict[str, Any]) -> None:
    found = {int(size): [1e6 * s for s in result["seconds"]] for size, result in by_size.items() if result.get("seconds")}
    if not found:
        return
    style = "--" if contender == LIMIT else "-"
    shade = colour(contender)
    ax.plot(
        list(found), [median(v) for v in found.values()], style, color=shade, marker="o", ms=4, label=CONTENDERS[contender].label
    )
    ax.fill_between(list(found), [min(v) for v in found.values()], [max(v) for v in found.values()], color=shade, alpha=0.2, lw=0)


def _short(size: int) -> str:
    if size >= 5_000 and size == 10 ** (len(str(size)) - 1):
        return "10" + str(len(str(size)) - 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{size}"
