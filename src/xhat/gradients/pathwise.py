"""The reparameterised gradient, with plain, antithetic or quasi-random noise."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, Normal, TransformedDistribution
from torch.quasirandom import SobolEngine

from xhat.distributions.support import split
from xhat.errors import ConfigError
from xhat.gradients.base import Function, Path, followed
from xhat.gradients.reduction import Reduction

NOISE = ("independent", "antithetic", "sobol")


class Pathwise(Path):
    r"""Derivative along the sample's own path, :math:`z = g_\phi(\varepsilon)`, with ε free of φ.

    .. math:: \nabla_\phi E_q[f] = E_\varepsilon[\nabla_z f(z)\, \nabla_\phi g_\phi(\varepsilon)]

    Explicit where the law has such a g (μ + σε), implicit where only its distribution function is known (Gamma, Beta, Dirichlet:
    :math:`\nabla_\phi z = -\nabla_\phi F / q`), as torch's ``rsample`` does it. f must be differentiable in z.

    Args:
        noise: ``"independent"``; ``"antithetic"``, pairs mirrored at the law's centre (``samples`` must be even), which removes
            the odd part of f; or ``"sobol"``, randomised quasi-Monte Carlo: Sobol' points, shifted at random modulo 1 for each
            example, go through the inverse distribution function. Every draw still has the law q, so all three are unbiased.

    Raises:
        ConfigError: an unknown noise.

    Source: Kingma & Welling (2013); Rezende, Mohamed & Wierstra (2014); implicit: Figurnov, Mohamed & Mnih (2018); randomised
    quasi-Monte Carlo: Cranley & Patterson (1976); Buchholz, Wenzel & Mandt (2018).

    >>> import torch
    >>> loc, scale = torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    >>> q = torch.distributions.Normal(loc, scale)
    >>> z = q.rsample()
    >>> dloc, dscale = torch.autograd.grad(z, (loc, scale))
    >>> dloc.item(), torch.isclose(dscale, (z - loc) / scale).item()
    (1.0, True)
    """

    unbiased = True
    reductions = frozenset({"mean", "log-mean-exp"})

    def __init__(self, noise: str = "independent") -> None:
        super().__init__()
        if noise not in NOISE:
            raise ConfigError(f"noise must be one of {', '.join(NOISE)}, was {noise!r}")
        self.noise = noise
        extra = {"independent": "rsample", "antithetic": "symmetric", "sobol": "icdf"}[noise]
        self.requires = frozenset({"rsample", extra})
        if noise != "independent":
            # K-sample bounds are defined for independent draws; the mean does not care.
            self.reductions = frozenset({"mean"})  # type: ignore[misc]

    @property
    def fewest_samples(self) -> int:
        return 2 if self.noise == "antithetic" else 1

    @property
    def takes(self) -> str:
        return "takes an even number of samples, half of them mirror images"

    def usable(self, samples: int) -> int:
        return samples + samples % 2 if self.noise == "antithetic" else samples

    def lacks(self, q: Distribution) -> str | None:
        missing = super().lacks(q)
        if missing is None and self.noise == "sobol" and q.event_shape.numel() > SobolEngine.MAXDIM:
            return f"an event of at most {SobolEngine.MAXDIM} numbers, as many as Sobol' points have"
        return missing

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        return samples

    def draw(self, q: Distribution, samples: int) -> Tensor:
        if self.noise == "independent":
            if samples == 1 and isinstance(split(q)[0], Normal):
                return q.rsample().unsqueeze(0)  # the same draw, without an axis that its derivative is summed over
            return q.rsample((samples,))
        if self.noise == "antithetic":
            z = q.rsample((samples // 2,))
            base, _ = split(q)
            centre = getattr(base, "loc", None)
            return torch.cat([z, 2 * (base.mean if centre is None else centre) - z])
        return _through_icdf(q, samples)

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        return reduce(followed(f, self.draw(q, samples)))


@functools.lru_cache(maxsize=16)
def _sobol(size: int, samples: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The first Sobol' points, ``(samples, size)``: always the same, and kept, for they are made on the processor."""
    with torch.inference_mode(False):  # a later step may differentiate past them
        return SobolEngine(size).draw(samples, dtype=dtype).to(device)


def _through_icdf(q: Distribution, samples: int) -> Tensor:
    """Draws from Sobol' points shifted by one uniform number for each example and element."""
    base, _ = split(q)
    inner = base
    while isinstance(inner, TransformedDistribution):  # it may have no formula for its mean
        inner = inner.base_dist
    like = inner.mean
    shape = q.batch_shape + q.event_shape
    size = q.event_shape.numel()
    points = _sobol(size, samples, like.dtype, like.device).reshape(samples, *(1,) * len(q.batch_shape), *q.event_shape)
    eps = torch.finfo(like.dtype).eps
    u = ((points + torch.rand(shape, dtype=like.dtype, device=like.device)) % 1).clamp(eps, 1 - eps)
    if isinstance(base, MultivariateNormal):
        noise = Normal(torch.zeros_like(like), 1.0, validate_args=False).icdf(u)
        return base.loc + (base._unbroadcasted_scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
    return base.icdf(u)
