"""``xhat.expectation``: the expectation of a function, with the gradient of one's choice."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from xhat.errors import ConfigError, whole_number
from xhat.gradients.base import Function, Gradient
from xhat.gradients.pathwise import Pathwise
from xhat.gradients.reduction import Mean, Reduction
from xhat.gradients.score import Score

GRADIENTS: dict[str, type[Gradient]] = {
    "pathwise": Pathwise,
    "score": Score,
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
    known = set(inspect.signature(GRADIENTS[gradient]).parameters)
    unknown = sorted(options.keys() - known)
    if unknown:
        has = f"its options are {', '.join(sorted(known))}" if known else "it has none"
        raise ConfigError(f"the gradient {gradient!r} has no option {unknown[0]!r}; {has}")
    return GRADIENTS[gradient](**options)


def check_fit(estimator: Gradient, q: Distribution, samples: int) -> None:
    """Refuse, before anything is drawn, an estimator that cannot serve a law or a number of samples.

    Raises:
        ConfigError: says what is missing and which gradients fit.
    """
    name = next((key for key, cls in GRADIENTS.items() if isinstance(estimator, cls)), type(estimator).__name__)
    lacks = estimator.lacks(q)
    if lacks is not None:
        fitting = [key for key, cls in GRADIENTS.items() if cls().lacks(q) is None]
        remedy = f"gradients that fit: {', '.join(fitting)}" if fitting else "no gradient fits this law"
        raise ConfigError(f"the gradient {name!r} needs {lacks}, which {_law_name(q)} does not have; {remedy}")
    if samples < estimator.fewest_samples:
        raise ConfigError(f"the gradient {name!r} as set needs samples of at least {estimator.fewest_samples}, was {samples}")


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
        gradient: a name of ``xhat.gradients.GRADIENTS``, or an estimator with options of its own.
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
    estimator = gradient_of(gradient)
    whole_number("samples", samples)
    check_fit(estimator, q, samples)
    events = len(q.event_shape)

    def checked(z: Tensor) -> Tensor:
        values = f(z)
        if not isinstance(values, Tensor):
            raise ConfigError(f"f must return a tensor, returned {type(values).__name__}")
        expected = z.shape[: z.ndim - events]
        if values.shape != expected:
            raise ConfigError(
                f"f must map (S, *batch, *event) to (S, *batch), here {tuple(z.shape)} to {tuple(expected)}, but it returned "
                f"{tuple(values.shape)}: sum over the event, and nothing else"
            )
        return values

    return estimator.estimate(checked, q, samples, Mean() if reduce is None else reduce)
