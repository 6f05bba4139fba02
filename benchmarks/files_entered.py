"""How many of xhat's files a job goes through: what a reader has to open who follows it.

``python benchmarks/files_entered.py`` runs ``xhat.evaluate``, ``xhat train digits`` and one ``xhat.expectation``, and counts the
files that are entered, the functions, and how often one file hands over to another (``--list`` names the files). Each job has
run once before, so that what runs at import alone does not count.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import xhat
from xhat.cli import main as command

SOURCES = str(Path(xhat.__file__).parent)


class Counter:
    """Files and functions of xhat that are entered, and changes from one file to another."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.functions: set[tuple[str, str]] = set()
        self.changes, self.last = 0, ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        name, function = frame.f_code.co_filename, frame.f_code.co_qualname
        if event != "call" or not name.startswith(SOURCES) or function == "<module>" or frame.f_code.co_name == "__getattr__":
            return
        self.files.add(name.removeprefix(SOURCES + "/"))
        self.functions.add((name, function))
        self.changes += name != self.last
        self.last = name


def counted(job: Callable[[], Any]) -> Counter:
    """What a job enters."""
    counter = Counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for profile in (None, counter):
            sys.setprofile(profile)
            try:
                with contextlib.suppress(SystemExit):
                    job()
            finally:
                sys.setprofile(None)
    return counter


def main() -> None:
    """Count, and say so."""
    x = torch.rand(50, 16).round()
    model = xhat.build("vae", shape=(16,), latent=2, hidden=[8], likelihood="bernoulli")
    q = torch.distributions.Bernoulli(logits=torch.zeros(3, requires_grad=True))
    with tempfile.TemporaryDirectory() as folder:
        jobs: dict[str, Callable[[], Any]] = {
            "xhat.evaluate(model, x)": lambda: xhat.evaluate(model, x, samples=5),
            "xhat train digits --epochs 1": lambda: command(
                ["train", "digits", "--epochs", "1", "--overwrite", "--out", f"{folder}/run"]
            ),
            'xhat.expectation(f, q, "disarm")': lambda: xhat.expectation(lambda z: z.square(), q, "disarm", 2),
        }
        for name, job in jobs.items():
            found = counted(job)
            print(f"{name}: {len(found.files)} files, {len(found.functions)} functions, {found.changes} changes of file")
            if "--list" in sys.argv:
                print("  " + "\n  ".join(sorted(found.files)))


if __name__ == "__main__":
    main()
