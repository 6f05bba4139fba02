"""CUDA graphs: whole steps recorded once and replayed, so that Python launches one thing where there were hundreds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from xhat.data import Batch, Examples
from xhat.distributions.unvalidated import unvalidated
from xhat.errors import ConfigError, XhatError
from xhat.training.engine import Bounds, Compiled, Engine, Taken, put_random_states, random_states
from xhat.training.optimizer import Optimizer
from xhat.training.program import Derived, Program
from xhat.training.recorder import Recorder

WARM = 3  # steps before the recording, in which libraries make what they make once
STRETCH = 16  # steps that one replay takes, where it may
TRIES = 2  # epochs in which recording is tried, for what failed once may have been another program's doing
FETCHED = 2**26  # bytes of examples that are fetched at once for several steps
ALIGNED = 512  # bytes: torch's allocator gives addresses that are multiples of it

Work = Callable[[], None]


class Graphs(Engine):
    """CUDA graphs of whole steps: batch indexing, noise, forward, backward, clipping, optimiser.

    There is one of a single step, one of an epoch's last, smaller batch, and one of several steps, for where the loop says that
    so many may be taken at once. The examples must be resident on the device. What changes from step to step lies in tensors that
    the graphs read: the epoch's order, the place in it, the learning rates, and the schedules' buffers. Nothing waits for the
    device.

    Args:
        compile: record what ``torch.compile`` makes of the program, instead of the operations one by one.
        tell: called with the reason when the program cannot be compiled, or the step not recorded.
        strict: a step that cannot be recorded is an error; else training goes on without a graph.
        record: makes a function that replays from one that takes steps; a :class:`~xhat.training.recorder.Recorder` unless given.
    """

    name: str = "graphs"
    most: int = STRETCH

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
        record: Callable[[Work], Work] | None = None,
    ) -> None:
        super().__init__(program, optimizer, clip, size)
        device = self.like.device
        self.tell, self.strict = tell, strict
        self.record = Recorder(device) if record is None else record
        inner = Compiled(program, optimizer, clip, size, otherwise=tell) if compile else None
        self.derive: Callable[[Tensor | Batch], Derived] = program if inner is None else inner.derive
        self.cursor = torch.zeros((), dtype=torch.int64, device=device)
        self.offsets = torch.arange(STRETCH * size, device=device)
        self.rates = optimizer.rates(STRETCH)
        self.order: Tensor | None = None
        self.values: Tensor | None = None  # of the steps of the last replay, (STRETCH, M)
        self.names: tuple[str, ...] = ()
        self.warm: dict[tuple[int, int], int] = {}  # runs without a graph, by the number of steps and of examples in each
        self.replays: dict[tuple[int, int], Work] = {}
        self.refused: set[tuple[int, int]] = set()  # what will not be tried again
        self.failures = 0  # of the single step, on which all else rests
        self._tried = False  # and failed, in this epoch
        self._told: tuple[float, ...] = ()  # the rates that are on the device

    def steps(self, examples: Examples, order: Any, bounds: Bounds) -> Iterator[Taken]:
        bounds = list(bounds)
        if not bounds:
            return
        self._tried, self.ahead = False, 0
        positions = order[0 : len(examples)]
        if self.order is None:
            self.order = positions.to(self.like.device)
        else:
            self.order.copy_(positions)  # where the graphs read it
        self.cursor.fill_(bounds[0][0])
        place = 0
        while place < len(bounds):
            start, stop = bounds[place]
            stretch = bounds[place : place + STRETCH]
            whole = len(stretch) == STRETCH and stretch[-1][1] - start == STRETCH * self.size
            several = whole and len(self.coming) >= STRETCH and self._ready(examples, STRETCH, self.size)
            count = STRETCH if several else 1
            self._put(self.coming[:STRETCH] if several else (self.rate,))
            self._take(examples, count, stop - start)
            assert self.values is not None
            rows = self.values[:count].clone()
            for number in range(count):
                self.ahead = count - 1 - number
                yield Taken(stop - start, rows[number], self.names)
            place += count

    def _put(self, rates: Sequence[float]) -> None:
        """Write learning rates to where the steps read them."""
        rates = tuple(rates)
        if rates == self._told[: len(rates)]:
            return
        if len(set(rates)) == 1:
            self.rates.fill_(rates[0])
            rates = rates[:1] * STRETCH
        else:
            self.rates[: len(rates)].copy_(torch.tensor(rates, dtype=self.rates.dtype))
        self._told = rates

    def _take(self, examples: Examples, count: int, size: int) -> None:
        """Take steps: by a replay where there is a graph or one can be made, else one by one."""
        key = (count, size)
        if self._ready(examples, count, size):
            self.replays[key]()
            return
        self.warm[key] = self.warm.get(key, 0) + 1
        with self._beside():
            self._advance(examples, count, size)

    def _beside(self) -> contextlib.AbstractContextManager[None]:
        return self.record.beside() if isinstance(self.record, Recorder) else contextlib.nullcontext()

    def _ready(self, examples: Examples, count: int, size: int) -> bool:
        """Whether there is a graph, after making it if it can be made now."""
        key, single = (count, size), (1, self.size)
        if key in self.replays:
            return True
        # Several steps are warm where one is; the rest is of the same parts as the whole, but of another size
        need = 0 if count > 1 else WARM if size == self.size else 1
        if key in self.refused or self.warm.get(key, 0) < need or (key != single and single not in self.replays):
            return False
        if self._tried:
            return False
        states = random_states(self.like.device)
        # A recording that fails takes the others with it (see Recorder); they are made anew when they are needed next
        others, self.replays = self.replays, {}
        try:
            # No recorded step can look at values, and torch makes some laws whose arguments are checked whatever ours say
            with unvalidated():
                self.replays = {**others, key: self.record(lambda: self._advance(examples, count, size))}
        except XhatError:
            raise
        except Exception as error:  # whatever a recording forbids: waiting for the device, memory from elsewhere
            lines = str(error).splitlines()
            reason = lines[0] if lines else type(error).__name__
            if self.strict and key == single and self.derive is self.program:
                raise ConfigError(
                    f"the engine graphs cannot record {self.program.described}: {reason}; use engine='compiled' or 'eager'"
                ) from error
            put_random_states(states, self.like.device)
            self._go_on_without(key, reason)
            return False
        return True

    def _go_on_without(self, key: tuple[int, int], reason: str) -> None:
        """What is to be done about a recording that failed."""
        if key != (1, self.size):
            self.refused.add(key)  # such steps go on one by one
            if key[0] > 1:
                self.most = 1
            self.tell(reason)
            return
        compiled = self.derive is not self.program
        if compiled:
            self.derive = self.program  # the operations one by one may be recorded where what was compiled cannot
        else:
            self.failures += 1
            self._tried = True
        if self.failures >= TRIES:
            self.refused.add(key)
        if compiled or self.failures == 1:
            self.tell(reason)

    def _advance(self, examples: Examples, count: int, size: int) -> None:
        """Take steps, all of it on the device."""
        assert self.order is not None
        derive = self.derive if size == self.size else self.program
        for number, x in enumerate(self._batches(examples, count, size)):
            taken = self.update(derive(x), size, self.rates[number])
            if self.values is None:
                self.values, self.names = taken.values.new_empty(STRETCH, len(taken.values)), taken.names
            self.values[number].copy_(taken.values)
        self.cursor.add_(count * size)

    def _batches(self, examples: Examples, count: int, size: int) -> Iterator[Tensor | Batch]:
        """The next batches of the epoch's order; at once, where that is the same and no waste of memory."""
        assert self.order is not None
        held = size * self.like.element_size() * torch.Size(examples.shape).numel()
        # A batch must begin where memory of its own would, or the libraries might take other kernels for it
        together = count if examples.binarize is None and held % ALIGNED == 0 and count * held <= FETCHED else 1
        for first in range(0, count, together):
            index = self.order.index_select(0, self.cursor + self.offsets[first * size : (first + together) * size])
            yield from (batch.bare for batch in examples.batch(index).to(self.like).split(size))
