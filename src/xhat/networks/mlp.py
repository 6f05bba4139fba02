"""Fully connected networks, and the tying of a decoder's weights to its encoder's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xhat.errors import ConfigError
from xhat.networks.base import LinearHead, Network, activation_of, as_shape, check_condition, joined, with_mask


class MLP(Network):
    r"""Fully connected layers, :math:`h_i = a(W_i h_{i-1} + b_i)`; without hidden sizes it passes its input on, flat.

    Args:
        in_shape: event shape of the input; it is flattened.
        hidden: sizes of the hidden layers, from the input on; may be empty (the head then makes a linear map).
        activation: a name of ``xhat.networks.base.ACTIVATIONS``; or ``"gated"``, for layers
            :math:`h_i = (W_i h_{i-1} + b_i) \odot \mathrm{sigmoid}(V_i h_{i-1} + c_i)`.
        condition: C, how many numbers of a condition join the input; 0 for none.
        masked: whether which values were observed joins it, too.

    Shapes: ``(N, *in_shape)`` to ``(N, hidden[-1])``.

    Raises:
        ConfigError: a size below 1, or an unknown activation.

    Source: gated layers: Dauphin et al. (2017).

    >>> MLP(784, [400, 200])(torch.zeros(5, 784)).shape
    torch.Size([5, 200])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        hidden: Sequence[int] = (),
        activation: str = "relu",
        condition: int = 0,
        masked: bool = False,
    ) -> None:
        super().__init__()
        self.in_shape = as_shape(in_shape, "in_shape")
        self.condition, self.masked = check_condition(condition), masked
        taken = math.prod(self.in_shape) * (2 if masked else 1) + self.condition
        sizes = [taken, *(as_shape(size, "each hidden size")[0] for size in hidden)]
        self.out_features = sizes[-1]
        self.gated = activation == "gated"  # both products of a layer at once
        self.layers = nn.ModuleList(nn.Linear(a, 2 * b if self.gated else b) for a, b in pairwise(sizes))
        self.activation = nn.GLU() if self.gated else activation_of(activation)

    def forward(self, x: Tensor, condition: Tensor | None = None, observed: Tensor | None = None) -> Tensor:
        h = x.flatten(1)
        if self.masked:
            h = with_mask(h, None if observed is None else observed.flatten(1))
        h = joined(h, condition)
        for layer in self.layers:
            h = self.activation(layer(h))
        return h

    def head(self, shape: tuple[int, ...]) -> nn.Module:
        return LinearHead(self.out_features, shape)


class TransposedLinear(nn.Module):
    r"""A linear layer :math:`W^\top h + c` whose weight belongs to another layer; only the bias is its own."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        # In a tuple, so that the weight is registered, counted and saved once: where it lives.
        self._source = (source,)
        bound = 1 / math.sqrt(source.out_features)
        self.bias = nn.Parameter(torch.empty(source.in_features).uniform_(-bound, bound))

    def forward(self, h: Tensor) -> Tensor:
        return F.linear(h, self._source[0].weight.t(), self.bias)


def linears(network: nn.Module, head: nn.Module) -> list[nn.Linear]:
    """The linear layers of an MLP and its head, in the order in which data meet them.

    Raises:
        ConfigError: the network is not an :class:`MLP` with a linear head.
    """
    if not isinstance(network, MLP) or not isinstance(head, LinearHead):
        raise ConfigError("only an MLP with a linear head can be taken layer by layer: use network='mlp'")
    if network.gated:
        raise ConfigError("a gated layer has two products and cannot be tied or taken one by one: use another activation")
    layers = [*network.layers, head.linear]
    if not all(isinstance(layer, nn.Linear) for layer in layers):
        raise ConfigError("the layers of this MLP are tied to another's already, so they cannot be taken one by one")
    return layers


def tie(encoder: tuple[nn.Module, nn.Module], decoder: tuple[nn.Module, nn.Module]) -> None:
    """Make a decoder use its encoder's weights, transposed, in mirrored order. Each is ``(MLP, head)``; biases stay apart.

    Raises:
        ConfigError: the two are not mirror images of each other, or not MLPs.
    """
    up, down = linears(*encoder), linears(*decoder)
    if getattr(encoder[0], "condition", 0) or getattr(encoder[0], "masked", False):
        raise ConfigError("tied weights mirror the whole encoder, and a condition or a mask has no mirror image: use tied=False")
    if [(a.in_features, a.out_features) for a in up] != [(b.out_features, b.in_features) for b in reversed(down)]:
        raise ConfigError(
            "tied weights need a decoder that mirrors its encoder: the encoder's layers are "
            f"{[(a.in_features, a.out_features) for a in up]}, the decoder's {[(b.in_features, b.out_features) for b in down]}"
        )
    tied = [TransposedLinear(layer) for layer in reversed(up)]
    body, head = decoder
    body.layers = nn.ModuleList(tied[:-1])
    head.linear = tied[-1]
