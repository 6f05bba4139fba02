"""Pythae, by its own trainer."""

from __future__ import annotations

import tempfile

import torch
from benchmarks.speed.contender import Contender, Epoch
from benchmarks.speed.dataset import as_floats, load
from benchmarks.speed.networks import Decoder, Encoder, count
from benchmarks.speed.tasks import LEARNING_RATE, Task
from pythae.data.preprocessors import DataProcessor
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor


class PythaeEncoder(BaseEncoder):
    """The task's encoder, as Pythae wants it."""

    def __init__(self, task: Task) -> None:
        BaseEncoder.__init__(self)
        self.network = Encoder(task)

    def forward(self, x: Tensor) -> ModelOutput:
        mean, log_variance = self.network(x)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class PythaeDecoder(BaseDecoder):
    """The task's decoder; Pythae's own loss takes probabilities, so a sigmoid ends it."""

    def __init__(self, task: Task) -> None:
        BaseDecoder.__init__(self)
        self.task, self.network = task, Decoder(task)

    def forward(self, z: Tensor) -> ModelOutput:
        out = self.network(z)
        if self.task.likelihood == "bernoulli":
            out = out.sigmoid()
        return ModelOutput(reconstruction=out.reshape(-1, *self.task.shape))


class Pythae(Contender):
    """``BaseTrainer.train_step``: one epoch as the trainer runs it, progress bar included.

    Not included, in Pythae's favour: what its ``train`` does between epochs (validation, a deep copy of the best model) and
    the files that it writes.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        loss = "mse" if task.likelihood == "normal" else "bce"
        self.model = VAE(
            VAEConfig(input_dim=task.shape, latent_dim=task.latent, reconstruction_loss=loss),
            encoder=PythaeEncoder(task),
            decoder=PythaeDecoder(task),
        )
        processor = DataProcessor()
        data = processor.to_dataset(processor.process_data(as_floats(load(task))))
        self.folder = tempfile.TemporaryDirectory()
        settings = BaseTrainerConfig(
            output_dir=self.folder.name,
            learning_rate=LEARNING_RATE,
            per_device_train_batch_size=task.batch,
            optimizer_cls="Adam",
            no_cuda=task.device == "cpu",
        )
        self.trainer = BaseTrainer(self.model, train_dataset=data, training_config=settings)
        self.trainer.prepare_training()
        self.number = 0

    def epoch(self) -> Epoch:
        self.number += 1
        loss = self.trainer.train_step(self.number)
        self.trainer.callback_handler.on_epoch_end(self.trainer.training_config)  # closes the progress bar
        return Epoch(len(self.trainer.train_loader), float(loss))

    def parameters(self) -> int:
        return count(self.model)

    def wait(self) -> None:
        if self.task.device == "cuda":
            torch.cuda.synchronize()
