"""The evidence of a linear Normal model, which is itself a Normal."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from xhat.conditionals import Normal
from xhat.data import Batch
from xhat.models.base import Model
from xhat.networks import MLP
from xhat.networks.base import LinearHead
from xhat.networks.mlp import TransposedLinear
from xhat.priors import StandardNormal


class LinearNormal(NamedTuple):
    r"""The law of x where :math:`x | z \sim N(W z + b, \mathrm{diag}\,\sigma^2)` and :math:`z \sim N(0, I)`.

    .. math:: p(x) = N(x; b, W W^\top + \mathrm{diag}\,\sigma^2)

    computed in k dimensions: with :math:`r = x - b` and :math:`M = I + W^\top \Sigma^{-1} W`, :math:`\Sigma = \mathrm{diag}\,
    \sigma^2`,

    .. math:: -2 \log p(x) = D \log 2\pi + \log |\Sigma| + \log |M|
              + r^\top \Sigma^{-1} r - r^\top \Sigma^{-1} W M^{-1} W^\top \Sigma^{-1} r .

    Attributes:
        weight: W, ``(D, k)`` in float64.
        bias: b, ``(D,)``.
        by_condition: U, ``(D, C)``: under a condition c the mean is :math:`W z + b + U c`; None without one.
        scale: σ, ``(D,)``.

    Source: Tipping & Bishop (1999).
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    by_condition: Tensor | None = None

    def log_prob(self, batch: Batch) -> Tensor:
        """log p(x), or of what was observed of it, in nats, ``(B,)``."""
        loc = self.bias
        if self.by_condition is not None and batch.condition is not None:
            loc = loc + batch.condition.double() @ self.by_condition.T
        x = batch.x.flatten(1).double()
        if batch.observed is not None:
            return self._partly(x - loc, batch.observed.flatten(1))
        r = (x - loc) / self.scale
        w = self.weight / self.scale.unsqueeze(-1)
        factor = torch.linalg.cholesky(torch.eye(w.shape[1], dtype=w.dtype, device=w.device) + w.T @ w)
        within = torch.linalg.solve_triangular(factor, w.T @ r.T, upper=False)
        quadratic = r.square().sum(1) - within.square().sum(0)
        logarithms = self.scale.log().sum() + factor.diagonal().log().sum()
        return -0.5 * (quadratic + len(self.bias) * math.log(2 * math.pi)) - logarithms

    def _partly(self, off: Tensor, observed: Tensor) -> Tensor:
        """The same of what was observed, whose rows of W alone count; each example has a matrix M of its own."""
        w = (self.weight / self.scale.unsqueeze(-1)) * observed.unsqueeze(-1)
        r = torch.where(observed, off / self.scale, 0.0)
        factor = torch.linalg.cholesky(torch.eye(w.shape[2], dtype=w.dtype, device=w.device) + w.mT @ w)
        within = torch.linalg.solve_triangular(factor, w.mT @ r.unsqueeze(-1), upper=False).squeeze(-1)
        quadratic = r.square().sum(1) - within.square().sum(1)
        logarithms = torch.where(observed, self.scale.log(), 0.0).sum(1) + factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return -0.5 * (quadratic + observed.sum(1).double() * math.log(2 * math.pi)) - logarithms


def linear_normal_of(model: Model) -> LinearNormal | str:
    """The model as such a law; or, in words, what in its structure is not linear or not Normal."""
    prior, likelihood = model.prior, model.likelihood
    if type(prior) is not StandardNormal:
        return f"and its prior is {type(prior).__name__}"
    if type(likelihood) is not Normal:
        return f"and its likelihood is {type(likelihood).__name__}"
    if likelihood.per == "network" or likelihood.link != "identity":
        return "and its likelihood has a σ from the network (not per='shared', 'dimension' or a fixed number) or a link"
    layers = [*_layers(likelihood.network), *_layers(likelihood.head)]
    latent = math.prod(model.latent_shape)
    # What joins the code at the first layer is one more input of a linear map
    size = latent + getattr(likelihood.network, "condition", 0)
    weight = torch.eye(size, dtype=torch.float64, device=model.device)
    bias = weight.new_zeros(size)
    for layer in layers:
        own = _affine(layer)
        if own is None:
            return f"and its decoder is not linear ({type(layer).__name__}; hidden=[] makes a linear one)"
        weight, bias = own[0] @ weight, own[0] @ bias + own[1]
    scale = likelihood.scale(model.like.new_zeros(likelihood.event))
    by_condition = weight[:, latent:] if size > latent else None
    return LinearNormal(weight[:, :latent], bias, scale.detach().double().flatten(), by_condition)


def _layers(module: nn.Module) -> list[nn.Module]:
    """The steps of a network, one after the other, as far as its structure is known; else the module itself."""
    if type(module) is MLP:
        activation = [] if isinstance(module.activation, nn.Identity) else [module.activation]
        return [step for layer in module.layers for step in (layer, *activation)]
    if type(module) is LinearHead:
        return [module.linear]
    if type(module) is nn.Sequential:
        return [step for part in module for step in _layers(part)]
    return [] if type(module) in (nn.Identity, nn.Flatten) else [module]


def _affine(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """W and b of a linear layer, in float64; None of any other."""
    if type(layer) is nn.Linear:
        weight = layer.weight
    elif type(layer) is TransposedLinear:
        weight = layer._source[0].weight.t()
    else:
        return None
    weight = weight.detach().double()
    bias: Tensor | None = layer.bias
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().double()
