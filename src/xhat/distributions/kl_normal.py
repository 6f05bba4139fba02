r"""Closed forms for the Normal family: one number, independent numbers, full covariance, low rank plus diagonal.

Everything is arranged in sums of terms that cannot be negative, each computed without cancellation, so that two nearly
equal laws get a small divergence with all its digits, not the difference of two large numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal
from torch.nn import functional as F

from xhat.distributions.kl_table import rule
from xhat.distributions.standard_normal import StandardNormal

_NEAR = 0.05


def excess(ratio: Tensor, shift: Tensor) -> Tensor:
    r""":math:`r - 1 - \ln r \ge 0` of ``ratio`` r > 0, given ``shift`` = r - 1 without rounding from the subtraction.

    Near r = 1 both parts nearly cancel; there, with t = r - 1 and u = t / (2 + t), it is
    :math:`ut - 2u^3(\frac13 + \frac{u^2}5 + \dots)`, since :math:`\ln r = 2\operatorname{artanh} u`.
    """
    near = shift.abs() < _NEAR
    t = F.hardtanh(shift, -_NEAR, _NEAR)  # finite where it is not taken; one kernel, and one for its derivative
    u = t / (2 + t)
    v = u * u
    tail = 1 / 3 + v * (1 / 5 + v * (1 / 7 + v * (1 / 9 + v / 11)))
    return torch.where(near, u * (t - 2 * v * tail), shift - ratio.log())


def scale_excess(ratio: Tensor, shift: Tensor) -> Tensor:
    r""":math:`m^2 - 1 - \ln m^2 \ge 0`: twice the divergence between Normals whose scales have the ratio m."""
    return 2 * excess(ratio, shift) + shift * shift


@rule(Normal, Normal)
def normal_normal(p: Normal, q: Normal) -> Tensor:
    spread = scale_excess(p.scale / q.scale, (p.scale - q.scale) / q.scale)
    return 0.5 * (spread + ((p.loc - q.loc) / q.scale).square())


@rule(Normal, StandardNormal)
def normal_standard(p: Normal, q: StandardNormal) -> Tensor:
    """The same digits without subtracting 0 and dividing by 1, which are kernels of their own, forward and backward."""
    if p.scale.dtype != q.scale.dtype:
        return normal_normal(p, q)
    ratio = p.scale.view_as(p.scale)  # a node of its own, so that derivatives are added up in the same order
    return 0.5 * (scale_excess(ratio, p.scale - 1) + p.loc.square())


def solve(tril: Tensor, right: Tensor) -> Tensor:
    """``tril``⁻¹ ``right``. One matrix for a batch of right-hand sides is solved once, not copied for each of them."""
    if tril.dim() > 2 or right.dim() <= 2:
        return torch.linalg.solve_triangular(tril, right, upper=False)
    columns = right.movedim(-2, 0)
    solved = torch.linalg.solve_triangular(tril, columns.flatten(1), upper=False)
    return solved.unflatten(1, columns.shape[1:]).movedim(0, -2)


def matrix_excess(p_tril: Tensor, q_tril: Tensor) -> Tensor:
    r""":math:`\operatorname{tr} R - k - \ln\det R` for :math:`R = \Sigma_q^{-1}\Sigma_p`, from the Cholesky factors.

    With :math:`M = L_q^{-1}L_p` it is :math:`\sum_i (m_{ii}^2 - 1 - \ln m_{ii}^2) + \sum_{i>j} m_{ij}^2`. M is built as
    :math:`I + L_q^{-1}(L_p - L_q)`, which keeps the digits of its distance from I.
    """
    change = solve(q_tril, p_tril - q_tril)
    p_diagonal, q_diagonal = _diagonal(p_tril), _diagonal(q_tril)
    on = scale_excess(p_diagonal / q_diagonal, (p_diagonal - q_diagonal) / q_diagonal).sum(-1)
    return on + change.tril(-1).square().sum((-2, -1))


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)


def _tril(law: MultivariateNormal | LowRankMultivariateNormal) -> Tensor:
    # The private fields keep the batch that the user gave: expanded, one shared matrix would be solved once an example.
    if isinstance(law, MultivariateNormal):
        return law._unbroadcasted_scale_tril
    root = law._unbroadcasted_cov_diag.sqrt().unsqueeze(-1)
    factor = law._unbroadcasted_cov_factor / root
    eye = torch.eye(factor.shape[-2], dtype=factor.dtype, device=factor.device)
    return root * torch.linalg.cholesky(eye + factor @ factor.mT)


@rule(MultivariateNormal, MultivariateNormal)
@rule(MultivariateNormal, LowRankMultivariateNormal)
@rule(LowRankMultivariateNormal, MultivariateNormal)
def full_full(p: MultivariateNormal | LowRankMultivariateNormal, q: MultivariateNormal | LowRankMultivariateNormal) -> Tensor:
    q_tril = _tril(q)
    distance = solve(q_tril, (p.loc - q.loc).unsqueeze(-1)).square().sum((-2, -1))
    return 0.5 * (matrix_excess(_tril(p), q_tril) + distance)


def _factorised(law: Independent) -> Normal | None:
    """The Normal under ``law`` when its event is a vector of independent Normals."""
    base = law.base_dist
    return base if isinstance(base, Normal) and law.reinterpreted_batch_ndims == 1 else None


@rule(Independent, MultivariateNormal)
def diagonal_full(p: Independent, q: MultivariateNormal) -> Tensor | None:
    base = _factorised(p)
    if base is None:
        return None
    # The columns of M are those of L_q⁻¹ times the scales of p, so that no matrix an example is ever made.
    tril = _tril(q)
    eye = torch.eye(tril.shape[-1], dtype=tril.dtype, device=tril.device)
    below = solve(tril, eye).tril(-1).square().sum(-2)
    diagonal = _diagonal(tril)
    on = scale_excess(base.scale / diagonal, (base.scale - diagonal) / diagonal)
    distance = solve(tril, (base.loc - q.loc).unsqueeze(-1)).square().sum((-2, -1))
    return 0.5 * ((on + base.scale.square() * below).sum(-1) + distance)


@rule(MultivariateNormal, Independent)
def full_diagonal(p: MultivariateNormal, q: Independent) -> Tensor | None:
    base = _factorised(q)
    if base is None:
        return None
    tril = _tril(p)
    diagonal = _diagonal(tril)
    on = scale_excess(diagonal / base.scale, (diagonal - base.scale) / base.scale)
    off = (tril.tril(-1).square().sum(-1) + (p.loc - base.loc).square()) / base.scale.square()
    return 0.5 * (on + off).sum(-1)


class _Diagonal(NamedTuple):
    """Mean and covariance ``diag(variance) + factor factorᵀ``; no factor when it is purely diagonal."""

    loc: Tensor
    variance: Tensor
    factor: Tensor | None


def _as_diagonal(law: Independent | LowRankMultivariateNormal) -> _Diagonal | None:
    if isinstance(law, LowRankMultivariateNormal):
        return _Diagonal(law.loc, law._unbroadcasted_cov_diag, law._unbroadcasted_cov_factor)
    base = _factorised(law)
    return None if base is None else _Diagonal(base.loc, base.scale.square(), None)


class _Whitener:
    r"""Applies :math:`(I + VV^\top)^{-1/2}` through the r x r capacitance :math:`C = I + V^\top V`, never k x k.

    With :math:`a = C^{-1}V^\top y`, :math:`y^\top(I + VV^\top)^{-1}y = \|y - Va\|^2 + \|a\|^2`, the value of a ridge
    regression: a sum of squares, where Woodbury's identity subtracts. Cholesky, unlike the singular value
    decomposition, can be differentiated where singular values repeat.
    """

    def __init__(self, factor: Tensor) -> None:
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        self.factor = factor
        self.tril = torch.linalg.cholesky(eye + factor.mT @ factor)

    @property
    def logdet(self) -> Tensor:
        return 2 * _diagonal(self.tril).log().sum(-1)

    def length(self, columns: Tensor) -> Tensor:
        """Sum of the squared whitened lengths of the columns, ``(..., k, m)`` to ``(...)``."""
        weights = solve(self.tril, self.factor.mT @ columns)
        weights = torch.linalg.solve_triangular(self.tril.mT, weights, upper=True)
        return (columns - self.factor @ weights).square().sum((-2, -1)) + weights.square().sum((-2, -1))

    def removed(self, variance: Tensor) -> Tensor:
        r""":math:`\operatorname{tr}(A) - \operatorname{tr}((I + VV^\top)^{-1}A)` for a diagonal A."""
        return (solve(self.tril, self.factor.mT).square().sum(-2) * variance).sum(-1)


@rule(LowRankMultivariateNormal, LowRankMultivariateNormal)
@rule(LowRankMultivariateNormal, Independent)
@rule(Independent, LowRankMultivariateNormal)
def low_rank(p: Independent | LowRankMultivariateNormal, q: Independent | LowRankMultivariateNormal) -> Tensor | None:
    ours, theirs = _as_diagonal(p), _as_diagonal(q)
    if ours is None or theirs is None:
        return None
    ratio = ours.variance / theirs.variance
    root = theirs.variance.rsqrt()
    shift = ((ours.loc - theirs.loc) * root).unsqueeze(-1)
    twice = excess(ratio, (ours.variance - theirs.variance) / theirs.variance).sum(-1)
    columns = None if ours.factor is None else root.unsqueeze(-1) * ours.factor
    if theirs.factor is None:
        twice = twice + shift.square().sum((-2, -1))
        if columns is not None:
            twice = twice + columns.square().sum((-2, -1))
    else:
        whitener = _Whitener(root.unsqueeze(-1) * theirs.factor)
        twice = twice + whitener.length(shift) + (whitener.logdet - whitener.removed(ratio))
        if columns is not None:
            twice = twice + whitener.length(columns)
    if ours.factor is not None:
        twice = twice - _Whitener(ours.variance.rsqrt().unsqueeze(-1) * ours.factor).logdet
    # Between equal laws the low-rank terms cancel to a few roundings; the value, not the gradient, is held at 0.
    result = 0.5 * twice
    return result + (result.clamp(min=0) - result).detach()
