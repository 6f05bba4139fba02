"""Convolutional encoder and decoder for any number of channels and any height and width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from xhat.errors import ConfigError
from xhat.networks.base import LinearHead, Network, activation_of, as_shape, check_condition, joined, with_mask


def _halvings(shape: Sequence[int], levels: int) -> list[tuple[int, int]]:
    """Height and width at each level: a convolution of stride 2 turns n into ceil(n / 2)."""
    sizes = [(int(shape[1]), int(shape[2]))]
    for _ in range(levels):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def _image_shape(shape: Sequence[int], what: str) -> tuple[int, ...]:
    sizes = as_shape(shape, what)
    if len(sizes) != 3:
        raise ConfigError(f"{what} must be (channels, height, width), was {tuple(shape)!r}: use network='mlp' for tables")
    return sizes


def laid_out(x: Tensor) -> Tensor:
    """Images as a device's convolutions in reduced precision want them: the channels of a pixel side by side.

    Tensor cores take them so, and else each convolution would turn its images there and back.
    """
    if x.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        return x.contiguous(memory_format=torch.channels_last)
    return x


class _Image(nn.Module):
    """From features to images, ``(N, *shape)``."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, features: Tensor) -> Tensor:
        return laid_out(features.unflatten(1, self.shape))


class ConvEncoder(Network):
    """Convolutions of stride 2, one a level, then one fully connected layer.

    Args:
        in_shape: ``(channels, height, width)``, any sizes.
        channels: feature maps after each level; each level halves height and width, rounding up.
        hidden: size of the fully connected layer.
        activation: a name of ``xhat.networks.base.ACTIVATIONS``.
        condition: C, how many numbers of a condition join the input of the fully connected layer; 0 for none.
        masked: whether which values were observed comes as further channels.

    Shapes: ``(N, *in_shape)`` to ``(N, hidden)``.

    Raises:
        ConfigError: the shape is not that of an image, or a size is below 1.

    >>> import torch
    >>> ConvEncoder((3, 100, 75), [8, 16], hidden=32)(torch.zeros(2, 3, 100, 75)).shape
    torch.Size([2, 32])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        hidden: int = 256,
        activation: str = "relu",
        condition: int = 0,
        masked: bool = False,
    ) -> None:
        super().__init__()
        self.in_shape = _image_shape(in_shape, "in_shape")
        self.condition, self.masked = check_condition(condition), masked
        self.out_features = hidden
        maps = [self.in_shape[0] * (2 if masked else 1), *(as_shape(size, "each number of channels")[0] for size in channels)]
        height, width = _halvings(self.in_shape, len(channels))[-1]
        layers: list[nn.Module] = []
        for before, after in pairwise(maps):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), activation_of(activation)]
        layers += [nn.Flatten(1), nn.Linear(maps[-1] * height * width + self.condition, hidden), activation_of(activation)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, condition: Tensor | None = None, observed: Tensor | None = None) -> Tensor:
        return _through(self.layers, laid_out(with_mask(x, observed) if self.masked else x), condition)

    def head(self, shape: tuple[int, ...]) -> nn.Module:
        return LinearHead(self.out_features, shape)


def _through(layers: nn.Sequential, h: Tensor, condition: Tensor | None) -> Tensor:
    """Through layers, one of which flattens: there the condition joins."""
    for layer in layers:
        h = layer(h)
        if isinstance(layer, nn.Flatten):
            h = joined(h, condition)
    return h


class _UpHead(nn.Module):
    """The last doubling: from the features at half size to ``(N, parameters, channels, height, width)``."""

    def __init__(self, features: int, shape: tuple[int, ...], padding: tuple[int, int]) -> None:
        super().__init__()
        self.shape = shape[:2]
        self.convolution = nn.ConvTranspose2d(features, math.prod(self.shape), 3, 2, 1, output_padding=padding)

    def forward(self, features: Tensor) -> Tensor:
        return self.convolution(features).unflatten(1, self.shape)


class ConvDecoder(Network):
    """The mirror image of :class:`ConvEncoder`: two fully connected layers, then transposed convolutions that double.

    The last doubling is the head, sized by the law, and gives exactly the height and width of ``shape``.

    Args:
        in_shape: the latent event shape; it is flattened.
        shape: ``(channels, height, width)`` of what comes out.
        channels: feature maps from the smallest level up.
        hidden: size of the first fully connected layer.
        activation: a name of ``xhat.networks.base.ACTIVATIONS``.
        condition: C, how many numbers of a condition join the latent; 0 for none.

    Raises:
        ConfigError: the shape is not that of an image; a head of another size is asked for.

    >>> import torch
    >>> decoder = ConvDecoder(10, (3, 100, 75), [16, 8], hidden=32)
    >>> decoder.head((2, 3, 100, 75))(decoder(torch.zeros(4, 10))).shape
    torch.Size([4, 2, 3, 100, 75])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        hidden: int = 256,
        activation: str = "relu",
        condition: int = 0,
    ) -> None:
        super().__init__()
        self.in_shape = as_shape(in_shape, "in_shape")
        self.condition = check_condition(condition)
        self.shape = _image_shape(shape, "shape")
        maps = [as_shape(size, "each number of channels")[0] for size in channels]
        if not maps:
            raise ConfigError("channels must name at least one level, was empty: use network='mlp' instead")
        sizes = _halvings(self.shape, len(maps))[::-1]
        layers: list[nn.Module] = [
            nn.Flatten(1),
            nn.Linear(math.prod(self.in_shape) + self.condition, hidden),
            activation_of(activation),
            nn.Linear(hidden, maps[0] * math.prod(sizes[0])),
            activation_of(activation),
            _Image((maps[0], *sizes[0])),
        ]
        paddings = [(b[0] - 2 * a[0] + 1, b[1] - 2 * a[1] + 1) for a, b in pairwise(sizes)]
        for (before, after), padding in zip(pairwise(maps), paddings, strict=False):
            layers += [nn.ConvTranspose2d(before, after, 3, 2, 1, output_padding=padding), activation_of(activation)]
        self.layers = nn.Sequential(*layers)
        self._last = (maps[-1], paddings[-1])

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return _through(self.layers, z, condition)

    def head(self, shape: tuple[int, ...]) -> nn.Module:
        if tuple(shape[1:]) != self.shape:
            raise ConfigError(
                f"this decoder draws events of shape {self.shape}, but the law asks for parameters of shape {shape}"
            )
        features, padding = self._last
        return _UpHead(features, tuple(shape), padding)
