"""Names that every doctest may use, and random numbers that do not depend on which tests ran before."""

import pytest
import torch

import xhat


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace["torch"] = torch
    doctest_namespace["xhat"] = xhat


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
