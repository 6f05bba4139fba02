"""The reparameterised gradient."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from xhat.gradients.base import Function, Gradient
from xhat.gradients.reduction import Reduction


class Pathwise(Gradient):
    r"""Derivative along the sample's own path, :math:`z = g_\phi(\varepsilon)`, with ε free of φ.

    .. math:: \nabla_\phi E_q[f] = E_\varepsilon[\nabla_z f(z)\, \nabla_\phi g_\phi(\varepsilon)]

    Explicit where the law has such a g (μ + σε), implicit where only its distribution function is known (Gamma, Beta, Dirichlet:
    :math:`\nabla_\phi z = -\nabla_\phi F / q`), as torch's ``rsample`` does it. f must be differentiable in z.

    Source: Kingma & Welling (2013); Rezende, Mohamed & Wierstra (2014); implicit: Figurnov, Mohamed & Mnih (2018).

    >>> import torch
    >>> loc, scale = torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    >>> q = torch.distributions.Normal(loc, scale)
    >>> z = q.rsample()
    >>> dloc, dscale = torch.autograd.grad(z, (loc, scale))
    >>> dloc.item(), torch.isclose(dscale, (z - loc) / scale).item()
    (1.0, True)
    """

    unbiased = True
    requires = frozenset({"rsample"})

    def evaluations(self, samples: int) -> int:
        return samples

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        return reduce(f(q.rsample((samples,))))
