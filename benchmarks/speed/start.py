"""How long it takes to begin: fresh processes, wall clock."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.speed.dataset import ROOT

_FIRST_STEP = """
import xhat
data = xhat.load_data("digits")
model = xhat.build("vae", shape=data.shape, latent=16, likelihood="normal")
next(xhat.train(model, data.train, valid=data.valid, epochs=50))
"""


class Started:
    """What is started, and how long it may take (None: it is shown for comparison)."""

    def __init__(self, title: str, command: Callable[[str], list[str]], most: float | None) -> None:
        self.title, self.command, self.most = title, command, most


def _python(code: str) -> Callable[[str], list[str]]:
    return lambda folder: [sys.executable, "-c", code]


STARTS: dict[str, Started] = {
    "help": Started("`xhat --help`", lambda folder: [sys.executable, "-m", "xhat", "--help"], 0.3),
    "import": Started("`import xhat`", _python("import xhat"), 2.0),
    "import-all": Started(
        "`import xhat`, and every public name used", _python("import xhat\nfor name in xhat.__all__: getattr(xhat, name)"), 2.0
    ),
    "torch": Started("`import torch` alone, for comparison", _python("import torch"), None),
    "first-step": Started("a script: digits loaded, model built, first step of `xhat.train` taken", _python(_FIRST_STEP), 4.0),
    "command": Started(
        "`xhat train digits --epochs 1`: the whole command, with its only epoch and its files",
        lambda folder: [sys.executable, "-m", "xhat", "train", "digits", "--epochs", "1", "--out", f"{folder}/run"],
        4.0,
    ),
}


def measure_start(rounds: int) -> dict[str, Any]:
    """Seconds of each, in each round, by turns; or why it failed."""
    results: dict[str, Any] = {name: {"seconds": []} for name in STARTS}
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    for _ in range(rounds):
        for name, started in STARTS.items():
            if "failed" in results[name]:
                continue
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                done = subprocess.run(
                    started.command(folder),
                    capture_output=True,
                    text=True,
                    check=False,
                    cwd=folder,
                    env={**os.environ, "PYTHONPATH": path},
                )
                results[name]["seconds"].append(time.perf_counter() - began)
            if done.returncode != 0:
                results[name] = {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return results
