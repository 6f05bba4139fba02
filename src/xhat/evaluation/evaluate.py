"""``xhat.evaluate``: every measure of a model on data, with standard errors, in one tuple and one table."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xhat.conditionals import condition_of
from xhat.data import Batch, Examples
from xhat.distributions import has_closed_form, kl_divergence, kl_per_dimension
from xhat.errors import ConfigError, whole_number
from xhat.evaluation.anatomy import ACTIVE, Anatomy, independent, some, take_apart
from xhat.evaluation.classes import class_gain, has_classes
from xhat.evaluation.diagnostics import findings
from xhat.evaluation.evidence import ELEMENTS, Sampler, bits_per_dimension, block_size, evidence_by_batches, way_of
from xhat.evaluation.moments import Moments
from xhat.evaluation.refinement import check_refinable, refine_examples
from xhat.evaluation.result import Dimension, Evaluation, Measure, measure, measure_of, measured
from xhat.evaluation.spread import Spread
from xhat.heap import kept_heap
from xhat.models.base import Model, centre, centre_and_off, quiet
from xhat.networks.bayesian_models import shares_weights
from xhat.objectives.posed import squared_error
from xhat.ranks import joined

__all__ = ["Dimension", "Evaluation", "Measure", "evaluate", "measure"]

COMPARED = 2000  # training examples that are enough to see overfitting
TAKEN_APART = 2000  # examples that the bound is taken apart on, where the code is narrow
PAIRS = 50_000_000  # numbers of draws that are weighed by posteriors: what its time is counted in
UNDER_CLASSES = 200  # examples that are measured under every class
REFINED = 500  # examples whose posteriors are refined, where that is asked for
DRAWS = 1000  # of z at least, over few examples, that the bound is taken apart at


class _Batch(NamedTuple):
    """What is seen of a batch of examples, each ``(B, …)``; empty where the model has no such thing."""

    means: Tensor
    offs: Tensor
    error: Tensor
    corrupted: Tensor
    denoised: Tensor
    elbo: Tensor
    kl: Tensor
    dimensions: Tensor
    scale: Tensor


class _Pass(NamedTuple):
    """What one pass over the data collects: of each number of a batch its moments over all examples."""

    means: Moments
    offs: Moments
    error: Moments
    corrupted: Moments
    denoised: Moments
    elbo: Moments
    kl: Moments
    dimensions: Moments
    scale: Moments


class _Evidence(NamedTuple):
    """The same of the evidence, and the sums of its Monte Carlo errors and of their squares."""

    log_px: Moments
    ess: Moments
    errors: float
    squared_errors: float


@kept_heap()
def evaluate(
    model: Model,
    x: Any,
    samples: int = 500,
    *,
    train: Any = None,
    refine_steps: int = 0,
    method: str = "importance",
    steps: int | None = None,
    leapfrog: int | None = None,
    start: str | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Measure a model on data.

    Args:
        model: any model; one without a prior has no likelihood of x, and gets its errors measured.
        x: examples, ``(N, *event_shape)``; dynamic binarisation is drawn once, from the seed. Of streamed examples no
            more than some batches are held.
        samples: K of the log-likelihood, draws or annealed chains; the ELBO takes as many draws, up to 100.
        train: training examples; up to 2,000 of them are compared with x to see overfitting.
        refine_steps: so many steps refine the posterior of each of up to 500 examples, to see what an encoder for all of them
            costs (:func:`xhat.refine`); 0 leaves that out, which takes long.
        method: how log p(x) is found, ``"importance"``, ``"annealed"`` or ``"exact"`` (:func:`xhat.log_likelihood`).
        steps: laws that annealing goes through, 100 unless given.
        leapfrog: steps of each of its trajectories, 10 unless given.
        start: where its chains start, ``"posterior"`` unless given, or ``"prior"``.
        seed: of the draws; the caller's random numbers are left alone.
        progress: called with the number of examples after each batch.

    What the KL is made of (:func:`xhat.anatomy`) is measured on up to 2,000 examples, on fewer where the code is wide.

    Of several processes (torchrun) each takes a part, and all get the whole result, which is what one would get; so all must
    call it.

    Raises:
        DataError: x has another shape, or values outside the likelihood's support.
        ConfigError: samples is below 1; refine_steps is negative, or given for a posterior that cannot be refined; a
            method is asked for that the model has no likelihood for, or an option of another method.

    >>> import torch, xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="bernoulli")
    >>> result = evaluate(model, torch.zeros(20, 4), samples=10)
    >>> result.elbo.value <= result.log_likelihood.value + 0.5
    True
    """
    whole_number("samples", samples)
    way = way_of(method, steps, leapfrog, start)
    if method != "importance":
        model.need_bound("have a likelihood of x")
    if refine_steps:
        check_refinable(model)
        whole_number("refine_steps", refine_steps)
    examples = model.examples(x).fixed(seed)
    device = next(model.parameters(), torch.zeros(())).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), joined() as ranks:
        has_bound, size = model.has_bound, block_size(model)
        seen = _collect(model, Spread(examples, size, ranks, seed), min(samples, 100))
        evidence = _evidence(model, Spread(examples, size, ranks, seed, purpose=1), samples, way, progress) if has_bound else None
        torch.manual_seed(seed)  # each process drew other numbers, and what follows is the same in all
        known: Measure | None = None
        if train is not None and has_bound:
            trained_on = model.examples(train, "train").fixed(seed)
            if len(trained_on) > COMPARED:
                trained_on = trained_on.subset(some(trained_on, COMPARED))
            spread = Spread(trained_on, size, ranks, seed, purpose=2)
            known = measure_of(_collect(model, spread, min(samples, 100)).elbo)
            torch.manual_seed(seed)
        result = _summary(model, examples, samples, seen, evidence, known)  # inside: it draws, too
        if has_bound:
            result = result._replace(method=method)
            torch.manual_seed(seed)
            if not condition_of(model.prior):  # type: ignore[arg-type]
                result = _with_anatomy(result, _taken_apart(model, examples))
            if has_classes(model) and examples.condition is not None:
                result = _with_gain(model, examples, result, samples, way, seed)
        if refine_steps:
            result = _refined(model, examples, result, refine_steps, seed)
    return result._replace(findings=tuple(findings(model, result)))


def _collect(model: Model, spread: Spread, samples: int) -> _Pass:
    seen = _Pass(*(Moments() for _ in _Pass._fields))
    with quiet(model):
        for _, first, block in spread.blocks():
            batch = model.batch(block)
            model.check(batch, "x", first)
            for moments, values in zip(seen, _collect_block(model, batch, samples), strict=True):
                moments.add(values)
    if spread.parted:
        for moments in seen:
            moments.together(spread.ranks)
    return seen


def _evidence(
    model: Model, spread: Spread, samples: int, way: Sampler | None, progress: Callable[[int], None] | None
) -> _Evidence:
    log_px, ess, sums = Moments(), Moments(), torch.zeros(2, dtype=torch.float64)
    for found in evidence_by_batches(model, spread.examples, samples, spread=spread, progress=progress, way=way):
        log_px.add(found.log_px)
        ess.add(found.ess)
        sums += torch.stack([found.stderr.sum(), found.stderr.square().sum()])
    if spread.parted:
        for moments in (log_px, ess):
            moments.together(spread.ranks)
        spread.ranks.add([sums])
    return _Evidence(log_px, ess, *sums.tolist())


def _collect_block(model: Model, batch: Batch, samples: int) -> _Batch:
    none = batch.x.new_zeros(0)
    posed = model.pose(batch)
    q = posed.q
    mean, off = centre_and_off(q)
    law = posed.likelihood(mean)
    corrupted = denoised = elbo = kl = dimensions = none
    if model.corruption is not None:
        noisy = model.corruption(batch.x)
        corrupted = squared_error(noisy, batch.x, batch.observed)
        denoised = squared_error(centre(posed.likelihood(centre(model.pose(batch, noisy).q))), batch.x, batch.observed)
    if model.has_bound:
        elbo = _elbo(model, batch, samples)
        p = posed.prior
        if not has_closed_form(q, p):
            z = q.sample((samples,))
            kl = (q.log_prob(z) - p.log_prob(z)).mean(0)
        else:
            kl = kl_divergence(q, p)
            with contextlib.suppress(ConfigError):  # a prior with dependent dimensions has no KL of each
                dimensions = kl_per_dimension(q, p).flatten(1)
    base: Any = getattr(law, "base_dist", law)
    learned = isinstance(base, torch.distributions.Normal) and model.has_bound
    scale = base.scale.flatten(1).amin(1) if learned else none
    error = squared_error(centre(law), batch.x, batch.observed)
    return _Batch(mean.flatten(1), off.flatten(1), error, corrupted, denoised, elbo, kl, dimensions, scale)


def _elbo(model: Model, batch: Batch, samples: int) -> Tensor:
    """The bound with so many draws, a chunk of them at a time."""
    chunk = max(1, ELEMENTS // (batch.size * model.numbers))
    total, done = torch.zeros(batch.size, device=batch.x.device, dtype=torch.float64), 0
    while done < samples:
        count = min(chunk, samples - done)
        total += count * model.elbo(batch, count)
        done += count
    return total / samples


def _taken_apart(model: Model, examples: Examples) -> Anatomy:
    """The bound's parts, on as many examples as take modest time, at more draws of few; every process has them all."""
    with quiet(model):
        law = model.pose(model.batch(examples.batch(slice(1)))).q
    width = law.event_shape.numel() * (1 if independent(law) else 64)  # a network may run for each pair
    most = max(1, min(TAKEN_APART, math.isqrt(PAIRS // width)))
    part = examples.subset(some(examples, most)) if len(examples) > most else examples
    return take_apart(model, part, max(1, DRAWS // len(part)))


def _with_anatomy(result: Evaluation, parts: Anatomy) -> Evaluation:
    return result._replace(
        anatomy_examples=parts.examples,
        reconstruction=parts.reconstruction,
        mutual_information=parts.mutual_information,
        marginal_kl=parts.marginal_kl,
        total_correlation=parts.total_correlation,
        dimension_wise_kl=parts.dimension_wise_kl,
        dimensions=parts.dimensions,
    )


def _with_gain(model: Model, examples: Examples, result: Evaluation, samples: int, way: Sampler | None, seed: int) -> Evaluation:
    torch.manual_seed(seed)
    part = examples.subset(some(examples, UNDER_CLASSES)) if len(examples) > UNDER_CLASSES else examples
    return result._replace(class_gain=measure(class_gain(model, part, samples, way)), class_gain_examples=len(part))


def _refined(model: Model, examples: Examples, result: Evaluation, steps: int, seed: int) -> Evaluation:
    torch.manual_seed(seed)
    part = examples.subset(some(examples, REFINED)) if len(examples) > REFINED else examples
    gap = refine_examples(model, part, steps, seed=seed).gap
    return result._replace(amortisation_gap=measure(gap), refined_examples=len(part), refined_steps=steps)


def _active(means: Moments, offs: Moments, variables: tuple[int, ...]) -> int:
    """How many variables have a posterior mean that varies, from the moments of ``(numbers,)`` means and of their noise."""
    spread = (means.variance - offs.variance).split(variables)
    return sum(float(each.sum()) > ACTIVE for each in spread)


def _summary(
    model: Model, examples: Examples, samples: int, seen: _Pass, evidence: _Evidence | None, train: Measure | None
) -> Evaluation:
    log_px = None if evidence is None else measure_of(evidence.log_px)
    doubt = shortfall = None
    if evidence is not None:
        # Of weights that all examples share the errors may all be in the same direction.
        doubt = (evidence.errors if shares_weights(model) else math.sqrt(evidence.squared_errors)) / len(examples)
        shortfall = evidence.squared_errors / (2 * len(examples))
    variables = model.variables
    share = 1.0 if examples.observed is None else float(examples.observed.double().mean())
    return Evaluation(
        examples=len(examples),
        samples=samples,
        elbo=measured(seen.elbo),
        log_likelihood=log_px,
        log_likelihood_mc_stderr=doubt,
        log_likelihood_shortfall=shortfall,
        ess=None if evidence is None or math.isinf(evidence.ess.lowest) else float(evidence.ess.mean),
        ess_smallest=None if evidence is None or math.isinf(evidence.ess.lowest) else evidence.ess.lowest,
        bits_per_dimension=None if log_px is None else bits_per_dimension(model, log_px.value, share),
        conditioned=examples.condition is not None,
        observed_share=None if examples.observed is None else share,
        unseen_examples=None if examples.observed is None else int((~examples.observed.flatten(1)).all(1).sum()),
        kl=measured(seen.kl),
        squared_error=measure_of(seen.error),
        corrupted_error=measured(seen.corrupted),
        denoised_error=measured(seen.denoised),
        kl_per_dimension=tuple(seen.dimensions.mean.tolist()) if seen.dimensions.count else None,
        active_units=_active(seen.means, seen.offs, variables) if len(examples) > 1 else 0,
        latent=len(variables),
        train_elbo=train,
        likelihood_scale=seen.scale.lowest if seen.scale.count else None,
        findings=(),
    )
