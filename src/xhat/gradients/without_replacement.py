"""Estimators that never take the same value twice: sum-and-sample, and the unordered set."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.distributions import Distribution

from xhat.gradients.base import Function, Gradient, honest
from xhat.gradients.components import Categories, categories_of, log_mass
from xhat.gradients.reduction import Reduction

LARGEST_SET = 8  # of 2^8 subsets


def _outcomes(q: Distribution) -> int:
    categories = categories_of(q)
    return categories.count ** categories.logits.shape[len(q.batch_shape) : -1].numel()


class _Distinct(Gradient):
    """What both share: S different values, so no more than the law has."""

    requires = frozenset({"components"})
    plain = False

    @property
    def fewest_samples(self) -> int:
        return 2

    def lacks(self, q: Distribution) -> str | None:
        missing = super().lacks(q)
        if missing is None and _outcomes(q) < 3:
            return "three values or more ('enumerate' is exact for two)"
        return missing

    def points(self, samples: int, q: Distribution) -> int:
        return self.evaluations(samples, q)


class SumAndSample(_Distinct):
    r"""The S − 1 most probable values summed exactly, and one draw from the rest.

    .. math:: E[f] \approx \sum_{z \in C} q(z) f(z) + (1 - q(C))\, f(\tilde z), \qquad \tilde z \sim q \mid \text{not in } C

    with the score function as its gradient and the mean over C as its baseline. It is exact where C holds all the mass. Several
    elements are one law of all their combinations, of which the most probable are found exactly.

    Source: Liu, Regier, Tripuraneni, Jordan & McAuliffe (2019).

    >>> import xhat
    >>> logits = torch.zeros(4, 3, requires_grad=True)
    >>> q = torch.distributions.OneHotCategorical(logits=logits)
    >>> xhat.expectation(lambda z: z[..., 0], q, "sum-and-sample", samples=2).shape
    torch.Size([4])
    """

    unbiased = True

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        return samples if q is None else min(samples, _outcomes(q))

    def weights(self, q: Distribution, z: Tensor) -> Tensor:
        mass = log_mass(q, z[:-1]).exp()
        return torch.cat([mass, (1 - mass.sum(0, keepdim=True)).clamp(min=0)])

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        categories = categories_of(q)
        with torch.no_grad():
            logits = _flat(categories, q)
            summed = _most_probable(logits, min(samples - 1, _outcomes(q) - 1))
            rest = _draw_outside(logits, summed)
            z = _placed(categories, q, torch.cat([summed, rest]))
            weights = self.weights(q, z)
        values = f(z)
        with torch.no_grad():
            mass = weights[:-1].sum(0)
            summed = torch.where(weights[:-1] > 0, weights[:-1] * values[:-1], 0.0).sum(0)
            baseline = summed / mass.clamp(min=torch.finfo(mass.dtype).tiny)
            signal = torch.where(weights > 0, weights * (values - baseline), 0.0)
        # What has no mass counts for nothing, even where f is infinite on it.
        return honest((weights * torch.where(weights > 0, values, 0.0)).sum(0), (signal * log_mass(q, z)).sum(0))


class UnorderedSet(_Distinct):
    r"""S values drawn without replacement, averaged over every order in which they could have come.

    .. math:: g = \sum_{s \in D} \nabla q(s)\, R(D, s) \Big(f(s) - \sum_{t \in D} q(t)\, R^{\setminus s}(D, t)\, f(t)\Big),
              \qquad R(D, s) = \frac{P(D \setminus s \mid s \text{ first})}{P(D)}

    where :math:`R^{\setminus s}` is the same ratio among the values without s, and 1 for t = s: a baseline made of the other
    draws whose mean is E[f] whatever s is. Sets of 2 to 8.

    Source: Kool, van Hoof & Welling (2020).

    >>> import xhat
    >>> logits = torch.zeros(4, 3, requires_grad=True)
    >>> q = torch.distributions.OneHotCategorical(logits=logits)
    >>> xhat.expectation(lambda z: z[..., 0], q, "unordered-set", samples=2).shape
    torch.Size([4])
    """

    unbiased = True

    @property
    def takes(self) -> str:
        return f"takes 2 to {LARGEST_SET} samples"

    def usable(self, samples: int) -> int:
        return min(max(2, samples), LARGEST_SET)

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        # All values but one say what the last one does.
        return samples if q is None else min(samples, _outcomes(q) - 1)

    def weights(self, q: Distribution, z: Tensor) -> Tensor:
        log_prob = log_mass(q, z)
        mass = self._masses(q, z, log_prob)
        return (mass * _ratios(mass)[0]).to(log_prob.dtype)

    @staticmethod
    def _masses(q: Distribution, z: Tensor, log_prob: Tensor) -> Tensor:
        """The probability of each value of a set; 0 for one that is there twice, because there were no others to draw."""
        mass = log_prob.detach().double().exp()
        same = (
            (z.unsqueeze(0) == z.unsqueeze(1)).flatten(2 + len(q.batch_shape)).all(-1) if q.event_shape else z[None] == z[:, None]
        )
        earlier = torch.ones(len(z), len(z), dtype=torch.bool, device=z.device).tril(-1)
        return mass.masked_fill((same & earlier.reshape(len(z), len(z), *(1,) * len(q.batch_shape))).any(1), 0.0)

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        categories = categories_of(q)
        with torch.no_grad():
            logits = _flat(categories, q)
            count = min(samples, _outcomes(q) - 1)
            drawn = logits.new_zeros((0, *logits.shape[:-1]), dtype=torch.long)
            for _ in range(count):
                drawn = torch.cat([drawn, _draw_outside(logits, drawn)])
            z = _placed(categories, q, drawn)
        values = f(z)
        log_prob = log_mass(q, z)
        with torch.no_grad():
            mass = self._masses(q, z, log_prob)
            first, second = _ratios(mass)
            weights = mass * first
            baseline = (second * torch.where(mass > 0, mass * values, 0.0)[None]).sum(1)
            signal = torch.where(weights > 0, weights * (values - baseline), 0.0).to(values.dtype)
            weights = weights.to(values.dtype)
        # What has no mass counts for nothing, even where f is infinite on it.
        return honest((weights * torch.where(weights > 0, values, 0.0)).sum(0), (signal * log_prob).sum(0))


def _flat(categories: Categories, q: Distribution) -> Tensor:
    """Log probabilities ``(*batch, n, K)`` in float64: rests of mass are differences of numbers near one."""
    return categories.logits.detach().double().reshape(*q.batch_shape, -1, categories.count).log_softmax(-1)


def _placed(categories: Categories, q: Distribution, index: Tensor) -> Tensor:
    """What f takes for category numbers ``(S, *batch, n)``."""
    elements = categories.logits.shape[len(q.batch_shape) : -1]
    return categories.value(categories.one_hot(index.reshape(*index.shape[:-1], *elements)))


def _most_probable(logits: Tensor, count: int) -> Tensor:
    """The ``count`` most probable combinations, ``(count, *batch, n)``: those of a prefix are among the prefix's own best."""
    best = logits.new_zeros((*logits.shape[:-2], 1))
    index = torch.zeros((*logits.shape[:-2], 1, 0), dtype=torch.long, device=logits.device)
    for j in range(logits.shape[-2]):
        grown = (best.unsqueeze(-1) + logits[..., j, :].unsqueeze(-2)).flatten(-2)
        best, flat = grown.topk(min(count, grown.shape[-1]), -1)
        parent = flat // logits.shape[-1]
        kept = index.gather(-2, parent.unsqueeze(-1).expand(*parent.shape, j))
        index = torch.cat([kept, (flat % logits.shape[-1]).unsqueeze(-1)], -1)
    return index.movedim(-2, 0)


def _draw_outside(logits: Tensor, taken: Tensor) -> Tensor:
    """One draw, ``(1, *batch, n)``, from the law without the combinations ``taken``, ``(m, *batch, n)``.

    Element by element: a category's share is its probability, less what of it belongs to taken combinations that agree so far.
    """
    chosen = logits.expand(len(taken), *logits.shape).gather(-1, taken.unsqueeze(-1)).squeeze(-1)
    # The logarithm of a taken combination's probability from each element on.
    onward = chosen.flip(-1).cumsum(-1).flip(-1)
    agrees = torch.ones(taken.shape[:-1], dtype=torch.bool, device=taken.device)
    drawn = []
    for j in range(logits.shape[-2]):
        own = torch.zeros((*taken.shape[:-1], logits.shape[-1]), dtype=logits.dtype, device=logits.device)
        if len(taken):
            after = onward[..., j + 1] if j + 1 < logits.shape[-2] else torch.zeros_like(onward[..., j])
            held = torch.where(agrees, after.exp(), 0.0)
            own.scatter_(-1, taken[..., j].unsqueeze(-1), held.unsqueeze(-1))
        left = (1 - own.sum(0)).clamp(min=0)
        if len(taken) == 1:
            # One combination alone: 1 - e^t without the rounding of e^t.
            kept = torch.where(agrees[0], -torch.expm1(after[0]), 1.0)
            left = left.scatter(-1, taken[0, ..., j].unsqueeze(-1), kept.unsqueeze(-1))
        share = logits[..., j, :].exp() * left
        pick = (share / torch.empty_like(share).exponential_()).argmax(-1)
        drawn.append(pick)
        agrees = agrees & (taken[..., j] == pick)
    return torch.stack(drawn, -1).unsqueeze(0)


def _ratios(mass: Tensor) -> tuple[Tensor, Tensor]:
    """R(D, s), ``(k, *batch)``, and R without s (D, t), ``(k, k, *batch)``, of a set with these probabilities."""
    count = len(mass)
    subsets = [frozenset(c) for size in range(count, -1, -1) for c in itertools.combinations(range(count), size)]
    # Having drawn a subset, the probability that the others follow, in any order.
    follow: dict[frozenset[int], Tensor] = {}
    for subset in subsets:
        others = [s for s in range(count) if s not in subset]
        if not others:
            follow[subset] = torch.ones_like(mass[0])
            continue
        taken = mass[list(subset)].sum(0) if subset else torch.zeros_like(mass[0])
        # The rest of the mass is at least that of the members still to come, whatever rounding says.
        still = mass[others].sum(0)
        rest = torch.maximum(1 - taken, still).clamp(min=torch.finfo(mass.dtype).tiny)
        some = sum((mass[s] / rest * follow[subset | {s}] for s in others), torch.zeros_like(mass[0]))
        # Members without mass come when nothing else is left, and then for certain.
        follow[subset] = torch.where(still > 0, some, 1.0)
    tiny = torch.finfo(mass.dtype).tiny
    whole = follow[frozenset()].clamp(min=tiny)
    first = torch.stack([follow[frozenset({s})] / whole for s in range(count)])
    second = torch.stack(
        [
            torch.stack(
                [
                    torch.ones_like(whole) if s == t else follow[frozenset({s, t})] / follow[frozenset({s})].clamp(min=tiny)
                    for t in range(count)
                ]
            )
            for s in range(count)
        ]
    )
    return first, second
