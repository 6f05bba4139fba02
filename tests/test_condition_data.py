"""Conditions from the data: columns and labels that everything is conditioned on, in Python and by command."""

from __future__ import annotations

import json
import re
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
from test_preparation import csv, exit_code, idx, npz, saved
from xhat.cli.options import beside_x, described, named_values
from xhat.data import Examples, load_data
from xhat.data.preparation_json import from_json, to_json
from xhat.errors import CheckpointError, ConfigError, DataError
from xhat.models.files import load, read_tensors, write_tensors

FIELDS = ("sort", "age")


def columns(count: int = 60) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    sort = np.array(["mild", "grave", "none at all"])[random.integers(0, 3, count)]
    age = random.integers(20, 80, count).astype(float)
    return {"size": random.normal(5, 2, count), "sort": sort, "weight": random.normal(70, 9, count), "age": age}


def table(folder: Path, held: dict[str, np.ndarray]) -> Path:
    parquet.write_table(pyarrow.table(held), folder / "x.parquet", row_group_size=20)
    return folder / "x.parquet"


def shards(folder: Path, held: dict[str, np.ndarray]) -> Path:
    (folder / "x").mkdir()
    for number in range(3):
        part = {name: values[20 * number : 20 * number + 20] for name, values in held.items()}
        parquet.write_table(pyarrow.table(part), folder / "x" / f"{number}.parquet")
    return folder / "x"


def frame(held: dict[str, np.ndarray]) -> Any:
    return pytest.importorskip("pandas").DataFrame(held)


TABLES: dict[str, Callable[[Path, dict[str, np.ndarray]], Any]] = {
    "csv": lambda f, held: csv(f / "x.csv", held),
    "csv in another order": lambda f, held: csv(f / "x.csv", dict(reversed(held.items()))),
    "tsv": lambda f, held: csv(f / "x.tsv", held, "\t"),
    "parquet": table,
    "shards": shards,
    "dict": lambda f, held: held,
    "dict of lists": lambda f, held: {name: values.tolist() for name, values in held.items()},
    "pyarrow": lambda f, held: pyarrow.table(held),
    "pandas": lambda f, held: frame(held),
    "categories": lambda f, held: frame(held).astype({"sort": "category"}),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run")
    source = csv(place / "x.csv", columns())
    options = ["--epochs", "1", "--latent", "2", "--hidden", "6"]
    assert exit_code("train", source, "--condition", ",".join(FIELDS), *options, "--out", place / "run") == 0
    return place / "run"


@pytest.mark.parametrize("way", TABLES)
def test_every_table_gives_the_same_conditions_and_codes(tmp_path: Path, run: Path, way: str) -> None:
    held = columns()
    source = TABLES[way](tmp_path, held)
    data = load_data(source, condition=FIELDS, memory="load")
    expected = load_data(held, condition=FIELDS)
    assert set(data.columns) == {"size", "weight"}
    assert data.conditions == expected.conditions == xhat.load(run).conditions
    assert data.conditions.fields[0].levels == ("grave", "mild", "none at all")
    assert torch.equal(data.train.condition, expected.train.condition)
    ages = data.train.condition[:, 3]
    assert abs(float(ages.mean())) < 1e-6
    assert float(ages.std(correction=0)) == pytest.approx(1)
    model = xhat.load(run)
    rows = model.conditions.encode({"sort": held["sort"], "age": held["age"]})
    x = load_data(held, condition=FIELDS).preparation.apply({name: held[name] for name in ("size", "weight")}).tensor()
    codes = model.encode(x, condition=rows)
    torch.testing.assert_close(model.encode(source), codes)
    for call in (model.loss, model.reconstruct, lambda given: xhat.log_likelihood(model, given, samples=2).log_px):
        assert len(call(source)) == 60
    assert xhat.evaluate(model, source, samples=2).conditioned
    if isinstance(source, Path):
        assert exit_code("encode", run, "--data", source, "--out", tmp_path / "codes.npy") == 0
        torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "codes.npy")), codes)
    if way in ("parquet", "shards"):
        streamed = load_data(source, condition=FIELDS, memory="stream")
        assert streamed.streamed
        assert streamed.conditions.names == FIELDS
        batch = next(iter(streamed.train.fed(streamed.train.order(0), [(0, 30)])))
        place = {round(size, 3): row for row, size in enumerate(held["size"])}
        sizes = streamed.preparation.invert(batch.x)["size"]
        again = streamed.conditions.decode(batch.condition)
        assert again["sort"] == [held["sort"][place[round(size, 3)]] for size in sizes]
        torch.testing.assert_close(model.encode(model.preparation.apply(source, memory="stream")), codes)


def pictures(count: int = 30) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (count, 6, 5)).astype(np.uint8), np.arange(count) % 3


def image_folder(folder: Path, x: np.ndarray, labels: np.ndarray) -> Path:
    for number, (image, label) in enumerate(zip(x, labels, strict=True)):
        place = folder / "x" / "abc"[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:03}.png")
    return folder / "x"


def mnist(folder: Path, x: np.ndarray, labels: np.ndarray) -> Path:
    idx(folder / "train-images-idx3-ubyte", x)
    idx(folder / "train-labels-idx1-ubyte", labels.astype(np.uint8))
    return folder


LABELLED: dict[str, Callable[[Path, np.ndarray, np.ndarray], tuple[Any, dict[str, Any]]]] = {
    "npz": lambda f, x, y: (npz(f / "x.npz", x=x, y=y), {}),
    "named npz": lambda f, x, y: (npz(f / "x.npz", x=x, kind=y), {"labels": "kind"}),
    "mnist": lambda f, x, y: (mnist(f, x, y), {}),
    "folder": lambda f, x, y: (image_folder(f, x, y), {}),
    "streamed folder": lambda f, x, y: (image_folder(f, x, y), {"memory": "stream"}),
    "array": lambda f, x, y: (x, {"labels": y}),
    "examples": lambda f, x, y: (Examples(torch.from_numpy(x)[:, None], torch.from_numpy(y), scale=True), {}),
    "csv": lambda f, x, y: (csv(f / "x.csv", {"a": x[:, 0, 0], "b": x[:, 1, 1], "label": y}), {}),
    "named csv": lambda f, x, y: (csv(f / "x.csv", {"a": x[:, 0, 0], "b": x[:, 1, 1], "kind": y}), {"labels": "kind"}),
}


@pytest.mark.parametrize("way", LABELLED)
def test_labels_are_conditions_whatever_the_source(tmp_path: Path, way: str) -> None:
    source, options = LABELLED[way](tmp_path, *pictures())
    data = load_data(source, condition="label", **options)
    levels = ["a", "b", "c"] if "folder" in way else 3
    assert data.conditions.described == {"label": levels}
    for part in (data.train, data.valid, data.test):
        assert torch.equal(part.condition.argmax(1), part.labels)
    if isinstance(options.get("labels"), str):
        by_name = load_data(source, condition="kind", **options)
        assert torch.equal(by_name.train.condition, data.train.condition)
        assert by_name.conditions.names == ("kind",)
    model = xhat.build("vae", data.shape, condition=data.conditions.described, latent=2, hidden=[6])
    xhat.fit(model, data.train, valid=data.valid, epochs=1, seed=0)
    model = load(xhat.save(model, tmp_path / "m.safetensors"))
    if way not in ("array", "examples"):
        assert model.encode(source).shape == (30, 2)
    assert model.sample(2, condition={"label": "b" if "folder" in way else 1}).shape == (2, *data.shape)


def test_the_commands_take_a_condition(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = xhat.load(run)
    assert json.loads((run / "config.json").read_text())["data"]["options"]["condition"] == list(FIELDS)
    out = tmp_path / "x.npy"
    assert exit_code("sample", run, "--n", 4, "--condition", "sort=mild,age=40", "--out", out) == 0
    torch.manual_seed(0)
    expected = model.preparation.scaling.invert(model.sample(4, condition={"sort": "mild", "age": 40}).double())
    assert np.allclose(np.load(out), expected)
    assert exit_code("sample", run, "--n", 4, "--out", out) == 2
    assert "sort (one of grave, mild, none at all), age (a number)" in capsys.readouterr().err
    assert exit_code("sample", run, "--condition", "sort=light,age=40", "--out", out) == 2
    assert "has no class 'light': it must be one of grave, mild, none at all" in capsys.readouterr().err
    assert exit_code("sample", run, "--condition", "mild", "--out", out) == 2
    assert "values by name" in capsys.readouterr().err
    for words in (["evaluate", run, "--samples", 3], ["encode", run, "--split", "all"], ["report", run, "--samples", 3]):
        assert exit_code(*words) == 0
    assert exit_code("decode", run, run / "codes.npy", "--condition", "sort=mild,age=40", "--out", out) == 0
    codes = torch.from_numpy(np.load(run / "codes.npy"))
    expected = model.decode(codes, condition={"sort": "mild", "age": 40})
    assert np.allclose(np.load(out), model.preparation.scaling.invert(expected.double()))
    source = csv(tmp_path / "x.csv", columns())
    backs = {}
    for words in ((), ("--as-if", "sort=mild")):
        assert exit_code("reconstruct", run, "--data", source, *words, "--out", out) == 0
        backs[words] = np.load(out)
    as_if = model.reconstruct(source, as_if={"sort": "mild"})
    assert np.allclose(backs["--as-if", "sort=mild"], model.preparation.scaling.invert(as_if.double()))
    own = columns()["sort"] == "mild"
    same = (backs[()] == backs["--as-if", "sort=mild"]).all(1)
    assert (same == own).all()


def test_values_by_name_are_read_from_one_word() -> None:
    assert named_values(None) is None
    assert named_values("a=1, b = x,y") == {"a": "1", "b": "x,y"}
    for wrong in ("", "a", "=1", "a=1,a=2"):
        with pytest.raises(ConfigError) as error:
            named_values(wrong)
        one_sentence(error.value, "values by name")


def test_a_run_goes_on_where_it_stopped(run: Path, tmp_path: Path) -> None:
    source = csv(tmp_path / "x.csv", columns())
    words = ["--condition", "sort", "--prior-condition", "--epochs", 3, "--batch-size", 16, "--latent", 2, "--hidden", 4]
    assert exit_code("train", source, *words, "--out", tmp_path / "whole") == 0
    data = load_data(source, condition=["sort"])
    keywords = {"condition": ["sort"]}
    torch.manual_seed(0)
    options: dict[str, Any] = {"latent": 2, "hidden": [4], "likelihood": "normal", "prior_condition": True}
    model = xhat.build("vae", data.shape, **options, **beside_x(data))
    about = {"data": described(str(source), 0, keywords, data)}
    for step in xhat.train(model, data.train, data.valid, out=tmp_path / "cut", about=about, epochs=3, batch_size=16):
        if step.epoch == 2:
            break
    assert exit_code("train", "--resume", tmp_path / "cut") == 0
    one, two = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in ("whole", "cut"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def refused(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises((DataError, ConfigError)) as error:
        call()
    one_sentence(error.value, *words)


def test_what_is_no_condition_is_refused_in_a_sentence(tmp_path: Path, run: Path) -> None:
    held = columns()
    refused(lambda: load_data(held, condition="colour"), "'colour'", "size, sort, weight, age")
    refused(lambda: load_data(held, condition=("sort", "sort")), "each once")
    refused(lambda: load_data(held, condition="label"), "'label'", "for the condition")
    refused(lambda: load_data(np.ones((9, 2)), condition="label"), "no labels", "give labels")
    refused(lambda: load_data(np.ones((9, 2)), condition="age"), "no column 'age'")
    refused(lambda: load_data({"sort": held["sort"], "age": held["age"]}, condition=FIELDS), "leave one for x")
    refused(lambda: load_data({**held, "age": np.ones(60)}, condition=FIELDS), "'age' must vary")
    refused(lambda: load_data({**held, "sort": ["a"] * 60}, condition="sort"), "from 2 to 10,000 classes")
    gap = {**held, "sort": ["", *held["sort"][1:]]}
    source = csv(tmp_path / "gap.csv", gap)
    refused(lambda: load_data(source, condition="sort"), "no value of the condition 'sort' in row 2", "--nonfinite drop")
    kept = load_data(source, condition="sort", nonfinite="drop")
    assert len(kept.train) + len(kept.valid) + len(kept.test) == 59
    model = xhat.load(run)
    refused(lambda: model.encode(source), "no value of the condition 'sort' in row 2")
    rare = {**held, "sort": ["new", *held["sort"][1:]]}
    refused(lambda: model.encode(rare), "no class 'new'", "one of grave, mild, none at all", "leave them out")
    refused(lambda: model.encode({**held, "age": ["old"] * 60}), "'age' must be numbers")
    refused(lambda: model.encode({"size": held["size"], "weight": held["weight"]}), "sort (one of", "no condition was given")
    refused(lambda: model.encode(held, condition=torch.zeros(7, 4)), "must have shape (60, 4)", "(7, 4)")
    plain = xhat.build("vae", 2, latent=2, hidden=[4])
    refused(lambda: xhat.fit(plain, load_data(held, condition=FIELDS).train, epochs=1), "without a condition")
    conditional = xhat.build("vae", 2, condition={"sort": 3}, latent=2, hidden=[4])
    bare = {name: held[name] for name in ("size", "weight")}
    refused(lambda: xhat.fit(conditional, bare, epochs=1), "no condition was given")
    sorts = load_data({**bare, "sort": held["sort"]}, condition="sort")
    refused(lambda: xhat.fit(conditional, sorts.train, epochs=1), "build it with condition=data.conditions.described")
    other = load_data({**held, "age": held["age"] * 2}, condition=FIELDS)
    refused(lambda: model.encode(other.train), "in other numbers than the data")


def test_conditions_travel_as_json(run: Path) -> None:
    told = xhat.load(run).preparation
    assert from_json(to_json(told)) == told


@pytest.mark.parametrize(
    "told",
    [
        '{"conditions": 3}',
        '{"conditions": {}}',
        '{"conditions": {"a": 1}}',
        '{"conditions": {"a": true}}',
        '{"conditions": {"a": "unreal"}}',
        '{"conditions": {"a": ["x", "x"]}}',
        '{"conditions": {"a": ["x", 3]}}',
        '{"conditions": {"a": {"mean": 0, "std": 0}}}',
        '{"conditions": {"a": {"mean": NaN, "std": 1}}}',
        '{"conditions": {"a": {"mean": [], "std": 1}}}',
        '{"conditions": {"a": {"mean": 0}}}',
        '{"missing": "perhaps"}',
    ],
)
def test_a_hostile_condition_is_refused(tmp_path: Path, told: str) -> None:
    place = xhat.save(xhat.build("vae", shape=(4,), latent=2, hidden=[8]), tmp_path / "m.safetensors")
    tensors, metadata = read_tensors(place)
    write_tensors(place, tensors, {**metadata, "preparation": told})
    with pytest.raises(CheckpointError) as error:
        xhat.load(place)
    one_sentence(error.value, "m.safetensors", "preparation")


def test_a_run_whose_file_has_no_preparation_opens_with_its_config(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(run, tmp_path / "old"))
    tensors, metadata = read_tensors(copy / "model.safetensors")
    del metadata["preparation"]
    write_tensors(copy / "model.safetensors", tensors, metadata)
    held = columns()
    assert torch.equal(xhat.load(copy).encode(held), xhat.load(run).encode(held))


def test_numbers_of_levels_keep_their_order(tmp_path: Path) -> None:
    x = saved(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 2)))
    labels = np.arange(60) % 12
    assert load_data(np.load(x), labels=labels, condition="label").conditions.described == {"label": 12}
    described_levels = load_data(np.load(x), labels=labels * 5, condition="label").conditions.described["label"]
    assert described_levels == [str(5 * level) for level in range(12)]
    text = load_data(np.load(x), labels=np.arange(60) % 13, condition="label").describe()
    assert re.search(r"conditioned on label \(one of 0, 1, .*, 11, …\)", text)
