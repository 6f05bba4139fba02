"""The Kullback-Leibler divergence between two laws, in closed form or by Monte Carlo."""

from __future__ import annotations

import math
from typing import NamedTuple, overload

import torch
from torch import Tensor
from torch.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal, Normal, OneHotCategorical

# Imported for their rows in the table of rules.
from xhat.distributions import kl_continuous, kl_discrete, kl_normal  # noqa: F401
from xhat.distributions.kl_table import closed_form
from xhat.distributions.shapes import broadcast
from xhat.distributions.support import extended_log_prob, is_discrete, reference_measure, split
from xhat.errors import ConfigError


class Estimate(NamedTuple):
    """A number and how far off it may be, in nats.

    ``value`` and ``stderr`` are ``(*batch)``; ``stderr`` is 0 where the value is exact, and carries no gradient.
    """

    value: Tensor
    stderr: Tensor


@overload
def kl_divergence(p: Distribution, q: Distribution, samples: None = None) -> Tensor: ...
@overload
def kl_divergence(p: Distribution, q: Distribution, samples: int) -> Estimate: ...
def kl_divergence(p: Distribution, q: Distribution, samples: int | None = None) -> Tensor | Estimate:
    r"""The Kullback-Leibler divergence of q from p, summed over the event.

    .. math:: D(p \| q) = E_p[\log p(x) - \log q(x)] \ge 0

    Closed forms are found for all pairs of torch's table, for the whole Normal family (full, low rank, independent, in
    any mixture), for laws wrapped in Independent however deep, and for the laws of this package. A closed form is exact
    at probabilities of 0, and may be inf.

    With ``samples`` a pair without a closed form is estimated from so many draws of p. Draws made by ``rsample`` give
    the value its pathwise gradient; where p has none (discrete laws with a straight-through ``rsample`` included) the
    value comes back detached, for the average of log p - log q over fixed draws does not have the gradient of the
    divergence. A draw outside the support of q proves that the divergence is infinite: inf, with a ``stderr`` of 0.

    Args:
        p: the law that expectations are under.
        q: the law it is compared with. Batch shapes broadcast; event shapes must be equal.
        samples: number of Monte Carlo draws, at least 2; they are held in memory at once.

    Returns:
        ``(*batch)`` in nats; with ``samples`` an :class:`Estimate` of two such tensors.

    Raises:
        ConfigError: the shapes do not fit; p and q have densities with respect to different measures (one is discrete
            or a point mass, the other continuous); ``samples`` is below 2; or the pair has no closed form and
            ``samples`` was not given.

    Source: Kullback & Leibler, On information and sufficiency (1951).

    >>> from torch.distributions import Categorical, StudentT
    >>> p = Categorical(torch.tensor([9.0, 12.0, 4.0], dtype=torch.float64) / 25)
    >>> q = Categorical(torch.ones(3, dtype=torch.float64) / 3)
    >>> print(f"{kl_divergence(p, q):.7f} {kl_divergence(q, p):.7f}")
    0.0852996 0.0974550
    >>> _ = torch.manual_seed(0)
    >>> value, stderr = kl_divergence(StudentT(5.0), Normal(0.0, 1.0), samples=1000)
    >>> bool(value < 0.3), bool(stderr < 0.1)
    (True, True)
    """
    _check(p, q, "kl_divergence")
    if samples is not None and samples < 2:
        raise ConfigError(f"kl_divergence: samples must be at least 2 to have a standard error, but was {samples}")
    exact = closed_form(p, q)
    if samples is None:
        if exact is None:
            raise ConfigError(
                f"kl_divergence: there is no closed form for {_name(p)} against {_name(q)} as they are: "
                "ask for a Monte Carlo estimate with samples=1000"
            )
        return exact
    if exact is not None:
        return Estimate(exact, torch.zeros_like(exact))
    return _monte_carlo(p, q, samples)


def _monte_carlo(p: Distribution, q: Distribution, samples: int) -> Estimate:
    batch = broadcast(p.batch_shape, q.batch_shape)
    pathwise = p.has_rsample and not is_discrete(p)
    with torch.set_grad_enabled(pathwise and torch.is_grad_enabled()):
        if p.batch_shape != batch:
            p = p.expand(batch)  # draws of one's own for every pair, or the errors within a batch would be copies
        z = p.rsample((samples,)) if pathwise else p.sample((samples,))
        ratio = p.log_prob(z) - extended_log_prob(q, z)
        value = ratio.mean(0)
    stderr = ratio.detach().std(0) / math.sqrt(samples)
    return Estimate(value, stderr.masked_fill(value.detach() == torch.inf, 0.0))


def has_closed_form(p: Distribution, q: Distribution) -> bool:
    """Whether ``kl_divergence(p, q)`` needs no samples.

    Rules may depend on values (equal counts, equal maps), so the divergence is computed, without its gradient, to know.

    Raises:
        ConfigError: no divergence exists between p and q; see :func:`kl_divergence`.

    >>> from torch.distributions import Laplace
    >>> has_closed_form(Laplace(0.0, 1.0), Normal(0.0, 1.0)), has_closed_form(Normal(0.0, 1.0), Normal(0.0, 1.0))
    (True, True)
    """
    _check(p, q, "has_closed_form")
    with torch.no_grad():
        return closed_form(p, q) is not None


def kl_per_dimension(q: Distribution, p: Distribution) -> Tensor:
    r"""The divergence of each latent dimension on its own, :math:`D(q(z_i) \| p(z_i))`.

    For two factorised laws (:class:`~torch.distributions.Independent`, or plain laws of single numbers) these sum to
    ``kl_divergence(q, p)``. For a ``MultivariateNormal`` or ``LowRankMultivariateNormal`` q against independent Normals
    they are the divergences of the marginals: they do *not* sum to the divergence, which counts the correlations too,
    but never exceed it in sum. A one-hot vector is one dimension, whatever the number of its categories.

    Args:
        q: the law that expectations are under, a posterior for instance.
        p: the law it is compared with, a prior for instance.

    Returns:
        ``(*batch, *event)`` in nats; for one-hot vectors ``(*batch, *event[:-1])``, and ``(*batch, 1)`` for a single one.

    Raises:
        ConfigError: the shapes do not fit, a law does not factorise over its event, or the marginals have no closed
            form.

    >>> from torch.distributions import Independent
    >>> q = Independent(Normal(torch.tensor([0.0, 1.0, 2.0]), torch.ones(3)), 1)
    >>> p = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    >>> kl_per_dimension(q, p)
    tensor([0.0000, 0.5000, 2.0000])
    """
    _check(q, p, "kl_per_dimension")
    (q_base, _), (p_base, _) = split(q), split(p)
    if isinstance(q_base, MultivariateNormal | LowRankMultivariateNormal) and isinstance(p_base, Normal):
        q_base = Normal(q_base.loc, q_base.variance.sqrt(), validate_args=False)
    one_hot = isinstance(q_base, OneHotCategorical) and isinstance(p_base, OneHotCategorical)
    for law, base in ((q, q_base), (p, p_base)):
        if base.event_shape and not one_hot:
            raise ConfigError(
                f"kl_per_dimension: both laws must factorise over their event, but {_name(law)} does not: "
                "use kl_divergence, which gives one number an event"
            )
    result = closed_form(q_base, p_base)
    if result is None:
        raise ConfigError(
            f"kl_per_dimension: there is no closed form for {_name(q_base)} against {_name(p_base)}: "
            "use kl_divergence with samples=1000, which gives one number an event"
        )
    batch = broadcast(q.batch_shape, p.batch_shape)
    if one_hot:
        return result.expand(batch + q.event_shape[:-1]).reshape(*batch, *(q.event_shape[:-1] or (1,)))
    return result.expand(batch + q.event_shape)


def _check(p: Distribution, q: Distribution, where: str) -> None:
    if p.event_shape != q.event_shape:
        raise ConfigError(
            f"{where}: both laws must have the same event shape, but {_name(p)} has {tuple(p.event_shape)} and "
            f"{_name(q)} has {tuple(q.event_shape)}: wrap the one that is short of axes in Independent"
        )
    try:
        broadcast(p.batch_shape, q.batch_shape)
    except RuntimeError as error:
        raise ConfigError(
            f"{where}: the batch shapes must broadcast, but {_name(p)} has {tuple(p.batch_shape)} and {_name(q)} has "
            f"{tuple(q.batch_shape)}: expand one of them"
        ) from error
    ours, theirs = reference_measure(p), reference_measure(q)
    if ours != theirs:
        raise ConfigError(
            f"{where}: {_name(p)} has a density with respect to the {ours} measure and {_name(q)} to the {theirs} "
            "measure, so that no finite divergence exists between them: choose two discrete laws or two continuous "
            "ones on the same space"
        )


def _name(law: Distribution) -> str:
    base, axes = split(law)
    name = type(base).__name__
    return f"Independent({name}, {axes})" if axes else name
