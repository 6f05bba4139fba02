"""What must hold on the device."""

from __future__ import annotations

import contextlib
import io
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.gpu.covering import catalogue, spread, with_gradients
from benchmarks.gpu.part import Part, Setup, expect
from torch import Tensor, nn

import xhat
from xhat.data import Examples
from xhat.errors import XhatError
from xhat.models.base import Model, centre_and_off
from xhat.models.files import state_of
from xhat.training.engine import put_random_states, random_states
from xhat.training.loop import Loop
from xhat.training.settings import Settings

ROOT = Path(__file__).parents[2]
BATCH = 8
ROWS = BATCH * 20 + 5  # more whole batches than one replay takes, and a rest
ERRORS = 5  # standard errors that two averages of draws may be apart
NEAR = 1e-4  # relative difference that float32 may make in a few dozen steps
Found = dict[str, Any]


def bits(rows: int = ROWS) -> Tensor:
    """Twelve bits a row."""
    return torch.rand(rows, 12, generator=torch.Generator().manual_seed(0)).round()


def vae(**options: Any) -> Model:
    torch.manual_seed(0)
    return xhat.build("vae", shape=(12,), latent=2, hidden=[16], likelihood="bernoulli", **options)


def fitted(model: Model, x: Any, setup: Setup, engine: str, **settings: Any) -> tuple[dict[str, Tensor], list[Found], str]:
    """Train; the state that is left, on the processor, the log, and what was said."""
    options = {"epochs": 2, "batch_size": BATCH, "seed": 0, "keep": "last", "progress": False, **settings}
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        rows = xhat.fit(model, x, device=setup.device, engine=engine, **options).rows
    return {name: tensor.detach().cpu().clone() for name, tensor in state_of(model).items()}, rows, said.getvalue()


def gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of any tensor, relative to that tensor's largest entry; 0 is bit for bit."""
    worst = 0.0
    for name, left in a.items():
        right = b[name]
        if torch.equal(left, right) or left.numel() == 0:
            continue
        size = max(float(left.double().abs().max()), 1e-6)
        worst = max(worst, float((left.double() - right.double()).abs().max()) / size)
    return worst


# Moves


def uses(model: Model, x: Tensor) -> dict[str, Tensor | float]:
    """Everything that a model is asked for; what it refuses by name is left out."""
    with torch.no_grad():
        calls: dict[str, Callable[[], Any]] = {
            "loss": lambda: model.loss(x),
            "elbo": lambda: model.elbo(x, samples=3),  # type: ignore[attr-defined]
            "encode": lambda: model.encode(x),
            "decode": lambda: model.decode(model.encode(x)),
            "reconstruct": lambda: model.reconstruct(x),
            "sample": lambda: model.sample(3),  # type: ignore[attr-defined]
            "evaluate": lambda: torch.tensor(float(len(str(xhat.evaluate(model, x, samples=4))) > 0)),
            "log_likelihood": lambda: xhat.log_likelihood(model, x, samples=4).log_px,
            "code's error": lambda: off(model.pose(model.batch(x)).q),
            "x's error": lambda: off(model.likelihood(model.encode(x))),  # type: ignore[operator]
        }
        found: dict[str, Tensor | float] = {}
        for name, call in calls.items():
            try:
                found[name] = call()
            except (XhatError, AttributeError):
                continue
    return found


def off(law: Any) -> float:
    """The standard error of a law's centre, where that is an average of draws; 0 where there is a formula."""
    return rms(centre_and_off(law)[1])


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def disagreements(here: dict[str, Tensor | float], there: dict[str, Tensor | float]) -> list[str]:
    """What two devices make of the same model otherwise than rounding, or the error of averages over draws, allows."""
    wrong = []
    code, x = (math.hypot(*(float(one.get(name, 0.0)) for one in (here, there))) for name in ("code's error", "x's error"))
    # The devices draw different numbers. Where the codes are averages of draws, what is made of them has no error that is known
    calls = {"encode": code} if code else {"encode": 0.0, "decode": x, "reconstruct": x}
    for call, error in calls.items():
        if call not in here or call not in there:
            continue
        a, b = (torch.as_tensor(one[call]).float().cpu() for one in (here, there))
        if error and not rms(a - b) < ERRORS * error:
            wrong.append(f"{call} differs by {rms(a - b) / error:.1f} standard errors")
        elif not error and not (apart := gap({call: a}, {call: b})) < 1e-3:
            wrong.append(f"{call} differs by {apart:.2g}")
    return wrong


def moves(number: int, of: int) -> Callable[[Setup], Found]:
    def run(setup: Setup) -> Found:
        rows = spread({name: catalogue.MODELS[name] for name in catalogue.RECIPES}, number, 32 if setup.few else of)
        wrong, calls, drawn = [], 0, 0
        for name, make in rows.items():
            torch.manual_seed(0)
            model = make()
            x = catalogue.examples(model, 6).to(model.like.dtype)
            model.eval()
            here = uses(model, x)
            model.to(setup.device)
            try:
                there = uses(model, x.to(setup.device))
            except Exception as error:  # noqa: BLE001 - one model must not hide the others
                wrong.append(f"{name}: {type(error).__name__}: {first_line(error)}")
                continue
            calls += len(there)
            drawn += bool(here.get("code's error") or here.get("x's error"))
            if here.keys() != there.keys():
                wrong.append(f"{name}: {', '.join(sorted(here.keys() ^ there.keys()))} only on one device")
            wrong += [f"{name}: {what}" for what in disagreements(here, there)]
        expect(not wrong, f"{len(wrong)} faults in {len(rows)} models: " + "; ".join(wrong))
        text = f"{len(rows)} models, {calls} calls, deterministic ones as on the processor"
        return {"message": text + (f", averages of draws ({drawn} models) within their error" if drawn else "")}

    return run


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


# Graphs are the eager steps


def agreeing(
    rows: Callable[[], dict[str, Callable[[], Model]]], number: int, of: int, seconds: float
) -> Callable[[Setup], Found]:
    def run(setup: Setup) -> Found:
        chosen = spread(rows(), number, 40 * of if setup.few else of)
        began, wrong, exact = time.monotonic(), [], 0
        near, unrecorded, tried = [], [], 0
        for name, make in chosen.items():
            if time.monotonic() - began > seconds:
                break
            tried += 1
            try:
                end = ends(make, setup)
            except Exception as error:  # noqa: BLE001 - one model must not hide the others
                wrong.append(f"{name}: {type(error).__name__}: {first_line(error)}")
                continue
            apart, own, said = end
            if said:
                unrecorded.append(f"{name} ({said})")
            if apart == 0:
                exact += 1
            elif apart <= max(own, 0.0) * 10 and own > 0:
                near.append(name)
            else:
                wrong.append(f"{name}: weights differ by {apart:.2g}, eager from itself by {own:.2g}")
        found = f"{tried} of {len(chosen)} models, {exact} bit for bit"
        found += f", {len(near)} as near as eager training to itself ({', '.join(near)})" if near else ""
        found += f"; not wholly recorded: {'; '.join(unrecorded)}" if unrecorded else ""
        expect(not wrong, f"{found}; WRONG: " + "; ".join(wrong))
        return {"message": found}

    return run


def ends(make: Callable[[], Model], setup: Setup) -> tuple[float, float, str]:
    """How far apart graphs and eager steps end, how far eager ones from themselves, and why something was not recorded."""

    def end(engine: str) -> tuple[dict[str, Tensor], str]:
        torch.manual_seed(0)
        model = make()
        x = catalogue.examples(model, ROWS).to(model.like.dtype)
        state, _, said = fitted(model, x, setup, engine)
        lines = [line for line in said.splitlines() if "engine:" in line]
        return state, lines[0].split(" here ")[-1][:160] if lines else ""

    eager, graphs = end("eager")[0], end("auto")
    apart = gap(eager, graphs[0])
    return apart, gap(eager, end("eager")[0]) if apart else 0.0, graphs[1]


def graphs_in_schedules(setup: Setup) -> Found:
    kinds: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {
        "β warm-up, cosine, clip": ({"beta_warmup": 1.5}, {"schedule": "cosine", "warmup": 0.5, "clip": 1.0}, bits()),
        "dynamic bits": ({}, {}, Examples(bits() * 0.9, binarize="dynamic")),
        "bfloat16": ({}, {"precision": "bfloat16"}, bits()),
        "bytes": ({}, {}, Examples(bits().mul(255).to(torch.uint8), scale=True)),
        "adamw": ({}, {"optimizer": "adamw", "weight_decay": 0.1}, bits()),
        "odd sizes": ({}, {"batch_size": 7}, bits()),
    }
    apart = {}
    for kind, (options, settings, x) in kinds.items():
        a, rows_a, _ = fitted(vae(**options), x, setup, "eager", valid=bits(30), epochs=4, **settings)
        b, rows_b, _ = fitted(vae(**options), x, setup, "graphs", valid=bits(30), epochs=4, **settings)
        apart[kind] = gap(a, b) if rows_a == rows_b else max(gap(a, b), 1e-30)
    expect(not any(apart.values()), f"differences: { ({kind: f'{value:.2g}' for kind, value in apart.items() if value}) }")
    return {"message": f"bit for bit, log and weights: {', '.join(apart)}"}


def convolutions(setup: Setup) -> Found:
    x = torch.rand(70, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = {}
    for precision in ("float32", "bfloat16"):
        states = []
        for engine in ("eager", "eager", "graphs"):
            torch.manual_seed(0)
            model = xhat.build(
                "vae", shape=(3, 16, 16), latent=4, network="conv", channels=[8, 16], hidden=[16], likelihood="normal"
            )
            states.append(fitted(model, x, setup, engine, precision=precision)[0])
        found[precision] = (gap(states[0], states[2]), gap(states[0], states[1]))
    text = ", ".join(f"{name}: {apart:.2g} (eager from itself {own:.2g})" for name, (apart, own) in found.items())
    expect(all(apart <= max(10 * own, 1e-3) for apart, own in found.values()), text)
    return {"message": text}


# Random numbers, resuming, moving between devices


def states(setup: Setup) -> Found:
    model = vae()
    steps = xhat.train(model, bits(), epochs=1, batch_size=BATCH, device=setup.device, engine="auto")
    for _ in range(6):
        next(steps)
    held = random_states(torch.device(setup.device))
    first = [torch.rand(5), torch.rand(5, device=setup.device)]
    put_random_states(held, torch.device(setup.device))
    second = [torch.rand(5), torch.rand(5, device=setup.device)]
    expect(all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "the states of the generators were not put back")
    steps.close()  # type: ignore[attr-defined]
    loop = Loop(model, Examples(bits()), Examples(bits(30)), Settings(batch_size=BATCH, device=setup.device))
    before = random_states(torch.device(setup.device))
    a, b = loop.validate(loop.valid), loop.validate(loop.valid)  # type: ignore[arg-type]
    after = random_states(torch.device(setup.device))
    expect(a == b, "two validations in a row differ")
    expect(all(torch.equal(x, y) for x, y in zip(before, after, strict=True)), "validation moved the generators")
    return {"message": f"generators on {', '.join(['cpu', setup.device])} put back; validation leaves them alone"}


@contextlib.contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """A Ctrl-C after a step."""
    run = Loop.run

    def interrupted(loop: Loop) -> Iterator[Any]:
        for taken in run(loop):
            if taken.step == step:
                os.kill(os.getpid(), signal.SIGINT)
            yield taken

    Loop.run = interrupted  # type: ignore[method-assign]
    try:
        yield
    finally:
        Loop.run = run  # type: ignore[method-assign]


def resume(setup: Setup) -> Found:
    options: dict[str, Any] = {"valid": bits(30), "epochs": 6, "schedule": "cosine"}
    whole, rows, _ = fitted(vae(), bits(), setup, "auto", **options)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        out = Path(folder) / "run"
        with stopped_at(60):
            fitted(vae(), bits(), setup, "auto", out=out, **options)
        model = vae()
        resumed = xhat.fit(model, bits(), valid=bits(30), out=out, resume=True, progress=False)
        state = {name: tensor.detach().cpu() for name, tensor in state_of(model).items()}
        expect(gap(whole, state) == 0, f"the resumed run ends elsewhere: {gap(whole, state):.2g}")
        expect(resumed.rows == rows, "the resumed run's log is another")
        here = xhat.load(out / "model.safetensors")
        expect(here.device.type == "cpu", f"a model that is loaded lies on {here.device}")
        x = bits(20)
        apart = gap({"x": model.reconstruct(x).cpu()}, {"x": here.reconstruct(x)})
        expect(apart < NEAR, f"on the processor it reconstructs otherwise: {apart:.2g}")
        moved = xhat.load(out / "model.safetensors").to(setup.device)
        expect(gap({"x": moved.reconstruct(x).cpu()}, {"x": model.reconstruct(x).cpu()}) == 0, "moved to the device, it differs")
    return {"message": f"stopped amid an epoch, resumed bit for bit; opened on the processor within {apart:.1g}"}


# Precision and the compiler


def half(setup: Setup) -> Found:
    x = bits(800)
    ends = {}
    for precision in ("float32", "bfloat16"):
        model = vae()
        _, rows, _ = fitted(model, x, setup, "auto", epochs=8, precision=precision)
        ends[precision] = rows[-1]["train_loss"]
        expect(all(p.dtype == torch.float32 for p in model.parameters()), "weights are no longer float32")
    expect(math.isclose(*ends.values(), rel_tol=0.02), f"{ends}")
    expect(ends["float32"] != ends["bfloat16"], "bfloat16 was float32")
    return {"message": ", ".join(f"{name}: loss {loss:.5f}" for name, loss in ends.items())}


def compiled(setup: Setup) -> Found:
    began = time.perf_counter()
    a, _, _ = fitted(vae(), bits(), setup, "eager")
    b, _, said = fitted(vae(), bits(), setup, "compiled")
    apart = gap(a, b)
    expect(apart < NEAR, f"compiled training differs by {apart:.2g}")
    return {"message": f"within {apart:.2g} of eager, {time.perf_counter() - began:.0f} s {said.strip()[:200]}"}


def compiled_graphs(setup: Setup) -> Found:
    from xhat.training import choice

    began, held = time.perf_counter(), choice.SAVED_PER_REPLAY
    a, _, _ = fitted(vae(), bits(), setup, "eager")
    choice.SAVED_PER_REPLAY = math.inf
    try:
        b, _, said = fitted(vae(), bits(), setup, "graphs")
    finally:
        choice.SAVED_PER_REPLAY = held
    apart = gap(a, b)
    expect(apart < NEAR, f"graphs of a compiled program differ by {apart:.2g}")
    expect(not said, said[:300])
    return {"message": f"within {apart:.2g} of eager, {time.perf_counter() - began:.0f} s"}


# Falling back


class Waiting(nn.Module):
    """A user's layer that waits for the device, or is otherwise at odds with a recording."""

    out_features = 12

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.steps = how, 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        if self.how == "reads":
            return x * (1.0 if float(x.sum()) > -1 else 2.0)
        if self.how == "copies":
            return x * torch.tensor([1.0], device=x.device)
        if self.how == "raises" and x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("not while a graph is recorded")
        return x


def waiting(how: str) -> Model:
    model = vae()
    model.posterior.network.layers.insert(1, Waiting(how))  # type: ignore[union-attr]
    return model


def falls_back(setup: Setup) -> Found:
    device = torch.device(setup.device)
    done = []
    for how in ("reads", "copies", "raises"):
        a, rows_a, _ = fitted(waiting(how), bits(), setup, "eager", epochs=4)
        after = torch.rand(4, device=device)
        b, rows_b, said = fitted(waiting(how), bits(), setup, "auto", epochs=4)
        expect(gap(a, b) == 0 and rows_a == rows_b, f"{how}: weights differ by {gap(a, b):.2g} after a failed recording")
        expect(torch.equal(after, torch.rand(4, device=device)), f"{how}: the next random numbers are others")
        if setup.device == "cuda":
            expect("could not be" in said, f"{how}: it was recorded, or nothing was said: {said[:200]!r}")
            current, default = torch.cuda.current_stream(device), torch.cuda.default_stream(device)
            expect(current == default, f"{how}: another stream is current")
        done.append(how)
    good = ends(vae, setup)
    expect(good[0] == 0 and not good[2], f"afterwards a good model is not recorded, or differs: {good}")
    block = torch.empty(2**26, device=device)
    del block
    if setup.device == "cuda":
        torch.cuda.empty_cache()
    return {"message": f"a layer that {', '.join(done)}: trained on, bit for bit, stream and generator as they were"}


# Data


def valid_aboard(setup: Setup) -> Found:
    model = vae()
    model.to(setup.device)
    x, valid = Examples(bits()), Examples(bits(300))
    loop = Loop(model, x, valid, Settings(batch_size=BATCH, device=setup.device))
    assert loop.valid is not None
    expect(loop.valid.device.type == setup.device, f"validation examples lie on {loop.valid.device}")
    expect(loop.train.device.type == setup.device, f"training examples lie on {loop.train.device}")
    here, there = loop.validate(valid), loop.validate(loop.valid)
    expect(here == there, f"validation differs: {here}, {there}")
    return {"message": ", ".join(f"{name} {value:.4f}" for name, value in there.items())}


def streamed(setup: Setup) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        np.save(path, bits(4000).numpy())
        data = xhat.load_data(path, memory="stream")
        expect(not data.train.resident, "the data were loaded, not streamed")
        batches = data.train.feed(data.train.order(0), [(0, 64), (64, 128)], pin=setup.device == "cuda")
        pinned = [batch.is_pinned() for batch in batches]
        expect(all(flag == (setup.device == "cuda") for flag in pinned), f"pinned: {pinned}")
        _, rows, _ = fitted(vae(), data.train, setup, "eager", batch_size=64)
        _, again, _ = fitted(vae(), data.train, setup, "eager", batch_size=64)
        expect(rows == again, "two runs differ")
    return {"message": f"pinned batches, two runs alike: loss {rows[-1]['train_loss']:.4f}"}


_ALONE = """
import datetime, sys, tempfile
import torch, torch.distributed as dist
import xhat
from xhat.ranks import Ranks
backend, device = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    store = dist.FileStore(folder + "/store", 1)
    dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=datetime.timedelta(seconds=60))
    x = torch.arange(3.0, device=device)
    dist.all_reduce(x)
    assert x.tolist() == [0.0, 1.0, 2.0]
    Ranks(0, 1).add([x])
    torch.manual_seed(0)
    model = xhat.build("vae", shape=(12,), latent=2, hidden=[16], likelihood="bernoulli")
    options = {"epochs": 2, "batch_size": 8, "device": device, "progress": False, "shards": 2, "engine": "eager"}
    rows = xhat.fit(model, torch.rand(64, 12).round(), **options).rows
    dist.destroy_process_group()
print("loss", rows[-1]["train_loss"])
"""


def alone(setup: Setup) -> Found:
    backend = "cpu:gloo,cuda:nccl" if setup.device == "cuda" else "gloo"
    done = subprocess.run([sys.executable, "-c", _ALONE, backend, setup.device], capture_output=True, text=True, check=False)
    expect(done.returncode == 0, " | ".join(done.stderr.strip().splitlines()[-3:]))
    return {"message": f"{backend}, one process: {done.stdout.strip().splitlines()[-1]}"}


MODEL_PARTS, GRADIENT_PARTS, MOVE_PARTS = 8, 2, 2

CHECKS: dict[str, Part] = {
    "fallback": Part("check", 60, falls_back, alone=True),
    "schedules": Part("check", 60, graphs_in_schedules),
    "resume": Part("check", 60, resume),
    "states": Part("check", 40, states),
    "compiled": Part("check", 150, compiled),
    "compiled-graphs": Part("check", 150, compiled_graphs),
    **{f"gradients-{n}": Part("check", 60, agreeing(with_gradients, n, GRADIENT_PARTS, 45)) for n in range(GRADIENT_PARTS)},
    **{f"moves-{n}": Part("check", 60, moves(n, MOVE_PARTS)) for n in range(MOVE_PARTS)},
    **{f"models-{n}": Part("check", 60, agreeing(lambda: catalogue.MODELS, n, MODEL_PARTS, 45)) for n in range(MODEL_PARTS)},
    "convolutions": Part("check", 60, convolutions),
    "bfloat16": Part("check", 60, half),
    "valid-aboard": Part("check", 40, valid_aboard),
    "streamed": Part("check", 60, streamed),
    "one-process": Part("check", 60, alone),
}
