"""The rows of the report: a task, those who run it, and what is asked of xhat."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from benchmarks.speed.tasks import Task


class Target(NamedTuple):
    """What is asked: to be ``least`` times as fast as a contender, or to reach a share of a limit.

    ``kind`` is "times" (their step over ours) or "share" (the limit's step over ours, the quickest of ``than``), or "seconds"
    (our step, at most ``least``).
    """

    kind: str
    least: float
    than: tuple[str, ...] = ()


class Row(NamedTuple):
    """``ours`` names xhat's contenders, the one that is compared first, and the next if that one cannot run."""

    title: str
    task: Task
    ours: tuple[str, ...]
    others: tuple[str, ...]
    targets: tuple[Target, ...]

    @property
    def entrants(self) -> tuple[str, ...]:
        return self.ours + self.others


LIMITS = ("limit", "limit-onednn")
COMPILED = ("xhat", "xhat-eager")
HALF = ("xhat-bf16", "xhat-eager-bf16")
DIGITS = 60_000

_MLP = Task("vae", "digits", DIGITS, 128, (400,), 20)
_CONV = Task("vae", "pictures", 2_048, 64, (256,), 64, (32, 64, 128))

ROWS: dict[str, Row] = {
    "mlp": Row(
        "VAE of linear layers, float32",
        _MLP,
        COMPILED,
        ("jax", "keras", "compile", "indexed", "loader", "pyro-jit", "pyro", "pythae", *LIMITS),
        (
            Target("times", 2.5, ("pythae",)),
            Target("times", 2.0, ("pyro",)),
            Target("times", 1.5, ("loader",)),
            Target("times", 1.0, ("jax",)),
            Target("share", 0.75, LIMITS),
        ),
    ),
    "mlp-bf16": Row(
        "VAE of linear layers, bfloat16",
        _MLP,
        HALF,
        ("autocast", "pythae", "limit-bf16"),
        (Target("times", 4.0, ("pythae",)),),
    ),
    "conv": Row("Convolutional VAE, 64×64×3", _CONV, COMPILED, ("indexed", "pythae"), (Target("times", 1.5, ("pythae",)),)),
    "iwae": Row(
        "Importance-weighted autoencoder, 50 samples",
        Task("iwae", "digits", 6_000, 20, (200, 200), 50, samples=50),
        COMPILED,
        ("repeated", "once", *LIMITS),
        (Target("times", 2.0, ("repeated",)),),
    ),
    "deep": Row(
        "Deep autoencoder",
        Task("autoencoder", "digits", DIGITS, 256, (1000, 500, 250), 30),
        COMPILED,
        ("indexed", *LIMITS),
        (Target("share", 0.80, LIMITS),),
    ),
}

GPU_ROWS: dict[str, Row] = {
    "gpu-mlp": Row(
        "One GPU: VAE of linear layers, float32",
        replace(_MLP, device="cuda"),
        ("xhat-graphs", *COMPILED),
        ("indexed",),
        (Target("seconds", 60e-6), Target("times", 15.0, ("indexed",))),
    ),
    "gpu-conv": Row(
        "One GPU: convolutional VAE, 64×64×3, bfloat16",
        replace(_CONV, device="cuda", batch=256, examples=16_384),
        ("xhat-graphs-bf16", *HALF),
        ("autocast", "pythae", "limit-bf16"),
        (Target("share", 0.60, ("limit-bf16",)), Target("times", 2.0, ("pythae",))),
    ),
}
GPU_EPOCHS, GPU_SECONDS = 500, 60.0  # epochs of MNIST from nothing, compiling included, and how long they may take
