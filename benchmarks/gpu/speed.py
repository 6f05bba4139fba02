"""How long things take on the device: each row by itself, the median of several rounds."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.part import Part, Setup, expect, rounds, told
from benchmarks.speed import dataset
from benchmarks.speed.dataset import as_floats, load
from benchmarks.speed.limits import Limit
from benchmarks.speed.ours import model_of
from benchmarks.speed.plain import Loss
from benchmarks.speed.start import _FIRST_STEP
from benchmarks.speed.tasks import LEARNING_RATE, Task
from torch import Tensor

import xhat
from xhat.data import Examples
from xhat.networks import convolutional
from xhat.training import choice
from xhat.training.loop import Loop
from xhat.training.settings import Settings

ROOT = Path(__file__).parents[2]
Found = dict[str, Any]
Run = Callable[[Setup], Found]

MLP_128 = Task("vae", "digits", 60_000, 128, (400,), 20)
MLP_4096 = replace(MLP_128, batch=4096)
CONV = Task("vae", "pictures", 8_192, 256, (256,), 64, (32, 64, 128))
IWAE = Task("iwae", "digits", 6_000, 20, (200, 200), 50, samples=50)
TASKS = {"mlp-128": MLP_128, "mlp-4096": MLP_4096, "conv": CONV, "iwae-50": IWAE}
EPOCHS = 500
SAMPLES = 5000


def sized(task: Task, setup: Setup) -> Task:
    """The task on the device; in a rehearsal a small one."""
    task = replace(task, device=setup.device)
    if not setup.few:
        return task
    small = replace(task, batch=8, examples=150, samples=min(task.samples, 3), hidden=(16,) * len(task.hidden), latent=4)
    return replace(small, channels=(4, 8), examples=140, data="pictures") if task.channels else small


# Ours


def ours(name: str, engine: str, precision: str = "float32", compile: bool = False, layout: bool = True) -> Run:
    """Steps as ``xhat.fit`` takes them, an epoch or more at a time; without its validation and files."""

    def run(setup: Setup) -> Found:
        task = sized(TASKS[name], setup)
        torch.manual_seed(0)
        model = model_of(task).to(setup.device)
        held, laid = choice.SAVED_PER_REPLAY, convolutional.laid_out
        choice.SAVED_PER_REPLAY = float("inf") if compile and not setup.few else 0.0
        if not layout:
            convolutional.laid_out = lambda x: x
        try:
            settings = Settings(
                epochs=1_000_000, batch_size=task.batch, lr=LEARNING_RATE, engine=engine, precision=precision, device=setup.device
            )
            loop = Loop(model, Examples(torch.from_numpy(load(task)), scale=task.data == "pictures"), None, settings)
            loop.hasty = True
            steps = loop.run()

            def epoch() -> int:
                taken = 0
                for step in steps:
                    taken += 1
                    if step.record is not None and (setup.few or taken >= 200):
                        break
                return taken

            found = rounds(epoch, setup, least=2.0)
        finally:
            choice.SAVED_PER_REPLAY, convolutional.laid_out = held, laid
        expect(loop.engine.name == engine or engine == "auto" or setup.few, f"it ran as {loop.engine.name}")
        refused = getattr(loop.engine, "refused", set())
        replays = sorted(getattr(loop.engine, "replays", {}))
        found |= {"batch": task.batch, "engine": loop.engine.name, "replays": str(replays)}
        inner = getattr(getattr(loop.engine, "derive", None), "__self__", None)
        found["compiled"] = bool(getattr(inner, "_ran", False))
        expect(found["compiled"] or not compile or setup.few, "the program could not be compiled: see the log")
        extra = f"; not recorded: {sorted(refused)}" if refused else ""
        return found | {
            "message": f"{told(found['seconds'])} a step, first epoch {found['first']:.1f} s, {loop.engine.name}{extra}"
        }

    return run


# A loop by hand, and the CUDA graph that PyTorch's pages show how to make of it


def plain(name: str, how: str, precision: str = "float32") -> Run:
    def run(setup: Setup) -> Found:
        task = sized(TASKS[name], setup)
        torch.manual_seed(0)
        x = torch.from_numpy(as_floats(load(task))).to(setup.device)
        module = Loss(task, once=True).to(setup.device)
        optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE, fused=True, capturable=setup.device == "cuda")
        loss_of: Callable[[Tensor], Tensor] = torch.compile(module) if how == "compile" and not setup.few else module
        batch = x[: task.batch].clone()

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(setup.device, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=how != "graph"):
                loss = loss_of(batch)
            loss.backward()
            optimizer.step()

        taken = recorded(step, setup) if how == "graph" else step

        def epoch() -> int:
            order = torch.randperm(len(x), device=x.device)
            many = order[: len(order) // task.batch * task.batch].split(task.batch)
            for rows in many:
                torch.index_select(x, 0, rows, out=batch)
                taken()
            return len(many)

        found = rounds(epoch, setup, least=2.0)
        return found | {"batch": task.batch, "message": f"{told(found['seconds'])} a step"}

    return run


def recorded(step: Callable[[], None], setup: Setup) -> Callable[[], None]:
    """The recipe of PyTorch's own pages: warm up on a side stream, record, replay."""
    if setup.device != "cuda":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def limit(name: str, precision: str = "float32") -> Run:
    """The products and convolutions of a step alone, as one graph."""

    def run(setup: Setup) -> Found:
        task = sized(TASKS[name], setup)
        alone = Limit(task, precision=precision)
        found = rounds(lambda: alone.epoch().steps, setup)
        return found | {"batch": task.batch, "message": f"{told(found['seconds'])} a step"}

    return run


# Evidence


def evidence(device: str | None, precision: str = "float32") -> Run:
    """Images a second at K = 5000 draws each; on the processor with two threads."""

    def run(setup: Setup) -> Found:
        where = device or setup.device
        task = replace(MLP_128, device=where)
        torch.manual_seed(0)
        model = model_of(task).to(where)
        samples = 50 if setup.few else SAMPLES
        images = 4 if setup.few else 20 if where == "cpu" else 2000
        x = torch.from_numpy(as_floats(load(replace(task, examples=max(images, 200)))))[:images].to(where)
        before = torch.get_num_threads()
        if where == "cpu":
            torch.set_num_threads(2)
        found: Found = {}
        try:
            for elements in (1_000_000,) if where == "cpu" else (1_000_000, 100_000_000):

                def once(elements: int = elements) -> int:
                    xhat.log_likelihood(model, x, samples=samples, elements=elements)
                    return images

                here = rounds(once, Setup(where, setup.few), least=2.0, most=5)
                if not found or here["seconds"] < found["seconds"]:
                    found = here | {"elements": elements}
                found[f"per_second_{elements}"] = 1 / here["seconds"]
        finally:
            torch.set_num_threads(before)
        found["per_second"] = 1 / found["seconds"]
        every = ", ".join(f"{k.split('_')[-1]} numbers at once: {v:.4g}" for k, v in found.items() if k.startswith("per_second_"))
        return found | {"message": f"{found['per_second']:.4g} images a second ({every})"}

    return run


# As users get it


def users(name: str, epochs: int, valid: bool, **settings: Any) -> Run:
    """``xhat.fit``, from the call to its return: recording, compiling, reading, validating."""

    def run(setup: Setup) -> Found:
        from torch._inductor import config  # seconds to import, and all processes but this one do without

        task = sized(TASKS[name], setup)
        many = 2 if setup.few else epochs
        torch.manual_seed(0)
        model = model_of(task)
        x = torch.from_numpy(load(task))
        options = {"epochs": many, "batch_size": task.batch, "lr": LEARNING_RATE, "device": setup.device, "progress": False}
        held = x[: 20 if setup.few else 10_000] if valid else None
        if setup.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with config.patch(force_disable_caches=True):  # from nothing: other rows have compiled the same
            began = time.perf_counter()
            history = xhat.fit(model, x, valid=held, **(options | settings))
            setup.wait()
            seconds = time.perf_counter() - began
        steps = many * -(-len(x) // task.batch)
        found: Found = {"seconds": seconds / steps, "whole": seconds, "epochs": many, "batch": task.batch}
        if setup.device == "cuda":
            found["peak"] = torch.cuda.max_memory_allocated()
        loss = history.rows[-1]["train_loss"]
        return found | {"message": f"{many} epochs in {seconds:.1f} s, {told(seconds / steps)} a step, loss {loss:.2f}"}

    return run


def command(kind: str) -> Run:
    """Fresh processes, wall clock."""

    def run(setup: Setup) -> Found:
        path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
        with tempfile.TemporaryDirectory() as folder:
            commands = {
                "import": [sys.executable, "-c", f"import torch; torch.zeros(1, device={setup.device!r})"],
                "first-step": [sys.executable, "-c", _FIRST_STEP],
                "train": [sys.executable, "-m", "xhat", "train", "digits", "--epochs", "1", "--out", f"{folder}/run"],
            }
            began = time.perf_counter()
            done = subprocess.run(
                commands[kind], capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, "PYTHONPATH": path}
            )
            seconds = time.perf_counter() - began
        expect(done.returncode == 0, (done.stderr.strip().splitlines() or ["no message"])[-1])
        return {"seconds": seconds, "rounds": [seconds], "message": f"{seconds:.2f} s"}

    return run


def cudnn_benchmark(run: Run) -> Run:
    """With cuDNN's choice by trial, which is not the same in every run: for information."""

    def chosen(setup: Setup) -> Found:
        held = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            return run(setup)
        finally:
            torch.backends.cudnn.benchmark = held

    return chosen


def tf32(run: Run) -> Run:
    """With products in TF32, which xhat leaves off: for information."""

    def chosen(setup: Setup) -> Found:
        held = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return run(setup)
        finally:
            torch.set_float32_matmul_precision(held)

    return chosen


def speeds() -> dict[str, Part]:
    """All rows, the most telling ones first."""
    rows: dict[str, tuple[float, Run]] = {
        "mlp-128 graphs": (40, ours("mlp-128", "graphs")),
        "mlp-128 eager": (40, ours("mlp-128", "eager")),
        "mlp-128 graphs-compiled": (100, ours("mlp-128", "graphs", compile=True)),
        "mlp-128 plain-graph": (40, plain("mlp-128", "graph")),
        "mlp-128 plain": (40, plain("mlp-128", "eager")),
        "mlp-128 fit": (40, users("mlp-128", 20, valid=False)),
        "mlp-128 fit-valid": (40, users("mlp-128", 20, valid=True)),
        "evidence gpu": (40, evidence(None)),
        "evidence cpu": (60, evidence("cpu")),
        "conv-bf16 graphs": (40, ours("conv", "graphs", "bfloat16")),
        "conv-bf16 limit": (40, limit("conv", "bfloat16")),
        "conv-bf16 graphs-as-laid": (40, ours("conv", "graphs", "bfloat16", layout=False)),
        "conv-bf16 plain-graph": (40, plain("conv", "graph", "bfloat16")),
        "conv graphs": (40, ours("conv", "graphs")),
        "conv limit": (40, limit("conv")),
        "epochs-500": (150, users("mlp-128", EPOCHS, valid=False, keep="last")),
        "mlp-4096 graphs": (40, ours("mlp-4096", "graphs")),
        "mlp-4096 graphs-compiled": (100, ours("mlp-4096", "graphs", compile=True)),
        "mlp-4096 eager": (40, ours("mlp-4096", "eager")),
        "mlp-4096 plain-graph": (40, plain("mlp-4096", "graph")),
        "mlp-4096 limit": (40, limit("mlp-4096")),
        "mlp-128 limit": (40, limit("mlp-128")),
        "iwae-50 graphs": (40, ours("iwae-50", "graphs")),
        "iwae-50 plain-graph": (40, plain("iwae-50", "graph")),
        "iwae-50 limit": (40, limit("iwae-50")),
        "start import": (40, command("import")),
        "start first-step": (40, command("first-step")),
        "start train": (60, command("train")),
        "mlp-128 compiled": (100, ours("mlp-128", "compiled")),
        "mlp-128 graphs-bf16": (40, ours("mlp-128", "graphs", "bfloat16")),
        "conv-bf16 graphs-compiled": (120, ours("conv", "graphs", "bfloat16", compile=True)),
        "conv-bf16 graphs-cudnn-benchmark": (60, cudnn_benchmark(ours("conv", "graphs", "bfloat16"))),
        "conv graphs-cudnn-benchmark": (60, cudnn_benchmark(ours("conv", "graphs"))),
        "mlp-4096 graphs-tf32": (40, tf32(ours("mlp-4096", "graphs"))),
        "iwae-50 graphs-compiled": (100, ours("iwae-50", "graphs", compile=True)),
        "mlp-128 plain-compile": (100, plain("mlp-128", "compile")),
    }
    return {name: Part("speed", seconds, run) for name, (seconds, run) in rows.items()}


def about_data() -> str:
    return dataset.about_digits()
