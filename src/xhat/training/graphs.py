"""CUDA graphs: the whole step recorded once and replayed, so that Python launches one thing where there were hundreds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from xhat.data import Examples
from xhat.errors import ConfigError, XhatError
from xhat.training.engine import Bounds, Compiled, Engine, Taken, put_random_states, random_states
from xhat.training.optimizer import Optimizer
from xhat.training.program import Derived, Program

WARM = 3  # steps before the recording, in which libraries make what they make once


class Graphs(Engine):
    """A CUDA graph of the whole step: batch indexing, noise, forward, backward, clipping, optimiser.

    The examples must be resident on the device. What changes from step to step lies in tensors that the graph reads: the epoch's
    order, the place in it, the learning rate, and the schedules' buffers. Nothing waits for the device.

    Args:
        compile: record what ``torch.compile`` makes of the program, instead of the operations one by one.
        tell: called with the reason when the program cannot be compiled, or the step not recorded.
        strict: a step that cannot be recorded is an error; else training goes on without a graph.
        record: makes a function that replays from one that takes a step; :func:`cuda_graph` unless given.
    """

    name: str = "graphs"

    def __init__(
        self,
        program: Program,
        optimizer: Optimizer,
        clip: float | None,
        size: int,
        *,
        tell: Callable[[str], None],
        compile: bool = True,
        strict: bool = False,
        record: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        super().__init__(program, optimizer, clip, size)
        self.tell, self.strict, self.record = tell, strict, cuda_graph if record is None else record
        inner = Compiled(program, optimizer, clip, size, otherwise=tell) if compile else None
        self.derive: Callable[[Tensor], Derived] = program if inner is None else inner.derive
        device = self.like.device
        self.cursor = torch.zeros((), dtype=torch.int64, device=device)
        self.offsets = torch.arange(size, device=device)
        self.rate_now = torch.zeros((), device=device)
        self.order: Tensor | None = None
        self.values: Tensor | None = None
        self.names: tuple[str, ...] = ()
        self.warm = 0
        self._replay: Callable[[], None] | None = None
        self._given_up = False

    def steps(self, examples: Examples, order: Any, bounds: Bounds) -> Iterator[Taken]:
        bounds = list(bounds)
        if not bounds:
            return
        positions = order[0 : len(examples)].to(self.like.device)
        if self.order is None:
            self.order = positions
        else:
            self.order.copy_(positions)  # where the graph reads it
        self.cursor.fill_(bounds[0][0])
        rate = None
        for start, stop in bounds:
            if rate != self.rate:
                rate = self.rate
                self.rate_now.fill_(rate)
            if stop - start == self.size and not self._given_up:
                yield self._whole(examples)
            else:
                yield self._rest(examples, start, stop)

    def _whole(self, examples: Examples) -> Taken:
        if self._replay is None and self.warm >= WARM:
            states = random_states(self.like.device)
            try:
                self._replay = self.record(lambda: self._step(examples))
            except XhatError:
                raise
            except Exception as error:  # whatever a recording forbids: waiting for the device, memory from elsewhere
                reason = str(error).splitlines()[0]
                if self.strict:
                    raise ConfigError(
                        f"the engine graphs cannot record {self.program.described}: {reason}; use engine='compiled' or 'eager'"
                    ) from error
                self._given_up = True
                self.tell(reason)
                put_random_states(states, self.like.device)
        if self._replay is None:
            self.warm += 1
            self._step(examples)
        else:
            self._replay()
        assert self.values is not None
        return Taken(self.size, self.values.clone(), self.names)

    def _step(self, examples: Examples) -> None:
        """One whole step, all of it on the device."""
        assert self.order is not None
        index = self.order.index_select(0, self.cursor + self.offsets)
        x = examples[index].to(self.like.dtype)
        taken = self.update(self.derive(x), self.size, self.rate_now)
        if self.values is None:
            self.values, self.names = taken.values.clone(), taken.names
        else:
            self.values.copy_(taken.values)
        self.cursor.add_(self.size)

    def _rest(self, examples: Examples, start: int, stop: int) -> Taken:
        """A batch of another size, without a graph."""
        assert self.order is not None
        x = examples[self.order[start:stop]].to(self.like.dtype)
        self.cursor.add_(stop - start)
        return self.update(self.program(x), stop - start, self.rate)


def cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Record a step, which does not run it, and return what replays it."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay: Callable[[], None] = graph.replay
    return replay
