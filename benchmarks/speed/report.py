"""``benchmarks/speed.md``, written from ``speed.json`` and the hand-written ``speed/notes.toml``."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed import pictures
from benchmarks.speed.dataset import ROOT
from benchmarks.speed.rows import GPU_EPOCHS, GPU_ROWS, GPU_SECONDS, ROWS, Row
from benchmarks.speed.sizes import AXES
from benchmarks.speed.start import STARTS
from benchmarks.speed.table import CONTENDERS
from benchmarks.speed.verdicts import Verdict, break_even, ours_of, ran, ratio, setup, verdicts

FOLDER = ROOT / "benchmarks"
NOTES = FOLDER / "speed" / "notes.toml"
RESULTS, PAGE = "speed.json", "speed.md"
BARS, CURVES = "speed/steps.png", "speed/sizes.png"

CONSTANT = 0.5 * math.log(2 * math.pi) * ROWS["conv"].task.features  # of the pictures' likelihood

INTRODUCTION = """\
# How fast xhat trains

Time of one training step, beside what else one would use: same networks, same batch, same data, Adam with a rate of 0.001.
`make bench` measures everything anew, on the machine where it runs, and writes this page; the raw rounds are in
[speed.json](speed.json).
"""

METHOD = """\
## How it is measured

- **What a step costs** is the wall clock of whole epochs divided by their steps: fetching and shuffling the data, the loss as a
  number where the library reports one, the progress that it shows. What comes before (imports, compiling, the first epoch) is not
  in it but in a column of its own: *set-up* is what the first epoch took beyond a later one, with every compiler's cache empty.
- **Rounds** are interleaved: each contender lives in a process of its own, one runs at a time, by turns that rotate, each round
  at least one epoch. Medians, with the smallest and the largest round. A *ratio* is the median over rounds of their time divided
  by xhat's in the same round, so that a slow minute of the machine hits both.
- **The same work**: all contenders train the same number of parameters (the column says so), the PyTorch ones with networks of
  the very same modules, where one product makes the posterior's mean and scale. The last column is the mean loss an example in
  the last epoch: whoever saved work would show there. It differs a little because initial weights do and because xhat's
  posterior has its scale by softplus where the others have a log variance; and a Normal likelihood's constant, which only xhat
  counts, is {constant:,.0f} nats for 64×64×3 numbers.
- **The products alone** are the matrix products of a step (where there are convolutions, these too), each on operands that lie
  ready: forward, for the weights' gradient, and for the gradient of every input but the data. A share of it is the limit's time
  divided by xhat's, the quicker library's.
- **Threads**: every contender has the same number and is kept on as many cores.

| contender | how it is used |
|---|---|
"""


def milliseconds(seconds: float) -> str:
    """Three digits, in the unit that suits."""
    return f"{seconds * 1e6:.3g} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def span(seconds: list[float]) -> str:
    """Smallest and largest round."""
    scale, unit = (1e6, "µs") if median(seconds) < 1e-3 else (1e3, "ms")
    return f"{min(seconds) * scale:.3g} – {max(seconds) * scale:.3g} {unit}"


def table(header: list[str], rows: list[list[str]], right: int = 1) -> str:
    """A table in Markdown; columns from ``right`` on are aligned to the right."""
    rule = ["---" if index < right else "---:" for index in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)) + "\n"


def row_table(row: Row, results: dict[str, Any]) -> str:
    """Every contender of a row."""
    ours = ours_of(row, results)
    lines = []
    for name in row.entrants:
        found, label = results.get(name, {"failed": "not measured"}), CONTENDERS[name].label
        if not ran(results, name):
            lines.append([label, f"did not run: {found.get('failed', 'no rounds')}", "", "", "", "", ""])
            continue
        quotient = "1" if name == ours else "" if ours is None else f"{ratio(found['seconds'], results[ours]['seconds']):.2f}"
        parameters, loss = found["parameters"], found["loss"]
        lines.append(
            [
                f"**{label}**" if name == ours else label,
                milliseconds(median(found["seconds"])),
                span(found["seconds"]),
                quotient,
                "" if parameters is None else f"{setup(found):.1f} s",
                "" if parameters is None else f"{parameters:,}",
                "" if loss is None else f"{loss:.1f}",
            ]
        )
    return table(["", "a step, median", "all rounds", "time / xhat's", "set-up", "parameters", "last loss"], lines)


def target_table(judged: list[tuple[str, Verdict]]) -> str:
    return table(["", "asked", "measured", ""], [[name, v.asked, v.measured, str(v)] for name, v in judged], right=4)


def note(notes: dict[str, Any], name: str, missed: bool) -> str:
    """What the profile says, from the hand-written file; where a target is missed without a word, that is said."""
    text = notes.get(name, {}).get("profile", "").strip()
    if text:
        return f"\n{text}\n"
    return "\nA target is missed here, and no profile has explained it yet.\n" if missed else ""


def section(name: str, row: Row, results: dict[str, Any], notes: dict[str, Any]) -> str:
    judged = verdicts(row, results)
    rounds = max((len(found.get("seconds", [])) for found in results.values()), default=0)
    text = f"## {row.title}\n\n{row.task.described()}; {row.task.examples:,} examples; {rounds} rounds.\n\n"
    text += row_table(row, results)
    steps = break_even(row, results)
    if steps is not None:
        epoch = row.task.examples / row.task.batch
        text += f"\nCompiling has paid for itself after {steps:,.0f} steps ({steps / epoch:.1f} epochs of these data).\n"
    text += "\n" + target_table([("", v) for v in judged]).replace("|  | ", "| ").replace("| --- | ", "| ", 1)
    return text + note(notes, name, any(v.met is False for v in judged)) + "\n"


def sizes_section(sizes: dict[str, Any], notes: dict[str, Any]) -> str:
    """The curves, in a picture and in figures."""
    text = "## Cost against size\n\n"
    text += f"![Microseconds an example against hidden units, batch and rows of data]({CURVES})\n\n"
    text += "Lines are medians, bands all rounds. Whole epochs, so shuffling and fetching are in it.\n"
    for name, axis in AXES.items():
        text += f"\n{axis.title}, µs an example:\n\n"
        lines = []
        for contender, found in sizes[name].items():
            cells = [found.get(str(size), {}).get("seconds") for size in axis.tasks]
            lines.append([CONTENDERS[contender].label, *("" if not c else f"{median(c) * 1e6:.3g}" for c in cells)])
        text += table([axis.label, *(f"{size:,}" for size in axis.tasks)], lines)
        text += note(notes, name, False)
    return text + "\n"


def start_verdict(name: str, start: dict[str, Any]) -> Verdict:
    """A start against its target."""
    most, found = STARTS[name].most, start[name]
    asked = "" if most is None else f"at most {most:g} s"
    if "failed" in found:
        return Verdict(asked, f"failed: {found['failed']}", None)
    value = median(found["seconds"])
    measured = f"{value:.2f} s ({min(found['seconds']):.2f} – {max(found['seconds']):.2f})"
    return Verdict(asked, measured, most is None or value <= most, 0 if most is None else value / most - 1)


def start_section(start: dict[str, Any], notes: dict[str, Any]) -> str:
    judged = [(started.title, start_verdict(name, start)) for name, started in STARTS.items() if name in start]
    lines = [[title, v.asked, v.measured, str(v) if v.asked else ""] for title, v in judged]
    text = "## Start\n\nFresh processes, wall clock from the call to its end.\n\n"
    return text + table(["", "asked", "measured", ""], lines, right=4) + note(notes, "start", False) + "\n"


def gpu_section(results: dict[str, Any], notes: dict[str, Any]) -> str:
    gpu = results["machine"]["gpu"]
    if gpu is None:
        asked = [[row.title, v.asked, "not run: no GPU here"] for row in GPU_ROWS.values() for v in verdicts(row, {})]
        asked.append([f"{GPU_EPOCHS} epochs of the digits", f"below {GPU_SECONDS:.0f} s", "not run: no GPU here"])
        return "## One GPU\n\n" + table(["", "asked", "measured"], asked, right=3) + note(notes, "gpu", False) + "\n"
    text = "".join(section(name, row, results["rows"][name], notes) for name, row in GPU_ROWS.items() if name in results["rows"])
    seconds = results.get("gpu_epochs")
    if seconds is not None:
        text += f"{GPU_EPOCHS} epochs of the digits, compiling included: {seconds:.1f} s, asked below {GPU_SECONDS:.0f} s.\n\n"
    return text


def machine_line(results: dict[str, Any]) -> str:
    m = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    speaks = f" ({', '.join(m['instructions'])})" if m["instructions"] else ""
    gpu = f", {m['gpu']}" if m["gpu"] else ", no GPU"
    return (
        f"- Machine: {m['processor']}{speaks}, {m['threads']} of {m['cores']} cores, {m['memory']}{gpu}; {m['system']}\n"
        f"- Libraries: {versions}\n- Data: {results['digits']}; pictures of 64×64×3 are noise\n\n"
    )


def page(results: dict[str, Any], notes: dict[str, Any]) -> str:
    """The whole page."""
    rows = {name: row for name, row in ROWS.items() if name in results["rows"]}
    judged = [(row.title, v) for name, row in rows.items() for v in verdicts(row, results["rows"][name])]
    if "start" in results:
        judged += [(STARTS[name].title, v) for name in results["start"] if (v := start_verdict(name, results["start"])).asked]
    text = INTRODUCTION + "\n" + machine_line(results) + target_table(judged) + "\n"
    if rows:
        text += f"![Time of a step for each contender]({BARS})\n\n"
        text += "Blue is xhat, pale blue xhat without a compiler, grey the others, amber what only multiplies; whiskers span all "
        text += "rounds.\n\n"
    text += "".join(section(name, row, results["rows"][name], notes) for name, row in rows.items())
    if "sizes" in results:
        text += sizes_section(results["sizes"], notes)
    if "start" in results:
        text += start_section(results["start"], notes)
    text += gpu_section(results, notes) + METHOD.format(constant=CONSTANT)
    text += "".join(f"| {entry.label} | {entry.about} |\n" for entry in CONTENDERS.values() if entry.about)
    return text


def write(folder: Path = FOLDER) -> None:
    """The page and its pictures, into the folder that holds the results."""
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    (folder / BARS).parent.mkdir(exist_ok=True)
    notes = tomllib.loads(NOTES.read_text(encoding="utf-8"))
    if results["rows"]:
        pictures.bars(results["rows"], folder / BARS)
    if "sizes" in results:
        pictures.curves(results["sizes"], folder / CURVES)
    (folder / PAGE).write_text(page(results, notes), encoding="utf-8")
