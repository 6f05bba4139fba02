"""A model remembers what was done to its training data: the same rows have the same codes by every way in."""

from __future__ import annotations

import gzip
import json
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

import xhat
from reading import one_sentence
from xhat.cli import main
from xhat.data import Preparation, as_examples, load_data
from xhat.data.preparation_json import from_json, to_json
from xhat.data.streams import NpyStream
from xhat.errors import CheckpointError, DataError, DataWarning, XhatError
from xhat.models.files import read_tensors, write_tensors

NAMES = ("age", "height", "weight")


def table(count: int = 60) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.stack([random.integers(20, 80, count).astype(float), random.normal(170, 10, count), random.normal(70, 9, count)], 1)


def pictures(count: int = 60) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (count, 6, 5)).astype(np.uint8)


def colours(count: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 6, 5, 3)).astype(np.uint8)


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def csv(path: Path, columns: dict[str, Any], mark: str = ",") -> Path:
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join([mark.join(columns), *(mark.join(map(str, row)) for row in rows)]) + "\n")
    return path


def idx(path: Path, array: np.ndarray) -> Path:
    held = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(held) if path.suffix == ".gz" else held)
    return path


def folder(path: Path, array: np.ndarray) -> Path:
    path.mkdir()
    for number, image in enumerate(array):
        Image.fromarray(image).save(path / f"{number:03}.png")
    return path


def shards(path: Path, array: np.ndarray) -> Path:
    path.mkdir()
    for number, part in enumerate(np.array_split(array, 3)):
        np.save(path / f"{number}.npy", part)
    return path


def columns(x: np.ndarray, order: tuple[int, ...] = (0, 1, 2)) -> dict[str, np.ndarray]:
    return {NAMES[column]: x[:, column] for column in order}


def records(x: np.ndarray) -> np.ndarray:
    return np.array([tuple(row) for row in x], dtype=[(name, float) for name in NAMES])


def frame(x: np.ndarray) -> Any:
    return pytest.importorskip("pandas").DataFrame(columns(x, (2, 0, 1)))


# name of the training source and of the rows; a source of the same rows, made of them in a folder
Source = Callable[[Path, np.ndarray], Any]
TABLE: dict[str, Source] = {
    "npy": lambda f, x: saved(f / "x.npy", x),
    "npy as text": lambda f, x: str(saved(f / "x.npy", x)),
    "npz": lambda f, x: npz(f / "x.npz", x=x),
    "csv": lambda f, x: csv(f / "x.csv", columns(x)),
    "csv in another order": lambda f, x: csv(f / "x.csv", columns(x, (2, 0, 1))),
    "csv with more columns": lambda f, x: csv(f / "x.csv", {"id": range(len(x)), **columns(x)}),
    "tsv with labels": lambda f, x: csv(f / "x.tsv", {"kind": [4, 7] * (len(x) // 2), **columns(x)}, "\t"),
    "parquet": lambda f, x: parquet.write_table(pyarrow.table(columns(x, (1, 2, 0))), f / "x.parquet") or f / "x.parquet",
    "shards": lambda f, x: shards(f / "x", x),
    "dict": lambda f, x: columns(x, (1, 0, 2)),
    "records": lambda f, x: records(x),
    "pyarrow": lambda f, x: pyarrow.table(columns(x, (1, 0, 2))),
    "pandas": lambda f, x: frame(x),
    "numpy": lambda f, x: x,
    "read-only": lambda f, x: np.frombuffer(x.tobytes()).reshape(x.shape),
    "list": lambda f, x: x.tolist(),
}
GREY: dict[str, Source] = {
    "npy": lambda f, x: saved(f / "x.npy", x),
    "npy of floats": lambda f, x: saved(f / "x.npy", x.astype(np.float64)),
    "npy of whole numbers": lambda f, x: saved(f / "x.npy", x.astype(np.int64)),
    "npz": lambda f, x: npz(f / "x.npz", images=x, y=np.arange(len(x))),
    "idx": lambda f, x: idx(f / "x.idx", x),
    "gz": lambda f, x: idx(f / "x-ubyte.gz", x),
    "folder": lambda f, x: folder(f / "x", x),
    "shards": lambda f, x: shards(f / "x", x),
    "numpy": lambda f, x: x,
    "with channels": lambda f, x: x[:, None],
    "floats": lambda f, x: x.astype(np.float32),
    "whole numbers": lambda f, x: x.astype(np.int32),
    "list": lambda f, x: x.tolist(),
    "bytes": lambda f, x: torch.from_numpy(x),
    "whole tensor": lambda f, x: torch.from_numpy(x).long(),
}
COLOUR: dict[str, Source] = {
    "npy": lambda f, x: saved(f / "x.npy", x),
    "folder": lambda f, x: folder(f / "x", x),
    "numpy": lambda f, x: x,
    "channels first": lambda f, x: np.ascontiguousarray(x.transpose(0, 3, 1, 2)),
    "bytes": lambda f, x: torch.from_numpy(x),
}
# floats in [0, 1] to train on, of the same pictures
UNIT: dict[str, Source] = {
    "npy": lambda f, x: saved(f / "x.npy", (x / 255).astype(np.float32)),
    "npy of bytes": lambda f, x: saved(f / "x.npy", x),
    "folder": lambda f, x: folder(f / "x", x),
    "numpy": lambda f, x: (x / 255).astype(np.float32),
    "bytes": lambda f, x: torch.from_numpy(x),
}
KINDS: dict[str, tuple[np.ndarray, Source, dict[str, Source], dict[str, Any]]] = {
    "table": (table(), TABLE["csv"], TABLE, {}),
    "labelled table": (table(), TABLE["tsv with labels"], TABLE, {"labels": "kind"}),
    "frame": (table(), TABLE["records"], TABLE, {}),
    "grey": (pictures(), GREY["npy"], GREY, {}),
    "grey, streamed": (pictures(), GREY["npy"], GREY, {"memory": "stream"}),
    "grey, standardised": (pictures(), GREY["folder"], GREY, {"standardize": True}),
    "grey, drawn": (pictures(), GREY["npy"], GREY, {"binarize": "static"}),
    "grey, cut": (pictures(), GREY["npy"], GREY, {"binarize": "threshold"}),
    "colour": (colours(), COLOUR["npy"], COLOUR, {}),
    "unit": (pictures(), UNIT["npy"], UNIT, {}),
}
CASES = [(kind, way) for kind, (_, _, ways, _) in KINDS.items() for way in ways]


def exit_code(*words: Any) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    code: Any = caught.value.code
    return int(code)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, torch.Tensor]]:
    """A run of each kind, opened from its folder, and the codes of x in the model's own units."""
    found = {}
    for kind, (x, source, _, options) in KINDS.items():
        place = tmp_path_factory.mktemp("runs")
        data = load_data(source(place, x), **options)
        likelihood = data.kind.likelihood
        model = xhat.build("vae", shape=data.shape, latent=2, hidden=[4], likelihood=likelihood)
        xhat.fit(model, data.train, valid=data.valid, epochs=1, seed=0, out=place / "run")
        assert model.preparation == data.preparation == data.valid.preparation
        own = data.preparation.apply(source(place / "again" if (place / "again").mkdir() is None else place, x))
        found[kind] = place / "run", model.encode(own.tensor())
    return found


@pytest.mark.parametrize(("kind", "way"), CASES)
def test_the_same_rows_have_the_same_codes_by_every_way_in(
    tmp_path: Path, runs: dict[str, tuple[Path, torch.Tensor]], kind: str, way: str
) -> None:
    x, _, ways, _ = KINDS[kind]
    source = ways[way](tmp_path, x)
    run, codes = runs[kind]
    model = xhat.load(run)
    assert codes.std(0).min() > 1e-4
    torch.testing.assert_close(model.encode(source), codes, rtol=1e-5, atol=1e-6)
    told = model.preparation
    torch.testing.assert_close(model.encode(told.apply(source)), codes, rtol=1e-5, atol=1e-6)
    if isinstance(source, Path) and (source.is_dir() or source.suffix in (".npy", ".parquet")):
        streamed = told.apply(source, memory="stream")
        assert not streamed.resident
        torch.testing.assert_close(model.encode(streamed), codes, rtol=1e-5, atol=1e-6)
        assert torch.equal(streamed.tensor(), told.apply(source, memory="load").tensor())
    if isinstance(source, str | Path):
        assert exit_code("encode", run, "--data", source, "--out", tmp_path / "codes.npy") == 0
        torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "codes.npy")), codes, rtol=1e-5, atol=1e-6)


def test_what_applies_to_encode_applies_to_all(runs: dict[str, tuple[Path, torch.Tensor]], tmp_path: Path) -> None:
    model, x = xhat.load(runs["table"][0]), table()
    own = model.preparation.apply(x)
    ways: dict[str, Callable[[Any], Any]] = {
        "given": model.given,
        "reconstruct": model.reconstruct,
        "loss": model.loss,
        "elbo": model.elbo,
        "log_likelihood": lambda x: xhat.log_likelihood(model, x, samples=3).log_px,
        "evaluate": lambda x: torch.tensor(xhat.evaluate(model, x, samples=3).elbo.value),
        "anatomy": lambda x: torch.tensor(xhat.anatomy(model, x, samples=3).kl.value),
        "refine": lambda x: xhat.refine(model, x, steps=2).gap,
        "fit_prior": lambda x: xhat.fit_prior(model, x, components=2).prior().mean,
    }
    for name, way in ways.items():
        results = []
        for source in (own, x, x.tolist(), TABLE["csv in another order"](tmp_path, x), columns(x, (2, 1, 0))):
            torch.manual_seed(0)
            results.append(way(source))
        assert all(torch.equal(result, results[0]) for result in results), name


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("top", [1, 9, 255])
def test_fit_and_encode_take_a_raw_array_alike(dtype: Any, top: int) -> None:
    x = np.random.default_rng(0).integers(0, top + 1, (30, 5)).astype(dtype)
    model = xhat.build("autoencoder", shape=(5,), latent=2, hidden=[4])
    assert model.preparation is None
    assert torch.equal(model.encode(x), model.encode(as_examples(x)))
    xhat.fit(model, x, epochs=1)
    assert model.preparation.bytes == (dtype == np.uint8 and top > 1)
    expected = model.encode(as_examples(x).tensor())
    for same in (x, x.tolist(), torch.from_numpy(x), x.astype(np.int64), as_examples(x)):
        own_units = isinstance(same, torch.Tensor) and same.is_floating_point()
        if not own_units or not model.preparation.bytes:
            torch.testing.assert_close(model.encode(same), expected)
    # one dark example alone is divided as all were
    if model.preparation.bytes:
        assert torch.equal(model.given(np.ones((1, 5), np.uint8)), torch.full((1, 5), 1 / 255))


def test_many_models_remember_as_one_does() -> None:
    x = pictures(30).reshape(30, -1)
    many = xhat.fit_many(lambda seed: xhat.build("autoencoder", shape=(30,), latent=2, hidden=[4]), x, x[:9], seeds=2, epochs=1)
    assert all(model.preparation.bytes for model in many.models)
    assert torch.equal(many.models[0].encode(x), many.models[0].encode(torch.from_numpy(x) / 255))


# ---- and back


def test_what_comes_out_can_be_turned_back() -> None:
    x = table()
    told = load_data(columns(x)).preparation
    back = told.invert(told.apply(columns(x)).tensor())
    assert list(back) == list(NAMES)
    assert [part.dtype for part in back.values()] == [np.int64, np.float64, np.float64]
    for name, values in columns(x).items():
        np.testing.assert_allclose(back[name], values, rtol=1e-5)
    assert torch.equal(told.apply(back).tensor().argmax(0), told.apply(x).tensor().argmax(0))


@pytest.mark.parametrize(
    "x",
    [
        pictures(),
        pictures()[:, None],
        colours(),
        pictures().astype(np.int32) * 3,
        pictures().astype(np.float32) / 255,
        pictures() > 100,
        table(),
    ],
    ids=lambda x: f"{x.dtype} {x.shape}",
)
@pytest.mark.parametrize("standardize", [None, True])
def test_arrays_come_back_as_they_were(x: np.ndarray, standardize: bool | None) -> None:
    told = load_data(x, standardize=standardize).preparation
    back = told.invert(told.apply(x).tensor())
    assert isinstance(back, np.ndarray)
    assert (back.dtype, back.shape) == (x.dtype, x.shape)
    np.testing.assert_allclose(back, x, rtol=1e-5, atol=1e-5)
    with pytest.raises(DataError, match="must have shape"):
        told.invert(torch.zeros(2, 99))


def test_pictures_of_a_folder_come_back_as_pictures(tmp_path: Path) -> None:
    told = load_data(folder(tmp_path / "x", colours())).preparation
    assert np.array_equal(told.invert(told.apply(tmp_path / "x").tensor()), colours())


def test_beyond_the_bytes_is_the_nearest_byte() -> None:
    told = load_data(pictures()).preparation
    assert told.invert(torch.tensor([-0.3, 1.7]).expand(15, 2).reshape(1, 1, 6, 5)).tolist()[0][0] == [0, 255, 0, 255, 0]


# ---- other units are not silent


REFUSED: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "levels for bytes": ("grey", pictures() / 255, ("goes up to 1", "0 to 255", "multiply", "float torch tensor")),
    "a file of levels for bytes": ("grey", "levels.npy", ("levels.npy", "0 to 255")),
    "16 bits for bytes": ("grey", pictures().astype(np.int64) * 257, ("to 65535", "0 to 255", "rescale")),
    "negative for bytes": ("grey", pictures() - 200.0, ("from -200", "0 to 255")),
    "0 to 255 for levels": ("unit", pictures().astype(float), ("goes up to 255", "[0, 1]", "divide")),
    "columns are lacking": ("table", {"age": [1.0], "height": [2.0]}, ("lack the columns weight",)),
    "text": ("table", {**columns(table(2)), "weight": ["a", "b"]}, ("x, column 'weight'", "'a'", "must hold numbers")),
    "columns of several lengths": ("table", {**columns(table(2)), "weight": [1.0]}, ("several lengths",)),
    "no columns": ("table", {}, ("no columns",)),
    "another shape": ("grey", np.zeros((2, 7, 7), np.uint8), ("(1, 7, 7)", "(1, 6, 5)")),
    "NaN": ("table", np.full((2, 3), np.nan), ("nan", "row 0, column 0")),
    "one row without an axis": ("table", np.ones(3), ("(N, *event)",)),
    "nowhere": ("table", "nowhere.csv", ("nowhere.csv",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_units_are_refused(
    runs: dict[str, tuple[Path, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kind, x, words = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    np.save("levels.npy", pictures() / 255)
    model = xhat.load(runs[kind][0])
    for way in (model.encode, model.elbo, lambda x: xhat.evaluate(model, x, samples=2)):
        with pytest.raises(XhatError) as error:
            way(x)
        one_sentence(error.value, *words)


def test_whole_levels_are_not_mistaken_for_shares() -> None:
    model = xhat.build("autoencoder", shape=(1, 6, 5), latent=2, hidden=[4])
    xhat.fit(model, load_data(pictures().astype(np.float64)).train, epochs=1)
    assert torch.equal(model.encode(pictures()), model.encode(pictures().astype(float)))
    with pytest.raises(DataError) as error:
        model.encode(pictures() / 255)
    one_sentence(error.value, "[0, 1]", "255", "multiply")


def test_far_outside_the_training_range_is_warned_of(runs: dict[str, tuple[Path, torch.Tensor]], capsys: Any) -> None:
    model, x = xhat.load(runs["table"][0]), table()
    x[:, 1] /= 100  # metres
    with pytest.warns(DataWarning) as caught:
        model.encode(x)
    assert len(caught) == 1
    one_sentence(caught[0].message, "column 'height' holds 1.", "far outside")
    x[:, 2] *= 1000
    with pytest.warns(DataWarning, match="'height'.* 1 other column"):
        xhat.evaluate(model, x, samples=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(torch.from_numpy(x))  # in the model's own units
        model.encode(table() * 1.05)


def test_the_command_warns_too(runs: dict[str, tuple[Path, torch.Tensor]], tmp_path: Path, capsys: Any) -> None:
    far = csv(tmp_path / "far.csv", columns(table() * [1, 0.01, 1]))
    capsys.readouterr()
    assert exit_code("encode", runs["table"][0], "--data", far, "--out", tmp_path / "codes.npy") == 0
    assert "xhat: far.csv: column 'height' holds" in capsys.readouterr().err


def test_examples_that_were_prepared_otherwise_are_refused() -> None:
    x = table()
    data, other = load_data(x, seed=0), load_data(x, seed=1)
    model = xhat.build("vae", shape=(3,), latent=2, hidden=[4])
    xhat.fit(model, data.train, epochs=1)
    for way in (model.encode, lambda x: xhat.evaluate(model, x, samples=2)):
        with pytest.raises(DataError) as error:
            way(other.test)
        one_sentence(error.value, "standardised", "model.preparation.apply(source)")
    xhat.fit(model, other.train, epochs=1)  # trained anew
    assert model.preparation == other.preparation
    levels, grey = load_data((pictures() / 255).astype(np.float32)), load_data(pictures())
    model = xhat.build("vae", shape=(1, 6, 5), latent=2, hidden=[4])
    xhat.fit(model, levels.train, valid=grey.valid, epochs=1)  # the same units, by two ways


def test_a_path_needs_a_model_that_knows(tmp_path: Path) -> None:
    model = xhat.build("vae", shape=(3,), latent=2, hidden=[4])
    with pytest.raises(DataError) as error:
        model.encode(saved(tmp_path / "x.npy", table()))
    one_sentence(error.value, "x.npy", "load_data")


def test_frames_keep_their_names_where_nothing_else_is_done() -> None:
    model = xhat.build("vae", shape=(3,), latent=2, hidden=[4])
    xhat.fit(model, columns(table()), epochs=1)
    assert model.preparation.names == NAMES
    assert model.preparation.scaling is None
    assert torch.equal(model.encode(columns(table(), (2, 1, 0))), model.encode(table()))


# ---- files


def preparations() -> dict[str, Preparation]:
    found = {
        kind: load_data(x, **{**options, "labels": None}) for kind, (x, _, _, options) in KINDS.items() if "stream" not in kind
    }
    return {kind: data.preparation for kind, data in found.items()} | {"nothing": Preparation()}


def test_json_both_ways() -> None:
    for kind, told in preparations().items():
        again = from_json(to_json(told))
        assert again == told, kind
        assert json.loads(to_json(told))


def test_it_travels_in_the_file_and_is_sealed(tmp_path: Path) -> None:
    data = load_data(columns(table()))
    model = xhat.build("vae", shape=(3,), latent=2, hidden=[4])
    model.preparation = data.preparation
    place = xhat.save(model, tmp_path / "m.safetensors")
    assert xhat.load(place).preparation == data.preparation
    assert xhat.load(place, model=xhat.build("vae", shape=(3,), latent=2, hidden=[4])).preparation == data.preparation
    place.write_bytes(place.read_bytes().replace(b"height", b"weight"))
    with pytest.raises(CheckpointError, match="checksum"):
        xhat.load(place)


HOSTILE = {
    "no JSON": "{",
    "a list": "[]",
    "unknown": '{"evil": 1}',
    "deep": "[" * 100_000,
    "shape": '{"shape": [0]}',
    "shape of words": '{"shape": "x"}',
    "bytes": '{"bytes": 3}',
    "dtype": '{"dtype": "O"}',
    "layout": '{"layout": []}',
    "columns": '{"shape": [2], "columns": {"name": ["a"]}}',
    "lengths": '{"shape": [2], "columns": {"name": ["a", "b"], "whole": [true]}}',
    "no std": '{"shape": [2], "columns": {"mean": [1, 2]}}',
    "std of 0": '{"shape": [1], "columns": {"mean": [1], "std": [0]}}',
    "NaN": '{"shape": [1], "columns": {"mean": [NaN], "std": [1]}}',
    "half": '{"shape": [1], "columns": {"mean": [null], "std": [1]}}',
    "kept": '{"kept": [-1]}',
    "resize": '{"resize": [1]}',
    "binarize": '{"binarize": {}}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_preparation_is_refused(tmp_path: Path, name: str) -> None:
    place = xhat.save(xhat.build("vae", shape=(4,), latent=2, hidden=[8]), tmp_path / "m.safetensors")
    tensors, metadata = read_tensors(place)
    write_tensors(place, tensors, {**metadata, "preparation": HOSTILE[name]})
    with pytest.raises(CheckpointError) as error:
        xhat.load(place)
    one_sentence(error.value, "m.safetensors", "preparation")


def old(run: Path) -> None:
    """Make a run what it was before models kept their preparation."""
    place = run / "model.safetensors"
    tensors, metadata = read_tensors(place)
    del metadata["preparation"]
    write_tensors(place, tensors, metadata)


@pytest.mark.parametrize("name", ["table", "grey"])
def test_an_old_run_opens_with_what_its_config_says(tmp_path: Path, name: str) -> None:
    x = table() if name == "table" else pictures()
    source = csv(tmp_path / "x.csv", columns(x)) if name == "table" else saved(tmp_path / "x.npy", x)
    run = tmp_path / "run"
    assert exit_code("train", source, "--out", run, "--latent", "2", "--hidden", "4", "--epochs", "1") == 0
    codes = xhat.load(run).encode(source)
    old(run)
    for place in (run, run / "model.safetensors"):
        model = xhat.load(place)
        assert torch.equal(model.encode(source), codes)
        assert torch.equal(model.encode(x), codes)
    assert exit_code("encode", run, "--data", source, "--out", tmp_path / "codes.npy") == 0
    assert np.array_equal(np.load(tmp_path / "codes.npy"), codes.numpy())
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((run / "model.safetensors").read_bytes())
    assert xhat.load(alone).preparation is None


def test_a_stream_that_nobody_prepared(tmp_path: Path) -> None:
    x = pictures()
    model = xhat.build("vae", shape=(1, 6, 5), latent=2, hidden=[4])
    xhat.fit(model, NpyStream(saved(tmp_path / "x.npy", x)), epochs=1)
    expected = model.encode(torch.from_numpy(x)[:, None] / 255)
    for same in (x, NpyStream(tmp_path / "x.npy"), tmp_path / "x.npy", x.astype(float)):
        torch.testing.assert_close(model.encode(same), expected)
