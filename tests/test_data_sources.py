"""Every reader: what was written comes back, and what is damaged is refused in one sentence that names the file."""

import contextlib
import gzip
import importlib.util
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from reading import check_refused, random, raw_of
from xhat.data import load_data
from xhat.errors import ConfigError, DataError, XhatError

SHARED = Path(__file__).parents[2] / "shared" / "data"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the project's shared data, which a clone lacks")
sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")


# ---- the digits


@sklearn
def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    raw, reference = raw_of("digits"), load_digits()
    np.testing.assert_array_equal(raw.train.reshape(-1, 64), reference.data / 16)
    np.testing.assert_array_equal(raw.train_labels, reference.target)
    data = load_data("digits")
    assert data.shape == (1, 8, 8)
    assert (data.kind.name, data.kind.levels) == ("grey", 17)
    assert data.name == "digits"


@sklearn
def test_digits_do_not_import_scikit_learn():
    code = "import sys; from xhat.data import load_data; load_data('digits'); print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_refused("digits", "pip install 'xhat[sklearn]'")


# ---- npy and npz


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.int64, bool])
def test_npy(tmp_path, dtype):
    values = random(20, 5, dtype=np.uint8).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    np.testing.assert_array_equal(raw_of(tmp_path / "a.npy").train, values)
    assert load_data(str(tmp_path / "a.npy"), drop_constant=True).name == "a.npy"


@pytest.mark.parametrize("name", ["x", "X", "data", "images", "arr_0", "whatever"])
@pytest.mark.parametrize("label", ["y", "labels", "label", None])
def test_npz_with_one_array(tmp_path, name, label):
    values, labels = random(10, 3), np.arange(10)
    np.savez(tmp_path / "a.npz", **{name: values}, **({label: labels} if label else {}))
    raw = raw_of(tmp_path / "a.npz")
    np.testing.assert_array_equal(raw.train, values)
    if label:
        np.testing.assert_array_equal(raw.train_labels, labels)
    else:
        assert raw.train_labels is None


@pytest.mark.parametrize(
    ("names", "label_names"),
    [
        ({"train": "train", "valid": "valid", "test": "test"}, {"train": "y_train", "test": "y_test"}),
        ({"train": "X_train", "test": "X_test"}, {"train": "Y_train"}),
        ({"train": "train_images", "valid": "val_images"}, {"train": "train_labels", "valid": "val_labels"}),
    ],
)
def test_npz_with_splits(tmp_path, names, label_names):
    arrays = {split: random(n, 4, 4) + n for split, n in zip(("train", "valid", "test"), (12, 5, 4), strict=True)}
    content = {names[split]: arrays[split] for split in names}
    content |= {label_names[split]: np.arange(len(arrays[split]))[:, None] for split in label_names}
    np.savez_compressed(tmp_path / "a.npz", **content)
    data = load_data(tmp_path / "a.npz", valid=3, test=2, standardize=False)
    assert len(data.valid) == (5 if "valid" in names else 3)
    assert len(data.test) == (4 if "test" in names else 2)
    assert len(data.train) == 12 - 3 * ("valid" not in names) - 2 * ("test" not in names)
    for split in ("valid", "test"):
        if split in names:
            assert torch.equal(getattr(data, split).tensor()[:, 0], torch.from_numpy(arrays[split]))
        assert (getattr(data, split).labels is not None) == (split in label_names or split not in names)
    expected = torch.from_numpy(arrays["train"])[data.train.labels]
    assert torch.equal(data.train.tensor()[:, 0], expected)


def test_npz_choice(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, first=random(10, 3), second=random(10, 2), group=np.array(["a", "b"] * 5))
    check_refused(path, "first, second, group", "array=NAME")
    check_refused(path, "no array 'third'", array="third")
    check_refused(path, "no array 'class'", array="first", labels="class")
    assert load_data(path, array="second").shape == (2,)
    assert load_data(path, array="second", labels="group").label_names == ("a", "b")
    check_refused(path, "must be one of the names", array="first", labels=2)


def test_npz_splits_of_different_shapes_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", train=random(10, 3), test=random(10, 4))
    check_refused(tmp_path / "a.npz", "test split", "(4,)", "(3,)")


def test_npz_labels_of_a_different_length_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", train=random(10, 3), y_train=np.arange(9))
    check_refused(tmp_path / "a.npz", "labels must be one for each")


def test_nan_in_a_test_split_says_so(tmp_path):
    test = random(10, 3)
    test[2, 1] = np.nan
    np.savez(tmp_path / "a.npz", train=random(10, 3), test=test)
    check_refused(tmp_path / "a.npz", "the test split of a.npz", "row 2, column 1")


class Trap:
    """Unpickling it would leave a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_pickled_objects_are_refused_and_not_run(tmp_path, ending):
    path, trace = tmp_path / f"a.{ending}", tmp_path / "trace"
    objects = np.array([[Trap(trace)]], dtype=object)
    if ending == "npy":
        np.save(path, objects, allow_pickle=True)
    else:
        np.savez(path, x=objects)
    check_refused(path, str(path), "pickled")
    assert not trace.exists()


def test_a_pickle_in_disguise_is_refused_and_not_run(tmp_path):
    import pickle

    for name in ("a.npy", "a.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / "trace")))
        check_refused(tmp_path / name, name)
    assert not (tmp_path / "trace").exists()


def test_npy_that_claims_to_be_enormous(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, random(2, 3))
    path.write_bytes(path.read_bytes().replace(b"(2, 3)", b"(2**60, 3)"[:6]).replace(b"(2, 3)", b"(9, 9)"))
    check_refused(path, str(path))
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1152921504606846976, 3), }\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    check_refused(path, str(path))


# ---- IDX


def write_idx(path, array, code=8):
    content = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content += array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize(
    ("dtype", "code"), [(np.uint8, 8), (np.int8, 9), (np.int16, 11), (np.int32, 12), (np.float32, 13), (np.float64, 14)]
)
@pytest.mark.parametrize("name", ["a.idx", "a.idx.gz", "a-idx3-ubyte", "a-idx3-ubyte.gz"])
def test_idx(tmp_path, name, dtype, code):
    values = (random(6, 4, 3) * 100).astype(dtype)
    write_idx(tmp_path / name, values, code)
    array = raw_of(tmp_path / name).train
    np.testing.assert_array_equal(array, values)
    assert array.dtype == dtype
    assert load_data(tmp_path / name).shape == (1, 4, 3)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("joint", ["-", "."])
def test_mnist_folder(tmp_path, end, joint):
    arrays = {"train": random(20, 4, 4, dtype=np.uint8), "t10k": random(6, 4, 4, dtype=np.uint8)}
    for prefix, images in arrays.items():
        write_idx(tmp_path / f"{prefix}-images{joint}idx3-ubyte{end}", images)
        write_idx(tmp_path / f"{prefix}-labels{joint}idx1-ubyte{end}", np.arange(len(images), dtype=np.uint8))
    data = load_data(tmp_path)
    assert (len(data.train), len(data.valid), len(data.test)) == (18, 2, 6)
    torch.testing.assert_close(data.test.tensor()[:, 0], torch.from_numpy(arrays["t10k"]) / 255)
    torch.testing.assert_close(data.train.tensor()[:, 0], torch.from_numpy(arrays["train"])[data.train.labels] / 255)
    alone = load_data(tmp_path / f"t10k-images{joint}idx3-ubyte{end}")
    torch.testing.assert_close(alone.train.tensor()[:, 0], torch.from_numpy(arrays["t10k"])[alone.train.labels] / 255)


@pytest.mark.parametrize(("module", "name"), [("pyarrow", "a.parquet"), ("PIL", "a.png")])
def test_missing_extras_are_named(tmp_path, monkeypatch, module, name):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(b"PAR1")
    check_refused(tmp_path / name if module == "pyarrow" else tmp_path, "pip install 'xhat[data]'")


# ---- damage of all kinds


@pytest.fixture
def samples(tmp_path):
    """One good file of each format, and the source to load it by."""
    pyarrow, Image = pytest.importorskip("pyarrow"), pytest.importorskip("PIL.Image")
    from pyarrow import parquet

    np.save(tmp_path / "a.npy", random(50, 5))
    np.savez(tmp_path / "a.npz", x=random(50, 5))
    np.savez_compressed(tmp_path / "b.npz", x=random(50, 5))
    write_idx(tmp_path / "a.idx", random(50, 5, 5, dtype=np.uint8))
    write_idx(tmp_path / "a.idx.gz", random(50, 5, 5, dtype=np.uint8))
    parquet.write_table(pyarrow.table({"a": list(range(50))}), tmp_path / "a.parquet")
    pairs = [(path, path) for path in sorted(tmp_path.iterdir())]
    images = tmp_path / "images"
    images.mkdir()
    for ending in ("png", "jpg", "gif", "webp", "tif", "bmp"):
        Image.fromarray(random(32, 32, dtype=np.uint8)).save(images / f"a.{ending}")
        pairs.append((images / f"a.{ending}", images))
    return pairs


@pytest.mark.parametrize("part", [0, 0.05, 0.5, 0.95])
def test_files_cut_short_are_refused_by_name(samples, part):
    for path, source in samples:
        whole = path.read_bytes()
        path.write_bytes(whole[: int(part * len(whole))])
        check_refused(source, str(path))
        path.write_bytes(whole)


@pytest.mark.parametrize("content", [b"\0", b"PK\3\4", b"hello, this is text\n" * 20, bytes(range(256)) * 4])
def test_files_of_something_else_are_refused_by_name(samples, content):
    for path, source in samples:
        whole = path.read_bytes()
        path.write_bytes(content)
        check_refused(source, str(path))
        path.write_bytes(whole)


def test_flipped_bytes_are_read_or_refused_but_never_crash(samples):
    generator = np.random.default_rng(0)
    for path, source in samples:
        whole = path.read_bytes()
        for _ in range(30):
            broken = bytearray(whole)
            # most of the harm is done in the headers
            broken[generator.integers(0, min(len(broken), 120))] = generator.integers(0, 256)
            path.write_bytes(bytes(broken))
            with contextlib.suppress(XhatError):
                load_data(source)
        path.write_bytes(whole)


def test_missing_paths_list_what_is_understood(tmp_path):
    check_refused(tmp_path / "nothing.npz", "there is no file or folder", "nothing.npz")
    check_refused("", "empty text")
    check_refused(
        "nosuchword",
        "there is no file or folder",
        "nosuchword",
        "digits",
        ".npz",
        ".csv",
        ".parquet",
        "folder of images",
        "MNIST",
    )


def test_unknown_endings_list_what_is_understood(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"MATLAB")
    check_refused(tmp_path / "a.mat", "'.mat'", "understood are")


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.csv", "a.idx", "a.idx.gz"])
def test_forbidden_files(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_bytes(b"something")

    def forbidden(self, *args, **kwargs):  # root may read everything, so chmod would prove nothing here
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", forbidden)
    check_refused(path, str(path), "permission is denied")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.npy", {"array": "x"}, "is an option for"),
        ("a.npy", {"labels": "y"}, "is an option for"),
        ("a.csv", {"array": "x"}, "is an option for"),
        ("a.npz", {"resize": (2, 2)}, "is an option for"),
        ("a.csv", {"labels": [0, 1]}, "name or position"),
        ("a.npz", {"labels": 2}, "one of the names"),
    ],
)
def test_options_of_other_formats_are_refused(tmp_path, name, options, words):
    (tmp_path / name).write_bytes(b"1,2\n")
    assert isinstance(check_refused(tmp_path / name, words, **options), ConfigError)


def test_data_errors_keep_their_cause(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"nonsense")
    with pytest.raises(DataError) as error:
        load_data(tmp_path / "a.npy")
    assert error.value.__cause__ is not None


# ---- the project's own data


@shared
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_shared_mnist(name):
    data = load_data(SHARED / name)
    assert (len(data.train), len(data.valid), len(data.test)) == (54_000, 6_000, 10_000)
    assert data.shape == (1, 28, 28)
    assert (data.kind.name, data.kind.levels) == ("grey", 256)
    assert data.train.storage.dtype == torch.uint8
    assert torch.bincount(data.test.labels).tolist()[0] == (980 if name == "mnist" else 1000)


@shared
def test_shared_binarized_mnist():
    data = load_data(SHARED / "binarized_mnist.npz")
    assert (len(data.train), len(data.valid), len(data.test)) == (50_000, 10_000, 10_000)
    assert data.kind.name == "binary"
    # the published figure for independent pixels, which a shuffled or cropped reading would miss
    mean = data.train.storage.double().mean(0).clamp(1e-6, 1 - 1e-6)
    x = data.test.storage.double()
    nll = -(x * mean.log() + (1 - x) * (1 - mean).log()).flatten(1).sum(1).mean()
    assert abs(nll.item() - 205.78) < 0.1


@shared
@pytest.mark.parametrize(
    ("name", "n", "d"),
    [
        ("cardio", 1831, 21),
        ("thyroid", 3772, 6),
        ("mammography", 11183, 6),
        ("satellite", 6435, 36),
        ("pendigits", 6870, 16),
        ("breastw", 683, 9),
    ],
)
def test_shared_anomaly_sets(name, n, d):
    data = load_data(SHARED / "anomaly" / f"{name}.npz")
    parts = (data.train, data.valid, data.test)
    assert sum(map(len, parts)) == n
    assert data.shape == (d,)
    assert set(torch.cat([part.labels for part in parts]).tolist()) == {0, 1}


@shared
def test_shared_adult():
    check_refused(SHARED / "adult" / "data.csv", "row 28", "column 2")
    data = load_data(SHARED / "adult" / "data.csv", nonfinite="drop")
    assert data.shape == (12,)
    assert data.kind.name == "real"
    assert data.scaling is not None
