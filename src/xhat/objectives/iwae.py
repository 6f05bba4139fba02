"""The importance-weighted bound."""

from __future__ import annotations

from xhat.errors import whole_number
from xhat.gradients import LogMeanExp
from xhat.objectives.base import Objective, Terms
from xhat.objectives.draws import drawn
from xhat.objectives.posed import Posed


class IWAE(Objective):
    r"""Negative importance-weighted bound: the logarithm of the mean of K weights, with z drawn K times from q(z|x).

    .. math:: L = -E\Big[\log \frac1K \sum_{k=1}^K w_k\Big], \qquad w_k = \frac{p(x, z_k)}{q(z_k|x)}

    It lies between the ELBO, which it is for K = 1, and log p(x), which it goes to as K grows. The encoder runs once for each
    example, the decoder on K codes of each. Beside ``iwae``, the bound itself, the ELBO's own measures are logged at the same
    draws (``elbo``, ``log_px_given_z`` and the sampled ``kl``), so that runs with different objectives compare.

    Gradients that serve it: ``pathwise`` and ``dreg``, whose signal for the encoder does not fade as K grows; ``vimco``, ``rloo``
    and ``score`` for draws without a path.

    Args:
        samples: K, draws of z for each example; exactly so many are made.

    Shapes: ``loss`` and every measure ``(B,)``, in nats.

    Raises:
        ConfigError: ``samples`` is no whole number of at least 1. A gradient that serves no multi-sample bound, such as ``stl``,
            is refused when the model is put together.

    Source: Burda, Grosse & Salakhutdinov (2016).

    >>> import torch, xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="bernoulli", objective="iwae", samples=5)
    >>> terms = model(torch.ones(3, 4))
    >>> terms.loss.shape, sorted(terms.measures)
    (torch.Size([3]), ['elbo', 'iwae', 'kl', 'log_px_given_z'])
    >>> bool((terms.measures["elbo"] <= terms.measures["iwae"]).all())
    True
    """

    name = "iwae"
    reduction = LogMeanExp()
    needs_prior = True

    def __init__(self, samples: int = 50) -> None:
        super().__init__()
        whole_number("samples", samples)
        self.samples = samples

    def forward(self, posed: Posed) -> Terms:
        found = drawn(posed, self.samples, self.reduction)
        return Terms(-found.bound, {"iwae": found.bound.detach(), **found.measures})
