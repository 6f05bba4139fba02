"""What the tests of data sources share: made-up arrays, the raw arrays of a source, and what a refusal must look like."""

import numpy as np
import pytest
import torch

from xhat.data import load_data
from xhat.data.raw import Raw
from xhat.data.source_options import SourceOptions
from xhat.data.sources import read
from xhat.errors import XhatError


def random(*shape, dtype=np.float32):
    return (np.random.default_rng(0).random(shape) * (255 if dtype == np.uint8 else 1)).astype(dtype)


def numbered(n, d=2):
    """A table whose every value says which example it belongs to; real-valued, no column constant."""
    return torch.arange(n)[:, None] + torch.arange(1, d + 1) / 8 + 0.001


def raw_of(source, **options) -> Raw:
    return read(source, SourceOptions(**options))[1]


def one_sentence(error, *words):
    """The message is one sentence, and holds the words."""
    text = str(error)
    assert "\n" not in text
    assert not text.endswith(".")
    for word in words:
        assert word in text, text


def check_refused(source, *words, **options):
    """Loading the source is refused in one sentence that holds the words."""
    with pytest.raises(XhatError) as error:
        load_data(source, **options)
    one_sentence(error.value, *words)
    return error.value
