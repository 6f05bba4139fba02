"""The log density of what was seen of an event, where not all of it was."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    OneHotCategorical,
    constraints,
)

from xhat.distributions.support import split
from xhat.errors import ConfigError


def observed_log_prob(law: Distribution, value: Tensor, observed: Tensor | None) -> Tensor:
    r"""The log density or mass of the observed elements of an event, the others integrated out.

    .. math:: \log p(x_o) = \log \int p(x_o, x_m)\, dx_m

    Of independent elements it is the sum over those that were observed; of a multivariate Normal the law of the observed elements
    is the Normal of their means and covariances; of a mixture, the mixture of that. With nothing observed it is 0.

    What stands in ``value`` where nothing was observed has no influence, on the derivative neither.

    Args:
        law: of batch shape ``(*lead, *batch)``.
        value: ``(*batch, *event)``.
        observed: of value's shape, bool; None: all of it. A one-hot vector counts as observed if all of it is.

    Returns:
        ``(*lead, *batch)``, nats.

    Raises:
        ConfigError: a law whose elements cannot be left out.

    >>> law = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3), 1.0), 1)
    >>> x, seen = torch.tensor([0.0, 5.0, float("nan")]), torch.tensor([True, False, False])
    >>> observed_log_prob(law, x, seen)
    tensor(-0.9189)
    """
    if observed is None:
        return law.log_prob(value)
    base, axes = split(law)
    if isinstance(base, MixtureSameFamily) and base.event_shape:
        seen, mask = value.unsqueeze(-1 - len(base.event_shape)), observed.unsqueeze(-1 - len(base.event_shape))
        parts = observed_log_prob(base.component_distribution, seen, mask)
        each = (parts + base.mixture_distribution.logits.log_softmax(-1)).logsumexp(-1)
        return each.flatten(each.ndim - axes).sum(-1) if axes else each
    if isinstance(base, MultivariateNormal | LowRankMultivariateNormal):
        each = _normal(base, value, observed)
    elif isinstance(base, OneHotCategorical):
        whole = observed.all(-1)
        first = torch.nn.functional.one_hot(torch.zeros((), dtype=torch.int64, device=value.device), base.event_shape[-1])
        filled = torch.where(whole.unsqueeze(-1), value, first.to(value.dtype))
        each = _chosen(base.log_prob(filled), whole)
    elif not base.event_shape:
        each = _chosen(base.log_prob(torch.where(observed, value, _inside(base))), observed)
    else:
        raise ConfigError(
            f"x has values that were not observed, and {type(base).__name__} cannot leave elements of an event out: use a "
            "likelihood of independent elements, such as likelihood='normal'"
        )
    # Independent's own way of adding up, so that with all observed the last digit is the same
    return each.reshape((*each.shape[: each.ndim - axes], -1)).sum(-1) if axes else each


def _chosen(each: Tensor, observed: Tensor) -> Tensor:
    return torch.where(observed, each, torch.zeros((), dtype=each.dtype, device=each.device))


def _inside(base: Distribution) -> float:
    """A value that any law of this kind has a density at."""
    try:
        support = base.support
    except NotImplementedError:
        return 0.0
    return 1.0 if support in (constraints.positive, constraints.positive_integer) else 0.0


def _normal(law: MultivariateNormal | LowRankMultivariateNormal, value: Tensor, observed: Tensor) -> Tensor:
    """The density of the observed elements: the others get a mean of their own value, variance 1/(2π), and no covariance."""
    covariance = law.covariance_matrix
    both = observed.unsqueeze(-1) & observed.unsqueeze(-2)
    alone = torch.eye(value.shape[-1], dtype=covariance.dtype, device=covariance.device) / (2 * torch.pi)
    factor = torch.linalg.cholesky(torch.where(both, covariance, alone))
    loc = law.loc
    off = torch.where(observed, torch.where(observed, value, 0.0) - loc, torch.zeros((), dtype=loc.dtype, device=loc.device))
    part = MultivariateNormal(torch.zeros_like(off), scale_tril=factor.expand(*off.shape, -1), validate_args=False).log_prob(off)
    return torch.where(observed.all(-1), law.log_prob(torch.where(observed, value, 0.0)), part)  # whole events to the last digit
