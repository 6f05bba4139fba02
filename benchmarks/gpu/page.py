"""``gpu.md`` from ``gpu.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHORT = 240  # characters of a message on the page
CPU_ROWS = {"mlp-128": "mlp", "iwae-50": "iwae"}  # rows of benchmarks/speed.json with the same task
TITLES = {
    "mlp-128": "VAE of linear layers, 784-400-20, batch 128, float32",
    "mlp-4096": "VAE of linear layers, 784-400-20, batch 4096, float32",
    "conv": "Convolutional VAE, 64×64×3, batch 256, float32",
    "conv-bf16": "Convolutional VAE, 64×64×3, batch 256, bfloat16",
    "iwae-50": "Importance-weighted autoencoder, 50 samples, batch 20, float32",
    "evidence": "Evidence by importance sampling, K = 5000, the VAE of linear layers",
    "epochs-500": "500 epochs of the VAE at batch 128, from the call of `xhat.fit` to its return",
    "start": "From a command to its end, fresh processes",
}
WORDS = {
    "graphs": "xhat, graphs of the operations one by one",
    "graphs-compiled": "xhat, graphs of the compiled program",
    "graphs-bf16": "xhat, graphs, bfloat16",
    "graphs-tf32": "xhat, graphs, products in TF32 (off by default: other digits)",
    "graphs-as-laid": "xhat, graphs, images left as they lie (channels first)",
    "graphs-cudnn-benchmark": "xhat, graphs, cuDNN's choice by trial (off by default: digits of a run are its own)",
    "eager": "xhat, eager",
    "compiled": "xhat, compiled, without graphs",
    "fit": "xhat.fit as it is called, recording and all, 20 epochs",
    "fit-valid": "the same with 10,000 validation examples",
    "plain": "a PyTorch loop by hand that indexes whole batches",
    "plain-compile": "the same, its loss by torch.compile",
    "plain-graph": "the same as a CUDA graph, by PyTorch's recipe",
    "limit": "the products and convolutions of the step alone, as a graph",
    "gpu": "this GPU",
    "cpu": "this machine's processor, 2 threads",
    "import": "`import torch`, and the first tensor on the device",
    "first-step": "a script: digits loaded, model built, first step taken",
    "train": "`xhat train digits --epochs 1`, with its files",
    "": "xhat.fit",
}


def write(folder: Path) -> None:
    """The page, beside the results."""
    results = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    (folder / "gpu.md").write_text("\n".join(_page(results)) + "\n", encoding="utf-8")


def _page(results: dict[str, Any]) -> list[str]:
    machine, parts = results["machine"], results["parts"]
    lines = ["# On a GPU", ""]
    if machine.get("rehearsal"):
        lines += ["A rehearsal on a processor, with tiny sizes: no figure here means anything.", ""]
    named = {key: value for key, value in machine.items() if key != "rehearsal"}
    lines += ["Written by `make gpu`. " + "; ".join(f"{key}: {value}" for key, value in named.items()) + ".", ""]
    if machine.get("derivatives traced") is False:
        lines += ["This torch cannot trace a derivative: what is compiled is the loss, and what the compiler derives.", ""]
    lines += _again([name for name, found in parts.items() if not found["passed"]])
    lines += _checks({name: found for name, found in parts.items() if not _timed(name)})
    lines += _rows({name: found for name, found in parts.items() if _timed(name)})
    return lines


def _again(failed: list[str]) -> list[str]:
    """What to run once the causes are mended."""
    if not failed:
        return []
    asked = " ".join(f'"{name}"' if " " in name else name for name in failed)
    return [f"Failed, and to be run again once mended ({len(failed)}): `make gpu GPU='--only {asked}'`.", ""]


def _short(message: str) -> str:
    """A sentence or two of a message, for a table's cell."""
    text = message.replace("|", "∣")
    return text if len(text) <= SHORT else text[:SHORT].rsplit(" ", 1)[0] + " … (all of it in gpu.json)"


def _timed(name: str) -> bool:
    return name.split(" ")[0] in TITLES


def _checks(parts: dict[str, Any]) -> list[str]:
    if not parts:
        return []
    well = sum(found["passed"] for found in parts.values())
    lines = [f"## What holds: {well} of {len(parts)} checks", "", "| check | | seconds | what was found |", "|---|---|---|---|"]
    for name, found in parts.items():
        message = _short(found["message"])
        lines.append(f"| {name} | {'passed' if found['passed'] else '**failed**'} | {found['took']:.1f} | {message} |")
    return [*lines, ""]


def _rows(parts: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for task, title in TITLES.items():
        rows = {name.partition(" ")[2]: found for name, found in parts.items() if name.split(" ")[0] == task}
        if not rows:
            continue
        lines += [f"## {title}", ""]
        unit = "an image" if task == "evidence" else "in all" if task == "start" else "a step"
        lines += [f"| | {unit} | spread | first round | peak memory | |", "|---|---|---|---|---|---|"]
        for name, found in rows.items():
            lines.append(_row(WORDS.get(name, name), found))
        lines += ["", *_compared(task, rows), ""]
    return lines


def _row(name: str, found: dict[str, Any]) -> str:
    if not found["passed"] or "seconds" not in found:
        return f"| {name} | | | | | {_short(found['message'])} |"
    each = found.get("rounds", [found["seconds"]])
    spread = f"{_time(min(each))} to {_time(max(each))}, {len(each)} rounds"
    peak = f"{found['peak'] / 2**20:,.0f} MiB" if "peak" in found else ""
    first = f"{found['first']:.1f} s" if "first" in found else ""
    note = f"{found['whole']:.1f} s for {found['epochs']} epochs" if "whole" in found else found.get("engine", "")
    return f"| {name} | {_time(found['seconds'])} | {spread} | {first} | {peak} | {note} |"


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"


def _compared(task: str, rows: dict[str, Any]) -> list[str]:
    """Our quickest against the others, and against the products alone."""
    times = {name: found["seconds"] for name, found in rows.items() if found["passed"] and "seconds" in found}
    if task == "evidence":
        if {"gpu", "cpu"} <= times.keys():
            return [
                f"The GPU measures {times['cpu'] / times['gpu']:.0f} times as many images a second as 2 threads of the processor."
            ]
        return []
    own = {name: seconds for name, seconds in times.items() if name in ("graphs", "graphs-compiled")}
    if not own:
        return []
    best = min(own, key=lambda name: own[name])
    said = [
        f"{WORDS[name]}: {times[name] / own[best]:.2f} times as long"
        for name in ("eager", "plain", "plain-graph")
        if name in times
    ]
    if "limit" in times:
        said.append(f"the products alone: {times['limit'] / own[best]:.0%} of it")
    stored = Path(__file__).parents[1] / "speed.json"
    if task in CPU_ROWS and stored.is_file():
        row = json.loads(stored.read_text(encoding="utf-8"))["rows"].get(CPU_ROWS[task], {}).get("xhat", {})
        if "seconds" in row:
            middle = sorted(row["seconds"])[len(row["seconds"]) // 2]
            said.append(f"two cores (speed.md): {middle / own[best]:.0f} times as long")
    return [f"Against {WORDS[best]}: {'; '.join(said)}."] if said else []
