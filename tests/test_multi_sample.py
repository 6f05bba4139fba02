"""Bounds of several samples: reductions and objectives against formulas, enumeration, quadrature and exact evidence."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

import xhat
from catalogue import F64, bits
from xhat import VAE, conditionals, gradients, objectives, priors
from xhat.data import Batch
from xhat.distributions.unvalidated import unvalidated
from xhat.errors import ConfigError
from xhat.gradients import LogMeanExp, LogWeight, Mean, expectation
from xhat.gradients.reduction import Blend, Grouped, Reduction, Renyi
from xhat.networks import MLP
from xhat.objectives import CIWAE, ELBO, IWAE, MIWAE, PIWAE, Objective

X = torch.tensor([[0.9, -1.4, 0.3], [-0.2, 0.8, 2.0]], dtype=F64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def within(estimates: Tensor, exact: Tensor | float, errors: float = 4.5) -> None:
    stderr = estimates.detach().std(0) / math.sqrt(len(estimates))
    away = (estimates.detach().mean(0) - exact).abs()
    assert (away <= errors * stderr + 1e-10).all(), f"off by {(away / stderr).max():.1f} standard errors"


# Reductions: each with its formula, written down once more

Formula = Callable[[Tensor], Tensor]
REDUCTIONS: dict[str, tuple[Reduction, Formula]] = {
    "log-mean-exp": (LogMeanExp(), lambda f: f.exp().mean(0).log()),
    "Rényi 0.5": (Renyi(0.5), lambda f: 2 * (f / 2).exp().mean(0).log()),
    "Rényi 3": (Renyi(3), lambda f: -0.5 * (-2 * f).exp().mean(0).log()),
    "Rényi -1": (Renyi(-1.0), lambda f: 0.5 * (2 * f).exp().mean(0).log()),
    "Rényi 1": (Renyi(1), lambda f: f.mean(0)),
    "blend": (Blend(0.3), lambda f: 0.3 * f.mean(0) + 0.7 * f.exp().mean(0).log()),
    "blend, all mean": (Blend(1), lambda f: f.mean(0)),
    "two groups": (Grouped(2), lambda f: (f[0::2].exp().mean(0).log() + f[1::2].exp().mean(0).log()) / 2),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("count", [2, 4, 6])
def test_a_reduction_is_its_formula(name, count):
    reduce, formula = REDUCTIONS[name]
    values = torch.randn(count, 5, dtype=F64)
    torch.testing.assert_close(reduce(values), formula(values))
    assert reduce(values + 1e4).isfinite().all()
    torch.testing.assert_close(reduce(values - 1e4) + 1e4, reduce(values))


def test_the_families_meet_at_their_ends():
    values = torch.randn(6, 5, dtype=F64)
    for reduce in (Renyi(0), Blend(0), Grouped(1)):
        torch.testing.assert_close(reduce(values), LogMeanExp()(values))
        torch.testing.assert_close(reduce.leave_one_out(values), LogMeanExp().leave_one_out(values))
    for reduce in (Renyi(1), Blend(1), Grouped(6)):
        torch.testing.assert_close(reduce(values), Mean()(values))
        torch.testing.assert_close(reduce.leave_one_out(values), Mean().leave_one_out(values))
        torch.testing.assert_close(reduce.doubly(values), torch.ones_like(values))
    for near in (1 - 1e-6, 1 + 1e-6):  # no jump at the limit
        torch.testing.assert_close(Renyi(near)(values), Mean()(values), rtol=0, atol=1e-5)
    for power in (1e-2, 1e-4, 1e-6, 1e-9, -1e-6):  # nothing cancels in float32: the reference is a series in float64
        values = -100 + 5 * torch.randn(50, 20)
        exact = values.double()
        mean = exact.mean(0)
        series = mean + power / 2 * (exact - mean).square().mean(0) + power**2 / 6 * (exact - mean).pow(3).mean(0)
        reference = series if abs(power) < 1e-3 else Renyi(1 - power)(exact)
        torch.testing.assert_close(Renyi(1 - power)(values).double(), reference, rtol=0, atol=3e-5)
    impossible = torch.tensor([-math.inf, 0.0], dtype=F64)
    assert Blend(0.0)(impossible).item() == pytest.approx(-math.log(2))
    assert Blend(0.1)(impossible).item() == -math.inf


@pytest.mark.parametrize("reduce", [LogMeanExp(), Renyi(0.5), Renyi(-1.0)])
@pytest.mark.parametrize("last", [-1.0, -math.inf])
def test_signals_stay_finite_beside_an_impossible_sample(reduce, last):
    values = torch.tensor([0.0, -math.inf, last], dtype=F64)
    signals = reduce.leave_one_out(values)
    assert signals.isfinite().all()
    if last > -math.inf:  # the second sample's own value counts, the others' mean stands in its place
        assert signals[1] == reduce(values) - reduce(torch.tensor([0.0, -0.5, last], dtype=F64))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_second_factor_of_the_path_is_that_of_the_second_derivative(name):
    reduce, formula = REDUCTIONS[name]
    values = torch.randn(4, dtype=F64)
    first = torch.func.grad(formula)(values)
    second = torch.autograd.functional.hessian(formula, values).diagonal()
    torch.testing.assert_close(reduce.doubly(values), (first - second) / first)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_signal_of_a_sample_is_baselined_by_the_others_alone(name):
    reduce, formula = REDUCTIONS[name]
    values = torch.randn(4, 3, dtype=F64)
    other = values.clone()
    other[2] += 5.0
    # So its signal moves with the sample exactly as R does.
    moved = reduce.leave_one_out(other)[2] - reduce.leave_one_out(values)[2]
    torch.testing.assert_close(moved, formula(other) - formula(values))


LOGITS = torch.tensor([0.4, -0.9], dtype=F64)
TABLE = torch.tensor([0.3, -1.2, 0.8, 1.5], dtype=F64)


def of_table(z: Tensor, table: Tensor) -> Tensor:
    """Any function of two bits: log p(x, z) of each of the four."""
    index = (2 * z[..., 0] + z[..., 1]).long()
    return table.expand(*index.shape, 4).gather(-1, index.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("name", [name for name in REDUCTIONS if name != "log-mean-exp"])
@pytest.mark.parametrize("gradient", ["score", "rloo", "vimco"])
def test_through_bits_every_gradient_is_the_enumerated_one(monkeypatch, gradient, name):
    """All tuples of draws are put through the estimator, each with its probability: no Monte Carlo is left."""
    reduce, formula = REDUCTIONS[name]
    samples = 4 if name == "two groups" else 3
    draws = bits(2 * samples).reshape(-1, samples, 2).movedim(1, 0)
    count = draws.shape[1]
    logits, table = LOGITS.expand(count, 2).clone().requires_grad_(), TABLE.expand(count, 4).clone().requires_grad_()
    q = td.Independent(td.Bernoulli(logits=logits), 1)
    share = q.log_prob(draws).sum(0).exp().detach()
    with monkeypatch.context() as patch:
        patch.setattr(td.Bernoulli, "sample", lambda law, shape=(): draws)
        value = xhat.bound(lambda z: of_table(z, table), q, reduce, gradient, samples)
    found = [(share[:, None] * slope).sum(0) for slope in torch.autograd.grad(value.sum(), (logits, table))]
    at = LOGITS.clone().requires_grad_(), TABLE.clone().requires_grad_()
    law = td.Independent(td.Bernoulli(logits=at[0]), 1)
    log_q = law.log_prob(draws)
    exact = (log_q.sum(0).exp() * formula(of_table(draws, at[1]) - log_q)).sum()
    torch.testing.assert_close((share * value).sum(), exact)
    for a, b in zip(found, torch.autograd.grad(exact, at), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def log_joint(z: Tensor, slope: Tensor) -> Tensor:
    return -((z - 1) ** 2) / 2 + torch.sin(2 * z) * slope


@pytest.mark.parametrize("name", [name for name in REDUCTIONS if name != "log-mean-exp"])
@pytest.mark.parametrize("gradient", ["pathwise", "dreg", "score", "rloo", "vimco"])
def test_every_gradient_has_the_quadratures_derivative_as_its_mean(gradient, name):
    reduce, formula = REDUCTIONS[name]
    samples, count, known = (4 if name == "two groups" else 2), 20_000, (0.3, 0.8, 0.7)
    # The mean of groups of two draws has the expectation of one such group.
    one = (lambda f: f.exp().mean(0).log()) if name == "two groups" else formula
    nodes, mass = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(60))
    mass = mass / mass.sum()
    at = [torch.tensor(v, dtype=F64, requires_grad=True) for v in known]
    z = at[0] + at[1] * nodes
    w = log_joint(z, at[2]) - td.Normal(*at[:2]).log_prob(z)
    pairs = torch.stack(torch.broadcast_tensors(w[:, None], w))
    exact = (mass[:, None] * mass * one(pairs)).sum()
    rows = [torch.full((count,), v, dtype=F64, requires_grad=True) for v in known]
    value = xhat.bound(lambda z: log_joint(z, rows[2]), td.Normal(*rows[:2]), reduce, gradient, samples)
    within(value, exact.detach())
    for a, b in zip(torch.autograd.grad(value.sum(), rows), torch.autograd.grad(exact, at), strict=True):
        within(a, b)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0])
def test_dreg_is_its_formula_at_the_very_draws(name, weight):
    reduce, formula = REDUCTIONS[name]
    at = [torch.tensor(v, dtype=F64, requires_grad=True) for v in (0.3, 0.8, 0.7)]
    q = td.Normal(*at[:2])
    torch.manual_seed(1)
    found = torch.autograd.grad(
        expectation(LogWeight(lambda z: log_joint(z, at[2]), q, weight), q, "dreg", 4, reduce), at, retain_graph=True
    )
    torch.manual_seed(1)
    z = q.rsample((4,))
    point = z.detach().requires_grad_()
    fixed = td.Normal(at[0].detach(), at[1].detach())
    w = log_joint(point, at[2]) - weight * fixed.log_prob(point)
    c, second = torch.func.grad(formula)(w.detach()), torch.autograd.functional.hessian(formula, w.detach()).diagonal()
    (slope,) = torch.autograd.grad(w.sum(), point, retain_graph=True)
    expected = [
        *torch.autograd.grad(((c - weight * second) * slope * z).sum(), at[:2]),
        torch.autograd.grad((c * w).sum(), at[2])[0],
    ]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["Rényi 0.5", "blend", "two groups"])
def test_dreg_of_a_stack_is_that_of_each(name):
    """As many models at once are trained: vectorised."""
    reduce, _ = REDUCTIONS[name]
    places, noise = torch.tensor([0.3, -0.5, 1.2], dtype=F64), torch.randn(4, dtype=F64)

    class Fixed(td.Normal):
        def rsample(self, sample_shape=()):
            return self.loc + self.scale * noise

    def value(loc: Tensor) -> Tensor:
        return xhat.bound(lambda z: log_joint(z, loc.new_tensor(0.7)), Fixed(loc, 0.8, validate_args=False), reduce, "dreg", 4)

    def slope(loc: Tensor) -> Tensor:
        return torch.func.grad(value)(loc)

    torch.testing.assert_close(torch.vmap(slope)(places), torch.stack([slope(place) for place in places]))


# Objectives in models


def linear_normal(
    objective: Objective | None = None, gradient: str = "pathwise", latent: int = 2, prior: nn.Module | None = None
) -> VAE:
    """x | z ~ N(Wz + b, 0.7²): log p(x) is a Normal's; the posterior is far from the true one."""
    torch.manual_seed(3)
    prior = priors.StandardNormal(latent) if prior is None else prior
    posterior, likelihood = conditionals.Normal(MLP(3), latent), conditionals.Normal(MLP(latent), 3, scale=0.7)
    model = VAE(prior, posterior, likelihood, objective, gradients.GRADIENTS[gradient]()).double()
    torch.manual_seed(0)
    return model


def evidence(model: VAE, x: Tensor) -> Tensor:
    w, b = (p.detach() for p in model.likelihood.head.parameters())
    return td.MultivariateNormal(b, w @ w.T + 0.49 * torch.eye(3, dtype=F64)).log_prob(x)


def log_weights(model: VAE, x: Tensor, z: Tensor) -> Tensor:
    return model.likelihood(z).log_prob(x) + model.prior().log_prob(z) - model.posterior(x).log_prob(z)


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "miwae": lambda: MIWAE(groups=2, samples=3),
    "piwae": lambda: PIWAE(groups=2, samples=3),
    "ciwae": lambda: CIWAE(share=0.3, samples=6),
    "renyi": lambda: objectives.Renyi(alpha=0.5, samples=6),
}
OF_SIX: dict[str, Formula] = {
    "miwae": lambda w: torch.stack([w[m::2].exp().mean(0).log() for m in range(2)]).mean(0),
    "piwae": lambda w: torch.stack([w[m::2].exp().mean(0).log() for m in range(2)]).mean(0),
    "ciwae": lambda w: 0.3 * w.mean(0) + 0.7 * w.exp().mean(0).log(),
    "renyi": lambda w: 2 * (w / 2).exp().mean(0).log(),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("gradient", ["pathwise", "dreg", "vimco"])
def test_the_loss_and_the_true_bounds_beside_it_are_those_of_the_very_draws(name, gradient):
    model = linear_normal(OBJECTIVES[name](), gradient)
    assert model.objective.samples == 6
    torch.manual_seed(1)
    terms = model(X)
    torch.manual_seed(1)
    z = model.posterior(X).sample((6,))
    w = log_weights(model, X, z).detach()
    log_px = model.likelihood(z).log_prob(X).mean(0).detach()
    own = "miwae" if name == "piwae" else name
    expected = {own: OF_SIX[name](w), "iwae": w.exp().mean(0).log(), "elbo": w.mean(0), "log_px_given_z": log_px}
    expected["kl"] = log_px - w.mean(0)
    assert terms.measures.keys() == expected.keys()
    assert not any(value.requires_grad for value in terms.measures.values())
    torch.testing.assert_close(terms.loss.detach(), -expected[own])
    for measure, value in expected.items():
        torch.testing.assert_close(terms.measures[measure], value)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("cut", [(1, 4), (2, 2, 1)])
def test_an_example_has_the_same_loss_in_any_batch(monkeypatch, name, cut):
    model = linear_normal(OBJECTIVES[name]())
    x, noise = torch.randn(5, 3, dtype=F64), torch.randn(6, 5, 2, dtype=F64)
    start = 0

    def rsample(law: td.Normal, shape=()):
        assert tuple(shape) == (6,)
        return law.loc + law.scale * noise[:, start : start + len(law.loc)]

    monkeypatch.setattr(td.Normal, "rsample", rsample)
    parameters = list(model.parameters())
    whole, pieces = model(x), []
    slopes = torch.autograd.grad(whole.loss.sum(), parameters)
    summed = [torch.zeros_like(p) for p in parameters]
    for count in cut:
        pieces.append(model(x[start : start + count]))
        found = torch.autograd.grad(pieces[-1].loss.sum(), parameters)
        summed = [a + b for a, b in zip(summed, found, strict=True)]
        start += count
    torch.testing.assert_close(torch.cat([piece.loss for piece in pieces]), whole.loss, rtol=1e-12, atol=1e-12)
    for measure, value in whole.measures.items():
        torch.testing.assert_close(torch.cat([piece.measures[measure] for piece in pieces]), value, rtol=1e-12, atol=1e-12)
    for a, b in zip(summed, slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


class Learned(nn.Module):
    """A Normal prior with parameters."""

    event = (2,)

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.tensor([0.4, -0.3])), nn.Parameter(torch.tensor([0.2, -0.1]))

    def forward(self) -> td.Distribution:
        return td.Independent(td.Normal(self.loc, self.log_scale.exp()), 1)


def means(model: VAE, objective: Objective, count: int) -> tuple[Tensor, Tensor]:
    """The bound's mean for each of the two examples, and its standard error."""
    with torch.no_grad():
        many = X.repeat(count, 1)
        bound = -objective(model.pose(Batch(many))).loss.reshape(count, 2)
    return bound.mean(0), bound.std(0) / math.sqrt(count)


def test_the_bounds_are_in_order_and_below_the_exact_evidence():
    model = linear_normal()
    exact = evidence(model, X)
    row = [ELBO(kl="sampled"), objectives.Renyi(0.5, 10), IWAE(10), IWAE(100)]
    found = [means(model, objective, 4000) for objective in row]
    for (low, a), (high, b) in itertools.pairwise(found):
        assert (high - low > 4 * (a**2 + b**2).sqrt()).all()
    assert (found[-1][0] < exact + 4 * found[-1][1]).all()
    between, error = means(model, CIWAE(0.25, 10), 4000)
    mixed = 0.25 * found[0][0] + 0.75 * found[2][0]
    assert (between - mixed).abs().le(5 * (error**2 + found[0][1] ** 2 + found[2][1] ** 2).sqrt()).all()
    above_one, error = means(model, objectives.Renyi(2.0, 10), 4000)
    assert (above_one < found[0][0] + 4 * (error**2 + found[0][1] ** 2).sqrt()).all()


def test_renyi_of_a_negative_order_is_no_bound_and_says_less_with_few_draws():
    model = linear_normal()
    exact = evidence(model, X)
    many, error = means(model, objectives.Renyi(-2.0, 200), 1000)
    assert (many > exact + 5 * error).any()
    one, error = means(model, objectives.Renyi(-2.0, 1), 4000)
    assert (one < exact - 5 * error).all()


@pytest.mark.parametrize("gradient", ["pathwise", "dreg", "rloo"])
def test_piwae_trains_the_decoder_by_iwae_and_the_encoder_by_miwae_at_the_same_draws(gradient):
    found = {}
    for objective in (PIWAE(3, 2), MIWAE(3, 2), IWAE(6)):
        model = linear_normal(objective, gradient, prior=Learned())
        encoder = list(model.posterior.parameters())
        rest = [p for p in model.parameters() if all(p is not other for other in encoder)]
        torch.manual_seed(1)
        loss = model(X).loss
        slopes = torch.autograd.grad(loss.sum(), [*encoder, *rest])
        found[objective.name] = loss, slopes[: len(encoder)], slopes[len(encoder) :]
    torch.testing.assert_close(found["piwae"][0], found["miwae"][0], rtol=0, atol=0)
    for a, b in zip(found["piwae"][1], found["miwae"][1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    for a, b in zip(found["piwae"][2], found["iwae"][2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    differs = [(a - b).abs().max() for a, b in zip(found["miwae"][2], found["iwae"][2], strict=True)]
    assert max(differs) > 1e-3


class OfEncoder(nn.Module):
    """A prior that is the posterior at a fixed input: the encoder serves two ends."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.event, self._encoder = (2,), (encoder,)

    def forward(self) -> td.Distribution:
        law = self._encoder[0](next(self._encoder[0].parameters()).new_ones(1, 3))
        return td.Independent(td.Normal(law.base_dist.loc[0], law.base_dist.scale[0]), 1)


def test_what_serves_posterior_and_prior_gets_from_piwae_the_sum_of_its_parts():
    model = linear_normal(PIWAE(3, 2))
    shared = VAE(OfEncoder(model.posterior), model.posterior, model.likelihood, PIWAE(3, 2))
    apart = {}
    for objective in (MIWAE(3, 2), IWAE(6)):
        twin = copy.deepcopy(model.posterior)
        split = VAE(OfEncoder(twin), model.posterior, model.likelihood, objective)
        torch.manual_seed(1)
        loss = split(X).loss.sum()
        apart[objective.name] = [
            torch.autograd.grad(loss, list(part.parameters()), retain_graph=True) for part in (split.posterior, twin)
        ]
    torch.manual_seed(1)
    found = torch.autograd.grad(shared(X).loss.sum(), list(shared.posterior.parameters()))
    for a, own, other in zip(found, apart["miwae"][0], apart["iwae"][1], strict=True):
        torch.testing.assert_close(a, own + other)


# Work that is not done twice


@pytest.mark.parametrize(("gradient", "times"), [("pathwise", 1), ("dreg", 1), ("stl", 1), ("rloo", 2)])
def test_the_measures_take_log_q_from_the_estimators_own_evaluation(monkeypatch, gradient, times):
    model = linear_normal(ELBO(kl="sampled", samples=4) if gradient == "stl" else IWAE(4), gradient)
    laws, calls = [], []
    forward, log_prob = type(model.posterior).forward, td.Independent.log_prob

    def seen(self, context):
        law = forward(self, context)
        if self is model.posterior:
            laws.append(law)
        return law

    def counted(law, value):
        calls.extend([1] if any(law is other for other in laws) else [])
        return log_prob(law, value)

    monkeypatch.setattr(type(model.posterior), "forward", seen)
    monkeypatch.setattr(td.Independent, "log_prob", counted)
    model(X).loss.sum().backward()
    assert len(calls) == times


@pytest.mark.parametrize(("name", "rows"), [("miwae", [12]), ("piwae", [12, 12]), ("ciwae", [12]), ("renyi", [12])])
def test_the_decoder_runs_on_exactly_all_the_draws(name, rows):
    model, seen = linear_normal(OBJECTIVES[name]()), []
    model.likelihood.network.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    model(X).loss.sum().backward()
    assert seen == rows
    seen.clear()
    with torch.no_grad():  # where nothing is trained, no second pass
        model(X)
    assert seen == [12]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
@pytest.mark.parametrize(("name", "gradient"), [("miwae", "dreg"), ("piwae", "pathwise"), ("ciwae", "dreg"), ("renyi", "rloo")])
def test_it_traces_as_one_program(name, gradient):
    model = linear_normal(OBJECTIVES[name](), gradient)
    torch._dynamo.reset()
    found = []
    with unvalidated():
        for run in (model, torch.compile(model, fullgraph=True, backend="eager")):
            torch.manual_seed(1)
            terms = run(X)
            slopes = torch.autograd.grad(terms.loss.sum(), list(model.parameters()))
            found.append((terms.loss, *terms.measures.values(), *slopes))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_is_the_same_after_a_file(tmp_path, name):
    model = linear_normal(OBJECTIVES[name](), "dreg").float()
    loaded = xhat.load(xhat.save(model, tmp_path / "m.safetensors"))
    assert type(loaded.objective) is type(model.objective)
    found = []
    for each in (model, loaded):
        torch.manual_seed(1)
        loss = each.loss(X)
        found.append((loss, *torch.autograd.grad(loss.sum(), list(each.parameters()))))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


# What other libraries got wrong


@pytest.mark.parametrize("objective", [IWAE(7), MIWAE(3, 7), CIWAE(0.5, 7), objectives.Renyi(0.5, 7), objectives.Renyi(-1, 7)])
def test_not_a_loss_that_is_log_k_too_good(objective):
    """Where q is the true posterior every weight is p(x): the bound is log p(x), not log p(x) + log K."""
    model = linear_normal()
    w, b = model.likelihood.head.parameters()
    with torch.no_grad():
        precision = torch.eye(2, dtype=F64) + w.T @ w / 0.49
        turned = torch.linalg.eigh(precision).eigenvectors  # an axis-aligned posterior is exact for a turned W
        w.copy_(w @ turned)
    variance = 1 / (1 + w.square().sum(0) / 0.49)

    class Exact(nn.Module):
        event = (2,)

        def forward(self, x: Tensor) -> td.Distribution:
            return td.Independent(td.Normal(variance * ((x - b) @ w) / 0.49, variance.sqrt()), 1)

    exact = VAE(priors.StandardNormal(2), Exact(), model.likelihood, objective).double()
    torch.testing.assert_close(-exact(X).loss, evidence(model, X))


def test_not_the_mean_and_the_log_mean_exp_over_each_others_axes():
    """MIWAE's expectation is IWAE's with K draws, not with M; with M = K a swap would not be seen."""
    model, count = linear_normal(), 8000
    for groups, samples in ((2, 12), (12, 2)):
        mean, error = means(model, MIWAE(groups, samples), count)
        right, a = means(model, IWAE(samples), count)
        wrong, b = means(model, IWAE(groups), count)
        assert ((mean - right).abs() < 4.5 * (error**2 + a**2).sqrt()).all()
        assert ((mean - wrong).abs() > 8 * (error**2 + b**2).sqrt()).all()


@pytest.mark.parametrize("samples", [1, 3, 7])
def test_not_a_log_likelihood_of_k_rounded_up_to_the_batch_or_of_the_wrong_sign(samples):
    model, decoded = linear_normal(), []
    model.likelihood.register_forward_pre_hook(lambda _, args: decoded.append(args[0][..., 0].numel()))
    for batch in (2, 100):
        decoded.clear()
        found = xhat.log_likelihood(model, X.repeat(4, 1), samples=samples, batch=batch)
        assert sum(decoded) == samples * 8
        assert found.log_px.shape == (8,)
    exact = evidence(model, X)
    many = xhat.log_likelihood(model, X, samples=20_000)
    assert ((many.log_px - exact).abs() < 5 * many.stderr).all()
    assert (exact < -1).all()  # so that a sign would be seen


# What is refused


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="groups must be at least 1, was 0"):
        MIWAE(groups=0)
    with pytest.raises(ConfigError, match=r"samples must be a whole number, was 2\.5"):
        PIWAE(samples=2.5)  # type: ignore[arg-type]
    for bad in (-0.1, 1.1, math.nan, "half"):
        with pytest.raises(ConfigError, match=r"share, the ELBO's, must be in \[0, 1\], was .*use 0 for IWAE"):
            CIWAE(share=bad)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"beta, the mean's share, must be in \[0, 1\]"):
            Blend(bad)  # type: ignore[arg-type]
    for bad in (math.inf, math.nan, 1e7, "1"):
        with pytest.raises(
            ConfigError, match=r"alpha must be a number from -1000000 to 1000000, was .*use 0 for IWAE, 1 for the ELBO"
        ):
            objectives.Renyi(alpha=bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="samples must be a multiple of the number of groups, 2, was 5"):
        xhat.bound(lambda z: -z, td.Normal(torch.zeros(2), 1.0), Grouped(2), samples=5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_gradient_of_means_alone_is_refused_when_the_model_is_put_together(name):
    with pytest.raises(ConfigError, match=r"'stl' serves no multi-sample bound; gradients that do: .*dreg"):
        linear_normal(OBJECTIVES[name](), "stl")
    with pytest.raises(ConfigError, match=r"'vimco' is one for multi-sample bounds"):
        linear_normal(ELBO(kl="sampled", samples=4), "vimco")
