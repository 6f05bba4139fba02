"""``xhat.log_likelihood``: log p(x) by importance sampling, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xhat.data import as_examples
from xhat.distributions import is_discrete
from xhat.errors import whole_number
from xhat.models.base import Model, quiet

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
        x: examples, ``(N, *event_shape)``.
        samples: K.
        batch: examples at once.
        elements: numbers that the likelihood makes at once, over examples, draws and its parameters: what bounds the memory.
        progress: called with the number of examples after each batch.

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
    parts = []
    first = 0
    with quiet(model):
        for block in as_examples(x).batches(max(1, min(batch, elements // model.numbers))):
            model.check(block, "x", first)
            first += len(block)
            parts.append(_evidence(model, model.given(block), samples, elements))
            if progress is not None:
                progress(len(block))
    return Evidence(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def _evidence(model: Model, x: Tensor, samples: int, elements: int) -> Evidence:
    q, p = model.posterior(x), model.prior()
    chunk = max(1, elements // (len(x) * model.numbers))
    top = x.new_full((len(x),), -math.inf, dtype=torch.float64)
    first, second = torch.zeros_like(top), torch.zeros_like(top)  # sums of w and w² over e^top
    done = 0
    while done < samples:
        count = min(chunk, samples - done)
        z = q.sample((count,))
        log_w = (model.likelihood(z).log_prob(x) + p.log_prob(z) - q.log_prob(z)).double()
        new = torch.maximum(top, log_w.amax(0))
        scale = torch.where(new > -math.inf, (top - new).exp(), torch.zeros_like(new))
        weights = torch.where(new > -math.inf, (log_w - new).exp(), torch.zeros_like(log_w))
        first = first * scale + weights.sum(0)
        second = second * scale.square() + weights.square().sum(0)
        top, done = new, done + count
    ratio = second / first.square()  # 1 / ESS
    spread = (samples * ratio - 1).clamp(min=0) / max(1, samples - 1)
    stderr = spread.sqrt() if samples > 1 else torch.full_like(spread, math.nan)
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
