"""``benchmarks/tables.md``, from the figures that were kept."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks.tables.study import Asked, Study, Variant
from benchmarks.tables.work import RESULTS, beside_of, result_file

PAGE = RESULTS.parents[1] / "tables.md"

HEAD = """# Published tables, regenerated

`make tables` trains and measures what has no figures yet and writes this page; `make tables ROWS="one-layer --anew"` does one row
from the beginning. The figures lie in [tables/results](tables/results), one file a row; the rows themselves are in
[tables/studies.py](tables/studies.py). Rows marked *cpu* have a budget of minutes on two cores, with fewer epochs than the
publication: there the *differences* are what is asked for. Rows marked *full* follow the published schedule, which takes a GPU.

NLL is −log p(x) by importance sampling in nats, averaged over the test images: ± is its standard error over images, or with
several seeds the standard deviation over seeds. A difference's ± is that of the paired differences, image by image, and with
several seeds that of their mean over seeds as well.
Training minutes are as they were, with one thread each and often several runs beside each other on two cores. Alone on both, the
longest takes about 16 minutes (IWAE with two layers), beta-binomial pixels 9, the VampPrior's base 3, by their first epochs.
"""


def write(studies: dict[str, Study]) -> Path:
    """The page: for each row its figures, and what was asked of them."""
    parts = [HEAD]
    for study in studies.values():
        parts.append(_section(study))
    PAGE.write_text("\n".join(parts))
    return PAGE


def _section(study: Study) -> str:
    lines = [f"## {study.title}", "", f"`python -m benchmarks.tables {study.name}`", ""]
    lines += [f"- Model: {study.model}", f"- Data: {study.about_data}", f"- Setting: {study.setting}"]
    lines += [f"- Published: {study.source}", ""]
    held = {length: _held(study, length) for length in ("cpu", "full")}
    figures = list(dict.fromkeys(name for kept in held.values() for row in kept.values() for name in row["figures"]))
    lines.append("| | schedule | seeds |" + "".join(f" {figure} |" for figure in figures) + " training | published |")
    lines.append("| --- | --- | --- |" + " ---: |" * (len(figures) + 1) + " --- |")
    for length, kept in held.items():
        known = {variant.name for variant in study.variants}
        longer = [variant for variant in study.variants if variant.full is not variant.cpu]
        lengths = {_schedule(variant, length).partition(": ")[2] for variant in longer}
        if length == "full" and not kept:  # the published schedules, all of them
            if longer:
                lines.append(f"| all | full: {' or '.join(sorted(lengths))} | |" + " not run |" * len(figures) + " | as above |")
            continue
        for variant in study.variants:
            lines.append(_row(variant.name, _schedule(variant, length), kept, figures, variant.published))
        for name in dict.fromkeys(row["variant"] for row in kept.values()):
            if name not in known:
                lines.append(_row(name, f"{length}: afterwards", kept, figures, ""))
    lines.append("")
    if study.asked and held["cpu"]:
        lines += ["| asked (cpu) | measured | |", "| --- | ---: | --- |"]
        lines += [_verdict(asked, {**beside_of(study, "cpu"), **held["cpu"]}) for asked in study.asked]
        lines.append("")
    lines += [f"{note}\n" for note in study.notes]
    return "\n".join(lines)


def _schedule(variant: Variant, length: str) -> str:
    settings = variant.cpu if length == "cpu" else variant.full
    return f"{length}: {settings['epochs']} epochs" if "epochs" in settings else length


def _held(study: Study, length: str) -> dict[str, Any]:
    path = result_file(study, length)
    return json.loads(path.read_text()) if path.is_file() else {}


def _row(name: str, schedule: str, kept: dict[str, Any], figures: list[str], published: str) -> str:
    rows = [row for row in kept.values() if row["variant"] == name]
    if not rows:
        return f"| {name} | {schedule} | |" + " not run |" * len(figures) + f" | {published} |"
    cells = [_cell([row["figures"].get(figure) for row in rows]) for figure in figures]
    seconds = [row["training seconds"] for row in rows if row["training seconds"] is not None]
    took = f"{statistics.mean(seconds) / 60:.1f} min" if seconds else ""
    return f"| {name} | {schedule} | {len(rows)} |" + "".join(f" {cell} |" for cell in cells) + f" {took} | {published} |"


def _cell(values: list[list[float] | None]) -> str:
    held = [value for value in values if value is not None]
    if not held:
        return ""
    mean = statistics.mean(value for value, _ in held)
    spread = statistics.stdev(value for value, _ in held) if len(held) > 1 else held[0][1]
    number = f"{mean:.0f}" if spread == 0 and mean == round(mean) else f"{mean:.2f}" if abs(mean) >= 10 else f"{mean:.4f}"
    return number if not spread else f"{number} ± {spread:.{max(2, -math.floor(math.log10(spread)))}f}"


def _verdict(asked: Asked, kept: dict[str, Any]) -> str:
    seeds = sorted({row["seed"] for row in kept.values()})
    gains = [found for found in (_gain(asked, kept, seed) for seed in seeds) if found is not None]
    if not gains:
        return f"| {asked.text} | not run | |"
    gain, doubt = statistics.mean(value for value, _ in gains), max(doubt for _, doubt in gains)
    if len(gains) > 1:  # the images are the same for all seeds: their error does not shrink with the number of seeds
        doubt = math.hypot(doubt, statistics.stdev(value for value, _ in gains) / math.sqrt(len(gains)))
    short = max(0.0 if asked.least is None else asked.least - gain, 0.0 if asked.most is None else gain - asked.most)
    told = f"{gain:.3f}" + (f" ± {doubt:.3f}" if doubt else "")
    verdict = "met" if short <= 0 else "**missed**" if short > doubt else "**missed**, by less than the error"
    return f"| {asked.text} | {told} | {verdict} |"


def _gain(asked: Asked, kept: dict[str, Any], seed: int) -> tuple[float, float] | None:
    """How much better, positive is better for nats; the figure itself where nothing is compared."""
    own = kept.get(f"{asked.better} · seed {seed}")
    if own is None or asked.figure not in own["figures"]:
        return None
    if asked.than is None:
        return own["figures"][asked.figure][0], own["figures"][asked.figure][1]
    other = kept.get(f"{asked.than} · seed {seed}")
    if other is None:
        return None
    paired = own.get("paired", {}).get(asked.than, {}).get(asked.figure)
    if paired is not None:
        return paired[0], paired[1]
    more = own["figures"][asked.figure][0] - other["figures"][asked.figure][0]
    return (more if asked.figure == "active units" else -more), 0.0
