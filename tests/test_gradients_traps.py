"""The known traps of gradients through samples, each with a test that falls into it when an estimator does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch import distributions as td
from torch.nn import functional as F

from catalogue import EXPECTATIONS, F64, GRADIENTS, bits, numbers
from proofs import BIASED, FITS, REPEATS, ForcedBernoulli, independent, shown, within
from xhat.distributions import Levels
from xhat.errors import ConfigError
from xhat.gradients import Mean, expectation, honest

ON_BITS = [name for name, law in FITS if law == "bits in a wave"]
DIFFERENTIABLE = [name for name in ON_BITS if "differentiable f" in GRADIENTS[name]().requires]
UNBIASED_ON_BITS = [name for name in ON_BITS if GRADIENTS[name]().unbiased]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# What is summed, and when


def test_a_mean_of_f_times_a_mean_of_scores_is_not_what_is_computed():
    logits = numbers(0.3).requires_grad_()
    q = ForcedBernoulli(logits=logits)
    q.forced = numbers(0.0, 1.0, 1.0)[:, None]
    p = q.probs.item()

    def f(b: Tensor) -> Tensor:
        return 3 * b + 1

    (slope,) = torch.autograd.grad(expectation(f, q, "score", 3).sum(), logits)
    right = (1 * (0 - p) + 4 * (1 - p) + 4 * (1 - p)) / 3
    wrong = (1 + 4 + 4) / 3 * ((0 - p) + (1 - p) + (1 - p)) / 3
    assert slope.item() == pytest.approx(right, rel=1e-12)
    assert slope.item() != pytest.approx(wrong, rel=1e-3)


@pytest.mark.parametrize("name", ON_BITS)
def test_the_gradient_of_an_example_does_not_depend_on_whoever_stands_beside_it(name):
    """Signals multiply each example before any sum over the batch: with the same noise, another neighbour changes nothing."""
    slopes = []
    for neighbour in (3.0, 1e6):
        torch.manual_seed(1)
        logits = numbers(0.3, -0.5, 0.2, 1.0, 0.0, -2.0).reshape(3, 2).requires_grad_()
        weights = numbers(1.0, neighbour, -7.0)
        estimator, q = GRADIENTS[name](), independent(logits)
        value = expectation(lambda z, w=weights: w * (z.sum(-1) - 0.3) ** 2, q, shown(estimator, q), estimator.usable(2))
        slopes.append(torch.autograd.grad(value.sum(), logits)[0])
    assert torch.equal(slopes[0][[0, 2]], slopes[1][[0, 2]])
    assert not torch.equal(slopes[0][1], slopes[1][1])


def test_signals_that_are_summed_before_they_multiply_would_be_seen():
    """The same test on an estimator that falls into the trap."""
    slopes = []
    for neighbour in (3.0, 1e6):
        torch.manual_seed(1)
        logits = numbers(0.3, -0.5, 0.2).requires_grad_()
        q = td.Bernoulli(logits=logits)
        z = q.sample((2,))
        values = numbers(1.0, neighbour, -7.0) * (z - 0.3) ** 2
        slopes.append(torch.autograd.grad((values.sum() * q.log_prob(z).sum()).sum(), logits)[0])
    assert not torch.equal(slopes[0][[0, 2]], slopes[1][[0, 2]])


def test_leave_one_out_is_the_formula_and_a_baseline_with_its_own_sample_shrinks_the_gradient():
    values = torch.randn(4, 5, dtype=F64)
    others = torch.stack([values[[j for j in range(4) if j != i]].mean(0) for i in range(4)])
    torch.testing.assert_close(Mean().leave_one_out(values), (values - others) / 4)
    torch.testing.assert_close(values - others, 4 / 3 * (values - values.mean(0)))
    for samples in (1, 2, 3):
        draws = bits(samples)
        p = 0.3
        weight = (draws * p + (1 - draws) * (1 - p)).prod(1)
        f = (draws.T - 0.2) ** 2
        own = (weight * (Mean().signal(f, f.mean(0)) * (draws.T - p)).sum(0)).sum().item()
        assert own == pytest.approx((1 - 1 / samples) * p * (1 - p) * 0.6, abs=1e-12)


def test_opposite_biases_cancel_in_an_average_over_parameters_and_not_coordinate_by_coordinate():
    """Biases of +c and -c in two coordinates: the average is right, and the proof must not be content with it."""
    honest_ones = torch.randn(REPEATS, 2, dtype=F64)
    biased = honest_ones + numbers(0.3, -0.3)
    exact = torch.zeros(2, dtype=F64)
    within(honest_ones, exact)
    within(biased.mean(-1), exact.mean())
    with pytest.raises(AssertionError, match="standard errors"):
        within(biased, exact)


@pytest.mark.parametrize("law", ["Bernoulli", "ten bits"])
def test_the_proof_catches_a_baseline_with_its_own_sample_and_a_forgotten_factor(law):
    row = EXPECTATIONS[law]
    at = row.parameters[0].clone().requires_grad_()
    (exact,) = torch.autograd.grad(row.exact(at).sum(), at)
    wide = row.parameters[0].expand(4 * REPEATS, *row.parameters[0].shape).clone().requires_grad_()
    q = row.law(wide)
    z = q.sample((3,))
    values = row.f(z, wide)
    for wrong in (values - values.mean(0), 0.8 * (values - 1.0)):
        surrogate = (wrong.detach() * q.log_prob(z)).sum(0) / 3
        (slopes,) = torch.autograd.grad(honest(values.mean(0), surrogate).sum(), wide, retain_graph=True)
        with pytest.raises(AssertionError, match="standard errors"):
            within(slopes, exact)


# Twice


@pytest.mark.parametrize(
    ("name", "law"), [pair for pair in FITS if pair[1] in ("bits in a wave", "one-hot Categorical", "Levels", "several Normals")]
)
def test_a_second_derivative_is_right_or_refused(name, law):
    row, estimator = EXPECTATIONS[law], GRADIENTS[name]()
    at = [p.clone().requires_grad_() for p in row.parameters]
    q = row.law(*at)
    value = expectation(lambda z: row.f(z, *at), q, shown(estimator, q), estimator.usable(2))
    (slope, *_) = torch.autograd.grad(value.sum(), at, create_graph=True)
    if name == "enumerate":
        again = [p.clone().requires_grad_() for p in row.parameters]
        (known, *_) = torch.autograd.grad(row.exact(*again).sum(), again, create_graph=True)
        direction = torch.randn_like(slope)
        (second,) = torch.autograd.grad((slope * direction).sum(), at)
        torch.testing.assert_close(second, torch.autograd.grad((known * direction).sum(), again)[0])
    elif not name.startswith("pathwise"):
        with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
            torch.autograd.grad(slope.sum(), at, retain_graph=True)
        with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
            slope.sum().backward(retain_graph=True)
        squared = torch.autograd.grad(value.square().sum(), at, create_graph=True)[0]
        with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):  # with a history of its own, too
            torch.autograd.grad(squared.sum(), at)


@pytest.mark.parametrize("name", [name for name, law in BIASED if law == "Bernoulli"])
def test_a_linear_f_does_not_hide_a_second_derivative(name):
    logits = numbers(0.2, -0.3).requires_grad_()
    value = expectation(lambda z: 3 * z, td.Bernoulli(logits=logits), GRADIENTS[name](), 1)
    (slope,) = torch.autograd.grad(value.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
        torch.autograd.grad(slope.sum(), logits)


def test_a_second_derivative_through_a_deeper_layer_raises_too():
    loc = numbers(0.3).requires_grad_()

    def f(y: Tensor) -> Tensor:
        return expectation(lambda b: b, td.Bernoulli(logits=y), "score")

    value = expectation(f, td.Normal(loc, 1.0))
    (slope,) = torch.autograd.grad(value.sum(), loc, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
        torch.autograd.grad(slope.sum(), loc)


@pytest.mark.parametrize("name", ["pathwise", "pathwise, antithetic", "pathwise, sobol"])
def test_the_pathwise_second_derivative_is_right(name):
    at = [torch.full((REPEATS,), v, dtype=F64, requires_grad=True) for v in (0.5, 0.8)]
    value = expectation(lambda z: z**3, td.Normal(*at), GRADIENTS[name](), samples=4)
    dloc, dscale = torch.autograd.grad(value.sum(), at, create_graph=True)
    second = [*torch.autograd.grad(dloc.sum(), at, retain_graph=True), torch.autograd.grad(dscale.sum(), at)[1]]
    for estimates, exact in zip(second, (6 * 0.5, 6 * 0.8, 6 * 0.5), strict=True):  # of μ³ + 3μσ²
        within(estimates, torch.tensor(exact, dtype=F64))


def test_honest_has_the_value_of_one_and_the_gradient_of_both():
    a = torch.tensor(3.0, dtype=F64, requires_grad=True)
    y = honest(a**2, 5 * a - 1000)
    assert y.item() == 9
    assert torch.autograd.grad(y, a)[0].item() == 6 + 5


# Functions that do not serve


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_an_f_with_a_jump_is_refused_where_it_must_be_differentiable(name):
    q = independent(torch.zeros(4, 3, requires_grad=True))
    estimator = GRADIENTS[name]()
    with pytest.raises(ConfigError, match=r"an f that is differentiable in z.*use 'score', 'rloo' or 'disarm'"):
        expectation(lambda z: (z > 0.5).float().sum(-1), q, estimator, estimator.usable(1))


@pytest.mark.parametrize("name", [name for name in UNBIASED_ON_BITS if name not in DIFFERENTIABLE])
def test_an_f_with_a_jump_is_served_by_the_others(name):
    logits = numbers(0.3, -0.7).expand(REPEATS, 2).clone().requires_grad_()
    q, estimator = independent(logits), GRADIENTS[name]()
    value = expectation(lambda z: (z > 0.5).to(F64).sum(-1), q, shown(estimator, q), estimator.usable(2))
    p = numbers(0.3, -0.7).sigmoid()
    within(torch.autograd.grad(value.sum(), logits)[0], p * (1 - p))


RELAXED = ("muprop", "rebar", "relax", "concrete")


@pytest.mark.parametrize("name", ON_BITS)
def test_a_law_inside_f_that_validates_its_arguments_meets_draws_or_says_what_to_do(name):
    logits = torch.zeros(4, 3, dtype=F64, requires_grad=True)
    q, estimator = independent(logits), GRADIENTS[name]()
    inside = td.Independent(td.Bernoulli(logits=numbers(0.1, 0.2, 0.3), validate_args=True), 1)

    def f(z: Tensor) -> Tensor:
        return inside.log_prob(z)

    if name.startswith(RELAXED) and name != "relax, without f":
        with pytest.raises(ConfigError, match=r"f refuses relaxed values.*validate_args=False"):
            expectation(f, q, shown(estimator, q), estimator.usable(1))
        inside = td.Independent(td.Bernoulli(logits=numbers(0.1, 0.2, 0.3), validate_args=False), 1)
    assert expectation(f, q, shown(estimator, q), estimator.usable(1)).isfinite().all()


@pytest.mark.parametrize("name", ["rebar", "relax", "concrete", "muprop"])
def test_levels_inside_f_refuse_relaxed_values_in_the_same_words(name):
    law = Levels(torch.zeros(3, 5, dtype=F64))
    q = td.Independent(Levels(torch.randn(4, 3, 5, dtype=F64, requires_grad=True)), 1)
    with pytest.raises(ConfigError, match=r"f refuses relaxed values|differentiable in z"):
        expectation(lambda z: td.Independent(law, 1).log_prob(z), q, name)


def test_an_error_of_f_s_own_is_left_alone():
    def f(z: Tensor) -> Tensor:
        raise ValueError("no more paper")

    for name in DIFFERENTIABLE:
        with pytest.raises(ValueError, match=r"^no more paper$"):
            expectation(f, independent(torch.zeros(4, 3, requires_grad=True)), GRADIENTS[name](), GRADIENTS[name]().usable(1))


@pytest.mark.parametrize("name", UNBIASED_ON_BITS)
def test_dropout_inside_f_draws_a_mask_for_each_value_and_the_mean_over_masks_is_what_is_differentiated(name):
    repeats = 4 * REPEATS if name != "enumerate" else 4000
    logits = numbers(0.3, -0.7).expand(repeats, 2).clone().requires_grad_()
    q, estimator = independent(logits), GRADIENTS[name]()
    weights = numbers(1.0, -2.0)

    def bent(masked: Tensor) -> Tensor:
        return ((masked * weights).sum(-1) - 0.4) ** 2

    value = expectation(lambda z: bent(F.dropout(z, 0.5)), q, shown(estimator, q), estimator.usable(3))
    at = numbers(0.3, -0.7).requires_grad_()
    exact = expectation(lambda z: torch.stack([bent(z * 2 * mask) for mask in bits(2)]).mean(0), independent(at), "enumerate")
    within(value.detach(), exact.detach())
    within(torch.autograd.grad(value.sum(), logits)[0], torch.autograd.grad(exact, at)[0])
