"""Normal conditionals, diagonal and full, and the deterministic code."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, constraints
from torch.distributions import MultivariateNormal as TorchMultivariateNormal
from torch.distributions import Normal as TorchNormal

from xhat import distributions
from xhat.conditionals.base import TRANSFORMS, Headed, check_minimum, positive
from xhat.errors import ConfigError

LINKS = ("identity", "sigmoid")
# A σ that all examples share starts at 1 and may have to shrink tenfold or more. Optimisers such as Adam move every number by
# about the learning rate a step; with this factor it gets there in hundreds of steps, before the posterior collapses.
GAIN = 10.0


def _linked(raw: Tensor, link: str) -> Tensor:
    return raw.sigmoid() if link == "sigmoid" else raw


def _check_link(link: str) -> None:
    if link not in LINKS:
        raise ConfigError(f"link must be one of {', '.join(LINKS)}, was {link!r}")


class Normal(Headed):
    r"""Axis-aligned Normal, :math:`N(y; \mu(c), \mathrm{diag}\,\sigma^2)`.

    Args:
        network: from the context to features.
        event: shape of one draw.
        scale: how σ is made positive, ``"softplus"`` or ``"exp"``; or a number, which fixes σ.
        per: whose σ it is: ``"network"`` (a function of the context), ``"dimension"`` (one learned number for each element
            of the event) or ``"shared"`` (one learned number).
        link: ``"identity"``, or ``"sigmoid"`` to keep the mean in (0, 1).
        minimum: lower bound of σ. Without one, the density of data with a constant element has no maximum.

    Raises:
        ConfigError: an unknown scale, per or link, or a number that is not positive.

    Source: Kingma & Welling (2013); the learned shared σ: Rybkin, Daniilidis & Levine (2021).

    >>> from xhat.networks import MLP
    >>> posterior = Normal(MLP(784, [400]), event=(20,), scale="softplus")
    >>> q = posterior(torch.rand(7, 784))
    >>> q.batch_shape, q.event_shape
    (torch.Size([7]), torch.Size([20]))
    """

    support = constraints.real

    def __init__(
        self,
        network: nn.Module,
        event: int | Sequence[int],
        scale: str | float = "softplus",
        per: str = "network",
        link: str = "identity",
        minimum: float = 1e-4,
    ) -> None:
        fixed = isinstance(scale, int | float)
        if per not in ("network", "dimension", "shared"):
            raise ConfigError(f"per must be one of network, dimension, shared, was {per!r}")
        if (isinstance(scale, int | float) and not 0 < scale < math.inf) or (not fixed and scale not in TRANSFORMS):
            raise ConfigError(f"scale must be one of {', '.join(TRANSFORMS)} or a positive number, was {scale!r}")
        check_minimum(minimum)
        _check_link(link)
        super().__init__(network, event, parameters=2 if per == "network" and not fixed else 1)
        self.transform, self.per, self.link, self.minimum = scale, "fixed" if fixed else per, link, minimum
        if self.per in ("dimension", "shared"):
            start = math.log(math.expm1(1.0)) if scale == "softplus" else 0.0  # σ starts at 1
            self.raw_scale = nn.Parameter(torch.full(self.event if per == "dimension" else (), start / GAIN))

    def law(self, raw: Tensor) -> Distribution:
        if self.per == "network":
            raw_loc, raw_scale = raw.unbind(-1 - self.event_ndim)
            scale = positive(raw_scale, str(self.transform), self.minimum)
        else:
            raw_loc = raw.squeeze(-1 - self.event_ndim)
            scale = self.scale(raw_loc)
        loc = _linked(raw_loc, self.link)
        return Independent(TorchNormal(loc, scale, validate_args=False), self.event_ndim, validate_args=False)

    def scale(self, like: Tensor) -> Tensor:
        """σ where it does not depend on the context, ``(*event)`` or ``()``."""
        if self.per == "fixed":
            return like.new_full((), float(self.transform)).expand_as(like)  # made where like is, not copied there
        return positive(GAIN * self.raw_scale, str(self.transform), self.minimum).expand_as(like)


class MultivariateNormal(Headed):
    r"""Normal with full covariance, :math:`N(y; \mu(c), L(c) L(c)^\top)`, L lower triangular with a positive diagonal.

    The diagonal of L is ``minimum + softplus(·)`` (or exp), the rest is what the network says.

    Args:
        network: from the context to features.
        event: size d of one draw; the network's head puts out d + d(d+1)/2 numbers.
        scale: ``"softplus"`` or ``"exp"``.
        minimum: lower bound of L's diagonal.

    Raises:
        ConfigError: an event with more than one axis; an unknown scale.

    >>> from xhat.networks import MLP
    >>> q = MultivariateNormal(MLP(6, [8]), event=3)(torch.rand(5, 6))
    >>> q.covariance_matrix.shape
    torch.Size([5, 3, 3])
    """

    support = constraints.real
    lower: Tensor

    def __init__(self, network: nn.Module, event: int | Sequence[int], scale: str = "softplus", minimum: float = 1e-4) -> None:
        shape = (event,) if isinstance(event, int) else tuple(event)
        if len(shape) != 1:
            raise ConfigError(f"a full covariance needs an event with one axis, was {shape}: use Normal instead")
        if scale not in TRANSFORMS:
            raise ConfigError(f"scale must be one of {', '.join(TRANSFORMS)}, was {scale!r}")
        check_minimum(minimum)
        size = int(shape[0])
        super().__init__(network, shape, parameters=(size + size * (size + 1) // 2,))
        self.transform, self.minimum = scale, minimum
        self.register_buffer("lower", torch.tril_indices(size, size), persistent=False)

    def law(self, raw: Tensor) -> Distribution:
        size = self.event[0]
        loc, entries = raw.split([size, raw.shape[-1] - size], dim=-1)
        rows, columns = self.lower
        factor = entries.new_zeros(*entries.shape[:-1], size, size)
        factor[..., rows, columns] = entries
        diagonal = positive(factor.diagonal(dim1=-2, dim2=-1), self.transform, self.minimum)
        factor = factor.tril(-1) + torch.diag_embed(diagonal)
        return TorchMultivariateNormal(loc, scale_tril=factor, validate_args=False)


class Delta(Headed):
    """The deterministic code: all mass on one point that the network names. It makes a plain autoencoder of the chassis.

    Args:
        network: from the context to features.
        event: shape of the code.
        link: ``"identity"`` or ``"sigmoid"``.

    >>> from xhat.networks import MLP
    >>> code = Delta(MLP(784, [400]), event=30)(torch.rand(5, 784))
    >>> bool((code.rsample() == code.mean).all())
    True
    """

    def __init__(self, network: nn.Module, event: int | Sequence[int], link: str = "identity") -> None:
        _check_link(link)
        super().__init__(network, event, parameters=1)
        self.link = link

    def law(self, raw: Tensor) -> Distribution:
        return distributions.Delta(_linked(raw.squeeze(-1 - self.event_ndim), self.link), self.event_ndim)
