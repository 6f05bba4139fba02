"""The joint law of several stochastic layers, as one law over one vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.distributions import Distribution, OneHotCategorical, constraints
from torch.types import _size

from xhat.distributions.shapes import broadcast
from xhat.distributions.support import inside, reference_measure
from xhat.distributions.support import split as unwrapped


class _Layers(constraints.Constraint):
    """The points of both layers, the second's as the first's value makes them."""

    event_dim = 1

    def __init__(self, law: Chain) -> None:
        self.law = law
        kinds = [reference_measure(law.first), reference_measure(law.pattern)]
        # What lies where counts: two laws compare only if they are of the same kind on the same stretch of the vector.
        sizes = law.sizes
        if law.reverse:
            kinds, sizes = kinds[::-1], sizes[::-1]
        same = kinds[0] == kinds[1]
        self.measure = kinds[0] if same else " × ".join(f"{kind} ({n})" for kind, n in zip(kinds, sizes, strict=True))
        self.is_discrete = self.measure == "counting"
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        z1, z2 = self.law.split(value)
        answer = torch.ones(value.shape[:-1], dtype=torch.bool, device=value.device)
        for law, z in ((self.law.first, z1), (self.law.then(z1), z2)):
            known = inside(law, z)
            answer = answer if known is None else answer & known
        return answer


class Chain(Distribution):
    r"""The joint law of two stochastic layers, the second of which depends on the first's value.

    .. math:: p(z) = p(z_1)\, p(z_2 \mid z_1), \qquad z = (z_1, z_2)

    An event is one vector: the layers' events, flattened, one after the other. With more than two layers, ``first`` or what
    ``then`` returns is a chain again. There is no formula for its mean.

    Args:
        first: the law of z₁, with the chain's own batch shape.
        then: maps z₁, ``(*lead, *event₁)``, to the law of z₂, with batch shape ``lead``.
        event: the event shape of z₂; if it is not given, ``then`` is asked once for a law.
        reverse: whether the vector is (z₂, z₁). So a posterior q(a) q(b|a) and a prior p(b) p(a|b), which draws in the other
            order, are laws of the same vector (a, b).

    Shapes: with n₁ and n₂ numbers in the two events, a draw is ``(*sample, *batch, n₁ + n₂)``.

    >>> from torch.distributions import Bernoulli, Independent
    >>> first = Independent(Bernoulli(torch.tensor([0.5, 0.5])), 1)
    >>> law = Chain(first, lambda z: Independent(Bernoulli(0.1 + 0.8 * z[..., :1]), 1))
    >>> law.event_shape
    torch.Size([3])
    >>> law.log_prob(torch.tensor([1.0, 0.0, 1.0])).exp()  # 0.5 · 0.5 · 0.9
    tensor(0.2250)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        first: Distribution,
        then: Callable[[Tensor], Distribution],
        event: Sequence[int] | None = None,
        reverse: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        self.first, self.then, self.reverse = first, then, reverse
        self._pattern: Distribution | None = None
        self._event = torch.Size(self.pattern.event_shape if event is None else event)
        super().__init__(first.batch_shape, torch.Size([sum(self.sizes)]), validate_args=validate_args)

    @property
    def pattern(self) -> Distribution:
        """A law of z₂, at some z₁: what kind of law ``then`` makes, and in which of its parameters a derivative is taken.

        The caller's random numbers are left alone.
        """
        if self._pattern is None:
            self._pattern = self._at_some_point()
        return self._pattern

    def _at_some_point(self) -> Distribution:
        if torch.compiler.is_compiling() or _recording():  # neither can draw aside; the kind of law is the same at 0
            return self.then(_zeros(self.first))
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices):
            z1 = self.first.sample()
            # A derivative may come from below by way of z₁ alone.
            # In a vectorised program (torch.func) no tensor can be marked; a model's fit was seen before it got there.
            marked = z1.is_floating_point() and torch.is_grad_enabled() and not is_functorch_wrapped_tensor(z1)
            return self.then(z1.requires_grad_() if marked else z1)

    def average(self, mean: Callable[[Distribution], Tensor], draws: int = 256) -> Tensor:
        """The mean of the vector as far as formulas go, ``(*batch, n₁ + n₂)``: the first layer's own, and of each later one the
        average of its means at draws of the layers before it.

        A draw goes down through all the layers, so what this takes grows with their number and no faster.

        Args:
            mean: the mean of a law that is no chain.
            draws: how many.

        >>> from torch.distributions import Independent, Normal
        >>> first = Independent(Normal(torch.ones(1), 1e-3), 1)
        >>> Chain(first, lambda z: Independent(Normal(2 * z, 1.0), 1)).average(lambda law: law.mean).round(decimals=2)
        tensor([1., 2.])
        """
        with torch.no_grad():
            first = self.first.average(mean, draws) if isinstance(self.first, Chain) else mean(self.first)
            return self.join(first, _mean_at(self.then(self.first.sample((draws,))), mean).mean(0))

    @property
    def sizes(self) -> tuple[int, int]:
        """How many numbers z₁ has, and z₂."""
        return math.prod(self.first.event_shape), math.prod(self._event)

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z₁ and z₂ in their own shapes, from ``(*lead, n₁ + n₂)``."""
        n1, n2 = self.sizes
        z1, z2 = z.split([n2, n1], -1)[::-1] if self.reverse else z.split([n1, n2], -1)
        lead = z.shape[:-1]
        return z1.reshape(lead + self.first.event_shape), z2.reshape(lead + self._event)

    def join(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The inverse of :meth:`split`; where one of the two lacks leading dimensions of the other, it is repeated."""
        lead1 = z1.shape[: z1.ndim - len(self.first.event_shape)]
        lead2 = z2.shape[: z2.ndim - len(self._event)]
        lead = broadcast(lead1, lead2)
        n1, n2 = self.sizes
        parts = [z1.reshape(*lead1, n1).expand(*lead, n1), z2.reshape(*lead2, n2).expand(*lead, n2)]
        return torch.cat(parts[::-1] if self.reverse else parts, -1)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return bool(self.first.has_rsample and self.pattern.has_rsample)

    @property
    def support(self) -> constraints.Constraint:
        return _Layers(self)

    def expand(self, batch_shape: _size, _instance: Any = None) -> Chain:
        return Chain(self.first.expand(batch_shape), self.then, self._event, self.reverse, validate_args=self._validate_args)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            z1 = self.first.sample(sample_shape)
            return self.join(z1, self.then(z1).sample())

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        z1 = self.first.rsample(sample_shape)
        return self.join(z1, self.then(z1).rsample())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density or mass of the whole vector in nats, ``(*sample, *batch)``."""
        if self._validate_args:
            self._validate_sample(value)
        z1, z2 = self.split(value)
        log_prob: Tensor = self.first.log_prob(z1) + self.then(z1).log_prob(z2)
        return log_prob


def _mean_at(law: Distribution, mean: Callable[[Distribution], Tensor]) -> Tensor:
    """Means given draws of what lies above, one further draw of each layer for each of them."""
    if not isinstance(law, Chain):
        return mean(law)
    return law.join(_mean_at(law.first, mean), _mean_at(law.then(law.first.sample()), mean))


def _recording() -> bool:
    """Whether a CUDA graph is being recorded, in which the state of a generator cannot be read."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _zeros(law: Distribution) -> Tensor:
    """A value of a law's shape, device and dtype."""
    return law.join(_zeros(law.first), _zeros(law.pattern)) if isinstance(law, Chain) else torch.zeros_like(law.mean)


def widths(law: Distribution) -> tuple[int, ...]:
    """How many numbers of the flat event each variable takes: K for a one-hot vector of K categories, else 1.

    >>> from torch.distributions import Independent
    >>> widths(Independent(OneHotCategorical(torch.ones(2, 3)), 1))
    (3, 3)
    """
    base, _ = unwrapped(law)
    own: tuple[int, ...] = (1,)
    if isinstance(base, OneHotCategorical):
        own = (base.event_shape[-1],)
    elif isinstance(base, Chain):
        layers = [widths(base.first), widths(base.pattern)]
        own = sum(layers[::-1] if base.reverse else layers, ())
    return own * (math.prod(law.event_shape) // sum(own))
