"""The command as a stranger uses it: help, data of all kinds, files in the data's own units, interruption and resumption."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from xhat.cli import main
from xhat.cli.use import _held_evaluation
from xhat.training.folder import RunFolder

TINY = ("--epochs", "2", "--hidden", "8", "--latent", "2")
COMMANDS = ("train", "evaluate", "sample", "encode", "decode", "reconstruct", "report", "gradients")
XHAT = (sys.executable, "-m", "xhat")
Ran = Callable[..., str]


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Runs a command that must succeed in a fresh working folder, and returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert caught.value.code == 0, said.err
        assert said.err == ""
        return said.out

    return run


def rows(path: str | Path) -> list[list[str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def write_table(path: str, header: list[str], table: list[list[Any]]) -> None:
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *table])


# Help


def test_help_shows_examples() -> None:
    said = subprocess.run([*XHAT, "--help"], capture_output=True, text=True, check=True)
    assert "xhat train digits" in said.stdout
    assert "--config" in said.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(ran: Ran, command: str) -> None:
    said = ran(command, "--help")
    assert f"xhat {command} " in said.split("Examples:")[1]
    assert said.count("Examples:") == 1
    assert "[default: 0]" in said


def test_nothing_at_all_shows_the_help(ran: Ran) -> None:
    assert "Commands" in ran()
    assert ran("--version").strip() == __import__("xhat").__version__


# Options


def test_a_configuration_holds_any_option_and_the_command_line_goes_before_it(ran: Ran) -> None:
    Path("run.toml").write_text(
        "source = 'digits'\nepochs = 1\nhidden = [8, 4]\nlatent = 2\nbatch-size = 256\nbeta_warmup = 1\nvalid = 0.2\nout = 'a'\n"
        "scale = 0.5\nkeep = 'last'\n"
    )
    ran("train", "--config", "run.toml")
    config = json.loads(Path("a/config.json").read_text())
    assert config["options"]["hidden"] == [8, 4]
    assert config["options"]["scale"] == 0.5
    assert (config["settings"]["batch_size"], config["settings"]["keep"]) == (256, "last")
    assert config["data"]["options"]["valid"] == 0.2
    ran("train", "--config=run.toml", "--out", "b", "--hidden", "none", "--epochs", "2")
    config = json.loads(Path("b/config.json").read_text())
    assert config["options"]["hidden"] == []
    assert config["settings"]["epochs"] == 2
    Path("few.toml").write_text("n = 5\nseed = 3\n")
    assert ran("sample", "a", "--config", "few.toml").startswith("5 new")


@pytest.mark.parametrize(("words", "sizes"), [("8,4", [8, 4]), ("8 4", [8, 4]), ("8", [8]), ("none", [])])
def test_lists_of_sizes(ran: Ran, words: str, sizes: list[int]) -> None:
    ran("train", "digits", "--epochs", "1", "--hidden", *words.split(), "--latent", "2.0", "--out", "a")
    assert json.loads(Path("a/config.json").read_text())["options"]["hidden"] == sizes
    if " " not in words:
        ran("train", "digits", "--epochs", "1", f"--hidden={words}", "--out", "b")
        assert json.loads(Path("b/config.json").read_text())["options"]["hidden"] == sizes


# Tables


NAMES = ["height, cm", 'the "weight"', "größe"]


@pytest.fixture
def table(tmp_path: Path, ran: Ran) -> np.ndarray:
    """table.csv with three columns in units of their own and a label, and a run on it."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(120, 3)) * [10, 0.1, 1000] + [170, 5, 1e5]
    kinds = draw.choice(["ant", "cat", "dog"], 120)
    write_table("table.csv", [*NAMES, "kind"], [[*row, kind] for row, kind in zip(x.tolist(), kinds, strict=True)])
    ran("train", "table.csv", "--labels", "kind", "--out", "run", *TINY)
    return x


def test_tables_come_back_with_their_names_units_and_labels(ran: Ran, table: np.ndarray) -> None:
    ran("encode", "run", "--split", "all", "--out", "codes.csv")
    codes = rows("codes.csv")
    assert codes[0] == ["codes_0", "codes_1", "label"]
    assert [row[-1] for row in codes[1:]] == [row[-1] for row in rows("table.csv")[1:]]
    ran("encode", "run", "--split", "all", "--out", "codes.npz")
    assert np.load("codes.npz")["labels"].tolist() == [row[-1] for row in codes[1:]]
    ran("decode", "run", "codes.csv", "--out", "a.csv")
    ran("decode", "run", "codes.npz", "--out", "b.csv")
    ran("reconstruct", "run", "--data", "table.csv", "--out", "c.csv")
    assert rows("a.csv")[0] == rows("b.csv")[0] == rows("c.csv")[0] == NAMES
    a, b, c = (np.array(rows(f"{name}.csv")[1:], dtype=float) for name in "abc")
    np.testing.assert_allclose(a, c, rtol=1e-5)
    np.testing.assert_allclose(b, c, rtol=1e-5)
    assert (np.abs(a.mean(0) - table.mean(0)) < table.std(0)).all()
    ran("reconstruct", "run", "--data", "table.csv", "--out", "both.npz")
    np.testing.assert_allclose(np.load("both.npz")["x"], table, rtol=1e-6)


def test_new_examples_are_prepared_as_the_run_was(ran: Ran, table: np.ndarray) -> None:
    ran("encode", "run", "--split", "all", "--out", "known.npy")
    known = np.load("known.npy")[:7]
    order = [2, 0, 1]
    write_table("plain.csv", NAMES, table[:7].tolist())
    write_table("turned.csv", [NAMES[i] for i in order], table[:7, order].tolist())
    write_table("more.csv", [*NAMES, "extra"], [[*row, 1.0] for row in table[:7].tolist()])
    for name in ("plain", "turned", "more"):
        ran("encode", "run", "--data", f"{name}.csv", "--out", f"{name}.npy")
        np.testing.assert_allclose(np.load(f"{name}.npy"), known, atol=1e-6)
    write_table("kinds.csv", [*NAMES, "kind"], [[*row, kind] for row, kind in zip(table.tolist(), ["dog", "cow"], strict=False)])
    ran("encode", "run", "--data", "kinds.csv", "--out", "kinds_codes.csv")
    assert [row[-1] for row in rows("kinds_codes.csv")] == ["label", "dog", ""]


def test_synthetic_tables_have_the_spread_of_the_data(ran: Ran, table: np.ndarray) -> None:
    ran("sample", "run", "--n", "2000", "--draw", "--out", "synthetic.csv", "--seed", "-1")
    drawn = rows("synthetic.csv")
    assert drawn[0] == NAMES
    values = np.array(drawn[1:], dtype=float)
    assert values.shape == (2000, 3)
    assert (np.abs(values.std(0) / table.std(0) - 1) < 0.5).all()
    ran("train", "synthetic.csv", "--out", "again", "--epochs", "1")


def test_standardisation_can_be_chosen(ran: Ran, table: np.ndarray) -> None:
    ran("train", "table.csv", "--labels", "kind", "--no-standardize", "--out", "raw", *TINY)
    assert json.loads(Path("raw/config.json").read_text())["data"]["scaling"] is None
    said = ran("evaluate", "run", "--samples", "5")
    assert "in the data's own units" in said
    assert "own units" not in ran("evaluate", "raw", "--samples", "5")


def test_rows_and_columns_that_were_left_out_are_left_out_again(ran: Ran) -> None:
    x = np.random.default_rng(0).normal(size=(50, 4))
    x[:, 1] = 3
    x[5, 2] = np.nan
    np.save("x.npy", x)
    ran("train", "x.npy", "--drop-constant", "--nonfinite", "drop", "--out", "run", *TINY)
    assert "49 examples, (3,)" in ran("encode", "run", "--split", "all")
    np.save("new.npy", np.delete(x, 5, 0))
    ran("encode", "run", "--data", "new.npy", "--out", "new_codes.npy")
    np.testing.assert_allclose(np.load("new_codes.npy"), np.load("run/codes.npy"), atol=1e-6)


def test_bytes_of_a_table_are_scaled_as_the_training_data_were(ran: Ran) -> None:
    x = np.random.default_rng(0).integers(0, 256, size=(50, 6)).astype(np.uint8)
    x[0, 0] = 255
    np.save("x.npy", x)
    np.save("dark.npy", np.minimum(x[:5], 200))
    ran("train", "x.npy", "--out", "run", *TINY)
    ran("reconstruct", "run", "--data", "dark.npy", "--out", "dark.npz")
    np.testing.assert_allclose(np.load("dark.npz")["x"], np.minimum(x[:5], 200) / 255, atol=1e-6)


# Images


def test_images_in_colour_with_labels_in_a_folder_with_a_strange_name(ran: Ran) -> None:
    image = pytest.importorskip("PIL.Image")
    draw = np.random.default_rng(0)
    for kind in ("röt", "grün"):
        Path("my images", kind).mkdir(parents=True)
        for i in range(12):
            image.fromarray(draw.integers(0, 256, (9 + i % 2, 8, 3)).astype(np.uint8)).save(f"my images/{kind}/{i}.png")
    run = "a rün"
    options = ("--resize", "8x8", "--network", "conv", "--channels", "4,8", "--hidden", "16", "--epochs", "1")
    said = ran("train", "my images", "--out", run, *options)
    assert "'a rün'" in said  # quoted, so that the next command can be copied
    ran("sample", run, "--n", "7")
    ran("reconstruct", run, "--corrupt", "salt-and-pepper:0.2", "--limit", "2", "--out", "deep/pairs.png")
    for place, sides in ((Path(run, "samples.png"), 1), (Path("deep/pairs.png"), 3)):
        with image.open(place) as picture:
            assert picture.mode in ("RGB", "RGBA")
            assert picture.width % (10 * sides) == picture.height % 10 == 0
    ran("encode", run, "--split", "all", "--out", "codes.csv")
    assert {row[-1] for row in rows("codes.csv")[1:]} == {"röt", "grün"}
    Path("grey").mkdir()
    image.fromarray(np.zeros((20, 20), np.uint8)).save("grey/a.png")
    ran("encode", run, "--data", "grey", "--out", "grey.npy")
    ran("train", "my images", "--resize", "8x8", "--standardize", "--out", "standard", *TINY)
    ran("evaluate", "standard", "--samples", "3")


def test_digits_from_data_to_reconstruction(ran: Ran) -> None:
    said = ran("train", "digits", "--out", "run", *TINY)
    assert len(said.splitlines()) <= 6
    assert "log p(x)" in ran("evaluate", "run", "--samples", "5", "--limit", "20")
    assert json.loads(Path("run/evaluation.json").read_text())["examples"] == 20
    folder = RunFolder("run")
    assert _held_evaluation(folder) is None  # of twenty examples only
    ran("evaluate", "run", "--samples", "5")
    assert _held_evaluation(folder).examples == 180
    ran("evaluate", "run", "--samples", "5", "--data", "digits")
    assert _held_evaluation(folder) is None  # other data are never taken for the run's own, whatever they are called
    command = json.loads(Path("run/config.json").read_text())["command"]
    ran("fit-prior", "run", "--components", "2", "--out", "fitted")
    assert json.loads(Path("fitted/config.json").read_text())["command"].startswith(f"{command}\nxhat")
    assert "squared error" in ran("reconstruct", "run", "--limit", "5", "--corrupt", "masking:0.5", "--out", "r.npz")
    assert set(np.load("r.npz")) == {"x", "corrupted", "x_hat"}
    same = [np.load("s.npy") for _ in range(2) if ran("sample", "run", "--n", "3", "--draw", "--seed", "4", "--out", "s.npy")]
    assert (same[0] == same[1]).all()


# Interruption


def weights(run: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(run, "model.safetensors"))


def assert_same_run(one: str | Path, other: str | Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert Path(one, "metrics.jsonl").read_bytes() == Path(other, "metrics.jsonl").read_bytes()


LONG = ("digits", "--hidden", "16,8", "--latent", "2", "--epochs", "16", "--batch-size", "64")
PATIENCE = 600  # seconds that nobody waits for, unless something hangs


def start(*arguments: Any) -> subprocess.Popen[str]:
    command = [*XHAT, "train", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# The command, to which a signal comes in the middle of a step: when it has trained so many linear layers.
STOPPED = """
import os, sys
from torch.nn import Linear
from torch.nn.modules.module import register_module_forward_pre_hook
from xhat.cli import main
number, layer = map(int, sys.argv[1:3])
sys.argv[:3] = ["xhat"]
met = []
def ask(module, given):
    if module.training and isinstance(module, Linear):
        met.append(module)
        if len(met) == layer:
            os.kill(os.getpid(), number)
register_module_forward_pre_hook(ask)
main()
"""


def wait_for_epochs(process: subprocess.Popen[str], run: str, count: int) -> None:
    metrics = Path(run, "metrics.jsonl")
    while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < count):
        time.sleep(0.005)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    start(*LONG, "--out", run).communicate(timeout=PATIENCE)
    return run


def test_a_stopped_run_saves_says_how_to_go_on_and_ends_like_an_unbroken_one(ran: Ran, unbroken: Path) -> None:
    words = [*LONG, "--out", "broken"]
    for layer, number in ((400, signal.SIGINT), (700, signal.SIGTERM)):
        command = [sys.executable, "-c", STOPPED, str(int(number)), str(layer), "train", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 130
        assert "xhat train --resume broken" in done.stderr
        assert "Traceback" not in done.stderr
        assert not Path("broken/model.safetensors").exists()
        words = ["--resume", "broken"]
    assert 5 < Path("broken/metrics.jsonl").read_bytes().count(b"\n") < 16
    process = start(*words)
    assert "finished" in process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0
    assert_same_run(unbroken, "broken")
    assert "finished, nothing is left to do" in ran("train", "--resume", "broken")
    assert_same_run(unbroken, "broken")


def test_a_killed_run_ends_like_an_unbroken_one(ran: Ran, unbroken: Path) -> None:
    draw = random.Random(0)
    process = start(*LONG, "--out", "broken")
    for kill in range(3):
        wait_for_epochs(process, "broken", 2 + 4 * kill)
        time.sleep(0.05 * draw.random())
        process.kill()
        process.communicate()
        process = start("--resume", "broken")
    process.communicate(timeout=PATIENCE)
    assert_same_run(unbroken, "broken")


def test_a_cut_last_line_of_the_log_happens_again(ran: Ran) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(60, 3)))
    ran("train", "x.npy", "--out", "whole", *TINY)
    process = start("x.npy", "--out", "broken", *TINY)
    wait_for_epochs(process, "broken", 1)
    process.kill()
    process.communicate()
    Path("broken/model.safetensors").unlink(missing_ok=True)
    with Path("broken/metrics.jsonl").open("a") as file:
        file.write('{"stage": "tr')
    ran("train", "--resume", "broken")
    lines = [[json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()] for run in ("whole", "broken")]
    assert [line["epoch"] for line in lines[1]] == [line["epoch"] for line in lines[0]] == [1, 2]


# Where it runs


def test_a_terminal_that_knows_no_unicode_is_written_to(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    ran("train", "digits", "--out", "run", *TINY)
    for words in (["evaluate", "run", "--samples", "2"], ["--help"]):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="surrogateescape")
        monkeypatch.setattr(sys, "stdout", terminal)
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 0
        terminal.flush()
        assert b"?" in terminal.buffer.getvalue()


def test_without_a_home_the_report_is_written(ran: Ran) -> None:
    """Matplotlib says where it keeps its list of fonts instead, and nothing else is said."""
    ran("train", "digits", "--out", "run", *TINY)
    homeless = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR" and not name.startswith("XDG_")}
    command = [*XHAT, "report", "run", "--samples", "2"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, env={**homeless, "HOME": "/dev/null/nobody"}
    )
    assert done.returncode == 0, done.stderr
    assert "written to run/report.html" in done.stdout
    assert [line for line in done.stderr.splitlines() if "matplotlib" not in line] == []


# Pipes


def test_pipes_that_close_and_disks_that_are_full(ran: Ran) -> None:
    ran("train", "digits", "--out", "run", *TINY)

    def shell(line: str) -> tuple[int, str]:
        command = ["bash", "-o", "pipefail", "-c", line.replace("xhat", " ".join(XHAT))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    assert shell("xhat sample run --n 4 | true") == (141, "")
    assert shell("xhat --version <&- >&-") == (0, "")
    assert shell("xhat train --help | true")[1] == ""
    code, said = shell("xhat --version > /dev/full")
    assert code == 2
    assert said.startswith("xhat: ")
    assert said.count("\n") == 1
