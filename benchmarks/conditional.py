"""A VAE that is conditioned on the class: do its samples look like the class that was asked for, and what is the class worth?

``python benchmarks/conditional.py /path/to/mnist`` trains a VAE on binarised MNIST under its labels, 20 epochs, and a classifier
on the same images; it writes ``conditional.json`` beside itself. About seven minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.machine import processor
from torch import Tensor, nn
from torch.nn import functional as F

import xhat
from xhat.data import Examples
from xhat.evaluation.classes import class_gain
from xhat.evaluation.result import measure

CLASSES, DRAWN = 10, 1000  # of each class
EPOCHS = 20


def under_labels(x: Examples) -> Examples:
    """The examples, conditioned on their labels."""
    assert x.labels is not None
    condition = F.one_hot(x.labels, CLASSES).float()
    return Examples(x.storage, x.labels, scale=x.scale, binarize=x.binarize, condition=condition)


def classifier(train: Examples, test: Examples, epochs: int) -> tuple[nn.Module, float]:
    """A convolutional classifier of binarised images, and the share of the test images that it reads rightly."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, CLASSES)),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for epoch in range(epochs):
        for rows in train.order(epoch).split(128):
            loss = F.cross_entropy(network(train[rows]), train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()
    return network, right(network, test.tensor(), test.labels)


@torch.no_grad()
def right(network: nn.Module, x: Tensor, labels: Tensor) -> float:
    """The share of images that are read as their label."""
    return float(torch.cat([network(part).argmax(1) for part in x.split(1000)]).eq(labels).double().mean())


def main() -> None:
    """Train, draw, read, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mnist", type=Path, help="the folder of MNIST's four files")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    data = xhat.load_data(given.mnist, binarize="dynamic")
    train, valid, test = (under_labels(part) for part in (data.train, data.valid, data.test))
    found: dict[str, Any] = {"processor": processor(), "epochs": given.epochs, "per_class": DRAWN}
    network, found["classifier_test_accuracy"] = classifier(train, test, 6)
    for name, prior_condition in (("prior N(0, I)", False), ("prior of the class", True)):
        torch.manual_seed(0)
        model = xhat.build(
            "vae",
            data.shape,
            hidden=[500, 500],
            latent=5,  # a wide code without a prior of the class learns the class again, and samples mix the two
            likelihood="bernoulli",
            condition={"label": CLASSES},
            prior_condition=prior_condition,
        )
        began = time.perf_counter()
        xhat.fit(model, train, valid=valid, epochs=given.epochs, seed=0, schedule="cosine")
        row: dict[str, Any] = {"seconds": round(time.perf_counter() - began, 1)}
        labels = torch.arange(CLASSES).repeat_interleave(DRAWN)
        torch.manual_seed(1)
        for what, sample in (("draws_read_as_their_class", True), ("means_read_as_their_class", False)):
            x = model.sample(len(labels), sample=sample, condition={"label": labels})
            row[what] = right(network, x, labels)
        evaluation = xhat.evaluate(model, test.subset(slice(1000)), samples=200)
        row["log_px_given_c"] = evaluation.log_likelihood._asdict()
        torch.manual_seed(2)
        gain = measure(class_gain(model, test.subset(slice(1000)).fixed(0), 200))
        row["gain"] = gain._asdict()
        found[name] = row
        print(name, json.dumps(row), flush=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
