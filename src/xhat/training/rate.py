"""The learning rate in the course of training."""

from __future__ import annotations

import math

from xhat.training.settings import Settings, drops_of


def rate_at(settings: Settings, epochs: int, batches: int, done: float) -> float:
    """The learning rate when ``done`` of ``epochs`` epochs, of so many batches each, are done.

    >>> [round(rate_at(Settings(lr=1.0, schedule="steps:2,3:0.1"), 4, 10, done), 3) for done in (0, 1.9, 2, 3)]
    [1.0, 1.0, 0.1, 0.01]
    """
    if done < settings.warmup:
        # Half a step on, so that the first step of a warm-up moves.
        return settings.lr * min(1.0, (done + 0.5 / batches) / settings.warmup)
    if settings.schedule == "cosine":
        share = (done - settings.warmup) / max(epochs - settings.warmup, 1e-12)
        return settings.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    if settings.schedule == "constant":
        return settings.lr
    at, factor = drops_of(settings.schedule)
    # A step counts for the epoch that it belongs to, whatever the quotient of two whole numbers was rounded to.
    return settings.lr * factor ** sum(done + 1e-9 >= epoch for epoch in at)
