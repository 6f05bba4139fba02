"""Expectation and maximisation: a mixture of Normals fitted to points."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from xhat.errors import DataError

ELEMENTS = 4_000_000  # numbers at once: points × components × dimensions
SEEN = 10_000  # points that are enough to find a start
LLOYD = 10  # rounds of k-means from which expectation and maximisation start


class Normals(NamedTuple):
    """A mixture of K Normals in d dimensions: weights ``(K,)``, locs ``(K, d)`` and covariances ``(K, d, d)``, or of diagonal
    ones their variances ``(K, d)``. All float64."""

    weights: Tensor
    locs: Tensor
    covariances: Tensor

    @property
    def full(self) -> bool:
        """Whether the covariances are whole matrices."""
        return self.covariances.ndim == 3


class Fitted(NamedTuple):
    """What :func:`fit_normals` found.

    Attributes:
        mixture: the best one.
        log_likelihoods: mean log density of the points in nats: of the start, and after each step.
        held_out: the same of the points that were held out; empty without any.
    """

    mixture: Normals
    log_likelihoods: tuple[float, ...]
    held_out: tuple[float, ...]


def log_joint(mixture: Normals, points: Tensor) -> Tensor:
    r"""Log density of each point with each component, :math:`\log w_k + \log N(z_n; \mu_k, \Sigma_k)`, ``(N, K)`` in nats."""
    size = points.shape[1]
    if mixture.full:
        factors = torch.linalg.cholesky(mixture.covariances)
        whitening = torch.linalg.solve_triangular(factors, torch.eye(size).to(factors), upper=False)  # (K, d, d)
        locs = (whitening @ mixture.locs.unsqueeze(2)).squeeze(2)
        # One large product for all components; in float64, and with points about 0, the difference loses nothing that counts.
        white = (points @ whitening.flatten(0, 1).mT).unflatten(1, locs.shape) - locs
        log_det = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    else:
        white = (points.unsqueeze(1) - mixture.locs) / mixture.covariances.sqrt()
        log_det = mixture.covariances.log().sum(-1) / 2
    constant = mixture.weights.log() - log_det - size * math.log(2 * math.pi) / 2
    return constant - white.square().sum(-1) / 2


def mean_log_density(mixture: Normals, points: Tensor) -> float:
    """The mean log density of points ``(N, d)``, in nats."""
    total = sum(float(log_joint(mixture, part).logsumexp(1).sum()) for part in _parts(mixture, points))
    return total / len(points)


def _parts(mixture: Normals, points: Tensor) -> tuple[Tensor, ...]:
    return points.split(max(1, ELEMENTS // mixture.locs.numel()))


def fit_normals(
    points: Tensor,
    components: int,
    covariance: str = "full",
    *,
    floor: float = 1e-3,
    steps: int = 100,
    tolerance: float = 1e-4,
    held_out: Tensor | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Fitted:
    r"""Fit a mixture of Normals to points by expectation and maximisation.

    Each step takes the responsibilities :math:`r_{nk} = p(k \mid z_n)` and then the best mixture for them: weights
    :math:`\sum_n r_{nk} / N`, means and covariances under r. No step lowers the likelihood, with the bound on the
    covariances too: an eigenvalue below it is raised to it, which is the best covariance that keeps to the bound. It starts from
    k-means, whose own start is drawn from torch's global generator (k-means++).

    Args:
        points: ``(N, d)``.
        components: K.
        covariance: ``"full"`` or ``"diagonal"``.
        floor: lower bound of a standard deviation in any direction, in units of the points' own (the root of their mean
            variance).
        steps: the most steps.
        tolerance: it stops when a step raises the mean log-likelihood by less, in nats.
        held_out: other points, ``(M, d)``; it stops when a step lowers their likelihood, and keeps what was best for them.
        progress: called with the number of each step and the mean log-likelihood.

    Raises:
        DataError: fewer points than components, points that are not finite, or that all coincide.

    Source: Dempster, Laird & Rubin (1977); k-means++: Arthur & Vassilvitskii (2007).

    >>> _ = torch.manual_seed(0)
    >>> points = torch.cat([torch.randn(500, 1) - 5, 2 * torch.randn(500, 1) + 5])
    >>> fitted = fit_normals(points, components=2)
    >>> fitted.mixture.locs.flatten().sort().values.round().tolist()
    [-5.0, 5.0]
    """
    points = points.double()
    if len(points) < components:
        raise DataError(f"a mixture of {components} components needs as many codes at least, there were {len(points)}")
    if not bool(points.isfinite().all()):
        raise DataError("codes must be finite numbers, and some are not: look at the posterior that made them")
    centre = points.mean(0)  # moments about it lose no digits
    points = points - centre
    smallest = floor**2 * float(points.square().mean())
    if not smallest > 0:
        raise DataError("all codes are the same point, of which there is no density: train the model first")
    apart = None if held_out is None else held_out.double() - centre
    mixture = _start(points, components, covariance == "full", smallest)
    best, kept = mixture, [] if apart is None else [mean_log_density(mixture, apart)]
    rising: list[float] = []
    for step in range(steps + 1):
        value, following = _step(mixture, points, smallest)
        rising.append(value)
        if progress is not None:
            progress(step, value)
        best = mixture if apart is None else best
        if step == steps or (step > 0 and rising[-1] - rising[-2] < tolerance):
            break
        mixture = following
        if apart is not None:
            kept.append(mean_log_density(mixture, apart))
            if kept[-1] <= kept[-2]:
                break
            best = mixture
    return Fitted(best._replace(locs=best.locs + centre), tuple(rising), tuple(kept))


def _step(mixture: Normals, points: Tensor, smallest: float) -> tuple[float, Normals]:
    """The mean log-likelihood of a mixture, and the mixture that a step makes of it."""
    count, first = torch.zeros_like(mixture.weights), torch.zeros_like(mixture.locs)
    second, total = torch.zeros_like(mixture.covariances), 0.0
    for part in _parts(mixture, points):
        joint = log_joint(mixture, part)
        density = joint.logsumexp(1)
        total += float(density.sum())
        shares = (joint - density.unsqueeze(1)).exp()
        moments = _moments(part, shares, mixture.full)
        count, first, second = count + moments[0], first + moments[1], second + moments[2]
    return total / len(points), _maximised((count, first, second), mixture, smallest)


def _moments(points: Tensor, shares: Tensor, full: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over points, by their shares ``(N, K)`` in the components, of 1, z and z zᵀ (or z²)."""
    second = (shares.mT.unsqueeze(2) * points).mT @ points if full else shares.mT @ points.square()
    return shares.sum(0), shares.mT @ points, second


def _maximised(moments: tuple[Tensor, Tensor, Tensor], before: Normals, smallest: float) -> Normals:
    """The best mixture for these moments; a component that hardly any point is in stays where it was."""
    count, first, second = moments
    alive = count > 1e-8
    safe = torch.where(alive, count, 1.0).unsqueeze(1)
    locs = first / safe
    if before.full:
        covariances = _raised(second / safe.unsqueeze(2) - locs.unsqueeze(2) * locs.unsqueeze(1), smallest)
    else:
        covariances = (second / safe - locs.square()).clamp(min=smallest)
    lives = alive.view(-1, *(1,) * (covariances.ndim - 1))
    return Normals(
        count / count.sum(),
        torch.where(alive.unsqueeze(1), locs, before.locs),
        torch.where(lives, covariances, before.covariances),
    )


def _raised(covariances: Tensor, smallest: float) -> Tensor:
    """Covariances ``(K, d, d)`` with no eigenvalue below ``smallest``."""
    values, vectors = torch.linalg.eigh((covariances + covariances.mT) / 2)
    return (vectors * values.clamp(min=smallest).unsqueeze(1)) @ vectors.mT


def _start(points: Tensor, components: int, full: bool, smallest: float) -> Normals:
    """The mixture of the cells of k-means."""
    seen = points if len(points) <= SEEN else points[torch.randperm(len(points), device=points.device)[:SEEN]]
    size = points.shape[1]
    locs = _spread_out(seen, components)
    nearest = torch.cdist(seen, locs).argmin(1)
    for _ in range(LLOYD):
        shares = torch.nn.functional.one_hot(nearest, components).to(seen)
        count = shares.sum(0).unsqueeze(1)
        locs = torch.where(count > 0, shares.mT @ seen / count.clamp(min=1), locs)
        nearest = torch.cdist(seen, locs).argmin(1)
    # A cell of few points has no covariance of its own: all start with the one that they have in common.
    left = seen - locs[nearest]
    weights = torch.bincount(nearest, minlength=components).to(seen) + 1
    if full:
        common = _raised((left.mT @ left / len(seen)).unsqueeze(0), smallest).expand(components, size, size)
    else:
        common = left.square().mean(0).clamp(min=smallest).expand(components, size)
    return Normals(weights / weights.sum(), locs, common.clone())


def _spread_out(points: Tensor, count: int) -> Tensor:
    """Points far from each other: each drawn with a probability that goes with the squared distance to the nearest so far."""
    chosen = points[torch.randint(len(points), (1,), device=points.device)]
    nearest = (points - chosen).square().sum(1)
    for _ in range(count - 1):
        # Where all that are left coincide with one that is chosen, any of them is as good.
        weights = nearest if bool(nearest.sum() > 0) else torch.ones_like(nearest)
        new = points[torch.multinomial(weights, 1)]
        chosen = torch.cat([chosen, new])
        nearest = torch.minimum(nearest, (points - new).square().sum(1))
    return chosen
