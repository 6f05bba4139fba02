"""The figures and the pictures of docs/choosing.md, on the bundled digits.

    python benchmarks/choosing.py                       # all of it: some minutes
    python benchmarks/choosing.py collapse anatomy      # some parts

Prints the tables of the page as Markdown and writes its pictures to docs/choosing. Every run is short and has one seed unless
it says otherwise: what is to be seen is what a choice does, not how far it can be driven.
"""

from __future__ import annotations

import argparse
import io
import math
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave
from torch import Tensor

import xhat
from xhat.evaluation.diagnostics import COLLAPSED
from xhat.evaluation.result import Measure, measure
from xhat.gradients.reduction import Blend, LogMeanExp, Renyi
from xhat.models.base import quiet
from xhat.report import anatomy as report
from xhat.report.style import AMBER, BLUE, FAINT, GREY, INK, LABELS, drawing
from xhat.report.subject import Subject

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "choosing"
LEVELS, LATENT, HIDDEN = 17, 16, [128]
GREY_LEVELS = {"likelihood": "discretised-normal", "levels": LEVELS}
DEEP = {"hidden": [128] * 4}
DPI = 130


def data() -> xhat.Data:
    return xhat.load_data("digits", seed=0)


def trained(epochs: int, recipe: str = "vae", **options: Any) -> xhat.Model:
    """A model of grey levels, with small networks and the usual settings unless the options say otherwise."""
    digits = data()
    sizes = {} if recipe == "hierarchical-vae" else {"latent": LATENT}
    torch.manual_seed(0)
    model = xhat.build(recipe, shape=digits.shape, **{**sizes, "hidden": HIDDEN, **GREY_LEVELS, **options})
    xhat.fit(model, digits.train, digits.valid, epochs=epochs, batch_size=64, seed=0, engine="eager", progress=False)
    return model


def told(value: Measure, places: int = 2) -> str:
    return f"{value.value:.{places}f} ± {value.stderr:.{places}f}".replace("-", "−")


def bits(nats: float, size: int) -> float:
    return -nats / (math.log(2) * size)


def save(figure: Figure, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURES / f"{name}.png", dpi=DPI, facecolor="white", pil_kwargs={"optimize": True})


# 1. Likelihoods


def likelihoods() -> None:
    """Bits per dimension of honest mass functions, and what is wrong with the others."""
    digits, seeds = data(), 3
    size = math.prod(digits.shape)
    train, test = ((part.tensor() * (LEVELS - 1)).round().long().flatten(1) for part in (digits.train, digits.test))
    counts = torch.stack([(train == level).sum(0) for level in range(LEVELS)]).double() + 1
    alone = float((counts / counts.sum(0)).log().gather(0, test).sum(1).mean())
    rows: dict[str, list[float]] = {}
    print(
        f"| likelihood | numbers for a pixel | bits per dimension, mean of {seeds} seeds (smallest to largest) |\n|---|---:|---|"
    )
    laws: list[tuple[str, dict[str, Any]]] = [
        ("categorical", {}),
        ("beta-binomial", {}),
        ("discretised-normal", {}),
        ("discretised-normal", {"per": "network"}),
        ("logistic-mixture", {}),
    ]
    for law, options in laws:

        def make(seed: int, law: str = law, options: dict[str, Any] = options) -> xhat.Model:
            torch.manual_seed(seed)
            return xhat.build("vae", shape=digits.shape, latent=LATENT, hidden=HIDDEN, likelihood=law, levels=LEVELS, **options)

        many = xhat.fit_many(make, digits.train, digits.valid, seeds=seeds, epochs=100, batch_size=64)
        found = [
            bits(float(xhat.log_likelihood(model, digits.test.tensor(), samples=200).log_px.mean()), size)
            for model in many.models
        ]
        own = ", own σ" if options else ""
        numbers = many.models[0].likelihood.head.linear.out_features / size
        rows[law + own] = found
        print(f"| `{law}`{own} | {numbers:g} | {np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f}) |", flush=True)
    print(f"| each pixel by itself, no code | | {bits(alone, size):.3f} |")
    print(f"| all levels equally likely | | {math.log2(LEVELS):.3f} |")
    _draw_likelihoods(rows, bits(alone, size))

    print("\n| smallest σ allowed | log density of the test digits, nats | the same as 'bits per dimension' |\n|---:|---:|---:|")
    for minimum in (1e-1, 1e-2, 1e-3, 1e-4):
        model = trained(60, likelihood="normal", levels=None, per="dimension", minimum=minimum)
        value = measure(xhat.log_likelihood(model, digits.test.tensor(), samples=200).log_px)
        print(f"| {minimum:g} | {told(value)} | {bits(value.value, size):.3f} |".replace("-", "−"), flush=True)

    x = torch.linspace(0, 1, LEVELS, dtype=torch.float64)
    for p in (0.01, 0.1, 0.5):
        print(f"Bernoulli formula, p = {p}: its sum over the {LEVELS} levels is {float((p**x * (1 - p) ** (1 - x)).sum()):.2f}")


def _draw_likelihoods(rows: dict[str, list[float]], alone: float) -> None:
    with drawing(560, 205) as (figure, axes):
        for place, found in enumerate(rows.values()):
            axes.plot(found, [place] * len(found), "o", color=BLUE, markersize=6, alpha=0.8, zorder=3)
            axes.text(max(found) + 0.012, place, f"{np.mean(found):.2f}", va="center", color=INK)
        axes.axvline(alone, color=GREY, linestyle=(0, (4, 3)), linewidth=1.2)
        label = f"each pixel by itself,\nno code: {alone:.2f}"
        axes.text(alone - 0.008, len(rows) - 1.5, label, ha="right", va="center", color=FAINT, fontsize=9.5)
        axes.set(
            xlim=(1.85, alone + 0.03), ylim=(len(rows) - 0.5, -0.5), xlabel="bits per dimension, test digits (less is better)"
        )
        axes.set_yticks(range(len(rows)), list(rows))
        axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=10.5)
        axes.spines["left"].set_visible(False)
        save(figure, "likelihoods")


# 2. Bounds


@torch.no_grad()
def log_weights(model: xhat.Model, x: Tensor, count: int) -> Tensor:
    """log p(x, z) - log q(z|x) at draws from q, ``(count, B)``."""
    with quiet(model):
        q, p = model.posterior(x), model.prior()
        parts = []
        for _ in range(count // 256):
            z = q.sample((256,))
            parts.append((model.likelihood(z).log_prob(x) + p.log_prob(z) - q.log_prob(z)).double())
    return torch.cat(parts)


def bounds() -> None:
    """Bounds of one linear Normal model, whose log p(x) is known, against the number of draws."""
    digits, count = data(), 4096
    x = digits.test.tensor().flatten(1)
    torch.manual_seed(0)
    model = xhat.build("vae", shape=(64,), latent=8, hidden=[], likelihood="normal")
    xhat.fit(model, digits.train.tensor().flatten(1), epochs=15, lr=0.01, seed=0, engine="eager", progress=False)
    exact = float(xhat.log_likelihood(model, x, method="exact").log_px.mean())
    log_w = log_weights(model, x, count)
    kinds = {
        "elbo": Blend(1.0),
        "iwae": LogMeanExp(),
        "ciwae, share ½": Blend(0.5),
        "renyi, α = ½": Renyi(0.5),
        "renyi, α = −1": Renyi(-1.0),
    }
    draws = [4**i for i in range(7)]
    print(f"exact log p(x) {exact:.3f} nats; below, each bound minus the exact value\n")
    print(f"| bound | {' | '.join(f'K = {k}' for k in draws)} |\n|---|{'---:|' * len(draws)}")
    curves = {}
    for name, reduction in kinds.items():
        curves[name] = [float(reduction(log_w.reshape(count // k, k, -1).transpose(0, 1)).mean()) - exact for k in draws]
        print(f"| {name} | {' | '.join(f'{value:+.3f}' for value in curves[name])} |".replace("-", "−"), flush=True)
    annealed, leapfrog, chains = [], 5, 16
    for steps in (2, 5, 15, 50):
        found = xhat.log_likelihood(model, x, samples=chains, method="annealed", steps=steps, leapfrog=leapfrog)
        off = Measure(float(found.log_px.mean()) - exact, float(found.stderr.square().sum().sqrt()) / len(x))
        annealed.append((chains * ((steps - 1) * (leapfrog + 2) + 1), off))
        print(f"annealed, {chains} chains, {steps} steps: {annealed[-1][0]} decodings, {told(off, 3)}", flush=True)
    _draw_bounds(draws, curves, annealed)


def _draw_bounds(draws: list[int], curves: dict[str, list[float]], annealed: list[tuple[int, Measure]]) -> None:
    with drawing(580, 320) as (figure, axes):
        axes.axhline(0, color=INK, linewidth=1.4)
        axes.text(1, 0.04, "exact log p(x)", color=INK, va="bottom")
        colours = dict(zip(curves, (GREY, BLUE, LABELS[1], LABELS[3], AMBER), strict=True))
        for name, values in reversed(curves.items()):
            axes.plot(draws, values, "o-", color=colours[name], markersize=4, label=name)
        costs, found = zip(*annealed, strict=True)
        values, errors = [each.value for each in found], [each.stderr for each in found]
        axes.errorbar(
            costs, values, errors, fmt="s--", color=LABELS[5], markersize=4.5, linewidth=1.4, label="annealed, 16 chains"
        )
        axes.set(
            xscale="log", ylabel="nats above log p(x)", xlabel="decodings of each example: K, or all the moves of the chains"
        )
        axes.set_xticks(draws, [f"{k:,}" for k in draws])
        axes.minorticks_off()
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, labelcolor=INK)
        save(figure, "bounds")


def objectives() -> None:
    """The same model trained on different objectives: what training shows, and what is to be reported."""
    x = data().test.tensor()
    print("\n| objective | −loss on the test digits | ELBO | log p(x), K = 500 | active |\n|---|---:|---:|---:|---:|")
    several = {"samples": 8}
    rows: list[tuple[str, dict[str, Any]]] = [
        ("`elbo`", {}),
        ("`elbo`, `beta=4`", {"beta": 4.0}),
        ("`elbo`, `free_bits=0.5`", {"free_bits": 0.5}),
        ("`elbo`, `capacity=20`", {"capacity": 20.0}),
        ("`iwae`, K = 8", {"objective": "iwae", **several}),
        ("`iwae`, K = 8, `dreg`", {"objective": "iwae", "gradient": "dreg", **several}),
        ("`miwae`, 2 × 4", {"objective": "miwae", "groups": 2, "samples": 4}),
        ("`piwae`, 2 × 4", {"objective": "piwae", "groups": 2, "samples": 4}),
        ("`ciwae`, share ½", {"objective": "ciwae", "share": 0.5, **several}),
        ("`renyi`, α = −1", {"objective": "renyi", "alpha": -1.0, **several}),
        ("`tc`, β = 6", {"objective": "tc", "beta": 6.0}),
        ("`info`, λ = 100", {"objective": "info", "alpha": 0.0, "mmd_weight": 100.0}),
    ]
    for name, options in rows:
        model = trained(60, **options)
        torch.manual_seed(1)
        with torch.no_grad():
            loss = float(torch.stack([model.loss(x).mean() for _ in range(50)]).mean())
        found = xhat.evaluate(model, x, samples=500)
        figures = f"{-loss:.2f} | {found.elbo.value:.2f} | {found.log_likelihood.value:.2f} | {found.active_units}"
        print(f"| {name} | {figures} |".replace("-", "−"), flush=True)


# 3. Posteriors and priors


def posteriors() -> None:
    """Log p(x) with richer posteriors and priors, each beside the plain model on the same test examples."""
    digits = data()
    x = digits.test.tensor()
    base = trained(60)
    models: dict[str, xhat.Model] = {
        "Normal, standard prior": base,
        '`posterior="multivariate-normal"`': trained(60, posterior="multivariate-normal"),
        '`posterior="iaf"`': trained(60, posterior="iaf"),
        '`prior="mixture"`, 10': trained(60, prior="mixture", components=10),
        '`prior="vamp"`, 100': trained(60, prior="vamp", components=100),
        '`prior="flow"`': trained(60, prior="flow"),
        "two layers, bottom-up": trained(60, "hierarchical-vae", latents=(12, 4)),
        "two layers, ladder": trained(60, "hierarchical-vae", latents=(12, 4), direction="ladder"),
    }
    for kind in ("mixture", "flow"):
        models[f'first row, then `fit_prior(…, "{kind}")`'] = xhat.fit_prior(base, digits.train, kind, valid=digits.valid)
    ladder = {"latents": (12, 4), "direction": "ladder", "beta_warmup": 30.0}
    models["two layers, ladder, `beta_warmup=30`"] = trained(60, "hierarchical-vae", **ladder)
    torch.manual_seed(1)
    first = torch.zeros(0)
    print("\n| model | weights | ELBO | log p(x), K = 1000 | more than the first row |\n|---|---:|---:|---:|---:|")
    for name, model in models.items():
        with torch.no_grad():
            elbo = float(model.elbo(x, samples=100).mean())
        log_px = xhat.log_likelihood(model, x, samples=1000).log_px
        if model is base:
            first = log_px
        more = "" if model is base else told(measure(log_px - first))
        weights = sum(p.numel() for p in model.parameters())
        print(f"| {name} |" + f" {weights:,} | {elbo:.2f} | {float(log_px.mean()):.2f} | {more} |".replace("-", "−"), flush=True)


# 4. Collapse


def collapse() -> None:
    """A network that is too deep uses two dimensions of sixteen; what wakes the others."""
    digits = data()
    rows: list[tuple[str, dict[str, Any]]] = [
        ("four hidden layers", DEEP),
        ("… `beta_warmup=40`", {**DEEP, "beta_warmup": 40.0}),
        ("… `free_bits=0.25`", {**DEEP, "free_bits": 0.25}),
        ("… `capacity=14`", {**DEEP, "capacity": 14.0}),
        ('… `objective="iwae"`, `dreg`', {**DEEP, "objective": "iwae", "gradient": "dreg", "samples": 8}),
        ("one hidden layer", {}),
        ("one hidden layer, Normal, `scale=1`", {"likelihood": "normal", "levels": None, "scale": 1.0}),
        ("one hidden layer, Normal, σ learned", {"likelihood": "normal", "levels": None}),
    ]
    shown = {0: "four hidden layers", 2: "four hidden layers, free bits", 4: "four hidden layers, IWAE", 5: "one hidden layer"}
    most = f"{math.log(len(digits.test)):.2f}"
    print(f"\n| run | KL | dimensions above {COLLAPSED:g} nats | active | I(x; z), at most {most} | ELBO | log p(x) |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    ranked: dict[str, list[float]] = {}
    for place, (name, options) in enumerate(rows):
        found = xhat.evaluate(trained(80, **options), digits.test, samples=500)
        each = sorted(found.kl_per_dimension or (), reverse=True)
        alive = sum(kl >= COLLAPSED for kl in each)
        discrete = options.get("likelihood") != "normal"
        figures = [
            f"{found.kl.value:.2f}",
            f"{alive} of {LATENT}",
            f"{found.active_units}",
            f"{found.mutual_information.value:.2f}",
        ]
        figures += [f"{found.elbo.value:.2f}", f"{found.log_likelihood.value:.2f}"] if discrete else ["a density", ""]
        print(f"| {name} | {' | '.join(figures)} |".replace("-", "−"), flush=True)
        if place in shown:
            ranked[f"{shown[place]}\nlog p(x) {found.log_likelihood.value:.1f}".replace("-", "−")] = each
    _draw_collapse(ranked)


def _draw_collapse(ranked: dict[str, list[float]]) -> None:
    with drawing(600, 360) as (figure, _):
        figure.clear()
        grid = figure.subplots(2, 2, sharex=True, sharey=True)
        for axes, (name, each) in zip(grid.flat, ranked.items(), strict=True):
            kl, place = np.array(each), np.arange(1, len(each) + 1)
            dead = kl < COLLAPSED
            axes.bar(place[~dead], kl[~dead], color=BLUE, width=0.72)
            axes.plot(place[dead], np.full(int(dead.sum()), 0.08), "x", color=AMBER, markersize=5, markeredgewidth=1.4)
            axes.set_title(name, fontsize=10.5, color=INK, loc="left")
            axes.grid(axis="x", visible=False)
            axes.set_xticks([1, 4, 8, 12, 16])
        for axes in grid[1]:
            axes.set_xlabel("latent dimension, by KL")
        for axes in grid[:, 0]:
            axes.set_ylabel("nats of KL")
        save(figure, "collapse")


# 5. Reading an evaluation


def anatomy() -> None:
    """An evaluation with all its parts, annealing, the sandwich, and the report's own pictures of it."""
    digits = data()
    model = trained(100)
    found = xhat.evaluate(model, digits.test, samples=500, train=digits.train, refine_steps=200)
    print(f"\n{found}\n")
    for name, examples in (("test", digits.test), ("training", digits.train)):
        parts = xhat.anatomy(model, examples)
        shown = (
            f"I(x; z) {told(parts.mutual_information)} of at most {parts.ceiling:.2f}, KL(q(z) ‖ p(z)) {told(parts.marginal_kl)}"
        )
        print(f"{parts.examples} {name} digits: {shown}", flush=True)
    x = digits.test.tensor()
    torch.manual_seed(1)
    for samples in (10, 100, 1000, 10_000):
        each = xhat.log_likelihood(model, x, samples=samples)
        print(
            f"importance, K = {samples}: {told(measure(each.log_px))}, effective sample size {float(each.ess.mean()):.1f}",
            flush=True,
        )
    each = xhat.log_likelihood(model, x, samples=8, method="annealed", steps=50, leapfrog=5)
    print(f"annealed, 8 chains, 50 steps: {told(measure(each.log_px))}\n", flush=True)
    print(xhat.sandwich(model, examples=100, chains=8, steps=50, leapfrog=5, samples=500))
    _draw_anatomy(Subject(model, digits, found))


def _draw_anatomy(subject: Subject) -> None:
    """The report's figures, kept as pixels on their way into the page, one under the other."""
    kept: list[np.ndarray] = []

    def keep(figure: Figure, name: str, about: str) -> Markup:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
        kept.append(imread(io.BytesIO(buffer.getvalue()))[..., :3])
        return Markup()

    with mock.patch.object(report, "svg", keep):
        report.bound_parts(subject)
        report.kl_bars(subject)
    wide = max(pixels.shape[1] for pixels in kept)
    sheet = [np.pad(pixels, ((0, 24), (0, wide - pixels.shape[1]), (0, 0)), constant_values=1.0) for pixels in kept]
    PICTURES.mkdir(parents=True, exist_ok=True)
    imsave(PICTURES / "anatomy.png", np.concatenate(sheet).clip(0, 1), pil_kwargs={"optimize": True})


PARTS = {part.__name__: part for part in (likelihoods, bounds, objectives, posteriors, collapse, anatomy)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all unless given")
    chosen = parser.parse_args().parts or list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]}: they are {', '.join(PARTS)}")
    for name in chosen:
        start = time.process_time()
        print(f"## {name}\n", flush=True)
        PARTS[name]()
        print(f"\n({time.process_time() - start:.0f} s of processor)\n", flush=True)


if __name__ == "__main__":
    main()
