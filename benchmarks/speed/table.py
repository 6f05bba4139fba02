"""Every contender by name: where it is, how it is made, and what the report says about it."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

from benchmarks.speed.contender import Contender
from benchmarks.speed.tasks import Task


class Entry(NamedTuple):
    """One contender; imported where it runs, so that no process holds two libraries."""

    label: str
    module: str
    cls: str
    options: dict[str, Any]
    about: str = ""
    packages: tuple[str, ...] = ("torch",)

    def make(self, task: Task) -> Contender:
        return getattr(importlib.import_module(f"benchmarks.speed.{self.module}"), self.cls)(task, **self.options)


def _ours(label: str, **options: str) -> Entry:
    return Entry(label, "ours", "Xhat", options)


def _plain(label: str, about: str, **options: bool) -> Entry:
    return Entry(label, "plain", "Plain", options, about)


CONTENDERS: dict[str, Entry] = {
    "xhat": _ours("xhat, compiled", engine="compiled"),
    "xhat-eager": _ours("xhat, eager", engine="eager"),
    "xhat-graphs": _ours("xhat, CUDA graphs", engine="graphs"),
    "xhat-graphs-bf16": _ours("xhat, CUDA graphs, bfloat16", engine="graphs", precision="bfloat16"),
    "xhat-bf16": _ours("xhat, compiled, bfloat16", engine="compiled", precision="bfloat16"),
    "xhat-eager-bf16": _ours("xhat, eager, bfloat16", engine="eager", precision="bfloat16"),
    "pythae": Entry(
        "Pythae",
        "pythae_peer",
        "Pythae",
        {},
        "`BaseTrainer.train_step`, that is an epoch as its trainer runs it, with its progress bar; what its `train` does between "
        "epochs (a deep copy of the best model) and the files that it writes are left out, in its favour; float32, because its "
        "option `amp` is for CUDA only, and it switches it off where the loss is a binary cross-entropy",
        ("pythae", "torch"),
    ),
    "pyro": Entry(
        "Pyro",
        "pyro_peer",
        "Pyro",
        {},
        "the tutorial's model and guide, `SVI`, `Trace_ELBO`, `Adam`, batches from a DataLoader",
        ("pyro-ppl", "torch"),
    ),
    "pyro-jit": Entry(
        "Pyro, JIT",
        "pyro_peer",
        "Pyro",
        {"jit": True},
        "the same with `JitTrace_ELBO`, the tutorial's option",
        ("pyro-ppl", "torch"),
    ),
    "jax": Entry(
        "JAX",
        "jax_peer",
        "Jax",
        {},
        "optax's `adam`; shuffling and the whole epoch are one jitted program (`lax.scan`), its parameters donated",
        ("jax", "jaxlib", "optax"),
    ),
    "keras": Entry(
        "Keras on JAX",
        "keras_peer",
        "Keras",
        {},
        "the VAE of its guide on subclassing, `compile` and `fit`, with the JAX backend",
        ("keras", "jax"),
    ),
    "loader": _plain(
        "PyTorch, DataLoader",
        "a hand-written loop: DataLoader on a TensorDataset, the loss in a few lines, "
        "`torch.optim.Adam`, `loss.item()` each step",
        loader=True,
        fused=False,
    ),
    "indexed": _plain(
        "PyTorch, indexed", "the same without a DataLoader: a permutation indexes the tensor; Adam with `fused=True`"
    ),
    "compile": _plain(
        "PyTorch, torch.compile", "the same, indexed, with `torch.compile` around networks and loss", compiled=True
    ),
    "autocast": _plain("PyTorch, autocast", "the same, indexed, under `torch.autocast` with bfloat16", autocast=True),
    "repeated": _plain(
        "PyTorch, batch repeated K times",
        "a hand-written loop with a DataLoader that repeats the batch K times, as most published code does",
        loader=True,
        fused=False,
    ),
    "once": _plain(
        "PyTorch, encoded once",
        "the same, but the encoder sees each example once, and Adam has `fused=True`",
        loader=True,
        once=True,
    ),
    "limit": Entry(
        "products alone, torch.mm",
        "limits",
        "Limit",
        {},
        "every matrix product of a step and nothing else, on operands that lie ready, by `torch.mm` (MKL for float32)",
    ),
    "limit-onednn": Entry(
        "products alone, oneDNN",
        "limits",
        "Limit",
        {"onednn": True},
        "the same by oneDNN (`torch.ops.mkldnn._linear_pointwise`)",
    ),
    "limit-bf16": Entry(
        "products alone, bfloat16",
        "limits",
        "Limit",
        {"precision": "bfloat16"},
        "the same, in bfloat16",
    ),
}
