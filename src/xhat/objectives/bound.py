"""``xhat.bound``: an evidence bound for a joint density and a law of one's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.distributions import Distribution

from xhat.errors import ConfigError
from xhat.gradients import Gradient, LogMeanExp, LogWeight, Mean, Reduction, expectation

BOUNDS: dict[str, type[Reduction]] = {"elbo": Mean, "iwae": LogMeanExp}


def bound(
    log_joint: Callable[[Tensor], Tensor],
    q: Distribution,
    objective: str | Reduction = "elbo",
    gradient: str | Gradient = "pathwise",
    samples: int = 1,
) -> Tensor:
    r"""An evidence bound per example, from :math:`\log p(x, z)` and a law q(z) alone.

    .. math:: \mathrm{ELBO} = E_q[\log p(x, z) - \log q(z)]
              \le E_q\Big[\log \frac1S \sum_{i=1}^S \frac{p(x, z_i)}{q(z_i)}\Big] \le \log p(x)

    Because it knows log q, the path derivatives live here: ``"stl"`` (ELBO) and ``"dreg"`` (either), and for draws without a path
    ``"vimco"`` (IWAE).

    Args:
        log_joint: maps ``(S, *batch, *event)`` to log p(x, z), ``(S, *batch)``, in nats.
        q: the law of z.
        objective: ``"elbo"``, the mean of the log weights; ``"iwae"``, the logarithm of the weights' mean; or a reduction of
            :mod:`xhat.gradients` with options of its own: ``Renyi(alpha)``, ``Blend(beta)``, between the two, or
            ``Grouped(groups)``, the mean of several IWAE bounds, ``samples`` being those of all groups together.
        gradient: a name of ``xhat.gradients.GRADIENTS`` or an estimator.
        samples: S.

    Returns:
        ``(*batch)``, nats.

    Raises:
        ConfigError: an unknown objective; a gradient that does not fit q or the bound.

    Source: Kingma & Welling (2013); IWAE: Burda, Grosse & Salakhutdinov (2016); Rényi: Li & Turner (2016); the others: Rainforth
    et al. (2018).

    >>> import torch
    >>> q = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(5, 2), 1.0), 1)
    >>> bound(q.log_prob, q, samples=3)
    tensor([0., 0., 0., 0., 0.])
    >>> from xhat.gradients import Renyi
    >>> bound(q.log_prob, q, objective=Renyi(0.5), gradient="dreg", samples=3).shape
    torch.Size([5])
    """
    if isinstance(objective, Reduction):
        return expectation(LogWeight(log_joint, q), q, gradient, samples, objective)
    if not isinstance(objective, str) or objective not in BOUNDS:
        raise ConfigError(
            f"objective must be one of {', '.join(BOUNDS)}, was {objective!r}; other bounds are objects, such as "
            "xhat.gradients.Renyi(alpha=0.5)"
        )
    return expectation(LogWeight(log_joint, q), q, gradient, samples, BOUNDS[objective]())
