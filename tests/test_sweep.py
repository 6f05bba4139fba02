"""The command ``xhat sweep``: what it varies, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xhat
from xhat.cli import main
from xhat.cli.space import dimensions
from xhat.cli.sweep import _read_plan
from xhat.errors import ConfigError

SMALL = ("--epochs", "2", "--hidden", "4", "--batch-size", "64")
Ran = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Runs a command in a fresh working folder that holds x.npy: its exit code, and what it printed."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32) @ np.ones((3, 5), np.float32))

    def run(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return caught.value.code, said.out, said.err

    return run


def lines(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "trials.jsonl").read_text().splitlines()]


def told(folder: str) -> list[dict[str, Any]]:
    """The trials without what the clock says."""
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines(folder)]


def check_refused(answer: tuple[int, str, str], *words: str) -> None:
    code, _, error = answer
    assert code == 2, error
    assert error.count("\n") == 1
    assert "Traceback" not in error
    for word in words:
        assert word in error, error


# What it does


def test_a_sweep_leaves_runs_lines_a_table_and_a_picture(ran: Ran) -> None:
    space = ("--set", "lr=1e-3..1e-1:log", "--set", "latent=1,2", "--set", "beta=0.5..4")
    code, out, error = ran("sweep", "x.npy", *space, *SMALL, "--trials", "4", "--out", "s")
    assert (code, error) == (0, "")
    trials, summary = lines("s"), json.loads(Path("s/sweep.json").read_text())
    assert [line["trial"] for line in trials] == [0, 1, 2, 3]
    best = max((line for line in trials if line["state"] == "complete"), key=lambda line: line["value"])
    assert summary["best"]["trial"] == best["trial"]
    assert summary["metric"] == "valid_elbo"
    assert Path("s/sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert f"{best['value']:.4f}" in out
    for line in trials:
        run = Path("s/trials", f"{line['trial']:03d}")
        config = json.loads((run / "config.json").read_text())
        drawn = line["parameters"]
        assert 1e-3 <= drawn["lr"] <= 1e-1
        assert 0.5 <= drawn["beta"] <= 4
        assert config["settings"]["lr"] == drawn["lr"]
        assert config["options"]["beta"] == drawn["beta"]
        assert config["options"]["latent"] == int(drawn["latent"])
        assert config["options"]["hidden"] == [4]
        rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
        assert line["values"] == [row["valid_elbo"] for row in rows]
        assert line["value"] == [row for row in rows if row.get("improved")][-1]["valid_elbo"]
    assert len({line["parameters"]["lr"] for line in trials}) == 4
    assert ran("evaluate", Path("s", summary["best"]["folder"]), "--samples", "5")[0] == 0


def test_a_trial_of_several_seeds_counts_their_mean(ran: Ran) -> None:
    assert ran("sweep", "x.npy", "--set", "lr=1e-3..1e-1:log", *SMALL, "--trials", "1", "--seeds", "3", "--out", "s")[0] == 0
    (line,) = lines("s")
    kept = []
    for seed in range(3):
        run = Path("s/trials/000", f"seed-{seed}")
        assert json.loads((run / "config.json").read_text())["settings"]["seed"] == seed
        rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
        kept.append([row for row in rows if row.get("improved")][-1]["valid_elbo"])
    assert len(set(kept)) == 3
    assert line["value"] == pytest.approx(sum(kept) / 3)


def test_the_lowest_loss_is_the_best_where_the_loss_counts(ran: Ran) -> None:
    options = ("--recipe", "autoencoder", "--set", "lr=1e-4,1e-1", *SMALL, "--trials", "5", "--out", "s")
    code, out, _ = ran("sweep", "x.npy", *options)
    assert code == 0
    values = [line["value"] for line in lines("s") if line["state"] == "complete"]
    assert json.loads(Path("s/sweep.json").read_text())["best"]["value"] == min(values) < max(values)
    assert f"{min(values):.4f}" in out


def test_trials_with_no_prospects_are_cut_short(ran: Ran) -> None:
    options = ("--set", "lr=1e-6,1e-1", "--hidden", "4", "--epochs", "12", "--trials", "14", "--out", "s")
    assert ran("sweep", "x.npy", *options)[0] == 0
    pruned = [line for line in lines("s") if line["state"] == "pruned"]
    assert pruned
    assert all(5 <= len(line["values"]) < 12 for line in pruned)
    assert json.loads(Path("s/sweep.json").read_text())["best"]["parameters"]["lr"] == "1e-1"


# Interruption


def _stop_at(trial: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a trial."""

    def stopping(model: Any, x: Any, valid: Any, *, about: dict[str, Any], inner: Any = xhat.train, **rest: Any) -> Any:
        for step in inner(model, x, valid, about=about, **rest):
            if about["sweep"]["trial"] == trial:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr("xhat.training.fit.train", stopping)


@pytest.mark.parametrize("stop", [0, 3, 12])
def test_a_resumed_sweep_goes_on_as_if_it_had_never_stopped(ran: Ran, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    """The same trials in the same order, none twice: among the first ten, which are drawn at random, and beyond."""
    options = ("x.npy", "--set", "lr=1e-3..1e-1:log", "--set", "latent=1..3", "--epochs", "1", "--hidden", "4", "--trials", "14")
    assert ran("sweep", *options, "--out", "whole")[0] == 0
    with monkeypatch.context() as patch:
        _stop_at(stop, patch)
        code, _, error = ran("sweep", *options, "--out", "parts")
    assert code == 130
    assert f"stopped after {stop} of 14 trials" in error
    assert "xhat sweep --resume parts" in error
    assert len(lines("parts")) == stop
    code, out, _ = ran("sweep", "--resume", "parts")
    assert code == 0
    assert out.count("trial ") - 1 == 14 - stop  # the table has one more
    assert told("parts") == told("whole")
    assert len({line["parameters"]["lr"] for line in lines("parts")}) == 14


def test_more_trials_can_be_asked_for_and_a_torn_line_is_done_again(ran: Ran) -> None:
    options = ("x.npy", "--set", "lr=1e-3..1e-1:log", *SMALL)
    assert ran("sweep", *options, "--trials", "4", "--out", "whole")[0] == 0
    assert ran("sweep", *options, "--trials", "3", "--out", "parts")[0] == 0
    place = Path("parts/trials.jsonl")
    place.write_text(place.read_text()[:-20])
    assert ran("sweep", "--resume", "parts", "--trials", "4")[0] == 0
    assert told("parts") == told("whole")


def test_a_sweep_is_not_written_over(ran: Ran) -> None:
    options = ("sweep", "x.npy", "--set", "lr=1e-3,1e-2", *SMALL, "--trials", "1", "--out", "s")
    assert ran(*options)[0] == 0
    check_refused(ran(*options), "holds a sweep already", "--resume s")


def test_trials_that_fail_are_told_and_the_others_count(ran: Ran) -> None:
    options = ("--set", "batch_size=16,1000", "--epochs", "1", "--hidden", "4", "--trials", "6", "--out", "s")
    code, out, _ = ran("sweep", "x.npy", *options)
    assert code == 0
    assert {line["state"] for line in lines("s")} == {"complete", "failed"}
    assert "failed: batch_size is 1000" in out
    assert json.loads(Path("s/sweep.json").read_text())["best"]["parameters"] == {"batch_size": "16"}
    check_refused(ran("sweep", "x.npy", "--set", "batch_size=999,1000", "--trials", "2", "--out", "t"), "no trial was finished")


# What can be varied


def test_values_have_the_types_of_their_options() -> None:
    texts = [
        "hidden=64,256x64,none",
        "tied=true,no",
        "scale=0.5,softplus",
        "activation=relu,silu",
        "latent=2..8",
        "lr=1e-4..1e-2",
    ]
    hidden, tied, scale, activation, latent, lr = dimensions(texts)
    assert hidden.some() == [(64,), (256, 64), ()]
    assert tied.some() == [True, False]
    assert scale.some() == [0.5, "softplus"]
    assert activation.some() == ["relu", "silu"]
    assert (latent.some(), latent.whole) == ([2, 8], True)
    assert lr.some() == [1e-4, 1e-2]
    assert type(latent.distribution()).__name__ == "IntDistribution"
    assert type(lr.distribution()).__name__ == "FloatDistribution"
    assert type(hidden.distribution()).__name__ == "CategoricalDistribution"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr", ("OPTION=VALUES",)),
        ("rate=1,2", ("'rate'", "lr", "latent")),
        ("seed=1,2", ("'seed'",)),
        ("activation=a..b", ("no ranges", "activation=A,B")),
        ("hidden=8..16", ("no ranges",)),
        ("lr=1e-2..1e-4", ("smaller",)),
        ("lr=0..1:log", ("above 0",)),
        ("lr=0..1:lin", ("log",)),
        ("lr=a..b", ("a number", "'a'")),
        ("latent=2.5,3", ("whole number", "'2.5'")),
        ("latent=1..2.5", ("whole number",)),
        ("latent=8", ("--latent",)),
        ("hidden=8,x", ("sizes",)),
        ("tied=true,maybe", ("true or false",)),
    ],
)
def test_spaces_that_make_no_sense_are_refused(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        dimensions([text])
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("x.npy",), ("--set",)),
        ((), ("data",)),
        (("x.npy", "--set", "lr=1,2", "--set", "lr=3,4"), ("twice",)),
        (("x.npy", "--set", "lr=1e-3,1e-2", "--lr", "0.1"), ("--lr", "leave one")),
        (("x.npy", "--set", "latent=1,2", "--latent", "3"), ("--latent", "leave one")),
        (("x.npy", "--set", "tied=true,false"), ("'vae'", "'tied'")),
        (("x.npy", "--set", "lr=-1..1"), ("lr must be above 0",)),
        (("x.npy", "--set", "beta=1..4", "--metric", "valid_loss"), ("beta", "valid_elbo")),
        (("x.npy", "--set", "lr=1,2", "--metric", "accuracy"), ("valid_loss",)),
        (("x.npy", "--set", "lr=1,2", "--recipe", "autoencoder", "--metric", "valid_elbo"), ("valid_loss",)),
        (("x.npy", "--set", "lr=1,2", "--recipe", "what"), ("recipe",)),
        (("x.npy", "--set", "lr=1,2", "--trials", "0"), ("trials",)),
        (("x.npy", "--set", "lr=1,2", "--valid", "0"), ("valid",)),
        (("--resume", "nowhere"), ("nowhere", "sweep.json")),
        (("--resume", "nowhere", "--lr", "1"), ("leave",)),
    ],
    ids=str,
)
def test_commands_that_make_no_sense_are_refused(ran: Ran, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    check_refused(ran("sweep", *arguments), *words)
    assert not Path("runs").exists()


def test_a_damaged_sweep_is_refused(ran: Ran) -> None:
    Path("s").mkdir()
    Path("s/sweep.json").write_text('{"source": 3')
    check_refused(ran("sweep", "--resume", "s"), "damaged")


def test_without_optuna_one_sentence_says_what_to_install(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    check_refused(ran("sweep", "x.npy", "--set", "lr=1e-3,1e-2"), "pip install 'xhat[sweep]'")


def test_the_help_lists_it_and_stays_quick(ran: Ran) -> None:
    assert "sweep" in ran("--help")[1]
    said = ran("sweep", "--help")[1]
    assert said.count("Examples:") == 1
    assert "xhat sweep digits --set lr=1e-4..1e-2:log" in said
    code = "import sys, xhat.cli.sweep; sys.exit(any(name in sys.modules for name in ('torch', 'optuna', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_name_of_a_plan_is_written_and_read(ran: Ran) -> None:
    assert ran("sweep", "x.npy", "--set", "lr=1e-3,1e-2", *SMALL, "--trials", "1", "--standardize", "--out", "s")[0] == 0
    plan = _read_plan(Path("s"))
    assert plan.data["standardize"] is True
    assert tuple(plan.model["hidden"]) == (4,)
    assert plan.settings["batch_size"] == 64
