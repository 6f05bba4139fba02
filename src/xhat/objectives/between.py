"""Bounds between the ELBO and the importance-weighted one: their convex combination, and Rényi's family."""

from __future__ import annotations

from xhat.errors import ConfigError, whole_number
from xhat.gradients import reduction
from xhat.objectives.base import Objective, Terms
from xhat.objectives.draws import drawn
from xhat.objectives.posed import Posed


class CIWAE(Objective):
    r"""Negative convex combination of the ELBO and the importance-weighted bound, at the same K draws.

    .. math:: L = -\beta\, \mathrm{ELBO}_K - (1 - \beta)\, \mathrm{IWAE}_K
              = -E\Big[\frac{\beta}{K} \sum_{k=1}^K \log w_k + (1-\beta) \log \frac1K \sum_{k=1}^K w_k\Big]

    The ELBO keeps a signal for the encoder where IWAE's fades. β = 0 is IWAE, β = 1 the ELBO. Both, and so what is between them,
    are lower bounds of log p(x).

    Beside ``ciwae``, the bound itself, ``iwae`` and the ELBO's own measures ``elbo``, ``log_px_given_z`` and the sampled ``kl``
    are logged at the same draws. Gradients that serve it are IWAE's.

    Args:
        share: β, the ELBO's, in [0, 1]. It is no weight of the KL, and so not called beta.
        samples: K, draws of z for each example.

    Shapes: ``loss`` and every measure ``(B,)``, in nats.

    Raises:
        ConfigError: a share outside [0, 1]; ``samples`` is no whole number of at least 1. A gradient that serves no multi-sample
            bound, such as ``stl``, is refused when the model is put together.

    Source: Rainforth et al. (Tighter variational bounds are not necessarily better, 2018).

    >>> import torch, xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="bernoulli")
    >>> model.objective = CIWAE(share=0.25, samples=5)
    >>> found = model(torch.ones(2, 4)).measures
    >>> torch.allclose(found["ciwae"], 0.25 * found["elbo"] + 0.75 * found["iwae"])
    True
    """

    name = "ciwae"
    needs_prior = True

    def __init__(self, share: float = 0.5, samples: int = 50) -> None:
        super().__init__()
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
            raise ConfigError(f"share, the ELBO's, must be in [0, 1], was {share!r}: use 0 for IWAE, 1 for the ELBO")
        whole_number("samples", samples)
        self.share, self.samples = share, samples
        self.reduction = reduction.Blend(share)  # type: ignore[misc]

    def forward(self, posed: Posed) -> Terms:
        found = drawn(posed, self.samples, self.reduction)
        return Terms(-found.bound, {"ciwae": found.bound.detach(), "iwae": found.iwae, **found.measures})


class Renyi(Objective):
    r"""Negative variational Rényi bound, of order α.

    .. math:: L = -E\Big[\frac{1}{1-\alpha} \log \frac1K \sum_{k=1}^K w_k^{1-\alpha}\Big], \qquad
              w_k = \frac{p(x, z_k)}{q(z_k|x)}

    α = 0 is IWAE; α = 1, as the limit, the ELBO. For α ≥ 0 its expectation is a lower bound of log p(x) with any K; it falls as
    α rises. For α < 0 it is a bound of nothing: with infinitely many draws it would be an upper bound, but K draws estimate it
    from below (K = 1 is the ELBO for every α), and the mean may lie on either side of log p(x). Then ``loss`` orders no models;
    the true bounds ``iwae`` and ``elbo``, which are logged beside ``renyi`` at the same draws, with ``log_px_given_z`` and the
    sampled ``kl``, do.

    Gradients that serve it are IWAE's.

    Args:
        alpha: α, a number from -1e6 to 1e6.
        samples: K, draws of z for each example.

    Shapes: ``loss`` and every measure ``(B,)``, in nats.

    Raises:
        ConfigError: ``alpha`` is no such number, or ``samples`` no whole number of at least 1. A gradient that serves no
            multi-sample bound, such as ``stl``, is refused when the model is put together.

    Source: Li & Turner (Rényi divergence variational inference, 2016).

    >>> import torch, xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="bernoulli")
    >>> model.objective = Renyi(alpha=0.5, samples=5)
    >>> found = model(torch.ones(2, 4)).measures
    >>> bool(((found["elbo"] <= found["renyi"]) & (found["renyi"] <= found["iwae"])).all())
    True
    """

    name = "renyi"
    needs_prior = True

    def __init__(self, alpha: float = 0.5, samples: int = 50) -> None:
        super().__init__()
        whole_number("samples", samples)
        self.reduction = reduction.Renyi(alpha)  # type: ignore[misc]
        self.alpha, self.samples = alpha, samples

    def forward(self, posed: Posed) -> Terms:
        found = drawn(posed, self.samples, self.reduction)
        return Terms(-found.bound, {"renyi": found.bound.detach(), "iwae": found.iwae, **found.measures})
