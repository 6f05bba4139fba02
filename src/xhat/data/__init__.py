"""Data: from a file, a folder or an array to examples that are checked, split and ready to be fetched in batches.

:func:`load_data` reads a source and returns a :class:`Data`; :func:`as_examples` wraps what is already in memory.

>>> data = load_data([[0.0, 1.5], [1.0, 2.5], [2.0, 3.0], [3.0, 9.0], [4.0, 7.0], [5.0, 8.0]])
>>> data.shape, data.kind.name, len(data.train), len(data.valid), len(data.test)
((2,), 'real', 4, 1, 1)
"""

from xhat.data.batch import Batch
from xhat.data.conditions import Conditions
from xhat.data.corruption import (
    CORRUPTIONS,
    Corruption,
    Masking,
    NormalNoise,
    SaltAndPepper,
    corruption_from,
)
from xhat.data.dataset import Data
from xhat.data.examples import Examples, as_examples
from xhat.data.given import given, in_own_units, preparation_of
from xhat.data.kinds import Kind, kind_of
from xhat.data.load import load_data
from xhat.data.preparation import Preparation
from xhat.data.scaling import Scaling
from xhat.data.sources import read_array

__all__ = [
    "CORRUPTIONS",
    "Batch",
    "Conditions",
    "Corruption",
    "Data",
    "Examples",
    "Kind",
    "Masking",
    "NormalNoise",
    "Preparation",
    "SaltAndPepper",
    "Scaling",
    "as_examples",
    "corruption_from",
    "given",
    "in_own_units",
    "kind_of",
    "load_data",
    "preparation_of",
    "read_array",
]
