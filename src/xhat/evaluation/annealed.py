"""Annealed importance sampling of log p(x), with Hamiltonian moves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily, constraints

from xhat.data import Batch
from xhat.distributions import Chain
from xhat.distributions.support import split
from xhat.distributions.unvalidated import unvalidated
from xhat.errors import ConfigError, whole_number
from xhat.evaluation.hmc import ACCEPTED, Move, move
from xhat.models.base import Model
from xhat.models.trial import law_name
from xhat.networks.bayesian_models import is_bayesian
from xhat.objectives import Posed

STARTS = ("posterior", "prior")
UNIT = 64  # draws of the start whose spread is the unit of length in each direction
TUNING = 16  # chains of the run that finds the step sizes
WARM = 20  # moves at the first temperature, until the step size fits there
RATE = 0.4  # by how much its logarithm moves for a share of acceptance that is all wrong
SLOPE = 4.0  # of the sigmoid: temperatures are dense at both ends


class Annealing:
    r"""Weights of chains that go from a law that can be drawn from to the posterior, in small steps.

    With :math:`f(z) = \log p(x, z) - \log s(z)`, the laws in between are :math:`\pi_t(z) \propto s(z)\, e^{\beta_t f(z)}`,
    :math:`0 = \beta_0 < \dots < \beta_T = 1`, and each chain has

    .. math:: \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) f(z_{t-1}), \qquad z_0 \sim s, \quad z_t \sim K_t(\cdot | z_{t-1})

    where :math:`K_t` is a Hamiltonian move that leaves :math:`\pi_t` invariant. E[w] = p(x) for any T and any step sizes. These
    are found in a run before, by other chains, one for each example and temperature, for an acceptance of 0.65; in the measured
    run they stand still, for a chain that chose its own would no longer leave its law invariant.

    Args:
        steps: T.
        leapfrog: steps of a trajectory.
        start: s; ``"posterior"`` is q(z|x), ``"prior"`` p(z).

    Raises:
        ConfigError: a number below 1, or another start.

    Source: Neal (2001); for decoders: Wu, Burda, Salakhutdinov & Grosse (2017), whose schedule it is.
    """

    def __init__(self, steps: int = 100, leapfrog: int = 10, start: str = "posterior") -> None:
        whole_number("steps", steps)
        whole_number("leapfrog", leapfrog)
        if start not in STARTS:
            raise ConfigError(f"start must be one of {', '.join(STARTS)}, was {start!r}")
        self.steps, self.leapfrog, self.start = steps, leapfrog, start

    def begin(self, model: Model, batch: Batch, chunk: int) -> Callable[[int], Tensor]:
        """What makes so many log weights of each example, ``(count, B)``; the step sizes are found now."""
        return self.path(model, batch, chunk).forward

    def path(self, model: Model, batch: Batch, chunk: int) -> Path:
        """The laws in between for some examples, and the step sizes, found with at most ``chunk`` chains at once.

        Raises:
            ConfigError: codes that cannot be moved by a derivative.
        """
        needs_moves(model, batch.rows(slice(1)))
        return Path(model.pose(batch), self, chunk)


class Path:
    """The way from s to the posterior of each of B examples.

    Attributes:
        temperatures: β, ``(T + 1,)``, from 0 to 1.
        sizes: the step sizes of the moves at temperatures 1 to T - 1, ``(T - 1, B)``.
    """

    def __init__(self, posed: Posed, settings: Annealing, chunk: int) -> None:
        self.posed, self.leapfrog, self.count = posed, settings.leapfrog, posed.target.size
        self.prior = posed.prior
        self.s = posed.q if settings.start == "posterior" else self.prior
        self.temperatures = schedule(settings.steps)
        self.sizes = posed.target.x.new_zeros(settings.steps - 1, self.count)
        if settings.steps > 1:
            self.spread = self._drawn(UNIT).std(0)
            self._tune(self._drawn(TUNING), chunk)

    def _drawn(self, count: int) -> Tensor:
        """Draws from s, ``(count, B, *event)``; the prior has no batch."""
        return self.s.sample((count,) if self.s.batch_shape else (count, self.count))

    def _tune(self, z: Tensor, chunk: int) -> None:
        log_size = torch.full((self.count,), 0.2, dtype=torch.float64, device=z.device).log()
        for t in [1] * WARM + list(range(1, len(self.temperatures) - 1)):
            moves = [self._moved(some, t, log_size.exp()) for some in z.split(chunk)]
            z, accepted = (torch.cat(parts) for parts in zip(*moves, strict=True))
            log_size = log_size + RATE * (accepted.mean(0) - ACCEPTED)
            self.sizes[t - 1] = log_size.exp()

    def _moved(self, z: Tensor, t: int, size: Tensor) -> Move:
        beta = float(self.temperatures[t])

        def density(z: Tensor) -> Tensor:
            joint, s = self._joint(z), self.s.log_prob(z)
            return s + beta * (joint - s)

        with unvalidated():  # a trajectory may leave for where a law has no parameters, and is refused there
            return move(density, z, size, self.spread, self.leapfrog)

    def _joint(self, z: Tensor) -> Tensor:
        return self.posed.log_px(z) + self.prior.log_prob(z)

    def _rise(self, z: Tensor, t: int) -> Tensor:
        """What the weight gains between two temperatures, ``(S, B)``."""
        return float(self.temperatures[t] - self.temperatures[t - 1]) * (self._joint(z).double() - self.s.log_prob(z).double())

    def forward(self, count: int) -> Tensor:
        """Log weights of ``count`` chains, ``(count, B)`` in float64: the mean of their exponentials is p(x) in expectation."""
        z = self._drawn(count)
        log_w = self._rise(z, 1)
        for t in range(1, len(self.temperatures) - 1):
            z = self._moved(z, t, self.sizes[t - 1]).z
            log_w = log_w + self._rise(z, t + 1)
        return log_w

    def reverse(self, z: Tensor) -> Tensor:
        """Log weights, ``(S, B)``, of chains that start at draws z from p(z|x) itself, ``(S, B, *event)``, and go back to s.

        They are those of the forward run: here the mean of :math:`1/w` is :math:`1/p(x)` in expectation.
        """
        last = len(self.temperatures) - 1
        log_w = self._rise(z, last)
        for t in range(last - 1, 0, -1):
            z = self._moved(z, t, self.sizes[t - 1]).z
            log_w = log_w + self._rise(z, t)
        return log_w


def schedule(steps: int) -> Tensor:
    r"""Temperatures from 0 to 1, ``(steps + 1,)``: a sigmoid's middle, :math:`\sigma(\delta(2t/T - 1))`, stretched to [0, 1].

    >>> schedule(2)
    tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    curve = torch.linspace(-SLOPE, SLOPE, steps + 1, dtype=torch.float64).sigmoid()
    return (curve - curve[0]) / (curve[-1] - curve[0])


def needs_moves(model: Model, batch: Batch) -> None:
    """Refuse codes that no Hamiltonian move can go through.

    Raises:
        ConfigError: codes that are discrete or bounded, random weights, or a likelihood without a derivative in z.
    """
    if is_bayesian(model):
        raise ConfigError(
            "annealing needs a density that stands still, and this model's weights are random: use method='importance'"
        )
    posed = model.pose(batch)
    q = posed.q
    for name, law in (("posterior", q), ("prior", posed.prior)):
        if not _everywhere(law):
            raise ConfigError(
                f"annealing moves codes by a derivative through all of space, and the {name} {law_name(law)} is discrete or "
                "bounded: use method='exact' for a code of few values, or 'importance'"
            )
    with torch.enable_grad():
        z = q.sample((1,)).requires_grad_()
        if not model.pose(batch).log_px(z).requires_grad:
            raise ConfigError(
                f"annealing needs the likelihood's derivative in z, and {type(model.likelihood).__name__} has none: use "
                "method='importance'"
            )


def _everywhere(law: Distribution) -> bool:
    """Whether a law is a density on all of space; one that declares no support is taken at its word."""
    base, _ = split(law)
    if isinstance(base, Chain):
        return _everywhere(base.first) and _everywhere(base.pattern)
    if isinstance(base, MixtureSameFamily):
        return _everywhere(base.component_distribution)
    try:
        support = base.support
    except NotImplementedError:
        return True
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is None or support is constraints.real
