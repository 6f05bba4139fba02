"""Which engine a run gets."""

from __future__ import annotations

import sys
from collections.abc import Callable

from xhat.data import Examples
from xhat.errors import ConfigError
from xhat.training.engine import Compiled, Eager, Engine
from xhat.training.graphs import Graphs
from xhat.training.optimizer import Optimizer
from xhat.training.program import Program

# What compiling costs and saves, in seconds, on the processors that it was measured on (benchmarks/speed.md). Rounded, and not
# measured anew: the choice must not depend on how busy the machine is, or the same seed would not give the same digits.
COMPILATION = 30.0
SAVED_PER_STEP = 8e-4
SAVED_PER_OPERATION = 2e-12
# The same of a graph on a device (benchmarks/gpu.md: one H200, 784-400-20, batch 128). A graph of the operations one by one is
# recorded within 0.8 s, takes a twelfth of an eager step, and is always worth it. A compiler takes 13 s there for such a loss.
# What it saves in a graph has not been measured: of 408 µs a step the products take 85, and half of the rest is reckoned with.
COMPILATION_FOR_GRAPHS = 15.0
SAVED_PER_REPLAY = 1.5e-4


def engine_for(
    name: str,
    program: Program,
    optimizer: Optimizer,
    clip: float | None,
    size: int,
    examples: Examples,
    steps: int,
    *,
    held: str | None = None,
    alone: bool = True,
    say: Callable[[str], None] | None = None,
) -> Engine:
    """The engine of a name; ``"auto"`` chooses.

    Auto takes CUDA graphs where the examples lie on a CUDA device, and on a processor the compiler where it saves more time over
    the steps to come than compiling takes; it goes on eagerly, and says so, where compiling or recording fails.

    Args:
        name: "auto", "eager", "compiled" or "graphs".
        program: the step.
        optimizer: of the step.
        clip: of the step.
        size: examples in a whole batch.
        examples: what is trained on, where they are stored.
        steps: steps to come.
        held: the engine that a resumed run began with, which auto takes again where it can be had.
        alone: whether the step is one process's, and in one piece, as a graph needs it.
        say: where explanations go; standard error unless given.

    Raises:
        ConfigError: graphs are asked for without a CUDA device, or of examples that are not on it.
    """
    say = say or _to_standard_error
    device = optimizer.parameters[0].device
    aboard = alone and examples.resident and examples.device.type == "cuda"

    def otherwise(reason: str) -> None:
        say(f"engine: eager, because {program.described} could not be compiled here ({reason})")

    def tell(reason: str) -> None:
        say(f"engine: graphs, but not wholly: {program.described} could not be compiled or recorded here ({reason})")

    if name == "graphs" and device.type != "cuda":
        raise ConfigError(f"the engine graphs needs a CUDA device, the model is on {device}: use engine='auto'")
    if name == "graphs" and not aboard:
        raise ConfigError("the engine graphs needs the examples in the device's memory, which they do not fit: use 'compiled'")
    if name == "compiled":
        return Compiled(program, optimizer, clip, size)
    if name == "graphs" or (name == "auto" and aboard and held in (None, "graphs")):
        pays = SAVED_PER_REPLAY * steps >= COMPILATION_FOR_GRAPHS
        return Graphs(program, optimizer, clip, size, tell=tell, compile=pays, strict=name == "graphs")
    compiles = saving(program, size, steps) >= COMPILATION if held in (None, "graphs") else held == "compiled"
    if name == "eager" or not compiles or device.type not in ("cpu", "cuda"):
        return Eager(program, optimizer, clip, size)
    try:
        return Compiled(program, optimizer, clip, size, otherwise=otherwise)
    except ConfigError as error:
        say(f"engine: eager, because {error}")
        return Eager(program, optimizer, clip, size)


def saving(program: Program, size: int, steps: int) -> float:
    """Seconds that the compiler is expected to save over a number of steps."""
    # Two operations a weight for the loss and four for its derivative; convolutions, which use a weight more often, gain less
    operations = 6 * size * program.samples * sum(p.numel() for p in program.parameters)
    return steps * (SAVED_PER_STEP + SAVED_PER_OPERATION * operations)


def _to_standard_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
