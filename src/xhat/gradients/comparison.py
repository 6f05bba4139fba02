"""What a comparison of gradients says: its rows, its table, its recommendation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

CLEAR = 1.5  # times less cost than the next: below this, the clock decides as much as the gradient


class Row(NamedTuple):
    """One estimator's measures.

    Attributes:
        name: of the gradient.
        samples: what it was asked for.
        evaluations: values of f that one estimate took for each example.
        unbiased: what it declares.
        bias: root mean square over coordinates of (mean − truth) in standard errors: about 1 where there is no bias; NaN for the
            estimator that serves as the truth.
        worst: the largest of them.
        relative_bias: norm of (mean − truth) over the norm of the truth.
        variance: of one estimate, summed over coordinates.
        snr: norm of the truth over the root of the variance.
        seconds: median time of one estimate, forward and backward.
        cost: variance × seconds: what a given precision costs.
        mean: the mean of the estimates' projection on the truth, which is 1 without bias.
        spread: quantiles of that projection, at 5, 25, 50, 75 and 95 %.
    """

    name: str
    samples: int
    evaluations: int
    unbiased: bool
    bias: float
    worst: float
    relative_bias: float
    variance: float
    snr: float
    seconds: float
    cost: float
    mean: float
    spread: tuple[float, ...]


class Comparison(tuple[Row, ...]):
    """The rows, with what does not fit and why, and a recommendation. ``str()`` is a table.

    Attributes:
        misfits: name → reason.
        reference: what the truth was: "given", "enumerated", or the name of the unbiased estimator that served.
        repeats: estimates of each.
        recommended: a name.
        reason: a sentence.
    """

    misfits: dict[str, str]
    reference: str
    repeats: int
    recommended: str | None
    reason: str

    def __new__(cls, rows: Iterable[Row], **about: Any) -> Comparison:
        made = super().__new__(cls, tuple(rows))
        made.__dict__.update(about)
        return made

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file; what is not a number is null."""
        rows = [{name: _number(value) for name, value in row._asdict().items()} for row in self]
        return {"rows": rows, **self.__dict__}

    def __str__(self) -> str:
        head = ("gradient", "samples", "f", "bias, s.e.", "variance", "signal/noise", "µs", "variance × s")
        lines = [head]
        for row in self:
            bias = "(truth)" if math.isnan(row.bias) else f"{row.bias:.1f}"
            if not row.unbiased:
                bias += " (biased)"
            numbers = (f"{row.variance:.3g}", f"{row.snr:.3g}", f"{1e6 * row.seconds:.0f}", f"{row.cost:.3g}")
            lines.append((row.name, str(row.samples), str(row.evaluations), bias, *numbers))
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = [
            "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        text.append(f"truth: {self.reference}; {self.repeats} estimates of each; f: its values in one estimate")
        text.append(self.reason)
        for reason, names in self._reasons().items():
            text.append(f"not run: {', '.join(names)}: {reason}")
        return "\n".join(text)

    def _reasons(self) -> dict[str, list[str]]:
        """The misfits by reason; a reason that begins with its gradient's own name is told without it."""
        found: dict[str, list[str]] = {}
        for name, reason in self.misfits.items():
            found.setdefault(reason.removeprefix(f"the gradient {name.split(',')[0]!r} "), []).append(name)
        return found


def _number(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_number(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def recommend(rows: Sequence[Row]) -> tuple[str | None, str]:
    """The unbiased estimator whose precision costs least, and a sentence that says why."""
    steady = [row for row in rows if row.unbiased]
    if not steady:
        return None, "no unbiased gradient fits, so none is recommended"
    best = min(steady, key=lambda row: (row.cost, row.seconds))
    if best.variance == 0:
        text = f"recommended: {best.name}, which is exact here, with no variance at {best.evaluations} values of f"
    elif len(steady) == 1:
        text = f"recommended: {best.name}, the one unbiased gradient that fits"
    else:
        others = [row for row in steady if row is not best]
        second = min(others, key=lambda row: row.cost)
        ratio = second.cost / best.cost
        near = f"{ratio:.3g} times less than {second.name}, the next" if ratio >= CLEAR else f"with {second.name} about as good"
        text = f"recommended: {best.name}, for of the unbiased gradients it has the least variance × seconds, {near}"
    lower = [row for row in rows if not row.unbiased and row.cost < best.cost]
    if lower:
        least = min(lower, key=lambda row: row.cost)
        text += f"; {least.name} costs still less and is wrong by {100 * least.relative_bias:.3g} % of the gradient"
    return best.name, text
