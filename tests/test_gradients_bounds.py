"""Gradients of evidence bounds: path derivatives, doubly reparameterised and leave-one-out ones, against exact gradients.

Bounds of K draws are integrals over K points: for bits they are summed over all draws, and the estimator's own randomness with
them; for laws of one number they are integrated on a grid of pairs. Elsewhere each row of a batch is one estimate, and their
mean is held against the exact gradient at 4 standard errors.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

import xhat
from catalogue import F64, bits, numbers
from proofs import within
from test_objectives import X, exact, spread
from xhat import conditionals, gradients, objectives, priors
from xhat.conditionals import Bernoulli
from xhat.data import Batch
from xhat.distributions import Chain, Levels, relaxed_log_prob
from xhat.errors import ConfigError
from xhat.gradients import GRADIENTS, LogMeanExp, LogWeight, Mean, Pathwise, expectation
from xhat.networks import MLP
from xhat.objectives import ELBO, Posed

R = 20_000  # independent estimates


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def outside(estimates: Tensor, truth: Tensor | float, errors: float = 10.0) -> None:
    """The mean of independent estimates is clearly another, in some coordinate."""
    estimates = estimates.detach()
    stderr = estimates.std(0) / math.sqrt(len(estimates))
    assert ((estimates.mean(0) - truth).abs() > errors * stderr).any()


def rows(*values: float, count: int = R) -> list[Tensor]:
    """Each number as a column of parameters, one for each estimate."""
    return [torch.full((count,), v, dtype=F64, requires_grad=True) for v in values]


# Laws of one number: the exact bound of one draw and of two, on a grid


def joint(z: Tensor, slope: Tensor) -> Tensor:
    """log p(x, z) whose posterior is no Normal; its parameter is part of log p alone."""
    seen = torch.tensor(0.8, dtype=F64)
    return td.Normal(0.0, 1.0).log_prob(z) + td.Normal(slope * z + 0.5 * torch.sin(2 * z), 0.6).log_prob(seen)


def positive_joint(z: Tensor, slope: Tensor) -> Tensor:
    return 1.5 * z.log() - slope * z - 0.1 * (z - 1).square()


def unit_joint(z: Tensor, slope: Tensor) -> Tensor:
    return 2 * z.log() + slope * torch.log1p(-z) + torch.sin(3 * z)


def squashed(loc: Tensor, scale: Tensor) -> td.Distribution:
    """A flow: μ + σε through a sigmoid."""
    base = td.Normal(torch.zeros_like(loc), torch.ones_like(loc))
    return td.TransformedDistribution(base, [td.AffineTransform(loc, scale), td.SigmoidTransform()])


LAWS = {
    "Normal": (td.Normal, (0.2, 0.9, 0.5), joint, (-9.0, 9.0)),
    "Gamma": (td.Gamma, (2.5, 1.4, 0.7), positive_joint, (0.0, 30.0)),
    "LogNormal": (td.LogNormal, (0.2, 0.5, 0.7), positive_joint, (0.0, 40.0)),
    "Beta": (td.Beta, (2.0, 1.5, 0.9), unit_joint, (0.0, 1.0)),
    "flow": (squashed, (0.3, 0.8, 0.9), unit_joint, (0.0, 1.0)),
}


def exact_bound(law: str, count: int, values: tuple[float, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The bound of ``count`` draws (1 or 2) and its gradient, by tanh-sinh quadrature over all of them."""
    make, known, log_joint, (low, high) = LAWS[law]
    at = [torch.tensor(v, dtype=F64, requires_grad=True) for v in values or known]
    t = torch.linspace(-3.0, 3.0, 301, dtype=F64)
    inner = torch.pi / 2 * t.sinh()
    z = (low + (high - low) * torch.sigmoid(2 * inner)).clamp(low + 1e-12, high - 1e-12)
    weight = (t[1] - t[0]) * torch.pi / 2 * t.cosh() / inner.cosh().square() / 2 * (high - low)
    q = make(*at[:2])
    log_q = q.log_prob(z)
    mass = weight * log_q.exp()
    assert abs(mass.sum().item() - 1) < 1e-6
    log_w = log_joint(z, at[2]) - log_q
    if count == 1:
        value = (mass * log_w).sum()
    else:
        pairs = torch.logaddexp(log_w[:, None], log_w) - math.log(2)
        value = (mass[:, None] * mass * pairs).sum()
    return value.detach(), torch.autograd.grad(value, at)


ONE = {law: exact_bound(law, 1) for law in LAWS}
TWO = {law: exact_bound(law, 2) for law in LAWS}


def estimates(law: str, objective: str, gradient: str, samples: int, count: int = R) -> tuple[Tensor, tuple[Tensor, ...]]:
    make, values, log_joint, _ = LAWS[law]
    at = rows(*values, count=count)
    value = xhat.bound(lambda z: log_joint(z, at[2]), make(*at[:2]), objective, gradient, samples)
    return value.detach(), torch.autograd.grad(value.sum(), at)


def usable(names: list[str], counts: list[int]) -> list[tuple[str, int]]:
    return [(name, n) for name, n in itertools.product(names, counts) if GRADIENTS[name]().usable(n) == n]


@pytest.mark.parametrize(("gradient", "samples"), usable(["pathwise", "score", "rloo", "stl", "dreg"], [1, 2, 5]))
def test_every_gradient_of_the_elbo_is_unbiased(gradient, samples):
    value, slopes = estimates("Normal", "elbo", gradient, samples)
    within(value, ONE["Normal"][0])
    for slope, truth in zip(slopes, ONE["Normal"][1], strict=True):
        within(slope, truth)


@pytest.mark.parametrize("gradient", ["pathwise", "score", "rloo", "vimco", "dreg"])
def test_every_gradient_of_the_two_sample_bound_is_unbiased(gradient):
    value, slopes = estimates("Normal", "iwae", gradient, 2)
    assert TWO["Normal"][0] > ONE["Normal"][0] + 0.05
    within(value, TWO["Normal"][0])
    for slope, truth in zip(slopes, TWO["Normal"][1], strict=True):
        within(slope, truth)


@pytest.mark.parametrize("gradient", ["pathwise", "score", "dreg"])
def test_the_bound_of_one_draw_is_the_elbo(gradient):
    value, slopes = estimates("Normal", "iwae", gradient, 1)
    within(value, ONE["Normal"][0])
    for slope, truth in zip(slopes, ONE["Normal"][1], strict=True):
        within(slope, truth)


@pytest.mark.parametrize("law", ["Gamma", "LogNormal", "Beta", "flow"])
def test_path_derivatives_follow_every_law_with_a_path(law):
    """Implicitly reparameterised laws and flows among them."""
    for objective, gradient, samples, (value, truth) in (
        ("elbo", "stl", 2, ONE[law]),
        ("iwae", "dreg", 2, TWO[law]),
        ("iwae", "dreg", 1, ONE[law]),
    ):
        found, slopes = estimates(law, objective, gradient, samples)
        within(found, value)
        for slope, known in zip(slopes, truth, strict=True):
            within(slope, known)


@pytest.mark.parametrize("samples", [5, 8])
def test_with_more_draws_dreg_agrees_with_pathwise(samples):
    _, plain = estimates("Normal", "iwae", "pathwise", samples)
    _, doubly = estimates("Normal", "iwae", "dreg", samples)
    for a, b in zip(plain, doubly, strict=True):
        within(a - b, 0.0)  # independent of each other
    for a, b in zip(plain[:2], doubly[:2], strict=True):
        assert b.var() < a.var() / 2


def full_normal(loc: Tensor, factor: Tensor) -> td.Distribution:
    return td.MultivariateNormal(loc, scale_tril=factor.tril())


def axis_normal(loc: Tensor, factor: Tensor) -> td.Distribution:
    return td.Independent(td.Normal(loc, factor.diagonal(dim1=-2, dim2=-1)), 1)


def coupled_flow(loc: Tensor, factor: Tensor) -> td.Distribution:
    """Two numbers that the flow mixes: a full Normal through a sinh-like map of each."""
    return td.TransformedDistribution(full_normal(loc, factor), [td.SigmoidTransform(), td.AffineTransform(-1.0, 2.0)])


@pytest.mark.parametrize("make", [full_normal, axis_normal, coupled_flow])
def test_events_of_several_numbers(make):
    """The factor of the path's second weight meets whole events: against pathwise, and for the ELBO of a Normal exactly."""

    def slopes(gradient: str, objective: str, samples: int) -> list[Tensor]:
        loc = numbers(0.4, -0.7).expand(R, 2).clone().requires_grad_()
        factor = torch.tensor([[0.9, 0.0], [0.5, 0.6]], dtype=F64).expand(R, 2, 2).clone().requires_grad_()
        value = xhat.bound(
            lambda z: -(z - 0.3).square().sum(-1) + z[..., 0] * z[..., 1], make(loc, factor), objective, gradient, samples
        )
        return list(torch.autograd.grad(value.sum(), (loc, factor)))

    for gradient, objective, samples in (("stl", "elbo", 1), ("dreg", "elbo", 2), ("dreg", "iwae", 3)):
        for a, b in zip(slopes(gradient, objective, samples), slopes("pathwise", objective, samples), strict=True):
            within(a - b, 0.0)


def test_a_path_derivative_leaves_the_parameters_of_log_p_alone():
    """With no gradient in q's parameters there is no path, and log p still learns."""
    slope = torch.full((R,), 0.5, dtype=F64, requires_grad=True)
    q = td.Normal(torch.full((R,), 0.2, dtype=F64), 0.9)
    for gradient in ("stl", "dreg"):
        (found,) = torch.autograd.grad(xhat.bound(lambda z: joint(z, slope), q, gradient=gradient).sum(), slope)
        within(found, ONE["Normal"][1][2])
    (found,) = torch.autograd.grad(xhat.bound(lambda z: joint(z, slope), q, "iwae", "dreg", 2).sum(), slope)
    within(found, TWO["Normal"][1][2])


def test_parameters_that_log_p_shares_with_q_get_both_derivatives():
    """log p holds q's loc: the path's part and log p's own."""
    truth = exact_bound("Normal", 2)[1]
    make, values, log_joint, _ = LAWS["Normal"]
    at = rows(*values)
    value = xhat.bound(lambda z: log_joint(z, at[2]) + 3 * at[0], make(*at[:2]), "iwae", "dreg", 2)
    (slope,) = torch.autograd.grad(value.sum(), at[0])
    within(slope, truth[0] + 3)


def test_two_bounds_and_two_backwards_do_not_meet():
    """The second weight belongs to its own call: graphs that live side by side keep theirs."""
    loc = numbers(0.3).requires_grad_()
    torch.manual_seed(1)
    first = xhat.bound(lambda z: -z.square(), td.Normal(loc, 1.0), "iwae", "dreg", 4)
    (alone,) = torch.autograd.grad(first, loc, retain_graph=True)
    xhat.bound(lambda z: -5 * z.square(), td.Normal(loc, 0.5), "iwae", "dreg", 4)
    (later,) = torch.autograd.grad(first, loc, retain_graph=True)
    (again,) = torch.autograd.grad(3 * first, loc)
    assert torch.equal(alone, later)
    torch.testing.assert_close(again, 3 * alone)


def test_a_path_derivative_differentiated_twice_raises():
    loc = numbers(0.3).requires_grad_()
    for objective, gradient in (("elbo", "stl"), ("iwae", "dreg")):
        value = xhat.bound(lambda z: -z.square(), td.Normal(loc, 1.0), objective, gradient, 2)
        (slope,) = torch.autograd.grad(value.sum(), loc, create_graph=True)
        with pytest.raises(RuntimeError, match="a second time"):
            torch.autograd.grad(slope.sum(), loc)


# The trap: a direct term whose mean is not zero


def path_only(count: int, power: int) -> tuple[Tensor, Tensor]:
    """Exact mean of Σ w̃ᵏ ∂ log w/∂z ∂z/∂φ, written out by hand for one or two draws of a Normal on a Gauss-Hermite grid."""
    import numpy as np

    nodes, weights = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(80))
    weights = weights / math.sqrt(2 * math.pi)
    loc, scale, slope = (torch.tensor(v, dtype=F64) for v in LAWS["Normal"][1])
    grid = torch.stack(torch.meshgrid(*[nodes] * count, indexing="ij"))
    mass = torch.stack(torch.meshgrid(*[weights] * count, indexing="ij")).prod(0)
    z = (loc + scale * grid).requires_grad_()
    log_w = joint(z, slope) - td.Normal(loc, scale).log_prob(z)
    (rise,) = torch.autograd.grad(log_w.sum(), z)
    share = log_w.detach().softmax(0) ** power
    return (mass * (share * rise).sum(0)).sum(), (mass * (share * rise * grid).sum(0)).sum()


def test_dropping_the_score_term_is_right_for_one_draw_and_wrong_for_two():
    one, two = ONE["Normal"][1][:2], TWO["Normal"][1][:2]
    for found, truth in zip(path_only(1, 1), one, strict=True):
        assert found.item() == pytest.approx(truth.item(), abs=1e-6)
    for found, truth in zip(path_only(2, 2), two, strict=True):  # doubly reparameterised
        assert found.item() == pytest.approx(truth.item(), abs=2e-4)
    for found, truth in zip(path_only(2, 1), two, strict=True):  # what sticking the landing would be
        assert abs(found.item() - truth.item()) > 0.02


def test_sticking_the_landing_of_a_multi_sample_bound_is_refused_by_name():
    q = td.Normal(torch.zeros(3), 1.0)
    with pytest.raises(ConfigError, match=r"'stl' serves no multi-sample bound.*dreg"):
        xhat.bound(q.log_prob, q, "iwae", "stl", 4)


@pytest.mark.parametrize("gradient", ["enumerate", "disarm", "measure", "rebar", "unordered-set", "straight-through"])
def test_a_gradient_of_a_mean_is_refused_for_a_multi_sample_bound(gradient):
    q = td.Independent(td.Bernoulli(logits=torch.zeros(3, 2)), 1)
    with pytest.raises(ConfigError, match=rf"'{gradient}' serves no multi-sample bound; gradients that do: .*vimco"):
        xhat.bound(lambda z: z.sum(-1), q, "iwae", gradient, 1 if gradient == "enumerate" else 2)


@pytest.mark.parametrize("noise", ["antithetic", "sobol"])
def test_dependent_noise_is_refused_for_a_multi_sample_bound(noise):
    """The bound is one of independent draws: others give another number."""
    q = td.Normal(torch.zeros(3), 1.0)
    with pytest.raises(ConfigError, match="'pathwise' with these options serves no multi-sample bound; leave them out"):
        xhat.bound(q.log_prob, q, "iwae", Pathwise(noise), 4)


@pytest.mark.parametrize("gradient", ["stl", "dreg"])
def test_path_derivatives_need_to_know_log_q(gradient):
    q = td.Normal(torch.zeros(3), 1.0)
    with pytest.raises(
        ConfigError, match=rf"'{gradient}' needs to know log q .*xhat\.bound\(log_joint, q, gradient='{gradient}'"
    ):
        expectation(q.log_prob, q, gradient)
    bits_law = td.Bernoulli(logits=torch.zeros(3))
    with pytest.raises(ConfigError, match=rf"'{gradient}' needs .*rsample"):
        xhat.bound(bits_law.log_prob, bits_law, gradient=gradient)


@pytest.mark.parametrize("gradient", ["stl", "dreg"])
@pytest.mark.parametrize("law", [td.Uniform, td.Pareto])
def test_path_derivatives_are_refused_where_the_support_moves(gradient, law):
    """There the mean of ∇ log q is not zero: for a Pareto's scale it is α over the scale."""
    first, second = (torch.tensor([v], requires_grad=True) for v in (0.5, 3.0))
    with pytest.raises(ConfigError, match="no bounds that depend on its parameters"):
        xhat.bound(lambda z: -z, law(first, second), gradient=gradient)


def test_vimco_is_a_gradient_of_multi_sample_bounds_only():
    q = td.Bernoulli(logits=torch.zeros(3))
    for call in (lambda: xhat.bound(lambda z: z, q, "elbo", "vimco", 4), lambda: expectation(lambda z: z, q, "vimco", 4)):
        with pytest.raises(ConfigError, match=r"'vimco' is one for multi-sample bounds.*iwae.*rloo"):
            call()


# Sticking the landing, and the signal of many draws


def test_at_the_posterior_the_path_derivative_is_zero_draw_by_draw():
    """x | z ~ N(z, 1), z ~ N(0, 1): the posterior is N(x/2, 1/2), and log w is log p(x) whatever z is."""
    x = torch.tensor(1.7, dtype=F64)

    def log_joint(z: Tensor) -> Tensor:
        return td.Normal(0.0, 1.0).log_prob(z) + td.Normal(z, 1.0).log_prob(x)

    evidence = td.Normal(0.0, math.sqrt(2.0)).log_prob(x)
    for objective, gradient, samples in (("elbo", "stl", 1), ("elbo", "stl", 3), ("iwae", "dreg", 4), ("elbo", "dreg", 2)):
        at = rows(0.85, math.sqrt(0.5), count=200)
        value = xhat.bound(log_joint, td.Normal(*at), objective, gradient, samples)
        torch.testing.assert_close(value.detach(), evidence.expand(200))
        for slope in torch.autograd.grad(value.sum(), at):
            assert slope.abs().max() < 1e-12
    at = rows(0.85, math.sqrt(0.5), count=200)
    slopes = torch.autograd.grad(xhat.bound(log_joint, td.Normal(*at)).sum(), at)
    assert min(slope.std() for slope in slopes) > 0.5  # the ordinary derivative is all noise there


def test_the_signal_of_dreg_does_not_fade_with_the_draws_and_that_of_pathwise_does():
    def ratio(gradient: str, samples: int) -> float:
        _, slopes = estimates("Normal", "iwae", gradient, samples, count=3000 if samples > 50 else 20_000)
        return (slopes[0].mean().abs() / slopes[0].std()).item()

    few, many = ratio("pathwise", 4), ratio("pathwise", 256)
    assert many < 0.4 * few  # as 1/√S: an eighth
    few, many = ratio("dreg", 4), ratio("dreg", 256)
    assert many > 2 * few  # as √S


# Bits: all draws, and with them the estimator's own randomness


class Forced(td.Bernoulli):
    """Draws that the test chooses, ``(S, *batch)``."""

    def sample(self, sample_shape=()):
        return self.forced


LOGITS = numbers(0.4, -0.9)
TABLE = numbers(0.3, -1.2, 0.8, 1.5)


def table_joint(z: Tensor, table: Tensor) -> Tensor:
    """Any function of two bits: log p(x, z) of each of the four, (*batch, 4) ."""
    index = (2 * z[..., 0] + z[..., 1]).long()
    return table.expand(*index.shape, 4).gather(-1, index.unsqueeze(-1)).squeeze(-1)


def forced_slopes(gradient: str, samples: int, objective: str = "iwae") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of all draws of ``samples`` pairs of bits, and for each the value and the slopes in logits and table."""
    draws = bits(2 * samples).reshape(-1, samples, 2).movedim(1, 0)  # (S, N, 2)
    count = draws.shape[1]
    logits = LOGITS.expand(count, 2).clone().requires_grad_()
    table = TABLE.expand(count, 4).clone().requires_grad_()
    base = Forced(logits=logits)
    base.forced = draws
    q = td.Independent(base, 1)
    value = xhat.bound(lambda z: table_joint(z, table), q, objective, gradient, samples)
    slopes = torch.autograd.grad(value.sum(), (logits, table))
    weight = q.log_prob(draws).sum(0).exp().detach()
    return weight, value.detach(), *slopes


def summed(samples: int, objective: str = "iwae") -> tuple[Tensor, ...]:
    """The exact bound and its gradients."""
    logits, table = LOGITS.clone().requires_grad_(), TABLE.clone().requires_grad_()
    q = td.Independent(td.Bernoulli(logits=logits), 1)
    log_q = q.log_prob(bits(2))
    log_w = table - log_q
    every = torch.tensor(list(itertools.product(range(4), repeat=samples)))
    values = log_w[every]
    value = values.logsumexp(1) - math.log(samples) if objective == "iwae" else values.mean(1)
    bound = (log_q[every].sum(1).exp() * value).sum()
    return bound.detach(), *torch.autograd.grad(bound, (logits, table))


@pytest.mark.parametrize(("gradient", "samples"), usable(["score", "rloo", "vimco"], [1, 2, 3, 5]))
def test_multi_sample_gradients_through_bits_are_exactly_unbiased(gradient, samples):
    weight, value, dlogits, dtable = forced_slopes(gradient, samples)
    bound, known_logits, known_table = summed(samples)
    torch.testing.assert_close((weight * value).sum(), bound)
    torch.testing.assert_close((weight[:, None] * dlogits).sum(0), known_logits)
    torch.testing.assert_close((weight[:, None] * dtable).sum(0), known_table)


@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize("gradient", ["score", "rloo"])
def test_gradients_of_the_elbo_through_bits_are_exactly_unbiased(gradient, samples):
    weight, value, dlogits, dtable = forced_slopes(gradient, samples, "elbo")
    bound, known_logits, known_table = summed(samples, "elbo")
    torch.testing.assert_close((weight * value).sum(), bound)
    torch.testing.assert_close((weight[:, None] * dlogits).sum(0), known_logits)
    torch.testing.assert_close((weight[:, None] * dtable).sum(0), known_table)


@pytest.mark.parametrize(("samples", "zero"), [(1, True), (2, False), (3, False)])
def test_the_direct_term_of_a_multi_sample_bound_has_a_mean(samples, zero):
    """E Σ w̃ᵢ ∂(−log q(zᵢ)): left out, the gradient is another."""
    draws = bits(2 * samples).reshape(-1, samples, 2).movedim(1, 0)
    logits = LOGITS.expand(draws.shape[1], 2).clone().requires_grad_()
    q = td.Independent(td.Bernoulli(logits=logits), 1)
    weight = q.log_prob(draws).sum(0).exp().detach()
    values = table_joint(draws, TABLE) - q.log_prob(draws)
    (direct,) = torch.autograd.grad(LogMeanExp()(values).sum(), logits, retain_graph=True)
    mean = (weight[:, None] * direct).sum(0)
    assert (mean.abs().max() < 1e-12) == zero
    if zero:
        return
    signal = LogMeanExp().leave_one_out(values.detach())
    (scores,) = torch.autograd.grad((signal * q.log_prob(draws)).sum(), logits)
    without = (weight[:, None] * scores).sum(0)
    known = summed(samples)[1]
    assert (without - known).abs().max() > 0.02
    torch.testing.assert_close(without + mean, known)


def test_vimco_has_less_variance_than_the_score():
    def spread_of(gradient: str) -> float:
        weight, _, dlogits, _ = forced_slopes(gradient, 3)
        mean = (weight[:, None] * dlogits).sum(0)
        return (weight[:, None] * (dlogits - mean).square()).sum().item()

    assert spread_of("vimco") < 0.7 * spread_of("score")


# The log-mean-exp and its leave-one-out signal


def test_log_mean_exp_is_what_its_name_says():
    values = torch.randn(5, 7, dtype=F64)
    torch.testing.assert_close(LogMeanExp()(values), values.exp().mean(0).log())
    for shift in (1e4, -1e4):
        torch.testing.assert_close(LogMeanExp()(values + shift), values.exp().mean(0).log() + shift)
    assert torch.equal(LogMeanExp()(values[:1]), values[0])


@pytest.mark.parametrize("count", [2, 3, 6])
def test_the_leave_one_out_signal_holds_the_geometric_mean_of_the_others(count):
    values = torch.randn(count, 4, dtype=F64)
    for i in range(count):
        others = values[[j for j in range(count) if j != i]]
        geometric = others.exp().prod(0) ** (1 / (count - 1))
        replaced = ((others.exp().sum(0) + geometric) / count).log()
        torch.testing.assert_close(LogMeanExp().leave_one_out(values)[i], values.exp().mean(0).log() - replaced)


def test_a_baseline_of_the_bound_holds_nothing_of_its_own_sample():
    values = torch.randn(4, 3, dtype=F64)
    other = values.clone()
    other[2] += 5.0
    reduce = LogMeanExp()
    before, after = (reduce(v) - reduce.leave_one_out(v)[2] for v in (values, other))
    torch.testing.assert_close(before, after)


def test_extreme_log_weights_give_finite_gradients():
    for size in (1e4, -1e4):
        values = numbers(size, -size, 0.0, 3.0)[:, None]
        assert LogMeanExp()(values).isfinite().all()
        assert LogMeanExp().leave_one_out(values).isfinite().all()
        for gradient in ("score", "rloo", "vimco"):
            logits = torch.zeros(50, 2, dtype=F64, requires_grad=True)
            q = td.Independent(td.Bernoulli(logits=logits), 1)
            value = xhat.bound(lambda z, size=size: size * z.sum(-1), q, "iwae", gradient, 4)
            (slope,) = torch.autograd.grad(value.sum(), logits)
            assert value.isfinite().all()
            assert slope.isfinite().all()
        loc = torch.zeros(50, dtype=F64, requires_grad=True)
        value = xhat.bound(lambda z, size=size: size * z, td.Normal(loc, 1.0), "iwae", "dreg", 4)
        assert torch.autograd.grad(value.sum(), loc)[0].isfinite().all()


def test_a_mean_meets_the_path_once():
    assert Mean().doubly(torch.randn(3, 2)) == 1.0
    torch.testing.assert_close(LogMeanExp().doubly(torch.randn(3, 2)).sum(0), torch.ones(2))


# Between the points of a finite law


def finite_laws() -> dict[str, td.Distribution]:
    torch.manual_seed(5)
    one_hot = td.OneHotCategorical(logits=torch.randn(4, 2, 3, dtype=F64), validate_args=False)
    levels = Levels(torch.randn(4, 2, 5, dtype=F64), validate_args=False)
    pairs = td.Independent(td.OneHotCategorical(logits=torch.randn(4, 2, 3, dtype=F64), validate_args=False), 1)
    parts = td.OneHotCategorical(logits=torch.randn(4, 3, 3, dtype=F64), validate_args=False)
    return {
        "bits": td.Independent(td.Bernoulli(logits=torch.randn(4, 2, dtype=F64), validate_args=False), 1, validate_args=False),
        "one-hot": td.Independent(one_hot, 1, validate_args=False),
        "levels": td.Independent(levels, 1, validate_args=False),
        "chain": Chain(
            td.Independent(td.Bernoulli(logits=torch.randn(4, 2, dtype=F64), validate_args=False), 1, validate_args=False),
            lambda z: td.OneHotCategorical(logits=z.sum(-1, keepdim=True) * numbers(0.3, -0.5, 1.0), validate_args=False),
            validate_args=False,
        ),
        "mixture": td.MixtureSameFamily(td.Categorical(logits=torch.randn(4, 3, dtype=F64)), parts, validate_args=False),
        "pairs": td.Independent(pairs.base_dist, 1, validate_args=False),
    }


@pytest.mark.parametrize("name", finite_laws())
def test_a_log_mass_is_continued_between_the_points_without_a_jump(name):
    law = finite_laws()[name]
    torch.manual_seed(0)
    z, other = law.sample((50,)), law.sample((50,))
    torch.testing.assert_close(relaxed_log_prob(law, z), law.log_prob(z))
    share = torch.linspace(0, 1, 4001, dtype=F64).reshape(-1, *(1,) * z.ndim)
    path = relaxed_log_prob(law, z[:5] + share * (other - z)[:5])
    assert path.diff(dim=0).abs().max() < 0.02
    middle = (0.7 * z + 0.3 * other).requires_grad_()
    (slope,) = torch.autograd.grad(relaxed_log_prob(law, middle).sum(), middle)
    assert slope.abs().max() > 0.1


def test_an_impossible_category_stays_impossible():
    law = td.OneHotCategorical(logits=numbers(0.0, 1.0, -math.inf), validate_args=False)
    assert relaxed_log_prob(law, torch.eye(3, dtype=F64)).tolist() == [*law.log_prob(torch.eye(3, dtype=F64))[:2], -math.inf]


@pytest.mark.parametrize("law", [td.Normal(0.0, 1.0), td.Poisson(3.0)])
def test_other_laws_keep_their_own(law):
    z = law.sample((5,))
    assert torch.equal(relaxed_log_prob(law, z), law.log_prob(z))


# Inside a model: x itself holds each row's own parameters, so that rows are independent estimates


class Row:
    """A chassis without networks: the posterior's logits are x, the prior and the likelihood are given."""

    def __init__(self, gradient, posterior, prior, likelihood):
        self.gradient, self.posterior, self.prior, self.likelihood = gradient, posterior, prior, likelihood

    def pose(self, batch: Batch, seen: Tensor) -> Posed:
        return Posed(self.posterior(seen), self.prior(), self.likelihood, batch, self.gradient, seen)


def bit_row(gradient) -> Row:
    weights = torch.tensor([[1.2, -0.8, 0.5], [-0.6, 1.5, 0.9]], dtype=F64)
    return Row(
        gradient,
        lambda x: td.Independent(td.Bernoulli(logits=x, validate_args=False), 1, validate_args=False),
        lambda: td.Independent(td.Bernoulli(logits=numbers(0.5, -1.0), validate_args=False), 1, validate_args=False),
        lambda z: td.Independent(td.Bernoulli(logits=torch.tanh(z @ weights) - 0.2, validate_args=False), 1),
    )


def one_hot_row(gradient) -> Row:
    weights = torch.tensor([[1.2, -0.8, 0.5], [-0.6, 1.5, 0.9], [0.3, 0.2, -1.0]], dtype=F64)
    return Row(
        gradient,
        lambda x: td.OneHotCategorical(logits=x, validate_args=False),
        lambda: td.OneHotCategorical(logits=numbers(0.5, -1.0, 0.7), validate_args=False),
        lambda z: td.Independent(td.Bernoulli(logits=torch.tanh(z @ weights) - 0.2, validate_args=False), 1),
    )


def level_row(gradient) -> Row:
    weights = torch.tensor([[2.0, -1.0, 0.5]], dtype=F64)
    return Row(
        gradient,
        lambda x: td.Independent(Levels(x.unsqueeze(-2), validate_args=False), 1, validate_args=False),
        lambda: td.Independent(Levels(numbers(0.5, -1.0, 0.7)[None], validate_args=False), 1, validate_args=False),
        lambda z: td.Independent(td.Bernoulli(logits=torch.tanh(z @ weights) - 0.2, validate_args=False), 1),
    )


ROWS = {
    "bits": (bit_row, numbers(0.4, -0.7), bits(2)),
    "one-hot": (one_hot_row, numbers(0.4, -0.7, 0.9), torch.eye(3, dtype=F64)),
    "levels": (level_row, numbers(0.4, -0.7, 0.9), numbers(0.0, 0.5, 1.0)[:, None]),
}
TARGET = numbers(1.0, 0.0, 1.0)


def row_truth(law: str, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x|z) and the KL on average, and the loss's gradient in the logits, by summing over z."""
    make, start, points = ROWS[law]
    x = start.clone().requires_grad_()
    model = make(None)
    q = model.posterior(x)
    log_q, log_pz = q.log_prob(points), model.prior().log_prob(points)
    log_px = model.likelihood(points).log_prob(TARGET)
    mass = log_q.exp()
    kl = (mass * (log_q - log_pz)).sum()
    fit = (mass * log_px).sum()
    return fit.detach(), kl.detach(), torch.autograd.grad(beta * kl - fit, x)[0]


FITS = [
    (law, name)
    for law, name in itertools.product(ROWS, GRADIENTS)
    if GRADIENTS[name]().lacks(ROWS[law][0](None).posterior(ROWS[law][1])) is None and "mean" in GRADIENTS[name].reductions
]


def test_what_is_tried_in_a_model_is_nearly_everything():
    assert {name for _, name in FITS} == set(GRADIENTS) - {"pathwise", "stl", "dreg", "vimco"}


@pytest.mark.parametrize(("law", "name"), FITS)
def test_a_sampled_bound_reports_true_values_and_has_its_gradient(law, name):
    """Whatever points an estimator looks at, relaxed ones and enumerated ones among them, and whatever they weigh."""
    beta, count = 1.75, 8000  # a weight that float32 holds exactly
    make, start, _ = ROWS[law]
    estimator = GRADIENTS[name]()
    samples = estimator.usable(2)
    x = start.expand(count, -1).clone().requires_grad_()
    terms = ELBO(beta=beta, kl="sampled", samples=samples)(make(estimator).pose(Batch(TARGET.expand(count, 3)), seen=x))
    fit, kl, slope = row_truth(law, beta)
    within(terms.measures["log_px_given_z"], fit)
    within(terms.measures["kl"], kl)
    within(terms.measures["elbo"], fit - kl)
    torch.testing.assert_close(terms.measures["elbo"], terms.measures["log_px_given_z"] - terms.measures["kl"])
    weighted = beta * terms.measures["kl"] - terms.measures["log_px_given_z"]
    torch.testing.assert_close(terms.loss.detach(), weighted)  # the very points of the loss
    assert not any(value.requires_grad for value in terms.measures.values())
    (found,) = torch.autograd.grad(terms.loss.sum(), x)
    if estimator.unbiased:
        within(found, slope)
    if name == "enumerate":
        torch.testing.assert_close(found[0], slope)


@pytest.mark.parametrize("name", ["rebar", "relax"])
@pytest.mark.parametrize("law", ["one-hot", "levels"])
def test_a_log_mass_that_jumps_would_spoil_a_relaxed_control_variate(law, name):
    """The trap: torch's own log_prob takes the largest element, so a relaxed draw's log q jumps and has no derivative."""
    make, start, _ = ROWS[law]
    x = start.expand(R, -1).clone().requires_grad_()
    model = make(None)
    q = model.posterior(x)

    def log_joint(z: Tensor) -> Tensor:
        return model.likelihood(z).log_prob(TARGET) + relaxed_log_prob(model.prior(), z)

    slope = -row_truth(law, 1.0)[2]
    (right,) = torch.autograd.grad(expectation(LogWeight(log_joint, q), q, name, 2).sum(), x, retain_graph=True)
    within(right, slope)
    (wrong,) = torch.autograd.grad(expectation(lambda z: log_joint(z) - q.log_prob(z), q, name, 2).sum(), x)
    outside(wrong, slope)


@pytest.mark.parametrize("name", ["rloo", "double-cv", "enumerate"])
def test_several_discrete_layers_in_a_model_report_true_values(name):
    """A chain has no closed form, so its KL is sampled; each layer with an estimator of its own."""
    estimator = gradients.Layers([GRADIENTS[name](), GRADIENTS["enumerate"]()])
    count, weights = 6000, torch.tensor([[0.7, -0.4], [0.5, 1.1]], dtype=F64)
    out = torch.tensor([[1.2, -0.8, 0.5], [-0.6, 1.5, 0.9], [0.3, 0.2, -1.0], [1.0, 0.1, 0.4]], dtype=F64)

    def layer(logits: Tensor) -> td.Distribution:
        return td.Independent(td.Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)

    model = Row(
        estimator,
        lambda x: Chain(layer(x), lambda z: layer(z @ weights - 0.3), validate_args=False),
        lambda: Chain(layer(numbers(0.2, -0.4)), lambda z: layer(z @ weights.T), reverse=True, validate_args=False),
        lambda z: layer(torch.tanh(z @ out)),
    )
    start, points = numbers(0.4, -0.7), bits(4)
    one = start.clone().requires_grad_()
    log_q = model.posterior(one).log_prob(points)
    log_w = model.likelihood(points).log_prob(TARGET) + model.prior().log_prob(points) - log_q
    truth = (log_q.exp() * log_w).sum()
    (slope,) = torch.autograd.grad(truth, one)
    x = start.expand(count, 2).clone().requires_grad_()
    terms = ELBO(samples=estimator.usable(2))(model.pose(Batch(TARGET.expand(count, 3)), seen=x))
    within(terms.measures["elbo"], truth.detach())
    torch.testing.assert_close(-terms.loss.detach(), terms.measures["elbo"])
    within(torch.autograd.grad(-terms.loss.sum(), x)[0], slope)


def test_measures_do_not_choke_on_a_point_that_cannot_be_drawn():
    """An enumerated value of probability 0 adds nothing, though its log q is −∞."""
    model = one_hot_row(GRADIENTS["enumerate"]())
    x = numbers(0.4, -math.inf, 0.9).expand(3, 3).clone().requires_grad_()
    terms = ELBO(kl="sampled")(model.pose(Batch(TARGET.expand(3, 3)), seen=x))
    assert all(value.isfinite().all() for value in terms.measures.values())
    assert terms.loss.isfinite().all()


def path_vae(gradient, **options) -> xhat.VAE:
    return spread(
        xhat.VAE(
            priors.StandardNormal(2),
            conditionals.Normal(MLP(3, [6], "tanh"), 2),
            Bernoulli(MLP(2, [6], "tanh"), 3),
            ELBO(**options),
            gradient,
        )
    )


@pytest.mark.parametrize("name", ["stl", "dreg"])
def test_a_vae_with_a_path_derivative_samples_its_kl_and_is_unbiased(name):
    """kl="auto" would take the closed form, which leaves log q out of f: here it does not."""
    model = path_vae(GRADIENTS[name](), beta=1.0, samples=2)
    parameters = list(model.parameters())
    truth = torch.autograd.grad(-exact(model, X).elbo.mean(), parameters)
    many = X.repeat(20, 1)
    repeats = [torch.autograd.grad(model.loss(many).mean(), parameters) for _ in range(60)]
    for i, slope in enumerate(truth):
        within(torch.stack([row[i] for row in repeats]), slope, errors=4.5)  # 80 coordinates
    terms = model(X.repeat(2000, 1))
    within(terms.measures["elbo"].reshape(2000, 3), exact(model, X).elbo.detach())
    within(model.elbo(X.repeat(2000, 1)).detach().reshape(2000, 3), exact(model, X).elbo.detach())


@pytest.mark.parametrize("beta", [0.25, 4.0])
def test_a_weight_on_the_kl_is_met_by_the_path_derivative(beta):
    torch.manual_seed(3)
    plain = path_vae(Pathwise(), beta=beta, kl="analytic", samples=4)
    torch.manual_seed(3)
    path = path_vae(gradients.STL(), beta=beta, samples=4)
    many = X.repeat(200, 1)

    def slopes(model: xhat.VAE) -> Tensor:
        parameters = list(model.posterior.parameters())
        return torch.stack(
            [torch.cat([g.flatten() for g in torch.autograd.grad(model.loss(many).mean(), parameters)]) for _ in range(40)]
        )

    torch.testing.assert_close(
        nn.utils.parameters_to_vector(path.parameters()), nn.utils.parameters_to_vector(plain.parameters())
    )
    within(slopes(plain) - slopes(path), 0.0, errors=4.5)
    terms = path(many)
    measures = terms.measures
    torch.testing.assert_close(terms.loss.detach(), beta * measures["kl"] - measures["log_px_given_z"])


def test_a_closed_form_kl_or_free_bits_with_a_path_derivative_are_refused():
    with pytest.raises(ConfigError, match=r"'stl' needs to know log q .*kl='sampled'"):
        path_vae(gradients.STL(), kl="analytic").loss(X)
    with pytest.raises(ConfigError, match="free_bits needs the KL of each dimension in closed form, and a path derivative"):
        path_vae(gradients.STL(), free_bits=0.1).loss(X)


def test_the_bound_of_a_law_that_is_the_posterior_is_tight_whatever_the_draws():
    q = td.Normal(torch.zeros(2), 1.0)
    assert xhat.bound is objectives.bound
    tight = xhat.bound(lambda z: q.log_prob(z) + 2.5, q, "iwae", "dreg", 5)
    torch.testing.assert_close(tight.detach(), torch.full((2,), 2.5))


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_dreg_is_right_for_any_weight_of_log_q(weight):
    """Against the pathwise estimates of the same bound: E[dreg − pathwise] = 0."""

    def slopes(gradient: str) -> tuple[Tensor, ...]:
        at = rows(0.3, 0.8, count=100_000)
        q = td.Normal(*at)
        f = LogWeight(lambda z: -((z - 1) ** 2) + torch.sin(2 * z), q, weight)
        return torch.autograd.grad(expectation(f, q, gradient, 3, LogMeanExp()).sum(), at)

    for doubly, plain in zip(slopes("dreg"), slopes("pathwise"), strict=True):
        within(doubly - plain, 0.0)
