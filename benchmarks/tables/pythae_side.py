"""Pythae run beside xhat: the same networks, data, budget and selection; its weights are then measured by our own estimator."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from benchmarks.tables.datasets import SHAPE
from benchmarks.tables.models import one_layer
from torch import Tensor, nn

import xhat

SIZE = 28 * 28


def peer(hidden: int, latent: int) -> Any:
    """Pythae's VAE with one hidden layer each way, Bernoulli likelihood."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            BaseEncoder.__init__(self)
            self.body, self.head = nn.Linear(SIZE, hidden), nn.Linear(hidden, 2 * latent)

        def forward(self, x: Tensor) -> Any:
            mean, log_variance = self.head(self.body(x.flatten(1)).relu()).chunk(2, dim=-1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            BaseDecoder.__init__(self)
            self.body, self.head = nn.Linear(latent, hidden), nn.Linear(hidden, SIZE)

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.head(self.body(z).relu()).sigmoid().reshape(-1, *SHAPE))

    config = VAEConfig(input_dim=SHAPE, latent_dim=latent, reconstruction_loss="bce")
    return VAE(config, encoder=Encoder(), decoder=Decoder())


def _pairs(own: xhat.Model, theirs: Any) -> list[tuple[Any, Any]]:
    """The linear layers that correspond."""
    return [
        (own.posterior.network.layers[0], theirs.encoder.body),
        (own.posterior.head.linear, theirs.encoder.head),
        (own.likelihood.network.layers[0], theirs.decoder.body),
        (own.likelihood.head.linear, theirs.decoder.head),
    ]


def _copy(source: Any, target: Any) -> None:
    target.weight.copy_(source.weight)
    target.bias.copy_(source.bias)


def _scale(head: nn.Linear, latent: int, factor: float) -> None:
    head.weight[latent:] *= factor
    head.bias[latent:] *= factor


@torch.no_grad()
def as_xhat(theirs: Any, hidden: int, latent: int) -> xhat.VAE:
    """The same model of xhat's parts: σ = exp(log variance / 2)."""
    own = one_layer((hidden,), latent, "relu")
    for mine, foreign in _pairs(own, theirs):
        _copy(foreign, mine)
    _scale(own.posterior.head.linear, latent, 0.5)
    return own


@torch.no_grad()
def from_xhat(own: xhat.Model, hidden: int, latent: int) -> Any:
    """Pythae's model with the weights of ours."""
    theirs = peer(hidden, latent)
    for mine, foreign in _pairs(own, theirs):
        _copy(mine, foreign)
    _scale(theirs.encoder.head, latent, 2.0)
    return theirs.eval()


def trained(hidden: int, latent: int, settings: Mapping[str, Any], split: Any, seed: int) -> xhat.VAE:
    """Train by Pythae's own pipeline, by the settings of ``xhat.fit``; it too keeps the weights best on validation."""
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    from xhat.training.settings import drops_of

    torch.manual_seed(seed)
    model = peer(hidden, latent)
    milestones, factor = drops_of(settings["schedule"])
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=settings["epochs"],
            learning_rate=settings["lr"],
            per_device_train_batch_size=settings["batch_size"],
            per_device_eval_batch_size=1000,
            scheduler_cls="MultiStepLR",
            scheduler_params={"milestones": milestones, "gamma": factor},
            seed=seed,
            no_cuda=not torch.cuda.is_available(),
        )
        data = [BaseDataset(data=x, labels=torch.zeros(len(x))) for x in (split.train, split.valid)]
        trainer = BaseTrainer(model, train_dataset=data[0], eval_dataset=data[1], training_config=config)
        trainer.train()
    return as_xhat(trainer._best_model.cpu(), hidden, latent)
