"""The convolution with Normal weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from xhat.errors import ConfigError, whole_number
from xhat.networks.bayesian_linear import INITIAL_SCALE, PADDING_MODES, BayesianLayer


def _pair(name: str, value: object, least: int = 1) -> tuple[int, int]:
    """A size for height and width, from one number or two.

    Raises:
        ConfigError: it is neither, or a number is too small.
    """
    sizes = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(sizes) != 2:
        raise ConfigError(f"{name} must be a whole number or two of them, for height and width, was {value!r}")
    for size in sizes:
        whole_number(name, size, least)
    return int(sizes[0]), int(sizes[1])


class BayesianConv2d(BayesianLayer):
    r"""A convolution with Normal weights, :math:`y = W * x + b`, :math:`W, b \sim N(\mu, \operatorname{softplus}(\rho)^2)`.

    It draws as :class:`xhat.networks.BayesianLinear` does, and at the same times. An example is an image: all its positions share
    one W, as they do in the model.

    - ``"shared"``: one draw for the whole call.
    - ``"flipout"``: :math:`y = \mu * x + \mu_b + r \odot (\Delta * (x \odot s) + \delta)`, with one sign for each example and
      channel, r for those that come out and s for those that go in. Each image's output has exactly the law of
      :math:`W * x + b`, jointly over all its positions.

    - ``"local"``: each position of the output is drawn on its own, with its exact mean and variance. That is what the field does,
      and an approximation: positions that share W come out independent, so what pools or mixes them next sees less noise than
      the model has. Exact where the kernel covers the image; else ``"flipout"`` has the right joint law at a like price.

    Args:
        in_channels: channels of x.
        out_channels: channels of y.
        kernel_size: one number, or height and width; so for the next three.
        stride: step between positions.
        padding: rows and columns added on each side; or ``"same"`` (stride 1) or ``"valid"``.
        dilation: step between the kernel's elements.
        groups: blocks of channels that do not see each other; divides both numbers of channels.
        bias: whether there is a b.
        sampling: ``"shared"``, ``"local"`` or ``"flipout"``.
        prior_scale: τ, the standard deviation of the prior N(0, τ²).
        initial_scale: the σ of each weight and bias at the start.
        padding_mode: what the padding holds: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, out_channels, H', W')``, as ``torch.nn.Conv2d``; also without N.

    Raises:
        ConfigError: a size below 1, channels that groups do not divide, an unknown padding or sampling, a scale that is not a
            finite number above 0.

    Source: Wen et al. (2018), flipout; Kingma, Salimans & Welling (2015), local.

    >>> layer = BayesianConv2d(3, 8, kernel_size=3, stride=2, padding=1)
    >>> layer(torch.zeros(5, 3, 16, 15)).shape
    torch.Size([5, 8, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        sampling: str = "flipout",
        prior_scale: float = 1.0,
        initial_scale: float = INITIAL_SCALE,
        padding_mode: str = "zeros",
    ) -> None:
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
            whole_number(name, value)
        if in_channels % groups or out_channels % groups:
            raise ConfigError(f"groups must divide in_channels={in_channels} and out_channels={out_channels}, was {groups}")
        kernel = _pair("kernel_size", kernel_size)
        super().__init__((out_channels, in_channels // groups, *kernel), bias, sampling, prior_scale, initial_scale)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.stride, self.dilation = _pair("stride", stride), _pair("dilation", dilation)
        if padding_mode not in PADDING_MODES:
            raise ConfigError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, was {padding_mode!r}")
        self.padding_mode = "constant" if padding_mode == "zeros" else padding_mode
        self.edges = self._edges(padding, kernel)

    def _edges(self, padding: int | str | Sequence[int], kernel: tuple[int, int]) -> tuple[int, int, int, int]:
        """Left, right, top and bottom padding, in the order that ``pad`` takes."""
        if padding == "same":
            if self.stride != (1, 1):
                raise ConfigError(f"padding='same' needs stride 1, was {self.stride}: give the padding as a number")
            height, width = (step * (size - 1) for step, size in zip(self.dilation, kernel, strict=True))
            return width // 2, width - width // 2, height // 2, height - height // 2
        if isinstance(padding, str) and padding != "valid":
            raise ConfigError(f"padding must be a whole number, two of them, 'same' or 'valid', was {padding!r}")
        height, width = (0, 0) if padding == "valid" else _pair("padding", padding, least=0)
        return width, width, height, height

    def map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        left, right, top, bottom = self.edges
        if self.padding_mode == "constant" and left == right and top == bottom:
            return F.conv2d(x, weight, bias, self.stride, (top, left), self.dilation, self.groups)
        x = F.pad(x, self.edges, mode=self.padding_mode)
        return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)

    def sign_shape(self, shape: torch.Size) -> tuple[int, ...]:
        return (*shape[:-2], 1, 1)

    def extra_repr(self) -> str:
        kernel = tuple(self.weight_loc.shape[2:])
        return f"{self.in_channels}, {self.out_channels}, kernel_size={kernel}, stride={self.stride}, sampling={self.sampling!r}"
