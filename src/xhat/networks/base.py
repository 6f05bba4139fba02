"""What a conditional asks of a network, and how a network that knows nothing of xhat is understood."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence

from torch import Tensor, nn

from xhat.errors import ConfigError, whole_number
from xhat.parts import Part

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}


def activation_of(name: str) -> nn.Module:
    """A fresh activation by name; a leaky ReLU's slope below 0 may follow a colon.

    Raises:
        ConfigError: the name is not one of :data:`ACTIVATIONS`, or what follows the colon is no slope.

    >>> activation_of("leaky-relu:0.3")
    LeakyReLU(negative_slope=0.3)
    """
    kind, colon, amount = name.partition(":") if isinstance(name, str) else (name, "", "")
    if kind not in ACTIVATIONS:
        raise ConfigError(f"activation must be one of {', '.join(ACTIVATIONS)}, was {name!r}")
    if not colon:
        return ACTIVATIONS[kind]()
    if kind != "leaky-relu":
        raise ConfigError(f"only leaky-relu has a slope, as in 'leaky-relu:0.3', but the activation was {name!r}")
    try:
        slope = float(amount)
    except ValueError as error:
        raise ConfigError(f"the activation {name!r} must have a number after the colon: write 'leaky-relu:0.3'") from error
    if not 0 <= slope <= 1:
        raise ConfigError(f"the slope of leaky-relu must be from 0 to 1, was {amount}: write 'leaky-relu:0.3'")
    return nn.LeakyReLU(slope)


def as_shape(shape: int | Sequence[int], what: str) -> tuple[int, ...]:
    """An event shape from an int or a sequence; every size must be at least 1."""
    sizes: tuple[object, ...] = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else (shape,)
    if not sizes:
        raise ConfigError(f"{what} must be at least one size, was {shape!r}")
    for size in sizes:
        whole_number(what, size)
    return tuple(int(size) for size in sizes)  # type: ignore[call-overload]


class Network(Part, nn.Module, abc.ABC):
    """A body: maps ``(N, *in_shape)`` to features and makes heads for them."""

    in_shape: tuple[int, ...]

    @abc.abstractmethod
    def head(self, shape: tuple[int, ...]) -> nn.Module:
        """A new layer that maps this body's features to ``(N, *shape)``."""


class LinearHead(nn.Module):
    """A linear layer from flat features to a shape."""

    def __init__(self, features: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.linear: nn.Module = nn.Linear(features, math.prod(shape))

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.flatten(1)).unflatten(1, self.shape)


def head_of(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The layer that maps a network's features to ``(N, *shape)``; also for networks that are not xhat's.

    A foreign network is asked for ``out_features``; a ``Sequential`` that has none, from its end, for the last layer with one.

    Raises:
        ConfigError: nothing says how many features come out.
    """
    make = getattr(network, "head", None)
    if callable(make) and not isinstance(make, nn.Module):  # a layer of that name is no method
        head: nn.Module = make(shape)
        return head
    layers = [network, *reversed(list(network.modules()))] if isinstance(network, nn.Sequential) else [network]
    for module in layers:
        features = getattr(module, "out_features", None)
        if isinstance(features, int):
            return LinearHead(features, shape)
    raise ConfigError(
        f"{type(network).__name__} does not say how many features it puts out: give it an attribute out_features, "
        "or a method head(shape) that returns its last layer"
    )


def in_shape_of(network: nn.Module) -> tuple[int, ...] | None:
    """The event shape that a network takes, or None when it does not say (it then gets whatever the model holds)."""
    shape = getattr(network, "in_shape", None)
    if shape is not None:
        return tuple(shape)
    first = network
    while isinstance(first, nn.Sequential) and len(first):
        first = first[0]
    if isinstance(first, nn.Linear):
        return (first.in_features,)
    return None
