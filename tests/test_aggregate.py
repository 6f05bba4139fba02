"""The aggregate posterior: total correlation, and the discrepancy from the prior.

Its estimates are enumerated over all batches of a tiny data set; the terms themselves come from quadrature or a closed form.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch import distributions as td

import xhat
from catalogue import EVENT, F64, LATENT
from test_objective_terms import Still, X, model_of
from xhat import VAE, conditionals, priors
from xhat.data import Examples
from xhat.distributions import Levels
from xhat.errors import ConfigError
from xhat.networks import MLP
from xhat.objectives import ELBO, Info, TotalCorrelation, aggregate, info
from xhat.objectives.aggregate import shares
from xhat.objectives.info import similarity, squared_mmd


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def within(estimates: Tensor, exact: Tensor | float, errors: float = 4.0) -> None:
    stderr = estimates.detach().std(0) / math.sqrt(len(estimates))
    away = (estimates.detach().mean(0) - exact).abs()
    assert (away <= errors * stderr).all(), f"off by {(away / stderr).max():.1f} standard errors"


# Total correlation: the aggregate posterior


def posteriors(count: int, size: int) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(5)
    loc = torch.randn(count, size, generator=noise, dtype=F64)
    return loc, 0.3 + torch.rand(count, size, generator=noise, dtype=F64)


def law(loc: Tensor, scale: Tensor, chosen: tuple[int, ...] | slice = slice(None)) -> td.Distribution:
    index = list(chosen) if isinstance(chosen, tuple) else chosen
    return td.Independent(td.Normal(loc[index], scale[index], validate_args=False), 1, validate_args=False)


def batches(count: int, size: int, own: int) -> list[tuple[int, ...]]:
    """All batches that hold an example, which comes first."""
    others = [k for k in range(count) if k != own]
    return [(own, *rest) for rest in itertools.combinations(others, size - 1)]


def estimated(estimate: str, size: int, own: int, dimensions: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean over all batches of the estimates at draws for one example, (S,); the exact q(z); and each q(z | x_k), (N, S)."""
    loc, scale = posteriors(5, dimensions)
    z = law(loc, scale).sample((3,))  # (S, N, d)
    count = torch.tensor(5)
    found, products = [], []
    for chosen in batches(5, size, own):
        weights = shares(estimate, count, size, z)
        joint, product = aggregate.aggregate(law(loc, scale, chosen), z[:, list(chosen)], weights)
        found.append(joint[:, 0].exp())
        products.append(product[:, 0].exp())
    each = law(loc, scale).log_prob(z[:, own].unsqueeze(1)).exp().T
    return torch.stack(found).mean(0), torch.stack(products).mean(0), each.mean(0), each


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("own", range(5))
def test_the_stratified_estimate_of_the_aggregate_posterior_is_unbiased_for_every_example(size, own):
    joint, _, exact, _ = estimated("stratified", size, own)
    torch.testing.assert_close(joint, exact, rtol=1e-12, atol=0)
    joint, product, exact, _ = estimated("stratified", size, own, dimensions=1)
    torch.testing.assert_close(product, exact, rtol=1e-12, atol=0)  # and of each dimension by itself


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_weighted_estimate_has_the_expectation_that_its_formula_says(size):
    own, count = 2, 5
    joint, _, exact, each = estimated("weighted", size, own)
    others = each.sum(0) - each[own]
    expected = (each[own] + (size - 1) / (count - 1) * others) / (count * size)
    torch.testing.assert_close(joint, expected, rtol=1e-12, atol=0)
    assert (joint < exact / size * (1 + 1e-12)).all()
    if size == count:
        torch.testing.assert_close(joint, exact / count)


def published(size: int, count: int, own: str) -> Tensor:
    """The weights of the paper, (B, B), with an example's own on the diagonal; or, as its code fills them, down a column."""
    table = torch.full((size, size), 1 / (size - 1), dtype=F64)
    last = (count - size + 1) / (count * (size - 1))
    for row in range(size):
        if own == "diagonal":
            table[row, row], table[row, (row + 1) % size] = 1 / count, last
        else:
            table[row, 0], table[row, 1] = 1 / count, last
    return table


def test_the_own_posterior_is_weighed_on_the_diagonal_and_not_down_a_column():
    """The estimates of every row, over all batches in all orders: the diagonal is unbiased, and our weights are its average."""
    loc, scale = posteriors(5, 2)
    z = law(loc, scale).sample()
    density = law(loc, scale).log_prob(z.unsqueeze(1)).exp()  # (draw of i, posterior k)
    exact = density.mean(1)
    sums = {name: torch.zeros(5, dtype=F64) for name in ("diagonal", "column", "ours")}
    seen = torch.zeros(5, dtype=F64)
    for order in itertools.permutations(range(5), 3):
        part = density[list(order)][:, list(order)]
        joint = aggregate.aggregate(law(loc, scale, order), z[list(order)][None], shares("stratified", torch.tensor(5), 3, z))[0]
        found = {
            "diagonal": (published(3, 5, "diagonal") * part).sum(1),
            "column": (published(3, 5, "column") * part).sum(1),
            "ours": joint[0].exp(),
        }
        for name, values in found.items():
            sums[name] = sums[name].index_add(0, torch.tensor(order), values)
        seen = seen.index_add(0, torch.tensor(order), torch.ones(3, dtype=F64))
    torch.testing.assert_close(sums["diagonal"] / seen, exact)
    torch.testing.assert_close(sums["ours"] / seen, exact)
    assert ((sums["column"] / seen / exact - 1).abs() > 0.05).all()
    averaged = torch.zeros(3, 3, dtype=F64)
    for order in itertools.permutations(range(3)):
        index = torch.tensor(order)
        averaged += published(3, 5, "diagonal")[index][:, index] / 6
    own, other = shares("stratified", torch.tensor(5), 3, z)
    torch.testing.assert_close(averaged, torch.where(torch.eye(3, dtype=torch.bool), own, other).exp())


@pytest.mark.parametrize("estimate", ["stratified", "weighted"])
def test_with_the_whole_data_set_the_parts_are_those_of_its_aggregate_posterior(estimate):
    """The stratified one to the last digit; the weighted one has log q(z) too small by log N, as every q(z_j)."""
    model = model_of(TotalCorrelation(1.0, 1.0, 1.0, estimate, size=len(X), samples=4), Still())
    measures = model(X).measures
    q = model.posterior(X)
    z = model.gradient.draw(q, 4)
    each = q.base_dist.log_prob(z.unsqueeze(2))  # (S, i, k, dimension)
    joint, product = each.sum(-1).exp().mean(2).log(), each.exp().mean(2).log().sum(-1)
    off = 0.0 if estimate == "stratified" else math.log(len(X))
    expected = {
        "mutual_information": q.log_prob(z) - joint + off,
        "total_correlation": joint - product + (2 - 1) * off,
        "dimension_wise_kl": product - model.prior().log_prob(z) - 2 * off,
    }
    for name, values in expected.items():
        torch.testing.assert_close(measures[name], values.mean(0).detach())


@pytest.mark.parametrize("estimate", ["stratified", "weighted"])
@pytest.mark.parametrize("size", [6, 1000])
def test_with_equal_weights_the_loss_is_the_negative_sampled_bound_at_the_same_draws(estimate, size):
    model = model_of(TotalCorrelation(1.0, 1.0, 1.0, estimate, size=size, samples=3), Still())
    loss = model(X).loss
    model.objective = ELBO(kl="sampled", samples=3)
    torch.testing.assert_close(loss, model(X).loss)


def test_the_weights_weigh_the_parts_that_are_measured():
    model = model_of(TotalCorrelation(0.5, 6.0, 1.5, size=20, samples=2), Still())
    loss, m = model(X)
    expected = 0.5 * m["mutual_information"] + 6.0 * m["total_correlation"] + 1.5 * m["dimension_wise_kl"] - m["log_px_given_z"]
    torch.testing.assert_close(loss.detach(), expected)


def test_the_parts_are_the_integrals_that_they_are_named_for():
    model = model_of(TotalCorrelation(size=len(X), samples=60))
    with torch.no_grad():
        q = model.posterior(X)
        axis = torch.linspace(-9.0, 9.0, 451, dtype=F64)
        cell = (axis[1] - axis[0]).square()
        points = torch.cartesian_prod(axis, axis)
        each = q.log_prob(points.unsqueeze(1))  # (points, N)
        joint = each.exp().mean(1)
        sides = q.base_dist.log_prob(axis.reshape(-1, 1, 1)).exp().mean(1)  # (axis, 2)
        product = (sides[:, 0, None] * sides[:, 1]).reshape(-1)
        assert (joint.sum() * cell).item() == pytest.approx(1.0, abs=1e-9)
        truth = {
            "mutual_information": (each.exp() * (each - joint.log()[:, None])).mean(1),
            "total_correlation": joint * (joint / product).log(),
            "dimension_wise_kl": joint * (product.log() - model.prior().log_prob(points)),
        }
        found = [model(X).measures for _ in range(150)]
    for name, values in truth.items():
        estimates = torch.stack([measures[name].mean() for measures in found])
        exact = (values.sum() * cell).item()
        within(estimates, exact)
        assert exact > 10 * estimates.std() / math.sqrt(150)  # so that a wrong sign or a term left out would show


DISCRETE = {
    "bits": lambda: td.Independent(td.Bernoulli(logits=torch.randn(4, 3, dtype=F64)), 1),
    "levels": lambda: td.Independent(Levels(torch.randn(4, 2, 3, dtype=F64)), 1),
    "one-hot": lambda: td.OneHotCategorical(logits=torch.randn(4, 3, dtype=F64)),
    "one-hots": lambda: td.Independent(td.OneHotCategorical(logits=torch.randn(4, 2, 3, dtype=F64)), 1),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_posteriors_have_an_aggregate_too(name):
    q = DISCRETE[name]()
    z = q.sample((5,))
    joint, product = aggregate.aggregate(q, z, shares("stratified", torch.tensor(4), 4, z))
    base = q.base_dist if isinstance(q, td.Independent) else q
    for s, i in itertools.product(range(5), range(4)):
        each = base.log_prob(z[s, i].expand(4, *z.shape[2:])).reshape(4, -1)  # (k, variables)
        assert joint[s, i].item() == pytest.approx(each.sum(1).exp().mean().log().item())
        assert product[s, i].item() == pytest.approx(each.exp().mean(0).log().sum().item())


@pytest.mark.parametrize("gradient", ["straight-through", "concrete", "st-gumbel", "gumbel-rao", "reinmax"])
def test_discrete_latents_are_trained_by_estimators_that_follow_the_draw(gradient):
    for objective in (TotalCorrelation(size=30), Info(0.5, 3.0, "imq")):
        model = xhat.build("categorical-vae", (3,), latent=2, categories=3, hidden=[4], gradient=gradient, learn_prior=False)
        model.objective = objective
        loss = model.double().loss(X)
        assert loss.shape == (6,)
        for slope in torch.autograd.grad(loss.mean(), list(model.parameters())):
            assert slope.isfinite().all()
            assert slope.abs().max() > 0


def test_posteriors_with_dependent_dimensions_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"those of the posterior MultivariateNormal are not independent: .*Normal"):
        VAE(
            priors.StandardNormal(2),
            conditionals.MultivariateNormal(MLP(3), 2),
            conditionals.Bernoulli(MLP(2), EVENT),
            TotalCorrelation(),
        )


def test_the_number_of_examples_is_learnt_from_the_training_data_and_saved(tmp_path):
    model = model_of(TotalCorrelation())
    assert not TotalCorrelation(size=7).prepare(Examples(X))
    xhat.fit(model, X, X[:1], epochs=1, batch_size=4)
    assert model.objective.size == len(X)
    again = xhat.load(xhat.save(model, tmp_path / "m.safetensors"))
    assert again.objective.size == len(X)
    assert again.loss(X).isfinite().all()
    xhat.fit(again, X[:5], epochs=1)
    assert again.objective.size == 5
    given = TotalCorrelation(size=7)
    given.prepare(Examples(X))
    assert given.size == 7


def test_a_batch_of_one_and_one_larger_than_the_data_set_are_well_defined():
    model = model_of(TotalCorrelation(size=4), Still())
    alone = model(X[:1]).measures
    assert alone["mutual_information"].item() == pytest.approx(0.0, abs=1e-12)
    assert alone["total_correlation"].item() == pytest.approx(0.0, abs=1e-12)
    # six examples of "four" are the whole data set
    larger = model(X).measures["mutual_information"]
    model.objective = TotalCorrelation(size=6)
    torch.testing.assert_close(larger, model(X).measures["mutual_information"])
    model.objective = Info(0.5, 3.0)
    terms = model(X[:1])
    assert terms.measures["mmd"].item() == 0.0
    torch.testing.assert_close(terms.loss.detach(), 0.5 * terms.measures["kl"] - terms.measures["log_px_given_z"])


def test_pairs_in_pieces_are_the_pairs_at_once(monkeypatch):
    for objective in (TotalCorrelation(size=20, samples=3), Info(0.5, 3.0, "imq", samples=3)):
        model = model_of(objective, Still())
        torch.manual_seed(1)
        whole = model(X).loss
        with monkeypatch.context() as patch:
            patch.setattr(aggregate, "ELEMENTS", 50)
            patch.setattr(info, "ELEMENTS", 80)
            torch.manual_seed(1)
            torch.testing.assert_close(model(X).loss, whole)


# The discrepancy between the aggregate posterior and the prior


def kernel_mean(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], bandwidth: float) -> Tensor:
    """E exp(−|x − y|²/h) of two axis-aligned Normals."""
    wide = bandwidth + 2 * (a[1] ** 2 + b[1] ** 2)
    return ((bandwidth / wide).sqrt() * torch.exp(-((a[0] - b[0]) ** 2) / wide)).prod()


@pytest.mark.parametrize("apart", [False, True])
def test_the_discrepancy_of_two_normals_is_the_closed_form_and_nothing_between_equals(apart):
    p = (torch.tensor([0.2, -0.5], dtype=F64), torch.tensor([1.0, 0.7], dtype=F64))
    q = (torch.tensor([0.6, 0.3], dtype=F64), torch.tensor([0.5, 1.2], dtype=F64)) if apart else p
    h, batch, repeats = 2.5, 4, 6000
    z, y = (td.Normal(*law).sample((repeats, batch)) for law in (q, p))
    found = squared_mmd(z, y, "rbf", h)
    assert found.shape == (repeats, batch)
    truth = kernel_mean(q, q, h) + kernel_mean(p, p, h) - 2 * kernel_mean(p, q, h)
    assert truth.item() == pytest.approx(0.0, abs=1e-12) or apart
    within(found.mean(1), truth)
    # with every draw's pair with itself it is a V-statistic, too large by the spread over the batch
    spread = (2 - kernel_mean(q, q, h) - kernel_mean(p, p, h)) / batch
    assert spread > 40 * found.mean(1).std() / math.sqrt(repeats)


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_the_statistic_is_the_sum_over_pairs_of_different_draws(kernel):
    z, y = torch.randn(1, 4, 3, dtype=F64), torch.rand(1, 4, 3, dtype=F64)

    def k(a: Tensor, b: Tensor) -> float:
        return similarity((a - b).square().sum(), kernel, 6.0).item()

    pairs = list(itertools.permutations(range(4), 2))
    same = sum(k(z[0, i], z[0, j]) + k(y[0, i], y[0, j]) for i, j in pairs) / 12
    cross = sum(k(z[0, i], y[0, j]) for i in range(4) for j in range(4)) / 16
    assert squared_mmd(z, y, kernel, 6.0).mean().item() == pytest.approx(same - 2 * cross)
    within(squared_mmd(torch.randn(4000, 3, 2), torch.randn(4000, 3, 2), kernel, 4.0).mean(1), 0.0)


def test_the_kernels_are_the_papers():
    squares = torch.tensor([0.0, 1.0, 7.3], dtype=F64)
    torch.testing.assert_close(similarity(squares, "rbf", 9.0), torch.exp(-squares / 9.0))
    expected = sum(s * 6.0 / (s * 6.0 + squares) for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0))
    torch.testing.assert_close(similarity(squares, "imq", 6.0), expected)
    # of d latent numbers: exp(−mean((x − y)²)/d), as its authors' code has it, and C = 2 d σ²
    model = model_of(Info(), Still())
    for kernel, own in (("rbf", 4.0), ("imq", 4.0)):
        wide = Info(kernel=kernel)
        assert torch.equal(
            wide._discrepancy(X[None], X.flip(0)[None]),
            squared_mmd(X[None], X.flip(0)[None], kernel, (9.0, 6.0)[kernel == "imq"]),
        )
        model.objective = Info(kernel=kernel)
        torch.manual_seed(1)
        default = model(X).measures["mmd"]
        model.objective = Info(kernel=kernel, bandwidth=own)
        torch.manual_seed(1)
        assert torch.equal(model(X).measures["mmd"], default)


@pytest.mark.parametrize(("alpha", "lambda_"), [(0.0, 1.0), (0.0, 1000.0), (0.4, 3.0), (1.0, 10.0), (-1.0, 2.0)])
def test_the_loss_is_the_published_formula(alpha, lambda_):
    model = model_of(Info(alpha, lambda_, samples=2), Still())
    loss, m = model(X)
    expected = (1 - alpha) * m["kl"] + (alpha + lambda_ - 1) * m["mmd"] - m["log_px_given_z"]
    torch.testing.assert_close(loss.detach(), expected)
    if (alpha, lambda_) == (0.0, 1.0):
        torch.testing.assert_close(loss.detach(), -m["elbo"])


def test_a_learned_prior_gets_its_derivative_through_its_draws_or_is_refused():
    model = xhat.build("categorical-vae", (3,), latent=2, categories=3, hidden=[4], gradient="reinmax", learn_prior=True)
    model.objective = Info()
    with pytest.raises(ConfigError, match=r"needs a derivative through the draws of a learned prior, .*learn=False"):
        model.double().loss(X)
    with torch.no_grad():
        assert model.loss(X).isfinite().all()

    class Wide(torch.nn.Module):
        event = LATENT

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(2))

        def forward(self):
            return td.Independent(td.Normal(torch.zeros_like(self.scale), self.scale), 1)

    learned = VAE(Wide(), conditionals.Normal(MLP(3), LATENT), conditionals.Bernoulli(MLP(2), EVENT), Info(1.0, 5.0)).double()
    assert torch.autograd.grad(learned.loss(X).mean(), learned.prior.scale)[0].abs().min() > 0
