"""``make gpu``: its rehearsal runs without a GPU; with one, what it checks is tested."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import page, worker  # noqa: E402
from benchmarks.gpu.__main__ import main  # noqa: E402
from benchmarks.gpu.checks import disagreements  # noqa: E402
from benchmarks.gpu.lanes import share  # noqa: E402
from benchmarks.gpu.part import Part, Setup  # noqa: E402
from benchmarks.gpu.parts import PARTS  # noqa: E402

CHECKS = [name for name, part in PARTS.items() if part.kind == "check"]


def test_a_rehearsal_writes_the_results_and_the_page(tmp_path, monkeypatch, capsys):
    names = ["valid-aboard", "mlp-4096 limit"]
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--cpu", "--out", str(tmp_path), "--only", *names])
    assert main() == 0, capsys.readouterr()
    results = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert set(names) == results["parts"].keys()
    assert all(found["passed"] for found in results["parts"].values())
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "no figure here means anything" in page
    assert "| valid-aboard | passed |" in page
    assert "batch 4096" in page
    assert "again" not in page


def test_a_rehearsal_is_never_published(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--cpu"])
    with pytest.raises(SystemExit):
        main()
    assert "name a folder with --out" in capsys.readouterr().err


def test_the_page_cuts_what_failed_short_and_says_what_to_run_again(tmp_path):
    failed = {"passed": False, "took": 1.0, "message": "AssertionError: " + "much went wrong; " * 100}
    parts = {"fallback": failed, "states": {"passed": True, "took": 1.0, "message": "well"}, "mlp-128 graphs": failed}
    (tmp_path / "gpu.json").write_text(json.dumps({"machine": {"torch": "2.11.0"}, "parts": parts}), encoding="utf-8")
    page.write(tmp_path)
    lines = (tmp_path / "gpu.md").read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) < 400
    assert any("""make gpu GPU='--only fallback "mlp-128 graphs"'""" in line for line in lines)


WORKER = """
import json, os, sys, time
for line in sys.stdin:
    name = line.strip()
    if name == "dies":
        os._exit(1)
    if name == "hangs":
        time.sleep(60)
    found = {"part": name, "passed": name != "fails", "message": str(os.getpid()), "took": 0.0, "spent": name == "spends"}
    print(json.dumps(found), flush=True)
"""


def test_a_part_that_fails_hangs_or_breaks_its_process_takes_no_other_with_it(tmp_path):
    def done(*names: str, seconds: float = 60.0) -> list[dict]:
        found: list[dict] = []
        parts = [(name, 0.5 if name == "hangs" else 20.0) for name in names]
        share(parts, 1, [sys.executable, "-c", WORKER], tmp_path / "log", time.monotonic() + seconds, found.append)
        assert [one["part"] for one in found] == list(names)
        return found

    first, fails, after, spends, then, dies, again, hangs = done("a", "fails", "b", "spends", "c", "dies", "d", "hangs")
    assert [one["part"] for one in (first, fails, after, spends, then, dies, again, hangs) if not one["passed"]] == [
        "fails",
        "dies",
        "hangs",
    ]
    assert first["message"] == fails["message"] == after["message"] == spends["message"] != then["message"] != again["message"]
    assert dies["message"] == "the process died: see the log"
    assert hangs["message"].startswith("stopped after")
    assert done("a", seconds=1.0)[0]["message"] == "no time was left"


def test_a_process_that_draws_no_more_random_numbers_is_spent(monkeypatch):
    monkeypatch.setitem(PARTS, "harmless", Part("check", 1.0, lambda setup: {"message": "well"}))
    setup = Setup("cpu", few=True)
    found = worker.attempt("harmless", setup)
    assert (found["passed"], found["spent"]) == (True, False)
    assert not worker.attempt("no such part", setup)["passed"]
    monkeypatch.setitem(PARTS, "harmless", Part("check", 1.0, lambda setup: {"message": "well"}, alone=True))
    assert worker.attempt("harmless", setup)["spent"]

    def refused(*size: int, device: str) -> None:
        raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")

    monkeypatch.setattr(torch, "rand", refused)
    found = worker.attempt("harmless", setup)
    assert (found["passed"], found["spent"]) == (False, True)
    assert "Offset increment" in found["message"]


def test_averages_of_draws_may_differ_by_their_error_and_formulas_by_rounding():
    generator = torch.Generator().manual_seed(0)
    exact = {"encode": torch.ones(6, 2), "decode": torch.ones(6, 3), "code's error": 0.0, "x's error": 0.0}
    assert not disagreements(exact, {**exact, "encode": torch.ones(6, 2) + 1e-6})
    assert disagreements(exact, {**exact, "encode": torch.ones(6, 2) + 0.01})
    drawn = [{**exact, "encode": 1 + 0.1 * torch.randn(6, 2, generator=generator), "code's error": 0.1} for _ in range(2)]
    assert not disagreements(*drawn)
    assert disagreements(drawn[0], {**drawn[1], "encode": drawn[1]["encode"] + 2})
    assert disagreements({**exact, "x's error": 0.1}, {**exact, "decode": torch.ones(6, 3) + 3, "x's error": 0.1})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_device(name):
    PARTS[name].run(Setup("cuda", few=True))
