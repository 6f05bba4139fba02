"""Hamiltonian Monte Carlo: a random move that leaves a density as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ACCEPTED = 0.65  # the share of accepted moves at which HMC goes farthest for its cost
Density = Callable[[Tensor], Tensor]


class Move(NamedTuple):
    """Where the chains are, ``(S, B, *event)``, and with what probability each had its proposal accepted, ``(S, B)``."""

    z: Tensor
    accepted: Tensor


def move(density: Density, z: Tensor, step: Tensor, spread: Tensor, leapfrog: int) -> Move:
    r"""One Hamiltonian trajectory for each chain, accepted or refused as a whole.

    With a fresh momentum :math:`r \sim N(0, I)` the leapfrog steps are

    .. math:: r \leftarrow r + \tfrac{\epsilon}{2} s \nabla \log \pi(z), \quad z \leftarrow z + \epsilon s r, \quad
              r \leftarrow r + \tfrac{\epsilon}{2} s \nabla \log \pi(z)

    and their end is accepted with probability :math:`\min(1, e^{H(z, r) - H(z', r')})`, :math:`H = -\log \pi(z) + |r|^2 / 2`.
    The step size and the spread must not come from the chains that they move; then π is left invariant, and the move is
    reversible.

    Args:
        density: log π up to a constant, ``(S, B, *event)`` to ``(S, B)``, differentiable.
        z: where the chains are.
        step: ε of each example, ``(B,)``.
        spread: s, the unit of length in each direction, ``(B, *event)``.
        leapfrog: the number of steps.

    Source: Duane et al. (1987); Neal (2011).

    >>> z, ones = torch.zeros(4, 1, 2), torch.ones(1, 2)
    >>> move(lambda z: -0.5 * z.square().sum(-1), z, torch.full((1,), 0.1), ones, leapfrog=5).accepted.shape
    torch.Size([4, 1])
    """
    axes = tuple(range(2, z.ndim))
    length = step.to(z.dtype).reshape(-1, *(1,) * len(axes)) * spread
    momentum = torch.randn_like(z)
    value, slope = _value_and_slope(density, z)
    energy = 0.5 * momentum.double().square().sum(axes) - value.double()
    new = z
    for _ in range(leapfrog):
        momentum = momentum + 0.5 * length * slope
        new = new + length * momentum
        value, slope = _value_and_slope(density, new)
        momentum = momentum + 0.5 * length * slope
    gain = energy - (0.5 * momentum.double().square().sum(axes) - value.double())
    accepted = gain.clamp(max=0).exp().nan_to_num(nan=0.0)  # a trajectory that has left for infinity is refused
    moved = torch.rand_like(accepted) < accepted
    return Move(torch.where(moved.reshape(*moved.shape, *(1,) * len(axes)), new, z), accepted)


def _value_and_slope(density: Density, z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        value = density(at)
        (slope,) = torch.autograd.grad(value.sum(), at)  # of z alone: no weight gets a .grad
    return value.detach(), slope
