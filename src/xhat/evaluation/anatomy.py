"""``xhat.anatomy``: what the bound is made of, and what each latent variable tells about x."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal, Normal, OneHotCategorical

from xhat.conditionals import condition_of
from xhat.data import Examples
from xhat.data.permutation import Permutation
from xhat.distributions import widths
from xhat.distributions.support import extended_log_prob, split
from xhat.errors import ConfigError, whole_number
from xhat.evaluation.evidence import ELEMENTS, block_size
from xhat.evaluation.result import Dimension, Measure, coordinate, measure
from xhat.heap import kept_heap
from xhat.models.base import Model, centre_and_off, quiet
from xhat.objectives import Posed

MOST = 5000  # examples: every draw is weighed by the posteriors of all of them
ACTIVE = 0.01  # variance of the posterior mean over examples, above which a unit counts as active (Burda et al. 2016)
NEAR = 0.5  # nats from its ceiling, at which the mutual information says no more than that it is at least so large


class Anatomy(NamedTuple):
    """The bound and its parts, in nats: means over examples with their standard errors.

    Attributes:
        examples: N, how many examples q(z) is the average posterior of.
        samples: draws of z for each.
        elbo: the reconstruction less the KL, at the same draws.
        reconstruction: E log p(x|z).
        kl: E KL(q(z|x) ‖ p(z)), sampled.
        mutual_information: between the number of an example and its code; at most log N.
        marginal_kl: KL(q(z) ‖ p(z)); with the mutual information it makes up the KL.
        total_correlation: how far q(z) is from the product of its marginals; None where ``reason`` says.
        dimension_wise_kl: the sum of KL(q(z_j) ‖ p(z_j)); with the total correlation it makes up the marginal KL. None where
            ``reason`` says.
        dimensions: the latent variables, the most telling first; None without marginals.
        active_units: variables whose posterior mean varies with x (variance above 0.01).
        reason: why a part is None; empty where none is.
    """

    examples: int
    samples: int
    elbo: Measure
    reconstruction: Measure
    kl: Measure
    mutual_information: Measure
    marginal_kl: Measure
    total_correlation: Measure | None
    dimension_wise_kl: Measure | None
    dimensions: tuple[Dimension, ...] | None
    active_units: int
    reason: str

    @property
    def ceiling(self) -> float:
        """log N, which the mutual information of N examples never exceeds."""
        return math.log(self.examples)

    @property
    def ranking(self) -> list[int]:
        """The places of the latent variables in the code, the most telling first; empty without marginals."""
        return [dimension.place for dimension in self.dimensions or ()]

    def __str__(self) -> str:
        rows = [
            ("examples", f"{self.examples}, {self.samples} draws of z each"),
            ("ELBO, nats", str(self.elbo)),
            ("E log p(x|z), nats", str(self.reconstruction)),
            ("KL(q(z|x) ‖ p(z)), nats", str(self.kl)),
            ("  mutual information I(x; z)", f"{self.mutual_information} (at most {self.ceiling:.2f})"),
            ("  KL(q(z) ‖ p(z))", str(self.marginal_kl)),
        ]
        if self.total_correlation is not None:
            rows.append(("    total correlation", str(self.total_correlation)))
        if self.dimension_wise_kl is not None:
            rows.append(("    KL of each dimension, summed", str(self.dimension_wise_kl)))
        rows.append(("active units", f"{self.active_units}"))
        for each in self.dimensions or ():
            kl = "" if each.kl is None else f" of KL {each.kl:.4f}"
            rows.append((coordinate(each.place), f"I(x; z) {each.information:.4f}{kl}{'' if each.active else ', not active'}"))
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        return "\n".join([*lines, *([f"! {self.reason}"] if self.reason else [])])


@kept_heap()
def anatomy(model: Model, x: Any, samples: int = 1, *, seed: int = 0, most: int = MOST) -> Anatomy:
    r"""Take the bound apart over the given examples.

    .. math::
        \frac1N \sum_n \mathrm{ELBO}(x_n) = E[\log p(x|z)] - I_q(x; z) - \underbrace{\Big(
        KL\big(q(z) \,\|\, \textstyle\prod_j q(z_j)\big) + \sum_j KL(q(z_j) \,\|\, p(z_j))\Big)}_{KL(q(z) \| p(z))},
        \qquad q(z) = \frac1N \sum_n q(z|x_n)

    The average posterior q(z) is that of all N examples, exactly; what is sampled is z. All parts are measured at the same
    draws, so that they add up but for rounding. The mutual information is the one between z and *which of the N examples* it
    came from: it cannot exceed log N, and where it comes near, the true one is larger and the marginal KL smaller than what N
    examples show. Standard errors are those over examples, of their draws included, with q(z) taken as given.

    Each draw is weighed by N posteriors: the cost is that of N² densities of z, the memory bounded.

    Args:
        model: a model with a prior.
        x: examples, ``(N, *event_shape)``.
        samples: draws of z for each example.
        seed: of the draws, and of which examples are taken; the caller's random numbers are left alone.
        most: of more examples so many are drawn; the answer says how many they were.

    Raises:
        ConfigError: the model has no prior, or a code without a density; samples or most is below 1.
        DataError: x has another shape, or values outside the likelihood's support.

    Source: Hoffman & Johnson (2016); Chen, Li, Grosse & Duvenaud (2018); active units: Burda, Grosse & Salakhutdinov (2016).

    >>> import torch, xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="bernoulli")
    >>> parts = anatomy(model, torch.eye(4), samples=5)
    >>> whole = parts.mutual_information.value + parts.total_correlation.value + parts.dimension_wise_kl.value
    >>> abs(whole - parts.kl.value) < 1e-5, sorted(parts.ranking)
    (True, [0, 1])
    """
    model.need_bound("have a bound to take apart")
    if condition_of(model.prior):  # type: ignore[arg-type]
        raise ConfigError(
            "the prior of this model depends on its condition, so there is no one p(z) that all codes together could be compared "
            "with: take a model with prior_condition=False apart"
        )
    whole_number("samples", samples)
    whole_number("most", most)
    examples = model.examples(x).fixed(seed)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        if len(examples) > most:
            examples = examples.subset(some(examples, most))
        first = 0
        for block in examples.batched(block_size(model)):
            model.check(model.batch(block), "x", first)
            first += block.size
        return take_apart(model, examples, samples)


def some(examples: Examples, most: int) -> Tensor:
    """Positions of so many examples, drawn from torch's global generator."""
    if examples.resident:
        return torch.randperm(len(examples))[:most]
    # In the order of the file, which is then read once, and without a list of all of them
    drawn = Permutation(len(examples), seed=int(torch.randint(2**62, ())))[:most]
    return drawn.sort().values


def near_ceiling(information: float, examples: int) -> bool:
    """Whether a mutual information says no more of N examples than that the code tells nearly all of them apart."""
    ceiling = math.log(examples)
    return examples > 1 and information > max(ceiling - NEAR, ceiling / 2)


def marginals(law: Distribution) -> Distribution | None:
    """The laws of a law's single variables, one after the other on its last batch axes; None where they have no formula."""
    base, _ = split(law)
    if isinstance(base, MultivariateNormal | LowRankMultivariateNormal):
        return Normal(base.loc, base.variance.sqrt(), validate_args=False)
    return base if not base.event_shape or isinstance(base, OneHotCategorical) else None


def independent(law: Distribution) -> bool:
    """Whether a law is the product of its :func:`marginals`."""
    base, _ = split(law)
    return not base.event_shape or isinstance(base, OneHotCategorical)


class _Terms(NamedTuple):
    """Log densities at draws of z, each ``(S, B)`` or for the single variables ``(S, B, V)``; V is 0 where there are none."""

    reconstruction: Tensor
    posterior: Tensor
    prior: Tensor
    aggregate: Tensor
    posteriors: Tensor
    priors: Tensor
    aggregates: Tensor


def take_apart(model: Model, examples: Examples, samples: int) -> Anatomy:
    """The same of examples that are checked, with draws from torch's global generator."""
    size = block_size(model)
    laws, means, offs, parts = [], [], [], []
    with quiet(model):
        for block in examples.batched(size):
            laws.append(model.pose(model.batch(block)).q)
            mean, off = (each.detach().flatten(1).double() for each in centre_and_off(laws[-1]))
            means.append(mean)
            offs.append(off)
        for block, law in zip(examples.batched(size), laws, strict=True):
            posed = model.pose(model.batch(block), q=law)
            terms = _terms(model, posed, laws, len(examples), samples)
            parts.append(_Terms(*(term.detach().double().mean(0) for term in terms)))
        reason = _reason(laws[0], posed.prior)
    terms = _Terms(*(torch.cat(column) for column in zip(*parts, strict=True)))
    mean, off = torch.cat(means), torch.cat(offs)
    variance = mean.var(0) - off.var(0) if len(mean) > 1 else torch.zeros_like(mean[0])
    return _anatomy(terms, variance, widths(laws[0]), samples, reason)


def _terms(model: Model, posed: Posed, laws: Iterable[Distribution], count: int, samples: int) -> _Terms:
    x, law, p = posed.target.x, posed.q, posed.prior
    z = law.sample((samples,))
    chunk = max(1, ELEMENTS // (len(x) * model.numbers))
    reconstruction = torch.cat([posed.log_px(part) for part in z.split(chunk)])
    own = marginals(law)
    none = z.new_zeros(samples, len(x), 0)
    posteriors = none if own is None else own.log_prob(z).reshape(samples, len(x), -1)
    base, _ = split(p)
    priors = base.log_prob(z).reshape(samples, len(x), -1) if own is not None and independent(p) else none
    whole, single = _aggregate(z.flatten(0, 1), laws, count, own is not None)
    return _Terms(
        reconstruction,
        law.log_prob(z),
        p.log_prob(z),
        whole.reshape(samples, len(x)),
        posteriors,
        priors,
        single.reshape(samples, len(x), -1) if own is not None else none,
    )


def _aggregate(z: Tensor, laws: Iterable[Distribution], count: int, with_marginals: bool) -> tuple[Tensor, Tensor]:
    """log q(z) and log q(z_j) at ``(n, *event)``, from the posteriors of all ``count`` examples: ``(n,)`` and ``(n, V)``."""
    whole = single = torch.tensor(-math.inf, device=z.device, dtype=z.dtype)
    for law in laws:
        found = [_weighed(law, part, with_marginals) for part in _chunks(z, law)]
        whole = torch.logaddexp(whole, torch.cat([one for one, _ in found]))
        if with_marginals:
            single = torch.logaddexp(single, torch.cat([each for _, each in found]))
    return whole - math.log(count), single - math.log(count)


def _chunks(z: Tensor, law: Distribution) -> Iterator[Tensor]:
    """Draws, so many at a time that memory stays bounded: laws without independent variables may hold more than their event."""
    each = z[0].numel() if independent(law) else 16 * z[0].numel()
    yield from z.split(max(1, ELEMENTS // (law.batch_shape.numel() * each)))


def _weighed(law: Distribution, z: Tensor, with_marginals: bool) -> tuple[Tensor, Tensor]:
    """The logarithm of the sum over a block of posteriors of their densities at ``(n, *event)``, and of their marginals'."""
    points = z.unsqueeze(1).expand(len(z), *law.batch_shape, *law.event_shape)
    laws = marginals(law) if with_marginals else None
    each = z.new_zeros(len(z), 1, 0) if laws is None else extended_log_prob(laws, points).reshape(*points.shape[:2], -1)
    whole = each.sum(-1) if laws is not None and independent(law) else extended_log_prob(law, points)
    return whole.logsumexp(1), each.logsumexp(1)


def _reason(q: Distribution, p: Distribution) -> str:
    if marginals(q) is None:
        return (
            f"the marginals q(z_j|x) of a {type(split(q)[0]).__name__} posterior have no formula, so there is no total "
            "correlation and no KL of single dimensions"
        )
    if not independent(p):
        return "the prior's dimensions depend on each other, so there is no KL of single dimensions from it"
    return ""


def _anatomy(terms: _Terms, variance: Tensor, variables: tuple[int, ...], samples: int, reason: str) -> Anatomy:
    spread = [float(each.sum()) for each in variance.split(variables)]
    kl = terms.posterior - terms.prior
    single, priors = terms.aggregates.shape[1] > 0, terms.priors.shape[1] > 0
    joint = terms.aggregates.sum(1)
    dimensions = None
    if single:
        information = (terms.posteriors - terms.aggregates).mean(0).tolist()
        worth = (terms.posteriors - terms.priors).mean(0).tolist() if priors else [None] * len(information)
        order = sorted(range(len(information)), key=lambda j: -information[j])
        dimensions = tuple(Dimension(j, worth[j], information[j], spread[j], spread[j] > ACTIVE) for j in order)
    return Anatomy(
        examples=len(kl),
        samples=samples,
        elbo=measure(terms.reconstruction - kl),
        reconstruction=measure(terms.reconstruction),
        kl=measure(kl),
        mutual_information=measure(terms.posterior - terms.aggregate),
        marginal_kl=measure(terms.aggregate - terms.prior),
        total_correlation=measure(terms.aggregate - joint) if single else None,
        dimension_wise_kl=measure(joint - terms.priors.sum(1)) if priors else None,
        dimensions=dimensions,
        active_units=sum(each > ACTIVE for each in spread),
        reason=reason,
    )
