"""Relaxed and straight-through gradients of discrete draws: biased, of low variance, and at the cost of a plain draw."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from xhat.errors import ConfigError, whole_number
from xhat.gradients.base import Function, Path, finite, followed, honest, slope, total
from xhat.gradients.components import Bits, Components, components_of
from xhat.gradients.reduction import Reduction

HALF = math.log(2)


class Temperature(nn.Module):
    """A temperature that falls geometrically from its first value to its last over so many epochs."""

    now: Tensor

    def __init__(self, first: float, last: float | None, epochs: float) -> None:
        super().__init__()
        for name, value in (("temperature", first), ("final", first if last is None else last)):
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ConfigError(f"{name} must be above 0 and finite, was {value!r}")
        if not 0 <= epochs < math.inf or (last is None) != (epochs == 0):
            raise ConfigError(f"a schedule needs a final temperature and epochs above 0, was final={last!r}, epochs={epochs!r}")
        self.first, self.last, self.epochs = first, last, epochs
        # A tensor, so that a schedule changes no constant of a compiled program.
        self.register_buffer("now", torch.tensor(float(first)))

    def at(self, epoch: float) -> None:
        if self.last is not None:
            self.now.fill_(self.first * (self.last / self.first) ** min(1.0, epoch / self.epochs))

    def settled(self, epoch: float) -> bool:
        """Whether it falls no further."""
        return epoch >= self.epochs


class Concrete(Path):
    r"""Gumbel-Softmax: the derivative of f at a relaxed draw, a softmax (or sigmoid) of perturbed logits over a temperature.

    .. math:: y = \mathrm{softmax}((\log p + G)/\tau), \qquad \nabla E[f] \approx \nabla f(y)

    The value is f at the hard draw with the same noise, and parameters inside f get their derivative there; only the way through
    z is relaxed. The bias falls with the temperature while the variance grows. :class:`xhat.Sampling` hands out y itself.

    Args:
        temperature: τ, at the start.
        final: τ at the end of a geometric schedule; None keeps it.
        epochs: how many epochs the schedule takes.

    Source: Jang, Gu & Poole (2017); Maddison, Mnih & Teh (2017).

    >>> import xhat
    >>> logits = torch.zeros(4, 3, requires_grad=True)
    >>> q = torch.distributions.OneHotCategorical(logits=logits)
    >>> xhat.expectation(lambda z: z[..., 0] ** 2, q, "concrete").shape
    torch.Size([4])
    """

    unbiased = False
    requires = frozenset({"relaxable", "differentiable f"})

    def __init__(self, temperature: float = 0.5, final: float | None = None, epochs: float = 0.0) -> None:
        super().__init__()
        self.schedule = Temperature(temperature, final, epochs)

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        return 2 * samples

    def at(self, epoch: float) -> None:
        self.schedule.at(epoch)

    def settled(self, epoch: float) -> bool:
        return self.schedule.settled(epoch)

    def draw(self, q: Distribution, samples: int) -> Tensor:
        law = components_of(q)
        return law.value(law.soften(law.logits + law.noise(samples), self.schedule.now))

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        law = components_of(q)
        perturbed = law.logits + law.noise(samples)
        values = f(law.value(law.harden(perturbed.detach())))
        relaxed = law.soften(perturbed, self.schedule.now)
        _, rise = slope(lambda code: f(law.value(code)), relaxed)
        return honest(reduce(values), total(rise * relaxed, law.axes).mean(0))


class _Straight(Path):
    """A hard draw with the derivative of something smooth: what its relatives share is that f is taken at the draw, once."""

    unbiased = False
    requires = frozenset({"relaxable", "differentiable f"})

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        return samples

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        return reduce(followed(f, self.draw(q, samples)))


class StraightThrough(_Straight):
    r"""A hard draw whose derivative is that of its mean, :math:`\nabla z := \nabla p`.

    Exact where f is linear in each element.

    Source: Bengio, Léonard & Courville (2013).

    >>> import xhat
    >>> logits = torch.zeros(4, requires_grad=True)
    >>> xhat.expectation(lambda z: 3 * z, torch.distributions.Bernoulli(logits=logits), "straight-through").shape
    torch.Size([4])
    """

    def draw(self, q: Distribution, samples: int) -> Tensor:
        law = components_of(q)
        return _carried(law, law.sample(samples), law.probs())


class STGumbel(_Straight):
    r"""A hard draw whose derivative is that of the relaxed draw with the same noise.

    Args:
        temperature: τ, at the start.
        final: τ at the end of a geometric schedule; None keeps it.
        epochs: how many epochs the schedule takes.

    Source: Jang, Gu & Poole (2017).

    >>> import xhat
    >>> logits = torch.zeros(4, requires_grad=True)
    >>> xhat.expectation(lambda z: 3 * z, torch.distributions.Bernoulli(logits=logits), "st-gumbel").shape
    torch.Size([4])
    """

    def __init__(self, temperature: float = 1.0, final: float | None = None, epochs: float = 0.0) -> None:
        super().__init__()
        self.schedule = Temperature(temperature, final, epochs)

    def at(self, epoch: float) -> None:
        self.schedule.at(epoch)

    def settled(self, epoch: float) -> bool:
        return self.schedule.settled(epoch)

    def draw(self, q: Distribution, samples: int) -> Tensor:
        law = components_of(q)
        perturbed = law.logits + law.noise(samples)
        return _carried(law, law.harden(perturbed.detach()), law.soften(perturbed, self.schedule.now))


class GumbelRao(_Straight):
    r"""Straight-through Gumbel-Softmax, averaged over the noise that gives the same hard draw: the same mean, less variance.

    Args:
        draws: how many draws of the noise are averaged; f is evaluated once.
        temperature: τ, at the start.
        final: τ at the end of a geometric schedule; None keeps it.
        epochs: how many epochs the schedule takes.

    Source: Paulus, Maddison & Krause (2021).

    >>> import xhat
    >>> logits = torch.zeros(4, requires_grad=True)
    >>> xhat.expectation(lambda z: 3 * z, torch.distributions.Bernoulli(logits=logits), "gumbel-rao").shape
    torch.Size([4])
    """

    def __init__(self, draws: int = 10, temperature: float = 1.0, final: float | None = None, epochs: float = 0.0) -> None:
        super().__init__()
        whole_number("draws", draws)
        self.draws = draws
        self.schedule = Temperature(temperature, final, epochs)

    def at(self, epoch: float) -> None:
        self.schedule.at(epoch)

    def settled(self, epoch: float) -> bool:
        return self.schedule.settled(epoch)

    def draw(self, q: Distribution, samples: int) -> Tensor:
        law = components_of(q)
        code = law.sample(samples)
        with torch.no_grad():
            # The noise is held, so that the logits move the perturbed ones as they do without a condition.
            again = law.given(code.expand(self.draws, *code.shape).reshape(-1, *code.shape[1:]))[0]
        moved = again + (finite(law.logits) - finite(law.logits).detach())
        soft = law.soften(moved, self.schedule.now).reshape(self.draws, *code.shape).mean(0)
        return _carried(law, code, soft)


class ReinMax(_Straight):
    r"""Straight-through of second order: the trapezoidal rule in place of the rectangle's, exact for quadratic f.

    .. math:: z := D + 2\,\mathrm{softmax}(\theta + [\ln \tfrac{D + p}{2} - \theta]) - \tfrac12 p

    with the value of D, and square brackets and D held constant in the derivative.

    Source: Liu, Dong, Liu, Yu & Gao (2023).

    >>> import xhat
    >>> logits = torch.zeros(4, requires_grad=True)
    >>> xhat.expectation(lambda z: z**2, torch.distributions.Bernoulli(logits=logits), "reinmax").shape
    torch.Size([4])
    """

    def draw(self, q: Distribution, samples: int) -> Tensor:
        law = components_of(q)
        code = law.sample(samples)
        if isinstance(law, Bits):
            return _carried(law, code, (code - law.probs().detach()).abs() / 2 * finite(law.logits))
        p = law.probs()
        # ln((D + p)/2) - θ, without a logarithm of 0 where p has underflowed
        moved = torch.where(code > 0, (1 + p.detach()).log() - law.logits.detach(), 0.0) - HALF
        middle = (law.logits + moved).softmax(-1)
        return _carried(law, code, 2 * middle - p / 2)


def _carried(law: Components, code: Tensor, soft: Tensor) -> Tensor:
    """The value of a code with the derivative of a relaxed one."""
    return law.value(honest(code, soft.expand_as(code)))
