"""``xhat.refine``: each example's posterior made better on its own, to see what one encoder for all of them costs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xhat.conditionals import Headed
from xhat.data import Batch, Examples
from xhat.distributions import is_discrete
from xhat.errors import ConfigError, whole_number
from xhat.evaluation.evidence import ELEMENTS
from xhat.gradients import STL, Gradient
from xhat.heap import kept_heap
from xhat.models.base import Model, quiet
from xhat.objectives import ELBO, Posed
from xhat.ranks import stream_seed

BATCH = 500  # examples at once: each has steps of its own, so their number changes the time alone
RATE, DRAWS, MEASURED = 0.05, 8, 200


class Refinement(NamedTuple):
    """The bound before and after, each ``(B,)`` in nats, float64, with Monte Carlo standard errors.

    Attributes:
        elbo: with the encoder's posterior.
        refined: with the posterior that the steps led to.
        gap: refined − elbo, at the same noise; in expectation at most the amortisation gap, which it reaches as steps converge.
        elbo_stderr: of ``elbo``.
        refined_stderr: of ``refined``.
        gap_stderr: of ``gap``.
        steps: how many there were.
    """

    elbo: Tensor
    refined: Tensor
    gap: Tensor
    elbo_stderr: Tensor
    refined_stderr: Tensor
    gap_stderr: Tensor
    steps: int


@kept_heap()
def refine(
    model: Model,
    x: Any,
    steps: int = 100,
    lr: float = RATE,
    samples: int = DRAWS,
    *,
    measured: int = MEASURED,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Refinement:
    r"""Refine the posterior of each example by itself, with the model's weights as they are.

    .. math:: \text{gap}(x) = \max_{\lambda} E_{q_\lambda(z)}\Big[\log \frac{p(x, z)}{q_\lambda(z)}\Big]
              - E_{q_{\lambda(x)}(z)}\Big[\log \frac{p(x, z)}{q_{\lambda(x)}(z)}\Big]

    λ(x) are the raw numbers that the encoder makes of x; Adam moves a copy of them for each example, with a rate that falls to 0
    in a straight line. The gap is what amortisation costs; what is then left to log p(x) is the family's own doing. Both bounds
    are measured after the steps, with draws that no step has seen and the same noise for both: nothing is picked for its luck.
    What all examples share, such as a σ that is no function of x, stays as it is.

    Laws whose draws have a path are refined along it (:class:`~xhat.gradients.STL`), others by the model's own gradient.

    Args:
        model: a model with a prior and a posterior that is one of ``xhat.conditionals``.
        x: examples, ``(B, *event_shape)``.
        steps: of Adam.
        lr: its rate at the first step.
        samples: draws of z in each step.
        measured: draws of z that each bound is measured with, at least 2.
        seed: of the draws; the caller's random numbers are left alone.
        progress: called with the number of examples after each batch.

    Raises:
        ConfigError: the model has no prior, or a posterior without raw numbers, such as a chain; steps or samples below 1,
            measured below 2, a rate that is not positive.
        DataError: x has another shape, or values outside the likelihood's support.

    Source: Kim, Wiseman, Miller, Sontag & Rush (2018); the gap: Cremer, Li & Duvenaud (2018).

    >>> import torch, xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="bernoulli")
    >>> found = refine(model, torch.eye(4), steps=50)
    >>> found.gap.shape, bool((found.gap > -3 * found.gap_stderr).all())
    (torch.Size([4]), True)
    """
    check_refinable(model)
    for name, number in (("steps", steps), ("samples", samples)):
        whole_number(name, number)
    if not isinstance(measured, int) or measured < 2:
        raise ConfigError(f"measured must be a whole number of at least 2, to have a standard error, was {measured!r}")
    if not isinstance(lr, int | float) or not 0 < lr < math.inf:
        raise ConfigError(f"lr must be above 0 and finite, was {lr!r}")
    examples = model.examples(x).fixed(seed)
    return refine_examples(model, examples, steps, lr, samples, measured=measured, seed=seed, progress=progress)


def check_refinable(model: Model) -> None:
    """Refuse a model whose posteriors cannot be moved.

    Raises:
        ConfigError: it has no prior, or its posterior no raw numbers.
    """
    model.need_bound("have a bound to refine")
    _conditional(model)


def refine_examples(
    model: Model,
    examples: Examples,
    steps: int,
    lr: float = RATE,
    samples: int = DRAWS,
    *,
    measured: int = MEASURED,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Refinement:
    """The same of arguments that are checked."""
    size = max(1, min(BATCH, ELEMENTS // (model.numbers * samples)))
    parts: list[tuple[Tensor, Tensor]] = []
    first = 0
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []), quiet(model):
        for block in examples.batched(size):
            model.check(block, "x", first)
            batch, conditional = model.batch(block), _conditional(model)
            start = conditional.raw(batch.x, batch.condition, batch.observed).detach()
            torch.manual_seed(stream_seed(seed, 0, first))
            found = _ascend(model, batch, start, steps, lr, samples)
            both = []
            for raw in (start, found):
                torch.manual_seed(stream_seed(seed, 1, first))  # the same noise for both, and none that a step has seen
                both.append(_log_weights(model, model.pose(batch, q=conditional.law(raw)), measured).cpu())
            parts.append((both[0], both[1]))
            first += block.size
            if progress is not None:
                progress(block.size)
    before, after = (torch.cat(column, 1) for column in zip(*parts, strict=True))
    gain = after - before
    errors = [values.std(0) / math.sqrt(measured) for values in (before, after, gain)]
    return Refinement(before.mean(0), after.mean(0), gain.mean(0), errors[0], errors[1], errors[2], steps)


def _conditional(model: Model) -> Headed:
    if not isinstance(model.posterior, Headed):
        raise ConfigError(
            "refinement moves the raw numbers that a posterior of one layer is made of, and a "
            f"{type(model.posterior).__name__} has none: use one of xhat.conditionals, such as conditionals.Normal"
        )
    return model.posterior


def _ascend(model: Model, batch: Batch, start: Tensor, steps: int, lr: float, samples: int) -> Tensor:
    """The raw numbers after so many steps, from ``start``; no weight of the model gets a gradient."""
    conditional, posed = _conditional(model), model.pose(batch)
    law = conditional.law(start)
    path = law.has_rsample and not is_discrete(law)
    # A copy: a baseline that follows what it sees must not follow this.
    gradient: Gradient = STL() if path else copy.deepcopy(model.gradient)
    posed = posed._replace(gradient=gradient)
    objective = ELBO(samples=gradient.usable(samples))
    raw = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)  # noise alone would keep a steady rate from arriving
        with torch.enable_grad():
            loss = objective(posed._replace(q=conditional.law(raw))).loss.sum()
            (raw.grad,) = torch.autograd.grad(loss, [raw])
        optimizer.step()
    return raw.detach()


def _log_weights(model: Model, posed: Posed, draws: int) -> Tensor:
    """log p(x, z) - log q(z) at so many draws of q, ``(draws, B)``, float64."""
    q, prior, chunk = posed.q, posed.prior, max(1, ELEMENTS // (posed.target.size * model.numbers))
    parts = [(posed.log_px(z) + prior.log_prob(z) - q.log_prob(z)).double() for z in q.sample((draws,)).split(chunk)]
    return torch.cat(parts)
