"""Gradients through samples: every estimator that declares itself unbiased is, on every law that it fits.

The mean over many independent estimates is held against the exact gradient, each coordinate at 4 standard errors. What can be
enumerated is proven exactly in ``test_gradients_exact.py``, the bias of the others is shown in ``test_gradients_biased.py``.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch import distributions as td

import xhat
from catalogue import EXPECTATIONS, F64, GRADIENTS, OF_BOUNDS, numbers
from proofs import BIASED, FITS, REPEATS, UNBIASED, leaves, repeated, shown, within
from xhat import gradients
from xhat.distributions import Delta, Levels
from xhat.errors import ConfigError
from xhat.gradients import Score, expectation, gradient_of

MISFITS = [pair for pair in itertools.product(GRADIENTS, EXPECTATIONS) if pair not in FITS and pair[0] not in OF_BOUNDS]

BITS = {"Bernoulli", "ten bits", "bits in a wave"}
RELAXABLE = BITS | {"Levels", "one-hot Categorical", "several one-hot Categoricals"}
COMPONENTS = RELAXABLE | {"Categorical", "several Categoricals"}
DISCRETE = COMPONENTS | {"Binomial", "Poisson"}
FIXED_SHAPE = {"Exponential", "Gamma, its rate", "Weibull, its scale"}
KNOWN = {
    "pathwise": set(EXPECTATIONS) - DISCRETE,
    "pathwise, antithetic": {"Normal", "full Normal", "Laplace", "Student's t", "Uniform", "several Normals"},
    "pathwise, sobol": set(EXPECTATIONS)
    - DISCRETE
    - {"Gamma", "Gamma, its rate", "Beta", "Dirichlet", "Student's t", "Delta", "flow"},
    **{
        name: set(EXPECTATIONS) - {"Delta", "Uniform", "Pareto"}
        for name in (*(n for n in GRADIENTS if n.startswith("score")), "rloo")
    },
    "measure": COMPONENTS | FIXED_SHAPE | {"Normal", "several Normals", "Poisson"},
    "enumerate": COMPONENTS | {"Binomial"},
    **dict.fromkeys(("arm", "disarm", "arms"), BITS),
    **dict.fromkeys(("carms", "sum-and-sample", "unordered-set", "relax, without f"), COMPONENTS),
}
SEVERAL = {"arms": (2, 3, 5), "carms": (2, 3, 5), "unordered-set": (2, 3, 4), "sum-and-sample": (2, 3), "rebar": (1, 3)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_every_estimator_of_the_library_has_a_row_and_what_it_fits_is_as_known():
    assert {type(make()) for make in GRADIENTS.values()} >= set(gradients.GRADIENTS.values())
    for name in set(GRADIENTS) - OF_BOUNDS:
        assert {law for fitting, law in FITS if fitting == name} == KNOWN.get(name, RELAXABLE), name


# The generic proof


@pytest.mark.parametrize(("name", "law"), UNBIASED)
def test_what_is_declared_unbiased_is(name, law):
    row, estimator = EXPECTATIONS[law], GRADIENTS[name]()
    small = sum(p.numel() for p in row.parameters) <= 6 and not name.startswith("relax")
    repeats = 4 if name == "enumerate" else 1000 if (name, law) == ("measure", "ten bits") else (10 if small else 2) * REPEATS
    for samples in SEVERAL.get(name, (estimator.usable(3),)):
        found = repeated(row, estimator, samples, repeats)
        within(found.values, found.exact_value)
        for estimates, exact in zip(found.slopes, found.exact_slopes, strict=True):
            within(estimates, exact)


@pytest.mark.parametrize(("name", "law"), BIASED)
def test_the_value_is_honest_where_the_gradient_is_biased(name, law):
    found = repeated(EXPECTATIONS[law], GRADIENTS[name](), 3)
    within(found.values, found.exact_value)


@pytest.mark.parametrize(
    ("name", "law"), [pair for pair in FITS if pair[1] in ("bits in a wave", "one-hot Categorical", "Normal")]
)
def test_a_parameter_that_only_f_holds_gets_its_own_derivative_whatever_the_gradient(name, law):
    row, estimator = EXPECTATIONS[law], GRADIENTS[name]()
    wide = [p.expand(2 * REPEATS, *p.shape).clone().requires_grad_() for p in row.parameters]
    exact = row.exact(*leaves(row)).detach()
    inside = torch.ones(2 * REPEATS, *exact.shape, dtype=F64, requires_grad=True)
    q = row.law(*wide)
    value = expectation(lambda z: inside**2 * row.f(z, *wide), q, shown(estimator, q), estimator.usable(3))
    within(torch.autograd.grad(value.sum(), inside)[0], 2 * exact)


@pytest.mark.parametrize(("name", "law"), FITS)
def test_the_value_is_made_of_the_first_call_whatever_the_gradient(name, law):
    """A plain average, or a sum with the weights that the estimator tells; and f is called as often as it tells."""
    row, estimator = EXPECTATIONS[law], GRADIENTS[name]()
    parameters = leaves(row)
    points, seen = [], []

    def f(z: Tensor) -> Tensor:
        values = row.f(z, *parameters)
        points.append(z.detach())
        seen.append(values.detach())
        return values

    samples, q = estimator.usable(4), row.law(*parameters)
    value = expectation(f, q, shown(estimator, q), samples)
    assert estimator.evaluations(samples, q) == sum(len(values) for values in seen)
    assert estimator.points(samples, q) == len(seen[0])
    weights = estimator.weights(q, points[0])
    assert (weights is None) == estimator.plain
    if weights is None:
        assert len(seen[0]) == samples
        assert torch.equal(value.detach(), seen[0].mean(0))
    else:
        torch.testing.assert_close(value.detach(), (weights.detach() * seen[0]).sum(0))
    assert value.requires_grad


@pytest.mark.parametrize(("name", "law"), [pair for pair in FITS if pair[1] in ("Bernoulli", "Levels", "Categorical", "Normal")])
def test_without_gradients_the_value_is_the_same_estimate(name, law):
    row, estimator = EXPECTATIONS[law], GRADIENTS[name]()
    wide = [p.expand(REPEATS, *p.shape) for p in row.parameters]
    with torch.no_grad():
        q = row.law(*wide)
        value = expectation(lambda z: row.f(z, *wide), q, shown(estimator, q), estimator.usable(3))
        within(value, row.exact(*row.parameters))
    assert estimator.auxiliary_loss() is None


# What is refused


@pytest.mark.parametrize(("name", "law"), MISFITS)
def test_what_does_not_fit_is_refused_before_anything_is_drawn(name, law):
    row, estimator = EXPECTATIONS[law], GRADIENTS[name]()

    def f(z: Tensor) -> Tensor:
        raise AssertionError("f was called")

    q = row.law(*leaves(row))
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match=r"needs .* which .* does not have; gradients that fit: [a-z]+"):
        expectation(f, q, shown(estimator, q), samples=estimator.usable(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_pathwise_through_bits_names_what_fits():
    q = td.Independent(td.Bernoulli(logits=torch.zeros(3)), 1)
    with pytest.raises(ConfigError, match=r"'pathwise' needs .*rsample.* Independent\(Bernoulli\) ") as caught:
        expectation(lambda z: z.sum(-1), q)
    named = str(caught.value).split("that fit: ")[1].split(", ")
    fitting = [name for name, cls in gradients.GRADIENTS.items() if cls().lacks(q) is None and "mean" in cls.reductions]
    assert named == fitting
    assert "disarm" in named
    assert not OF_BOUNDS & set(named)


@pytest.mark.parametrize("name", sorted(OF_BOUNDS))
def test_gradients_of_bounds_point_to_the_bound(name):
    q = td.Normal(torch.zeros(2, requires_grad=True), 1.0)
    with pytest.raises(ConfigError, match=rf"the gradient '{name}' .*xhat\.bound"):
        expectation(lambda z: z, q, name, samples=2)


def _one() -> Tensor:
    return torch.ones(2, dtype=F64, requires_grad=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: td.Uniform(torch.zeros(2, dtype=F64), _one()),
        lambda: td.Pareto(_one(), _one()),
        lambda: td.GeneralizedPareto(_one(), _one(), _one()),
        lambda: Delta(_one()),
        lambda: td.Independent(td.Uniform(torch.zeros(2, dtype=F64), _one()), 1),
        lambda: td.TransformedDistribution(td.Exponential(torch.ones(2, dtype=F64)), [td.AffineTransform(_one(), 1.0)]),
        lambda: td.MixtureSameFamily(
            td.Categorical(logits=torch.zeros(2, dtype=F64)), td.Uniform(torch.zeros(2, dtype=F64), _one())
        ),
    ],
    ids=["Uniform", "Pareto", "GeneralizedPareto", "Delta", "Independent", "shifted", "mixture"],
)
def test_the_score_is_refused_where_the_support_moves(make):
    with pytest.raises(ConfigError, match=r"the gradient 'score' needs a log_prob whose derivative tells how the law moves"):
        expectation(lambda z: z.sum(-1) if z.ndim > 1 else z, make(), "score")


def test_what_torch_calls_a_reparameterised_one_hot_vector_is_not_taken_for_one():
    q = td.OneHotCategoricalStraightThrough(logits=torch.zeros(4, 3, requires_grad=True))
    for law in (q, td.Independent(q, 1)):
        with pytest.raises(ConfigError, match=r"'pathwise' needs a reparameterised sample .* fit: .*straight-through"):
            expectation(lambda z: pytest.fail("f was called"), law)
    assert expectation(lambda z: z.square().sum(-1), q, "straight-through").shape == (4,)


def test_a_binomial_whose_numbers_differ_is_refused_by_name():
    q = td.Binomial(torch.tensor([2.0, 3.0]), logits=torch.zeros(2, requires_grad=True))
    for name in ("enumerate", "disarm"):
        with pytest.raises(ConfigError, match=rf"'{name}' needs .* Binomial does not have; gradients that fit: score, rloo$"):
            expectation(lambda z: z, q, name)


@pytest.mark.parametrize(
    ("name", "samples", "words"),
    [
        ("score, leave-one-out", 1, "at least 2, was 1"),
        ("rloo", 1, "at least 2, was 1"),
        ("arm", 3, "an even number.*, was 3"),
        ("arm", 1, "an even number.*, was 1"),
        ("disarm", 5, "an even number.*, was 5"),
        ("arms", 1, "at least 2, was 1"),
        ("carms", 1, "at least 2, was 1"),
        ("enumerate", 2, "one sample, for its sum is exact, was 2"),
        ("sum-and-sample", 1, "at least 2, was 1"),
        ("unordered-set", 1, "2 to 8 samples, was 1"),
        ("unordered-set", 9, "2 to 8 samples, was 9"),
        ("double-cv", 1, "at least 2, was 1"),
        ("score", 0, "at least 1, was 0"),
        ("score", 2.0, "samples must be a whole number"),
    ],
)
def test_numbers_of_samples_that_cannot_be_used_are_refused(name, samples, words):
    q = td.Independent(td.Bernoulli(logits=torch.zeros(4, 3)), 1)
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match=words):
        expectation(lambda z: pytest.fail("f was called"), q, GRADIENTS[name](), samples=samples)
    assert torch.equal(torch.get_rng_state(), before)
    if samples and isinstance(samples, int):
        assert expectation(lambda z: z.sum(-1), q, GRADIENTS[name](), samples=GRADIENTS[name]().usable(samples)).shape == (4,)


def test_mirrored_pairs_come_in_even_numbers():
    with pytest.raises(ConfigError, match=r"an even number of samples, half of them mirror images, was 3"):
        expectation(lambda z: z, td.Normal(torch.zeros(2), 1.0), GRADIENTS["pathwise, antithetic"](), samples=3)


def test_two_hundred_bits_are_not_enumerated():
    q = td.Independent(td.Bernoulli(logits=torch.zeros(200)), 1)
    with pytest.raises(ConfigError, match=r"at most 65536 values \(here about 10\^60\).*that fit: .*disarm"):
        expectation(lambda z: pytest.fail("f was called"), q, "enumerate")
    with pytest.raises(ConfigError, match=r"at most 7 values \(here 8\)"):
        expectation(lambda z: pytest.fail("f was called"), EXPECTATIONS["Bernoulli"].law(torch.zeros(3)), gradients.Enumerate(7))


@pytest.mark.parametrize("name", [name for name, law in FITS if law == "Bernoulli"])
def test_f_of_the_wrong_shape_is_refused(name):
    q = td.Independent(td.Bernoulli(logits=torch.zeros(4, 3, dtype=F64, requires_grad=True)), 1)
    estimator = shown(GRADIENTS[name](), q)
    for wrong in (lambda z: z, lambda z: z.sum((-1, -2)), lambda z: z.sum(), lambda z: z.sum(-1).mean(0)):
        with pytest.raises(ConfigError, match=r"f must map .* here \(\d+, 4, 3\) to \(\d+, 4\), but it returned"):
            expectation(wrong, q, estimator, samples=estimator.usable(2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gradient_of("reparam"), "gradient must be one of pathwise, score, rloo, .*vimco, was 'reparam'"),
        (lambda: gradient_of("pathwise", baseline="none"), r"the gradient 'pathwise' .*option"),
        (lambda: gradient_of("disarm", noise="sobol"), r"the gradient 'disarm' has no option 'noise'; it has none"),
        (lambda: gradients.Pathwise("halton"), "noise must be one of independent, antithetic, sobol, was 'halton'"),
        (lambda: Score("mean"), "baseline must be one of none, lagged, leave-one-out"),
        (lambda: Score("lagged", decay=1.0), r"decay must be in \[0, 1\)"),
        (lambda: gradients.Concrete(0.0), "temperature must be above 0 and finite, was 0.0"),
        (lambda: gradients.STGumbel(1.0, final=0.1), "a schedule needs a final temperature and epochs above 0"),
        (lambda: gradients.GumbelRao(draws=0), "draws"),
        (lambda: gradients.REBAR(-1.0), "temperature must be above 0 and finite, was -1.0"),
        (lambda: gradients.Enumerate(0), "limit"),
    ],
)
def test_unknown_estimators_and_options_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_the_public_name_is_this_function():
    assert xhat.expectation is expectation
    q = Levels(torch.zeros(2, 3, dtype=F64))
    assert expectation(lambda z: z, q, "score", 6).shape == (2,)
    assert numbers(1.0).dtype == F64
