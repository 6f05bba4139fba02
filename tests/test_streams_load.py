"""Data that stay on disk: loading, evaluating and the commands, against the same data in memory."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

import xhat
from reading import numbered, one_sentence
from xhat.cli import main
from xhat.data import Examples, load_data, memory
from xhat.data.preparation_json import from_config
from xhat.data.streams import NpyStream, split
from xhat.data.streams.rows import parted
from xhat.errors import CheckpointError, ConfigError, DataError, XhatError
from xhat.evaluation.moments import Moments


def saved(path, array):
    np.save(path, array)
    return path


def images(count=400, seed=0):
    """Grey images whose first two pixels say which they are."""
    drawn = np.random.default_rng(seed).integers(0, 256, (count, 5, 4)).astype(np.uint8)
    drawn[:, 0, 0], drawn[:, 0, 1] = np.arange(count) % 251, np.arange(count) // 251
    return drawn


def parts_of(data):
    return data.train, data.valid, data.test


def everyone(data):
    return torch.cat([part.tensor() for part in parts_of(data)])


def ranked(values):
    return values[np.lexsort(values.flatten(1).T.numpy())]


# ---- splits


@pytest.mark.parametrize("sizes", [[10], [4, 4, 2], [1] * 10, [5, 1, 1, 3], [7] * 40 + [3], [1000, 1]])
@pytest.mark.parametrize(("valid", "test"), [(1, 1), (3, 4), (1, 7), (0, 2), (2, 0)])
def test_a_split_is_disjoint_complete_and_fair_to_each_piece(sizes, valid, test):
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    parts = parted(bounds, valid, test, seed=1)
    assert [len(part) for part in parts] == [sum(sizes) - valid - test, valid, test]
    rows = [part.at(np.arange(len(part))) for part in parts]
    assert sorted(np.concatenate(rows).tolist()) == list(range(sum(sizes)))
    for part, own in zip(parts, rows, strict=True):
        share = len(part) / sum(sizes)
        counts = np.histogram(own, bounds)[0]
        assert np.diff(part.starts).tolist() == counts.tolist()
        assert (np.abs(counts - share * np.array(sizes)) < 2).all()
        pieces = np.searchsorted(bounds, own, "right")
        assert (np.diff(pieces) >= 0).all()


def test_every_row_is_as_likely_to_be_tested():
    bounds = np.array([0, 6, 12, 15])
    counts = np.zeros(15)
    for seed in range(3000):
        counts[parted(bounds, 2, 5, seed).test.at(np.arange(5))] += 1
    expected = 3000 * np.array([2] * 6 + [2] * 6 + [1] * 3) / np.array([6] * 12 + [3] * 3)
    assert (np.abs(counts - expected) < 4.5 * np.sqrt(expected)).all()


def test_same_seeds_same_splits(tmp_path):
    path = saved(tmp_path / "x.npy", images())
    one, two, other = (load_data(path, memory="stream", seed=seed) for seed in (3, 3, 4))
    for own, again, apart in zip(parts_of(one), parts_of(two), parts_of(other), strict=True):
        assert torch.equal(own.tensor(), again.tensor())
        assert not torch.equal(own.tensor(), apart.tensor())
    assert [len(part) for part in parts_of(one)] == [320, 40, 40]
    assert len({tuple(row) for row in everyone(one).flatten(1).tolist()}) == 400


@pytest.mark.parametrize(
    ("count", "options", "word"), [(3, {}, "at least 2 training"), (10, {"valid": 6, "test": 4}, "besides 6")]
)
def test_too_few_rows_are_refused(tmp_path, count, options, word):
    with pytest.raises(DataError, match=word):
        load_data(saved(tmp_path / "x.npy", numbered(count)), memory="stream", **options)


# ---- the same as in memory


SOURCES = {
    "images": images(),
    "binary": (images() > 99).astype(np.uint8),
    "floats": images().astype(np.float32) / 255,
    "counts": np.random.default_rng(0).poisson(3, (300, 4)),
    "real": numbered(300, 3).numpy(),
    "colour": np.random.default_rng(0).integers(0, 256, (300, 5, 4, 3)).astype(np.uint8),
    "bytes": images().reshape(400, 20),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("options", [{}, {"standardize": True}, {"standardize": False}, {"binarize": "threshold"}], ids=str)
def test_streamed_data_are_the_data(tmp_path, name, options):
    path = saved(tmp_path / "x.npy", SOURCES[name])
    if "binarize" in options and name in ("real", "counts"):
        with pytest.raises(DataError, match=r"\[0, 1\]"):
            load_data(path, memory="stream", **options)
        return
    streamed, loaded = (load_data(path, memory=how, **options) for how in ("stream", "load"))
    assert (streamed.streamed, loaded.streamed) == (True, False)
    assert (streamed.shape, streamed.kind, streamed.bytes) == (loaded.shape, loaded.kind, loaded.bytes)
    one, two = everyone(streamed), everyone(loaded)
    assert one.dtype == two.dtype
    if streamed.scaling is None:
        assert loaded.scaling is None
        assert torch.equal(ranked(one), ranked(two))
    else:
        train = streamed.train.tensor().double()
        axes = [axis for axis in range(train.dim()) if axis != 1]
        torch.testing.assert_close(train.mean(axes), torch.zeros(train.shape[1]).double(), rtol=0, atol=1e-5)
        torch.testing.assert_close(train.std(axes, correction=0), torch.ones(train.shape[1]).double(), rtol=0, atol=1e-5)
        back = [data.scaling.invert(values.double()) for data, values in ((streamed, one), (loaded, two))]
        torch.testing.assert_close(ranked(back[0].round(decimals=3)), ranked(back[1].round(decimals=3)), rtol=1e-4, atol=2e-3)


def test_binarisation_is_drawn_as_asked(tmp_path):
    path = saved(tmp_path / "x.npy", images(2000))
    grey = load_data(path, memory="stream")
    for how in ("static", "dynamic"):
        data = load_data(path, memory="stream", binarize=how)
        again = load_data(path, memory="stream", binarize=how)
        assert data.kind.likelihood == "bernoulli"
        for which, part, other, p in zip(("train", "valid", "test"), *map(parts_of, (data, again, grey)), strict=True):
            drawn = part.tensor()
            assert set(drawn.unique().tolist()) == {0.0, 1.0}
            assert torch.equal(drawn, other.tensor()) == (how == "static" or which != "train")
            error = (drawn - p.tensor()).double()
            assert abs(error.sum()) <= 4 * (p.tensor() * (1 - p.tensor())).double().sum().sqrt()


def test_describe_says_that_it_streams(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.npy", images())
    said = load_data(path, memory="stream").describe()
    assert "streamed from disk" in said
    assert "400 examples of shape (1, 5, 4), 320 to train" in said
    assert "training examples" not in said
    monkeypatch.setattr(split, "SAMPLE", 100 * 20)
    data = load_data(path, memory="stream", standardize=True)
    assert "of the training examples" in data.describe()
    looked_at = int(data.describe().split("are those of ")[1].split()[0])
    assert 90 <= looked_at <= 100
    assert abs(float(data.train.tensor().mean())) < 0.2


def test_a_sample_comes_from_everywhere_and_from_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(split, "SAMPLE", 2**16)
    array = np.zeros((20_000, 100), np.uint8)
    array[:50] = 255
    path = saved(tmp_path / "x.npy", array)
    # but for its first rows the file is black
    assert load_data(path, memory="stream").bytes


def test_rows_outside_a_learnt_sample_are_checked_when_they_are_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(split, "SAMPLE", 4000)
    array = np.random.default_rng(0).random((20_000, 10)).astype(np.float32)
    array[19_999, 3] = np.nan
    data = load_data(saved(tmp_path / "x.npy", array), memory="stream")
    with pytest.raises(DataError) as error:
        [list(part.batches(1000)) for part in parts_of(data)]
    one_sentence(error.value, "x.npy, row 19999 ", "nan", "(3,)")


def test_columns_are_left_out_as_in_memory(tmp_path):
    values = numbered(60, 4).numpy()
    values[:, 2] = 5.0
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({name: values[:, i] for i, name in enumerate("abcd")}), path, row_group_size=20)
    with pytest.raises(DataError) as error:
        load_data(path, memory="stream")
    one_sentence(error.value, "'c'", "--drop-constant")
    data = load_data(path, memory="stream", drop_constant=True)
    assert (data.columns, data.kept, data.shape) == (("a", "b", "d"), (0, 1, 3), (3,))
    torch.testing.assert_close(
        ranked(data.scaling.invert(everyone(data).double())),
        torch.from_numpy(values[:, [0, 1, 3]]).double(),
        rtol=1e-4,
        atol=1e-4,
    )


# ---- when to stream


def test_auto_streams_what_takes_more_than_its_share(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.npy", images())
    assert not load_data(path).streamed
    size = 400 * 20
    for free, streams in ((4 * size - 1, True), (4 * size + 1, False)):
        monkeypatch.setattr(memory, "available_memory", lambda free=free: free)
        assert load_data(path).streamed is streams
    monkeypatch.setattr(memory, "available_memory", lambda: 0)
    assert not load_data(path, memory="load").streamed
    assert not load_data(images()).streamed
    assert load_data(NpyStream(path)).streamed


def test_free_memory_is_known_and_obeys_a_container(tmp_path, monkeypatch):
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 <= memory.available_memory() <= whole
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    for name, text in (("max", "3000000\n"), ("current", "2000000\n"), ("stat", "anon 5\ninactive_file 100\nactive_file 23\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory.available_memory() == 1_000_123
    (tmp_path / "memory.max").write_text("max\n")
    assert 1_000_123 < memory.available_memory() <= whole


REFUSED = [
    ("x.npy", {"nonfinite": "drop"}, ["nonfinite='drop'", "--memory load"]),
    ("x.npy", {"resize": (2, 2)}, ["resize="]),
    ("x.npy", {"array": "a"}, ["array="]),
    ("x.npy", {"labels": "a"}, ["labels="]),
    ("x.npy", {"memory": "disk"}, ["memory", "'disk'"]),
    ("x.csv", {}, ["x.csv", "cannot be streamed", ".npy"]),
    ("digits", {}, ["cannot be streamed"]),
]


@pytest.mark.parametrize(("source", "options", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_streamed_is_refused(tmp_path, source, options, words):
    saved(tmp_path / "x.npy", images())
    (tmp_path / "x.csv").write_text("1,2\n3,4\n")
    with pytest.raises(ConfigError) as error:
        load_data(source if source == "digits" else tmp_path / source, **{"memory": "stream", **options})
    one_sentence(error.value, *words)


def test_a_missing_or_empty_source_is_refused_as_ever(tmp_path):
    for source in (tmp_path / "nothing.npy", "", tmp_path):
        with pytest.raises(XhatError):
            load_data(source, memory="stream")


# ---- measuring


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return xhat.build("vae", shape=(1, 5, 4), latent=3, hidden=[16], likelihood="bernoulli")


@pytest.fixture
def never_whole(monkeypatch):
    """No streamed examples may be made one tensor."""
    whole = Examples.tensor

    def tensor(self):
        assert self.resident, "streamed examples were loaded"
        return whole(self)

    monkeypatch.setattr(Examples, "tensor", tensor)


@pytest.mark.usefixtures("never_whole")
def test_measures_of_streamed_examples_are_those_of_the_same_in_memory(tmp_path, model):
    stream = Examples(NpyStream(saved(tmp_path / "x.npy", SOURCES["binary"])))
    held = Examples(torch.from_numpy(SOURCES["binary"][:, None]))
    one, two = (xhat.evaluate(model, x, samples=7) for x in (stream, held))
    assert one == two
    first, second = (torch.manual_seed(3) and xhat.log_likelihood(model, x, samples=5) for x in (stream, held))
    for own, other in zip(first, second, strict=True):
        assert torch.equal(own, other)
    compared = xhat.evaluate(model, stream, samples=3, train=stream)
    assert compared.train_elbo.value == pytest.approx(one.elbo.value, abs=5 * one.elbo.stderr)


def test_moments_are_those_of_the_whole():
    values = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) + 1e4
    moments = Moments()
    for block in values.split([1, 0, 500, 2, 497]):
        moments.add(block)
    torch.testing.assert_close(moments.mean, values.double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.variance, values.double().var(0), rtol=1e-9, atol=0)
    assert moments.lowest == float(values.min())
    assert moments.count == 1000
    moments.add(torch.tensor([[-torch.inf, torch.nan, 0.0]]))
    assert float(moments.mean[0]) == -torch.inf
    assert np.isnan(moments.lowest)


def test_like_its_training_data_streamed_or_not(tmp_path):
    for name, told in (
        ("images", {"shape": [1, 5, 4], "bytes": True}),
        ("images", {"shape": [3, 5, 4], "bytes": True}),
        ("binary", {"shape": [1, 5, 4], "bytes": False}),
        ("real", {"shape": [3], "scaling": {"mean": [1.0, 2.0, 3.0], "std": [2.0, 4.0, 5.0]}}),
        ("real", {"shape": [2], "kept": [0, 2]}),
        ("images", {"shape": [1, 5, 4], "bytes": True, "options": {"binarize": "threshold"}}),
    ):
        path = saved(tmp_path / "x.npy", SOURCES[name])
        own, held = (from_config(told).apply(path, memory=how) for how in ("stream", "load"))
        assert (own.resident, held.resident) == (False, True)
        assert torch.equal(own.tensor(), held.tensor())
    with pytest.raises(DataError) as error:
        from_config({"shape": [7]}).apply(path, memory="stream")
    one_sentence(error.value, "(7,)", "trained on")
    told = from_config({"shape": [1, 5, 4], "bytes": True, "seed": 1, "options": {"binarize": "static"}})
    drawn = told.apply(path, memory="stream")
    assert torch.equal(drawn.tensor(), drawn.tensor())
    assert torch.equal(drawn.tensor(), told.apply(path, memory="load").tensor())
    assert set(drawn.tensor().unique().tolist()) == {0.0, 1.0}


def _interrupted(writer):
    """All rows are there, and then something else goes wrong."""
    writer.add(torch.rand(10, 3))
    raise KeyError


def test_files_are_written_row_by_row_and_appear_when_they_are_whole(tmp_path):
    from xhat.data.streams.npy_writer import NpyWriter

    path = tmp_path / "x.npy"
    values = torch.rand(10, 3, 2)
    with NpyWriter(path, 10) as writer:
        for block in values.split(4):
            assert not path.exists()
            writer.add(block)
    assert np.array_equal(np.load(path), values.numpy())
    with pytest.raises(ConfigError, match="9 rows and got 10"), NpyWriter(path, 9) as writer:
        writer.add(torch.rand(10, 3))
    with pytest.raises(KeyError), NpyWriter(path, 10) as writer:
        _interrupted(writer)
    assert np.array_equal(np.load(path), values.numpy())
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.npy"]
    with pytest.raises(CheckpointError, match="cannot be written"), NpyWriter(tmp_path / "none" / "x.npy", 1):
        pass


# ---- the commands


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamed")
    path = saved(folder / "x.npy", images())
    options = ["--memory", "stream", "--binarize", "dynamic", "--hidden", "16", "--latent", "2", "--epochs", "2"]
    said = command("train", path, *options, "--out", folder / "run")
    assert "streamed from disk" in said
    return folder


def command(*words):
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as left:
        main(list(map(str, words)))
    assert left.value.code == 0
    return said.getvalue()


def test_a_run_remembers_that_it_streamed(trained):
    told = json.loads((trained / "run" / "config.json").read_text())["data"]
    assert told["options"]["memory"] == "stream"
    result = json.loads((trained / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(result["valid_loss"])


def test_commands_write_what_they_would_of_loaded_data(trained):
    run = trained / "run"
    model = xhat.load(run / "model.safetensors")
    x = model.preparation.apply(trained / "x.npy", memory="stream")
    assert not x.resident
    said = command("encode", run, "--split", "all", "--out", trained / "codes.npy")
    assert "codes of 400 examples, (1, 5, 4) to (2,)" in said
    torch.testing.assert_close(torch.from_numpy(np.load(trained / "codes.npy")), model.encode(x.tensor()))
    said = command("reconstruct", run, "--split", "all", "--corrupt", "masking:0.5", "--out", trained / "back.npy")
    assert "400 reconstructions" in said
    assert "corrupted examples' own squared error" in said
    command("reconstruct", run, "--split", "all", "--out", trained / "back.npy")
    torch.testing.assert_close(torch.from_numpy(np.load(trained / "back.npy")), model.reconstruct(x.tensor()))
    command("reconstruct", run, "--limit", "4", "--out", trained / "back.npz")
    assert np.load(trained / "back.npz")["x"].shape == (4, 1, 5, 4)
    command("encode", run, "--out", trained / "codes.csv")
    assert len((trained / "codes.csv").read_text().splitlines()) == 41
    assert "examples " in command("evaluate", run, "--samples", "3")


# The system says how much memory this program had at most. That of getrusage begins with the memory of the tests, which start it.
SMALL = """
import sys, numpy as np, torch, xhat
from xhat.data import load_data
from xhat.data.streams import NpyStream
def most():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
x = load_data(sys.argv[1], memory="stream")
before = most()
n = len(x.train)
for epoch in range(2):
    count = sum(len(b) for b in x.train.feed(x.train.order(epoch), [(i, min(i + 500, n)) for i in range(0, n, 500)]))
    assert count == n
count = sum(len(b) for b in x.train.batches(1000))
print((most() - before) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell how much memory a program had")
def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "x.npy"
    rows = 400_000
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (rows, 784)})
        start = file.tell()
        file.write(np.random.default_rng(0).integers(0, 256, (100, 784), dtype=np.uint8).tobytes())
        file.truncate(start + rows * 784)
    done = subprocess.run([sys.executable, "-c", SMALL, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout)
    assert grown < 250, f"{grown} MiB more, of a file of 299 MiB"
