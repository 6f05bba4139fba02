"""``xhat.log_likelihood``: log p(x) by importance sampling, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xhat.data import Examples, as_examples
from xhat.distributions import is_discrete
from xhat.errors import whole_number
from xhat.evaluation.spread import Spread
from xhat.heap import kept_heap
from xhat.models.base import Model, quiet
from xhat.ranks import Ranks, joined

ELEMENTS = 1_000_000  # numbers of the likelihood at once: more is no faster, and memory is bounded by it
BATCH = 100


class Evidence(NamedTuple):
    """log p(x) per example, each field ``(B,)`` in float64.

    ``log_px`` in nats; ``stderr`` its Monte Carlo standard error by the delta method; ``ess`` the effective number of the
    samples, between 1 and K. The estimate is a lower bound of log p(x) in expectation, and rises to it with K.
    """

    log_px: Tensor
    stderr: Tensor
    ess: Tensor


@kept_heap()
def log_likelihood(
    model: Model,
    x: Any,
    samples: int = 500,
    *,
    batch: int = BATCH,
    elements: int = ELEMENTS,
    progress: Callable[[int], None] | None = None,
) -> Evidence:
    r"""Importance-sampled evidence, with exactly ``samples`` draws from the posterior for each example.

    .. math:: \log \hat p(x) = \log \frac{1}{K} \sum_{k=1}^K w_k, \qquad
              w_k = \frac{p(x|z_k)\, p(z_k)}{q(z_k|x)}, \quad z_k \sim q(z|x)

    The standard error of its logarithm is :math:`\sqrt{(K \sum w^2 / (\sum w)^2 - 1) / (K - 1)}`, the effective sample size
    :math:`(\sum w)^2 / \sum w^2`.

    Args:
        model: a model with a prior.
        x: examples, ``(N, *event_shape)``; streamed ones are read batch by batch.
        samples: K.
        batch: examples at once.
        elements: numbers that the likelihood makes at once, over examples, draws and its parameters: what bounds the memory.
        progress: called with the number of examples after each batch.

    Of several processes (torchrun) each takes a part, and all get the whole result; so all must call it.

    Raises:
        ConfigError: the model has no prior, or samples is below 1.
        DataError: x has another shape, or values outside the likelihood's support.

    Source: Burda, Grosse & Salakhutdinov (2016); effective sample size: Kong (1992).

    >>> import torch, xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="bernoulli")
    >>> log_likelihood(model, torch.zeros(3, 4), samples=7).log_px.shape
    torch.Size([3])
    """
    model.need_prior("have a likelihood of x")
    whole_number("samples", samples)
    examples = as_examples(x)
    with joined() as ranks:
        if ranks.world == 1:
            parts = list(evidence_by_batches(model, examples, samples, batch=batch, elements=elements, progress=progress))
            return Evidence(*(torch.cat(column) for column in zip(*parts, strict=True)))
        seed = torch.randint(2**62, ())
        ranks.copy([seed])
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            spread = Spread(examples, block_size(model, batch, elements), ranks, int(seed))
            parts = list(evidence_by_batches(model, examples, samples, elements=elements, progress=progress, spread=spread))
        found = torch.stack([torch.cat(column) for column in zip(*parts, strict=True)], 1)
        if spread.parted:
            whole = found.new_zeros(len(examples), found.shape[1])
            whole[spread.stretch] = found
            ranks.add([whole])
            found = whole
        return Evidence(*found.unbind(1))


def evidence_by_batches(
    model: Model,
    x: Examples,
    samples: int,
    *,
    batch: int = BATCH,
    elements: int = ELEMENTS,
    progress: Callable[[int], None] | None = None,
    spread: Spread | None = None,
) -> Iterator[Evidence]:
    """The same, a batch of examples at a time, on the CPU: for more of them than there is memory for their evidence.

    Of examples that are spread over processes these are the process's own; where there are too few to go round, the processes
    share the draws, and each gets the evidence of all.
    """
    spread = spread or Spread(x, block_size(model, batch, elements), Ranks(), None)
    for number, first, block in spread.blocks():
        model.check(block, "x", first)
        with quiet(model):
            found = _evidence(model, model.given(block), samples, elements, spread, number)
        if progress is not None:
            progress(len(block) * (spread.ranks.world if spread.parted else 1))
        yield Evidence(*(column.cpu() for column in found))


def block_size(model: Model, batch: int = BATCH, elements: int = ELEMENTS) -> int:
    """How many examples are worked on at once."""
    return max(1, min(batch, elements // model.numbers))


def _evidence(model: Model, x: Tensor, samples: int, elements: int, spread: Spread, block: int) -> Evidence:
    q, p = model.posterior(x), model.prior()
    chunk = max(1, elements // (len(x) * model.numbers))
    top = x.new_full((len(x),), -math.inf, dtype=torch.float64)
    first, second = torch.zeros_like(top), torch.zeros_like(top)  # sums of w and w² over e^top
    for number, count in spread.chunks(samples, chunk):
        spread.draw_from(block, number)
        z = q.sample((count,))
        log_w = (model.likelihood(z).log_prob(x) + p.log_prob(z) - q.log_prob(z)).double()
        new = torch.maximum(top, log_w.amax(0))
        scale = torch.where(new > -math.inf, (top - new).exp(), torch.zeros_like(new))
        weights = torch.where(new > -math.inf, (log_w - new).exp(), torch.zeros_like(log_w))
        first = first * scale + weights.sum(0)
        second = second * scale.square() + weights.square().sum(0)
        top = new
    if not spread.parted and spread.ranks.world > 1:
        tops, firsts, seconds = torch.stack(spread.ranks.gathered(torch.stack([top, first, second]))).unbind(1)
        top = tops.amax(0)
        scale = torch.where(tops > -math.inf, (tops - top).exp(), torch.zeros_like(tops))
        first, second = (firsts * scale).sum(0), (seconds * scale.square()).sum(0)
    ratio = second / first.square()  # 1 / ESS
    variance = (samples * ratio - 1).clamp(min=0) / max(1, samples - 1)
    stderr = variance.sqrt() if samples > 1 else torch.full_like(variance, math.nan)
    return Evidence(top + first.log() - math.log(samples), stderr, 1 / ratio)


def bits_per_dimension(model: Model, nats: float) -> float | None:
    r"""Negative nats per example as bits per dimension, :math:`-\text{nats} / (\ln 2 \cdot D)`.

    None for a continuous likelihood: a density of quantised values is no code length.
    """
    with quiet(model):
        law = model.likelihood(model.prior().sample((1,)))
    if not is_discrete(law):
        return None
    return -nats / (math.log(2) * math.prod(model.event_shape))
