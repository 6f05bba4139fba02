"""The guard against getting slower: xhat's step beside a plain PyTorch loop's, as a ratio, held against this machine's own.

``make guard`` (``python -m benchmarks.speed.guard``) checks. A ratio of one machine says nothing of another: where a
processor's matrix products are slow in one library and not in the other, the ratio moves by half. So ratios are stored machine by
machine, and one that has none gets its own stored, and is told so. Measure on an idle machine; ``--write`` stores them anew.

A machine is told by its processor's family, model, stepping and instructions, by the version of torch, and by how quick one
matrix product is; the name under which a processor is sold is that of dozens.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.speed.machine import processor, silicon
from benchmarks.speed.tasks import Task

STORED = Path(__file__).with_name("guard.json")
TASK = Task("vae", "digits", 5_120, 128, (400,), 20)
PLAIN = "indexed"
ROUNDS, ATTEMPTS = 6, 3
THREADS = 1  # with more, whatever else the machine does stalls every product, and the ratio with it
LEAST = 0.1  # seconds of a round at least
MOST = 1.2  # times the stored ratio; what it may come to
ALIKE = 1.3  # times the other's product speed: a machine is the same one if it is within this


class Machine(NamedTuple):
    """Where ratios were taken."""

    silicon: dict[str, Any]
    torch: str
    product: float  # GFLOP/s of one float32 product, on one thread

    def is_like(self, other: Machine) -> bool:
        """Whether ratios of the one hold for the other."""
        quick, slow = max(self.product, other.product), min(self.product, other.product)
        return self.silicon == other.silicon and self.torch == other.torch and quick <= ALIKE * slow


class Stored(NamedTuple):
    """The ratios of one machine."""

    machine: Machine
    processor: str  # by its name, for people
    ratios: dict[str, float]


def this_machine() -> Machine:
    """This one, its product measured."""
    import torch

    torch.set_num_threads(THREADS)
    a, b = torch.randn(128, 784), torch.randn(784, 400)
    best = float("inf")
    for _ in range(200):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return Machine(silicon(), torch.__version__.partition("+")[0], round(2 * 128 * 784 * 400 / best / 1e9, 1))


def read() -> list[Stored]:
    """All that is stored."""
    held = json.loads(STORED.read_text(encoding="utf-8"))["machines"] if STORED.is_file() else []
    return [Stored(Machine(**row["machine"]), row["processor"], row["ratios"]) for row in held]


def write(machine: Machine, ratios: dict[str, float]) -> None:
    """Store a machine's ratios, in place of those that it had."""
    kept = [row for row in read() if not row.machine.is_like(machine)]
    kept.append(Stored(machine, processor(), {name: round(ratio, 3) for name, ratio in ratios.items()}))
    about = "xhat's step over the plain PyTorch loop's, machine by machine; make guard writes this file"
    rows = [{**row._asdict(), "machine": row.machine._asdict()} for row in kept]
    STORED.write_text(json.dumps({"about": about, "machines": rows}, indent=1) + "\n", encoding="utf-8")


def contenders(compiled: bool) -> tuple[str, ...]:
    """Whom to measure: the compiler's engine only where there is a C++ compiler."""
    has_compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
    return ("xhat-eager", "xhat") if compiled and has_compiler else ("xhat-eager",)


class Meter:
    """Quickest rounds, taken by turns. More of them only bring a minimum closer to what the machine can do."""

    def __init__(self, names: tuple[str, ...]) -> None:
        import torch
        from benchmarks.speed.table import CONTENDERS

        torch.set_num_threads(THREADS)
        self.running = {name: CONTENDERS[name].make(TASK) for name in (PLAIN, *names)}
        self.best = dict.fromkeys(self.running, float("inf"))
        for contender in self.running.values():
            contender.warm()

    def measure(self) -> dict[str, float]:
        """Further rounds of everyone; then xhat's quickest over the plain loop's quickest, by contender."""
        for _ in range(ROUNDS):
            for name, contender in self.running.items():
                self.best[name] = min(self.best[name], contender.round(LEAST).per_step)
        return {name: best / self.best[PLAIN] for name, best in self.best.items() if name != PLAIN}


def check(names: tuple[str, ...], anew: bool = False, say=print) -> bool:
    """Whether no ratio is worse than this machine's; a loss counts only if further rounds do not take it back.

    A machine without ratios, or one that is asked for them anew, gets what is measured stored, and passes.
    """
    machine = this_machine()
    stored = None if anew else next((row.ratios for row in read() if row.machine.is_like(machine)), None)
    meter = Meter(names)
    if stored is None:
        ratios = [meter.measure() for _ in range(ATTEMPTS)][-1]
        write(machine, ratios)
        say(f"no ratios of this machine ({processor()}, {machine.product:g} GFLOP/s) were there to compare with: stored its own")
        say(f"in {STORED.name}: " + ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items()))
        return True
    for attempt in range(ATTEMPTS):
        ratios = {name: ratio for name, ratio in meter.measure().items() if name in stored}
        for name, ratio in ratios.items():
            verdict = "fine" if passes(ratio, stored[name]) else "slower"
            say(f"{name}: {ratio:.3f} of the plain loop's step, at most {MOST * stored[name]:.3f}: {verdict}")
        if all(passes(ratio, stored[name]) for name, ratio in ratios.items()):
            return True
        if attempt + 1 < ATTEMPTS:
            time.sleep(1.0)
    say("it stayed slower; if that is meant, and the machine idle: python -m benchmarks.speed.guard --write")
    return False


def passes(ratio: float, stored: float) -> bool:
    """Whether a ratio (xhat's step over the plain loop's; lower is better) is no loss against the stored one."""
    return ratio <= MOST * stored


def main() -> int:
    """Exit with 1 where xhat got slower."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.guard", description="Is xhat as fast as it was?")
    parser.add_argument("--write", action="store_true", help="store this machine's ratios anew")
    parser.add_argument("--eager", action="store_true", help="leave the compiler out")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    return 0 if check(contenders(compiled=not given.eager), anew=given.write) else 1


if __name__ == "__main__":
    sys.exit(main())
