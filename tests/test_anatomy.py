"""The anatomy of the bound: its parts against quadrature and enumeration, and what holds of them draw by draw."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

import xhat.evaluation.anatomy
from catalogue import CONDITIONALS, EVENT, F64, LATENT, RANDOM, RECIPES, bits, examples, from_recipe, vae
from xhat import VAE, conditionals, gradients, objectives, priors
from xhat.distributions import kl_per_dimension
from xhat.errors import ConfigError, DataError
from xhat.evaluation.anatomy import anatomy, near_ceiling
from xhat.models.base import Model
from xhat.networks import MLP

REPEATS = 40


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Correlated(nn.Module):
    """A prior whose dimensions depend on each other."""

    event = (2,)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor([[1.0, 0.0], [0.8, 0.6]]))

    def forward(self) -> td.Distribution:
        return td.MultivariateNormal(torch.zeros_like(self.factor[0]), scale_tril=self.factor)


def two_layers() -> VAE:
    """Two layers of one bit each."""
    bit = conditionals.Bernoulli
    return VAE(
        priors.Chain(priors.Bernoulli(1, probs=0.3), bit(MLP(1, []), 1)),
        conditionals.Chain(bit(MLP(EVENT, []), 1), bit(MLP(1, []), 1)),
        bit(MLP(2, []), EVENT),
        gradient=gradients.LeaveOneOut(),
        objective=objectives.ELBO(samples=2),
    )


def correlated() -> VAE:
    return VAE(Correlated(), CONDITIONALS["normal"](MLP(EVENT, []), LATENT), CONDITIONALS["bernoulli"](MLP(LATENT, []), EVENT))


def far(model: Model, factor: float = 3.0) -> Model:
    """The same with an encoder that says more about x."""
    with torch.no_grad():
        for name, weights in model.posterior.named_parameters():
            if name.endswith("weight"):
                weights.mul_(factor)
    return model.double()


def plane() -> tuple[Tensor, float]:
    """Points of a grid and the area of a cell; the laws here are smooth, and far below 1e-12 at its edge."""
    line = torch.linspace(-12.0, 12.0, 601, dtype=F64)
    return torch.cartesian_prod(line, line), float(line[1] - line[0]) ** 2


CASES = {
    "normal": (lambda: vae("normal", "bernoulli"), plane),
    "full covariance": (lambda: vae("multivariate-normal", "bernoulli"), plane),
    "dependent prior": (correlated, plane),
    "bits": (lambda: vae("bernoulli", "bernoulli"), lambda: (bits(2), 1.0)),
    "two layers": (two_layers, lambda: (bits(2), 1.0)),
}


def exact(model: Model, x: Tensor, points: Tensor, cell: float) -> dict[str, float]:
    """Each part as an integral, or a sum, over all z."""
    with torch.no_grad():
        q, p = model.posterior(x), model.prior()
        each = q.log_prob(points.unsqueeze(1).expand(-1, len(x), -1)).exp() * cell  # (points, N): masses
        prior = p.log_prob(points).exp() * cell
        reconstruction = (each * model.likelihood(points.unsqueeze(1).expand(-1, len(x), -1)).log_prob(x)).sum() / len(x)
    torch.testing.assert_close(each.sum(0), torch.ones_like(each[0]))
    whole = each.mean(1)

    def kl(a: Tensor, b: Tensor) -> float:
        return float(torch.where(a > 0, a * (a.clamp(min=1e-300) / b.clamp(min=1e-300)).log(), 0.0).sum())

    values = [points[:, j].unique(return_inverse=True) for j in range(2)]
    lines = [[mass.new_zeros(len(v)).index_add(0, place, mass) for v, place in values] for mass in (whole, prior)]
    product = lines[0][0][values[0][1]] * lines[0][1][values[1][1]]
    found = {
        "reconstruction": float(reconstruction),
        "kl": sum(kl(each[:, n], prior) for n in range(len(x))) / len(x),
        "mutual_information": sum(kl(each[:, n], whole) for n in range(len(x))) / len(x),
        "marginal_kl": kl(whole, prior),
        "total_correlation": kl(whole, product),
        "dimension_wise_kl": sum(kl(a, b) for a, b in zip(*lines, strict=True)),
    }
    found["elbo"] = found["reconstruction"] - found["kl"]
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_part_is_the_integral_that_it_stands_for(name):
    make, points = CASES[name]
    model = far(make())
    x = examples(model, 3).double()
    known = exact(model, x, *points())
    assert known["mutual_information"] > 0.01
    if name not in ("bits", "two layers"):
        assert known["total_correlation"] > 1e-3
    found = [anatomy(model, x, samples=100, seed=seed) for seed in range(REPEATS)]
    missing = {"two layers": {"total_correlation", "dimension_wise_kl"}, "dependent prior": {"dimension_wise_kl"}}
    for part, value in known.items():
        measures = [getattr(parts, part) for parts in found]
        if part in missing.get(name, ()):
            assert measures == [None] * REPEATS
            continue
        means = torch.tensor([measure.value for measure in measures], dtype=F64)
        assert abs(means.mean().item() - value) <= 4 * means.std().item() / math.sqrt(REPEATS) + 1e-9, part


def test_what_each_dimension_tells_is_the_integral_too():
    model = far(vae("multivariate-normal", "bernoulli"))
    x = examples(model, 3).double()
    with torch.no_grad():
        q, p = model.posterior(x), model.prior()
        line = torch.linspace(-12.0, 12.0, 4001, dtype=F64)
        for j in range(2):
            laws = td.Normal(q.loc[:, j], q.variance[:, j].sqrt())
            each = laws.log_prob(line.unsqueeze(1)).exp() * (line[1] - line[0])
            information = (each * (each / each.mean(1, keepdim=True)).clamp(min=1e-300).log()).nan_to_num().sum().item() / 3
            kl = kl_per_dimension(q, p)[:, j].mean().item()
            found = [anatomy(model, x, samples=100, seed=seed).dimensions for seed in range(REPEATS)]
            own = [next(each for each in dimensions if each.place == j) for dimensions in found]
            for field, value in (("information", information), ("kl", kl)):
                values = torch.tensor([getattr(each, field) for each in own], dtype=F64)
                assert abs(values.mean().item() - value) <= 4 * values.std().item() / math.sqrt(REPEATS)


@pytest.mark.parametrize("name", [name for name in RANDOM if "fixed" not in name])
def test_the_parts_add_up_at_every_draw(name):
    model = far(vae(name, "bernoulli"))
    parts = anatomy(model, examples(model, 30).double(), samples=3)
    information, correlation, apart = parts.mutual_information, parts.total_correlation, parts.dimension_wise_kl
    close = {"rel": 1e-9, "abs": 1e-9}
    assert information.value + correlation.value + apart.value == pytest.approx(parts.kl.value, **close)
    assert information.value + parts.marginal_kl.value == pytest.approx(parts.kl.value, **close)
    assert parts.reconstruction.value - parts.kl.value == pytest.approx(parts.elbo.value, **close)
    assert sum(each.kl - each.information for each in parts.dimensions) == pytest.approx(apart.value, **close)
    assert information.value <= parts.ceiling + 1e-9
    assert all(each.information <= parts.ceiling + 1e-9 for each in parts.dimensions)


@pytest.mark.parametrize("name", [name for name in RECIPES if "vae" in name])
def test_every_recipe_with_a_prior_is_taken_apart(name):
    model = from_recipe(name)
    parts = anatomy(model, examples(model, 8), samples=2)
    assert parts.mutual_information.value + parts.marginal_kl.value == pytest.approx(parts.kl.value, abs=1e-4)
    assert (parts.dimension_wise_kl is None) == bool(parts.reason)
    assert (parts.total_correlation is None) == (parts.dimensions is None) <= bool(parts.reason)
    assert "mutual information" in str(parts)


@pytest.mark.parametrize("posterior", ["normal", "multivariate-normal", "bernoulli", "one-hot-categorical"])
def test_examples_that_are_the_same_share_no_information_with_their_codes(posterior):
    model = vae(posterior, "bernoulli").double()
    parts = anatomy(model, torch.ones(7, *EVENT), samples=5)
    assert abs(parts.mutual_information.value) < 1e-12
    assert all(abs(each.information) < 1e-12 and not each.active for each in parts.dimensions)
    assert parts.marginal_kl.value == pytest.approx(parts.kl.value)
    alone = anatomy(model, torch.ones(1, *EVENT), samples=5)
    assert (abs(alone.mutual_information.value) < 1e-12, alone.ceiling) == (True, 0.0)
    assert math.isnan(alone.kl.stderr)
    assert not near_ceiling(0.0, 1)
    assert not near_ceiling(1e-9, 1)


def test_examples_that_are_far_apart_are_told_apart():
    model = vae("normal", "normal").double()
    with torch.no_grad():
        model.posterior.network = nn.Identity()
        model.posterior.head = nn.Identity()
        model.posterior.in_shape = None
    count = 9
    raw = torch.zeros(count, 2, 2, dtype=F64)
    raw[:, 0, 0] = 100.0 * torch.arange(count)  # the mean of the first dimension; the second says nothing
    raw[:, 1] = 1.0
    model.posterior.raw = lambda x, *known: raw[: len(x)]
    parts = anatomy(model, torch.zeros(count, *EVENT))
    assert parts.mutual_information.value == pytest.approx(math.log(count), abs=1e-12)
    assert parts.ranking == [0, 1]
    assert [each.information for each in parts.dimensions] == pytest.approx([math.log(count), 0.0], abs=1e-12)
    assert [each.active for each in parts.dimensions] == [True, False]
    assert parts.active_units == 1
    assert near_ceiling(parts.mutual_information.value, count)


def test_neither_chunks_nor_batches_change_what_is_measured(monkeypatch):
    model = far(vae("normal", "bernoulli"))
    x = examples(model, 23).double()
    known = anatomy(model, x, samples=4)
    monkeypatch.setattr(xhat.evaluation.anatomy, "ELEMENTS", 1)
    again = anatomy(model, x, samples=4)
    assert again.ranking == known.ranking
    for part in ("elbo", "kl", "mutual_information", "total_correlation", "dimension_wise_kl"):
        assert getattr(again, part) == pytest.approx(getattr(known, part), rel=1e-9, abs=1e-12)


def test_memory_is_bounded(monkeypatch):
    model, largest = vae("normal", "bernoulli"), []
    log_prob = td.Normal.log_prob
    monkeypatch.setattr(td.Normal, "log_prob", lambda law, z: (largest.append(z.numel()), log_prob(law, z))[1])
    monkeypatch.setattr(xhat.evaluation.anatomy, "ELEMENTS", 5000)
    anatomy(model, torch.zeros(250, *EVENT), samples=10)
    assert max(largest) == 5000  # 25 draws of two numbers, weighed by 100 posteriors


def test_of_many_examples_some_are_taken_and_the_seed_says_which():
    model = vae("normal", "bernoulli")
    x = examples(model, 60)
    before = torch.get_rng_state()
    parts = anatomy(model, x, most=20, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert parts.examples == 20
    assert anatomy(model, x, most=20, seed=1) == parts
    assert anatomy(model, x, most=20, seed=2) != parts
    assert anatomy(model, x, most=60).examples == 60


def test_what_cannot_be_taken_apart_is_refused_or_explained():
    model = vae("normal", "bernoulli")
    with pytest.raises(ConfigError, match="has no prior and so cannot have a bound to take apart"):
        anatomy(from_recipe("autoencoder normal"), torch.zeros(2, 1, 8, 8))
    for name in ("samples", "most"):
        with pytest.raises(ConfigError, match=f"{name} must be at least 1"):
            anatomy(model, torch.zeros(2, *EVENT), **{name: 0})
    with pytest.raises(DataError, match=r"example 1 holds 0.5"):
        anatomy(model, torch.tensor([[0.0] * 3, [0.5] * 3]))
    x = torch.zeros(4, *EVENT)
    assert "the marginals q(z_j|x) of a Chain posterior have no formula" in str(anatomy(two_layers(), x))
    assert "the prior's dimensions depend on each other" in str(anatomy(correlated(), x))
    assert anatomy(model, x).reason == ""
