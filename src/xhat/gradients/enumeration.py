"""The exact sum over a finite support."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from xhat.distributions.support import split
from xhat.errors import ConfigError, whole_number
from xhat.gradients.base import Function, Gradient
from xhat.gradients.components import categories_of, log_mass
from xhat.gradients.features import offers
from xhat.gradients.reduction import Reduction


class Enumerate(Gradient):
    r"""The expectation itself, :math:`\sum_z q(z) f(z)`, over every value that z can take: no noise at all.

    n elements of K values each make :math:`K^n` evaluations of f. It is an ordinary sum, so higher derivatives are right, too.

    Args:
        limit: the largest number of values that is enumerated.

    Raises:
        ConfigError: the law has more values.

    >>> import xhat
    >>> logits = torch.tensor([0.0, 1.0], requires_grad=True)
    >>> q = torch.distributions.Independent(torch.distributions.Bernoulli(logits=logits), 1)
    >>> value = xhat.expectation(lambda z: z.prod(-1), q, "enumerate")
    >>> torch.isclose(value, logits.sigmoid().prod())
    tensor(True)
    """

    unbiased = True
    requires = frozenset({"finite"})
    plain = False

    def __init__(self, limit: int = 2**16) -> None:
        super().__init__()
        whole_number("limit", limit)
        self.limit = limit

    @property
    def takes(self) -> str:
        return "takes one sample, for its sum is exact"

    def usable(self, samples: int) -> int:
        return 1

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        if q is None:
            raise ConfigError("how many values are enumerated depends on the law: give it, evaluations(samples, q)")
        base, _ = split(q)
        if offers(q, "components"):
            categories = categories_of(q)
            elements = categories.logits.shape[len(q.batch_shape) : -1].numel()
            return categories.count**elements
        return len(base.enumerate_support(expand=False))

    def lacks(self, q: Distribution) -> str | None:
        missing = super().lacks(q)
        if missing is None and (count := self.evaluations(1, q)) > self.limit:
            shown = f"{count}" if count < 10**9 else f"about 10^{math.floor(math.log10(count))}"
            return f"a support of at most {self.limit} values (here {shown})"
        return missing

    def points(self, samples: int, q: Distribution) -> int:
        return self.evaluations(1, q)

    def weights(self, q: Distribution, z: Tensor) -> Tensor:
        return log_mass(q, z).exp()

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        z = support_of(q)
        weights = self.weights(q, z)
        values = f(z)
        # A value that cannot be drawn counts for nothing, even where f is infinite on it.
        return (weights * torch.where(weights > 0, values, 0.0)).sum(0)


def support_of(q: Distribution) -> Tensor:
    """Every value of a finite law, ``(N, *batch, *event)``."""
    if not offers(q, "components"):
        return q.enumerate_support()
    categories = categories_of(q)
    elements = categories.logits.shape[len(q.batch_shape) : -1]
    grid = torch.cartesian_prod(*[torch.arange(categories.count, device=categories.logits.device)] * elements.numel())
    index = grid.reshape(-1, *(1,) * len(q.batch_shape), *elements).expand(-1, *q.batch_shape, *elements)
    return categories.value(categories.one_hot(index))
