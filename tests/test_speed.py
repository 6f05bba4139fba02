"""xhat is as fast as it was: its step beside a plain PyTorch loop's, against the ratios in benchmarks/speed/guard.json."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STORED = json.loads((ROOT / "benchmarks" / "speed" / "guard.json").read_text(encoding="utf-8"))


@pytest.fixture
def guard(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.speed import guard

    return guard


def test_a_step_takes_no_longer_than_it_did():
    """In a process of its own, so that no other test's threads and modules are in its way."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.guard"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", STORED["ratios"])
def test_the_guard_catches_a_loss(guard, name):
    stored = STORED["ratios"][name]
    assert guard.judge(1.15 * stored, stored, same_processor=True).passes
    assert not guard.judge(1.25 * stored, stored, same_processor=True).passes
    assert guard.judge(1.25 * stored, stored, same_processor=False).passes
    assert not guard.judge(2.0 * stored, stored, same_processor=False).passes


def test_a_loss_has_to_come_back(guard, monkeypatch):
    """A slow first attempt is forgiven, a slow step is not: minima are kept over all attempts."""

    class Meter:
        def __init__(self, names):
            self.names, self.ratios = names, iter(noisy)

        def measure(self):
            return dict.fromkeys(self.names, next(self.ratios))

    monkeypatch.setattr(guard, "Meter", Meter)
    monkeypatch.setattr(guard.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(guard, "processor", lambda: STORED["processor"])
    stored = STORED["ratios"]["xhat-eager"]
    noisy = [3 * stored, 1.1 * stored]
    assert guard.check(("xhat-eager",))
    noisy = [1.3 * stored] * guard.ATTEMPTS
    assert not guard.check(("xhat-eager",))
