"""Corruptions: what a denoising autoencoder undoes.

A corruption is a module whose ``forward(x)`` draws a damaged x̃ from torch's global generator; the autoencoder is then
trained to give x back from x̃.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn

from xhat.errors import ConfigError
from xhat.parts import Part


class Corruption(nn.Module, Part, ABC):
    """A law q(x̃|x) to draw from: ``forward(x)`` returns x̃, of the same shape as ``x``."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """One draw of x̃ for every example of ``x``, shape ``(B, *event)``; ``x`` itself is left as it was."""


@final
class Masking(Corruption):
    r"""Masking noise: every entry is lost with the same probability, independently of the others.

    .. math:: \tilde x_i = v \text{ with probability } r, \text{ else } x_i

    Args:
        rate: r, in [0, 1].
        value: v, what stands in the place of a lost entry.
        pixelwise: lose all channels of a pixel together; ``x`` is then ``(B, channels, ...)``.

    Raises:
        ConfigError: the rate lies outside [0, 1], or ``pixelwise`` meets an ``x`` without a channel axis.

    Source: Vincent, Larochelle, Bengio & Manzagol (2008), "Extracting and composing robust features with denoising
    autoencoders".

    >>> _ = torch.manual_seed(0)
    >>> Masking(0.5)(torch.ones(2, 4)).unique()
    tensor([0., 1.])
    """

    def __init__(self, rate: float = 0.5, value: float = 0.0, pixelwise: bool = False) -> None:
        super().__init__()
        self.rate = _checked_rate("Masking", rate)
        self.value = _checked_number("Masking", "value", value)
        self.pixelwise = pixelwise

    def forward(self, x: Tensor) -> Tensor:
        if not self.pixelwise:
            return torch.where(torch.rand_like(x) < self.rate, self.value, x)
        if x.dim() < 3:
            raise ConfigError(f"Masking(pixelwise=True) needs x of shape (B, channels, ...), not {tuple(x.shape)}: leave it out")
        return torch.where(torch.rand_like(x[:, :1]) < self.rate, self.value, x)

    def extra_repr(self) -> str:
        return f"rate={self.rate}, value={self.value}, pixelwise={self.pixelwise}"


@final
class NormalNoise(Corruption):
    r"""Additive isotropic normal noise.

    .. math:: \tilde x_i = x_i + \sigma \epsilon_i, \quad \epsilon_i \sim N(0, 1)

    Args:
        scale: σ, in the units of ``x``, at least 0.

    Raises:
        ConfigError: the scale is negative or not finite.

    Source: Vincent, Larochelle, Lajoie, Bengio & Manzagol (2010), "Stacked denoising autoencoders", section 3.3.

    >>> _ = torch.manual_seed(0)
    >>> NormalNoise(0.3)(torch.zeros(1000, 10)).std().round(decimals=1)
    tensor(0.3000)
    """

    def __init__(self, scale: float = 0.3) -> None:
        super().__init__()
        self.scale = _checked_number("NormalNoise", "scale", scale)
        if self.scale < 0:
            raise ConfigError(f"NormalNoise's scale must be at least 0, not {scale}: give a standard deviation")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.randn_like(x)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


@final
class SaltAndPepper(Corruption):
    r"""Salt-and-pepper noise: an entry is driven to one of the extremes, each as likely as the other.

    .. math:: \tilde x_i = \text{low or high with probability } r/2 \text{ each, else } x_i

    Args:
        rate: r, in [0, 1].
        low: the lower extreme (pepper).
        high: the upper extreme (salt).

    Raises:
        ConfigError: the rate lies outside [0, 1], or an extreme is not finite.

    Source: Vincent, Larochelle, Lajoie, Bengio & Manzagol (2010), "Stacked denoising autoencoders", section 3.3.

    >>> _ = torch.manual_seed(0)
    >>> SaltAndPepper(1.0)(torch.full((3, 4), 0.5)).unique()
    tensor([0., 1.])
    """

    def __init__(self, rate: float = 0.25, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.rate = _checked_rate("SaltAndPepper", rate)
        self.low = _checked_number("SaltAndPepper", "low", low)
        self.high = _checked_number("SaltAndPepper", "high", high)

    def forward(self, x: Tensor) -> Tensor:
        # One uniform decides both whether and where to: below r/2 pepper, from r/2 to r salt.
        u = torch.rand_like(x)
        extreme = torch.where(u < self.rate / 2, self.low, self.high).to(x.dtype)
        return torch.where(u < self.rate, extreme, x)

    def extra_repr(self) -> str:
        return f"rate={self.rate}, low={self.low}, high={self.high}"


CORRUPTIONS: dict[str, type[Corruption]] = {
    "masking": Masking,
    "normal-noise": NormalNoise,
    "salt-and-pepper": SaltAndPepper,
}


def corruption_from(text: str) -> Corruption:
    """A corruption from its name, and after a colon its rate or scale.

    Raises:
        ConfigError: an unknown name, or what follows the colon is no number in its range.

    >>> corruption_from("masking:0.25")
    Masking(rate=0.25, value=0.0, pixelwise=False)
    >>> corruption_from("normal-noise")
    NormalNoise(scale=0.3)
    """
    name, colon, amount = text.partition(":")
    cls = CORRUPTIONS.get(name.strip())
    if cls is None:
        raise ConfigError(f"there is no corruption {name!r}: choose one of {', '.join(CORRUPTIONS)}, such as 'masking:0.5'")
    if not colon:
        return cls()
    try:
        number = float(amount)
    except ValueError as error:
        raise ConfigError(
            f"the corruption {text!r} must have a number after the colon, not {amount!r}: write '{name}:0.3'"
        ) from error
    return cls(number)  # the first argument of each row is its rate or scale


def _checked_rate(owner: str, rate: float) -> float:
    if not 0 <= rate <= 1:
        raise ConfigError(f"{owner}'s rate must lie in [0, 1], not {rate}: give the share of entries to corrupt")
    return float(rate)


def _checked_number(owner: str, name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ConfigError(f"{owner}'s {name} must be a finite number, not {value}: give one such as 0.0")
    return float(value)
