"""Corruptions damage the share of entries that they promise, and nothing else."""

import math

import pytest
import torch

from xhat.data import CORRUPTIONS, Masking, NormalNoise, SaltAndPepper, corruption_from
from xhat.errors import ConfigError
from xhat.parts import PARTS, rebuild, specification

COUNT = 40_000


def within(share, expected, count, errors=4.0):
    """Whether an observed share lies within so many standard errors of a binomial's."""
    return abs(share - expected) <= errors * math.sqrt(expected * (1 - expected) / count)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.8])
def test_masking_loses_the_promised_share(rate):
    lost = Masking(rate)(torch.ones(COUNT // 10, 10)) == 0
    assert within(lost.double().mean().item(), rate, COUNT)


def test_masking_is_independent_between_entries():
    lost = (Masking(0.5)(torch.ones(COUNT, 2)) == 0).double()
    assert within((lost[:, 0] * lost[:, 1]).mean().item(), 0.25, COUNT)


def test_masking_puts_value_and_leaves_the_rest():
    x = torch.rand(100, 1, 4, 4) + 1
    before = x.clone()
    y = Masking(0.5, value=-3.0)(x)
    assert torch.equal(x, before)
    assert torch.equal(y[y != -3], x[y != -3])
    assert (y == -3).any()


def test_pixelwise_masking_loses_all_channels_together():
    lost = Masking(0.3, pixelwise=True)(torch.ones(500, 3, 5, 5)) == 0
    assert torch.equal(lost.any(1), lost.all(1))
    assert within(lost[:, 0].double().mean().item(), 0.3, 500 * 25)
    apart = Masking(0.3)(torch.ones(500, 3, 5, 5)) == 0
    assert not torch.equal(apart.any(1), apart.all(1))


def test_pixelwise_masking_needs_channels():
    with pytest.raises(ConfigError, match="channels"):
        Masking(0.3, pixelwise=True)(torch.ones(5, 3))


def test_normal_noise_has_its_scale_and_no_bias():
    noise = NormalNoise(0.3)(torch.full((COUNT,), 2.0, dtype=torch.float64)) - 2
    assert abs(noise.mean().item()) <= 4 * 0.3 / math.sqrt(COUNT)
    assert abs(noise.std().item() - 0.3) <= 4 * 0.3 / math.sqrt(2 * COUNT)


def test_salt_and_pepper_are_equally_likely():
    y = SaltAndPepper(0.25, low=-1.0, high=2.0)(torch.full((COUNT,), 0.5))
    assert within((y == -1).double().mean().item(), 0.125, COUNT)
    assert within((y == 2).double().mean().item(), 0.125, COUNT)
    assert set(y.unique().tolist()) == {-1.0, 0.5, 2.0}


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_corruption_keeps_shape_and_dtype_draws_anew_and_obeys_the_seed(name, dtype):
    corruption = corruption_from(name)
    x = torch.rand(6, 2, 3, 4).to(dtype)
    torch.manual_seed(1)
    first, second = corruption(x), corruption(x)
    torch.manual_seed(1)
    assert torch.equal(corruption(x), first)
    assert not torch.equal(first, second)
    assert first.shape == x.shape
    assert first.dtype == dtype


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_amount_zero_leaves_x_as_it_is(name):
    x = torch.rand(5, 4)
    assert torch.equal(corruption_from(f"{name}:0")(x), x)


@pytest.mark.parametrize("cls", [Masking, SaltAndPepper])
def test_rate_one_spares_nothing(cls):
    assert not (cls(1.0)(torch.full((50, 50), 0.5)) == 0.5).any()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_specification_round_trip(name):
    corruption = corruption_from(f"{name}:0.125")
    again = rebuild(specification(corruption))
    assert type(again) is type(corruption)
    assert repr(again) == repr(corruption)
    assert PARTS[f"data.{type(corruption).__name__}"] is type(corruption)


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan, math.inf])
@pytest.mark.parametrize("cls", [Masking, SaltAndPepper])
def test_rates_outside_the_unit_interval_are_refused(cls, rate):
    with pytest.raises(ConfigError, match=r"must lie in \[0, 1\]"):
        cls(rate)


@pytest.mark.parametrize("scale", [-1.0, math.nan, math.inf])
def test_bad_scales_are_refused(scale):
    with pytest.raises(ConfigError, match="scale"):
        NormalNoise(scale)


@pytest.mark.parametrize("make", [lambda: Masking(value=math.nan), lambda: SaltAndPepper(low=-math.inf)])
def test_values_must_be_finite(make):
    with pytest.raises(ConfigError, match="finite"):
        make()


@pytest.mark.parametrize("text", ["blur", "masking:", "masking:half", "masking:2", "normal-noise:-1", ""])
def test_bad_texts_are_refused(text):
    with pytest.raises(ConfigError):
        corruption_from(text)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="masking, normal-noise, salt-and-pepper"):
        corruption_from("blur:0.1")
