"""Tables: every cell comes back, and what is wrong with one is said by row and column."""

import numpy as np
import pytest

from reading import check_refused, raw_of
from xhat.data import load_data

# ---- CSV


def csv(tmp_path, text, name="a.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv(tmp_path, delimiter, header, mark):
    values = np.arange(12.0).reshape(4, 3) / 8
    lines = [delimiter.join(["width", "height 2", '"depth"'])] * header
    lines += [delimiter.join(map(str, row)) for row in values]
    raw = raw_of(csv(tmp_path, mark + "\r\n".join(lines) + "\r\n\r\n"))
    np.testing.assert_array_equal(raw.train, values)
    assert raw.columns == (("width", "height 2", "depth") if header else None)


@pytest.mark.parametrize("label", ["kind", 1, "1", -2])
@pytest.mark.parametrize("cells", [("0", "1", "0", "1", "2"), ("b", "a", "b", "a", "c")])
def test_csv_labels(tmp_path, label, cells):
    lines = ["width,kind,height", *(f"{i}.25,{cell},{i}.5" for i, cell in enumerate(cells))]
    data = load_data(csv(tmp_path, "\n".join(lines)), labels=label, standardize=False)
    assert data.columns == ("width", "height")
    assert data.label_names == (("a", "b", "c") if "a" in cells else None)
    for row, code in zip(data.train.tensor()[:, 0], data.train.labels, strict=True):
        assert (data.label_names[code] if data.label_names else str(int(code))) == cells[int(row)]


def test_csv_text_labels_without_a_header(tmp_path):
    lines = [f"{i}.25,{i}.5,{'ab'[i % 2]}" for i in range(8)]
    data = load_data(csv(tmp_path, "\n".join(lines)), labels=-1)
    assert data.columns is None
    assert sum(map(len, (data.train, data.valid, data.test))) == 8


def test_csv_with_one_column(tmp_path):
    raw = raw_of(csv(tmp_path, "x\n1\n2\n3.5\n"))
    np.testing.assert_array_equal(raw.train, [[1], [2], [3.5]])
    assert raw.columns == ("x",)


BAD_CSV = [
    ("a,b\n1,2\n3,x\n", ["row 3", "column 'b'", "'x'", "labels=NAME"], {}),
    ("1,2\n3,x\n", ["row 2", "column 2", "'x'"], {}),
    ("1,2,k\n3,4,k\nx,4,k\n", ["row 3", "column 1"], {"labels": -1}),
    ("k,1,2\nk,3,4\nk,3,x\n", ["row 3", "column 3"], {"labels": 0}),
    ("a,b\n1,2\n\n3,\n4,5\n5,6\n", ["row 4", "column 'b'", "nan", "--nonfinite drop"], {}),
    ("a,b\n1,2\n3,NA\n", ["row 3", "column 'b'"], {}),
    ("1,2\n3,inf\n", ["row 2", "column 2", "inf"], {}),
    ("1,2\n3,4,5\n", ["row 2", "3 cells", "2"], {}),
    ("a,b\n1,2\n3\n", ["row 3", "1 cells"], {}),
    ("a,b\n", ["no rows"], {}),
    ("\n\n", ["no rows"], {}),
    ("", ["empty"], {}),
    ("a,b\n1,2\n", ["no column 'c'", "a, b"], {"labels": "c"}),
    ("a,b\n1,2\n", ["no column 2"], {"labels": 2}),
    ("1,2\n3,4\n", ["no column 'b'", "2 columns"], {"labels": "b"}),
    ("a\n1\n2\n", ["one column only"], {"labels": "a"}),
    ("a,b\n1,2\n3,\n", ["row 3", "no label"], {"labels": "b"}),
    ("1,2\n1,\0\n", ["row 2", "column 2"], {}),
    ('1,2\n1,"' + "9" * 200_000 + '"\n', ["field larger"], {}),
]


@pytest.mark.parametrize(("text", "words", "options"), BAD_CSV, ids=range(len(BAD_CSV)))
def test_bad_csv(tmp_path, text, words, options):
    check_refused(csv(tmp_path, text), "a.csv", *words, **options)


def test_csv_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes("größe\n1\n2\n".encode("latin-1"))
    check_refused(tmp_path / "a.csv", "a.csv", "utf-8")


def test_csv_rows_with_gaps_can_be_left_out(tmp_path):
    lines = [f"{i}.5,{'' if i == 3 else i * i}" for i in range(12)]
    data = load_data(csv(tmp_path, "\n".join(lines)), nonfinite="drop")
    assert sum(map(len, (data.train, data.valid, data.test))) == 11
    assert "1 example with NaN" in data.describe()


def test_csv_names_the_constant_column(tmp_path):
    path = csv(tmp_path, "age,planet\n" + "".join(f"{i}.5,3\n" for i in range(12)))
    check_refused(path, "column 'planet'", "--drop-constant")
    data = load_data(path, drop_constant=True)
    assert data.columns == ("age",)
    assert "'planet'" in data.describe()


# ---- Parquet


@pytest.fixture
def parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(**columns):
        parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
        return tmp_path / "a.parquet"

    return write


def test_parquet(parquet):
    raw = raw_of(parquet(a=[1.5, 2.5, 3.5], b=[1, 2, 3], c=[True, False, True]))
    np.testing.assert_array_equal(raw.train, [[1.5, 1, 1], [2.5, 2, 0], [3.5, 3, 1]])
    assert raw.columns == ("a", "b", "c")


@pytest.mark.parametrize("label", ["kind", 1])
def test_parquet_labels(parquet, label):
    path = parquet(a=[0.5, 1.5, 2.5, 3.5, 4.5], kind=list("xyxyx"), b=[1.0, 2.5, 3.0, 4.0, 5.0])
    data = load_data(path, labels=label)
    assert data.columns == ("a", "b")
    assert data.label_names == ("x", "y")


@pytest.mark.parametrize(
    ("columns", "words", "options"),
    [
        ({"a": [1.0, 2.0], "b": [None, "x"]}, ["row 2", "column 'b'", "'x'"], {}),
        ({"a": [1.0, 2.0], "b": [[1], [2]]}, ["column 'b'", "list"], {}),
        ({"a": [1.0, None], "b": [1, 2]}, ["row 2", "column 'a'", "--nonfinite drop"], {}),
        ({"a": [1.0, 2.0], "b": ["x", None]}, ["row 2", "no label"], {"labels": "b"}),
        ({"a": [1.0, 2.0]}, ["no column 'b'"], {"labels": "b"}),
        ({"a": []}, ["no rows"], {}),
    ],
)
def test_bad_parquet(parquet, columns, words, options):
    check_refused(parquet(**columns), "a.parquet", *words, **options)
