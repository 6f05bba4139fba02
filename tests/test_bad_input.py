"""Bad input: one sentence on standard error, exit code 2, no traceback, and nothing that was written is damaged."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xhat.cli import main
from xhat.training.loop import Loop

TINY = ("--epochs", "2", "--hidden", "8", "--latent", "2")
Refused = Callable[..., str]


def exit_code(*arguments: Any) -> Any:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must be refused, and returns the sentence."""

    def run(*arguments: Any) -> str:
        capsys.readouterr()
        code = exit_code(*arguments)
        said = capsys.readouterr().err
        assert said.startswith("xhat: "), said
        assert said.count("\n") == 1, said
        assert code == 2
        return said

    return run


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with real.npy, a finished run and an unfinished one."""
    folder = tmp_path_factory.mktemp("made")
    np.save(folder / "real.npy", np.random.default_rng(0).normal(size=(60, 4)))
    assert exit_code("train", folder / "real.npy", "--out", folder / "done", *TINY) == 0
    with pytest.MonkeyPatch.context() as patch:
        real = Loop._end_epoch

        def stop(loop: Loop) -> dict[str, Any]:
            os.kill(os.getpid(), signal.SIGINT)
            return real(loop)

        patch.setattr(Loop, "_end_epoch", stop)
        assert exit_code("train", folder / "real.npy", "--out", folder / "half", *TINY) == 130
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working folder with real.npy and links to nothing: the runs are copied where a test changes them."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(made / "real.npy", tmp_path)
    return tmp_path


class Payload:
    """Pickled, it makes a folder when it is opened."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.place),)


# Sources


def test_missing_empty_and_truncated_sources(place: Path, refused: Refused) -> None:
    assert "nowhere.npy" in refused("train", "nowhere.npy")
    for ending in ("npy", "npz", "csv", "parquet", "idx"):
        Path(f"empty.{ending}").touch()
        assert "empty" in refused("train", f"empty.{ending}")
    np.savez("whole.npz", x=np.ones((50, 4)))
    Path("cut.npz").write_bytes(Path("whole.npz").read_bytes()[:300])
    assert "cut.npz" in refused("train", "cut.npz")
    assert "empty text" in refused("train", "")
    refused("train")
    refused("train", place)


def test_pickled_objects_are_refused_and_not_opened(place: Path, refused: Refused) -> None:
    trap = place / "trap"
    objects = np.array([Payload(trap)], dtype=object)
    np.savez("evil.npz", x=objects)
    np.save("evil.npy", objects, allow_pickle=True)
    Path("bare.npz").write_bytes(pickle.dumps(Payload(trap)))
    Path("bare.npy").write_bytes(pickle.dumps(Payload(trap)))
    for name in ("evil.npz", "evil.npy", "bare.npz"):
        assert "pickled" in refused("train", name)
    refused("train", "bare.npy")
    assert not trap.exists()


def test_text_nan_and_infinity_name_their_row_and_column(place: Path, refused: Refused) -> None:
    Path("text.csv").write_text("a,b\n1,2\n3,x\n")
    assert "row 3, column 'b'" in refused("train", "text.csv")
    Path("nan.csv").write_text("a,b\n1,2\n3,nan\n4,5\n")
    said = refused("train", "nan.csv")
    assert "row 3, column 'b'" in said
    assert "--nonfinite drop" in said
    x = np.ones((9, 3))
    x[4, 2] = np.inf
    np.save("inf.npy", x)
    assert "row 4, column 2" in refused("train", "inf.npy")


def test_values_outside_the_support(place: Path, refused: Refused) -> None:
    assert "binarise" in refused("train", "digits", "--likelihood", "bernoulli")
    for likelihood in ("poisson", "bernoulli", "categorical", "continuous-bernoulli"):
        assert "support" in refused("train", "real.npy", "--likelihood", likelihood)
    assert "[0, 1]" in refused("train", "real.npy", "--binarize", "dynamic")
    assert not Path("runs").exists()


def test_too_few_examples_and_constant_columns(place: Path, refused: Refused) -> None:
    np.save("one.npy", np.ones((1, 4)))
    assert "at least 2" in refused("train", "one.npy")
    assert "1000" in refused("train", "real.npy", "--batch-size", "1000")
    x = np.random.default_rng(0).normal(size=(20, 3))
    x[:, 1] = 7
    np.save("constant.npy", x)
    assert "--drop-constant" in refused("train", "constant.npy")


# Options

WORDS = (
    *("--recipe", "--corruption", "--likelihood", "--posterior", "--network", "--activation", "--optimizer", "--schedule"),
    *("--keep", "--kl", "--per", "--link", "--gradient", "--baseline", "--posterior-scale", "--binarize", "--nonfinite"),
    *("--array", "--labels", "--device"),
)
WRONG = [
    *(("--epochs", value) for value in ("abc", "0", "-1", "1.5", "nan", "9" * 30)),
    *(("--lr", value) for value in ("nan", "inf", "0", "-1", "abc")),
    *(("--latent", value) for value in ("0", "-3", "2.5", "9" * 30)),
    *(("--hidden", value) for value in ("0", "-4", "abc", "8,2.5", ",", "")),
    *(("--hidden", value) for value in ("1000000000000", "100000000000,100000000000")),
    *(("--seed", value) for value in ("abc", "1.5", "9" * 30, "-" + "9" * 30)),
    *(("--valid", value) for value in ("0", "1.5", "nan", "inf", "-1", "59", "abc")),
    *(("--resize", value) for value in ("x", "0x0", "8x8")),
    *(("--scale", value) for value in ("nan", "-1", "0", "word")),
    *(("--clip", value) for value in ("nan", "0")),
    *((name, "nan") for name in ("--beta", "--beta-warmup", "--free-bits", "--minimum", "--warmup", "--weight-decay")),
    *((name, "0") for name in ("--samples", "--batch-size", "--patience", "--checkpoint-every", "--minimum")),
    *((name, "nonsense:7") for name in WORDS),
    ("--nonsense", "3"),
    ("--latnt", "3"),
    ("--tied", "maybe"),
    ("another.npy",),
    ("--out",),
    ("--config",),
]


@pytest.mark.parametrize("option", WRONG, ids=lambda option: " ".join(option)[:40])
def test_wrong_options(place: Path, refused: Refused, option: tuple[str, ...]) -> None:
    refused("train", "real.npy", *option)
    assert sorted(os.listdir(place)) == ["real.npy"]


def test_wrong_commands(place: Path, refused: Refused) -> None:
    assert "train" in refused("trian")
    refused("--nonsense")
    refused("evaluate")
    refused("evaluate", "a", "b")
    refused("sample", "--n")


def test_wrong_configurations(place: Path, refused: Refused) -> None:
    for text in (
        "epochs = \n",
        "nonsense = 1\n",
        "epochs = 'abc'\n",
        "epochs = 1.5\n",
        "epochs = [1, 2]\n",
        "epochs = true\n",
        "hidden = 'none'\n",
        "hidden = [0]\n",
        "tied = 'maybe'\n",
        "[training]\nepochs = 1\n",
    ):
        Path("run.toml").write_text(text)
        refused("train", "real.npy", "--config", "run.toml")
    Path("run.toml").write_bytes(b"\xff\xfe\x00")
    assert "run.toml" in refused("train", "real.npy", "--config", "run.toml")
    assert "nowhere.toml" in refused("train", "real.npy", "--config", "nowhere.toml")
    refused("train", "real.npy", "--config", ".")
    assert not Path("runs").exists()


# Runs


def test_what_is_no_run(place: Path, made: Path, refused: Refused) -> None:
    Path("empty").mkdir()
    for command in (["train", "--resume"], ["evaluate"], ["sample"], ["encode"], ["reconstruct"], ["report"]):
        for name in ("nowhere", "empty", "real.npy", made / "done" / "model.safetensors"):
            assert "run" in refused(*command, name)


def test_an_unfinished_run_says_how_to_go_on(made: Path, refused: Refused) -> None:
    for command in ("evaluate", "sample", "encode", "reconstruct", "report"):
        assert "xhat train --resume" in refused(command, made / "half")


def test_a_run_is_not_overwritten(made: Path, refused: Refused) -> None:
    for name in ("done", "half"):
        before = content(made / name)
        assert "--resume" in refused("train", made / "real.npy", "--out", made / name, *TINY)
        assert content(made / name) == before


@pytest.mark.parametrize(
    "option", [("--epochs", "9"), ("--lr", "1"), ("--latent", "3"), ("--valid", "5"), ("--recipe", "stacked")]
)
def test_a_resumed_run_keeps_its_options(made: Path, refused: Refused, option: tuple[str, str]) -> None:
    before = content(made / "half")
    assert option[0] in refused("train", "--resume", made / "half", *option)
    assert "source" in refused("train", "digits", "--resume", made / "half")
    assert content(made / "half") == before


def test_changed_and_vanished_data(place: Path, refused: Refused) -> None:
    assert exit_code("train", "real.npy", "--out", "run", *TINY) == 0
    shutil.copytree("run", "half")
    (place / "half" / "model.safetensors").unlink()
    x = np.load("real.npy")
    x[3, 1] += 1
    np.save("real.npy", x)
    for command in (["train", "--resume", "half"], ["evaluate", "run"], ["encode", "run", "--split", "all"]):
        assert "has changed" in refused(*command)
    assert exit_code("evaluate", "run", "--data", "real.npy", "--samples", "2") == 0
    Path("real.npy").unlink()
    assert "real.npy" in refused("train", "--resume", "half")


def test_a_damaged_checkpoint(place: Path, made: Path, refused: Refused) -> None:
    shutil.copytree(made / "half", "half")
    checkpoint = Path("half/checkpoints/last.safetensors")
    whole = bytearray(checkpoint.read_bytes())
    whole[-5] ^= 1
    checkpoint.write_bytes(whole)
    assert "checksum" in refused("train", "--resume", "half")
    checkpoint.unlink()
    refused("train", "--resume", "half")


DATA: list[tuple[str, Any]] = [
    ("source", 5),
    ("source", None),
    ("seed", "x"),
    ("seed", None),
    ("options", 5),
    ("options", {"nonsense": 1}),
    ("options", {"valid": "x"}),
    ("options", {"resize": 5}),
    ("scaling", 5),
    ("scaling", {"mean": [1]}),
    ("scaling", {"mean": [1], "std": [1]}),
    ("scaling", {"mean": ["a"] * 4, "std": [1] * 4}),
    ("scaling", {"mean": [0] * 4, "std": [0] * 4}),
    ("columns", 5),
    ("shape", 5),
    ("shape", [5]),
]


@pytest.mark.parametrize(("name", "value"), DATA)
def test_a_config_edited_into_nonsense(place: Path, made: Path, refused: Refused, name: str, value: Any) -> None:
    shutil.copytree(made / "done", "done")
    shutil.copytree(made / "half", "half")
    for run in ("done", "half"):
        config = json.loads(Path(run, "config.json").read_text())
        config["data"][name] = value
        Path(run, "config.json").write_text(json.dumps(config))
    for command in ("evaluate", "sample", "encode"):
        assert "config.json" in refused(command, "done")
    if name != "shape":
        refused("train", "--resume", "half")


MODELS: list[Any] = [5, [], None, {"part": "os.system", "arguments": {}}, {"part": "models.VAE", "arguments": 5}]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_model_edited_into_nonsense(place: Path, made: Path, refused: Refused, model: Any) -> None:
    shutil.copytree(made / "half", "half")
    config = json.loads(Path("half/config.json").read_text())
    Path("half/config.json").write_text(json.dumps({**config, "model": model}))
    refused("train", "--resume", "half")
    for text in ("", "{nonsense", "[1, 2]"):
        Path("half/config.json").write_text(text)
        assert "config.json" in refused("train", "--resume", "half")


# Uses


def test_wrong_uses(place: Path, made: Path, refused: Refused) -> None:
    run = made / "done"
    before = content(run)
    np.save("other.npy", np.ones((9, 5)) * np.arange(9)[:, None])
    assert "(5,)" in refused("evaluate", run, "--data", "other.npy")
    assert "(5,)" in refused("encode", run, "--data", "other.npy")
    refused("evaluate", run, "--data", "nowhere.npy")
    refused("evaluate", run, "--split", "nonsense")
    refused("evaluate", run, "--limit", "0")
    refused("evaluate", run, "--samples", "0")
    for n in ("0", "-1", "x", "9" * 30):
        refused("sample", run, "--n", n)
    refused("sample", run, "--seed", "9" * 30)
    for corruption in ("nonsense:7", "masking:x", "masking:2", "masking:"):
        refused("reconstruct", run, "--corrupt", corruption)
    for rows in (np.ones((5, 3)), np.ones(2), np.ones((0, 2)), np.full((2, 2), np.nan)):
        np.save("codes.npy", rows)
        refused("decode", run, "codes.npy")
    refused("decode", run, "nowhere.npy")
    refused("decode", run, run)
    assert content(run) == before


def test_outputs_that_cannot_be_written(place: Path, made: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made / "done"
    Path("folder.csv").mkdir()
    Path("device.csv").symlink_to("/dev/full")
    for out in ("x.png", "x.txt", "x", "folder.csv", "device.csv", "real.npy/x.csv", "/proc/nowhere/x.csv"):
        refused("sample", run, "--n", "5", "--out", out)
    refused("train", "real.npy", "--out", "real.npy/run", *TINY)
    refused("train", "real.npy", "--out", "real.npy", *TINY)
    Path("kept.csv").write_text("kept")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("xhat.models.files.os.fsync", full)
    before = content(run)
    assert "disk is full" in refused("sample", run, "--out", "kept.csv")
    assert "disk is full" in refused("evaluate", run, "--samples", "2")
    assert "disk is full" in refused("train", "real.npy", "--out", "new", *TINY)
    assert Path("kept.csv").read_text() == "kept"
    assert content(run) == before
    assert sorted(os.listdir(place)) == ["device.csv", "folder.csv", "kept.csv", "new", "real.npy"]


def test_a_disk_that_fills_up_while_training(place: Path, made: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = os.fsync, []

    def fill(handle: int) -> None:
        written.append(handle)
        if len(written) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr("xhat.models.files.os.fsync", fill)
        assert "disk is full" in refused("train", "real.npy", "--out", "run", *TINY)
    assert exit_code("train", "--resume", "run") == 0  # what the full disk left is whole
    assert Path("run/metrics.jsonl").read_text() == (made / "done" / "metrics.jsonl").read_text()
