"""Streams: rows on disk, read as they are wanted, and what happens when the disk changes."""

import os

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from reading import one_sentence, random
from xhat.data import Examples, load_data
from xhat.data.raw import as_events
from xhat.data.storage import as_storage
from xhat.data.streams import NpyStream, Shards
from xhat.data.streams import npy as npy_stream
from xhat.data.streams import parquet as parquet_stream
from xhat.data.streams.images import ImageStream
from xhat.data.streams.npy import pieces
from xhat.data.streams.parquet import ParquetStream
from xhat.errors import DataError


def saved(path, array):
    np.save(path, array)
    return path


def picks(count, seed=0):
    """Rows in no order, some of them twice, with the first and the last."""
    drawn = np.random.default_rng(seed).integers(0, count, 60)
    return torch.from_numpy(np.concatenate([[count - 1, 0], drawn, [count - 1]]))


# ---- .npy

SHAPES = [(300, 3), (70, 4, 5), (50, 2, 3, 4), (50, 5, 4, 3), (200, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["u1", "f4", "f8", "?", "i1", "u2", "i4", "u4", "i8", "u8", "f2", ">f4", ">i2"])
def test_npy_rows_are_those_of_the_array(tmp_path, shape, dtype):
    array = (np.random.default_rng(0).random(shape) * 100).astype(dtype)
    stream = NpyStream(saved(tmp_path / "x.npy", array))
    expected = as_storage(as_events(array), "x")
    rows = picks(len(array))
    read = stream.read(rows)
    assert read.dtype == stream.dtype
    assert stream.dtype in (torch.uint8, torch.float32, torch.float64)
    assert stream.shape == expected.shape[1:]
    assert len(stream) == len(array)
    assert torch.equal(read.double(), expected[rows].double())


@pytest.mark.parametrize(("gap", "span"), [(0, 1), (0, 50), (1, 37), (30, 2**20), (10**6, 64), (10**6, 2**20)])
def test_npy_reads_the_same_however_reads_are_joined(tmp_path, monkeypatch, gap, span):
    monkeypatch.setattr(npy_stream, "_GAP", gap)
    monkeypatch.setattr(npy_stream, "_SPAN", span)
    array = random(500, 7, dtype=np.uint8)
    stream = NpyStream(saved(tmp_path / "x.npy", array))
    for rows in (picks(500), torch.arange(500), torch.arange(499, -1, -1), torch.tensor([499]), torch.arange(0, 500, 3)):
        assert torch.equal(stream.read(rows), torch.from_numpy(array)[rows])
    assert stream.read(torch.arange(0)).shape == (0, 7)


def test_npy_of_the_other_header_versions(tmp_path):
    array = random(20, 3)
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version=(2, 0))
    assert torch.equal(NpyStream(tmp_path / "x.npy").read(torch.arange(20)), torch.from_numpy(array))


def fortran(path):
    np.save(path, np.asfortranarray(random(20, 3)))


def objects(path):
    np.save(path, np.array([[{}]], dtype=object), allow_pickle=True)


def cut(path):
    np.save(path, random(20, 3))
    os.truncate(path, path.stat().st_size - 1)


BAD = [
    (fortran, ["Fortran", "ascontiguousarray"]),
    (objects, ["pickle"]),
    (cut, ["cut short", "367", "368"]),
    (lambda path: path.write_bytes(b""), ["empty"]),
    (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), ["damaged"]),
    (lambda path: path.write_bytes(b"hello"), ["damaged"]),
    (lambda path: np.save(path, np.zeros((0, 3))), ["no examples"]),
    (lambda path: np.save(path, np.zeros((3, 0))), ["no examples"]),
    (lambda path: np.save(path, np.zeros(3)), ["(N, 1)"]),
    (lambda path: np.save(path, np.zeros((3, 2), complex)), ["complex"]),
    (lambda path: np.save(path, np.array([["a"]])), ["dtype"]),
]


@pytest.mark.parametrize(("write", "words"), BAD, ids=range(len(BAD)))
def test_bad_npy_files_are_refused_by_name(tmp_path, write, words):
    write(tmp_path / "x.npy")
    with pytest.raises(DataError) as error:
        NpyStream(tmp_path / "x.npy")
    one_sentence(error.value, "x.npy", *words)


def overwrite(path):
    with path.open("r+b") as file:
        file.seek(200)
        file.write(b"xx")
    os.utime(path, ns=(1, 1))  # a clock too coarse to see the write would not be the stream's fault


CHANGES = [
    (lambda path: os.truncate(path, 200), ["x.npy"]),
    (lambda path: path.unlink(), ["x.npy", "does not exist"]),
    (overwrite, ["x.npy", "changed"]),
    (lambda path: np.save(path, random(2000, 3)), ["x.npy", "changed"]),
]


@pytest.mark.parametrize(("change", "words"), CHANGES, ids=range(len(CHANGES)))
def test_a_file_that_changes_under_the_reader_is_refused(tmp_path, change, words):
    path = saved(tmp_path / "x.npy", random(1000, 3))
    examples = Examples(NpyStream(path))
    order, bounds = examples.order(0), [(start, start + 100) for start in range(0, 1000, 100)]
    assert len(examples[:10]) == 10
    change(path)
    for fetch in (lambda: examples[990:], lambda: list(examples.batches(100)), lambda: list(examples.feed(order, bounds))):
        with pytest.raises(DataError) as error:
            fetch()
        one_sentence(error.value, *words)


@pytest.mark.parametrize(("count", "row_bytes"), [(1, 1), (7, 10), (10**6, 784), (5000, 65_535), (10**9, 12), (10**7, 1)])
def test_pieces_cover_all_rows_and_stay_small_and_few(count, row_bytes):
    bounds, scattered = pieces(count, row_bytes)
    sizes = np.diff(bounds)
    assert not scattered
    assert bounds[0] == 0
    assert bounds[-1] == count
    assert (sizes > 0).all()
    assert len(sizes) <= 2**20
    assert sizes.max() * row_bytes <= npy_stream.BLOCK
    assert pieces(count, 65_536)[1]


# ---- Parquet


def table(path, rows=103, group=20, columns=4, dtype="float32"):
    values = random(rows, columns).astype(dtype)
    content = {f"c{i}": values[:, i] for i in range(columns)}
    parquet.write_table(pyarrow.table({**content, "label": [f"k{i % 3}" for i in range(rows)]}), path, row_group_size=group)
    return values


@pytest.mark.parametrize("kept", [0, 1000, 2**26])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int32", "bool"])
def test_parquet_rows_are_those_of_the_table(tmp_path, monkeypatch, kept, dtype):
    monkeypatch.setattr(parquet_stream, "_KEPT", kept)
    values = table(tmp_path / "x.parquet", dtype=dtype)
    stream = ParquetStream(tmp_path / "x.parquet", labels="label")
    assert stream.bounds.tolist() == [0, 20, 40, 60, 80, 100, 103]
    assert stream.columns == ("c0", "c1", "c2", "c3")
    for rows in (picks(103), torch.arange(103), torch.tensor([102]), torch.tensor([19, 20, 39, 40])):
        assert torch.equal(stream.read(rows).double(), torch.from_numpy(values.astype(np.float64))[rows])


def test_parquet_keeps_no_more_groups_than_its_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_stream, "_KEPT", 2 * 20 * 16)
    table(tmp_path / "x.parquet")
    stream = ParquetStream(tmp_path / "x.parquet", labels="label")
    for row in (0, 25, 45, 65, 3, 100):
        stream.read(torch.tensor([row]))
        assert sum(held.nbytes for held in stream._held.values()) <= 2 * 20 * 16
    assert list(stream._held) == [0, 5]


def test_parquet_columns_wider_than_one_read(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_stream, "_COLUMNS_AT_ONCE", 20 * 8 * 2)
    values = table(tmp_path / "x.parquet", columns=5)
    assert torch.equal(ParquetStream(tmp_path / "x.parquet", "label").read(torch.arange(103)), torch.from_numpy(values))


def test_parquet_refusals(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    table(path)
    with pytest.raises(DataError) as error:
        ParquetStream(path)
    one_sentence(error.value, "x.parquet", "'label'", "text", "--labels")
    monkeypatch.setattr(parquet_stream, "_LARGEST", 20 * 16 - 1)
    with pytest.raises(DataError) as error:
        ParquetStream(path, "label")
    one_sentence(error.value, "x.parquet", "row groups of 20 rows", "row_group_size=")
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"x\.parquet"):
        ParquetStream(path)


def test_a_null_is_refused_by_row_when_it_is_fetched(tmp_path):
    cells = [float(i) for i in range(50)]
    cells[33] = None
    parquet.write_table(pyarrow.table({"a": cells, "b": cells[::-1]}), tmp_path / "x.parquet", row_group_size=20)
    examples = Examples(ParquetStream(tmp_path / "x.parquet"))
    assert len(examples[:16]) == 16
    with pytest.raises(DataError) as error:
        list(examples.batches(10))
    one_sentence(error.value, "x.parquet, row 16 ", "nan", "(1,)")


def test_a_parquet_file_that_changes_is_refused(tmp_path):
    table(tmp_path / "x.parquet")
    stream = ParquetStream(tmp_path / "x.parquet", "label")
    stream.read(torch.tensor([0]))
    table(tmp_path / "x.parquet", rows=50)
    with pytest.raises(DataError) as error:
        stream.read(torch.tensor([90]))
    one_sentence(error.value, "x.parquet", "changed")


# ---- shards


def test_shards_are_one_after_the_other(tmp_path):
    array = random(100, 5)
    for number, (start, stop) in enumerate([(0, 13), (13, 14), (14, 90), (90, 100)]):
        np.save(tmp_path / f"{number}.npy", array[start:stop])
    data = load_data(tmp_path, memory="stream", standardize=False)
    stream = data.train.streamed.stream
    assert torch.equal(stream.read(picks(100)), torch.from_numpy(array)[picks(100)])
    assert stream.where(13) == f"{tmp_path / '1.npy'}, row 0 (counted from 0)"
    assert stream.where(99).startswith(f"{tmp_path / '3.npy'}, row 9 ")
    loaded = load_data(tmp_path, memory="load", standardize=False)
    everyone = [torch.cat([part.tensor() for part in (d.train, d.valid, d.test)]) for d in (data, loaded)]
    assert torch.equal(everyone[0].sort(0).values, everyone[1].sort(0).values)


def test_shards_of_parquet_and_their_refusals(tmp_path):
    first, second = table(tmp_path / "a.parquet"), table(tmp_path / "b.pq", rows=31, group=7)
    data = load_data(tmp_path, memory="stream", labels="label", standardize=False)
    whole = torch.from_numpy(np.concatenate([first, second]))
    assert torch.equal(data.train.streamed.stream.read(picks(134)), whole[picks(134)])
    assert data.columns == ("c0", "c1", "c2", "c3")
    assert load_data(tmp_path, memory="load", labels="label", standardize=False).label_names == ("k0", "k1", "k2")
    for memory in ("stream", "load"):
        np.save(tmp_path / "c.npy", first)
        with pytest.raises(DataError, match=r"both \.npy and \.parquet"):
            load_data(tmp_path, memory=memory)
        (tmp_path / "c.npy").unlink()
        table(tmp_path / "c.parquet", columns=5)
        with pytest.raises(DataError) as error:
            load_data(tmp_path, memory=memory, labels="label")
        one_sentence(error.value, "c.parquet", "correct the source")
        (tmp_path / "c.parquet").unlink()


def test_shards_of_several_dtypes_are_stored_as_the_widest(tmp_path):
    one, two = (NpyStream(saved(tmp_path / f"{d}.npy", np.full((4, 2), 0.1).astype(d))) for d in ("f4", "f8"))
    read = Shards([one, two], "both").read(torch.arange(8))
    assert read.dtype == torch.float64
    assert float(read[7, 1]) == 0.1


# ---- images


def pictures(folder, count=20, size=(6, 5), colour=False):
    for number in range(count):
        (folder / f"k{number % 2}").mkdir(parents=True, exist_ok=True)
        pixels = random(*size, 3, dtype=np.uint8) if colour else random(*size, dtype=np.uint8)
        Image.fromarray((pixels + number).astype(np.uint8)).save(folder / f"k{number % 2}" / f"{number:02}.png")


@pytest.mark.parametrize("colour", [False, True])
def test_images_are_those_that_loading_gives(tmp_path, colour):
    pictures(tmp_path, colour=colour)
    streamed, loaded = (load_data(tmp_path, memory=memory, seed=1) for memory in ("stream", "load"))
    assert streamed.shape == loaded.shape == (3 if colour else 1, 6, 5)
    assert streamed.label_names == loaded.label_names == ("k0", "k1")
    assert streamed.bytes
    parts = [(d.train, d.valid, d.test) for d in (streamed, loaded)]
    # A picture's first value tells which it is
    one, two = (torch.cat([part.tensor() for part in d]) for d in parts)
    own, other = (torch.cat([part.labels for part in d]) for d in parts)
    first, second = one.flatten(1)[:, 0].argsort(), two.flatten(1)[:, 0].argsort()
    assert torch.equal(one[first], two[second])
    assert torch.equal(own[first], other[second])


def test_images_keep_the_splits_of_their_folders(tmp_path):
    pictures(tmp_path / "train", 12)
    pictures(tmp_path / "test", 4)
    data = load_data(tmp_path, memory="stream", valid=3)
    assert [len(part) for part in (data.train, data.valid, data.test)] == [9, 3, 4]
    assert data.test.labels.tolist() == [0, 0, 1, 1]


def test_bad_images_are_refused_when_they_are_fetched(tmp_path):
    pictures(tmp_path, 8)
    data = load_data(tmp_path, memory="stream", valid=1, test=1)
    paths = sorted(tmp_path.rglob("*.png"))
    for path, content, word in (
        (paths[3], random(9, 9, dtype=np.uint8), "9x9"),
        (paths[3], random(6, 5, 3, dtype=np.uint8), "colour"),
        (paths[3], None, "damaged"),
    ):
        if content is None:
            path.write_bytes(path.read_bytes()[:60])
        else:
            Image.fromarray(content).save(path)
        with pytest.raises(DataError) as error:
            [list(part.batches(2)) for part in (data.train, data.valid, data.test)]
        one_sentence(error.value, path.name, word)


def test_any_of_the_images_looked_at_makes_all_of_them_coloured(tmp_path):
    pictures(tmp_path, 8)
    Image.fromarray(random(6, 5, 3, dtype=np.uint8)).save(tmp_path / "k0" / "06.png")
    stream = ImageStream(sorted(tmp_path.rglob("*.png")), "x")
    assert stream.shape == (3, 6, 5)
    grey = stream.read(torch.tensor([0]))[0]
    assert torch.equal(grey[0], grey[2])
