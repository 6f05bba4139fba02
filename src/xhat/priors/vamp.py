"""The VampPrior: a mixture of the model's own posteriors, at inputs that are learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, MixtureSameFamily
from torch.nn import functional as F

from xhat.conditionals import Headed, event_of
from xhat.data import Examples
from xhat.data.permutation import Permutation
from xhat.errors import ConfigError, whole_number
from xhat.networks.base import as_shape, check_condition
from xhat.parts import Part
from xhat.priors.base import need_condition
from xhat.priors.mixture import Mixed

NOISE = 0.01  # of the examples' standard deviation: no two pseudo-inputs start alike
INSIDE = 0.01  # of the range, from each bound: on a bound the derivative is 0, and binary examples lie on nothing else


class VampPrior(Part, nn.Module):
    r"""A mixture of variational posteriors ("variational mixture of posteriors"),

    .. math:: p(z) = \frac1K \sum_{k=1}^K q(z \mid u_k),

    whose pseudo-inputs :math:`u_k` are trained with the model. q is the model's own posterior, which the prior meets when the
    model is put together; so the encoder is trained through the prior, too. Training starts the pseudo-inputs at examples drawn
    at random, a hundredth of their standard deviation aside. The KL to it has no closed form and is sampled.

    Args:
        event: shape of the latent.
        inputs: shape of one example.
        components: K.
        bounds: the range of the examples, such as (0, 1), outside of which no pseudo-input goes (a hard tanh); None: no bounds.
        beside: C, how many numbers of a condition the posterior takes; each pseudo-input then has a condition of its own, that of
            the example at which it starts. Leave it out with ``condition``.
        condition: C, if the prior itself is to depend on the condition: :math:`p(z|c) = \frac1K \sum_k q(z \mid u_k, c)`.

    Raises:
        ConfigError: bounds in the wrong order; a posterior of other shapes, or one without a density; called before a model has
            put it together with its posterior.

    Source: Tomczak & Welling (2018).

    >>> from xhat import VAE, conditionals
    >>> from xhat.networks import MLP
    >>> model = VAE(
    ...     prior=VampPrior(2, inputs=6, components=20, bounds=(0, 1)),
    ...     posterior=conditionals.Normal(MLP(6, [8]), event=2),
    ...     likelihood=conditionals.Bernoulli(MLP(2, [8]), event=6),
    ... )
    >>> model.prior().log_prob(torch.zeros(5, 2)).shape, model.sample(3).shape
    (torch.Size([5]), torch.Size([3, 6]))
    """

    beside: Tensor

    def __init__(
        self,
        event: int | Sequence[int],
        inputs: int | Sequence[int],
        components: int = 500,
        bounds: Sequence[float] | None = None,
        beside: int = 0,
        condition: int = 0,
    ) -> None:
        super().__init__()
        self.event = as_shape(event, "event")
        self.in_shape = as_shape(inputs, "inputs")
        whole_number("components", components)
        self.components = components
        if bounds is not None and (len(bounds) != 2 or not -math.inf < bounds[0] < bounds[1] < math.inf):
            raise ConfigError(f"bounds must be two finite numbers, the lower one first, such as (0, 1), were {bounds!r}")
        self.bounds = None if bounds is None else (float(bounds[0]), float(bounds[1]))
        shape = (components, *self.in_shape)
        self.condition = check_condition(condition)
        if check_condition(beside) and self.condition:
            raise ConfigError("the pseudo-inputs of a VampPrior have conditions of their own, or the one given: leave beside out")
        if beside:
            self.register_buffer("beside", torch.full((components, beside), 1 / beside))
        self.inputs = nn.Parameter(torch.randn(shape) if self.bounds is None else self._within(torch.rand(shape)))
        # In a tuple: the weights are the model's, and are listed there.
        self._posterior: tuple[nn.Module, ...] = ()

    def _within(self, shares: Tensor) -> Tensor:
        """Points between the bounds, and not on them, from shares of the way in [0, 1]."""
        assert self.bounds is not None
        low, high = self.bounds
        return low + (high - low) * (INSIDE + (1 - 2 * INSIDE) * shares)

    def meet(self, prior: nn.Module | None, posterior: nn.Module) -> None:
        """Take the model's posterior for the components; a model does this when it is put together.

        Raises:
            ConfigError: it takes contexts, or draws events, of other shapes.
        """
        event = event_of(posterior, "posterior")
        if event != self.event:
            raise ConfigError(f"VampPrior: its event is {self.event}, the posterior's {event}: they must be the same")
        if isinstance(posterior, Headed) and posterior.context_shape not in (None, self.in_shape):
            raise ConfigError(
                f"VampPrior: its inputs must have the shape of the examples, {posterior.context_shape}, were {self.in_shape}"
            )
        self._posterior = (posterior,)

    def prepare(self, examples: Examples) -> None:
        """Start the pseudo-inputs at training examples, drawn without replacement while there are any; training does this once.

        Draws come from torch's global generator.
        """
        shuffled = Permutation(len(examples), seed=int(torch.randint(2**62, ())))
        which = shuffled[: self.components].sort().values  # of a stream in its order
        which = which[torch.arange(self.components) % len(which)]
        with torch.no_grad():
            batches = [examples.batch(which[i : i + 100]) for i in range(0, len(which), 100)]
            found = torch.cat([batch.x.cpu() for batch in batches])
            if "beside" in self._buffers:
                self.beside.copy_(torch.cat([_need(batch.condition).cpu() for batch in batches]))
            if tuple(found.shape[1:]) != self.in_shape:
                raise ConfigError(
                    f"VampPrior: its inputs must have the shape of the examples, {tuple(found.shape[1:])}, were {self.in_shape}"
                )
            found = found + NOISE * found.std(0, correction=0).mean() * torch.randn(found.shape)
            if self.bounds is not None:
                low, high = self.bounds
                found = self._within(((found - low) / (high - low)).clamp(0, 1))
            self.inputs.copy_(found)

    @property
    def pseudo_inputs(self) -> Tensor:
        """u, ``(K, *inputs)``, within the bounds."""
        return self.inputs if self.bounds is None else F.hardtanh(self.inputs, *self.bounds)

    def forward(self, condition: Tensor | None = None) -> Distribution:
        if not self._posterior:
            raise ConfigError(
                "VampPrior is made of a model's posterior and has met none: give it to a model, such as "
                "xhat.VAE(prior=…, posterior=…, likelihood=…), or call meet(prior, posterior)"
            )
        posterior, inputs = self._posterior[0], self.pseudo_inputs
        if self.condition:
            rows = need_condition(condition, self.condition, "VampPrior").unsqueeze(-2)
            under = inputs.expand(*rows.shape[:-2], *inputs.shape)
            weights = Categorical(logits=inputs.new_zeros(*rows.shape[:-2], self.components), validate_args=False)
            return MixtureSameFamily(weights, posterior(under, condition=rows), validate_args=False)
        known = {"condition": self.beside} if "beside" in self._buffers else {}

        def at(which: Tensor | None) -> Distribution:
            some: Any = slice(None) if which is None else which
            law: Distribution = posterior(inputs[some], **{name: rows[some] for name, rows in known.items()})
            return law

        return Mixed(inputs.new_zeros(self.components), at)


def _need(condition: Tensor | None) -> Tensor:
    if condition is None:
        raise ConfigError("VampPrior: its pseudo-inputs need the conditions of the examples that they start at, which have none")
    return condition
