"""The laboratory: every estimator on one problem, at equal numbers of values of f."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from xhat.distributions.chain import Chain
from xhat.errors import ConfigError, whole_number
from xhat.gradients.base import Function, Gradient
from xhat.gradients.comparison import Comparison, Row, recommend
from xhat.gradients.enumeration import Enumerate
from xhat.gradients.expectation import GRADIENTS, expectation, gradient_of, misfit, name_of
from xhat.gradients.layers import Layers
from xhat.gradients.pathwise import Pathwise
from xhat.gradients.reduction import Mean, Reduction
from xhat.gradients.score import Score

KEPT = 20_000_000  # numbers of single estimates that are held for the spread
LARGEST = 2**12  # values of a law that are enumerated for the truth
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NEGLIGIBLE = 1e-9  # of the gradient's norm: what rounding alone does, in float64


def everything() -> dict[str, Gradient]:
    """Every gradient of the library, and pathwise with each noise.

    A lagged baseline is left out: here, where no parameter moves, its average settles as it never does in training.
    """
    return {
        **{name: cls() for name, cls in GRADIENTS.items()},
        "pathwise, antithetic": Pathwise("antithetic"),
        "pathwise, sobol": Pathwise("sobol"),
    }


def compare(
    f: Function | None,
    q: Distribution | Callable[[], Distribution | tuple[Distribution, Function]],
    parameters: Tensor | Sequence[Tensor],
    gradients: str | Gradient | Sequence[str | Gradient] | Mapping[str, Gradient] | None = None,
    samples: int = 4,
    repeats: int = 1000,
    *,
    exact: Tensor | Sequence[Tensor] | None = None,
    reduce: Reduction | None = None,
    train: int = 200,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Measure gradient estimators side by side: bias, variance, time.

    The gradient is that of the mean over the batch of E[f]. Estimators with parameters of their own are trained on their variance
    first, on this problem.

    Args:
        f: as in :func:`expectation`; None where ``q`` makes it, too.
        q: the law; or a function without arguments that makes it from the parameters, anew for each estimate; or one that makes a
            pair (law, f), where f holds the law, as a bound's :class:`LogWeight` does.
        parameters: tensors in which the derivative is taken.
        gradients: names, estimators, or names with estimators; all of the library unless given. For a law of several layers
            each is taken once a layer, nested. Estimators are copied: training leaves yours alone.
        samples: how many values of f one estimate may take for each example, whatever it does with them.
        repeats: independent estimates of each.
        exact: the true gradient, where it is known; else it is enumerated where that is possible, else the unbiased estimator
            with the least standard error serves.
        reduce: how values become one; the mean unless given.
        train: steps of Adam for the estimators' own parameters.
        progress: called with each estimator's name before it runs.

    Raises:
        ConfigError: no estimator fits; there is no f; parameters without ``requires_grad``; or an ``exact`` of another size.

    >>> logit = torch.zeros(1, requires_grad=True)
    >>> q = torch.distributions.Bernoulli(logits=logit)
    >>> result = compare(lambda b: (b - 0.45) ** 2, q, logit, ["score", "rloo", "disarm"], samples=2, repeats=50)
    >>> [row.name for row in result], result.reference
    (['score', 'rloo', 'disarm'], 'enumerated')
    """
    whole_number("samples", samples)
    whole_number("repeats", repeats, 2)
    leaves = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    how = Mean() if reduce is None else reduce
    if not leaves or not all(leaf.requires_grad for leaf in leaves):
        raise ConfigError("compare needs parameters with requires_grad=True: the gradients are taken in them")

    def problem() -> tuple[Distribution, Function]:
        made = q if isinstance(q, Distribution) else q()
        if isinstance(made, tuple):
            return made
        if f is None:
            raise ConfigError("compare needs a function f, or a q that makes a pair (law, f)")
        return made, f

    misfits: dict[str, str] = {}
    runs: dict[str, tuple[Gradient, int]] = {}
    law, function = problem()
    for name, estimator in _layered(_chosen(gradients), law, misfits).items():
        count, reason = _fitting(estimator, law, function, samples, how)
        if reason is not None:
            misfits[name] = reason
        else:
            runs[name] = (estimator, count)
    if not runs:
        raise ConfigError("no gradient fits: " + "; ".join(misfits.values()))
    truth, reference = _exact(exact, law, function, problem, leaves, how)
    size = sum(leaf.numel() for leaf in leaves)
    kept = torch.arange(size) if size * repeats <= KEPT else torch.randperm(size)[: max(1, KEPT // repeats)]
    measured: dict[str, _Sums] = {}
    for name, (estimator, count) in list(runs.items()):
        if progress is not None:
            progress(name)
        try:
            _trained(estimator, problem, count, how, train)
            measured[name] = _measure(estimator, problem, leaves, count, how, repeats, kept)
        except ConfigError as error:  # f is not what the estimator needs: seen when it is called
            misfits[name] = str(error)
            del runs[name]
    if not runs:
        raise ConfigError("no gradient fits: " + "; ".join(misfits.values()))
    truth_error = torch.zeros(size, dtype=torch.float64)
    if truth is None:
        steady = [name for name in runs if runs[name][0].unbiased] or list(runs)
        reference = min(steady, key=lambda name: float(measured[name].variance.sum()))
        truth, truth_error = measured[reference].mean, measured[reference].variance / repeats
    rounding = max(NEGLIGIBLE, *(32 * torch.finfo(leaf.dtype).eps for leaf in leaves))
    rows = [
        _row(name, *runs[name], law, measured[name], truth, truth_error, name == reference, repeats, kept, rounding)
        for name in runs
    ]
    recommended, reason = recommend(rows)
    return Comparison(rows, misfits=misfits, reference=reference, repeats=repeats, recommended=recommended, reason=reason)


def _chosen(gradients: str | Gradient | Sequence[str | Gradient] | Mapping[str, Gradient] | None) -> dict[str, Gradient]:
    if gradients is None:
        return everything()
    if isinstance(gradients, Mapping):
        return {name: copy.deepcopy(gradient_of(gradient)) for name, gradient in gradients.items()}
    known = {**everything(), "score, lagged": Score("lagged")}
    named: dict[str, Gradient] = {}
    for gradient in [gradients] if isinstance(gradients, str | Gradient) else list(dict.fromkeys(gradients)):
        name = first = gradient if isinstance(gradient, str) else name_of(gradient)
        count = 1
        while name in named:  # one estimator with other options is another row
            count += 1
            name = f"{first} ({count})"
        named[name] = copy.deepcopy(known[first] if isinstance(gradient, str) and first in known else gradient_of(gradient))
    return named


def _layered(chosen: dict[str, Gradient], q: Distribution, misfits: dict[str, str]) -> dict[str, Gradient]:
    """For a law of several layers each estimator once a layer, nested; those that cannot go there become misfits."""
    if not isinstance(q, Chain):
        return chosen
    depth, below = 1, q
    while isinstance(below, Chain):
        depth, below = depth + 1, below.pattern  # type: ignore[assignment]
    nested: dict[str, Gradient] = {}
    for name, estimator in chosen.items():
        try:
            each = [copy.deepcopy(estimator) for _ in range(depth)]
            nested[name] = estimator if isinstance(estimator, Layers) else Layers(each)
        except ConfigError as error:
            misfits[name] = str(error)
    return nested


def _fitting(estimator: Gradient, q: Distribution, f: Function, budget: int, reduce: Reduction) -> tuple[int, str | None]:
    """The most samples that stay within the budget, or why there are none."""
    found = misfit(estimator, q, estimator.usable(1), f, reduce)
    if found is not None:
        return 0, found.reason
    for count in range(budget, 0, -1):
        if estimator.usable(count) == count and estimator.evaluations(count, q) <= budget:
            return count, None
    fewest = estimator.usable(1)
    return 0, f"one estimate takes {estimator.evaluations(fewest, q)} values of f, and {budget} were allowed"


def _exact(
    exact: Tensor | Sequence[Tensor] | None,
    q: Distribution,
    f: Function,
    problem: Callable[[], tuple[Distribution, Function]],
    leaves: list[Tensor],
    reduce: Reduction,
) -> tuple[Tensor | None, str]:
    if exact is not None:
        parts = [exact] if isinstance(exact, Tensor) else list(exact)
        known = torch.cat([part.detach().double().flatten().cpu() for part in parts])
        size = sum(leaf.numel() for leaf in leaves)
        if len(known) != size:
            raise ConfigError(f"exact must have a number for each of the {size} of the parameters, had {len(known)}")
        return known, "given"
    exhaustive: Gradient = Enumerate(LARGEST)
    if isinstance(q, Chain):
        exhaustive = _layered({"enumerate": exhaustive}, q, {}).get("enumerate", exhaustive)
        if misfit(exhaustive, q, 1, f, reduce) is None and exhaustive.evaluations(1, q) > LARGEST:
            return None, ""
    if misfit(exhaustive, q, 1, f, reduce) is None:
        return _gradient(exhaustive, problem, leaves, 1, reduce), "enumerated"
    return None, ""


def _gradient(
    estimator: Gradient,
    problem: Callable[[], tuple[Distribution, Function]],
    leaves: list[Tensor],
    samples: int,
    reduce: Reduction,
) -> Tensor:
    """One estimate, flat, in float64 on the CPU."""
    q, f = problem()
    value = expectation(f, q, estimator, samples, reduce).mean()
    # A value that hangs on no parameter has the derivative 0.
    slopes = (
        torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True) if value.requires_grad else [None] * len(leaves)
    )
    flat = [
        (torch.zeros_like(leaf) if slope is None else slope).detach().double().flatten().cpu()
        for leaf, slope in zip(leaves, slopes, strict=True)
    ]
    return torch.cat(flat)


def _trained(
    estimator: Gradient, problem: Callable[[], tuple[Distribution, Function]], samples: int, reduce: Reduction, steps: int
) -> None:
    own = [p for p in estimator.parameters() if p.requires_grad]
    if not own:
        return
    optimizer = torch.optim.Adam(own, lr=0.02)
    for _ in range(steps):
        q, f = problem()
        expectation(f, q, estimator, samples, reduce)
        loss = estimator.auxiliary_loss()
        if loss is None or not loss.requires_grad:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class _Sums(NamedTuple):
    mean: Tensor
    variance: Tensor
    kept: Tensor
    seconds: float


def _measure(
    estimator: Gradient,
    problem: Callable[[], tuple[Distribution, Function]],
    leaves: list[Tensor],
    samples: int,
    reduce: Reduction,
    repeats: int,
    kept: Tensor,
) -> _Sums:
    mean = square = None
    times, held = [], []
    for done in range(repeats):
        start = time.perf_counter()
        one = _gradient(estimator, problem, leaves, samples, reduce)
        times.append(time.perf_counter() - start)
        held.append(one[kept].float())
        if mean is None or square is None:
            mean, square = one, torch.zeros_like(one)
            continue
        gap = one - mean
        mean = mean + gap / (done + 1)
        square = square + gap * (one - mean)
    assert mean is not None
    assert square is not None
    return _Sums(mean, square / (repeats - 1), torch.stack(held), sorted(times)[len(times) // 2])


def _row(
    name: str,
    estimator: Gradient,
    samples: int,
    q: Distribution,
    sums: _Sums,
    truth: Tensor,
    truth_error: Tensor,
    is_truth: bool,
    repeats: int,
    kept: Tensor,
    rounding: float,
) -> Row:
    away = (sums.mean - truth).abs()
    norm = float(truth.norm())
    away = torch.where(away <= rounding * norm, 0.0, away)
    stderr = (sums.variance / repeats + truth_error).sqrt()
    errors = torch.where(away > 0, away / stderr, 0.0)
    variance = float(sums.variance.sum())
    if variance <= (rounding * norm) ** 2:
        variance = 0.0
    along = truth[kept].float()
    share = sums.kept @ along / along.square().sum().clamp(min=1e-30)
    quantiles = torch.quantile(share, torch.tensor(QUANTILES))
    return Row(
        name,
        samples,
        estimator.evaluations(samples, q),
        estimator.unbiased,
        math.nan if is_truth else float(errors.square().mean().sqrt()),
        math.nan if is_truth else float(errors.max()),
        float((sums.mean - truth).norm()) / norm if norm > 0 else math.nan,
        variance,
        norm / math.sqrt(variance) if variance > 0 else math.inf,
        sums.seconds,
        variance * sums.seconds,
        float(sums.mean @ truth / truth.square().sum().clamp(min=1e-300)),
        tuple(float(x) for x in quantiles),
    )
