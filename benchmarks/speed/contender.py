"""What a contender is: something that trains a task by epochs, and how its epochs are timed."""

from __future__ import annotations

import abc
import time
from typing import NamedTuple

import torch
from benchmarks.speed.tasks import Task

LEAST = 0.25  # seconds a round lasts at least; short epochs are repeated


class Epoch(NamedTuple):
    """An epoch that has run: its steps, and the mean loss an example in the contender's own unit (None: it has none)."""

    steps: int
    loss: float | None


class Round(NamedTuple):
    """Whole epochs, timed: wall clock with data fetching and all that the contender does between steps."""

    seconds: float
    steps: int
    loss: float | None

    @property
    def per_step(self) -> float:
        return self.seconds / self.steps


class Contender(abc.ABC):
    """Trains a task, an epoch at a time, in a process of its own."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @abc.abstractmethod
    def epoch(self) -> Epoch:
        """Train for one epoch."""

    @abc.abstractmethod
    def parameters(self) -> int | None:
        """How many numbers are trained: a check that the networks are the same."""

    def wait(self) -> None:
        """Let the device finish, so that the clock sees all of the work."""
        if self.task.device == "cuda":
            torch.cuda.synchronize()

    def round(self, least: float = LEAST) -> Round:
        """Whole epochs until ``least`` seconds are over."""
        steps, loss = 0, None
        began = time.perf_counter()
        while True:
            done = self.epoch()
            self.wait()
            steps, loss = steps + done.steps, done.loss
            seconds = time.perf_counter() - began
            if seconds >= least:
                return Round(seconds, steps, loss)

    def warm(self) -> Round:
        """The first epoch: compiling, allocating, warming caches; it counts in no other round."""
        return self.round(least=0.0)
