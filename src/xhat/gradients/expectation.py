"""``xhat.expectation``: the expectation of a function, with the gradient of one's choice."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from xhat.distributions.chain import Chain
from xhat.errors import ConfigError, whole_number
from xhat.gradients.antithetic import ARM, ARMS, CARMS, DisARM
from xhat.gradients.base import Function, Gradient, LogWeight
from xhat.gradients.bounds import STL, DReG
from xhat.gradients.enumeration import Enumerate
from xhat.gradients.layers import Layers
from xhat.gradients.measure import Measure
from xhat.gradients.pathwise import Pathwise
from xhat.gradients.reduction import Mean, Reduction
from xhat.gradients.relaxed import REBAR, RELAX
from xhat.gradients.score import VIMCO, LeaveOneOut, Score
from xhat.gradients.straight_through import Concrete, GumbelRao, ReinMax, STGumbel, StraightThrough
from xhat.gradients.taylor import DoubleCV, MuProp
from xhat.gradients.without_replacement import SumAndSample, UnorderedSet

GRADIENTS: dict[str, type[Gradient]] = {
    "pathwise": Pathwise,
    "score": Score,
    "rloo": LeaveOneOut,
    "measure": Measure,
    "enumerate": Enumerate,
    "arm": ARM,
    "disarm": DisARM,
    "arms": ARMS,
    "carms": CARMS,
    "sum-and-sample": SumAndSample,
    "unordered-set": UnorderedSet,
    "muprop": MuProp,
    "double-cv": DoubleCV,
    "rebar": REBAR,
    "relax": RELAX,
    "concrete": Concrete,
    "straight-through": StraightThrough,
    "st-gumbel": STGumbel,
    "gumbel-rao": GumbelRao,
    "reinmax": ReinMax,
    "stl": STL,
    "dreg": DReG,
    "vimco": VIMCO,
}


def gradient_of(gradient: str | Gradient, **options: Any) -> Gradient:
    """An estimator from its name and options, or the estimator itself.

    Raises:
        ConfigError: an unknown name, or an option that the estimator does not have.

    >>> gradient_of("score", baseline="lagged").baseline
    'lagged'
    """
    if isinstance(gradient, Gradient):
        return gradient
    if not isinstance(gradient, str) or gradient not in GRADIENTS:
        raise ConfigError(f"gradient must be one of {', '.join(GRADIENTS)}, was {gradient!r}")
    if not options:
        return GRADIENTS[gradient]()
    parameters = inspect.signature(GRADIENTS[gradient]).parameters.values()
    # A class without options shows those of nn.Module: *args, **kwargs.
    known = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    unknown = sorted(options.keys() - known)
    if unknown:
        has = f"its options are {', '.join(sorted(known))}" if known else "it has none"
        raise ConfigError(f"the gradient {gradient!r} has no option {unknown[0]!r}; {has}")
    return GRADIENTS[gradient](**options)


class Misfit(NamedTuple):
    """Why an estimator cannot do what is asked of it, and what to do instead."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


def misfit(
    estimator: Gradient, q: Distribution, samples: int, f: Function | None = None, reduce: Reduction | None = None
) -> Misfit | None:
    """Whether an estimator can serve a law, a number of samples, a kind of f and a reduction: None when it can."""
    name = name_of(estimator)
    lacks = estimator.lacks(q)
    how = Mean() if reduce is None else reduce
    if lacks is not None and isinstance(estimator, Layers) and isinstance(q, Chain):
        return Misfit(f"one of the layers' gradients needs {lacks} which its law does not have", "choose another for that layer")
    if lacks is not None:
        fitting = _serving(q, how)
        remedy = f"gradients that fit: {', '.join(fitting)}" if fitting else "no gradient fits this law"
        return Misfit(f"the gradient {name!r} needs {lacks}, which {_law_name(q)} does not have", remedy)
    if estimator.usable(samples) != samples:
        return Misfit(f"the gradient {name!r} {estimator.takes}, was {samples}", f"use {estimator.usable(samples)}")
    if reduce is not None and reduce.family not in estimator.reductions:
        if reduce.family == "mean":
            remedy = "use xhat.bound(…, objective='iwae'), or for a mean 'rloo'"
            return Misfit(f"the gradient {name!r} is one for multi-sample bounds", remedy)
        if reduce.family in type(estimator).reductions:  # it is an option that is in the way
            return Misfit(f"the gradient {name!r} with these options serves no multi-sample bound", "leave them out (noise, say)")
        remedy = f"gradients that do: {', '.join(_serving(q, reduce))}"
        return Misfit(f"the gradient {name!r} serves no multi-sample bound", remedy)
    if f is not None and "log weight" in estimator.requires and not isinstance(f, LogWeight):
        remedy = f"use xhat.bound(log_joint, q, gradient={name!r}), or in a model objectives.ELBO(kl='sampled')"
        return Misfit(f"the gradient {name!r} needs to know log q apart from the rest of f", remedy)
    return None


def _serving(q: Distribution, reduce: Reduction) -> list[str]:
    """The names of the gradients that fit; the caller's random numbers, of which some are made, are left alone."""
    with torch.random.fork_rng(devices=[]):
        return [name for name, cls in GRADIENTS.items() if reduce.family in cls.reductions and cls().lacks(q) is None]


def check_fit(
    estimator: Gradient, q: Distribution, samples: int, f: Function | None = None, reduce: Reduction | None = None
) -> None:
    """Refuse, before anything is drawn, what :func:`misfit` finds.

    Raises:
        ConfigError: says what is missing and which gradients fit.
    """
    found = misfit(estimator, q, samples, f, reduce)
    if found is not None:
        raise ConfigError(str(found))


def name_of(estimator: Gradient) -> str:
    """An estimator's name in the table; its class's, where it is one of the user's own."""
    return next((key for key, cls in GRADIENTS.items() if type(estimator) is cls), type(estimator).__name__)


def _law_name(q: Distribution) -> str:
    base = getattr(q, "base_dist", None)
    return f"{type(q).__name__}({type(base).__name__})" if base is not None else type(q).__name__


def expectation(
    f: Function,
    q: Distribution,
    gradient: str | Gradient = "pathwise",
    samples: int = 1,
    reduce: Reduction | None = None,
) -> Tensor:
    r"""The Monte Carlo estimate of :math:`E_{z \sim q}[f(z)]`, differentiable by the chosen estimator.

    Its *value* is the plain average of f over the draws, whatever the gradient; its *backward* is the estimator. f may be called
    more than once, at points that the estimator chooses, and may itself call ``expectation`` (several latent layers).

    Args:
        f: maps ``(S, *batch, *event)`` to ``(S, *batch)``.
        q: the law; its parameters carry the gradient.
        gradient: a name of ``xhat.gradients.GRADIENTS``, or an estimator with options of its own. A name makes a new one at each
            call: those that learn or remember (``rebar``, ``relax``, ``double-cv``, a lagged or learned baseline) do so only as
            an object that you keep, and train through its ``auxiliary_loss()``, as models do.
        samples: S, the number of values of f that enter the estimate.
        reduce: how S values become one; the mean unless given.

    Returns:
        ``(*batch)``.

    Raises:
        ConfigError: the estimator does not fit the law or the number of samples, or f returns another shape.

    >>> import torch
    >>> loc = torch.tensor([0.0, 2.0], requires_grad=True)
    >>> q = torch.distributions.Normal(loc, 1.0)
    >>> value = expectation(lambda z: z**2, q, gradient="score", samples=1000)
    >>> value.shape
    torch.Size([2])
    """
    if not isinstance(q, Distribution) or not callable(f):
        raise ConfigError(
            f"expectation needs a function f and a torch Distribution q, was {type(f).__name__}, {type(q).__name__}"
        )
    estimator = gradient_of(gradient)
    whole_number("samples", samples)
    how = Mean() if reduce is None else reduce
    check_fit(estimator, q, samples, f, how)
    events = len(q.event_shape)
    checked: Function
    if isinstance(f, LogWeight):
        checked = LogWeight(_checked(f.log_joint, events, "log_joint"), f.q, f.weight, f.seen)
    else:
        checked = _checked(f, events, "f")
    if estimator.plain and not torch.is_grad_enabled():
        return how(checked(q.sample((samples,))))  # the value is all that is wanted
    return estimator.estimate(checked, q, samples, how)


def _checked(f: Function, events: int, name: str) -> Function:
    """f, which must return what it should."""

    def checked(z: Tensor) -> Tensor:
        values = f(z)
        if not isinstance(values, Tensor):
            raise ConfigError(f"{name} must return a tensor, returned {type(values).__name__}")
        if not values.is_floating_point():
            raise ConfigError(f"{name} must return floating-point numbers, returned {values.dtype}: add .float() or .double()")
        expected = z.shape[: z.ndim - events]
        if values.shape != expected:
            raise ConfigError(
                f"{name} must map (S, *batch, *event) to (S, *batch), here {tuple(z.shape)} to {tuple(expected)}, but it "
                f"returned {tuple(values.shape)}: sum over the event, and nothing else"
            )
        return values

    return checked
