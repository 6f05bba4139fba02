"""The conditional, and the one that most are: a network, a head of the right size, and a law."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn import functional as F

from xhat.errors import ConfigError, DataError
from xhat.networks import head_of, in_shape_of
from xhat.networks.base import as_shape, beside, condition_size
from xhat.networks.precision import Reducible
from xhat.parts import Part

TRANSFORMS = ("softplus", "exp")
LARGEST_EXPONENT = 30.0  # e^30 is far beyond any scale of standardised data and far from float32's overflow


def check_minimum(minimum: object) -> None:
    """Refuse a lower bound of a positive parameter that is not itself a positive number."""
    if not isinstance(minimum, int | float) or not 0 < minimum < math.inf:
        raise ConfigError(f"minimum must be above 0 and finite, was {minimum!r}")


def positive(raw: Tensor, transform: str = "softplus", minimum: float = 1e-4) -> Tensor:
    r"""A positive parameter from an unbounded one: ``minimum + softplus(raw)`` or ``minimum + exp(raw)``.

    softplus(a) = log(1 + e^a) is close to a for large positive a and close to e^a for large negative a. The exponent of ``exp``
    is cut at 30.

    Raises:
        ConfigError: the transform is neither ``"softplus"`` nor ``"exp"``.

    >>> positive(torch.tensor([-100.0, 0.0, 100.0]), "softplus", minimum=0.001)
    tensor([1.0000e-03, 6.9415e-01, 1.0000e+02])
    """
    if transform == "softplus":
        return minimum + F.softplus(raw)
    if transform == "exp":
        return minimum + raw.clamp(max=LARGEST_EXPONENT).exp()
    raise ConfigError(f"scale must be one of {', '.join(TRANSFORMS)} or a positive number, was {transform!r}")


class Conditional(Part, nn.Module, abc.ABC):
    """Abstract: a law that depends on a context, and on what is known beside it.

    ``forward`` maps a context ``(*batch, *context_shape)`` to a distribution with batch shape ``batch`` and event shape
    ``event``. What is known beside it is one row for each example, and the last axis of ``batch`` counts the examples.

    Attributes:
        event: shape of one draw.
    """

    event: tuple[int, ...]

    @abc.abstractmethod
    def forward(
        self,
        context: Tensor,
        condition: Tensor | None = None,
        exposure: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Distribution:
        """The law.

        Args:
            context: ``(*batch, *context_shape)``.
            condition: ``(B, C)``, what everything is conditioned on; only for a conditional whose networks take one.
            exposure: ``(B,)``, what multiplies a rate; only for a law of rates.
            observed: of the context's shape, which of its values were seen; the others are 0.

        Raises:
            ConfigError: a context of the wrong shape; a condition that is missing, or of another size.
        """

    def bind(self, context_shape: Sequence[int], what: str) -> None:
        """Tell the conditional the shape of the context that it will get; a model does this when it is put together.

        Raises:
            ConfigError: its network takes another number of values.
        """

    def check(self, x: Tensor, where: str, first: int = 0, observed: Tensor | None = None) -> None:
        """Refuse values outside the law's support, where its formula is a number but not a probability.

        Args:
            x: ``(B, *event)``.
            where: what x is, for the message.
            first: the number of x's first example, when x is a piece of something longer.
            observed: of x's shape, which of its values count; all of them unless given.

        Raises:
            DataError: names the first such value, its place, and the remedy.
        """


class Headed(Conditional, Reducible):
    """A network, a head of the right size, and a law.

    Args:
        network: any module that maps ``(N, *in_shape)`` to features. One that takes a condition too says so by its attribute
            ``condition``, one that takes a mask by ``masked`` (see :class:`xhat.networks.Network`).
        event: shape of one draw.
        parameters: how many numbers the law needs for each element of the event; or, as a tuple, the whole shape of what the
            head puts out.

    The network itself sees one batch dimension only.

    Raises:
        ConfigError: sizes below 1; a network that does not say its number of features; a context of the wrong shape.
    """

    support: ClassVar[constraints.Constraint | None] = None  # of one element of the event; None: not known
    remedy: ClassVar[str] = "choose another likelihood"

    def __init__(self, network: nn.Module, event: int | Sequence[int], parameters: int | tuple[int, ...]) -> None:
        super().__init__()
        self.event = as_shape(event, "event")
        self.event_ndim = len(self.event)
        shape = (parameters, *self.event) if isinstance(parameters, int) else parameters
        self.width = max(1, math.prod(shape) // math.prod(self.event))  # numbers for each element of the event
        self.network = network
        self.head = head_of(network, shape)
        self.in_shape = in_shape_of(network)
        self.context_shape = self.in_shape

    def bind(self, context_shape: Sequence[int], what: str) -> None:
        shape = tuple(context_shape)
        if self.in_shape is not None and math.prod(self.in_shape) != math.prod(shape):
            raise ConfigError(
                f"{what}: its network takes {math.prod(self.in_shape)} values of shape {self.in_shape}, but it gets {shape}, "
                f"which is {math.prod(shape)} values"
            )
        self.context_shape = shape

    def forward(
        self,
        context: Tensor,
        condition: Tensor | None = None,
        exposure: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Distribution:
        raw = self.raw(context, condition, observed)
        return self.law(raw) if exposure is None else self.exposed(raw, exposure)

    def raw(self, context: Tensor, condition: Tensor | None = None, observed: Tensor | None = None) -> Tensor:
        """The raw numbers that the network makes of a context, ``(*batch, parameters, *event)``: what :meth:`law` takes.

        Raises:
            ConfigError: a context of the wrong shape; a condition that is missing, or of another size.
        """
        shape = tuple(context.shape[1:]) if self.context_shape is None else self.context_shape
        split = context.ndim - len(shape)
        if split < 0 or tuple(context.shape[split:]) != shape:
            raise ConfigError(
                f"{type(self).__name__} takes a context of shape (*batch, {', '.join(map(str, shape))}), "
                f"was {tuple(context.shape)}"
            )
        taken = self.in_shape or shape
        if condition is not None:
            condition = condition.expand(*context.shape[:split], condition.shape[-1]).reshape(-1, condition.shape[-1])
        seen = None if observed is None else observed.reshape(-1, *taken)
        others = beside(self.network, condition, seen)
        with self.in_precision(context):
            raw = self.head(self.network(context.reshape(-1, *taken), **others))
        if self.reduced is not None:
            raw = raw.to(context.dtype)  # what the law computes of it loses nothing more
        return raw.reshape(*context.shape[:split], *raw.shape[1:])

    @abc.abstractmethod
    def law(self, raw: Tensor) -> Distribution:
        """The distribution from raw numbers ``(*batch, parameters, *event)``."""

    def exposed(self, raw: Tensor, exposure: Tensor) -> Distribution:
        """The same with rates that are multiplied by an exposure, ``(B,)``.

        Raises:
            ConfigError: the law has no rate.
        """
        raise ConfigError(
            f"an exposure multiplies a rate, and {type(self).__name__} has none: leave it out, or use likelihood='poisson'"
        )

    def check(self, x: Tensor, where: str, first: int = 0, observed: Tensor | None = None) -> None:
        if self.support is None:
            return
        inside = self.support.check(x)
        if observed is not None:
            inside = inside | ~(observed if inside.ndim == observed.ndim else observed.all(-1))
        if bool(inside.all()):
            return
        place = (~inside).nonzero()[0].tolist()
        held = x[tuple(place)]
        value = f"{held.item():g}" if held.ndim == 0 else f"[{', '.join(f'{number:g}' for number in held.tolist())}]"
        raise DataError(
            f"{where}: example {first + place[0]} holds {value} at {tuple(place[1:])}, outside the support "
            f"of the {type(self).__name__} likelihood ({_name(self.support)}): {self.remedy}"
        )


def event_of(conditional: nn.Module, what: str) -> tuple[int, ...]:
    """The event shape that a conditional or a prior declares as ``event``.

    Raises:
        ConfigError: it declares none.
    """
    event = getattr(conditional, "event", None)
    if not isinstance(event, int | Sequence):
        raise ConfigError(f"the {what} {type(conditional).__name__} needs an attribute event: the shape of one draw")
    return as_shape(event, f"the event of the {what}")


def condition_of(*conditionals: nn.Module | None) -> int:
    """How many numbers of a condition conditionals take, or whatever module stands in their place; 0 for none.

    Raises:
        ConfigError: their networks take conditions of different sizes.
    """
    found = 0
    for conditional in conditionals:
        for module in () if conditional is None else conditional.modules():
            size = condition_size(module)
            if size and found and size != found:
                sizes = sorted((size, found))
                raise ConfigError(f"all networks of a model must take the same condition, but theirs have {sizes} numbers")
            found = size or found
    return found


def _name(constraint: constraints.Constraint) -> str:
    known = {
        constraints.boolean: "0 and 1",
        constraints.unit_interval: "the interval [0, 1]",
        constraints.nonnegative_integer: "0, 1, 2, …",
        constraints.one_hot: "a single 1 and otherwise 0",
    }
    return known.get(constraint, str(constraint))
