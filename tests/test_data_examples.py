"""Examples in memory, and the kinds that their values are of."""

import math

import numpy as np
import pytest
import torch

from reading import numbered, one_sentence
from xhat.data import Examples, as_examples, kind_of
from xhat.errors import ConfigError, DataError, XhatError

# ---- Examples


def test_bytes_stay_bytes_until_they_are_fetched():
    x = Examples(torch.tensor([[0, 51], [255, 102]], dtype=torch.uint8), scale=True)
    assert x.storage.dtype == torch.uint8
    assert x.tensor().dtype == torch.float32
    torch.testing.assert_close(x.tensor(), torch.tensor([[0, 0.2], [1, 0.4]]))


INDICES = [slice(1, 4), [3, 1], np.array([2, 2]), torch.tensor([0, -1]), np.array([True, False, True, False, True])]


@pytest.mark.parametrize("index", INDICES, ids=["slice", "list", "numpy", "tensor", "mask"])
def test_indexing_fetches_whole_batches(index):
    values = torch.rand(5, 1, 2, 3)
    expected = values[torch.as_tensor(index) if not isinstance(index, slice) else index]
    assert torch.equal(Examples(values)[index], expected)
    part = Examples(values, torch.arange(5)).subset(index)
    assert torch.equal(part.tensor(), expected)
    assert torch.equal(values[part.labels], expected)


@pytest.mark.parametrize("index", [2, np.int64(2), -3])
def test_int_index_gives_one_example(index):
    values = torch.rand(5, 3)
    assert torch.equal(Examples(values)[index], values[2])
    assert Examples(values).subset(index).storage.shape == (1, 3)


def test_iteration_ends_and_numpy_reads():
    x = Examples(torch.rand(4, 3, dtype=torch.float64))
    assert sum(1 for _ in x) == 4
    assert np.asarray(x).dtype == np.float32
    assert np.asarray(x, dtype=np.float64).shape == (4, 3)


def test_batches_cover_everything_in_order():
    x = as_examples(numbered(7))
    assert [len(b) for b in x.batches(3)] == [3, 3, 1]
    assert torch.equal(torch.cat(list(x.batches(3))), x.tensor())
    with pytest.raises(ConfigError, match="batch size"):
        x.batches(0)


def test_dynamic_binarisation_draws_anew_with_the_right_mean():
    torch.manual_seed(0)
    grey = torch.tensor([[0.0, 0.1, 0.5, 0.9, 1.0]])
    x = Examples(grey.expand(20_000, 5), binarize="dynamic")
    first, second = x.tensor(), x.tensor()
    assert not torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    error = (grey * (1 - grey) / 20_000).sqrt()[0]
    assert ((first.mean(0) - grey[0]).abs() <= 4 * error).all()
    torch.manual_seed(3)
    again = x[:10]
    torch.manual_seed(3)
    assert torch.equal(x[:10], again)


def test_dynamic_binarisation_of_bytes_uses_the_scaled_value():
    torch.manual_seed(0)
    x = Examples(torch.full((20_000, 1), 51, dtype=torch.uint8), scale=True, binarize="dynamic")
    assert abs(x.tensor().mean().item() - 0.2) <= 4 * math.sqrt(0.16 / 20_000)


def test_fixed_is_one_draw_of_the_seed_and_touches_no_global_generator():
    x = Examples(torch.rand(9_000, 2), torch.arange(9_000), binarize="dynamic")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = x.fixed(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.tensor(), one.tensor())
    assert torch.equal(one.tensor(), x.fixed(1).tensor())
    assert not torch.equal(one.tensor(), x.fixed(2).tensor())
    assert torch.equal(one.labels, x.labels)
    plain = Examples(torch.rand(3, 2))
    assert plain.fixed(0) is plain


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Examples(torch.zeros(2, 2, dtype=torch.int64)), "int64"),
        (lambda: Examples(torch.zeros(2)), "reshape"),
        (lambda: Examples(torch.zeros(0, 2)), "no examples"),
        (lambda: Examples(torch.zeros(2, 2), torch.zeros(3)), "labels"),
        (lambda: Examples(torch.zeros(2, 2), scale=True), "scale"),
        (lambda: Examples(torch.zeros(2, 2), binarize="static"), "static"),
        (lambda: Examples(torch.full((2, 2), 1.5), binarize="dynamic"), "[0, 1]"),
        (lambda: Examples(torch.zeros(2, 2)).subset([]), "no examples"),
    ],
)
def test_examples_refuse_by_name(make, word):
    with pytest.raises(XhatError) as error:
        make()
    one_sentence(error.value, word)


# ---- as_examples


@pytest.mark.parametrize("dtype", [bool, "u1", "i1", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", ">f4", ">i2", "longdouble"])
def test_as_examples_keeps_the_values_of_every_dtype(dtype):
    array = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype)
    x = as_examples(array)
    assert x.storage.dtype in (torch.uint8, torch.float32, torch.float64)
    np.testing.assert_array_equal(np.asarray(x), array.astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int32, torch.bool])
def test_as_examples_takes_tensors_of_other_dtypes(dtype):
    assert as_examples(torch.ones(3, 2, dtype=dtype)).tensor().eq(1).all()


def test_as_examples_scales_bytes_above_one_only():
    assert as_examples(np.array([[0, 2]], np.uint8)).scale
    assert not as_examples(np.array([[0, 1]], np.uint8)).scale
    assert not as_examples(np.array([[0, 200]], np.int64)).scale
    assert as_examples(np.array([[0, 200]], np.int64)).tensor().max() == 200


def test_as_examples_returns_examples_and_shares_memory():
    values = np.ones((2, 2), np.float32)
    x = as_examples(values)
    assert as_examples(x) is x
    assert x.storage.data_ptr() == values.ctypes.data


def test_as_examples_copies_what_torch_cannot_share():
    frozen = np.ones((3, 2))
    frozen.flags.writeable = False
    assert as_examples(frozen).tensor().sum() == 6
    assert as_examples(np.arange(6.0).reshape(3, 2)[::-1]).tensor()[0, 0] == 4


def test_large_whole_numbers_keep_their_digits():
    x = as_examples(np.array([[2**24 + 1], [0]]))
    assert x.storage.dtype == torch.float64
    assert int(x.storage[0, 0]) == 2**24 + 1


BAD_ARRAYS = [
    (np.array([]), ["no examples"]),
    (np.zeros((0, 3)), ["no examples", "(0, 3)"]),
    (np.zeros((3, 0)), ["no examples"]),
    (np.float64(3), ["single number"]),
    (np.zeros(5), ["(N, 1)"]),
    (np.array([[1, "a"]], dtype=object), ["object"]),
    (np.array([["a"]]), ["dtype"]),
    (np.array([["2020-01-01"]], dtype="datetime64[D]"), ["datetime"]),
    (np.zeros((2, 2), complex), ["complex"]),
    (torch.zeros(2, 2, dtype=torch.complex64), ["complex"]),
    ([[1, 2], [3]], ["equally long"]),
    (np.array([[1, 2], [3, np.nan]]), ["nan", "row 1", "column 1"]),
    (np.array([[1, np.inf], [3, np.nan]]), ["inf", "row 0", "column 1"]),
    (np.array([[1, -np.inf]], np.float32), ["-inf", "row 0"]),
    (np.array([[1.0, 1e300]]), ["1e+300", "float32"]),
    (torch.tensor([[[0.0, math.nan]]]), ["index (0, 0, 1)"]),
]


@pytest.mark.parametrize(("x", "words"), BAD_ARRAYS, ids=range(len(BAD_ARRAYS)))
def test_bad_arrays_are_refused_in_one_sentence(x, words):
    with pytest.raises(DataError) as error:
        as_examples(x, "my data")
    one_sentence(error.value, "my data", *words)


# ---- kinds


@pytest.mark.parametrize(
    ("values", "name", "levels"),
    [
        (torch.tensor([[0, 1]], dtype=torch.uint8), "binary", None),
        (torch.tensor([[0.0, 1.0]]), "binary", None),
        (torch.tensor([[0, 255]], dtype=torch.uint8), "binary", None),
        (torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16), "grey", 256),
        (torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16), "colour", 256),
        ((torch.arange(256) / 255).reshape(1, 256), "grey", 256),
        ((torch.arange(17) / 16).reshape(1, 17), "grey", 17),
        (torch.tensor([[0.0, 0.5, 1.0]]), "unit", None),
        (torch.tensor([[0.0, 0.3333, 1.0]]), "unit", None),
        (torch.tensor([[0.0, 3.0, 7.0]]), "counts", None),
        (torch.tensor([[0.0, 3.0, 200_000.0]]), "real", None),
        (torch.tensor([[0.0, -1.0]]), "real", None),
        (torch.tensor([[0.0, 1.5]]), "real", None),
    ],
)
def test_kind(values, name, levels):
    kind = kind_of(as_examples(values))
    assert (kind.name, kind.levels) == (name, levels)
    suggested = {"binary": "bernoulli", "unit": "continuous-bernoulli", "counts": "poisson"}
    assert kind.likelihood == suggested.get(name, "normal")
    if levels:
        assert f"'beta-binomial' over {levels} levels" in kind.why
        assert "--binarize dynamic" in kind.why


def test_kind_looks_at_all_examples():
    values = torch.zeros(9_000, 2)
    values[8_999, 1] = 0.3
    assert kind_of(Examples(values)).name == "unit"


def test_dynamic_binarisation_is_binary():
    assert kind_of(Examples(torch.rand(4, 2), binarize="dynamic")).name == "binary"


def test_grey_levels_that_were_not_divided_are_pointed_out():
    assert "divide them by 255" in kind_of(as_examples(torch.arange(256.0).reshape(1, 1, 16, 16))).why
