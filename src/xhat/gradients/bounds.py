"""Path derivatives of evidence bounds: sticking the landing, and doubly reparameterised."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from xhat.errors import ConfigError
from xhat.gradients.base import Function, Gradient, LogWeight, honest
from xhat.gradients.reduction import Reduction


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
    is sticking the landing.

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
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        log_q = f.weight * q.log_prob(point)
        (fall,) = torch.autograd.grad(log_q.sum(), point)
    log_q = log_q.detach()
    factor: list[Tensor | float] = [1.0]
    path = z
    if z.requires_grad:
        path = z.view_as(z)  # a node of its own: the hook must not meet what else comes back to z
        axes = len(q.event_shape)

        def again(grad: Tensor) -> Tensor:
            weight = factor[0]
            return grad * (weight[(..., *(None,) * axes)] if isinstance(weight, Tensor) else weight)

        path.register_hook(again)
    # log q moves with z only: its derivative in φ at a fixed z is what is left out.
    along = -(fall * path).flatten(z.ndim - len(q.event_shape)).sum(-1) if q.event_shape else -(fall * path)
    values = honest(f.log_joint(path) - log_q, along)
    with torch.no_grad():
        # A score of weight β that is reparameterised away leaves w̃(1 - β + βw̃), of which the reduction brings the first w̃.
        factor[0] = 1 - f.weight + f.weight * reduce.doubly(values)
    return reduce(values)
