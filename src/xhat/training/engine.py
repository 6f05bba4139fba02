"""Engines: three ways to run the same step."""

from __future__ import annotations

import abc
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xhat.data import Batch, Examples
from xhat.data.batch import size_of
from xhat.distributions.unvalidated import unvalidated
from xhat.errors import ConfigError, XhatError
from xhat.training.optimizer import Optimizer
from xhat.training.program import Derived, Program

Bounds = Sequence[tuple[int, int]]
_CONTEXT = "Developer debug context:"  # as torch's tracer marks it


class Taken(NamedTuple):
    """One step that was taken: the number of its examples, what it measured, ``(M,)`` on the device, and the M names."""

    size: int
    values: Tensor
    names: tuple[str, ...]


class Engine(abc.ABC):
    """Takes the steps of an epoch.

    Args:
        program: the loss and its derivative.
        optimizer: what moves the weights.
        clip: largest norm of the derivative, or None.
        size: examples in a whole batch.

    Attributes:
        name: as in ``Settings.engine``.
        rate: the learning rate, to be set before each step.
        coming: the learning rates of the next steps, as far as nothing else changes between them and nobody looks at the weights
            meanwhile: an engine that can takes so many at once. To be set, with ``rate``, when ``ahead`` is 0.
        most: how many steps the engine takes at once.
        ahead: how many steps were taken that are yet to be yielded; only at 0 are weights, optimiser and random numbers those
            after the step that was yielded last.
    """

    name: str
    most: int = 1
    ahead: int = 0

    def __init__(self, program: Program, optimizer: Optimizer, clip: float | None, size: int) -> None:
        self.program, self.optimizer, self.clip, self.size = program, optimizer, clip, size
        self.rate = 0.0
        self.coming: Sequence[float] = ()

    @abc.abstractmethod
    def steps(self, examples: Examples, order: Any, bounds: Bounds) -> Iterator[Taken]:
        """Take a step for each stretch ``(start, stop)`` of an order of the examples, and yield after each."""

    @property
    def like(self) -> Tensor:
        """A tensor of the weights' device and dtype."""
        return self.optimizer.parameters[0]

    def fetched(self, examples: Examples, order: Any, bounds: Bounds) -> Iterator[Tensor | Batch]:
        """The batches, where the weights are and of their kind."""
        for batch in examples.fed(order, bounds, pin=self.like.device.type == "cuda"):
            yield batch.to(self.like, non_blocking=True).bare

    def update(self, derived: Derived, size: int, rate: float | Tensor) -> Taken:
        """Clip the derivative and move the weights."""
        values, derivatives, names = derived
        used = [None if d is None else _laid(d, p) for d, p in zip(derivatives, self.optimizer.parameters, strict=True)]
        if self.clip is not None:
            norm = nn.utils.get_total_norm([d for d in used if d is not None])
            share = (self.clip / (norm + 1e-6)).clamp(max=1.0)
            used = [None if d is None else d * share for d in used]  # never in place: two weights may share a derivative
        self.optimizer.step(used, rate)
        return Taken(size, values, names)


def _laid(derivative: Tensor, parameter: Tensor) -> Tensor:
    """A derivative laid out in memory as its parameter is, which the fused kernel takes for granted."""
    if derivative.stride() == parameter.stride():
        return derivative
    return torch.empty_like(parameter).copy_(derivative)


class Eager(Engine):
    """Operation by operation, as Python comes to them."""

    name = "eager"

    def steps(self, examples: Examples, order: Any, bounds: Bounds) -> Iterator[Taken]:
        for x in self.fetched(examples, order, bounds):
            yield self.update(self.program(x), size_of(x), self.rate)


class Compiled(Engine):
    """The loss and its derivative as one program from ``torch.compile``, with random numbers drawn as eager draws them.

    A batch of another size than the whole ones (an epoch's last) is run eagerly, for it would be compiled for itself.

    Args:
        backend: of ``torch.compile``.
        otherwise: called with the reason when the program cannot be compiled; training then goes on eagerly. Without it that is
            an error.

    Raises:
        ConfigError: the program cannot be compiled.
    """

    name: str = "compiled"

    def __init__(
        self,
        program: Program,
        optimizer: Optimizer,
        clip: float | None,
        size: int,
        *,
        otherwise: Callable[[str], None] | None = None,
        backend: str = "inductor",
    ) -> None:
        super().__init__(program, optimizer, clip, size)
        self.otherwise = otherwise
        self._run: Callable[[Tensor | Batch], Derived] | None = compiled(program, backend)
        self._ran = False

    def steps(self, examples: Examples, order: Any, bounds: Bounds) -> Iterator[Taken]:
        for x in self.fetched(examples, order, bounds):
            yield self.update(self.derive(x), size_of(x), self.rate)

    def derive(self, x: Tensor | Batch) -> Derived:
        """The program's results for one batch."""
        if self._run is None or size_of(x) != self.size:
            return self.program(x)
        return self._run(x) if self._ran else self._first(self._run, x)

    def _first(self, run: Callable[[Tensor | Batch], Derived], x: Tensor | Batch) -> Derived:
        """The first run, which compiles, or finds out that this cannot be done."""
        states = random_states(self.like.device)
        try:
            derived = run(x)
        except XhatError:
            raise
        except Exception as error:  # the compiler may fail in any way; whether the model is to blame, the eager step tells
            reason = _reason(error)
            if self.otherwise is None:
                raise ConfigError(
                    f"the engine compiled cannot run {self.program.described}: {reason}; use engine='eager' (--engine eager)"
                ) from error
        else:
            self._ran = True
            return derived
        self.otherwise(reason)
        put_random_states(states, self.like.device)
        self._run, self.name = None, Eager.name  # under which a resumed run goes on
        return self.program(x)


def compiled(program: Program, backend: str = "inductor") -> Callable[[Tensor | Batch], Derived]:
    """A program in one piece from the compiler; called the first time, it is compiled.

    Where torch cannot trace a derivative it is two pieces, the loss and what the compiler derives from it.
    """
    from torch._dynamo import config  # some seconds to import, and not needed by anybody who trains eagerly

    from xhat.networks.products import better_without_mkl
    from xhat.training.products import OneDNNProducts

    options: dict[str, Any] = {"guard_filter_fn": _watched}
    if backend == "inductor":
        options["fallback_random"] = True  # torch's own generators, so that eager draws the same numbers
        if better_without_mkl() and program.parameters[0].device.type == "cpu":
            options["post_grad_custom_post_pass"] = OneDNNProducts()
    # A code object of its own: what is compiled is kept by code object, and the models of one process would share one.
    whole = derivatives_are_traced()
    text: Any = Program.__call__ if whole else Program.value
    own = types.FunctionType(text.__code__.replace(), text.__globals__, text.__name__, text.__defaults__, text.__closure__)
    with unvalidated():
        run = torch.compile(own, fullgraph=True, dynamic=False, backend=backend, options=options)

    if not whole:

        def in_two(x: Tensor | Batch) -> Derived:
            with unvalidated():
                return program.derived(*run(program, x))

        return in_two
    asked = config.patch(trace_autograd_ops=True)  # once, for to make it takes longer than to enter it

    def call(x: Tensor | Batch) -> Derived:
        with asked, unvalidated():  # at every call, for any may have to compile again
            return run(program, x)

    return call


def derivatives_are_traced() -> bool:
    """Whether this version of torch can."""
    from torch._dynamo import config

    return hasattr(config, "trace_autograd_ops")


def _watched(guards: Sequence[Any]) -> list[bool]:
    """What is looked at before each step to see whether the program still holds.

    Every number, word, flag and function, and which parts the model is made of. Not every tensor, dictionary and class of every
    layer: they stay what they are while a model is trained, and looking at them takes longer than a small product.
    """
    values = {"EQUALS_MATCH", "CONSTANT_MATCH", "SEQUENCE_LENGTH"}
    functions = {"ID_MATCH", "CLOSURE_MATCH", "FUNCTION_MATCH", "BUILTIN_MATCH"}
    parts = {"TYPE_MATCH", "NONE_MATCH"}
    return [
        guard.guard_type in values
        or (guard.guard_type in functions and not guard.name.startswith("G["))  # those of modules, such as torch's own, stay
        or (guard.guard_type in parts and guard.name.count("_modules") <= 2)
        for guard in guards
    ]


def _reason(error: Exception) -> str:
    """What a compiler's message says went wrong, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    first = lines[0].rstrip(".:")
    if first.endswith("raised") and len(lines) > 1:  # "backend='inductor' raised:", and what it was
        return f"{first} {lines[1].rstrip('.:')}"
    if "Output:" in lines[:-1]:  # the C++ compiler's own word stands below its command
        return f"{first}, {lines[lines.index('Output:') + 1].rstrip('.:')}"
    # "Observed exception" alone tells nothing: which one it was stands further down
    contexts = [line.removeprefix(_CONTEXT).strip() for line in lines if line.startswith(_CONTEXT)]
    return f"{first}: {contexts[0]}" if contexts and contexts[0] else first


def random_states(device: torch.device) -> list[Tensor]:
    """The state of torch's generators, the CPU's and the device's."""
    states = [torch.random.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def put_random_states(states: list[Tensor], device: torch.device) -> None:
    """Put back what :func:`random_states` gave."""
    torch.random.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
