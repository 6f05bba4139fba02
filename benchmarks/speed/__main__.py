"""``python -m benchmarks.speed``: measure, write ``speed.json``, and from it ``speed.md`` and its pictures."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.speed import dataset, report
from benchmarks.speed.gpu import measure_epochs
from benchmarks.speed.machine import describe, pin
from benchmarks.speed.race import race
from benchmarks.speed.rows import GPU_ROWS, ROWS
from benchmarks.speed.sizes import measure_sizes
from benchmarks.speed.start import measure_start

SIZE_ROUNDS = 3  # curves need no more: what they show is a shape


def main() -> None:
    """Measure what is asked for; what is left out keeps its figures, if they are of the same machine and versions."""
    parts = [*ROWS, *GPU_ROWS, "sizes", "start"]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="of each contender in each row (published: at least 5)")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART", help=", ".join(parts))
    parser.add_argument("--report", action="store_true", help="measure nothing, write the page and its pictures anew")
    parser.add_argument("--out", type=Path, default=report.FOLDER, help="folder of speed.json, speed.md and speed/*.png")
    parser.add_argument("--few", action="store_true", help="a rehearsal on 20 batches of data: does everything run?")
    given = parser.parse_args()
    if given.few and given.out == report.FOLDER:
        parser.error("--few measures nothing that should be published: name another folder with --out")
    if not given.report:
        measure(given.out / report.RESULTS, given.only, given.rounds, given.few)
    report.write(given.out)
    print(f"wrote {given.out / report.PAGE}")


def measure(path: Path, parts: list[str], rounds: int, few: bool) -> None:
    """Measure the parts into a file of results, a part at a time, and keep what there is of the others."""
    began = time.perf_counter()
    machine = describe(pin())
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if held.get("machine") != machine:
        held = {}  # figures of another machine, or of other versions, have no place beside these
    results = {"machine": machine, "digits": dataset.about_digits(), "rows": held.get("rows", {})}
    results |= {name: held[name] for name in ("sizes", "start", "gpu_epochs") if name in held}
    for name, row in {**ROWS, **GPU_ROWS}.items():
        if name in parts and (name in ROWS or machine["gpu"] is not None):
            print(f"[{time.perf_counter() - began:4.0f} s] {name}: {row.title}", flush=True)
            task = row.task.few() if few else row.task
            results["rows"][name] = race({entrant: (entrant, task) for entrant in row.entrants}, rounds)
            save(path, results)
    if "gpu-mlp" in parts and machine["gpu"] is not None:
        results["gpu_epochs"] = measure_epochs()
    if "sizes" in parts:
        print(f"[{time.perf_counter() - began:4.0f} s] cost against size", flush=True)
        results["sizes"] = measure_sizes(min(rounds, SIZE_ROUNDS), few)
        save(path, results)
    if "start" in parts:
        print(f"[{time.perf_counter() - began:4.0f} s] start", flush=True)
        results["start"] = measure_start(rounds)
    print(f"[{time.perf_counter() - began:4.0f} s] done")
    save(path, results)


def save(path: Path, results: dict[str, Any]) -> None:
    """What there is so far: a run that is stopped loses the part that it was at."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
