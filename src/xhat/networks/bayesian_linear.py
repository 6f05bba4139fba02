r"""Layers whose weights are random nodes: each weight has a law, and every call draws.

Every weight and bias has an independent Normal posterior :math:`q(w) = N(\mu, \operatorname{softplus}(\rho)^2)` and the prior
:math:`p(w) = N(0, \tau^2)`. Training minimises, over N examples, :math:`-\sum_n E_q[\log p(y_n|x_n, w)] + KL(q \| p)`: to a loss
that is averaged over examples goes ``kl(model) / N``.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xhat.errors import ConfigError, whole_number
from xhat.parts import Part

SAMPLINGS = ("shared", "local", "flipout")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
INITIAL_SCALE = 0.01
_NEAR = 0.05


def positive_number(name: str, value: object) -> float:
    """Refuse what is no finite number above 0.

    Raises:
        ConfigError: says what it was.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{name} must be a finite number above 0, was {value!r}")
    return float(value)


def raw_scale_of(scale: float) -> float:
    """The ρ whose softplus is ``scale``, without overflow for a large scale or cancellation for a small one."""
    return scale + math.log(-math.expm1(-scale))


class _Divergence(torch.autograd.Function):
    """:func:`divergence` with its derivative written out: the series would leave a dozen tensors of the weights' size behind."""

    @staticmethod
    def forward(loc: Tensor, scale: Tensor, prior_scale: float) -> Tensor:
        shift = (scale - prior_scale) / prior_scale
        near = shift.abs() < _NEAR
        t = torch.where(near, shift, 0.0)
        u = t / (2 + t)
        v = u * u
        tail = 1 / 3 + v * (1 / 5 + v * (1 / 7 + v * (1 / 9 + v / 11)))
        excess = torch.where(near, u * (t - 2 * v * tail), shift - (scale / prior_scale).log())
        return 0.5 * (loc.square().sum() / prior_scale**2 + shift.square().sum()) + excess.sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        loc, scale, ctx.prior_scale = inputs
        ctx.save_for_backward(loc, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        loc, scale = ctx.saved_tensors
        prior = ctx.prior_scale
        return grad * loc / prior**2, grad * (scale - prior) * (scale + prior) / (prior**2 * scale), None


def divergence(loc: Tensor, scale: Tensor, prior_scale: float) -> Tensor:
    r"""KL of N(loc, scale²) from N(0, τ²), summed over all elements, ``()``, in nats.

    .. math:: \frac12 \sum \frac{\mu^2}{\tau^2} + t^2 + 2(t - \ln(1 + t)), \qquad t = \frac{\sigma - \tau}{\tau}

    Both terms in t are at least 0. Where σ is close to τ the last one nearly cancels; there, with u = t / (2 + t), it is
    :math:`ut - 2u^3(\frac13 + \frac{u^2}5 + \dots)`, since :math:`\ln(1 + t) = 2\operatorname{artanh} u`.
    """
    return _Divergence.apply(loc, scale, prior_scale)


def signs(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Fair coins of -1 and 1, of the device and dtype of ``like``."""
    return torch.randint(0, 2, shape, dtype=like.dtype, device=like.device).mul_(2).sub_(1)


class BayesianLayer(Part, nn.Module, abc.ABC):
    """Abstract: a map that is linear in its weight and bias, each of which has a Normal law.

    ``at_mean`` is the switch behind :func:`xhat.networks.mean_weights`: while it is on, the means are used and nothing is drawn.
    """

    weight_loc: nn.Parameter
    weight_raw_scale: nn.Parameter
    bias_loc: nn.Parameter | None
    bias_raw_scale: nn.Parameter | None

    def __init__(self, shape: tuple[int, ...], bias: bool, sampling: str, prior_scale: float, initial_scale: float) -> None:
        super().__init__()
        if sampling not in SAMPLINGS:
            raise ConfigError(
                f"sampling of a {type(self).__name__} must be one of {', '.join(SAMPLINGS)}, was {sampling!r}: choose one of them"
            )
        self.sampling = sampling
        self.prior_scale = positive_number("prior_scale", prior_scale)
        raw = raw_scale_of(positive_number("initial_scale", initial_scale))
        self.at_mean = False
        bound = 1 / math.sqrt(math.prod(shape[1:]))  # the means start as torch's own layers do
        self.weight_loc = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.weight_raw_scale = nn.Parameter(torch.full(shape, raw))
        self.bias_loc = nn.Parameter(torch.empty(shape[0]).uniform_(-bound, bound)) if bias else None
        self.bias_raw_scale = nn.Parameter(torch.full(shape[:1], raw)) if bias else None

    @abc.abstractmethod
    def map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's map with these weights."""

    @abc.abstractmethod
    def sign_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """One sign for each example and each of its features (channels), to be multiplied with a tensor of this shape."""

    @property
    def weight_scale(self) -> Tensor:
        """σ of each weight."""
        return F.softplus(self.weight_raw_scale)

    @property
    def bias_scale(self) -> Tensor | None:
        """σ of each bias; None without biases."""
        return None if self.bias_raw_scale is None else F.softplus(self.bias_raw_scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.at_mean:
            return self.map(x, self.weight_loc, self.bias_loc)
        scale, bias_scale = self.weight_scale, self.bias_scale
        if self.sampling == "local":
            return self._local(x, scale, bias_scale)
        # Noise is made anew and kept by nobody but autograd, so any number of calls may precede a backward.
        change = scale * torch.randn_like(scale)
        bias_change = None if bias_scale is None else bias_scale * torch.randn_like(bias_scale)
        if self.sampling == "shared":
            bias = None if self.bias_loc is None or bias_change is None else self.bias_loc + bias_change
            return self.map(x, self.weight_loc + change, bias)
        moved = self.map(x * signs(x, self.sign_shape(x.shape)), change, bias_change)
        return self.map(x, self.weight_loc, self.bias_loc) + moved * signs(moved, self.sign_shape(moved.shape))

    def _local(self, x: Tensor, scale: Tensor, bias_scale: Tensor | None) -> Tensor:
        loc = self.map(x, self.weight_loc, self.bias_loc)
        variance = self.map(x.square(), scale.square(), None if bias_scale is None else bias_scale.square())
        # An input of zeros and no bias has a variance of 0, where the root's slope is infinite and the gradient's is not.
        some = variance > 0
        spread = torch.where(some, variance, 1.0).sqrt() * some
        return loc + spread * torch.randn_like(loc)

    def laws(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """The pairs (μ, ρ) of the weight and, if there is one, the bias."""
        yield self.weight_loc, self.weight_raw_scale
        if self.bias_loc is not None and self.bias_raw_scale is not None:
            yield self.bias_loc, self.bias_raw_scale

    def kl(self) -> Tensor:
        r"""The exact :math:`KL(q(w) \| p(w))` of all weights and biases, ``()``, in nats; precise also where q is nearly p."""
        total = self.weight_loc.new_zeros(())
        for loc, raw_scale in self.laws():
            total = total + divergence(loc, F.softplus(raw_scale), self.prior_scale)
        return total


class BayesianLinear(BayesianLayer):
    r"""A linear layer with Normal weights, :math:`y = xW^\top + b`, :math:`W, b \sim N(\mu, \operatorname{softplus}(\rho)^2)`.

    Each call draws, in training and in evaluation mode alike, for the law of the weights is the model; within
    ``with mean_weights(model):`` it does not. There are three ways to draw. In all of them the output of each row of x, taken
    alone, has exactly the law of :math:`xW^\top + b`, so expected losses and their gradients agree; rows differ in how they hang
    together:

    - ``"shared"``: one draw of W and b for the whole call, and so the exact joint law of all rows. The rows share their noise: a
      larger batch hardly lowers the variance of a gradient.
    - ``"local"``: the output itself is drawn, from :math:`N(x\mu^\top + \mu_b, x^2(\sigma^2)^\top + \sigma_b^2)`, anew for each
      row. Rows are independent and the variance of a gradient falls as 1/B.
    - ``"flipout"``: :math:`y = x\mu^\top + \mu_b + r \odot ((x \odot s)\Delta^\top + \delta)` with one draw of
      :math:`\Delta = \sigma\varepsilon` and :math:`\delta = \sigma_b\varepsilon_b` for the call, and random signs r, s for each
      row. A Normal is symmetric, so each row's weights and bias keep their law; outputs of different rows are uncorrelated, but
      not independent: they share the sizes of Δ. For a squared error of one layer the variance of the gradient with respect to μ
      falls exactly as 1/B, in general down to a small floor; that with respect to ρ has a larger floor, for it contains
      :math:`\Delta^2`, which no sign changes.

    A row is an example. Where an example has several rows that must share their weights (positions of a sequence), only
    ``"shared"`` has their joint law; so has any comparison of outputs between rows.

    Args:
        in_features: size of x's last dimension.
        out_features: size of y's.
        bias: whether there is a b.
        sampling: ``"shared"``, ``"local"`` or ``"flipout"``.
        prior_scale: τ, the standard deviation of the prior N(0, τ²).
        initial_scale: the σ of each weight and bias at the start.

    Shapes: ``(*batch, in_features)`` to ``(*batch, out_features)``.

    Raises:
        ConfigError: a size below 1, an unknown sampling, a scale that is not a finite number above 0.

    Source: Blundell et al. (2015), weights with laws; Kingma, Salimans & Welling (2015), local; Wen et al. (2018), flipout.

    >>> _ = torch.manual_seed(0)
    >>> layer = BayesianLinear(3, 2, initial_scale=1.0)
    >>> x = torch.ones(5, 3)
    >>> y = layer(x)
    >>> y.shape, bool((y == layer(x)).all())
    (torch.Size([5, 2]), False)
    >>> with torch.no_grad():
    ...     print(layer.weight_loc.zero_().shape, layer.bias_loc.zero_().shape, f"{layer.kl():.4f}")
    torch.Size([2, 3]) torch.Size([2]) 0.0000
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        sampling: str = "flipout",
        prior_scale: float = 1.0,
        initial_scale: float = INITIAL_SCALE,
    ) -> None:
        whole_number("in_features", in_features)
        whole_number("out_features", out_features)
        super().__init__((out_features, in_features), bias, sampling, prior_scale, initial_scale)
        self.in_features, self.out_features = in_features, out_features
        self.in_shape = (in_features,)

    def map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.shape[-1:] != (self.in_features,):
            raise ConfigError(f"BayesianLinear takes x of shape (*batch, {self.in_features}), was {tuple(x.shape)}")
        return F.linear(x, weight, bias)

    def sign_shape(self, shape: torch.Size) -> tuple[int, ...]:
        return tuple(shape)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias_loc is not None}, sampling={self.sampling!r}"
