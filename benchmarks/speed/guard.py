"""The guard against getting slower: xhat's step beside a plain PyTorch loop's, as a ratio, held against the stored one.

``python -m benchmarks.speed.guard`` checks; with ``--write`` it stores what it finds (on an idle machine, please).

A ratio depends on the processor, but far less than a time does. On the processor that the stored ratios were taken on, a loss of
more than a fifth fails. On another one the bound is loose, three fifths, and the guard says so: it still catches a step that
takes twice as long, unless that processor happens to favour xhat by more than a fifth over the one of the stored ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.speed.machine import processor
from benchmarks.speed.tasks import Task

STORED = Path(__file__).with_name("guard.json")
TASK = Task("vae", "digits", 5_120, 128, (400,), 20)
PLAIN = "indexed"
ROUNDS, ATTEMPTS = 6, 3
THREADS = 1  # with more, whatever else the machine does stalls every product, and the ratio with it
LEAST = 0.1  # seconds of a round at least
SAME, OTHER = 1.2, 1.6  # the stored ratio may be exceeded by so much, on its own processor and on others


class Judgement(NamedTuple):
    """Whether a ratio passes, and the bound that it was held against."""

    passes: bool
    bound: float


def judge(ratio: float, stored: float, same_processor: bool) -> Judgement:
    """A ratio (xhat's step over the plain loop's; lower is better) against the stored one."""
    bound = stored * (SAME if same_processor else OTHER)
    return Judgement(ratio <= bound, bound)


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


def check(names: tuple[str, ...], say=print) -> bool:
    """Whether no ratio is worse than the stored one; a loss counts only if further rounds do not take it back."""
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    same = stored["processor"] == processor()
    if not same:
        say(f"stored on {stored['processor']}, this is {processor()}: only a loss of more than {OTHER - 1:.0%} fails here")
    meter = Meter(names)
    failing: dict[str, Judgement] = {}
    for attempt in range(ATTEMPTS):
        ratios = meter.measure()
        judged = {name: judge(ratio, stored["ratios"][name], same) for name, ratio in ratios.items()}
        for name, (passes, bound) in judged.items():
            say(f"{name}: {ratios[name]:.3f} of the plain loop's step, at most {bound:.3f}: {'fine' if passes else 'slower'}")
        failing = {name: judgement for name, judgement in judged.items() if not judgement.passes}
        if not failing:
            return True
        if attempt + 1 < ATTEMPTS:
            time.sleep(1.0)
    say("it stayed slower; if that is meant, and the machine idle: python -m benchmarks.speed.guard --write")
    return False


def write(names: tuple[str, ...]) -> None:
    """Store this machine's ratios."""
    meter = Meter(names)
    for _ in range(ATTEMPTS):
        ratios = meter.measure()
    rounded = {name: round(ratio, 3) for name, ratio in ratios.items()}
    about = "xhat's step over the plain PyTorch loop's; python -m benchmarks.speed.guard --write makes this file"
    STORED.write_text(
        json.dumps({"about": about, "processor": processor(), "ratios": rounded}, indent=1) + "\n", encoding="utf-8"
    )
    print(rounded)


def main() -> int:
    """Exit with 1 where xhat got slower."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.guard", description="Is xhat as fast as it was?")
    parser.add_argument("--write", action="store_true", help="store this machine's ratios instead")
    parser.add_argument("--eager", action="store_true", help="leave the compiler out")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    if given.write:
        write(contenders(compiled=True))
        return 0
    return 0 if check(contenders(compiled=not given.eager)) else 1


if __name__ == "__main__":
    sys.exit(main())
