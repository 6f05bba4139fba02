"""Loading: splits, binarisation, standardisation, and what is refused."""

import math

import numpy as np
import pytest
import torch

from reading import numbered, one_sentence
from xhat.data import as_examples, load_data
from xhat.errors import ConfigError, DataError

# ---- splits


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, (80, 10, 10)),
        ({"valid": 0.25, "test": 0.5}, (25, 25, 50)),
        ({"valid": 7, "test": 1}, (92, 7, 1)),
        ({"valid": 0.001, "test": 3}, (96, 1, 3)),
    ],
)
def test_split_sizes(options, sizes):
    data = load_data(numbered(100), standardize=False, **options)
    assert (len(data.train), len(data.valid), len(data.test)) == sizes
    everybody = torch.cat([part.tensor()[:, 0] for part in (data.train, data.valid, data.test)]).floor()
    assert everybody.sort().values.tolist() == list(range(100))


def test_split_is_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = load_data(numbered(50), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    two, other = load_data(numbered(50), seed=3), load_data(numbered(50), seed=4)
    for part in ("train", "valid", "test"):
        assert torch.equal(getattr(one, part).storage, getattr(two, part).storage)
    assert not torch.equal(one.train.storage, other.train.storage)


def test_labels_follow_their_examples():
    data = load_data(numbered(30), labels=torch.arange(30), standardize=False)
    for part in (data.train, data.valid, data.test):
        assert torch.equal(part.tensor()[:, 0].floor().long(), part.labels)


def test_text_labels_become_codes_with_names():
    names = ["cat", "ant", "bee"] * 10
    data = load_data(numbered(30), labels=names, standardize=False)
    assert data.label_names == ("ant", "bee", "cat")
    for row, label in zip(data.train.tensor()[:, 0], data.train.labels, strict=True):
        assert data.label_names[label] == names[int(row)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_examples_are_refused(count):
    with pytest.raises(DataError) as error:
        load_data(numbered(count))
    one_sentence(error.value, "at least 2 training examples", f"has {count}")


def test_four_examples_are_enough():
    data = load_data(numbered(4))
    assert (len(data.train), len(data.valid), len(data.test)) == (2, 1, 1)


@pytest.mark.parametrize("share", [0, 0.0, 1.0, -0.1, -3, 1.5, True, math.nan])
def test_shares_outside_their_range_are_refused(share):
    for name in ("valid", "test"):
        with pytest.raises(ConfigError, match=name):
            load_data(numbered(10), **{name: share})


def test_shares_that_leave_nothing_to_train_are_refused():
    with pytest.raises(DataError, match="at least 2 training examples besides 6"):
        load_data(numbered(10), valid=6, test=4)


@pytest.mark.parametrize("labels", [[1, 2], np.ones((10, 2)), np.arange(10) + 0.5, np.array([None] * 10), np.zeros(10, complex)])
def test_bad_labels_are_refused(labels):
    with pytest.raises(DataError, match="labels must be"):
        load_data(numbered(10), labels=labels)


def test_examples_are_a_source_and_keep_their_labels():
    source = as_examples(np.arange(40, dtype=np.uint8).reshape(20, 2) * 5)
    source.labels = torch.arange(20)
    data = load_data(source)
    torch.testing.assert_close(data.train.tensor(), source[data.train.labels])


@pytest.mark.parametrize(
    ("shape", "dtype", "event"),
    [
        ((6, 5, 4), np.float32, (1, 5, 4)),
        ((6, 5, 4, 3), np.uint8, (3, 5, 4)),
        ((6, 3, 5, 4), np.uint8, (3, 5, 4)),
        ((6, 5, 4, 3), np.float32, (5, 4, 3)),
        ((6, 2, 5, 4, 3), np.float32, (2, 5, 4, 3)),
        ((6, 7), np.float32, (7,)),
    ],
)
def test_layouts(shape, dtype, event):
    values = np.random.default_rng(0).random(shape) * 255
    assert load_data(values.astype(dtype)).shape == event


def test_channels_last_moves_the_right_axis():
    image = np.arange(6 * 2 * 5 * 3, dtype=np.uint8).reshape(6, 2, 5, 3)
    data = load_data(image, labels=np.arange(6))
    expected = torch.from_numpy(image[int(data.test.labels[0])]).permute(2, 0, 1) / 255
    torch.testing.assert_close(data.test[0], expected)


def test_bytes_of_a_table_are_numbers_unless_they_reach_255():
    table = np.random.default_rng(0).integers(0, 11, (40, 3)).astype(np.uint8)
    assert load_data(table).kind.name == "counts"
    assert load_data(table.reshape(40, 1, 3)).kind.name == "grey"
    table[7, 1] = 255
    assert load_data(table).kind.levels == 256


# ---- binarisation


def grey_images(n=400):
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_static_binarisation_is_one_draw_of_the_seed():
    one, two = (load_data(grey_images(), binarize="static", seed=1) for _ in range(2))
    grey = load_data(grey_images(), seed=1)
    for part in ("train", "valid", "test"):
        drawn = getattr(one, part).tensor()
        assert torch.equal(drawn, getattr(two, part).tensor())
        assert torch.equal(drawn, drawn.round())
        p = getattr(grey, part).tensor().double()
        assert abs((drawn - p).mean()) <= 4 * (p * (1 - p)).sum().sqrt() / p.numel()
    assert one.kind.name == "binary"


def test_dynamic_binarisation_redraws_train_only():
    data = load_data(grey_images(), binarize="dynamic")
    assert not torch.equal(data.train.tensor(), data.train.tensor())
    assert torch.equal(data.valid.tensor(), data.valid.tensor())
    assert torch.equal(data.test.tensor(), load_data(grey_images(), binarize="dynamic").test.tensor())
    assert data.kind.likelihood == "bernoulli"


@pytest.mark.parametrize("values", [grey_images(), (grey_images() * 255).to(torch.uint8)])
def test_threshold(values):
    data, grey = load_data(values, binarize="threshold"), load_data(values)
    assert torch.equal(data.train.tensor(), (grey.train.tensor() > 0.5).float())


@pytest.mark.parametrize("how", ["static", "dynamic", "threshold"])
def test_binarising_what_is_no_probability_is_refused(how):
    with pytest.raises(DataError) as error:
        load_data(numbered(20) - 5, binarize=how)
    one_sentence(error.value, "[0, 1]", "rescale")


# ---- standardisation


def test_tables_of_reals_are_standardised_with_train_alone():
    values = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10, 100]) + 7
    data, plain = load_data(values), load_data(values, standardize=False)
    train = plain.train.storage.double()
    torch.testing.assert_close(data.scaling.mean, train.mean(0))
    torch.testing.assert_close(data.scaling.std, train.std(0, correction=0))
    for part in ("train", "valid", "test"):
        back = data.scaling.invert(getattr(data, part).tensor())
        torch.testing.assert_close(back, getattr(plain, part).tensor(), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(data.scaling.apply(back), getattr(data, part).tensor(), rtol=1e-4, atol=1e-5)
    assert plain.scaling is None


def test_log_jacobian_turns_densities_into_the_units_of_the_data():
    values = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5 + 1
    scaling = load_data(values).scaling
    standard = torch.distributions.Normal(torch.zeros(2).double(), torch.ones(2).double())
    native = torch.distributions.Normal(scaling.mean, scaling.std)
    expected = native.log_prob(values).sum(-1)
    torch.testing.assert_close(standard.log_prob(scaling.apply(values)).sum(-1) + scaling.log_jacobian, expected)


@pytest.mark.parametrize("values", [torch.rand(20, 3), torch.randint(0, 9, (20, 3)), torch.randn(20, 1, 4, 4)])
def test_other_data_are_standardised_only_when_asked(values):
    assert load_data(values).scaling is None
    data = load_data(values, standardize=True)
    axes = [axis for axis in range(values.dim()) if axis != 1]
    torch.testing.assert_close(data.train.tensor().mean(axes), torch.zeros(values.shape[1]), rtol=0, atol=1e-5)
    assert data.scaling.std.shape == data.shape
    assert data.kind.name == "real"


def test_images_with_constant_pixels_can_be_standardised():
    values = torch.randn(20, 2, 3, 3)
    values[:, :, 0, 0] = 0
    assert torch.isfinite(load_data(values, standardize=True).train.tensor()).all()
    values[:, 1] = 0.5
    with pytest.raises(DataError, match="channel"):
        load_data(values, standardize=True)


def test_time_stamps_keep_their_spread():
    stamps = 1_700_000_000 + torch.arange(100)[:, None] + torch.zeros(100, 1, dtype=torch.int64)
    assert len(load_data(stamps).train.tensor().unique()) == 80


def test_constant_columns_are_refused_or_left_out():
    values = numbered(30, 4)
    values[:, 2] = 3.0
    with pytest.raises(DataError) as error:
        load_data(values)
    one_sentence(error.value, "column 2", "--drop-constant")
    with pytest.raises(DataError, match="column 2"):
        load_data(values, standardize=False)
    data = load_data(values, drop_constant=True)
    assert data.shape == (3,)
    assert "column 2 has one value throughout" in data.describe()


def test_nothing_left_after_dropping_is_refused():
    with pytest.raises(DataError, match="every column"):
        load_data(torch.full((10, 2), 1.5), drop_constant=True)


def test_nonfinite_rows_are_refused_or_left_out_with_their_labels():
    values = numbered(30)
    values[4, 1], values[9, 0] = math.nan, math.inf
    with pytest.raises(DataError) as error:
        load_data(values)
    one_sentence(error.value, "nan", "row 4, column 1", "--nonfinite drop")
    data = load_data(values, nonfinite="drop", labels=np.arange(30), standardize=False)
    assert sum(map(len, (data.train, data.valid, data.test))) == 28
    assert torch.equal(data.train.tensor()[:, 0].floor().long(), data.train.labels)
    assert "2 examples with NaN or infinity left out" in data.describe()


def test_nothing_finite_is_refused():
    with pytest.raises(DataError, match="every example"):
        load_data(torch.full((5, 2), math.nan), nonfinite="drop")


@pytest.mark.parametrize(
    "options",
    [
        {"binarize": "sometimes"},
        {"nonfinite": "ignore"},
        {"binarize": "static", "standardize": True},
        {"array": "x"},
        {"resize": (2, 2)},
        {"labels": "class"},
    ],
)
def test_options_without_meaning_are_refused(options):
    with pytest.raises(ConfigError) as error:
        load_data(torch.rand(10, 2), **options)
    one_sentence(error.value)


def test_drop_constant_is_for_tables():
    with pytest.raises(ConfigError, match="table"):
        load_data(torch.rand(10, 1, 2, 2), drop_constant=True)


def test_describe_tells_what_a_user_wants_to_know():
    text = load_data(torch.rand(20, 3), labels=np.arange(20) % 2).describe()
    assert len(text.splitlines()) in (2, 3)
    for word in ("20 examples", "(3,)", "16 to train", "2 classes", "unit", "continuous-bernoulli"):
        assert word in text
