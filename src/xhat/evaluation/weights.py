"""From log weights, which arrive in chunks, to log p(x) with its standard error and its effective sample size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from xhat.evaluation.spread import Spread

GATHERED = 2**16  # weights that are added up at once


class Evidence(NamedTuple):
    """log p(x) per example, each field ``(B,)`` in float64.

    ``log_px`` in nats; ``stderr`` its Monte Carlo standard error by the delta method; ``ess`` the effective number of the
    samples, between 1 and K. A sampled estimate is a lower bound of log p(x) in expectation, and rises to it with K; an exact
    value has the standard error 0 and the effective sample size infinity. Where the effective sample size is a handful, the
    large weights may not have been met yet: then the estimate is too low, and the standard error too small.
    """

    log_px: Tensor
    stderr: Tensor
    ess: Tensor


def exactly(log_px: Tensor) -> Evidence:
    """The evidence of values that no draw has touched."""
    return Evidence(log_px, torch.zeros_like(log_px), torch.full_like(log_px, math.inf))


def averaged(weights: Callable[[int], Tensor], like: Tensor, samples: int, chunk: int, spread: Spread, block: int) -> Evidence:
    r"""The logarithm of the mean of exactly ``samples`` weights, :math:`\log \frac{1}{K} \sum_k w_k`, a chunk at a time.

    Args:
        weights: gives so many independent log weights of each example, ``(count, B)``.
        like: the examples, ``(B, *event)``.
        samples: K.
        chunk: weights at once.
        spread: shares the chunks of examples that are too few to go round among the processes.
        block: the number of this block of examples.
    """
    top = like.new_full((len(like),), -math.inf, dtype=torch.float64)
    first, second = torch.zeros_like(top), torch.zeros_like(top)  # sums of w and w² over e^top
    for log_w in _gathered(weights, samples, chunk, spread, block):
        new = torch.maximum(top, log_w.amax(0))
        scale = torch.where(new > -math.inf, (top - new).exp(), torch.zeros_like(new))
        shares = torch.where(new > -math.inf, (log_w - new).exp(), torch.zeros_like(log_w))
        first = first * scale + shares.sum(0)
        second = second * scale.square() + shares.square().sum(0)
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


def _gathered(weights: Callable[[int], Tensor], samples: int, chunk: int, spread: Spread, block: int) -> Iterator[Tensor]:
    """The weights in float64, some chunks together: adding up each by itself would cost as much as a small network."""
    held: list[Tensor] = []
    size = 0
    for number, count in spread.chunks(samples, chunk):
        spread.draw_from(block, number)
        held.append(weights(count))
        size += held[-1].numel()
        if size >= GATHERED:
            yield torch.cat(held).double()
            held, size = [], 0
    if held:
        yield torch.cat(held).double()
