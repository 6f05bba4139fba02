"""How every figure looks: one palette, one hand, and the way from a matplotlib figure to a string in the page."""

from __future__ import annotations

import base64
import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import Tensor

INK, FAINT, RULE = "#1d2733", "#5b6876", "#d9dee3"
BLUE, AMBER, GREY = "#1b6ca8", "#d1731a", "#8a96a3"  # blue and amber keep apart under every colour blindness

# Paul Tol's "muted" scheme: safe for colour-blind readers, dark enough on white; what is beyond nine kinds is grey.
LABELS = ("#332288", "#44aa99", "#cc6677", "#999933", "#4fb0e0", "#882255", "#117733", "#c9a83a", "#aa4499")
OTHER = "#8a949e"
ERROR_MAP = "cividis"  # made for readers with and without colour blindness alike

RC: Any = {
    "font.family": ["DejaVu Sans"],  # the page puts its own font in place of it
    "font.size": 10.5,
    "mathtext.default": "regular",
    "text.color": INK,
    "text.parse_math": False,
    "text.usetex": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": FAINT,
    "axes.labelsize": 10.5,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.use_mathtext": False,
    "axes.formatter.limits": (-4, 5),
    "grid.color": "#e9ecef",
    "grid.linewidth": 0.8,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "figure.dpi": 72,
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.image_inline": True,
    "path.simplify": True,
}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_SCATTER_DPI = 216  # three times the page's own: points stay round on fine screens


class Panel(NamedTuple):
    """A picture with what stands around it: a title or row label, and a note under or beside it."""

    picture: Markup
    title: str = ""
    note: str = ""


class Key(NamedTuple):
    """A line of a legend."""

    colour: str
    name: str
    mark: str = "dot"


class Figured(NamedTuple):
    """A section of the page: a heading, how to read it, panels in a layout, and a caption.

    ``name`` is its anchor, ``short`` its name in the list of sections; ``layout`` is one of single, small (a narrow
    single picture), grid (small multiples) and strips (labelled rows).
    """

    name: str
    short: str
    heading: str
    how: str
    panels: list[Panel]
    caption: str
    layout: str = "single"
    keys: tuple[Key, ...] = ()


def panel_size(count: int, ratio: float) -> tuple[float, float]:
    """Width and height of one of ``count`` small multiples: wider where the page sets two in a row and not three."""
    width = 330.0 if count in (2, 4) else 240.0
    return width, width * ratio


@contextlib.contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes, ``width`` by ``height`` in CSS pixels; nothing of matplotlib's own state stays changed."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        figure = Figure(figsize=(width / 72, height / 72))
        yield figure, figure.add_subplot()


def svg(figure: Figure, name: str, about: str) -> Markup:
    """A figure as an ``<svg>`` element; call it while :func:`drawing` is open.

    Args:
        figure: what to write.
        name: its name on the page, which keeps the ids of two figures apart.
        about: what it shows, for readers who do not see it.
    """
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata=_NO_METADATA, dpi=_SCATTER_DPI)
    body = text.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", body)  # HTML knows both namespaces by itself
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = body.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    return Markup(body.replace("<svg", f'<svg role="img" aria-label="{escape(about)}"', 1))


def image(pixels: np.ndarray, about: str) -> Markup:
    """Pixels ``(H, W, 3)`` in [0, 1] as an ``<img>`` that holds its own PNG."""
    buffer = io.BytesIO()
    levels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    imsave(buffer, levels, format="png", pil_kwargs={"optimize": True})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    height, width = pixels.shape[:2]
    return Markup(f'<img alt="{escape(about)}" width="{width}" height="{height}" src="data:image/png;base64,{data}">')


def tiled(pictures: Tensor, columns: int, side: int = 112, gap: int = 8) -> np.ndarray:
    """Pictures ``(N, H, W, 3)`` in rows of ``columns``, each enlarged by a whole factor to about ``side`` pixels.

    Every pixel becomes a square of equal size, so that nothing is blurred and nothing beats against the grid.
    """
    pixels = pictures.numpy()
    count, high, wide = pixels.shape[:3]
    factor = max(1, round(side / max(high, wide)))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    high, wide = high * factor, wide * factor
    rows = -(-count // columns)
    sheet = np.ones((rows * (high + gap) - gap, columns * (wide + gap) - gap, 3), dtype=np.float32)
    for index in range(count):
        top, left = (index // columns) * (high + gap), (index % columns) * (wide + gap)
        sheet[top : top + high, left : left + wide] = pixels[index]
    return sheet
