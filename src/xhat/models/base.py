"""The chassis that every model stands on."""

from __future__ import annotations

import abc
import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from xhat.conditionals import CONDITIONALS, Chain, Conditional, Ladder, event_of
from xhat.conditionals import Delta as Code
from xhat.data import Corruption, Examples
from xhat.distributions import Chain as JointLaw
from xhat.distributions import Delta, widths
from xhat.errors import ConfigError, DataError, whole_number
from xhat.gradients import Gradient
from xhat.models.trial import try_out
from xhat.networks.bayesian_models import is_bayesian, mean_weights
from xhat.networks.products import quick_products
from xhat.objectives import ELBO, Objective, Terms
from xhat.parts import Part

_SUCH_AS = {"objective": "ELBO()", "gradient": "Pathwise()"}


PIECE = 1000  # examples at once of what is read from files


class Stage(NamedTuple):
    """One stretch of training: what is trained, on terms that ``module(x)`` gives for a batch of raw examples."""

    name: str
    module: nn.Module
    objective: Objective


class Model(Part, nn.Module, abc.ABC):
    """Abstract: a posterior, a likelihood, an objective and a gradient, and perhaps a prior and a corruption.

    ``model.posterior(x)``, ``model.likelihood(z)`` and ``model.prior()`` are distributions. Shapes: x is ``(B, *event_shape)``,
    z ``(…, B, *latent_shape)``.
    """

    event_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    prior: Callable[[], Distribution]
    points: ClassVar[bool] = False  # whether the posterior may be a point, which has no density and so no bound

    def __init__(
        self,
        prior: nn.Module | None,
        posterior: nn.Module,
        likelihood: nn.Module,
        objective: Objective,
        gradient: Gradient,
        corruption: Corruption | None,
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
        if isinstance(posterior, Conditional | Chain | Ladder):
            posterior.bind(self.event_shape, "posterior")
        if isinstance(likelihood, Conditional):
            likelihood.bind(self.latent_shape, "likelihood")
        self._put_together()

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
            try_out(self, self.like.new_zeros(3, *self.event_shape))

    def forward(self, x: Tensor) -> Terms:
        """The objective's terms, unchecked: what the training loop calls after it has checked the data once.

        The encoder sees a corrupted x when there is a corruption; the target is the clean x.
        """
        seen = x if self.corruption is None else self.corruption(x)
        return self.objective(self, seen, x)

    def loss(self, x: Tensor) -> Tensor:
        """The training loss per example, ``(B,)``; in nats where the objective is.

        Raises:
            DataError: x has another shape, or values outside the likelihood's support.
        """
        x = self.given(x)
        self.check(x)
        return self(x).loss

    @property
    def like(self) -> Tensor:
        """A tensor of the model's device and dtype."""
        return next((p for p in self.parameters() if p.is_floating_point()), torch.zeros(()))

    @property
    def device(self) -> torch.device:
        """Where the parameters are; examples and codes may come from anywhere."""
        return self.like.device

    def given(self, x: Any) -> Tensor:
        """What a user brings, a tensor, an array or ``Examples``, as a tensor of the model's device and dtype."""
        x = x.tensor() if isinstance(x, Examples) else torch.as_tensor(x)
        return x.to(self.like.device, self.like.dtype)

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
            return widths(self.posterior(self.like.new_zeros(1, *self.event_shape)))

    def check(self, x: Tensor, where: str = "x", first: int = 0) -> None:
        """Refuse examples of another shape, or outside the likelihood's support.

        Raises:
            DataError: says which.
        """
        if x.ndim == 0 or tuple(x.shape[1:]) != self.event_shape:
            raise DataError(
                f"{where} must have shape (B, {', '.join(map(str, self.event_shape))}) for this model, was {tuple(x.shape)}"
            )
        if isinstance(self.likelihood, Conditional):
            self.likelihood.check(x, where, first)

    def elbo(self, x: Tensor, samples: int = 1) -> Tensor:
        r"""The evidence lower bound per example, :math:`E_q[\log p(x|z)] - KL(q(z|x) \,\|\, p(z))`, ``(B,)``, in nats.

        It is the bound itself: weight 1 on the KL, no free bits, a clean x; the KL in closed form where there is one.

        Raises:
            ConfigError: the model has no prior, or a code without a density.
            DataError: x has another shape, or values outside the likelihood's support.
        """
        self.need_bound("have an evidence lower bound")
        x = self.given(x)
        self.check(x)
        whole_number("samples", samples)
        kl = self.objective.kl if isinstance(self.objective, ELBO) else "auto"
        # Any number of draws has the same mean; an estimator that needs two for its baseline gets two.
        samples = self.gradient.usable(samples)
        return ELBO(kl=kl, samples=samples)(self, x, x).measures["elbo"]

    def encode(self, x: Tensor, sample: bool = False) -> Tensor:
        """The posterior's mean, or a draw from it, ``(B, *latent_shape)``."""
        if isinstance(x, Examples) and not x.resident:  # more than memory holds: its codes are less
            return torch.cat([self.encode(batch, sample) for batch in x.batches(PIECE)])
        with quiet(self), self._still(sample):
            q = self.posterior(self.given(x))
            return q.sample() if sample else centre(q)

    def decode(self, z: Tensor, sample: bool = False) -> Tensor:
        """The likelihood's mean, or a draw from it, ``(B, *event_shape)``."""
        with quiet(self), self._still(sample):
            p = self.likelihood(self.given(z))
            return p.sample() if sample else centre(p)

    def _still(self, sample: bool) -> contextlib.AbstractContextManager[object]:
        """Random weights at their means, unless draws are asked for."""
        return contextlib.nullcontext() if sample or not is_bayesian(self) else mean_weights(self)

    def reconstruct(self, x: Tensor, sample: bool = False) -> Tensor:
        """x̂: what the code of x decodes to; with ``sample`` both the code and the example are drawn."""
        return self.decode(self.encode(x, sample), sample)

    def sample(self, n: int, sample: bool = False) -> Tensor:
        """``n`` new examples: z from the prior, then the likelihood's mean, or with ``sample`` a draw from it.

        Raises:
            ConfigError: the model has no prior.
        """
        whole_number("n", n)
        self.need_prior(
            "sample new examples", "train a VAE for that, or fit a prior to its codes with fit-prior (xhat.fit_prior)"
        )
        with quiet(self):
            z = self.prior().sample((n,))
        return self.decode(z, sample)

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
        if type(self.posterior) in CONDITIONALS.values():
            return not isinstance(self.posterior, Code)
        with quiet(self):
            return not isinstance(self.posterior(self.like.new_zeros(1, *self.event_shape)), Delta)

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
