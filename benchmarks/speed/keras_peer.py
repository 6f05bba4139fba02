"""Keras, as its guide "Making new layers and models via subclassing" builds a variational autoencoder for any backend."""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # before the import

import keras
import numpy as np
from benchmarks.speed.contender import Contender, Epoch
from benchmarks.speed.dataset import as_floats, load
from benchmarks.speed.tasks import LEARNING_RATE, Task
from keras import layers, ops


class Sampling(layers.Layer):
    """Draws z from its mean and log variance."""

    def __init__(self) -> None:
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, inputs):
        mean, log_variance = inputs
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_variance) * noise


class Model(keras.Model):
    """Encoder, draw, decoder; the divergence is added to the loss, as the guide does."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.up = [layers.Dense(size, activation="relu") for size in task.hidden]
        self.mean, self.log_variance = layers.Dense(task.latent), layers.Dense(task.latent)
        self.sampling = Sampling()
        self.down = [layers.Dense(size, activation="relu") for size in task.hidden[::-1]]
        self.logits = layers.Dense(task.features)

    def call(self, x):
        for layer in self.up:
            x = layer(x)
        mean, log_variance = self.mean(x), self.log_variance(x)
        z = self.sampling((mean, log_variance))
        kl = -0.5 * ops.sum(1 + log_variance - ops.square(mean) - ops.exp(log_variance), axis=-1)
        self.add_loss(ops.mean(kl))
        for layer in self.down:
            z = layer(z)
        return self.logits(z)


def cross_entropy(x, logits):
    """Summed over the pixels, as the bound has it."""
    return ops.sum(ops.binary_crossentropy(x, logits, from_logits=True), axis=-1)


class Keras(Contender):
    """``compile`` and ``fit``, an epoch at a time, on arrays; no validation, no printing."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.x = np.ascontiguousarray(as_floats(load(task)).reshape(task.examples, -1))
        self.x = self.x[: task.examples // task.batch * task.batch]
        self.model = Model(task)
        self.model.compile(optimizer=keras.optimizers.Adam(learning_rate=LEARNING_RATE), loss=cross_entropy)

    def epoch(self) -> Epoch:
        history = self.model.fit(self.x, self.x, epochs=1, batch_size=self.task.batch, shuffle=True, verbose=0)
        return Epoch(len(self.x) // self.task.batch, float(history.history["loss"][0]))

    def parameters(self) -> int:
        return int(self.model.count_params())
