"""The evidence log p(x): by importance sampling, by annealing, or exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from xhat.data import Batch, Examples
from xhat.distributions import is_discrete
from xhat.errors import ConfigError, whole_number
from xhat.evaluation.annealed import Annealing
from xhat.evaluation.exact import exact_log_px
from xhat.evaluation.importance import Importance
from xhat.evaluation.spread import Spread
from xhat.evaluation.weights import Evidence, averaged, exactly
from xhat.heap import kept_heap
from xhat.models.base import Model, quiet
from xhat.networks.bayesian_models import shares_weights
from xhat.ranks import Ranks, joined

__all__ = [
    "ELEMENTS",
    "METHODS",
    "Evidence",
    "bits_per_dimension",
    "block_size",
    "evidence_by_batches",
    "log_likelihood",
    "way_of",
]

ELEMENTS = 1_000_000  # numbers of the likelihood at once: more is no faster, and memory is bounded by it
BATCH = 100
METHODS = ("importance", "annealed", "exact")
IMPORTANCE = Importance()


class Sampler(Protocol):
    """A way to weights whose mean is p(x)."""

    def begin(self, model: Model, batch: Batch, chunk: int) -> Callable[[int], Tensor]:
        """What makes so many log weights of each example, ``(count, B)``, at most ``chunk`` at once."""


@kept_heap()
def log_likelihood(
    model: Model,
    x: Any,
    samples: int = 500,
    *,
    method: str = "importance",
    steps: int | None = None,
    leapfrog: int | None = None,
    start: str | None = None,
    batch: int = BATCH,
    elements: int = ELEMENTS,
    progress: Callable[[int], None] | None = None,
) -> Evidence:
    r"""The evidence log p(x) of each example, with its standard error.

    ``"importance"``: exactly K = ``samples`` draws from the posterior for each example,

    .. math:: \log \hat p(x) = \log \frac{1}{K} \sum_{k=1}^K w_k, \qquad
              w_k = \frac{p(x|z_k)\, p(z_k)}{q(z_k|x)}, \quad z_k \sim q(z|x) .

    ``"annealed"``: the same mean over K chains, each of which goes from its start to the posterior through laws in between;
    closer where importance sampling rests on a few draws. A chain takes about ``steps · (leapfrog + 2)`` decodings, most of them
    with a derivative, and the search for the step sizes as many as 16 chains more. See
    :class:`~xhat.evaluation.annealed.Annealing`.

    ``"exact"``: no draws at all, for a linear Normal model with a standard Normal prior, and for codes of at most 2¹⁶ values.

    The standard error of a sampled logarithm is :math:`\sqrt{(K \sum w^2 / (\sum w)^2 - 1) / (K - 1)}`, the effective sample
    size :math:`(\sum w)^2 / \sum w^2`.

    Args:
        model: a model with a prior.
        x: examples, ``(N, *event_shape)``; streamed ones are read batch by batch.
        samples: K, draws or chains for each example.
        method: ``"importance"``, ``"annealed"`` or ``"exact"``.
        steps: of annealing, the number of laws from the start to the posterior, 100 unless given; 1 is importance sampling from
            the start.
        leapfrog: of annealing, steps of each Hamiltonian trajectory, 10 unless given.
        start: of annealing, ``"posterior"`` (q(z|x), unless given) or ``"prior"`` (p(z)).
        batch: examples at once.
        elements: numbers that the likelihood makes at once, over examples, draws and its parameters: what bounds the memory.
        progress: called with the number of examples after each batch.

    Of several processes (torchrun) each takes a part, and all get the whole result; so all must call it.

    A draw of z is a draw of random weights, too. Layers with ``sampling="shared"`` have one for all examples of a batch, so they
    are called once for each of the K draws, and the errors of different examples are not independent.

    Raises:
        ConfigError: the model has no prior; samples is below 1; the method does not serve the model, or has no such option.
        DataError: x has another shape, or values outside the likelihood's support.

    Source: Burda, Grosse & Salakhutdinov (2016); annealing: Neal (2001), Wu et al. (2017); the linear model: Tipping & Bishop
    (1999); effective sample size: Kong (1992).

    >>> import torch, xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="bernoulli")
    >>> log_likelihood(model, torch.zeros(3, 4), samples=7).log_px.shape
    torch.Size([3])
    >>> annealed = log_likelihood(model, torch.zeros(3, 4), samples=20, method="annealed", steps=5)
    >>> bool((annealed.log_px < 0).all())
    True
    """
    model.need_bound("have a likelihood of x")
    whole_number("samples", samples)
    way = way_of(method, steps, leapfrog, start)
    examples = model.examples(x)
    with joined() as ranks:
        if ranks.world == 1:
            whole = Spread(examples, block_size(model, batch, elements), ranks, None)
            parts = list(_by_blocks(model, samples, elements, progress, whole, way))
            return Evidence(*(torch.cat(column) for column in zip(*parts, strict=True)))
        seed = torch.randint(2**62, ())
        ranks.copy([seed])
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            spread = Spread(examples, block_size(model, batch, elements), ranks, int(seed))
            parts = list(_by_blocks(model, samples, elements, progress, spread, way))
        found = torch.stack([torch.cat(column) for column in zip(*parts, strict=True)], 1)
        if spread.parted:
            whole_found = found.new_zeros(len(examples), found.shape[1])
            whole_found[spread.stretch] = found
            ranks.add([whole_found])
            found = whole_found
        return Evidence(*found.unbind(1))


def way_of(method: str, steps: int | None = None, leapfrog: int | None = None, start: str | None = None) -> Sampler | None:
    """The method of that name, with the options of :func:`log_likelihood`; None is the exact one, which draws nothing.

    Raises:
        ConfigError: an unknown method or start, a number below 1, or an option of annealing for another method.
    """
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, was {method!r}")
    options = {"steps": steps, "leapfrog": leapfrog, "start": start}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if method == "annealed":
        return Annealing(**given)
    for name in given:
        raise ConfigError(f"{name} is an option of method='annealed', but the method is {method!r}: leave it out")
    return IMPORTANCE if method == "importance" else None


def evidence_by_batches(
    model: Model,
    x: Examples,
    samples: int,
    *,
    batch: int = BATCH,
    elements: int = ELEMENTS,
    progress: Callable[[int], None] | None = None,
    spread: Spread | None = None,
    way: Sampler | None = IMPORTANCE,
) -> Iterator[Evidence]:
    """The same, a batch of examples at a time, on the CPU: for more of them than there is memory for their evidence.

    Of examples that are spread over processes these are the process's own; where there are too few to go round, the processes
    share the draws, and each gets the evidence of all.
    """
    spread = spread or Spread(x, block_size(model, batch, elements), Ranks(), None)
    yield from _by_blocks(model, samples, elements, progress, spread, way)


def _by_blocks(
    model: Model,
    samples: int,
    elements: int,
    progress: Callable[[int], None] | None,
    spread: Spread,
    way: Sampler | None,
) -> Iterator[Evidence]:
    for number, first, block in spread.blocks():
        model.check(block, "x", first)
        with quiet(model):
            given = model.batch(block)
            if way is None:
                found = exactly(exact_log_px(model, given, elements))
            else:
                chunk = 1 if shares_weights(model) else max(1, elements // (given.size * model.numbers))
                found = averaged(way.begin(model, given, chunk), given.x, samples, chunk, spread, number)
        if progress is not None:
            progress(block.size * (spread.ranks.world if spread.parted else 1))
        yield Evidence(*(column.cpu() for column in found))


def block_size(model: Model, batch: int = BATCH, elements: int = ELEMENTS) -> int:
    """How many examples are worked on at once."""
    return max(1, min(batch, elements // model.numbers))


def bits_per_dimension(model: Model, nats: float, share: float = 1.0) -> float | None:
    r"""Negative nats per example as bits per dimension, :math:`-\text{nats} / (\ln 2 \cdot D)`; D counts what was observed.

    Args:
        model: for its likelihood.
        nats: log p(x), the mean over examples.
        share: of the values, which was observed.

    None for a continuous likelihood: a density of quantised values is no code length.
    """
    with quiet(model):
        posed = model.pose(model.blank(1))
        law = posed.likelihood(posed.q.sample())
    if not is_discrete(law):
        return None
    return -nats / (math.log(2) * math.prod(model.event_shape) * share) if share > 0 else None
