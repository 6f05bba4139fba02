"""``xhat.bound``: an evidence bound for a joint density and a law of one's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.distributions import Distribution

from xhat.errors import ConfigError
from xhat.gradients import Gradient, expectation

BOUNDS = ("elbo",)


def bound(
    log_joint: Callable[[Tensor], Tensor],
    q: Distribution,
    objective: str = "elbo",
    gradient: str | Gradient = "pathwise",
    samples: int = 1,
) -> Tensor:
    r"""An evidence bound per example, from :math:`\log p(x, z)` and a law q(z) alone.

    .. math:: \mathrm{ELBO} = E_q[\log p(x, z) - \log q(z)] \le \log p(x)

    Args:
        log_joint: maps ``(S, *batch, *event)`` to log p(x, z), ``(S, *batch)``, in nats.
        q: the law of z.
        objective: ``"elbo"``.
        gradient: a name of ``xhat.gradients.GRADIENTS`` or an estimator.
        samples: S.

    Returns:
        ``(*batch)``, nats.

    Raises:
        ConfigError: an unknown objective; a gradient that does not fit q.

    >>> import torch
    >>> q = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(5, 2), 1.0), 1)
    >>> bound(q.log_prob, q, samples=3)
    tensor([0., 0., 0., 0., 0.])
    """
    if objective not in BOUNDS:
        raise ConfigError(f"objective must be one of {', '.join(BOUNDS)}, was {objective!r}")
    return expectation(lambda z: log_joint(z) - q.log_prob(z), q, gradient, samples)
