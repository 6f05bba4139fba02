"""MNIST in the three forms that the tables use."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import xhat

ROOT = Path(__file__).parents[2]
SHAPE = (1, 28, 28)


def folder() -> Path:
    """Where the data are: in the folder that XHAT_DATA names, or in the one beside the checkout.

    It holds ``mnist/`` with the four idx files, and ``binarized_mnist.npz`` with the arrays train, valid and test: the fixed
    binarisation of Larochelle & Murray (2011).
    """
    found = Path(os.environ.get("XHAT_DATA", ROOT.parent / "shared" / "data"))
    if not (found / "mnist").is_dir() or not (found / "binarized_mnist.npz").is_file():
        raise SystemExit(f"{found} holds no mnist/ and binarized_mnist.npz: name the folder that does with XHAT_DATA=…")
    return found


class Split:
    """Training, validation and test examples."""

    def __init__(self, train: object, valid: object, test: Tensor) -> None:
        self.train, self.valid, self.test = train, valid, test


def static() -> Split:
    """The fixed binarisation: 50,000, 10,000 and 10,000 images."""
    with np.load(folder() / "binarized_mnist.npz") as held:
        parts = [torch.from_numpy(held[name].astype(np.float32)).reshape(-1, *SHAPE) for name in ("train", "valid", "test")]
    return Split(*parts)


def dynamic() -> Split:
    """Every pixel drawn anew at every fetch of a training image; 59,000, and 1,000 that are watched; test drawn once."""
    data = xhat.load_data(str(folder() / "mnist"), binarize="dynamic", valid=1000)
    return Split(data.train, data.valid, data.test.tensor())


def mean_pixels() -> Tensor:
    """The mean of the training images, from 0 to 1: how often the dynamic binarisation makes each pixel 1."""
    return xhat.load_data(str(folder() / "mnist"), valid=1000).train.tensor().mean(0)


def grey() -> Split:
    """The 256 grey levels k/255: 54,000, 6,000 and 10,000 images."""
    data = xhat.load_data(str(folder() / "mnist"))
    return Split(data.train, data.valid, data.test.tensor())


DATA = {"static": static, "dynamic": dynamic, "grey": grey}
