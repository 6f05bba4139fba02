"""From rounds to figures: medians, spreads, ratios, and whether a target is met."""

from __future__ import annotations

from statistics import median
from typing import Any, NamedTuple

from benchmarks.speed.rows import Row, Target
from benchmarks.speed.table import CONTENDERS


class Verdict(NamedTuple):
    """What is asked of a row and what was measured, in words; ``met`` is None where it could not be measured."""

    asked: str
    measured: str
    met: bool | None
    short: float = 0.0  # what is missing, as a share of what is asked

    def __str__(self) -> str:
        if self.met is None:
            return self.measured
        return "met" if self.met else f"missed by {self.short:.0%}"


def ran(results: dict[str, Any], name: str) -> bool:
    return bool(results.get(name, {}).get("seconds"))


def ours_of(row: Row, results: dict[str, Any]) -> str | None:
    """The contender of xhat's that the others are compared with: the first of its list that ran."""
    return next((name for name in row.ours if ran(results, name)), None)


def ratio(theirs: list[float], ours: list[float]) -> float:
    """How many times as long theirs takes: the median over rounds of the quotient, so that a slow minute hits both alike."""
    return median(a / b for a, b in zip(theirs, ours, strict=True))


def judge(target: Target, row: Row, results: dict[str, Any]) -> Verdict:
    """A target against the rounds."""
    than = " and ".join(CONTENDERS[name].label for name in target.than)
    if target.kind == "share":
        asked = f"at least {target.least:.0%} of the speed of the products alone"
    elif target.kind == "times":
        asked = f"at least {target.least:g} × as fast as {than}"
    else:
        asked = f"at most {target.least * 1e6:.0f} µs a step"
    ours, others = ours_of(row, results), [name for name in target.than if ran(results, name)]
    if ours is None or (target.than and not others):
        return Verdict(asked, "not measured", None)
    mine = results[ours]["seconds"]
    if target.kind == "seconds":
        value = median(mine)
        return Verdict(asked, f"{value * 1e6:.0f} µs", value <= target.least, value / target.least - 1)
    ratios = [ratio(results[name]["seconds"], mine) for name in others]
    value = min(ratios)  # against the quickest of them
    measured = f"{value:.0%}" if target.kind == "share" else f"{value:.2f} ×"
    return Verdict(asked, measured, value >= target.least, 1 - value / target.least)


def verdicts(row: Row, results: dict[str, Any]) -> list[Verdict]:
    """All of a row's targets."""
    return [judge(target, row, results) for target in row.targets]


def setup(found: dict[str, Any]) -> float:
    """What the first epoch cost beyond a later one, in seconds: mostly compiling."""
    return max(0.0, found["first"] - found["steps"] * median(found["seconds"]))


def break_even(row: Row, results: dict[str, Any]) -> float | None:
    """Steps after which compiling has paid for itself, or None where it does not, or was not measured."""
    compiled, eager = (next((n for n in row.ours if n.startswith(kind)), None) for kind in ("xhat", "xhat-eager"))
    if compiled is None or eager is None or not ran(results, compiled) or not ran(results, eager):
        return None
    saved = median(results[eager]["seconds"]) - median(results[compiled]["seconds"])
    return (setup(results[compiled]) - setup(results[eager])) / saved if saved > 0 else None
