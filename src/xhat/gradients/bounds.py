"""Path derivatives of evidence bounds: sticking the landing, and doubly reparameterised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from xhat.errors import ConfigError
from xhat.gradients.base import Function, Gradient, LogWeight, honest, lift, total
from xhat.gradients.reduction import Form, Reduction, doubled


class STL(Gradient):
    r"""Sticking the landing: the path derivative of the ELBO, without the score of log q.

    .. math:: \nabla_\phi \mathrm{ELBO} = E_\varepsilon[\nabla_z \log w(z)\, \nabla_\phi z]

    The term left out, :math:`-\nabla_\phi \log q_\phi(z)` at a fixed z, has mean zero for one-sample bounds, and where q is the
    exact posterior the remaining one vanishes draw by draw. For multi-sample bounds its mean is not zero: they are refused here,
    and ``"dreg"`` serves them.

    Source: Roeder, Wu & Duvenaud (2017); the bias for S > 1: Tucker et al. (2018).

    >>> import xhat
    >>> loc = torch.tensor(0.3, requires_grad=True)
    >>> q = torch.distributions.Normal(loc, 1.0)
    >>> value = xhat.bound(torch.distributions.Normal(0.3, 1.0).log_prob, q, gradient="stl")
    >>> round(torch.autograd.grad(value, loc)[0].item(), 6)
    0.0
    """

    unbiased = True
    requires = frozenset({"rsample", "log_prob", "log weight"})

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        return samples

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        return _path_only(f, q, samples, reduce)


class DReG(Gradient):
    r"""Doubly reparameterised gradient of a multi-sample bound.

    .. math:: \nabla_\phi L_S = E\Big[\sum_i \tilde w_i^2\, \nabla_{z_i} \log w_i\, \nabla_\phi z_i\Big],
              \qquad \tilde w_i = \frac{w_i}{\sum_j w_j}

    while parameters of log p meet :math:`\tilde w_i`, as ever. Its signal does not fade as S grows. For the one-sample bound it
    is sticking the landing. For other bounds R of the log weights, such as Rényi's, the square is
    :math:`\partial R / \partial \log w_i - \partial^2 R / (\partial \log w_i)^2`.

    Source: Tucker, Lawson, Gu & Maddison (2018).

    >>> import xhat
    >>> loc = torch.zeros(5, requires_grad=True)
    >>> q = torch.distributions.Normal(loc, 1.0)
    >>> xhat.bound(lambda z: -z.square(), q, objective="iwae", gradient="dreg", samples=8).shape
    torch.Size([5])
    """

    unbiased = True
    requires = frozenset({"rsample", "log_prob", "log weight"})
    reductions = frozenset({"mean", "log-mean-exp"})

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        return samples

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        return _path_only(f, q, samples, reduce)


def _path_only(f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
    if not isinstance(f, LogWeight):
        raise ConfigError("this gradient needs the log weight of a bound: use xhat.bound")
    z = q.rsample((samples,))
    weight = f.weight

    def log_density(point: Tensor) -> tuple[Tensor, Tensor]:
        own = q.log_prob(point)
        return (weight * own).sum(), own

    with torch.no_grad():  # which torch.func.grad looks past; unlike autograd.grad it can be traced
        fall, own = torch.func.grad(log_density, has_aux=True)(z)
    f.record(own)
    log_q = weight * own

    def log_weight(path: Tensor) -> Tensor:
        """The log weights; log q moves with z only: its derivative in φ at a fixed z is what is left out."""
        return honest(f.log_joint(path) - log_q, -total(fall * path, len(q.event_shape)))

    if reduce.form is None:
        return reduce(log_weight(z))
    nothing = torch.zeros_like(log_q)
    known = weight.to(log_q) if isinstance(weight, Tensor) else log_q.new_full((), weight)
    path, each, whole = _Again.apply(z, nothing, nothing[0], known, *reduce.form)
    return reduce(log_weight(path) + each) + whole


class _Again(torch.autograd.Function):
    r"""The draws, whose derivative is multiplied once more with their share in the bound.

    A score of weight β that is reparameterised away leaves :math:`c(1 - \beta) + \beta a`, of which the reduction brings
    :math:`c = \partial R / \partial \log w`, and :func:`xhat.gradients.reduction.doubled` says a / c. The share c is told by two
    zeros, one added to each log weight and one to the bound: the quotient of their derivatives. No hook and no number known only
    later, so that it can be traced.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        z: Tensor, each: Tensor, whole: Tensor, weight: Tensor, beta: float, alpha: float, groups: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        return z.view_as(z), each.clone(), whole.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(inputs[3])
        ctx.form = inputs[4:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor, each: Tensor, whole: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        share = torch.where(whole == 0, 0.0, each / whole)
        factor = 1 - weight + weight * doubled(share, Form(*ctx.form))
        return grad * lift(factor, grad.ndim - factor.ndim), *(None,) * 6
