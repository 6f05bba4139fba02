"""The mixture prior: learned Normals, and the law that all mixtures here return."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily
from torch.distributions import MultivariateNormal as TorchMultivariateNormal
from torch.distributions import Normal as TorchNormal
from torch.types import _size

from xhat.conditionals import positive
from xhat.errors import ConfigError, whole_number
from xhat.networks.base import as_shape, check_condition
from xhat.parts import Part
from xhat.priors.base import need_condition

COVARIANCES = ("diagonal", "full")


class Mixed(MixtureSameFamily):
    r"""torch's mixture, :math:`\sum_k w_k\, p_k(z)`, which draws from the chosen components alone.

    torch draws from all K of them and throws K − 1 draws away, which for thousands of draws and hundreds of components is more
    than memory holds.

    Args:
        logits: of the weights, ``(K,)``.
        at: the components of these numbers, ``(n,)``, as one law of batch shape ``(n,)``; of None, all of them.
    """

    def __init__(self, logits: Tensor, at: Callable[[Tensor | None], Distribution]) -> None:
        self.at = at
        super().__init__(Categorical(logits=logits, validate_args=False), at(None), validate_args=False)

    def expand(self, batch_shape: _size, _instance: Any = None) -> MixtureSameFamily:
        """torch's own mixture with this batch shape."""
        return MixtureSameFamily(self.mixture_distribution, self.component_distribution, validate_args=False).expand(batch_shape)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Draws, ``(*sample, *event)``: a component by its weight, then a draw from it."""
        with torch.no_grad():
            chosen = self.mixture_distribution.sample(sample_shape)
            return self.at(chosen.flatten()).sample().reshape(*chosen.shape, *self.event_shape)


class Mixture(Part, nn.Module):
    r"""A learned mixture of Normals,

    .. math:: p(z) = \sum_{k=1}^K w_k\, N(z; \mu_k, \Sigma_k),

    with :math:`\Sigma_k = \mathrm{diag}\,\sigma_k^2` or :math:`L_k L_k^\top`, L lower triangular with a positive diagonal. σ and
    L's diagonal are ``minimum + softplus(·)``.

    All of it is trained with the model, or fitted to a trained one by :func:`xhat.fit_prior`. It starts as random draws of the
    means, of standard deviation ``spread``, around which each component is so wide that the whole has a variance of 1 in each
    dimension: close to N(0, I), and no two components alike. The KL to it has no closed form and is sampled.

    Args:
        event: size d of the latent.
        components: K.
        covariance: ``"diagonal"`` or ``"full"``.
        spread: standard deviation of the means at the start, between 0 and 1.
        minimum: lower bound of σ, or of L's diagonal. Without one, the density of a single code has no bound.
        condition: C, how many numbers of a condition weights, means and σ depend on, linearly before the last map; 0 for none.

    Shapes: draws ``(*sample, d)``, ``log_prob`` in nats.

    Raises:
        ConfigError: an event of several axes, an unknown covariance, a spread or a minimum out of its range.

    Source: of a latent code, Dilokthanakul et al. (2016); Tomczak & Welling (2018) compare it.

    >>> p = Mixture(2, components=3)()
    >>> p.event_shape, p.sample((5,)).shape
    (torch.Size([2]), torch.Size([5, 2]))
    >>> prior = Mixture(1, components=2)
    >>> prior.put(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
    >>> round(prior().log_prob(torch.zeros(1)).item(), 4)  # log N(1; 0, 1)
    -1.4189
    """

    lower: Tensor

    def __init__(
        self,
        event: int | Sequence[int],
        components: int = 10,
        covariance: str = "diagonal",
        spread: float = 0.7,
        minimum: float = 1e-3,
        condition: int = 0,
    ) -> None:
        super().__init__()
        self.event = as_shape(event, "event")
        if len(self.event) != 1:
            raise ConfigError(f"a mixture of Normals needs an event with one axis, was {self.event}: flatten the code")
        whole_number("components", components)
        if covariance not in COVARIANCES:
            raise ConfigError(f"covariance must be one of {', '.join(COVARIANCES)}, was {covariance!r}")
        if not 0 < spread < 1:
            raise ConfigError(f"spread must be between 0 and 1, was {spread}")
        width = math.sqrt(1 - spread**2)
        if not 0 < minimum < width:
            raise ConfigError(f"minimum must be above 0 and below the components' width at the start, {width:g}; was {minimum}")
        size = self.event[0]
        self.components, self.covariance, self.minimum = components, covariance, minimum
        self.logits = nn.Parameter(torch.zeros(components))
        self.locs = nn.Parameter(spread * torch.randn(components, size))
        self.raw_scales = nn.Parameter(torch.full((components, size), math.log(math.expm1(width - minimum))))
        self.condition = check_condition(condition)
        if self.condition:  # at first it changes nothing
            self.moved = nn.Linear(self.condition, components * (1 + 2 * size), bias=False)
            nn.init.zeros_(self.moved.weight)
        if covariance == "full":
            self.register_buffer("lower", torch.tril_indices(size, size, -1), persistent=False)
            self.entries = nn.Parameter(torch.zeros(components, size * (size - 1) // 2))  # of L, below its diagonal

    def forward(self, condition: Tensor | None = None) -> Distribution:
        return self._under(need_condition(condition, self.condition, "the prior Mixture")) if self.condition else self._alone()

    def _under(self, condition: Tensor) -> Distribution:
        """The mixtures under conditions ``(B, C)``, as one law of batch shape ``(B,)``."""
        count, size = self.locs.shape
        logits, locs, raw_scales = self.moved(condition).split([count, count * size, count * size], -1)
        shape = (*condition.shape[:-1], count, size)
        scales = positive(self.raw_scales + raw_scales.reshape(shape), "softplus", self.minimum)
        locs = self.locs + locs.reshape(shape)
        parts: Distribution = Independent(TorchNormal(locs, scales, validate_args=False), 1, validate_args=False)
        if self.covariance == "full":
            parts = TorchMultivariateNormal(locs, scale_tril=self._factors(scales), validate_args=False)
        return MixtureSameFamily(Categorical(logits=self.logits + logits, validate_args=False), parts, validate_args=False)

    def _alone(self) -> Distribution:
        scales = positive(self.raw_scales, "softplus", self.minimum)
        locs = self.locs
        factors = None if self.covariance == "diagonal" else self._factors(scales)

        def at(which: Tensor | None) -> Distribution:
            some: Any = slice(None) if which is None else which
            if factors is not None:
                return TorchMultivariateNormal(locs[some], scale_tril=factors[some], validate_args=False)
            return Independent(TorchNormal(locs[some], scales[some], validate_args=False), 1, validate_args=False)

        return Mixed(self.logits, at)

    def _factors(self, scales: Tensor) -> Tensor:
        """L of each component, ``(*batch, K, d, d)``."""
        factors = torch.diag_embed(scales)
        rows, columns = self.lower
        factors[..., rows, columns] = self.entries
        return factors

    def put(self, weights: Tensor, locs: Tensor, covariances: Tensor) -> None:
        """Take up a mixture that was found otherwise.

        Args:
            weights: ``(K,)``, which sum to 1.
            locs: ``(K, d)``.
            covariances: ``(K, d, d)``; or variances ``(K, d)`` of diagonal ones.

        Raises:
            ConfigError: shapes that are not the prior's, or a standard deviation that is not above ``minimum``.
        """
        shape = tuple(self.locs.shape)
        needed = (shape[:1], shape, shape if self.covariance == "diagonal" else (*shape, shape[1]))
        given = (tuple(weights.shape), tuple(locs.shape), tuple(covariances.shape))
        if given != needed:
            raise ConfigError(f"weights, locs and covariances of this mixture must have shapes {needed}, were {given}")
        factors = covariances.sqrt() if self.covariance == "diagonal" else torch.linalg.cholesky(covariances)
        scales = factors if self.covariance == "diagonal" else factors.diagonal(dim1=-2, dim2=-1)
        above = scales.double() - self.minimum
        if not bool((above > 0).all()):
            raise ConfigError(
                f"every standard deviation must be above minimum={self.minimum:g}, the smallest was {float(scales.min()):g}: "
                "make the mixture with a smaller minimum"
            )
        with torch.no_grad():
            self.logits.copy_(weights.clamp(min=1e-30).log())
            self.locs.copy_(locs)
            self.raw_scales.copy_(above + (-torch.expm1(-above)).log())  # softplus, inverted
            if self.covariance == "full":
                rows, columns = self.lower
                self.entries.copy_(factors[:, rows, columns])
