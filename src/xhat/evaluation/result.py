"""What an evaluation comes to: measures with their standard errors, as one tuple, one table and plain data."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from xhat.evaluation.moments import Moments

SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def coordinate(place: int) -> str:
    """What texts and pictures call the code's dimension at ``place``, which counts from 0: z₁ is the first."""
    return "z" + str(place + 1).translate(SUBSCRIPTS)


class Measure(NamedTuple):
    """A mean over examples and its standard error, which is that of drawing these examples."""

    value: float
    stderr: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.stderr:.4f}"


class Dimension(NamedTuple):
    """What one latent variable holds; in nats, means over examples.

    Attributes:
        place: in the code, from 0; a one-hot vector is one variable.
        kl: E KL(q(z_j|x) ‖ p(z_j)), sampled: the information and KL(q(z_j) ‖ p(z_j)) together. None where the prior's variables
            depend on each other.
        information: I(x; z_j), the variable's own mutual information with x.
        variance: of its posterior mean, over examples.
        active: whether that is above 0.01.
    """

    place: int
    kl: float | None
    information: float
    variance: float
    active: bool


class Evaluation(NamedTuple):
    """What a model does on data. Means are over examples, of sums over the event; densities in nats.

    Attributes:
        examples: N.
        samples: K of the log-likelihood: draws of z, or chains.
        elbo: the evidence lower bound; None without a prior, as the next six are.
        log_likelihood: log p(x), by ``method``.
        log_likelihood_mc_stderr: the standard error that sampling z alone gives the mean of log p(x). It shrinks with the number
            of examples, as ``log_likelihood_shortfall`` does not.
        ess: effective sample size, mean over examples; None also of the exact value, as is the next.
        ess_smallest: its smallest value.
        bits_per_dimension: of the log-likelihood; None also where the likelihood is a density.
        kl: KL(q(z|x) ‖ p(z)), in closed form where there is one, else at up to 100 draws of z.
        squared_error: between x and the reconstruction x̂ from the code's mean.
        corrupted_error: between the clean x and the corrupted x; None without a corruption, as is the next.
        denoised_error: between the clean x and the reconstruction from the corrupted x.
        kl_per_dimension: mean over examples, in closed form; of a full covariance, of the marginals.
        active_units: latent dimensions whose posterior mean varies with x (variance above 0.01).
        latent: number of latent dimensions; a one-hot vector is one, whatever the number of its categories, and its variance
            that of all of them together.
        train_elbo: the bound on training examples, where they were given.
        likelihood_scale: the Normal likelihood's smallest σ.
        findings: what looks wrong, in words.
        anatomy_examples: how many examples the bound was taken apart on, :func:`xhat.anatomy`; None without a prior, as the next
            four and the dimensions are.
        reconstruction: E log p(x|z).
        mutual_information: between x and z, as far as so many examples can show it: at most the logarithm of their number.
        marginal_kl: KL(q(z) ‖ p(z)).
        total_correlation: of q(z); None also where the posterior's marginals have no formula.
        dimension_wise_kl: the sum of KL(q(z_j) ‖ p(z_j)); None also where the prior's dimensions depend on each other.
        dimensions: ranked by what they tell about x, the most telling first.
        amortisation_gap: what refining each example's posterior gains, :func:`xhat.refine`; None unless it was asked for.
        refined_examples: on how many examples.
        refined_steps: in how many steps.
        method: how log p(x) was found, "importance", "annealed" or "exact".
        log_likelihood_shortfall: about how far the mean of log p(x) is too low, for the logarithm of an average is: half the mean
            of the examples' squared standard errors, to which those of weights that were never met do not add.
        conditioned: whether all is given a condition c, log p(x|c) and the bound on it.
        class_gain: of a model that is conditioned on a class, log p(x|c) - log p(x), with p(x) the average over the classes.
        class_gain_examples: on how many examples.
        observed_share: which share of the values was observed; None: all of them.
        unseen_examples: of how many examples no value was.
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
    anatomy_examples: int | None = None
    reconstruction: Measure | None = None
    mutual_information: Measure | None = None
    marginal_kl: Measure | None = None
    total_correlation: Measure | None = None
    dimension_wise_kl: Measure | None = None
    dimensions: tuple[Dimension, ...] | None = None
    amortisation_gap: Measure | None = None
    refined_examples: int | None = None
    refined_steps: int | None = None
    method: str | None = None
    log_likelihood_shortfall: float | None = None
    conditioned: bool | None = None
    class_gain: Measure | None = None
    class_gain_examples: int | None = None
    observed_share: float | None = None
    unseen_examples: int | None = None

    def __str__(self) -> str:
        seen = "" if self.observed_share is None else f", {self.observed_share:.1%} of their values observed"
        rows = [("examples", f"{self.examples}{seen}")]
        if self.log_likelihood is not None:
            rows.append(("ELBO, nats", str(self.elbo)))
            rows += self._evidence()
        if self.class_gain is not None:
            rows.append(("log p(x|c) − log p(x), nats", f"{self.class_gain} ({self.class_gain_examples} examples)"))
        if self.bits_per_dimension is not None:
            rows.append(("bits per dimension", f"{self.bits_per_dimension:.4f}"))
        if self.kl is not None:
            rows.append(("KL(q(z|x) ‖ p(z)), nats", str(self.kl)))
        rows += self._anatomy()
        if self.amortisation_gap is not None:
            of = f"{self.refined_steps} steps on {self.refined_examples} examples"
            rows.append(("amortisation gap, nats", f"{self.amortisation_gap} ({of})"))
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

    def _evidence(self) -> list[tuple[str, str]]:
        """The rows of log p(x) and of how far it can be trusted."""
        name = "log p(x|c)" if self.conditioned else "log p(x)"
        if self.method == "exact":
            return [(f"{name}, nats, exact", str(self.log_likelihood))]
        how = f"{self.samples} annealed chains" if self.method == "annealed" else f"K = {self.samples}"
        doubt = f"sampling z: ± {self.log_likelihood_mc_stderr:.4f}"
        if self.log_likelihood_shortfall is not None and math.isfinite(self.log_likelihood_shortfall):
            doubt += f", and too low by about {self.log_likelihood_shortfall:.4f} or more"
        return [
            (f"{name}, nats, {how}", f"{self.log_likelihood} ({doubt})"),
            ("effective sample size", f"{self.ess:.1f} (smallest {self.ess_smallest:.1f}) of {self.samples}"),
        ]

    def _anatomy(self) -> list[tuple[str, str]]:
        """The rows of what the KL is made of."""
        if self.mutual_information is None or self.anatomy_examples is None:
            return []
        most = f"at most {math.log(self.anatomy_examples):.2f} from {self.anatomy_examples} examples"
        rows = [("mutual information I(x; z), nats", f"{self.mutual_information} ({most})")]
        parts = [
            ("total correlation, nats", self.total_correlation),
            ("KL of each dimension, summed, nats", self.dimension_wise_kl),
        ]
        if self.total_correlation is None or self.dimension_wise_kl is None:
            parts = [("KL(q(z) ‖ p(z)), nats", self.marginal_kl), *parts]
        rows += [(name, str(part)) for name, part in parts if part is not None]
        if self.dimensions:
            told = ", ".join(f"{coordinate(each.place)} ({each.information:.2f})" for each in self.dimensions[:5])
            rows.append(("most telling dimensions (nats)", told + (", …" if len(self.dimensions) > 5 else "")))
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file; a standard error that there is none of is null, other numbers that are not finite words."""
        return {name: _plain(value) for name, value in self._asdict().items()}

    @classmethod
    def from_dict(cls, held: dict[str, Any]) -> Evaluation:
        """The evaluation that :meth:`as_dict` put down; what else a file holds is left aside, what an older one lacks is None."""
        values: dict[str, Any] = {name: held.get(name) if name in cls._field_defaults else held[name] for name in cls._fields}
        for name, value in values.items():
            if isinstance(value, dict):
                values[name] = Measure(*(_number(math.nan if value[part] is None else value[part]) for part in Measure._fields))
            elif name == "dimensions" and value is not None:
                values[name] = tuple(Dimension(**{part: _number(each[part]) for part in each}) for each in value)
            elif isinstance(value, list):
                values[name] = tuple(_number(each) for each in value)
            else:
                values[name] = _number(value)
        if values["log_likelihood"] is not None and values["log_likelihood_mc_stderr"] is None:
            values["log_likelihood_mc_stderr"] = math.nan
        return cls(**values)


def _plain(value: Any) -> Any:
    """A measure or a dimension as a dictionary, a number that is not finite as a word, anything else as it is."""
    if isinstance(value, Measure | Dimension):
        held = {part: _plain(number) for part, number in value._asdict().items()}
        return held | {"stderr": None} if held.get("stderr") == "nan" else held
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> Any:
    """The number that :func:`_plain` put down as a word, anything else as it is."""
    return float(value) if value in ("nan", "inf", "-inf") else value


def measure(values: Tensor) -> Measure:
    """Mean and standard error of values ``(N,)``."""
    moments = Moments()
    moments.add(values)
    return measure_of(moments)


def measure_of(moments: Moments) -> Measure:
    """Mean and standard error of the values that were seen."""
    return Measure(float(moments.mean), math.sqrt(float(moments.variance) / moments.count))


def measured(moments: Moments) -> Measure | None:
    """The same, and None of no values."""
    return measure_of(moments) if moments.count else None
