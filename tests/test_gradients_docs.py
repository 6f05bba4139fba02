"""The page about gradients says of each what its class says."""

from __future__ import annotations

from pathlib import Path

import pytest

from xhat.gradients import GRADIENTS

PAGE = Path(__file__).parent.parent / "docs" / "gradients.md"


def rows() -> dict[str, list[str]]:
    """The cells of the page's table of all gradients, by name."""
    table = PAGE.read_text(encoding="utf-8").split("## All of them")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| `")]
    return {line[0].strip("`"): line[1:] for line in cells}


def test_every_gradient_has_a_row_and_nothing_else_has():
    assert list(rows()) == list(GRADIENTS)


@pytest.mark.parametrize("name", GRADIENTS)
def test_what_the_page_says_is_what_the_class_declares(name):
    law, unbiased, samples, _, source = rows()[name]
    cls, estimator = GRADIENTS[name], GRADIENTS[name]()
    assert unbiased.startswith("yes") == cls.unbiased
    assert ("smooth f" in law) == ("differentiable f" in estimator.requires or name == "pathwise")
    assert ("≥ 2" in samples or samples == "even" or samples.startswith("2 to")) == (estimator.fewest_samples == 2)
    years = [word for word in source.replace(";", " ").split() if word.isdigit()]
    assert all(year in (cls.__doc__ or "") for year in years)
