"""The ladder posterior: what the data say of each layer, merged with what the model's own prior says of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.distributions import Distribution, Independent
from torch.distributions import Normal as TorchNormal

from xhat import distributions
from xhat.conditionals.base import Conditional, event_of
from xhat.conditionals.chain import given
from xhat.conditionals.normal import Normal
from xhat.errors import ConfigError
from xhat.networks import in_shape_of
from xhat.networks.base import beside


class Ladder(Conditional):
    r"""Several Normal layers, drawn from the top down like the prior's, each corrected by what x says of it.

    .. math:: q(z \mid x) = q(z_L \mid x) \prod_{i<L} q(z_i \mid z_{i+1}, x), \qquad
              q(z_i \mid z_{i+1}, x) \propto p(z_i \mid z_{i+1})\, N(z_i; \hat\mu_i, \hat\sigma_i^2)

    A deterministic way up, :math:`d_i = g_i(d_{i-1})` from :math:`d_0 = x`, gives each layer an estimate
    :math:`\hat\mu_i, \hat\sigma_i` of its own. The top layer's is :math:`q(z_L \mid x)`; below, :func:`merged` multiplies it with
    the prior's layer. Those layers are the very modules of the model's prior, a ``priors.Chain``, which are trained by both; the
    ladder gets to know them when a model is put together, and holds no copy. A law of the same vector (z₁, …, z_L).

    Args:
        estimates: a Normal conditional for each layer, from the first on. The network of the first takes x, that of each other
            the features of the network before, without a draw in between.

    Raises:
        ConfigError: fewer than two layers; one that is no Normal conditional, or does not take what the one before puts out; a
            prior of other layers; a call before the ladder has met its prior.

    Source: Sønderby, Raiko, Maaløe, Sønderby & Winther (2016).

    >>> import torch
    >>> from xhat import priors
    >>> from xhat.networks import MLP
    >>> prior = priors.Chain(priors.StandardNormal(5), Normal(MLP(5, [20]), event=10))
    >>> posterior = Ladder([Normal(MLP(784, [200]), event=10), Normal(MLP(200, [50]), event=5)])
    >>> posterior.meet(prior, posterior)  # a model does this when it is put together
    >>> q = posterior(torch.rand(3, 784))
    >>> q.batch_shape, q.event_shape == prior().event_shape
    (torch.Size([3]), True)
    """

    def __init__(self, estimates: Sequence[Normal]) -> None:
        super().__init__()
        if len(estimates) < 2 or not all(isinstance(estimate, Normal) for estimate in estimates):
            raise ConfigError("estimates must be two conditionals.Normal or more: for one layer use conditionals.Normal itself")
        for number, (lower, upper) in enumerate(pairwise(estimates), 1):
            features, taken = getattr(lower.network, "out_features", None), in_shape_of(upper.network)
            if isinstance(features, int) and taken is not None and math.prod(taken) != features:
                raise ConfigError(
                    f"the network of layer {number + 1} takes {math.prod(taken)} values, but that of layer {number} puts out "
                    f"{features} features: they must be the same"
                )
        self.estimates = nn.ModuleList(estimates)
        self.event = (sum(math.prod(estimate.event) for estimate in estimates),)
        # In a tuple, so that the prior's weights are registered, counted and saved once: where they live.
        self._met: tuple[nn.Module, ...] = ()

    @property
    def _each(self) -> list[Normal]:
        return list(self.estimates)  # type: ignore[arg-type]

    def bind(self, context_shape: Sequence[int], what: str) -> None:
        self._each[0].bind(context_shape, f"{what}, first layer")

    def meet(self, prior: nn.Module | None, posterior: nn.Module) -> None:
        """Tell the ladder whose layers it goes down.

        Raises:
            ConfigError: the prior is no chain of layers of the same sizes.
        """
        layer, upper = prior, [estimate.event for estimate in self._each]
        while len(upper) > 1:
            below, top = getattr(layer, "below", None), getattr(layer, "top", None)
            if not isinstance(below, nn.Module) or not isinstance(top, nn.Module):
                raise ConfigError(
                    f"a ladder of {len(self.estimates)} layers goes down a prior of as many, one priors.Chain inside the other, "
                    f"but at layer {len(self.estimates) - len(upper) + 1} the prior has a {type(layer).__name__}"
                )
            found, wanted = event_of(below, "lower layer"), upper.pop(0)
            if found != wanted:
                raise ConfigError(
                    f"the ladder's layer {len(self.estimates) - len(upper)} has the event {wanted}, but the prior's {found}: "
                    "they must be the same"
                )
            layer = top
        if layer is None or math.prod(event_of(layer, "top layer")) != math.prod(upper[0]):
            raise ConfigError(
                f"the ladder's top layer has the event {upper[0]}, but the prior goes on with a {type(layer).__name__} of "
                f"the event {getattr(layer, 'event', None)}: they must have as many layers, of the same sizes"
            )
        self._met = () if prior is None else (prior,)

    def up(self, context: Tensor, condition: Tensor | None = None, observed: Tensor | None = None) -> list[Independent]:
        """What x alone says of each layer, from the first to the last: Normal laws, each of the batch shape of the context.

        A condition, and which values were observed, are what the first layer's network is told; the others go on from its
        features.

        Raises:
            ConfigError: a context of the wrong shape.
        """
        first = self._each[0]
        shape = tuple(context.shape[1:]) if first.context_shape is None else first.context_shape
        split = context.ndim - len(shape)
        if split < 0 or tuple(context.shape[split:]) != shape:
            raise ConfigError(
                f"Ladder takes a context of shape (*batch, {', '.join(map(str, shape))}), was {tuple(context.shape)}"
            )
        batch, seen = context.shape[:split], context.reshape(-1, *shape)
        if condition is not None:
            condition = condition.expand(*batch, condition.shape[-1]).reshape(-1, condition.shape[-1])
        others = beside(first.network, condition, None if observed is None else observed.reshape(-1, *(first.in_shape or shape)))
        laws: list[Independent] = []
        for estimate in self._each:
            with estimate.in_precision(seen):
                seen = estimate.network(seen.reshape(len(seen), *(estimate.in_shape or seen.shape[1:])), **others)
                raw = estimate.head(seen)
            if estimate.reduced is not None:
                raw = raw.to(context.dtype)
            laws.append(estimate.law(raw.reshape(*batch, *raw.shape[1:])))  # type: ignore[arg-type]
            others = {}
        return laws

    def forward(
        self,
        context: Tensor,
        condition: Tensor | None = None,
        exposure: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Distribution:
        if not self._met:
            raise ConfigError("a Ladder goes down the layers of a prior, and knows none yet: put both into a model")
        return _down(self._met[0], self.up(context, condition, observed), condition)


def _down(prior: nn.Module, estimates: list[Independent], condition: Tensor | None) -> Distribution:
    """The law of the layers that have these estimates, drawn from the top."""
    estimate, *above = estimates
    if not above:
        return estimate
    top: nn.Module = prior.top  # type: ignore[assignment]
    below: nn.Module = prior.below  # type: ignore[assignment]
    then = functools.partial(_at, given(below, condition), estimate)
    law = _down(top, above, condition)
    return distributions.Chain(law, then, estimate.event_shape, reverse=True, validate_args=False)


def _at(below: Callable[[Tensor], Distribution], estimate: Independent, z: Tensor) -> Distribution:
    return merged(below(z), estimate)


def merged(p: Distribution, q: Distribution) -> Independent:
    r"""The normalised product of two axis-aligned Normal densities: precisions add up, and weigh the means.

    .. math:: \sigma^{-2} = \sigma_p^{-2} + \sigma_q^{-2}, \qquad
              \mu = \mu_p + \frac{\sigma_q^{-2}}{\sigma_p^{-2} + \sigma_q^{-2}} (\mu_q - \mu_p)

    Shapes: batch shapes broadcast; a scale may be infinite in one of the two, which then says nothing.

    Raises:
        ConfigError: one of them is no axis-aligned Normal.

    >>> import torch
    >>> p, q = (Independent(TorchNormal(torch.tensor([m]), 1.0), 1) for m in (0.0, 3.0))
    >>> merged(p, q).mean, round(merged(p, q).variance.item(), 6)
    (tensor([1.5000]), 0.5)
    """
    lower, upper = _normal(p), _normal(q)
    precision, further = lower.scale.square().reciprocal(), upper.scale.square().reciprocal()
    both = precision + further
    loc = lower.loc + further / both * (upper.loc - lower.loc)
    return Independent(TorchNormal(loc, both.rsqrt(), validate_args=False), len(p.event_shape), validate_args=False)


def _normal(law: Distribution) -> TorchNormal:
    base = law.base_dist if isinstance(law, Independent) else law
    if isinstance(base, TorchNormal):
        return base
    raise ConfigError(
        f"a ladder merges axis-aligned Normal laws, but one was {type(base).__name__}: make each layer of the prior and of the "
        "ladder a conditionals.Normal"
    )
