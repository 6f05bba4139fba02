"""Epochs of MNIST on one GPU, from nothing to the end."""

from __future__ import annotations

import time

import torch
from benchmarks.speed.dataset import load
from benchmarks.speed.ours import model_of
from benchmarks.speed.rows import GPU_EPOCHS, GPU_ROWS
from benchmarks.speed.tasks import LEARNING_RATE

import xhat


def measure_epochs() -> float:
    """Seconds of ``xhat.fit`` over all the epochs, compiling included."""
    task = GPU_ROWS["gpu-mlp"].task
    x, model = torch.from_numpy(load(task)), model_of(task)
    began = time.perf_counter()
    xhat.fit(
        model, x, epochs=GPU_EPOCHS, batch_size=task.batch, lr=LEARNING_RATE, keep="last", device=task.device, progress=False
    )
    torch.cuda.synchronize()
    return time.perf_counter() - began
