"""Several stochastic layers: one estimator for each, nested."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributions import Distribution

from xhat.distributions.chain import Chain
from xhat.errors import ConfigError
from xhat.gradients.base import Function, Gradient, Once
from xhat.gradients.reduction import Mean, Reduction


class Layers(Gradient):
    r"""An estimator for each layer of a :class:`xhat.distributions.Chain`, the first layer's outermost.

    .. math:: E_{q_1}\big[ E_{q_2(\cdot \mid z_1)}[f(z_1, z_2)] \big]

    The signal of a layer is all that is downstream of it, and where an estimator takes f at further points (antithetic, relaxed,
    enumerated), the layers below are drawn anew at each. ``samples`` is the first layer's number; every deeper one takes the
    fewest that its estimator is defined for.

    Args:
        gradients: the estimators, from the first layer to the last.

    Raises:
        ConfigError: fewer than two.

    >>> from xhat.gradients import DisARM
    >>> Layers([DisARM(), DisARM()]).evaluations(2)
    4
    """

    requires = frozenset({"layers"})
    unbiased = True

    def __init__(self, gradients: Sequence[Gradient]) -> None:
        super().__init__()
        if len(gradients) < 2 or not all(isinstance(gradient, Gradient) for gradient in gradients):
            raise ConfigError("Layers needs two gradients or more, such as Layers([DisARM(), DisARM()])")
        for gradient in gradients:
            if "mean" not in gradient.reductions or "log weight" in gradient.requires:
                raise ConfigError(
                    f"{type(gradient).__name__} is a gradient of a whole bound, not of one layer's expectation: use 'rloo' "
                    "in its place, or 'pathwise' where the layer has it"
                )
        self.gradients = nn.ModuleList(gradients)
        self.unbiased = all(gradient.unbiased for gradient in gradients)  # type: ignore[misc]
        self.plain = all(gradient.plain for gradient in gradients)  # type: ignore[misc]
        self.signals = any(gradient.signals for gradient in gradients)  # type: ignore[misc]

    @property
    def _first(self) -> Gradient:
        return self.gradients[0]  # type: ignore[return-value]

    @property
    def _rest(self) -> Gradient:
        rest = list(self.gradients)[1:]
        return rest[0] if len(rest) == 1 else Layers(rest)  # type: ignore[arg-type,return-value]

    @property
    def fewest_samples(self) -> int:
        return self._first.fewest_samples

    @property
    def takes(self) -> str:
        return self._first.takes

    def usable(self, samples: int) -> int:
        return self._first.usable(samples)

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        rest = self._rest
        if q is None:
            return self._first.evaluations(samples) * rest.evaluations(rest.fewest_samples)
        q = _chain(q)
        return self._first.evaluations(samples, q.first) * rest.evaluations(rest.fewest_samples, q.pattern)

    def lacks(self, q: Distribution) -> str | None:
        missing = super().lacks(q)
        if missing is not None:
            return missing
        q = _chain(q)
        return self._first.lacks(q.first) or self._rest.lacks(q.pattern)

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        chain, rest = _chain(q), self._rest

        def below(first: Tensor) -> Tensor:
            def at(second: Tensor) -> Tensor:
                # The inner draws are one more leading axis, and f knows one.
                joined = chain.join(first, second)
                return f(joined.flatten(0, 1)).unflatten(0, joined.shape[:2])

            return rest.estimate(at, chain.then(first), rest.fewest_samples, Mean())

        return self._first.estimate(Once(below), chain.first, samples, reduce)

    def points(self, samples: int, q: Distribution) -> int:
        q, rest = _chain(q), self._rest
        return self._first.points(samples, q.first) * rest.points(rest.fewest_samples, q.pattern)

    def weights(self, q: Distribution, z: Tensor) -> Tensor | None:
        if self.plain:
            return None
        q, rest = _chain(q), self._rest
        inner = rest.points(rest.fewest_samples, q.pattern)
        first, second = q.split(z)
        first, second = first[: len(z) // inner], second.unflatten(0, (inner, -1))
        outer = self._first.weights(q.first, first)
        each = rest.weights(q.then(first), second)
        ones = q.log_prob(z).new_ones(inner, len(first), *z.shape[1 : z.ndim - 1])
        weights = ones * (1 / len(first) if outer is None else outer) * (1 / inner if each is None else each)
        return weights.flatten(0, 1)

    def auxiliary_loss(self) -> Tensor | None:
        losses = [gradient.auxiliary_loss() for gradient in self.gradients]  # type: ignore[operator]
        losses = [loss for loss in losses if loss is not None]
        return sum(losses[1:], losses[0]) if losses else None

    def see(self, context: Tensor) -> None:
        for gradient in self.gradients:
            gradient.see(context)  # type: ignore[operator]

    def at(self, epoch: float) -> None:
        for gradient in self.gradients:
            gradient.at(epoch)  # type: ignore[operator]

    def settled(self, epoch: float) -> bool:
        return all(gradient.settled(epoch) for gradient in self.gradients)  # type: ignore[operator]


def _chain(q: Distribution) -> Chain:
    """The law as the chain that :meth:`Layers.lacks` has seen it to be."""
    if not isinstance(q, Chain):
        raise ConfigError(f"Layers needs a law of several layers, xhat.distributions.Chain, was {type(q).__name__}")
    return q
