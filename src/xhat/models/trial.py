"""The trial that a model's parts go through when it is put together: what does not fit is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent
from torch.nn.modules.batchnorm import _BatchNorm

from xhat.conditionals import Chain
from xhat.data import Batch
from xhat.distributions import Delta, is_discrete
from xhat.distributions.support import extended_log_prob
from xhat.errors import ConfigError, XhatError
from xhat.gradients import Gradient
from xhat.gradients.expectation import check_fit

if TYPE_CHECKING:
    from xhat.models.base import Model


def try_out(model: Model, blank: Batch) -> None:
    """Put blank examples through a model in evaluation mode.

    Raises:
        ConfigError: says which parts do not fit, and why.
    """
    if model.objective.needs_prior and not hasattr(model, "prior"):
        raise ConfigError(
            f"{type(model).__name__} has no prior, which the objective {type(model.objective).__name__} needs: use "
            "objectives.SquaredError, or a VAE"
        )
    q = _called(lambda _: model.pose(blank).q, model.posterior, blank.x, "posterior")
    check_law(q, "posterior", model.latent_shape, (blank.size,))
    # A law with a gradient to its parameters: some estimators fit only where nothing moves the support.
    with torch.enable_grad():
        posed = model.pose(blank)
        check_fit(model.gradient, posed.q, model.objective.samples, reduce=model.objective.reduction)
    model.objective.serves(model.gradient)
    likelihood = _called(posed.likelihood, model.likelihood, q.sample((2,)), "likelihood")
    check_law(likelihood, "likelihood", model.event_shape, (2, blank.size))
    _alone(model.gradient, [model.likelihood, getattr(model, "prior", None), *_later(model.posterior)])
    if hasattr(model, "prior"):
        point = isinstance(q, Delta)
        if point and not model.points:
            raise ConfigError(
                "a Delta posterior has no density, so its KL to a prior is infinite: use xhat.Autoencoder, or a Normal posterior"
            )
        p = posed.prior
        if tuple(p.event_shape) != model.latent_shape:
            raise ConfigError(
                f"the prior draws events of shape {tuple(p.event_shape)}, the posterior of shape {model.latent_shape}: "
                "they must be the same"
            )
        if point and not is_discrete(p):  # the codes are numbers, which the prior has a density of
            return
        if point or is_discrete(p) != is_discrete(q):
            raise ConfigError(
                f"the posterior {law_name(q)} and the prior {law_name(p)} do not live on the same points, so no KL "
                "between them is finite: use a prior of the posterior's kind"
            )
        with torch.enable_grad():  # what is learned shows
            model.objective.fits(posed.q, posed.prior)
        if not _covers(p, q):
            raise ConfigError(
                f"the posterior {law_name(q)} draws values that are impossible under the prior {type(model.prior).__name__}, so "
                "the KL between them is infinite: use a prior of the posterior's kind"
            )


def _later(posterior: nn.Module) -> list[nn.Module]:
    """The layers of a posterior that see draws of other layers, and so are a part of what those are weighed by."""
    return [*_later(posterior.first), posterior.then] if isinstance(posterior, Chain) else []


def _alone(gradient: Gradient, parts: Sequence[Any]) -> None:
    """Refuse batch normalisation below an estimator that weighs each example's draws by that example's own f.

    Raises:
        ConfigError: one of the parts normalises over the batch.
    """
    if not gradient.signals:
        return
    for part in parts:
        for module in part.modules() if isinstance(part, nn.Module) else ():
            if isinstance(module, _BatchNorm):
                raise ConfigError(
                    f"{type(module).__name__} couples the examples of a batch, so that f of one depends on the draws of the "
                    f"others and the gradient of {type(gradient).__name__} is wrong: use layer or group normalisation, or a "
                    "pathwise gradient"
                )


def _called(law_at: Callable[[Tensor], Distribution], conditional: nn.Module, context: Tensor, what: str) -> Distribution:
    """A conditional's law, for a context that it must be able to take."""
    try:
        law = law_at(context)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, XhatError):
            raise
        raise ConfigError(
            f"the {what} {type(conditional).__name__} fails on a context of shape {tuple(context.shape)}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return law


def check_law(law: object, what: str, event: tuple[int, ...], batch: tuple[int, ...]) -> None:
    """Refuse a conditional that returns no distribution, or one over events or batches of another shape.

    Raises:
        ConfigError: says which.
    """
    if not isinstance(law, Distribution):
        raise ConfigError(f"the {what} must return a torch Distribution, returned {type(law).__name__}")
    if tuple(law.event_shape) != event:
        raise ConfigError(
            f"the {what} {law_name(law)} has event shape {tuple(law.event_shape)}, but declares {event}: wrap the law in "
            "torch.distributions.Independent"
        )
    if tuple(law.batch_shape) != batch:
        raise ConfigError(
            f"the {what} {law_name(law)} has batch shape {tuple(law.batch_shape)} for a context with batch shape {batch}: it "
            "must keep all leading dimensions, (S, B) of them for S draws of z"
        )


def _covers(p: Distribution, q: Distribution, draws: int = 64) -> bool:
    """Whether draws of q lie where p puts probability; the caller's random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        return bool((extended_log_prob(p, q.sample((draws,))) > -torch.inf).all())


def law_name(law: Distribution) -> str:
    """A law's name for messages, with what is inside an Independent."""
    return f"{type(law.base_dist).__name__}" if isinstance(law, Independent) else type(law).__name__
