"""JAX with optax: a whole epoch is one compiled program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from benchmarks.speed.contender import Contender, Epoch
from benchmarks.speed.dataset import as_floats, load
from benchmarks.speed.tasks import LEARNING_RATE, Task
from jax import lax, random


def dense(key, size_in: int, size_out: int) -> dict:
    bound = size_in**-0.5
    weight, bias = random.split(key)
    return {
        "w": random.uniform(weight, (size_in, size_out), jnp.float32, -bound, bound),
        "b": random.uniform(bias, (size_out,), jnp.float32, -bound, bound),
    }


def mlp(key, sizes: list[int]) -> list:
    return [dense(k, a, b) for k, a, b in zip(random.split(key, len(sizes) - 1), sizes[:-1], sizes[1:], strict=True)]


def apply(layers: list, x):
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def loss(parameters: dict, key, x):
    """The mean negative ELBO of a batch."""
    mean, log_variance = jnp.split(apply(parameters["encoder"], x), 2, axis=-1)
    z = mean + jnp.exp(0.5 * log_variance) * random.normal(key, mean.shape)
    kl = -0.5 * jnp.sum(1 + log_variance - mean**2 - jnp.exp(log_variance), axis=-1)
    logits = apply(parameters["decoder"], z)
    return jnp.mean(jnp.sum(jnp.logaddexp(0.0, logits) - x * logits, axis=-1) + kl)


class Jax(Contender):
    """A permutation, then ``lax.scan`` over the epoch's batches, jitted; parameters are donated, so updated in place."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.x = jnp.asarray(as_floats(load(task)).reshape(task.examples, -1))
        self.steps = task.examples // task.batch
        self.key, up, down = random.split(random.key(0), 3)
        sizes = [task.features, *task.hidden]
        self.state = {
            "encoder": mlp(up, [*sizes, 2 * task.latent]),
            "decoder": mlp(down, [task.latent, *sizes[::-1]]),
        }
        optimizer = optax.adam(LEARNING_RATE)
        self.moments = optimizer.init(self.state)

        def run(parameters, moments, x, key):
            def step(carry, rows_and_key):
                parameters, moments = carry
                rows, key = rows_and_key
                value, gradient = jax.value_and_grad(loss)(parameters, key, x[rows])
                updates, moments = optimizer.update(gradient, moments, parameters)
                return (optax.apply_updates(parameters, updates), moments), value

            shuffle, noise = random.split(key)
            rows = random.permutation(shuffle, task.examples)[: self.steps * task.batch].reshape(self.steps, task.batch)
            (parameters, moments), values = lax.scan(step, (parameters, moments), (rows, random.split(noise, self.steps)))
            return parameters, moments, values.mean()

        self.run = jax.jit(run, donate_argnums=(0, 1))

    def epoch(self) -> Epoch:
        self.key, key = random.split(self.key)
        self.state, self.moments, value = self.run(self.state, self.moments, self.x, key)
        return Epoch(self.steps, float(value))  # the float waits for the program's end

    def parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.state))
