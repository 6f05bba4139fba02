"""``xhat.evaluate``: every measure of a model on data, with standard errors, in one tuple and one table."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xhat.data import Examples, as_examples
from xhat.data.permutation import Permutation
from xhat.distributions import has_closed_form, kl_divergence, kl_per_dimension
from xhat.errors import ConfigError, whole_number
from xhat.evaluation.diagnostics import findings
from xhat.evaluation.evidence import ELEMENTS, bits_per_dimension, block_size, evidence_by_batches
from xhat.evaluation.moments import Moments
from xhat.evaluation.spread import Spread
from xhat.heap import kept_heap
from xhat.models.base import Model, centre, quiet
from xhat.objectives.reconstruction import squared_error
from xhat.ranks import joined

COMPARED = 2000  # training examples that are enough to see overfitting
ACTIVE = 0.01  # variance of the posterior mean over examples, above which a unit counts as active (Burda et al. 2016)


class Measure(NamedTuple):
    """A mean over examples and its standard error, which is that of drawing these examples."""

    value: float
    stderr: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.stderr:.4f}"


class Evaluation(NamedTuple):
    """What a model does on data. Means are over examples, of sums over the event; densities in nats.

    Attributes:
        examples: N.
        samples: K of the importance-sampled log-likelihood.
        elbo: the evidence lower bound; None without a prior, as the next six are.
        log_likelihood: importance-sampled log p(x).
        log_likelihood_mc_stderr: how far sampling z alone puts the mean of log p(x) in doubt.
        ess: effective sample size, mean over examples.
        ess_smallest: its smallest value.
        bits_per_dimension: of the log-likelihood; None also where the likelihood is a density.
        kl: KL(q(z|x) ‖ p(z)); None also where it has no closed form.
        squared_error: between x and the reconstruction x̂ from the code's mean.
        corrupted_error: between the clean x and the corrupted x; None without a corruption, as is the next.
        denoised_error: between the clean x and the reconstruction from the corrupted x.
        kl_per_dimension: mean over examples; of a full covariance, of the marginals.
        active_units: latent dimensions whose posterior mean varies with x (variance above 0.01).
        latent: number of latent dimensions; a one-hot vector is one, whatever the number of its categories, and its variance
            that of all of them together.
        train_elbo: the bound on training examples, where they were given.
        likelihood_scale: the Normal likelihood's smallest σ.
        findings: what looks wrong, in words.
    """

    examples: int
    samples: int
    elbo: Measure | None
    log_likelihood: Measure | None
    log_likelihood_mc_stderr: float | None
    ess: float | None
    ess_smallest: float | None
    bits_per_dimension: float | None
    kl: Measure | None
    squared_error: Measure
    corrupted_error: Measure | None
    denoised_error: Measure | None
    kl_per_dimension: tuple[float, ...] | None
    active_units: int
    latent: int
    train_elbo: Measure | None
    likelihood_scale: float | None
    findings: tuple[str, ...]

    def __str__(self) -> str:
        rows = [("examples", f"{self.examples}")]
        if self.log_likelihood is not None:
            rows += [
                ("ELBO, nats", str(self.elbo)),
                (
                    f"log p(x), nats, K = {self.samples}",
                    f"{self.log_likelihood} (sampling z: {self.log_likelihood_mc_stderr:.4f})",
                ),
                ("effective sample size", f"{self.ess:.1f} (smallest {self.ess_smallest:.1f}) of {self.samples}"),
            ]
        if self.bits_per_dimension is not None:
            rows.append(("bits per dimension", f"{self.bits_per_dimension:.4f}"))
        if self.kl is not None:
            rows.append(("KL(q(z|x) ‖ p(z)), nats", str(self.kl)))
        if self.train_elbo is not None:
            rows.append(("ELBO on training examples, nats", str(self.train_elbo)))
        rows.append(("squared error of x̂", str(self.squared_error)))
        if self.corrupted_error is not None:
            rows.append(("squared error of the corrupted x", str(self.corrupted_error)))
            rows.append(("squared error of x̂ from it", str(self.denoised_error)))
        if self.likelihood_scale is not None:
            rows.append(("smallest σ of the likelihood", f"{self.likelihood_scale:.5g}"))
        rows.append(("active units", f"{self.active_units} of {self.latent}"))
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        return "\n".join([*lines, *(f"! {finding}" for finding in self.findings)])

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file; a standard error that there is none of is null."""
        return {
            name: {part: _number(number) for part, number in value._asdict().items()}
            if isinstance(value, Measure)
            else _number(value)
            for name, value in self._asdict().items()
        }

    @classmethod
    def from_dict(cls, held: dict[str, Any]) -> Evaluation:
        """The evaluation that :meth:`as_dict` put down; what else a file holds is left aside."""
        values = {name: held[name] for name in cls._fields}
        for name, value in values.items():
            if isinstance(value, dict):
                values[name] = Measure(value["value"], math.nan if value["stderr"] is None else value["stderr"])
            elif isinstance(value, list):
                values[name] = tuple(value)
        if values["log_likelihood"] is not None and values["log_likelihood_mc_stderr"] is None:
            values["log_likelihood_mc_stderr"] = math.nan
        return cls(**values)


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def measure(values: Tensor) -> Measure:
    """Mean and standard error of values ``(N,)``."""
    moments = Moments()
    moments.add(values)
    return _measure(moments)


def _measure(moments: Moments) -> Measure:
    return Measure(float(moments.mean), math.sqrt(float(moments.variance) / moments.count))


def _measured(moments: Moments) -> Measure | None:
    return _measure(moments) if moments.count else None


class _Batch(NamedTuple):
    """What is seen of a batch of examples, each ``(B, …)``; empty where the model has no such thing."""

    means: Tensor
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
    error: Moments
    corrupted: Moments
    denoised: Moments
    elbo: Moments
    kl: Moments
    dimensions: Moments
    scale: Moments


class _Evidence(NamedTuple):
    """The same of the evidence, and the sum of its squared Monte Carlo errors."""

    log_px: Moments
    ess: Moments
    squared_errors: float


@kept_heap()
def evaluate(
    model: Model,
    x: Any,
    samples: int = 500,
    *,
    train: Any = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Measure a model on data.

    Args:
        model: any model; one without a prior has no likelihood of x, and gets its errors measured.
        x: examples, ``(N, *event_shape)``; dynamic binarisation is drawn once, from the seed. Of streamed examples no
            more than some batches are held.
        samples: K of the importance-sampled log-likelihood; the ELBO takes as many draws, up to 100.
        train: training examples; up to 2,000 of them are compared with x to see overfitting.
        seed: of the draws; the caller's random numbers are left alone.
        progress: called with the number of examples after each batch.

    Of several processes (torchrun) each takes a part, and all get the whole result, which is what one would get; so all must
    call it.

    Raises:
        DataError: x has another shape, or values outside the likelihood's support.
        ConfigError: samples is below 1.

    >>> import torch, xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="bernoulli")
    >>> result = evaluate(model, torch.zeros(20, 4), samples=10)
    >>> result.elbo.value <= result.log_likelihood.value + 0.5
    True
    """
    whole_number("samples", samples)
    examples = as_examples(x).fixed(seed)
    device = next(model.parameters(), torch.zeros(())).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), joined() as ranks:
        has_prior, size = hasattr(model, "prior"), block_size(model)
        seen = _collect(model, Spread(examples, size, ranks, seed), min(samples, 100))
        evidence = _evidence(model, Spread(examples, size, ranks, seed, purpose=1), samples, progress) if has_prior else None
        torch.manual_seed(seed)  # each process drew other numbers, and what follows is the same in all
        known: Measure | None = None
        if train is not None and has_prior:
            trained_on = as_examples(train).fixed(seed)
            if len(trained_on) > COMPARED:
                trained_on = trained_on.subset(_some(trained_on))
            spread = Spread(trained_on, size, ranks, seed, purpose=2)
            known = _measure(_collect(model, spread, min(samples, 100)).elbo)
            torch.manual_seed(seed)
        result = _summary(model, examples, samples, seen, evidence, known)  # inside: it draws, too
    return result._replace(findings=tuple(findings(model, result)))


def _collect(model: Model, spread: Spread, samples: int) -> _Pass:
    seen = _Pass(*(Moments() for _ in _Pass._fields))
    with quiet(model):
        for _, first, block in spread.blocks():
            model.check(block, "x", first)
            for moments, values in zip(seen, _collect_block(model, model.given(block), samples), strict=True):
                moments.add(values)
    if spread.parted:
        for moments in seen:
            moments.together(spread.ranks)
    return seen


def _some(examples: Examples) -> Tensor:
    """Positions of as many examples as are compared, drawn from torch's global generator."""
    if examples.resident:
        return torch.randperm(len(examples))[:COMPARED]
    # In the order of the file, which is then read once, and without a list of all of them
    drawn = Permutation(len(examples), seed=int(torch.randint(2**62, ())))[:COMPARED]
    return drawn.sort().values


def _evidence(model: Model, spread: Spread, samples: int, progress: Callable[[int], None] | None) -> _Evidence:
    log_px, ess, squared = Moments(), Moments(), torch.zeros(1, dtype=torch.float64)
    for found in evidence_by_batches(model, spread.examples, samples, spread=spread, progress=progress):
        log_px.add(found.log_px)
        ess.add(found.ess)
        squared += found.stderr.square().sum()
    if spread.parted:
        for moments in (log_px, ess):
            moments.together(spread.ranks)
        spread.ranks.add([squared])
    return _Evidence(log_px, ess, float(squared))


def _collect_block(model: Model, x: Tensor, samples: int) -> _Batch:
    none = x.new_zeros(0)
    q = model.posterior(x)
    mean = centre(q)
    law = model.likelihood(mean)
    corrupted = denoised = elbo = kl = dimensions = none
    if model.corruption is not None:
        noisy = model.corruption(x)
        corrupted = squared_error(noisy, x)
        denoised = squared_error(centre(model.likelihood(centre(model.posterior(noisy)))), x)
    if hasattr(model, "prior"):
        elbo = _elbo(model, x, samples)
        p = model.prior()
        if has_closed_form(q, p):
            kl = kl_divergence(q, p)
            with contextlib.suppress(ConfigError):  # a prior with dependent dimensions has no KL of each
                dimensions = kl_per_dimension(q, p).flatten(1)
    base = getattr(law, "base_dist", law)
    learned = isinstance(base, torch.distributions.Normal) and hasattr(model, "prior")
    scale = base.scale.flatten(1).amin(1) if learned else none
    return _Batch(mean.flatten(1), squared_error(centre(law), x), corrupted, denoised, elbo, kl, dimensions, scale)


def _elbo(model: Model, x: Tensor, samples: int) -> Tensor:
    """The bound with so many draws, a chunk of them at a time."""
    chunk = max(1, ELEMENTS // (len(x) * model.numbers))
    total, done = torch.zeros(len(x), device=x.device, dtype=torch.float64), 0
    while done < samples:
        count = min(chunk, samples - done)
        total += count * model.elbo(x, count)
        done += count
    return total / samples


def _active(means: Moments, variables: tuple[int, ...]) -> int:
    """How many variables have a posterior mean that varies, from the moments of ``(numbers,)`` means."""
    spread = means.variance.split(variables)
    return sum(float(each.sum()) > ACTIVE for each in spread)


def _summary(
    model: Model, examples: Examples, samples: int, seen: _Pass, evidence: _Evidence | None, train: Measure | None
) -> Evaluation:
    log_px = None if evidence is None else _measure(evidence.log_px)
    doubt = None if evidence is None else math.sqrt(evidence.squared_errors) / len(examples)
    variables = model.variables
    return Evaluation(
        examples=len(examples),
        samples=samples,
        elbo=_measured(seen.elbo),
        log_likelihood=log_px,
        log_likelihood_mc_stderr=doubt,
        ess=None if evidence is None else float(evidence.ess.mean),
        ess_smallest=None if evidence is None else evidence.ess.lowest,
        bits_per_dimension=None if log_px is None else bits_per_dimension(model, log_px.value),
        kl=_measured(seen.kl),
        squared_error=_measure(seen.error),
        corrupted_error=_measured(seen.corrupted),
        denoised_error=_measured(seen.denoised),
        kl_per_dimension=tuple(seen.dimensions.mean.tolist()) if seen.dimensions.count else None,
        active_units=_active(seen.means, variables) if len(examples) > 1 else 0,
        latent=len(variables),
        train_elbo=train,
        likelihood_scale=seen.scale.lowest if seen.scale.count else None,
        findings=(),
    )
