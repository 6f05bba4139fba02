"""The data that every contender is given: real digits where there are any, else bits of the same size."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
from benchmarks.speed.tasks import Task

ROOT = Path(__file__).parents[2]
MNIST = ("train-images-idx3-ubyte.gz", "train-images-idx3-ubyte")
DENSITY = 0.13  # share of ones in MNIST at half brightness


def mnist_file() -> Path | None:
    """MNIST's training images: in the folder that XHAT_MNIST names, or in the one beside the checkout."""
    folders = [Path(os.environ["XHAT_MNIST"])] if "XHAT_MNIST" in os.environ else [ROOT.parent / "shared" / "data" / "mnist"]
    files = [folder / name for folder in folders for name in MNIST]
    return next((file for file in files if file.is_file()), None)


def about_digits() -> str:
    """Which digits these are, for the report."""
    if mnist_file() is None:
        return f"generated bits, 60,000 × 784, {DENSITY:.0%} ones (no MNIST was at hand)"
    return "MNIST, 60,000 × 784, a pixel is 1 where it is at least half bright"


def load(task: Task) -> np.ndarray:
    """The task's data as bytes, ``(examples, *shape)``: 0 and 1, or for pictures 0 to 255."""
    generator = np.random.default_rng(0)
    if task.data == "pictures":
        return generator.integers(0, 256, (task.examples, *task.shape), dtype=np.uint8)
    file = mnist_file()
    if task.data == "bits" or file is None:
        return _bits(generator, task.examples, task.features).reshape(task.examples, *task.shape)
    raw = file.read_bytes()
    pixels = np.frombuffer(gzip.decompress(raw) if file.suffix == ".gz" else raw, dtype=np.uint8, offset=16)
    digits = (pixels.reshape(-1, *task.shape) >= 128).astype(np.uint8)
    return np.resize(digits, (task.examples, *task.shape))


def _bits(generator: np.random.Generator, rows: int, features: int) -> np.ndarray:
    result = np.empty((rows, features), dtype=np.uint8)
    for start in range(0, rows, 100_000):  # in pieces: the comparison's random bytes would double the memory
        part = result[start : start + 100_000]
        part[:] = generator.integers(0, 256, part.shape, dtype=np.uint8) < round(256 * DENSITY)
    return result


def as_floats(data: np.ndarray) -> np.ndarray:
    """What libraries without a store of bytes are given: float32 in [0, 1], made once, before the clock runs."""
    return data.astype(np.float32) / (255 if data.max() > 1 else 1)
