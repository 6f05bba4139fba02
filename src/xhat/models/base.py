"""What every model is: a posterior, a likelihood and an objective, and the problem that they pose for a batch."""

from __future__ import annotations

import abc
import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from xhat.conditionals import Conditional, Headed, condition_of, event_of
from xhat.conditionals import Delta as Code
from xhat.conditionals.chain import called
from xhat.data import Batch, Conditions, Corruption, Examples, Preparation, given, in_own_units
from xhat.distributions import Chain as JointLaw
from xhat.distributions import Delta, widths
from xhat.errors import ConfigError, DataError, whole_number
from xhat.gradients import Gradient
from xhat.models.trial import try_out
from xhat.networks.bayesian_models import is_bayesian, mean_weights
from xhat.networks.products import quick_products
from xhat.objectives import ELBO, Objective, Posed, Terms
from xhat.parts import Part
from xhat.priors import law_of

_SUCH_AS = {"objective": "ELBO()", "gradient": "Pathwise()"}


PIECE = 1000  # examples at once of what is read from files


class Stage(NamedTuple):
    """One stretch of training: what is trained, on terms that ``module(batch)`` gives for some raw examples."""

    name: str
    module: nn.Module
    objective: Objective


class Model(Part, nn.Module, abc.ABC):
    """Abstract: a posterior, a likelihood, an objective and a gradient, and perhaps a prior and a corruption.

    ``model.posterior(x)``, ``model.likelihood(z)`` and ``model.prior()`` are distributions, of a model with a condition
    ``model.posterior(x, condition=c)`` and so on. Shapes: x is ``(B, *event_shape)``, z ``(…, B, *latent_shape)``, c ``(B, C)``.

    Attributes:
        conditions: the names and classes of what the model is conditioned on; None of a model without a condition, or of one
            whose parts take numbers without names.
        condition_size: C, how many numbers of a condition its parts take; 0 for none.
    """

    event_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    prior: Callable[[], Distribution]
    preparation: Preparation | None = None  # what was done to the training data, and is done to whatever is not in units of x
    points: ClassVar[bool] = False  # whether the posterior may be a point, which has no density and so no bound

    def __init__(
        self,
        prior: nn.Module | None,
        posterior: nn.Module,
        likelihood: nn.Module,
        objective: Objective,
        gradient: Gradient,
        corruption: Corruption | None,
        condition: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if prior is not None:
            self.prior = prior
        self.posterior = posterior
        self.likelihood = likelihood
        self.objective = objective
        self.gradient = gradient
        self.corruption = corruption
        for name, part, kind in (("objective", objective, Objective), ("gradient", gradient, Gradient)):
            if not isinstance(part, kind):
                raise ConfigError(
                    f"{name} must be an object of xhat.{name}s, such as xhat.{name}s.{_SUCH_AS[name]}, was {part!r}"
                )
        if corruption is not None and not isinstance(corruption, nn.Module):
            raise ConfigError(f"corruption must be a module, such as xhat.data.Masking(0.5), was {corruption!r}")
        self.event_shape = event_of(likelihood, "likelihood")
        self.latent_shape = event_of(posterior, "posterior")
        self.conditions = None if condition is None else Conditions.of(condition)
        self.condition_size = self._condition_size()
        for conditional, shape, what in (
            (posterior, self.event_shape, "posterior"),
            (likelihood, self.latent_shape, "likelihood"),
        ):
            if isinstance(conditional, Conditional):
                conditional.bind(shape, what)
        self._put_together()

    def _condition_size(self) -> int:
        size = condition_of(self.posterior, self.likelihood, getattr(self, "prior", None))
        if self.conditions is not None and self.conditions.size != size:
            takes = f"take one of {size}" if size else "take none"
            raise ConfigError(
                f"the condition {', '.join(self.conditions.names)} has {self.conditions.size} numbers, but the model's networks "
                f"{takes}: make them with condition={self.conditions.size}"
            )
        return size

    def _put_together(self) -> None:
        """Let the parts meet that want to, and see whether all fit."""
        prior = getattr(self, "prior", None)
        # A prior may be made of the posterior, a posterior go down the prior's layers.
        for conditional in (prior, self.posterior):
            meet: Callable[[Any, nn.Module], None] | None = getattr(conditional, "meet", None)
            if meet is not None:
                meet(prior, self.posterior)
        self._try_out()

    def _try_out(self) -> None:
        """Put blank examples through, so that parts that do not fit are refused now and by name."""
        if self.like.is_meta:  # an outline of a model has shapes and no values
            return
        with quiet(self):
            try_out(self, self.blank(3))

    def blank(self, count: int) -> Batch:
        """Examples of zeros, under conditions of zeros."""
        like = self.like
        return Batch(
            like.new_zeros(count, *self.event_shape),
            condition=like.new_zeros(count, self.condition_size) if self.condition_size else None,
        )

    def forward(self, batch: Batch | Tensor) -> Terms:
        """The objective's terms, unchecked: what the training loop calls after it has checked the data once.

        The encoder sees a corrupted x when there is a corruption; the target is the clean x.
        """
        if isinstance(batch, Tensor):
            batch = Batch(batch)
        seen = batch.x if self.corruption is None else self.corruption(batch.x)
        return self.objective(self.pose(batch, seen))

    def pose(self, batch: Batch, seen: Tensor | None = None, q: Distribution | None = None) -> Posed:
        """The inference problem of some examples, unchecked: what objectives, evidence and every other measure take.

        Args:
            batch: of the model's device and dtype; see :meth:`batch`.
            seen: what the encoder sees, ``(B, *event_shape)``; the examples themselves unless given.
            q: a posterior in place of the encoder's.
        """
        seen = batch.x if seen is None else seen
        if batch.observed is not None:
            seen = torch.where(batch.observed, seen, torch.zeros((), dtype=seen.dtype, device=seen.device))
        if q is None:
            q = called(self.posterior, seen, condition=batch.condition, observed=batch.observed)
        known = {"condition": batch.condition, "exposure": batch.exposure}
        if batch.condition is not None and not condition_of(self.likelihood):
            del known["condition"]
        bound = {name: value for name, value in known.items() if value is not None}
        likelihood = partial(self.likelihood, **bound) if bound else self.likelihood
        p = law_of(self.prior, batch.condition) if hasattr(self, "prior") else None  # type: ignore[arg-type]
        return Posed(q, p, likelihood, batch, self.gradient, seen)

    def batch(self, x: Any, condition: Any = None) -> Batch:
        """What a user brings, on the model's device and of its dtype, with the condition that the model needs.

        Args:
            x: a :class:`~xhat.data.Batch`, ``Examples`` or a float tensor, in the model's own units; or whatever else there is,
                which goes through :attr:`preparation`.
            condition: numbers ``(B, C)``, or values by name (:meth:`~xhat.data.Conditions.encode`), in place of x's own.

        Raises:
            DataError: a condition for a model without one, none for a model with one, one of another size or with unknown names.
        """
        batch = x if isinstance(x, Batch) else Batch(x) if in_own_units(x) else self.examples(x).batch(slice(None))
        batch = batch.to(self.like)
        if condition is not None:
            batch = batch._replace(condition=self.condition(condition, batch.size, batch.condition))
        self.need_condition(batch.condition, batch.size)
        return batch

    def condition(self, condition: Any, count: int, base: Tensor | None = None) -> Tensor:
        """The rows of numbers, ``(count, C)``, of a condition in numbers or in values by name.

        Args:
            condition: ``(count, C)`` or ``(C,)`` numbers; or values by name, one for all or one for each example.
            count: how many examples it is for.
            base: rows whose numbers stand for the fields that the names leave out.

        Raises:
            DataError: the model has no condition, or none with names; unknown names or classes; another number of rows.
        """
        if not self.condition_size:
            raise DataError(f"this {type(self).__name__} was made without a condition, but one was given: leave it out")
        if isinstance(condition, Mapping):
            if self.conditions is None:
                raise DataError(
                    "the condition of this model has no names: give its numbers, or make the model with condition={'label': 10}"
                )
            rows = self.conditions.encode(condition, count, base)
        else:
            rows = torch.as_tensor(condition)
            rows = rows.expand(count, *rows.shape[-1:]) if rows.ndim == 1 or len(rows) == 1 else rows
        rows = rows.to(self.like)
        self.need_condition(rows, count)
        return rows

    def need_condition(self, condition: Tensor | None, count: int) -> None:
        """Refuse a condition for a model without one, the reverse, and one of another size.

        Raises:
            DataError: says which.
        """
        if condition is None and self.condition_size:
            names = "" if self.conditions is None else f", {self.conditions}"
            raise DataError(
                f"this {type(self).__name__} is conditioned on {self.condition_size} numbers{names}, but no condition was given: "
                "give condition=… (--condition), or data that hold it"
            )
        if condition is None:
            return
        if not self.condition_size:
            raise DataError(f"this {type(self).__name__} was made without a condition, but one was given: leave it out")
        if tuple(condition.shape) != (count, self.condition_size):
            raise DataError(
                f"the condition must have shape ({count}, {self.condition_size}), a row for each example, was "
                f"{tuple(condition.shape)}"
            )

    def loss(self, x: Any, condition: Any = None) -> Tensor:
        """The training loss per example, ``(B,)``; in nats where the objective is.

        Raises:
            DataError: x has another shape, or values outside the likelihood's support; a condition that does not fit.
        """
        batch = self.batch(x, condition)
        self.check(batch)
        return self(batch).loss

    @property
    def like(self) -> Tensor:
        """A tensor of the model's device and dtype."""
        return next((p for p in self.parameters() if p.is_floating_point()), torch.zeros(()))

    @property
    def device(self) -> torch.device:
        """Where the parameters are; examples and codes may come from anywhere."""
        return self.like.device

    def given(self, x: Any) -> Tensor:
        """What a user brings as a tensor of the model's device and dtype, in the units that the model was trained in.

        A float tensor, and ``Examples``, are in these units; whatever else there is goes through :attr:`preparation`.
        """
        x = x if in_own_units(x) else self.examples(x).tensor()
        return x.to(self.like.device, self.like.dtype)

    def examples(self, x: Any, where: str = "x") -> Examples:
        """The same as ``Examples``, which may be more than memory holds; ``where`` is what messages call x."""
        return given(x, self.preparation, where)

    @property
    def numbers(self) -> int:
        """Numbers that the decoder's widest layer holds for one draw of z: what memory is counted in."""
        width = getattr(self.likelihood, "width", 1)  # 256 grey levels take 256 numbers for each value of x
        widths = [getattr(layer, "out_features", 0) for layer in self.likelihood.modules()]
        layers = [width for width in widths if isinstance(width, int)]
        return max(math.prod(self.event_shape) * width, *layers, 1)

    @property
    def variables(self) -> tuple[int, ...]:
        """How many numbers of the flat code each latent variable takes: K for a one-hot vector of K categories, else 1."""
        with quiet(self):
            return widths(self.pose(self.blank(1)).q)

    def check(self, x: Tensor | Batch, where: str = "x", first: int = 0) -> None:
        """Refuse examples of another shape, or with observed values outside the likelihood's support.

        Raises:
            DataError: says which.
        """
        x, observed = (x.x, x.observed) if isinstance(x, Batch) else (x, None)
        if observed is not None and observed.shape != x.shape:
            raise DataError(f"observed must have the shape of {where}, {tuple(x.shape)}, was {tuple(observed.shape)}")
        if x.ndim == 0 or tuple(x.shape[1:]) != self.event_shape:
            raise DataError(
                f"{where} must have shape (B, {', '.join(map(str, self.event_shape))}) for this model, was {tuple(x.shape)}"
            )
        if isinstance(self.likelihood, Conditional):
            self.likelihood.check(x, where, first, observed)

    def elbo(self, x: Any, samples: int = 1, condition: Any = None) -> Tensor:
        r"""The evidence lower bound per example, :math:`E_q[\log p(x|z)] - KL(q(z|x) \,\|\, p(z))`, ``(B,)``, in nats.

        It is the bound itself: weight 1 on the KL, no free bits, a clean x; the KL in closed form where there is one. Under a
        condition it bounds log p(x|c); where not all of x was observed, the log density of what was.

        Raises:
            ConfigError: the model has no prior, or a code without a density.
            DataError: x has another shape, or values outside the likelihood's support.
        """
        self.need_bound("have an evidence lower bound")
        batch = self.batch(x, condition)
        self.check(batch)
        whole_number("samples", samples)
        kl = self.objective.kl if isinstance(self.objective, ELBO) else "auto"
        # Any number of draws has the same mean; an estimator that needs two for its baseline gets two.
        samples = self.gradient.usable(samples)
        return ELBO(kl=kl, samples=samples)(self.pose(batch)).measures["elbo"]

    def encode(self, x: Any, sample: bool = False, condition: Any = None) -> Tensor:
        """The posterior's mean, or a draw from it, ``(B, *latent_shape)``."""
        x = x if isinstance(x, Batch) or in_own_units(x) else self.examples(x)
        if isinstance(x, Examples) and not x.resident:  # more than memory holds: its codes are less
            return torch.cat([self.encode(batch, sample, condition) for batch in x.batched(PIECE)])
        batch = self.batch(x, condition)
        with quiet(self), self._still(sample):
            q = self.pose(batch).q
            return q.sample() if sample else centre(q)

    def decode(self, z: Any, sample: bool = False, condition: Any = None) -> Tensor:
        """The likelihood's mean, or a draw from it, ``(B, *event_shape)``."""
        z = torch.as_tensor(z).to(self.like)
        count = z.shape[-1 - len(self.latent_shape)] if z.ndim > len(self.latent_shape) else 1
        rows = None if condition is None else self.condition(condition, count)
        self.need_condition(rows, count)
        with quiet(self), self._still(sample):
            takes = rows is not None and condition_of(self.likelihood)
            p = called(self.likelihood, z, condition=rows if takes else None)
            return p.sample() if sample else centre(p)

    def _still(self, sample: bool) -> contextlib.AbstractContextManager[object]:
        """Random weights at their means, unless draws are asked for."""
        return contextlib.nullcontext() if sample or not is_bayesian(self) else mean_weights(self)

    def reconstruct(self, x: Any, sample: bool = False, condition: Any = None, as_if: Any = None) -> Tensor:
        """x̂: what the code of x decodes to; with ``sample`` both the code and the example are drawn.

        Where not all of x was observed, x̂ is complete.

        Args:
            x: examples.
            sample: draw, instead of taking means.
            condition: what x is encoded under.
            as_if: another condition, which its code is decoded under: what x would look like then. Of values by name, those left
                out stay as they are.
        """
        x = x if isinstance(x, Batch) or in_own_units(x) else self.examples(x)
        if isinstance(x, Examples) and not x.resident:
            return torch.cat([self.reconstruct(batch, sample, condition, as_if) for batch in x.batched(PIECE)])
        batch = self.batch(x, condition)
        rows = batch.condition if as_if is None else self.condition(as_if, batch.size, batch.condition)
        return self.decode(self.encode(batch, sample), sample, rows)

    def sample(self, n: int, sample: bool = False, condition: Any = None) -> Tensor:
        """``n`` new examples: z from the prior, then the likelihood's mean, or with ``sample`` a draw from it.

        Args:
            n: how many.
            sample: draw x, instead of taking its mean.
            condition: what they are drawn under, such as ``{"label": 3}``: one for all, or one for each.

        Raises:
            ConfigError: the model has no prior.
            DataError: a condition that does not fit.
        """
        whole_number("n", n)
        self.need_prior(
            "sample new examples", "train a VAE for that, or fit a prior to its codes with fit-prior (xhat.fit_prior)"
        )
        rows = None if condition is None else self.condition(condition, n)
        self.need_condition(rows, n)
        with quiet(self):
            p = law_of(self.prior, rows)  # type: ignore[arg-type]
            z = p.sample() if p.batch_shape else p.sample((n,))
        return self.decode(z, sample, rows)

    def need_prior(self, purpose: str, remedy: str = "train a VAE for that") -> None:
        """Refuse what only a model with a prior can do.

        Raises:
            ConfigError: there is none.
        """
        if not hasattr(self, "prior"):
            raise ConfigError(f"{type(self).__name__} has no prior and so cannot {purpose}: {remedy}")

    @property
    def has_bound(self) -> bool:
        """Whether there is an evidence bound: a prior, and a posterior with a density to weigh against it.

        A prior alone, which :func:`xhat.fit_prior` gives to an autoencoder's codes, is enough to sample new examples.
        """
        if not hasattr(self, "prior"):
            return False
        if isinstance(self.posterior, Headed) and type(self.posterior).__module__.startswith("xhat."):  # which need no trial
            return not isinstance(self.posterior, Code)
        with quiet(self):
            return not isinstance(self.pose(self.blank(1)).q, Delta)

    def need_bound(self, purpose: str) -> None:
        """Refuse what only a model with an evidence bound can do.

        Raises:
            ConfigError: there is no prior, or the code has no density.
        """
        self.need_prior(purpose)
        if not self.has_bound:
            raise ConfigError(
                f"{type(self).__name__} has a code that is a point, without a density to weigh against its prior, and so cannot "
                f"{purpose}: train a VAE for that"
            )

    def with_prior(self, prior: nn.Module) -> Self:
        """A copy of the model, of all its weights too, with another prior; the model itself stays as it is.

        Raises:
            ConfigError: a prior that does not fit the other parts, by name.
        """
        event_of(prior, "prior")
        model = copy.deepcopy(self)
        model.prior = prior.to(self.like.device, self.like.dtype)
        model.condition_size = model._condition_size()
        model._put_together()
        return model

    def prepare(self, examples: Examples) -> None:
        """Show the training examples, once and before the first step, to the parts that start from them.

        Such as an objective that must know their number, or a prior whose parameters start at some of them.
        """
        for part in (getattr(self, "prior", None), self.objective):
            prepare: Callable[[Examples], None] | None = getattr(part, "prepare", None)
            if prepare is not None:
                prepare(examples)

    def stages(self) -> list[Stage]:
        """What training goes through, in order."""
        return [Stage("train", self, self.objective)]


@contextlib.contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, for the time of a block."""
    flags = [(module, module.training) for module in model.modules()]  # each its own: a part may be frozen in evaluation mode
    model.eval()
    try:
        with torch.no_grad(), quick_products():
            yield
    finally:
        for module, training in flags:
            module.training = training


def centre(law: Distribution) -> Tensor:
    """A law's mean; where it has no formula for one (a flow, say), the average of 256 draws from a seed of its own."""
    first, second = _halves(law)
    return first if first is second else (first + second) / 2


def centre_and_off(law: Distribution) -> tuple[Tensor, Tensor]:
    """The same, and half the difference of the two halves of the draws; of a formula it is 0.

    The draws' noise is in both with the same variance: that of the mean over examples, less that of the other, is the variance
    of the true means.
    """
    first, second = _halves(law)
    return first if first is second else (first + second) / 2, (first - second) / 2


def _halves(law: Distribution) -> tuple[Tensor, Tensor]:
    """Two averages of 128 independent draws, or twice the mean itself."""
    try:
        mean = law.mean
    except NotImplementedError:
        pass
    else:
        return mean, mean
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if isinstance(law, JointLaw):
            return law.average(centre, 128), law.average(centre, 128)
        first, second = law.sample((256,)).chunk(2)
        return first.mean(0), second.mean(0)
