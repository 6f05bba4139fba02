"""Recording that fails, on a device that is made up: its generator and its memory keep torch's rules of before 2.13."""

import contextlib
import itertools
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

import xhat
from xhat.data import Examples
from xhat.gradients import Pathwise
from xhat.training.graphs import STRETCH, TRIES, Graphs
from xhat.training.optimizer import Optimizer
from xhat.training.program import Program
from xhat.training.recorder import Recorder

BATCH = 8
X = torch.zeros(BATCH * (STRETCH + 5) + 3, 12)  # steps before the stretch, the stretch, steps after it, and a rest


class State:
    """A generator's: how far it is, and whether it counts for a graph."""

    def __init__(self, offset: int = 0) -> None:
        self.offset, self.marked = offset, False


class Generator:
    def __init__(self) -> None:
        self.state = State()

    def clone_state(self) -> "Generator":
        other = Generator()
        other.state = State(self.state.offset)
        return other

    def graphsafe_set_state(self, other: "Generator") -> None:
        self.state = other.state

    def draw(self, recording: bool = False) -> int:
        if self.state.marked != recording:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        self.state.offset += not recording
        return self.state.offset


class Device:
    """Graphs, streams, the generator and the allocator's pools, as far as a recorder has to do with them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.generator, self.pools, self.underway = Generator(), {}, set()
        self.current = self.default = object()
        self.ended = False  # the recording, by an error within
        handles = itertools.count(1)
        device = self

        class Graph:
            state: State | None = None
            pool = held = None

            def capture_begin(self, pool: int, capture_error_mode: str) -> None:
                assert device.current is not device.default
                self.state, self.pool = device.generator.state, pool
                self.state.marked, device.ended = True, False
                if device.pools.get(pool) == 0:
                    raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
                device.pools[pool] = device.pools.get(pool, 0) + 1
                device.underway.add(pool)

            def capture_end(self) -> None:
                if device.ended or self.pool not in device.underway:
                    raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
                device.underway.remove(self.pool)
                self.state.marked, self.held = False, self.pool

            def reset(self) -> None:
                if self.held is not None:
                    device.pools[self.held] -= 1
                    self.held = None

            __del__ = reset

            def replay(self) -> None:
                assert self.held is not None
                assert self.state is device.generator.state, "replays and eager draws would be of two states"
                assert not self.state.marked

        @contextlib.contextmanager
        def stream(one: object):
            before, device.current = device.current, one
            try:
                yield
            finally:
                device.current = before

        for name, value in {
            "Stream": lambda device: SimpleNamespace(),
            "stream": stream,
            "graph_pool_handle": lambda: next(handles),
            "synchronize": lambda device: None,
            "empty_cache": lambda: None,
            "CUDAGraph": Graph,
            "default_generators": (self.generator,),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self._end, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self._release, raising=False)

    def _end(self, index: int, pool: int) -> None:
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def _release(self, index: int, pool: int) -> None:
        self.pools[pool] -= 1


def run(device: Device, fails: dict[int, str], epochs: int = 4) -> tuple[list[int], list[float], Graphs, list[str]]:
    """Epochs of steps that draw one number each; some recordings fail, by their number, in the way that is told."""
    torch.manual_seed(0)
    model = xhat.build("autoencoder", shape=(12,), latent=2, hidden=[5])
    stage = model.stages()[-1]
    optimizer = Optimizer("adam", list(stage.module.parameters()))
    program = Program(stage, Pathwise(), optimizer.parameters, len(X))
    recorder, said, asked = Recorder(torch.device("cpu", 0)), [], itertools.count(1)

    def record(work: Callable[[], None]) -> Callable[[], None]:
        how = fails.get(next(asked), "")
        if how == "begin":  # another program took the memory
            device.pools[recorder.pool] = 0

        def recorded() -> None:
            device.generator.draw(recording=True)
            device.ended = how in ("waits", "hides")
            if how in ("raises", "waits"):
                raise RuntimeError("operation not permitted when stream is capturing")

        replay = recorder(recorded)

        def replayed() -> None:
            replay()
            work()

        return replayed

    engine = Graphs(program, optimizer, None, BATCH, tell=said.append, compile=False, record=record)
    drawn: list[int] = []

    def derive(x: torch.Tensor) -> tuple:
        drawn.append(device.generator.draw())
        return torch.tensor([float(drawn[-1])]), (None,) * len(optimizer.parameters), ("loss",)

    engine.derive = engine.program = derive
    bounds = [(start, min(start + BATCH, len(X))) for start in range(0, len(X), BATCH)]
    engine.coming = (0.0,) * STRETCH
    values = [taken.values.item() for _ in range(epochs) for taken in engine.steps(Examples(X), torch.arange(len(X)), bounds)]
    return drawn, values, engine, said


SINGLE, SEVERAL, REST = (1, BATCH), (STRETCH, BATCH), (1, len(X) % BATCH)


@pytest.mark.parametrize("how", ["begin", "raises", "waits", "hides"])
@pytest.mark.parametrize(
    ("failing", "left"),
    [
        ((), {SINGLE, SEVERAL, REST}),
        ((1,), {SINGLE, SEVERAL, REST}),  # tried again in the second epoch
        ((2,), {SINGLE, REST}),  # several at once: never again; the single step is recorded anew
        ((3,), {SINGLE, SEVERAL}),  # the rest: never again; the others are recorded anew
        ((2, 3), {SINGLE, REST}),  # several, and the single step when it is recorded anew
        ((2, 4), {SINGLE}),
        (tuple(range(1, 1 + TRIES)), set()),
        (tuple(range(1, 20)), set()),
    ],
)
def test_after_a_recording_that_failed_eager_draws_and_replays_go_on_from_one_state(monkeypatch, how, failing, left):
    device = Device(monkeypatch)
    drawn, values, engine, said = run(device, dict.fromkeys(failing, how))
    steps = 4 * -(-len(X) // BATCH)
    assert drawn == values == list(range(1, steps + 1))
    assert engine.replays.keys() == left
    assert bool(said) == bool(failing)
    assert device.current is device.default
    assert not device.underway
    assert not device.generator.state.marked


def test_an_interrupted_recording_leaves_the_generator_as_it_was(monkeypatch):
    device = Device(monkeypatch)
    recorder = Recorder(torch.device("cpu", 0))
    device.generator.draw()

    def work() -> None:
        device.generator.draw(recording=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recorder(work)
    assert device.generator.draw() == 2
    recorder(lambda: None)()
