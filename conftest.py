"""What every test may rely on, wherever it runs and whatever ran before it."""

import os
import shutil
import tempfile
import warnings
from pathlib import Path

# One thread a process, before torch is imported: the digits are then those of any number of cores, and tests that run beside each
# other do not wait for each other's threads. Programs that a test starts inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

# What torch's compiler and matplotlib keep is new with each run of the tests, and one for all its processes: nothing stale is
# used, nobody's own settings are read, and a home is not needed.
if "PYTEST_XDIST_WORKER" not in os.environ:
    KEPT = Path(tempfile.mkdtemp(prefix="xhat-tests-"))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(KEPT / "torchinductor")
    os.environ["MPLCONFIGDIR"] = str(KEPT / "matplotlib")

import pytest
import torch

import xhat
from xhat.distributions.unvalidated import unvalidated
from xhat.training.engine import _reason


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reverse", action="store_true", help="run the tests in reverse order, which none may notice")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--reverse"):
        items.reverse()


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(KEPT, ignore_errors=True)


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace["torch"] = torch
    doctest_namespace["xhat"] = xhat


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def compiler() -> None:
    """Skips where torch cannot compile: without a C++ compiler, or with torch or the temporary folder at a place with a space."""
    from torch._inductor.exc import InductorError

    try:
        with warnings.catch_warnings(), unvalidated():  # as importing the compiler turns the checks of laws off
            warnings.simplefilter("ignore")  # and warns of itself
            torch.compile(lambda x: x + 1)(torch.zeros(3))
    except InductorError as error:
        pytest.skip(f"torch.compile does not work on this machine: {_reason(error)}")
