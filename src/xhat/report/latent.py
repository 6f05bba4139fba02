"""Figures of the latent space: a map of the codes, and what moving one coordinate does."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.distributions import Normal

from xhat.models.base import quiet
from xhat.report.style import ERROR_MAP, FAINT, LABELS, OTHER, RULE, Figured, Key, Panel, drawing, image, panel_size, svg, tiled
from xhat.report.subject import Subject

_STEPS = 11  # pictures in a row of the traversals
_GRID = 13
_DIMENSIONS = 8
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
    mean = " (the mean of q(z|x))" if subject.has_prior else ""
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


class _Range(NamedTuple):
    """Where traversals go in each latent dimension, ``(latent,)`` each, and how to say it."""

    low: Tensor
    high: Tensor
    words: str


def _range(subject: Subject) -> _Range:
    if subject.has_prior:
        with quiet(subject.model):
            prior = subject.model.prior()
        base = getattr(prior, "base_dist", prior)
        if isinstance(base, Normal):
            mean, spread = prior.mean.flatten().cpu(), prior.stddev.flatten().cpu()
            return _Range(mean - 3 * spread, mean + 3 * spread, "from −3 to 3 standard deviations of the prior")
    low, high = torch.quantile(subject.codes, torch.tensor([0.01, 0.99]), dim=0)
    return _Range(low, high, "over the middle 98 % of the codes")


def traversals(subject: Subject) -> Figured | None:
    """What decoding shows when one coordinate of the code moves."""
    if subject.pictures:
        return _plane(subject) if subject.codes.shape[1] == 2 else _strips(subject)
    return _lines(subject)


def _plane(subject: Subject) -> Figured:
    where = _range(subject)
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


def _informative(subject: Subject) -> list[tuple[int, str]]:
    """Up to eight latent dimensions, the most telling first, with how much each tells."""
    kl = subject.evaluation.kl_per_dimension
    if kl and len(kl) == subject.codes.shape[1]:
        order = np.argsort(-np.array(kl), kind="stable")[:_DIMENSIONS]
        return [(int(index), f"{kl[index]:.2f} nats") for index in order]
    variance = subject.codes.double().var(0, correction=0)
    order = variance.argsort(descending=True, stable=True)[:_DIMENSIONS].numpy()
    return [(int(index), f"variance {float(variance[index]):.3g}") for index in order]


def _walk(subject: Subject, where: _Range, index: int, steps: int) -> tuple[Tensor, Tensor]:
    """The positions of one coordinate, and the codes that have it there."""
    positions = torch.linspace(float(where.low[index]), float(where.high[index]), steps)
    codes = subject.typical.repeat(steps, 1)
    codes[:, index] = positions
    return positions, codes


def _how_chosen(subject: Subject, chosen: list[tuple[int, str]]) -> str:
    latent = subject.codes.shape[1]
    by = "KL" if subject.evaluation.kl_per_dimension else "variance of the codes"
    return (
        f"all dimensions, by {by}" if len(chosen) == latent else f"the {len(chosen)} of {latent} dimensions with the largest {by}"
    )


def _strips(subject: Subject) -> Figured:
    where, chosen = _range(subject), _informative(subject)
    panels = []
    for index, worth in chosen:
        _, codes = _walk(subject, where, index, _STEPS)
        sheet = tiled(subject.rgb(subject.decode(codes)), _STEPS, side=96, gap=6)
        about = f"decoded codes along latent dimension {index + 1}"
        panels.append(Panel(image(sheet, about), _coordinate(index), worth))
    how = "Along a row one coordinate of the code moves and the others stay: what changes is what that coordinate stands for."
    caption = (
        f"One row for each latent dimension ({_how_chosen(subject, chosen)}), moved {where.words}, starting from the test "
        "example whose code is nearest to the mean code."
    )
    return Figured("traversals", "Traversals", "Traversals of the latent space", how, panels, caption, "strips")


def _lines(subject: Subject) -> Figured | None:
    where, chosen = _range(subject), _informative(subject)
    flat = subject.x.flatten(1)
    mean, spread = flat.mean(0), flat.std(0).clamp_min(1e-6)
    walks = []
    for index, worth in chosen:
        positions, codes = _walk(subject, where, index, 41)
        walks.append((index, worth, positions, (subject.decode(codes).flatten(1) - mean) / spread))
    moved = torch.stack([decoded.amax(0) - decoded.amin(0) for *_, decoded in walks]).amax(0)[subject.columns]
    columns = sorted(subject.columns[i] for i in moved.argsort(descending=True, stable=True)[:_LINES].tolist())
    colours = dict(zip(columns, LABELS, strict=False))
    shown = torch.cat([decoded[:, columns] for *_, decoded in walks])
    low, high = float(shown.min()), float(shown.max())
    margin = 0.05 * (high - low) or 0.5
    panels = []
    for index, worth, positions, decoded in walks:
        with drawing(*panel_size(len(walks), 0.75)) as (figure, axes):
            axes.axhline(0, color=RULE, linewidth=1)
            for column in columns:
                axes.plot(positions.numpy(), decoded[:, column].numpy(), color=colours[column], linewidth=1.7)
            axes.axvline(float(subject.typical[index]), color=FAINT, linewidth=0.9, linestyle=(0, (2, 3)))
            axes.set_ylim(low - margin, high + margin)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
            axes.set_ylabel("standard deviations")
            about = f"decoded columns along latent dimension {index + 1}"
            panels.append(Panel(svg(figure, f"traversal-{index}", about), _coordinate(index), worth))
    how = "In each panel one coordinate of the code moves and the others stay: a steep line is a column that it drives."
    which = f"the {len(columns)} columns that move most" if len(columns) < flat.shape[1] else "all columns"
    caption = (
        f"Decoded x̂, {which}, in standard deviations from the mean of the test examples; {_how_chosen(subject, chosen)}, moved "
        f"{where.words}. The dotted line marks the start, the test example whose code is nearest to the mean code."
    )
    keys = tuple(Key(colours[column], subject.column_name(column), "line") for column in columns)
    return Figured("traversals", "Traversals", "Traversals of the latent space", how, panels, caption, "grid", keys)


def _coordinate(index: int) -> str:
    return "z" + str(index + 1).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
