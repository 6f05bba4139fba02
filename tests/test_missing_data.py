"""Missing values in the data: NaN and empty cells are masked when asked, and nothing is learnt of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

import xhat
from reading import one_sentence
from test_preparation import columns, csv, exit_code, npz, saved, table
from xhat.cli.options import beside_x, described
from xhat.data import Examples, load_data
from xhat.data.preparation_json import from_json, to_json
from xhat.errors import ConfigError, DataError, DataWarning
from xhat.models.files import read_tensors, state_of


def holed(count: int = 60) -> np.ndarray:
    x = table(count)
    x[np.random.default_rng(1).random(x.shape) < 0.2] = np.nan
    return x


def cells(x: np.ndarray) -> dict[str, Any]:
    """Columns with empty cells where there is nothing."""
    return {name: ["" if np.isnan(value) else repr(float(value)) for value in column] for name, column in columns(x).items()}


def frame(x: np.ndarray) -> Any:
    return pytest.importorskip("pandas").DataFrame(columns(x, (2, 0, 1)))


def with_nulls(x: np.ndarray) -> Any:
    return pyarrow.table({name: pyarrow.array(column, from_pandas=True) for name, column in columns(x).items()})


WAYS: dict[str, Callable[[Path, np.ndarray], Any]] = {
    "csv": lambda f, x: csv(f / "x.csv", cells(x)),
    "csv with words": lambda f, x: csv(f / "x.csv", columns(x)),  # NaN is written as nan
    "parquet": lambda f, x: parquet.write_table(with_nulls(x), f / "x.parquet") or f / "x.parquet",
    "npy": lambda f, x: saved(f / "x.npy", x),
    "npz": lambda f, x: npz(f / "x.npz", x=x),
    "dict": lambda f, x: columns(x),
    "dict of lists": lambda f, x: {name: [None if np.isnan(v) else v for v in column] for name, column in columns(x).items()},
    "pandas": lambda f, x: frame(x),
    "whole numbers with gaps": lambda f, x: frame(x).astype({"age": "Int64"}),
    "pyarrow": lambda f, x: with_nulls(x),
    "numpy": lambda f, x: x,
    "list": lambda f, x: x.tolist(),
    "examples": lambda f, x: Examples(torch.from_numpy(x).nan_to_num(0), observed=~torch.from_numpy(x).isnan()),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run")
    source = csv(place / "x.csv", cells(holed()))
    options = ["--epochs", "1", "--latent", "2", "--hidden", "6"]
    assert exit_code("train", source, "--missing", "mask", *options, "--out", place / "run") == 0
    return place / "run"


@pytest.mark.parametrize("way", WAYS)
def test_every_source_gives_the_same_masks_and_codes(tmp_path: Path, run: Path, way: str) -> None:
    x = holed()
    source = WAYS[way](tmp_path, x)
    with pytest.raises(DataError) as error:
        load_data(source)
    one_sentence(error.value, "holds nan at", "missing='mask' (--missing mask)")
    data = load_data(source, missing="mask")
    expected = load_data(columns(x), missing="mask")
    assert f"{np.isnan(x).mean():.1%} of the values are missing and count as not observed" in data.describe()
    own = [column.mean for column in data.preparation.columns]
    assert sorted(own) == pytest.approx(sorted(column.mean for column in expected.preparation.columns))
    assert data.kind == expected.kind
    seen = data.train.observed
    assert (data.train.storage[~seen] == 0).all()
    for column in range(3):
        values = data.train.storage[:, column][seen[:, column]].double()
        assert float(values.mean()) == pytest.approx(0, abs=1e-5)
        assert float(values.std(correction=0)) == pytest.approx(1, abs=1e-5)
    model = xhat.load(run)
    codes = model.encode(columns(x))
    if way != "examples":  # these are in the model's units, whatever they hold
        torch.testing.assert_close(model.encode(source), codes)
        assert model.reconstruct(source).isfinite().all()
        assert xhat.log_likelihood(model, source, samples=2).log_px.isfinite().all()
        assert xhat.evaluate(model, source, samples=2).observed_share == pytest.approx(1 - np.isnan(x).mean())
    if isinstance(source, Path):
        assert exit_code("encode", run, "--data", source, "--out", tmp_path / "codes.npy") == 0
        torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "codes.npy")), codes)


def test_what_is_learnt_is_learnt_of_what_is_there() -> None:
    x = holed()
    data = load_data(columns(x), missing="mask")
    held = data.preparation.invert(torch.cat([part.tensor() for part in (data.train,)]))
    assert data.preparation.columns[0].whole
    for place, (name, column) in enumerate(columns(x).items()):
        told, seen = data.preparation.columns[place], data.train.observed[:, place].numpy()
        assert np.isin(np.round(held[name][seen], 3), np.round(column, 3)).all()
        assert (told.low, told.high) == pytest.approx((held[name][seen].min(), held[name][seen].max()))
    counts = np.random.default_rng(0).integers(3, 9, (40, 2)).astype(float)
    counts[::4, 0] = np.nan
    assert load_data(counts, missing="mask").kind.name == "counts"
    assert from_json(to_json(data.preparation)) == data.preparation


def test_with_nothing_missing_nothing_changes() -> None:
    x = table()
    results = []
    for missing in ("refuse", "mask"):
        data = load_data(columns(x), missing=missing)
        assert data.train.observed is None
        torch.manual_seed(0)
        model = xhat.build("vae", data.shape, latent=2, hidden=[6])
        history = xhat.fit(model, data.train, valid=data.valid, epochs=2, seed=0)
        results.append((state_of(model), [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]))
    one, two = results
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0])
    assert [row["train_loss"] for row in one[1]] == [row["train_loss"] for row in two[1]]


def test_reconstruct_fills_the_gaps(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = holed()
    source = csv(tmp_path / "x.csv", cells(x))
    out = tmp_path / "filled.csv"
    assert exit_code("reconstruct", run, "--data", source, "--out", out) == 0
    said = capsys.readouterr().out
    gaps = np.isnan(x)
    assert f"observed values as they were, {gaps.sum()} missing ones filled with x̂" in said
    assert out.read_text().splitlines()[0] == "age,height,weight"
    filled = np.loadtxt(out, delimiter=",", skiprows=1)
    assert np.array_equal(filled[~gaps], x[~gaps])
    model = xhat.load(run)
    back = model.preparation.scaling.invert(model.reconstruct(source).double()).numpy()
    assert np.allclose(filled[gaps], back[gaps])
    assert exit_code("reconstruct", run, "--data", source, "--out", tmp_path / "x.npz") == 0
    held = np.load(tmp_path / "x.npz")
    assert np.array_equal(held["x"], x, equal_nan=True)
    assert np.allclose(held["x_hat"], back)
    assert np.array_equal(held["filled"], filled)
    for split, count in (("test", 6), ("all", 60)):
        assert exit_code("reconstruct", run, "--split", split, "--out", tmp_path / "x.npy") == 0
        own = np.load(tmp_path / "x.npy")
        assert own.shape == (count, 3)
        assert np.isin(np.round(x[~gaps], 9), np.round(own, 9)).mean() >= (0.05 if split == "test" else 1)


def test_pictures_with_holes(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((40, 6, 5))
    x[:, 2:4, 1:3] = np.nan
    source = saved(tmp_path / "x.npy", x)
    words = ["--missing", "mask", "--epochs", 1, "--latent", 2, "--hidden", 4, "--out", tmp_path / "run"]
    assert exit_code("train", source, *words) == 0
    model = xhat.load(tmp_path / "run")
    assert model.event_shape == (1, 6, 5)
    assert model.reconstruct(x).isfinite().all()
    for words in (["evaluate", "--samples", 2], ["reconstruct", "--out", tmp_path / "x.png"], ["report", "--samples", 2]):
        assert exit_code(words[0], tmp_path / "run", *words[1:]) == 0


@pytest.mark.parametrize("binarize", ["static", "dynamic", "threshold"])
def test_masks_stay_where_values_are_binarised(binarize: str) -> None:
    x = np.random.default_rng(0).random((40, 4))
    x[::3, 1] = np.nan
    data = load_data(x, missing="mask", binarize=binarize)
    for part in (data.train, data.valid, data.test):
        assert part.batch(slice(None)).observed[:, [0, 2, 3]].all()
    assert int((~data.train.observed).sum() + (~data.valid.observed).sum() + (~data.test.observed).sum()) == 14
    assert set(data.train.tensor().unique().tolist()) == {0.0, 1.0}
    again = data.preparation.apply(x)
    assert torch.equal(again.observed, ~torch.from_numpy(x).isnan())


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    source = csv(tmp_path / "x.csv", cells(holed()))
    words = ["--missing", "mask", "--epochs", 3, "--batch-size", 16, "--latent", 2, "--hidden", 4]
    assert exit_code("train", source, *words, "--out", tmp_path / "whole") == 0
    data = load_data(source, missing="mask")
    torch.manual_seed(0)
    model = xhat.build("vae", data.shape, latent=2, hidden=[4], likelihood="normal", **beside_x(data))
    about = {"data": described(str(source), 0, {"missing": "mask"}, data)}
    for step in xhat.train(model, data.train, data.valid, out=tmp_path / "cut", about=about, epochs=3, batch_size=16):
        if step.epoch == 2:
            break
    assert exit_code("train", "--resume", tmp_path / "cut") == 0
    one, two = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def refused(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises((DataError, ConfigError)) as error:
        call()
    one_sentence(error.value, *words)


def test_what_cannot_be_masked_is_refused_in_a_sentence(tmp_path: Path, run: Path) -> None:
    x = holed()
    refused(lambda: load_data(x, missing="fill"), "missing must be one of 'refuse', 'mask'")
    refused(lambda: load_data(saved(tmp_path / "x.npy", x), missing="mask", memory="stream"), "memory='load'")
    gone = x.copy()
    gone[:, 1] = np.nan
    refused(lambda: load_data(columns(gone), missing="mask"), "'height' has no value in any of the 48 training examples")
    assert load_data(columns(gone), missing="mask", drop_constant=True).columns == ("age", "weight")
    endless = x.copy()
    endless[5, 2] = np.inf
    refused(lambda: load_data(columns(endless), missing="mask"), "holds inf at row 5, column 'weight'")
    dropped = load_data(columns(endless), missing="mask", nonfinite="drop")
    assert len(dropped.train) + len(dropped.valid) + len(dropped.test) == 59
    model = xhat.load(run)
    refused(lambda: model.encode(columns(endless)), "holds inf")
    plain = xhat.build("vae", 3, latent=2, hidden=[4])
    xhat.fit(plain, load_data(columns(table())).train, epochs=1)
    refused(lambda: plain.encode(columns(x)), "holds nan", "train a model with missing='mask' (--missing mask)")


def test_an_example_of_which_nothing_is_there(run: Path) -> None:
    x = holed()
    x[3] = np.nan
    result = xhat.evaluate(xhat.load(run), columns(x), samples=2)
    assert result.unseen_examples == 1
    assert "of 1 examples no value was observed: their bound is the KL alone" in str(result)


def test_gaps_are_not_far_outside_the_training_range(run: Path, recwarn: pytest.WarningsRecorder) -> None:
    xhat.load(run).encode(columns(holed()))
    assert not [warning for warning in recwarn if issubclass(warning.category, DataWarning)]
