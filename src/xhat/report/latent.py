"""Figures of the latent space: a map of the codes, and what moving one coordinate does."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from xhat.evaluation.result import coordinate
from xhat.report.style import ERROR_MAP, FAINT, LABELS, OTHER, RULE, Figured, Key, Panel, drawing, image, panel_size, svg, tiled
from xhat.report.subject import Subject
from xhat.report.walks import range_of, walks

_STEPS = 11  # pictures in a row of the traversals
_GRID = 13
_LINES = 6  # columns of a table that the traversals draw


def latent_map(subject: Subject) -> Figured | None:
    """The codes of the test examples in the plane, coloured by label or else by error."""
    codes = subject.codes.double()
    if len(codes) < 3 or float(codes.var(0).sum()) == 0:
        return None
    latent = codes.shape[1]
    shares: list[float] | None = None
    if latent > 2:
        plane, shares = _principal(codes)
        names = [f"principal component {i + 1}  ({share:.0%} of variance)" for i, share in enumerate(shares)]
    elif latent == 2:
        plane, names = codes.numpy(), ["z₁", "z₂"]
    else:
        error = subject.error.sqrt().numpy()
        plane, names = np.stack([codes[:, 0].numpy(), error], axis=1), ["z₁", "distance of x̂ from x"]
    with drawing(460, 350) as (figure, axes):
        axes.set_xlabel(names[0])
        axes.set_ylabel(names[1])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        if latent > 1:
            axes.set_aspect("equal", adjustable="datalim")
        keys = _by_label(axes, plane, subject) if subject.labels is not None else _by_error(figure, axes, plane, subject)
        picture = svg(figure, "map", "map of the latent space")
    colour = "coloured by label" if subject.labels is not None else "coloured by the squared error of x̂"
    mean = " (the mean of q(z|x))" if subject.has_bound else ""
    caption = f"Codes of {len(codes):,} test examples{mean}, {colour}."
    if shares is not None:
        caption += (
            f" Two principal components of {latent} dimensions, which hold {sum(shares):.0%} of the codes' variance; what lies "
            "apart in the others may meet here."
        )
    how = "Each dot is the code of one test example: neighbours are alike to the model, and a gap parts what it tells apart."
    return Figured("map", "Latent map", "Map of the latent space", how, [Panel(picture)], caption, "single", keys)


def _principal(codes: Tensor) -> tuple[np.ndarray, list[float]]:
    centred = codes - codes.mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    shares = (values.square() / values.square().sum())[:2].tolist()
    plane = left[:, :2] * values[:2]
    # A component's sign is arbitrary: the longer tail points up, so that the same codes give the same map.
    plane = plane * torch.where(plane.pow(3).sum(0) < 0, -1.0, 1.0)
    return plane.numpy(), shares


def _by_label(axes: Axes, plane: np.ndarray, subject: Subject) -> tuple[Key, ...]:
    assert subject.labels is not None
    labels = subject.labels.numpy()
    kinds, counts = np.unique(labels, return_counts=True)
    own = kinds if len(kinds) <= len(LABELS) + 1 else np.sort(kinds[np.argsort(-counts, kind="stable")[: len(LABELS)]])
    colours = dict(zip(own.tolist(), [*LABELS, OTHER], strict=False))
    shades = np.array([colours.get(int(label), OTHER) for label in labels])
    axes.scatter(plane[:, 0], plane[:, 1], s=_dot(len(plane)), c=shades, alpha=0.75, linewidths=0, rasterized=True, zorder=3)
    keys = []
    for kind in own.tolist():
        name = subject.label_name(kind)
        keys.append(Key(colours[kind], name))
        if len(name) <= 10 and all(c.isprintable() and c < "ɐ" for c in name):  # what the font has
            middle = np.median(plane[labels == kind], axis=0)
            axes.text(
                middle[0],
                middle[1],
                name,
                ha="center",
                va="center",
                weight="bold",
                size=11,
                zorder=5,
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )
    if len(own) < len(kinds):
        keys.append(Key(OTHER, f"{len(kinds) - len(own)} others"))
    return tuple(keys)


def _by_error(figure: Figure, axes: Axes, plane: np.ndarray, subject: Subject) -> tuple[Key, ...]:
    error = subject.error.numpy()
    order = np.argsort(error, kind="stable")  # the worst on top
    low, high = np.quantile(error, [0.01, 0.99])
    dots = axes.scatter(
        plane[order, 0],
        plane[order, 1],
        s=_dot(len(plane)),
        c=error[order],
        cmap=ERROR_MAP,
        vmin=low,
        vmax=high,
        linewidths=0,
        rasterized=True,
        zorder=3,
    )
    bar = figure.colorbar(dots, ax=axes, label="squared error", shrink=0.7, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    return ()


def _dot(count: int) -> float:
    return 22.0 if count < 400 else 12.0 if count < 1500 else 6.0


def traversals(subject: Subject) -> Figured | None:
    """What decoding shows when one coordinate of the code moves."""
    if subject.pictures:
        return _plane(subject) if subject.model.variables == (1, 1) else _strips(subject)
    return _lines(subject)


def _plane(subject: Subject) -> Figured:
    where = range_of(subject)
    across = torch.linspace(0, 1, _GRID)
    first = where.low[0] + (where.high[0] - where.low[0]) * across
    second = (where.low[1] + (where.high[1] - where.low[1]) * across).flip(0)
    codes = torch.cartesian_prod(second, first).flip(1)  # rows go down in z₂, along a row z₁ grows
    sheet = tiled(subject.rgb(subject.decode(codes)), _GRID, side=64, gap=2)
    pairs = zip(("z₁", "z₂"), where.low.tolist(), where.high.tolist(), strict=True)
    ends = ", ".join(f"{name} from {low:.3g} to {high:.3g}".replace("-", "−") for name, low, high in pairs)
    how = "The plane of codes, decoded: read it beside the map above, whose axes it shares."
    caption = f"What the codes of a grid decode to: {ends}; z₁ grows to the right, z₂ upwards: {where.words}."
    panel = Panel(image(sheet, "decoded codes on a grid of the latent plane"))
    return Figured("traversals", "Traversals", "The latent plane, decoded", how, [panel], caption, "small")


def _strips(subject: Subject) -> Figured:
    found, chosen = walks(subject, _STEPS)
    panels = []
    for walk in found:
        sheet = tiled(subject.rgb(subject.decode(walk.codes)), len(walk.codes), side=96, gap=6)
        about = f"decoded codes along latent dimension {walk.variable + 1}"
        panels.append(Panel(image(sheet, about), coordinate(walk.variable), walk.worth))
    how = "Along a row one coordinate of the code moves and the others stay: what changes is what that coordinate stands for."
    caption = (
        f"One row for each latent dimension {chosen}, starting from the test example whose code is nearest to the mean code."
    )
    return Figured("traversals", "Traversals", "Traversals of the latent space", how, panels, caption, "strips")


def _lines(subject: Subject) -> Figured | None:
    found, chosen = walks(subject, 41)
    flat = subject.x.flatten(1)
    mean, spread = flat.mean(0), flat.std(0).clamp_min(1e-6)
    drawn = [(walk, (subject.decode(walk.codes).flatten(1) - mean) / spread) for walk in found]
    moved = torch.stack([decoded.amax(0) - decoded.amin(0) for _, decoded in drawn]).amax(0)[subject.columns]
    columns = sorted(subject.columns[i] for i in moved.argsort(descending=True, stable=True)[:_LINES].tolist())
    colours = dict(zip(columns, LABELS, strict=False))
    shown = torch.cat([decoded[:, columns] for _, decoded in drawn])
    low, high = float(shown.min()), float(shown.max())
    margin = 0.05 * (high - low) or 0.5
    panels = []
    for walk, decoded in drawn:
        with drawing(*panel_size(len(drawn), 0.75)) as (figure, axes):
            axes.axhline(0, color=RULE, linewidth=1)
            for column in columns:
                axes.plot(walk.positions.numpy(), decoded[:, column].numpy(), color=colours[column], linewidth=1.7)
            axes.axvline(walk.start, color=FAINT, linewidth=0.9, linestyle=(0, (2, 3)))
            axes.set_ylim(low - margin, high + margin)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
            axes.set_ylabel("standard deviations")
            about = f"decoded columns along latent dimension {walk.variable + 1}"
            panels.append(Panel(svg(figure, f"traversal-{walk.variable}", about), coordinate(walk.variable), walk.worth))
    how = "In each panel one coordinate of the code moves and the others stay: a steep line is a column that it drives."
    which = f"the {len(columns)} columns that move most" if len(columns) < flat.shape[1] else "all columns"
    caption = (
        f"Decoded x̂, {which}, in standard deviations from the mean of the test examples; one panel for each latent dimension "
        f"{chosen}. The dotted line marks the start, the test example whose code is nearest to the mean code."
    )
    keys = tuple(Key(colours[column], subject.column_name(column), "line") for column in columns)
    return Figured("traversals", "Traversals", "Traversals of the latent space", how, panels, caption, "grid", keys)
