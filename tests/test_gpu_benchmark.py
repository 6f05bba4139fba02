"""``make gpu``: its rehearsal runs without a GPU; with one, what it checks is tested."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.lanes import share  # noqa: E402
from benchmarks.gpu.part import Setup  # noqa: E402
from benchmarks.gpu.parts import PARTS  # noqa: E402

CHECKS = [name for name, part in PARTS.items() if part.kind == "check"]


def run(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.gpu", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)


def test_a_rehearsal_writes_the_results_and_the_page(tmp_path):
    names = ["states", "valid-aboard", "mlp-4096 limit", "mlp-4096 graphs"]
    done = run("--cpu", "--out", str(tmp_path), "--only", *names[:3], "mlp-4096 graphs")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert set(names) <= results["parts"].keys()
    assert all(found["passed"] for found in results["parts"].values())
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "no figure here means anything" in page
    assert "| valid-aboard | passed |" in page
    assert "batch 4096" in page


def test_a_rehearsal_is_never_published():
    done = run("--cpu")
    assert done.returncode == 2
    assert "name a folder with --out" in done.stderr


def test_a_part_that_takes_too_long_or_fails_takes_no_other_with_it(tmp_path):
    found = {}
    parts = [("no such part", 60.0), ("states", 60.0)]
    share(parts, 1, ["--cpu"], tmp_path / "log", time.monotonic() + 120, lambda one: found.update({one["part"]: one}))
    assert not found["no such part"]["passed"]
    assert found["states"]["passed"]
    share(parts, 1, ["--cpu"], tmp_path / "log", time.monotonic() + 1, lambda one: found.update({one["part"]: one}))
    assert found["states"]["message"] == "no time was left"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_device(name):
    PARTS[name].run(Setup("cuda", few=True))
