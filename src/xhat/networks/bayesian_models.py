"""Whole models with random weights: making them so, their divergence from the prior, and their means."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xhat.errors import ConfigError
from xhat.networks.bayesian_convolution import BayesianConv2d
from xhat.networks.bayesian_linear import INITIAL_SCALE, BayesianLayer, BayesianLinear, divergence, positive_number, raw_scale_of
from xhat.networks.mlp import TransposedLinear
from xhat.parts import Part


class Converted:
    """Stands among the arguments of a part whose layers were replaced: they no longer describe it, so no file may say so."""


class _Twins:
    """Makes the Bayesian twin of a layer: the same one for the same layer, the same ρ for the same parameter."""

    def __init__(self, sampling: str, prior_scale: float, initial_scale: float) -> None:
        self.options = {"sampling": sampling, "prior_scale": prior_scale, "initial_scale": initial_scale}
        self.raw = raw_scale_of(positive_number("initial_scale", initial_scale))
        self.twins: dict[nn.Module, BayesianLayer] = {}
        self.raw_scales: dict[nn.Parameter, nn.Parameter] = {}

    def raw_scale(self, loc: nn.Parameter) -> nn.Parameter:
        if loc not in self.raw_scales:
            self.raw_scales[loc] = nn.Parameter(torch.full_like(loc, self.raw), requires_grad=loc.requires_grad)
        return self.raw_scales[loc]

    def of(self, layer: nn.Linear | nn.Conv2d) -> BayesianLayer:
        if layer not in self.twins:
            with torch.device("meta"):  # its first weights are never used, so no memory and no random numbers go into them
                twin = self._empty(layer)
            for name, loc in layer.named_parameters(recurse=False):
                setattr(twin, f"{name}_loc", loc)
                setattr(twin, f"{name}_raw_scale", self.raw_scale(loc))
            self.twins[layer] = twin.train(layer.training)
        return self.twins[layer]

    def _empty(self, layer: nn.Linear | nn.Conv2d) -> BayesianLayer:
        bias = layer.bias is not None
        if isinstance(layer, nn.Linear):
            return BayesianLinear(layer.in_features, layer.out_features, bias, **self.options)  # type: ignore[arg-type]
        return BayesianConv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            bias,
            padding_mode=layer.padding_mode,
            **self.options,  # type: ignore[arg-type]
        )


def _replaceable(model: nn.Module) -> dict[nn.Module, tuple[str, nn.Linear | nn.Conv2d]]:
    """The layers of a model that get a twin, by name, each once.

    A subclass of the two has reasons of its own to exist, and torch's transformer layer reads the weights of the layers that it
    holds instead of calling them.
    """
    whole = [module for module in model.modules() if isinstance(module, nn.TransformerEncoderLayer)]
    within = {inner for module in whole for inner in module.modules()}
    return {
        module: (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and type(module) in (nn.Linear, nn.Conv2d) and module not in within
    }


def bayesian(
    model: nn.Module, sampling: str = "flipout", prior_scale: float = 1.0, initial_scale: float = INITIAL_SCALE
) -> nn.Module:
    """A copy of a model in which each ``nn.Linear`` and ``nn.Conv2d`` is a layer with random weights.

    The means start at the model's weights; the model itself is left as it was. A layer that stands in several places, or a
    parameter that several of these layers hold, is shared in the copy too. Parameters that are frozen stay so, with their σ.
    Everything else is left alone and keeps weights without a law: transposed convolutions, normalisation, embeddings, attention,
    torch's transformer layers, and subclasses of the two.

    A parameter's law is shared, a draw is not: each call of a layer draws anew.

    The copy's weights are saved and loaded like any model's; but no file can describe it, so ``xhat.load`` must be given
    ``model=bayesian(…)`` to put them into.

    Args:
        model: any module; a single layer too.
        sampling: ``"shared"``, ``"local"`` (an approximation for convolutions) or ``"flipout"``.
        prior_scale: τ of the prior N(0, τ²).
        initial_scale: the σ of each weight and bias at the start.

    Raises:
        ConfigError: the model has neither layer; such a layer's weights are tied to a module that stays as it is, or
            computed by hooks; what :class:`xhat.networks.BayesianLinear` and :class:`xhat.networks.BayesianConv2d` raise.

    >>> net = bayesian(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), prior_scale=0.5)
    >>> type(net[0]).__name__, type(net[1]).__name__, net(torch.zeros(3, 4)).shape
    ('BayesianLinear', 'Tanh', torch.Size([3, 1]))
    >>> loss = net(torch.zeros(3, 4)).square().mean() + kl(net) / 3
    """
    twins = _Twins(sampling, prior_scale, initial_scale)
    model = copy.deepcopy(model)
    layers = _replaceable(model)
    _check(model, layers)
    if model in layers:
        return twins.of(layers[model][1])
    changed = [part for part in model.modules() if isinstance(part, Part) and any(inner in layers for inner in part.modules())]
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in layers:
                module._modules[name] = twins.of(layers[child][1])
    for part in changed:
        object.__setattr__(part, "_arguments", {**getattr(part, "_arguments", {}), "bayesian": Converted()})
    return model


def _check(model: nn.Module, layers: dict[nn.Module, tuple[str, nn.Linear | nn.Conv2d]]) -> None:
    """Refuse a model without layers to replace, and ties that replacing them would silently cut.

    Raises:
        ConfigError: says which.
    """
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} has no nn.Linear or nn.Conv2d that could be made Bayesian: give a model with one"
        )
    for name, layer in layers.values():
        if layer._forward_pre_hooks or layer._forward_hooks or "weight" not in layer._parameters:
            raise ConfigError(
                f"the layer {name!r} has hooks (weight_norm, say), which its Bayesian twin would lose: remove them first"
            )
    held = {parameter for layer in layers for parameter in layer.parameters(recurse=False)}
    for name, module in model.named_modules():
        tied = isinstance(module, TransposedLinear) or any(parameter in held for parameter in module.parameters(recurse=False))
        if tied and module not in layers:
            raise ConfigError(
                f"{name} ({type(module).__name__}) is tied to the weights of another layer, and the tie would be lost: "
                "build the model without tied weights"
            )


def bayesian_layers(model: nn.Module) -> list[BayesianLayer]:
    """The layers of a model that have random weights, each once.

    Raises:
        ConfigError: there is none.
    """
    layers = [module for module in model.modules() if isinstance(module, BayesianLayer)]
    if not layers:
        raise ConfigError(f"{type(model).__name__} has no layer with random weights: make it Bayesian with bayesian(model) first")
    return layers


def is_bayesian(model: nn.Module) -> bool:
    """Whether any layer of a model has random weights."""
    return any(isinstance(module, BayesianLayer) for module in model.modules())


def shares_weights(model: nn.Module) -> bool:
    """Whether any layer takes one draw of its weights for a whole batch."""
    layers = (module for module in model.modules() if isinstance(module, BayesianLayer))
    return any(layer.sampling == "shared" and not layer.at_mean for layer in layers)


def kl(model: nn.Module) -> Tensor:
    r"""The exact :math:`KL(q(w) \| p(w))` of all random weights of a model, ``()``, in nats.

    A layer or a parameter that stands in several places counts once. This is for the whole data set: to a loss that is averaged
    over N examples goes ``kl(model) / N``.

    Raises:
        ConfigError: the model has no layer with random weights.

    >>> layer = BayesianLinear(2, 2)
    >>> bool(kl(nn.Sequential(layer, nn.Tanh(), layer)) == layer.kl())
    True
    """
    layers = bayesian_layers(model)
    total = layers[0].weight_loc.new_zeros(())
    seen: set[nn.Parameter] = set()
    for layer in layers:
        for loc, raw_scale in layer.laws():
            if loc not in seen:
                seen.add(loc)
                total = total + divergence(loc, F.softplus(raw_scale), layer.prior_scale)
    return total


@contextlib.contextmanager
def mean_weights(model: nn.Module) -> Iterator[None]:
    """For the time of a block, each random weight of a model is its mean, and nothing is drawn.

    The output is that of the mean weights, not the mean of the outputs; it is for a quick look, and for code that must give the
    same answer twice. Evaluation mode does not do this: a prediction of a Bayesian model averages over draws.

    Raises:
        ConfigError: the model has no layer with random weights.

    >>> net, x = bayesian(nn.Sequential(nn.Linear(4, 8), nn.ReLU())), torch.ones(3, 4)
    >>> with mean_weights(net):
    ...     print(bool((net(x) == net(x)).all()))
    True
    """
    layers = bayesian_layers(model)
    before = [layer.at_mean for layer in layers]
    for layer in layers:
        layer.at_mean = True
    try:
        yield
    finally:
        for layer, flag in zip(layers, before, strict=True):
            layer.at_mean = flag
