"""What a conditional asks of a network, and how a network that knows nothing of xhat is understood."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence

import torch
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
    """A body: maps ``(N, *in_shape)`` to features and makes heads for them.

    Attributes:
        in_shape: event shape of what it takes.
        condition: C, how many numbers of a condition it takes beside that, as ``forward(x, condition=…)`` with ``(N, C)``; 0 for
            none.
        masked: whether it takes which values were observed, too, as ``forward(x, observed=…)`` of x's shape; all of them unless
            given.
    """

    in_shape: tuple[int, ...]
    condition: int = 0
    masked: bool = False

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


def beside(network: nn.Module, condition: Tensor | None, observed: Tensor | None) -> dict[str, Tensor]:
    """Of what is known beside a network's input, what the network takes, as keywords of its call.

    A network of one's own says what it takes by attributes ``condition`` and ``masked``, as a :class:`Network` does.

    Raises:
        ConfigError: it takes a condition, and there is none, or one of another size.
    """
    given: dict[str, Tensor] = {}
    size = condition_size(network)
    if size and (condition is None or condition.shape[-1] != size):
        was = "none was given" if condition is None else f"it had {condition.shape[-1]}"
        raise ConfigError(f"{type(network).__name__} takes a condition of {size} numbers, but {was}: give condition=…")
    if size and condition is not None:
        given["condition"] = condition
    if observed is not None and getattr(network, "masked", False) is True:
        given["observed"] = observed
    return given


def condition_size(network: nn.Module) -> int:
    """How many numbers of a condition a network takes; 0 for none."""
    size = getattr(network, "condition", 0)
    return size if isinstance(size, int) and not isinstance(size, bool) else 0


def check_condition(condition: object) -> int:
    """A number of conditions: 0 for none, or a whole number.

    Raises:
        ConfigError: it is neither.
    """
    if condition != 0:
        whole_number("condition", condition)
    return int(condition)  # type: ignore[call-overload]


def joined(flat: Tensor, *others: Tensor | None) -> Tensor:
    """Flat inputs ``(N, n)`` with what is known beside them, one after the other."""
    parts = [flat, *(other.flatten(1).to(flat.dtype) for other in others if other is not None)]
    return torch.cat(parts, 1) if len(parts) > 1 else flat


def with_mask(x: Tensor, observed: Tensor | None) -> Tensor:
    """Inputs and which of them were observed, in twice as many channels, ``(N, 2n, …)``."""
    mask = torch.ones_like(x) if observed is None else observed.to(x.dtype)
    return torch.cat([x, mask], 1)


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
