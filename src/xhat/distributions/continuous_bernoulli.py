"""The law on [0, 1] for grey values under a Bernoulli-like likelihood, computed from logits."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.types import _size

# log(sinh(l/2) / (l/2)) = sum of B_2n / (2n (2n)!) l^2n, B the Bernoulli numbers. Eleven terms reach float64 for the
# function and its first three derivatives wherever |l| < 1.
_SERIES = (
    1 / 24,
    -1 / 2880,
    1 / 181440,
    -1 / 9676800,
    1 / 479001600,
    -691 / 15692092416000,
    1 / 1046139494400,
    -3617 / 170729965486080000,
    43867 / 91963695909076992000,
    -174611 / 16057153253965824000000,
    77683 / 310224200866619719680000,
)
_SMALL = 1.0
_SMALL_INVERSE = 0.25


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


class ContinuousBernoulli(Distribution):
    r"""The continuous Bernoulli law on [0, 1], stable for every logit.

    .. math:: \log p(x) = x\ell - \log(1 + e^\ell) + \log C(\ell), \qquad C(\ell) = \frac{\ell}{\tanh(\ell/2)}

    which is the exponential family :math:`\log p(x) = x\ell - \log\frac{e^\ell - 1}{\ell}` (Loaiza-Ganem & Cunningham,
    The continuous Bernoulli: fixing a pervasive error in variational autoencoders, 2019). torch's law of this name
    works from clamped probabilities; this one from logits, with series around 0, so that values and gradients stay
    right from 0 to hundreds, and the gradient at 0 exists.

    Args:
        logits: :math:`\ell`, ``(*batch)``, any real numbers.

    >>> law = ContinuousBernoulli(torch.tensor([0.0, 40.0, -40.0]))
    >>> law.mean
    tensor([0.5000, 0.9750, 0.0250])
    >>> law.log_prob(torch.tensor([0.5, 1.0, 0.5]))
    tensor([  0.0000,   3.6889, -16.3111])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = torch.as_tensor(logits)
        super().__init__(self.logits.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: Any = None) -> ContinuousBernoulli:
        law = ContinuousBernoulli(self.logits.expand(torch.Size(batch_shape)), validate_args=False)
        law._validate_args = self._validate_args
        return law

    # Each quantity has two branches: a series in z = l near 0, and a form in decaying exponentials of a = |l|.
    # Each branch sees a harmless number where the other is chosen, or its infinities would turn gradients into NaN.

    def _split(self, small: float = _SMALL) -> tuple[Tensor, Tensor, Tensor]:
        near = self.logits.abs() < small
        return near, torch.where(near, self.logits, 0.0), torch.where(near, 1.0, self.logits).abs()

    def _anchored(self) -> tuple[Tensor, Tensor]:
        """``(c, r)`` with log p(x) = l (x - c) - r, c the end of [0, 1] with the mass, or 1/2 near l = 0."""
        near, z, a = self._split()
        anchor = torch.where(near, 0.5, (self.logits > 0).to(z.dtype))
        rest = torch.where(near, z * z * _polynomial(z * z, _SERIES), (-torch.expm1(-a) / a).log())
        return anchor, rest

    @property
    def log_normaliser(self) -> Tensor:
        r""":math:`\log\frac{e^\ell - 1}{\ell}`, ``(*batch)``; its derivative is the mean."""
        anchor, rest = self._anchored()
        return self.logits * anchor + rest

    @property
    def mean(self) -> Tensor:
        near, z, a = self._split()
        slopes = tuple(2 * n * c for n, c in enumerate(_SERIES, start=1))
        from_end = 1 / a + torch.exp(-a) / torch.expm1(-a)
        far = torch.where(self.logits > 0, 1 - from_end, from_end)
        return torch.where(near, 0.5 + z * _polynomial(z * z, slopes), far)

    @property
    def variance(self) -> Tensor:
        near, z, a = self._split()
        curvatures = tuple(2 * n * (2 * n - 1) * c for n, c in enumerate(_SERIES, start=1))
        return torch.where(near, _polynomial(z * z, curvatures), 1 / (a * a) - torch.exp(-a) / torch.expm1(-a).square())

    @property
    def mode(self) -> Tensor:
        """The end of [0, 1] where the density is largest (0 for the uniform law, which has no single mode)."""
        return (self.logits > 0).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        anchor, rest = self._anchored()
        return self.logits * (value - anchor) - rest

    def entropy(self) -> Tensor:
        """Differential entropy in nats, ``(*batch)``; at most 0."""
        near, z, a = self._split()
        deficits = tuple((1 - 2 * n) * c for n, c in enumerate(_SERIES, start=1))
        far = 1 + a * torch.exp(-a) / torch.expm1(-a) + (-torch.expm1(-a) / a).log()
        return torch.where(near, z * z * _polynomial(z * z, deficits), far)

    def cdf(self, value: Tensor) -> Tensor:
        """P(X <= value), 0 below the support and 1 above it."""
        x = value.clamp(0, 1)
        near, z, a = self._split()
        far = torch.expm1(-a * x) / torch.expm1(-a)
        far = far * torch.where(self.logits > 0, torch.exp(-a * (1 - x)), 1.0)
        return torch.where(near, x * _relative_expm1(z * x) / _relative_expm1(z), far)

    def icdf(self, value: Tensor) -> Tensor:
        r"""The quantile :math:`\log(1 + u(e^\ell - 1)) / \ell` of probabilities u in [0, 1]."""
        near, z, a = self._split(_SMALL_INVERSE)
        t = value * z * _relative_expm1(z)
        series = value * _relative_expm1(z) * _relative_log1p(t)
        # Measured from the end where the mass is, by the symmetry x(u; l) = 1 - x(1 - u; -l).
        right = self.logits > 0
        inner = torch.where(right, 1 - value, value)
        outer = torch.where(right, value, 1 - value)
        # -log(1 - inner (1 - e^-a)) / a: log1p while that is small, else a sum of two positive numbers.
        step = inner * -torch.expm1(-a)
        close = step < 0.5
        direct = torch.log1p(-torch.where(close, step, 0.0))
        log_outer = torch.where(outer > 0, outer, 1.0).log().masked_fill(outer <= 0, -torch.inf)
        tail = torch.logaddexp(log_outer, torch.where(close, 0.5, inner).log() - a)
        distance = -torch.where(close, direct, tail) / a
        return torch.where(near, series, torch.where(right, 1 - distance, distance))

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """Draws by the inverse of the distribution function: the gradient in the logits is the pathwise one."""
        shape = self._extended_shape(sample_shape)
        return self.icdf(torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device))


_RECIPROCAL_FACTORIALS = tuple(
    1.0 / f
    for f in (
        *(1, 2, 6, 24, 120, 720, 5040, 40320, 362880, 3628800),
        *(39916800, 479001600, 6227020800, 87178291200, 1307674368000, 20922789888000, 355687428096000),
    )
)
_ODD_RECIPROCALS = tuple(1 / (2 * n + 1) for n in range(10))


def _relative_expm1(t: Tensor) -> Tensor:
    """(e^t - 1) / t for |t| <= 1, smooth through 0."""
    return _polynomial(t, _RECIPROCAL_FACTORIALS)


def _relative_log1p(t: Tensor) -> Tensor:
    """log(1 + t) / t for |t| < 0.3, smooth through 0: 2 artanh(s) / t with s = t / (2 + t)."""
    s = t / (2 + t)
    return 2 / (2 + t) * _polynomial(s * s, _ODD_RECIPROCALS)
