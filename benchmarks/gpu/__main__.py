"""``python -m benchmarks.gpu``: check and time everything on one GPU within a budget, and write ``gpu.json`` and ``gpu.md``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1]
BUDGET = 480.0  # seconds
FOR_CHECKS = 0.45  # of them at most, where there are rows to be timed, too
LANES = 4  # checks at a time: they keep a processor busy, and a GPU hardly at all


def main() -> int:
    """Run the parts; 1 if a check failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts, or the beginnings of their names")
    parser.add_argument("--cpu", action="store_true", help="a rehearsal on the processor, with tiny sizes: does everything run?")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS")
    parser.add_argument("--out", type=Path, default=None, help="folder of gpu.json, gpu.md and gpu.log")
    parser.add_argument("--lanes", type=int, default=None, help="checks at a time")
    parser.add_argument("--list", action="store_true", help="name the parts")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page anew")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cpu and given.out is None and not (given.worker or given.list):
        parser.error("a rehearsal measures nothing that should be published: name a folder with --out")
    out: Path = given.out or FOLDER
    if given.page:
        from benchmarks.gpu.page import write

        write(out)
        return 0
    return _measure(given, out, parser)


def _measure(given: argparse.Namespace, out: Path, parser: argparse.ArgumentParser) -> int:
    began = time.monotonic()
    import torch
    from benchmarks.gpu.part import Setup
    from benchmarks.gpu.parts import PARTS

    if given.list:
        print("\n".join(PARTS))
        return 0
    if not given.cpu and not torch.cuda.is_available():
        parser.error("there is no CUDA device: --cpu rehearses without one")
    if given.worker:
        from benchmarks.gpu.worker import work

        work(Setup("cpu" if given.cpu else "cuda", given.cpu))
        return 0
    names = [name for name in PARTS if not given.only or any(name.startswith(beginning) for beginning in given.only)]
    if not names:
        parser.error(f"no part begins with {', '.join(given.only)}: see --list")
    from benchmarks.gpu.lanes import share, worker
    from benchmarks.gpu.page import write

    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine(given.cpu), "parts": {}}
    path = out / "gpu.json"
    if given.only and path.is_file():
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["machine"] == results["machine"]:
            results = held

    def done(found: dict[str, Any]) -> None:
        results["parts"][found.pop("part")] = found
        name, state = list(results["parts"])[-1], "ok  " if found["passed"] else "FAIL"
        print(f"[{time.monotonic() - began:4.0f} s] {state} {name} ({found['took']:.1f} s): {found['message'][:400]}", flush=True)
        path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    command, log = worker("--cpu") if given.cpu else worker(), out / "gpu.log"
    log.write_bytes(b"")
    kinds = {kind: [(name, PARTS[name].limit) for name in names if PARTS[name].kind == kind] for kind in ("check", "speed")}
    part, until = FOR_CHECKS if kinds["speed"] else 1.0, began + given.budget
    if given.cpu:  # times mean nothing, so one process does it all
        share(kinds["check"] + kinds["speed"], 1, command, log, until, done)
    else:
        lanes = min(given.lanes or LANES, max(1, len(kinds["check"])))
        share(kinds["check"], lanes, command, log, began + part * given.budget, done)
        share(kinds["speed"], 1, command, log, until, done)
    write(out)
    wrong = [name for name in names if not results["parts"].get(name, {"passed": False})["passed"]]
    print(f"[{time.monotonic() - began:4.0f} s] {len(names) - len(wrong)} of {len(names)} parts well; wrote {out / 'gpu.md'}")
    if wrong:
        print("failed: " + ", ".join(wrong))
    return 1 if wrong else 0


def machine(rehearsal: bool) -> dict[str, Any]:
    """The device, its driver, the libraries."""
    import os

    import numpy
    import torch
    from benchmarks.gpu.speed import about_data
    from benchmarks.speed.machine import processor

    found: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "data": about_data(),
        "rehearsal": rehearsal,
    }
    if torch.cuda.is_available() and not rehearsal:
        from xhat.training.engine import derivatives_are_traced

        properties = torch.cuda.get_device_properties(0)
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=20).stdout.strip()
        except OSError:
            driver = "unknown"
        found |= {
            "device": properties.name,
            "memory": f"{properties.total_memory / 2**30:.0f} GiB",
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "driver": driver,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "derivatives traced": derivatives_are_traced(),
        }
    return found


if __name__ == "__main__":
    sys.exit(main())
