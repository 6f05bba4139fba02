"""What every gradient estimator is, and how a surrogate is hidden behind an honest value."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from xhat.distributions import relaxed_log_prob
from xhat.errors import ConfigError, DataError
from xhat.gradients.features import FEATURES, offers
from xhat.gradients.reduction import Reduction
from xhat.parts import Part

Function = Callable[[Tensor], Tensor]
"""What an expectation is taken of: maps ``(S, *batch, *event)`` to ``(S, *batch)``."""

NOT_DIFFERENTIABLE = (
    "this gradient needs an f that is differentiable in z, and its value does not depend on z by differentiable operations: "
    "use 'score', 'rloo' or 'disarm', which take f as it is"
)


class LogWeight:
    r"""The f of an evidence bound, :math:`\log w(z) = \log p(x, z) - \beta \log q(z)`, whose two halves can be told apart.

    Estimators that follow the path only (sticking the landing, doubly reparameterised) need to know which part is log q. Those
    that relax discrete draws get a log q that is continuous between its points; log p must be so, too
    (:func:`xhat.distributions.relaxed_log_prob`).

    Args:
        log_joint: maps ``(S, *batch, *event)`` to ``(S, *batch)``.
        q: the law.
        weight: β, 1 in a bound.
        seen: where log q of the first call is put down, detached, for whoever wants to know it without a second evaluation, which
            some laws pay dearly for; None: nowhere.

    >>> q = torch.distributions.Normal(0.0, 1.0)
    >>> LogWeight(q.log_prob, q)(torch.zeros(3))
    tensor([0., 0., 0.])
    """

    def __init__(
        self, log_joint: Function, q: Distribution, weight: Tensor | float = 1.0, seen: list[Tensor] | None = None
    ) -> None:
        self.log_joint, self.q, self.weight, self.seen = log_joint, q, weight, seen

    def __call__(self, z: Tensor) -> Tensor:
        # In this order: log p may draw from q again, and a flow knows the density of its last draw only.
        log_q = relaxed_log_prob(self.q, z)
        self.record(log_q)
        return self.log_joint(z) - self.weight * log_q

    def record(self, log_q: Tensor) -> None:
        """Put down log q at the draws, once; for estimators that evaluate it by themselves."""
        if self.seen is not None and not self.seen:
            self.seen.append(log_q.detach())


class Once:
    """An f that can be differentiated once only, for it holds a surrogate: the expectation over a deeper layer."""

    def __init__(self, f: Function) -> None:
        self.f = f

    def __call__(self, z: Tensor) -> Tensor:
        return self.f(z)


class _Honest(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, surrogate: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        once = _Once.apply(grad, *ctx.saved_tensors)
        return once, once


class _Once(torch.autograd.Function):
    """A gradient that cannot be differentiated again.

    It is tied to what it was the gradient of: ``once_differentiable`` raises only where the incoming gradient has a history of
    its own, so the plain second derivative of a surrogate would slip through it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, value: Tensor, surrogate: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(
            "an estimate of a gradient cannot be differentiated a second time, its second derivative would be wrong: "
            "use gradient='pathwise' where the law has it, or 'enumerate'"
        )


def honest(value: Tensor, surrogate: Tensor) -> Tensor:
    """The number ``value``, whose gradient is value's own plus the surrogate's.

    A surrogate is right once: its second derivative is not that of the expectation. So differentiating twice raises.

    >>> a = torch.tensor(3.0, requires_grad=True)
    >>> y = honest(a.detach() ** 2, 2 * a)
    >>> y.item(), torch.autograd.grad(y, a)[0].item()
    (9.0, 2.0)
    """
    return _Honest.apply(value, surrogate)


def lift(values: Tensor, axes: int) -> Tensor:
    """``(S, *batch)`` as ``(S, *batch, 1, …, 1)``, to multiply numbers of each element of an event."""
    return values[(..., *(None,) * axes)]


def total(values: Tensor, axes: int) -> Tensor:
    """The sum over the last ``axes`` axes."""
    return values.sum(tuple(range(-axes, 0))) if axes else values


def finite(logits: Tensor) -> Tensor:
    """Logits without infinities, which a coefficient of 0 would turn into NaN."""
    return logits.nan_to_num(neginf=0.0, posinf=0.0)


def called(f: Function, z: Tensor) -> Tensor:
    """f at relaxed values; where a law inside f refuses them, the error says what to do.

    Raises:
        ConfigError: f refuses values between those of the law.
    """
    try:
        return f(z)
    except ValueError as error:
        if "within the support" not in str(error) and not (isinstance(error, DataError) and "quantise" in str(error)):
            raise
        raise ConfigError(
            "f refuses relaxed values: a law inside it validates its arguments; make that law with validate_args=False, or use "
            "a gradient that takes f at draws only, such as 'rloo'"
        ) from error


def followed(f: Function, z: Tensor) -> Tensor:
    """f at draws that carry a derivative.

    Raises:
        ConfigError: f does not let it through.
    """
    values = f(z)
    if z.requires_grad and not values.requires_grad:
        raise ConfigError(NOT_DIFFERENTIABLE)
    return values


def slope(f: Function, z: Tensor, *, keep: bool = False, twice: bool = False) -> tuple[Tensor, Tensor]:
    """f at z and its derivative in z, ``(S, *batch)`` and of z's shape; nothing flows on to what made z.

    Args:
        f: the function.
        z: the point.
        keep: let the values keep their graph, so that the derivative in f's own parameters can be taken.
        twice: let the derivative be differentiable itself.

    Raises:
        ConfigError: f is not differentiable in z.
    """
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        values = called(f, point)
        found = (
            torch.autograd.grad(values.sum(), point, retain_graph=keep or twice, create_graph=twice, allow_unused=True)[0]
            if values.requires_grad
            else None
        )
    if found is None:
        raise ConfigError(NOT_DIFFERENTIABLE)
    return (values if keep or twice else values.detach()), found


class Pending:
    """A loss that waits to be asked for. A copy of its owner starts without one: graphs cannot be copied."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Pending:
        return Pending()

    def __reduce__(self) -> tuple[type[Pending], tuple[()]]:
        return Pending, ()

    def take(self) -> Tensor | None:
        """The loss, once."""
        value, self.value = self.value, None
        return value


class Gradient(Part, nn.Module, abc.ABC):
    """An estimator of E_q[f] and its derivative.

    A class declares ``unbiased`` (a test proves it) and what it ``requires`` of a law and of f (:data:`FEATURES`). State (a
    running baseline, a control variate's parameters) lives in it as an ``nn.Module``'s.

    Attributes:
        unbiased: whether the mean of the estimate is the derivative.
        requires: names of ``xhat.gradients.features``.
        reductions: what it can make of S values, by family: "mean", or "log-mean-exp" (multi-sample bounds of every kind).
        signals: whether it weighs each example's own f; f must then treat examples one by one, as batch normalisation does not.
        plain: whether its value is an average over draws of q.
    """

    unbiased: ClassVar[bool]
    requires: frozenset[str]
    reductions: ClassVar[frozenset[str]] = frozenset({"mean"})
    signals: ClassVar[bool] = True
    plain: ClassVar[bool] = True

    @property
    def fewest_samples(self) -> int:
        """The smallest ``samples`` that the estimator is defined for."""
        return 1

    @property
    def takes(self) -> str:
        """Which numbers of samples it can use, in words."""
        return f"needs samples of at least {self.fewest_samples}"

    def usable(self, samples: int) -> int:
        """The number of samples that it can use next to the one asked for: that, where it can be used."""
        return max(samples, self.fewest_samples)

    @abc.abstractmethod
    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        """How many values of f one estimate takes for each example, in all; some estimators must see the law to tell.

        Raises:
            ConfigError: the law is needed and was not given.
        """

    @abc.abstractmethod
    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        """``reduce`` of f at draws of q, ``(*batch)``, with this estimator's gradient.

        The first call of f is at the points that the value is made of.
        """

    def points(self, samples: int, q: Distribution) -> int:
        """How many points the value is made of."""
        return samples

    def weights(self, q: Distribution, z: Tensor) -> Tensor | None:
        """The weight of each point of the value, ``(S, *batch)``, for the points z of f's first call; None for equal ones."""
        return None

    def auxiliary_loss(self) -> Tensor | None:
        """What trains the estimator's own parameters, for the last estimate, once; None when there is nothing to train."""
        return None

    def see(self, context: Tensor) -> None:
        """Tell the estimator what q was made from, ``(*batch, …)``; for those with a network of the context."""

    def at(self, epoch: float) -> None:
        """Tell the estimator how far training is, for schedules such as a temperature's."""

    def settled(self, epoch: float) -> bool:
        """Whether :meth:`at` changes nothing from here on, so that several steps may be taken at once.

        Not so where ``at`` is somebody's own, unless that one says it here.
        """
        return type(self).at is Gradient.at

    def lacks(self, q: Distribution) -> str | None:
        """What the law does not offer that the estimator needs, in words; None when it fits."""
        missing = sorted(name for name in self.requires if name in FEATURES and not offers(q, name))
        return " and ".join(FEATURES[name] for name in missing) if missing else None


class Path(Gradient):
    """An estimator that needs nothing but the sample: a draw whose graph carries the derivative."""

    signals = False

    @abc.abstractmethod
    def draw(self, q: Distribution, samples: int) -> Tensor:
        """Draws through which a derivative flows, ``(S, *batch, *event)``."""
