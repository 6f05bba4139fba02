"""Pictures of examples: x beside x̂, and new ones drawn from the prior; images as they are, tables column by column."""

from __future__ import annotations

import numpy as np
import torch
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from xhat.report.style import AMBER, BLUE, GREY, INK, Figured, Key, Panel, drawing, image, panel_size, svg, tiled
from xhat.report.subject import Subject

_SAMPLES = 64
_CLASSES, _OF_CLASS = 12, 12  # rows of samples, and how many in each
_FEW = 12  # distinct values, up to which a column counts as discrete


def reconstructions(subject: Subject) -> Figured:
    """x beside x̂, with the corrupted x between them where the model has a corruption."""
    return _image_rows(subject) if subject.pictures else _column_scatters(subject)


def _image_rows(subject: Subject) -> Figured:
    x = subject.x[subject.shown]
    count = len(x)
    rows = [("x", x, "test examples")]
    source = x
    if subject.model.corruption is not None:
        source = subject.corrupted(x)
        rows.append(("x̃", source, "corrupted examples"))
    rows.append(("x̂", subject.reconstruct(source, subject.shown), "reconstructions"))
    panels = [Panel(image(tiled(subject.rgb(part), count), about), name) for name, part, about in rows]
    if subject.model.corruption is not None:
        how = "First the clean x, then what the encoder sees, then what comes back: the third row should look like the first."
        caption = f"{count} test examples: x, one draw of its corruption x̃, and the reconstruction x̂ from x̃."
    else:
        how = "The first row is x, the second what the model makes of its code: what differs is what the code does not hold."
        caption = f"{count} test examples x and their reconstructions x̂ from the mean of the code."
    if subject.labels is not None:
        caption += " The labels take turns."
    if subject.batch.observed is not None:
        caption += " Of x, values that were not observed are drawn as 0; x̂ is complete."
    return Figured("reconstruction", "Reconstructions", "Reconstructions", how, panels, caption, "strips")


def _column_scatters(subject: Subject) -> Figured:
    source = subject.x
    word = "x"
    back = subject.reconstructed
    if subject.model.corruption is not None:
        word = "the corrupted x"
        noisy = subject.corrupted(source)
        back = subject.reconstruct(noisy)
    x, x_hat = (subject.seen(part) for part in (source, back))
    panels = []
    for column in subject.columns:
        a, b = (part[:, column][~np.isnan(x[:, column])] for part in (x, x_hat))
        if not len(a):
            continue
        spread = float(np.square(a - a.mean()).sum())
        share = f"R² = {1 - float(np.square(a - b).sum()) / spread:.3f}" if spread > 0 else ""
        name = subject.column_name(column)
        picture = _scatter(
            a, b, panel_size(len(subject.columns), 0.9), f"reconstruction-{column}", f"{name}: x against its reconstruction"
        )
        panels.append(Panel(picture, name, share))
    how = (
        "Each dot is a test example: x to the right, x̂ upwards. The closer the dots to the line, the better that column is kept."
    )
    caption = (
        f"{len(x):,} test examples in the units of the data; x̂ is decoded from the mean of the code of {word}. R² is the "
        "share of the column's variance that x̂ explains." + subject.chosen_columns
    )
    return Figured("reconstruction", "Reconstructions", "Reconstructions", how, panels, caption, "grid")


def _scatter(x: np.ndarray, back: np.ndarray, size: tuple[float, float], name: str, about: str) -> Markup:
    with drawing(*size) as (figure, axes):
        low, high = _range(np.concatenate([x, back]))
        axes.plot([low, high], [low, high], color=INK, linewidth=0.9, zorder=1)
        shown = x
        values = np.unique(x)
        if 1 < len(values) <= _FEW:  # dots of a few values would hide each other
            shown = x + (torch.rand(len(x)).numpy() - 0.5) * 0.36 * np.diff(values).min()
        dot, alpha = (9, 0.5) if len(x) < 500 else (5, 0.3)
        axes.scatter(shown, back, s=dot, color=BLUE, alpha=alpha, linewidths=0, rasterized=True, zorder=3)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        _few_ticks(axes)
        axes.set_xlabel("x")
        axes.set_ylabel("x̂")
        return svg(figure, name, about)


def _range(values: np.ndarray) -> tuple[float, float]:
    """From the smallest to the largest but for one in a thousand, with a margin."""
    low, high = (float(bound) for bound in np.quantile(values, [0.001, 0.999]))
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _few_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))


def prior_samples(subject: Subject) -> Figured | None:
    """New examples: z from the prior, decoded."""
    if not subject.has_prior:
        return None
    if subject.batch.condition is not None:
        return _conditioned_samples(subject, subject.batch.condition)
    if subject.pictures:
        pictures = subject.rgb(subject.model.sample(_SAMPLES).cpu())
        panel = Panel(image(tiled(pictures, 8), f"{_SAMPLES} samples from the prior"))
        how = "Codes drawn from the prior and decoded: the closer they look to the data, the better the model has learnt its law."
        caption = f"{_SAMPLES} draws of z from the prior, not selected; shown is the mean of p(x|z)."
        return Figured("samples", "Samples", "Samples from the prior", how, [panel], caption, "small")
    drawn = subject.model.sample(max(len(subject.x), 2000), sample=True).cpu()
    return _column_histograms(subject, drawn)


def _conditioned_samples(subject: Subject, condition: Tensor) -> Figured:
    """New examples under the conditions of test examples: of pictures, a row for each class where the condition has classes."""
    if not subject.pictures:
        rows = condition[torch.arange(max(len(condition), 2000)) % len(condition)]
        return _column_histograms(subject, subject.model.sample(len(rows), sample=True, condition=rows).cpu())
    known = subject.model.conditions
    classes = next((field for field in known.fields if field.levels), None) if known is not None else None
    if known is None or classes is None or classes.levels is None:
        rows = condition[torch.arange(_SAMPLES) % len(condition)]
        pictures = subject.rgb(subject.model.sample(_SAMPLES, condition=rows).cpu())
        panels = [Panel(image(tiled(pictures, 8), f"{_SAMPLES} samples under the conditions of test examples"))]
    else:
        panels = []
        names = known.decode(condition)[classes.name]
        for name in classes.levels[:_CLASSES]:
            which = [i for i, held in enumerate(names) if held == name]
            if which:
                rows = condition[torch.tensor(which)[torch.arange(_OF_CLASS) % len(which)]]
                pictures = subject.rgb(subject.model.sample(_OF_CLASS, condition=rows).cpu())
                panels.append(Panel(image(tiled(pictures, _OF_CLASS), f"samples for {classes.name} {name}"), name))
    how = "Codes drawn from the prior and decoded under a condition: what was asked for is what should be seen."
    what = ", ".join(known.names) if known is not None else "the conditions of test examples"
    caption = f"Draws of z, not selected, under {what}; shown is the mean of p(x|z, c)."
    return Figured("samples", "Samples", "Samples under a condition", how, panels, caption, "strips")


def _column_histograms(subject: Subject, drawn: Tensor) -> Figured:
    x, new = subject.seen(subject.x), subject.units(drawn).flatten(1).double().numpy()
    panels = []
    for column in subject.columns:
        name, held = subject.column_name(column), x[:, column][~np.isnan(x[:, column])]
        if not len(held):
            continue
        picture = _histogram(
            held, new[:, column], panel_size(len(subject.columns), 0.68), f"samples-{column}", f"{name}: data and samples"
        )
        panels.append(Panel(picture, name))
    how = "Where the outline of the samples follows the data, the model has learnt how that column is distributed."
    caption = (
        f"{len(x):,} test examples against {len(new):,} examples drawn from the model: z from the prior, then x from p(x|z); "
        "in the units of the data, each histogram with area 1, tails in the outermost bins." + subject.chosen_columns
    )
    keys = (Key("#c3cad2", "data", "square"), Key(AMBER, "samples", "line"))
    return Figured("samples", "Samples", "Samples from the prior", how, panels, caption, "grid", keys)


def _histogram(x: np.ndarray, new: np.ndarray, size: tuple[float, float], name: str, about: str) -> Markup:
    with drawing(*size) as (figure, axes):
        bins = _bins(x, new).tolist()
        axes.hist(x.clip(bins[0], bins[-1]), bins=bins, density=True, color=GREY, alpha=0.5, linewidth=0)
        axes.hist(new.clip(bins[0], bins[-1]), bins=bins, density=True, color=AMBER, histtype="step", linewidth=1.7)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        return svg(figure, name, about)


def _bins(x: np.ndarray, new: np.ndarray) -> np.ndarray:
    values = np.unique(x)
    whole = bool((values == values.round()).all()) and values[-1] - values[0] <= 40
    if whole:
        return np.arange(values[0] - 0.5, values[-1] + 1)
    low = min(float(np.quantile(x, 0.002)), float(np.quantile(new, 0.005)))
    high = max(float(np.quantile(x, 0.998)), float(np.quantile(new, 0.995)))
    count = min(28, max(8, round(3 * len(x) ** (1 / 3))))
    return np.linspace(low, high if high > low else low + 1, count + 1)
