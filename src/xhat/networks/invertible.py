"""The layers of a normalising flow: masked networks that say how each element is stretched and moved, given earlier ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.nn import functional as F

from xhat.errors import ConfigError, whole_number
from xhat.networks.base import as_shape

MOST = 100  # layers
BINS = 8  # of a spline, on [-5, 5] (Durkan et al. 2019)
SPLINE = (BINS, BINS, BINS - 1)  # widths, heights and inner slopes


def zuko_transforms() -> Any:
    """The module ``zuko.transforms``, imported when the first flow is made.

    Importing zuko turns the checks of all of torch's laws off, for the whole process; here they stay as they were.

    Raises:
        ConfigError: zuko is not installed.
    """
    before = Distribution._validate_args
    try:
        import zuko.transforms
    except ImportError as error:
        raise ConfigError("a flow needs zuko, which is not installed: pip install 'xhat[flows]'") from error
    finally:
        Distribution._validate_args = before
    return zuko.transforms


class MaskedNetwork(nn.Module):
    r"""A fully connected network in which what is said of an element depends on the elements of earlier groups only.

    The elements are put into ``groups`` of equal size, in their order or against it. A hidden unit of degree h sees groups below
    h, and what is said of group g sees units of degree at most g; the context is seen by all. The last layer starts at 0.

    Args:
        features: d, the number of elements.
        context: numbers of the context, 0 for none.
        groups: at least 1 and at most d; the same as d makes each element depend on all before it.
        backwards: whether the last element comes first.
        hidden: sizes of the hidden layers.
        parameters: how many numbers are said of each element.

    Shapes: ``(*lead, d)`` and a context that broadcasts to ``(*lead, context)``, to ``(*lead, d, parameters)``.

    Source: Germain et al. (2015); the inverse flow with context: Kingma et al. (2016).
    """

    def __init__(self, features: int, context: int, groups: int, backwards: bool, hidden: Sequence[int], parameters: int) -> None:
        super().__init__()
        self.parameters_each = parameters
        size = math.ceil(features / groups)
        self.groups = math.ceil(features / size)
        place = torch.arange(features)
        group = (features - 1 - place if backwards else place) // size
        # Units that see nothing are of use only where there is a context.
        lowest = 0 if context else min(1, self.groups - 1)
        degrees = [lowest + torch.arange(n) * (self.groups - lowest) // n for n in hidden]
        degrees = [group + 1, *degrees, group.repeat_interleave(parameters)]
        self.layers = nn.ModuleList()
        for number, (below, above) in enumerate(pairwise(degrees)):
            self.layers.append(nn.Linear(len(below), len(above)))
            self.register_buffer(f"mask{number}", above[:, None] >= below, persistent=False)
        self.context = nn.Linear(context, len(degrees[1]), bias=False) if context else None
        last = self.layers[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        if self.context is not None and not hidden:
            nn.init.zeros_(self.context.weight)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        h = x
        for number, layer in enumerate(self.layers):
            h = F.linear(F.elu(h) if number else h, layer.weight * self.get_buffer(f"mask{number}"), layer.bias)  # type: ignore[operator,arg-type]
            if number == 0 and self.context is not None and context is not None:
                h = h + self.context(context)  # once for each context, not for each draw
        return h.unflatten(-1, (-1, self.parameters_each))


class Invertible(nn.Module):
    r"""One invertible layer: each element is mapped monotonically, by numbers that depend on earlier elements and the context.

    Affine: :math:`y_i = e^{a_i} x_i + m_i` with :math:`|a_i| < \log 1000`. Spline: a monotone rational-quadratic spline of 8 bins
    on [-5, 5], the identity outside. It starts as the identity.

    Args:
        features: d.
        context: numbers of the context, 0 for none.
        kind: ``"affine"`` or ``"spline"``.
        groups: in how many steps it is inverted; d (autoregressive) or 2 (a coupling).
        backwards: whether the last element comes first.
        hidden: sizes of the network's hidden layers.

    ``forward(context)`` is a torch ``Transform``: one pass of the network forwards, ``groups`` passes back.

    Raises:
        ConfigError: zuko is not installed.
    """

    def __init__(self, features: int, context: int, kind: str, groups: int, backwards: bool, hidden: Sequence[int]) -> None:
        super().__init__()
        maps = zuko_transforms()
        self.scheme, self.whole = maps.AutoregressiveTransform, maps.DependentTransform
        self.spline = kind == "spline"
        self.element = maps.MonotonicRQSTransform if self.spline else maps.MonotonicAffineTransform
        self.network = MaskedNetwork(features, context, groups, backwards, hidden, sum(SPLINE) if self.spline else 2)

    def forward(self, context: Tensor | None = None) -> Transform:
        return self.scheme(partial(self._at, context), self.network.groups)

    def _at(self, context: Tensor | None, x: Tensor) -> Transform:
        said = self.network(x, context)
        return self.whole(self.element(*(said.split(SPLINE, -1) if self.spline else said.unbind(-1))), 1)


def invertible_layers(
    features: int, context: int, kind: str, coupling: bool, transforms: int, hidden: Sequence[int]
) -> nn.ModuleList:
    """Layers in alternating order, so that of two layers each element sees all others.

    Raises:
        ConfigError: sizes below 1, more than 100 layers, or zuko is not installed.
    """
    whole_number("transforms", transforms)
    if transforms > MOST:  # one number of a stranger's file must not make a million layers
        raise ConfigError(f"transforms must be at most {MOST}, was {transforms}")
    sizes = [as_shape(size, "each hidden size")[0] for size in hidden]
    groups = min(2, features) if coupling else features
    return nn.ModuleList(Invertible(features, context, kind, groups, i % 2 == 1, sizes) for i in range(transforms))
