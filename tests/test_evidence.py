"""log p(x) by importance sampling, by annealing, exactly, and held between two bounds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

import xhat
from catalogue import F64, bits, vae
from xhat import VAE, conditionals, priors
from xhat.data import Batch, as_examples
from xhat.errors import ConfigError
from xhat.evaluation.annealed import Annealing, schedule
from xhat.evaluation.evidence import _by_blocks, log_likelihood
from xhat.evaluation.hmc import move
from xhat.evaluation.importance import _draws, log_prob_at
from xhat.evaluation.sandwich import bounds, sandwich, simulated
from xhat.evaluation.spread import Spread
from xhat.networks import MLP
from xhat.networks.bayesian_models import bayesian
from xhat.networks.mlp import tie
from xhat.ranks import Ranks


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def linear(size: int = 4, latent: int = 2, seed: int = 1, **options: object) -> VAE:
    """x | z ~ N(W z + b, σ²): its log p(x) is a Normal's; the posterior is an untrained network's, so not the true one."""
    torch.manual_seed(seed)
    likelihood = conditionals.Normal(MLP(latent), size, **{"per": "dimension", **options})
    model = VAE(priors.StandardNormal(latent), conditionals.Normal(MLP(size), latent), likelihood).double()
    with torch.no_grad():
        for name, parameter in model.likelihood.named_parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter) if name == "raw_scale" else torch.randn_like(parameter))
        model.posterior.head.linear.weight.mul_(0.3)
    return model


def easy() -> VAE:
    """One with a posterior so near the true one that a thousand draws have well-behaved weights."""
    model = linear(latent=1)
    with torch.no_grad():
        model.likelihood.head.linear.weight.mul_(0.7)
    return model


def truth(model: VAE, x: Tensor) -> Tensor:
    """The same by torch's own Normal with a full covariance."""
    size, latent = model.event_shape[0], model.latent_shape[0]
    with torch.no_grad():
        bias = model.likelihood(torch.zeros(1, latent, dtype=F64)).mean[0]
        weight = model.likelihood(torch.eye(latent, dtype=F64)).mean.T - bias[:, None]
        scale = model.likelihood(torch.zeros(1, latent, dtype=F64)).stddev[0]
    assert weight.shape == (size, latent)
    return td.MultivariateNormal(bias, weight @ weight.T + scale.square().diag()).log_prob(x)


def some(model: VAE, count: int) -> Tensor:
    """Examples of the model's own, as what evaluation hands on: float32 values."""
    return simulated(model, count)[1].x.float().double()


def wide_code() -> VAE:
    """17 bits: too many values to go through."""
    posterior, likelihood = conditionals.Bernoulli(MLP(3), 17), conditionals.Bernoulli(MLP(17), 3)
    return VAE(priors.Bernoulli(17), posterior, likelihood, gradient=xhat.gradients.Score())


def two_layers() -> VAE:
    """Bits below, a one-hot vector above, both in x's likelihood; 12 values of the whole code."""
    below, above = conditionals.Bernoulli(MLP(3), 2), conditionals.OneHotCategorical(MLP(2, [4], "tanh"), (1, 3))
    prior = priors.Chain(priors.OneHotCategorical((1, 3)), conditionals.Bernoulli(MLP((1, 3), [4], "tanh"), 2))
    likelihood = conditionals.Bernoulli(MLP(5, [4], "tanh"), 3)
    return VAE(prior, conditionals.Chain(below, above), likelihood, gradient=xhat.gradients.Score()).double()


# Exact values


@pytest.mark.parametrize(
    "options", [{}, {"per": "shared"}, {"scale": 0.3}, {"scale": "exp"}, {"scale": 1e-3}], ids=lambda o: str(o) or "dimension"
)
@pytest.mark.parametrize(("size", "latent"), [(4, 2), (2, 5), (1, 1)])
def test_a_linear_normal_model_is_exact(options, size, latent):
    model = linear(size, latent, **options)
    x = some(model, 7)
    evidence = log_likelihood(model, x, method="exact")
    torch.testing.assert_close(evidence.log_px, truth(model, x), rtol=1e-7, atol=1e-7)
    assert (evidence.stderr == 0).all()
    assert evidence.ess.isinf().all()
    assert evidence.log_px.dtype == F64


@pytest.mark.parametrize(
    "network",
    [
        lambda: MLP(3, [4, 2], activation="identity"),
        lambda: nn.Linear(3, 2, bias=False),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 4)),
    ],
)
def test_linear_layers_one_after_the_other_are_linear(network):
    model = VAE(
        priors.StandardNormal(3), conditionals.Normal(MLP(5), 3), conditionals.Normal(network(), 5, per="shared")
    ).double()
    x = some(model, 6)
    torch.testing.assert_close(log_likelihood(model, x, method="exact").log_px, truth(model, x))


def test_tied_weights_and_pictures_are_linear_too():
    posterior = conditionals.Normal(MLP(4), 2, per="shared")
    likelihood = conditionals.Normal(MLP(2), 4, scale=0.5)
    tie((posterior.network, posterior.head), (likelihood.network, likelihood.head))
    model = VAE(priors.StandardNormal(2), posterior, likelihood).double()
    x = some(model, 6)
    torch.testing.assert_close(log_likelihood(model, x, method="exact").log_px, truth(model, x))
    model = xhat.build("vae", (1, 2, 2), latent=2, hidden=[], likelihood="normal")
    picture = torch.rand(3, 1, 2, 2)
    found = log_likelihood(model, picture, method="exact").log_px
    evidence = log_likelihood(model, picture, 20_000)
    assert ((evidence.log_px - found).abs() <= 4 * evidence.stderr).all()


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: vae("normal", "normal"), "σ from the network"),
        (lambda: xhat.build("vae", (4,), latent=2, hidden=[3], likelihood="normal"), r"decoder is not linear \(ReLU"),
        (lambda: xhat.build("vae", (4,), latent=2, hidden=[], likelihood="bernoulli"), "its likelihood is Bernoulli"),
        (lambda: linear(link="sigmoid"), "a link"),
        (lambda: wide_code(), "more than 65536 values"),
        (lambda: vae("poisson", "bernoulli"), "its prior is Poisson"),
    ],
)
def test_what_is_not_exact_is_refused_with_its_reason(model, why):
    made = model()
    with pytest.raises(ConfigError, match=rf"linear Normal model .*{why}.*: use method='annealed'"):
        log_likelihood(made, torch.zeros(2, *made.event_shape), method="exact")


@pytest.mark.parametrize("elements", [10**6, 3 * 8 * 5])
def test_a_code_of_few_values_is_enumerated(elements):
    model, x = vae("bernoulli", "bernoulli").double(), bits(3)
    z = bits(2)
    with torch.no_grad():
        joint = model.likelihood(z[:, None].expand(-1, 8, -1)).log_prob(x) + model.prior().log_prob(z)[:, None]
    found = log_likelihood(model, x, method="exact", elements=elements)
    torch.testing.assert_close(found.log_px, joint.logsumexp(0))
    assert found.log_px.exp().sum().item() == pytest.approx(1.0)


def test_two_discrete_layers_are_enumerated_each_with_each():
    model, x = two_layers(), bits(3)
    z = torch.cat([bits(2).repeat_interleave(3, 0), torch.eye(3, dtype=F64).repeat(4, 1)], 1)
    with torch.no_grad():
        log_pz = model.prior().log_prob(z)
        joint = model.likelihood(z[:, None].expand(-1, 8, -1)).log_prob(x) + log_pz[:, None]
    assert log_pz.exp().sum().item() == pytest.approx(1.0)
    found = log_likelihood(model, x, method="exact", elements=3 * 8 * 5).log_px
    torch.testing.assert_close(found, joint.logsumexp(0))
    sampled = log_likelihood(model, x, 4000)
    assert ((sampled.log_px - found).abs() <= 4 * sampled.stderr).all()


# Importance sampling


def test_the_quick_bernoulli_is_the_law_s_own_number():
    x = (torch.rand(5, 2, 3, dtype=F64) < 0.4).double()
    for lead in ((4, 5), (5,), (4, 1)):
        logits = 5 * torch.randn(*lead, 2, 3, dtype=F64)
        law = td.Independent(td.Bernoulli(logits=logits.clone()), 2)
        torch.testing.assert_close(log_prob_at(x)(law), law.log_prob(x))
        assert (law.base_dist.logits == logits).all()  # nothing is written into what may be a model's weight
    grey = torch.rand(5, 2, 3, dtype=F64)
    law = td.Independent(td.Bernoulli(logits=torch.randn(5, 2, 3, dtype=F64), validate_args=False), 2)
    torch.testing.assert_close(log_prob_at(grey)(law), law.log_prob(grey), rtol=0, atol=0)
    for law in (td.Independent(td.Bernoulli(probs=grey), 2), td.Independent(td.Normal(grey, 1.0), 2)):
        torch.testing.assert_close(log_prob_at(x)(law), law.log_prob(x), rtol=0, atol=0)


@pytest.mark.parametrize("size", [0.5, 5.0, 1e4])
def test_the_quick_bernoulli_is_right_to_a_thousandth_of_a_nat_in_float32(size):
    x, logits = (torch.rand(30, 784) < 0.3).float(), size * torch.randn(30, 784)
    logits = torch.where(torch.rand(30, 784) < 0.99, logits.abs() * (2 * x - 1), logits / size)  # mostly sure, and right
    known = td.Independent(td.Bernoulli(logits=logits.double()), 1).log_prob(x.double())
    found = log_prob_at(x)(td.Independent(td.Bernoulli(logits=logits), 1))
    assert (found.double() - known).abs().max() < 1e-3


@pytest.mark.parametrize("pair", ["standard", "moved", "wider than one", "full covariance"])
def test_draws_come_with_the_ratio_of_their_laws(pair):
    loc, scale = torch.randn(5, 2, 3, dtype=F64), torch.rand(5, 2, 3, dtype=F64) + 0.1
    q = td.Independent(td.Normal(loc, scale), 2)
    p = {
        "standard": td.Independent(td.Normal(torch.zeros(2, 3, dtype=F64), torch.ones(2, 3, dtype=F64)), 2),
        "moved": td.Independent(td.Normal(torch.randn(2, 3, dtype=F64), torch.rand(2, 3, dtype=F64) + 0.1), 2),
        "wider than one": td.Independent(td.Normal(torch.full((2, 3), 7.0, dtype=F64), 40.0), 2),
        "full covariance": td.Independent(td.MultivariateNormal(torch.zeros(2, 3, dtype=F64), torch.eye(3, dtype=F64)), 1),
    }[pair]
    z, log_ratio = _draws(q, p)(4000)
    assert z.shape == (4000, 5, 2, 3)
    torch.testing.assert_close(log_ratio, p.log_prob(z) - q.log_prob(z), rtol=1e-10, atol=1e-10)
    assert ((z.mean(0) - loc).abs() < 5 * scale / 4000**0.5).all()
    assert ((z.std(0) / scale - 1).abs() < 5 / 8000**0.5).all()


def test_a_hundred_thousand_draws_in_bounded_memory():
    model = linear()
    x = some(model, 3)
    rows: list[int] = []
    model.likelihood.network.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    evidence = log_likelihood(model, x, 100_000, elements=3 * 4 * 7777)  # which does not divide K
    assert sum(rows) == 3 * 100_000
    assert max(rows) == 3 * 7777
    assert ((evidence.log_px - truth(model, x)).abs() <= 4 * evidence.stderr).all()
    assert evidence.stderr.max() < 0.1


def test_named_mistakes_are_seen():
    """The wrong sign, a forgotten log K, draws that are rounded up to whole chunks, and a mean of logarithms."""
    model = easy()
    x, samples = some(model, 40), 1000
    known, evidence = truth(model, x), log_likelihood(model, x, samples, elements=4 * 40 * 300)
    doubt = evidence.stderr.square().sum().sqrt() / 40

    def away(log_px: Tensor) -> float:
        return (abs((log_px - known).mean()) / doubt).item()

    assert away(evidence.log_px) < 4
    wrong = {
        "sign": -evidence.log_px,
        "log K": evidence.log_px + math.log(samples),
        "divided by whole chunks": evidence.log_px + math.log(samples / 1200),
        "mean of logarithms": log_likelihood(model, x, 1).log_px,
    }
    for name, log_px in wrong.items():
        assert away(log_px) > 8, name


# Both ways with draws


@pytest.mark.parametrize(
    ("samples", "options"),
    [
        (1000, {}),
        (80, {"method": "annealed", "steps": 12, "leapfrog": 4}),
        (80, {"method": "annealed", "steps": 12, "leapfrog": 4, "start": "prior"}),
    ],
    ids=["importance", "annealed", "annealed from the prior"],
)
def test_the_estimate_is_right_and_its_standard_error_is_calibrated(samples, options):
    model = easy()
    x = some(model, 300)
    evidence = log_likelihood(model, x, samples, **options)
    away = (evidence.log_px - truth(model, x)) / evidence.stderr
    away = away + 0.5 * evidence.stderr  # to second order the logarithm is low by half its variance
    assert abs(away.mean()) < 4 / math.sqrt(300)
    assert abs(away.var() - 1) < 4 * math.sqrt(2 / 300)


def test_annealing_is_closer_than_importance_sampling_where_the_posterior_is_poor():
    model = linear(size=6, latent=3)
    with torch.no_grad():
        model.posterior.head.linear.bias[:3] += 3.0
    x = some(model, 30)
    known = truth(model, x)
    sampled, annealed = log_likelihood(model, x, 50), log_likelihood(model, x, 50, method="annealed", steps=30, leapfrog=5)
    assert (annealed.log_px - known).square().mean() < 0.1 * (sampled.log_px - known).square().mean()
    assert (annealed.ess > sampled.ess).all()


# Annealing


class Curved(nn.Module):
    """Three bits whose logits bend with a single z."""

    event = (3,)

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([2.0, -3.0, 1.0]))

    def forward(self, z: Tensor) -> td.Distribution:
        return td.Independent(td.Bernoulli(logits=self.slope * z + (self.slope * z).sin()), 1)


def curved() -> tuple[VAE, Tensor, Tensor]:
    """A model with one latent number, an example and its p(x) by quadrature."""
    model = VAE(priors.StandardNormal(1), conditionals.Normal(MLP(3), 1), Curved()).double()
    x, z = torch.tensor([[1.0, 0.0, 1.0]], dtype=F64), torch.linspace(-12, 12, 20_001, dtype=F64)[:, None]
    with torch.no_grad():
        joint = (model.likelihood(z).log_prob(x) + model.prior().log_prob(z)).exp()
    return model, x, torch.trapezoid(joint, z[:, 0])


@pytest.mark.parametrize("start", ["posterior", "prior"])
@pytest.mark.parametrize(("steps", "stretch"), [(1, 1.0), (2, 1.0), (5, 1.0), (5, 3.0)])
def test_the_mean_weight_is_p_of_x_whatever_the_number_of_steps(start, steps, stretch):
    """Also with step sizes that are three times too long, of which many are refused."""
    model, x, known = curved()
    with torch.no_grad():
        path = Annealing(steps, 3, start).path(model, Batch(x), 16)
        path.sizes *= stretch
        ratio = path.forward(40_000)[:, 0].exp() / known
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(ratio))
    assert ratio.std() / math.sqrt(len(ratio)) < 0.02


@pytest.mark.parametrize("start", ["posterior", "prior"])
@pytest.mark.parametrize(("steps", "stretch"), [(1, 1.0), (4, 1.0), (4, 3.0)])
def test_backwards_the_mean_of_one_over_the_weight_is_one_over_p_of_x(start, steps, stretch):
    model = linear(size=2, latent=1)
    with torch.no_grad():
        model.posterior.head.linear.bias[1:] += 1.0  # wider than the posterior, or 1 / w had no variance
    x = simulated(model, 1)[1].x
    weight, scale = model.likelihood.head.linear.weight.detach(), model.likelihood.scale(x[0]).detach()
    precision = 1 + (weight[:, 0] / scale).square().sum()
    loc = ((x[0] - model.likelihood.head.linear.bias.detach()) * weight[:, 0] / scale.square()).sum() / precision
    codes = (loc + torch.randn(20_000, 1, dtype=F64) / precision.sqrt())[:, None]  # exact draws from p(z|x)
    with torch.no_grad():
        path = Annealing(steps, 3, start).path(model, Batch(x), 16)
        path.sizes *= stretch
        log_w = path.reverse(codes)
    ratio = (truth(model, x) - log_w[:, 0]).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(ratio))
    assert ratio.std() / math.sqrt(len(ratio)) < 0.05


def gumbel(z: Tensor) -> Tensor:
    """Its log density, of independent elements: lopsided, with known moments and exact draws."""
    return (-z - (-z).exp()).sum(-1)


def test_a_move_leaves_its_law_as_it_is():
    z = td.Gumbel(torch.zeros(2, dtype=F64), 1.0).sample((15_000, 2))
    step, spread = torch.tensor([0.5, 1.1], dtype=F64), torch.tensor([[1.0, 0.5], [1.3, 0.8]], dtype=F64)
    for _ in range(3):
        z, accepted = move(gumbel, z, step, spread, leapfrog=3)
    assert 0.3 < accepted[:, 1].mean() < 0.9  # so that what is refused matters
    euler, variance = 0.5772156649015329, math.pi**2 / 6
    for power, known in ((1, euler), (2, variance + euler**2)):
        values = z**power
        away = (values.mean(0) - known) / (values.std(0) / math.sqrt(len(z)))
        assert away.abs().max() < 4
    share = (z < 0).double()  # P(z < 0) = 1/e
    assert ((share.mean(0) - math.exp(-1)).abs() < 4 * share.std(0) / math.sqrt(len(z))).all()


def test_a_move_goes_along_the_density_and_a_lost_one_is_refused():
    z = torch.zeros(500, 1, 2, dtype=F64)
    ones = torch.ones(1, 2, dtype=F64)
    moved = move(gumbel, z, torch.tensor([1e-3], dtype=F64), ones, leapfrog=4)
    assert (moved.accepted > 0.999).all()  # the energy is kept as the step goes to 0
    assert 0 < (moved.z - z).abs().max() < 0.05
    lost = move(gumbel, z - 1.0, torch.tensor([1e4], dtype=F64), ones, leapfrog=4)
    refused = lost.accepted == 0
    assert refused.double().mean() > 0.9
    assert (lost.z[refused] == -1.0).all()
    assert lost.z.isfinite().all()


@pytest.mark.parametrize("start", ["posterior", "prior"])
def test_step_sizes_are_found_for_each_example_and_then_stand_still(start):
    model = linear(size=6, latent=3)
    x = some(model, 4)
    with torch.no_grad():
        path = Annealing(40, 5, start).path(model, Batch(x), 16)
        held, z = path.sizes.clone(), path._drawn(400)
        shares = []
        for t in range(1, 40):
            z, accepted = path._moved(z, t, path.sizes[t - 1])
            shares.append(accepted.mean(0))
    assert path.sizes.shape == (39, 4)
    assert (torch.stack(shares).mean(0) - 0.65).abs().max() < 0.12
    assert (path.sizes == held).all()


def test_the_temperatures_go_from_nothing_to_all_and_are_dense_at_both_ends():
    betas = schedule(50)
    steps = betas.diff()
    assert (betas[0].item(), betas[-1].item(), len(betas)) == (0.0, 1.0, 51)
    torch.testing.assert_close(steps, steps.flip(0))
    assert (steps[:25].diff() > 0).all()
    assert schedule(1).tolist() == [0.0, 1.0]


def test_chains_are_as_many_as_asked_in_bounded_memory_and_leave_nothing_behind():
    model, seen, done = linear().train(), [], []
    x = some(model, 7)
    model.likelihood.network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    before = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(3)
    options = {"method": "annealed", "steps": 3, "leapfrog": 2, "batch": 3, "elements": 60, "progress": done.append}
    first = log_likelihood(model, x, 13, **options)
    assert done == [3, 3, 1]
    assert max(seen) == 15  # rows of 4 numbers: the chains that find the step sizes go in pieces, too
    torch.manual_seed(3)
    for column, same in zip(first, log_likelihood(model, x, 13, **options), strict=True):
        assert (column == same).all()
        assert column.shape == (7,)
        assert column.dtype == F64
    assert model.training
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert parameter.grad is None
        assert parameter.requires_grad
        assert (parameter == old).all()


def test_processes_take_blocks_each_and_together_have_what_one_has():
    model = linear()
    x = as_examples(some(model, 7))

    def found(rank: int, world: int) -> Tensor:
        spread = Spread(x, 3, Ranks(rank, world), seed=4)
        return torch.cat([part.log_px for part in _by_blocks(model, 9, 40, None, spread, Annealing(4, 2))])

    torch.testing.assert_close(torch.cat([found(0, 2), found(1, 2)]), found(0, 1), rtol=0, atol=0)


def test_a_chain_that_refuses_nothing_is_biased(monkeypatch):
    """So the test of the mean weight would see it: its steps, three times too long, depend on the refusals."""
    model, x, known = curved()
    monkeypatch.setattr("xhat.evaluation.hmc.torch.rand_like", torch.zeros_like)
    with torch.no_grad():
        path = Annealing(5, 3, "prior").path(model, Batch(x), 16)
        path.sizes.fill_(2.0)
        ratio = path.forward(40_000)[:, 0].exp() / known
    assert abs(ratio.mean() - 1) > 8 * ratio.std() / math.sqrt(len(ratio))


def layered() -> VAE:
    """Two Normal layers; x depends on the lower one and the upper one."""
    below, above = conditionals.Normal(MLP(3, [4]), 2), conditionals.Normal(MLP(2, [4]), 1)
    prior = priors.Chain(priors.StandardNormal(1), conditionals.Normal(MLP(1, [4]), 2))
    return VAE(prior, conditionals.Chain(below, above), conditionals.Bernoulli(MLP(3, [4]), 3)).double()


@pytest.mark.parametrize("kind", ["normal", "multivariate-normal", "layers", "flow"])
def test_every_continuous_code_is_annealed(kind):
    if kind == "layers":
        model = layered()
    elif kind == "flow":
        posterior = conditionals.Flow(MLP(3, [4]), 2, hidden=[4])
        model = VAE(priors.StandardNormal(2), posterior, conditionals.Bernoulli(MLP(2, [4]), 3)).double()
    else:
        model = vae(kind, "bernoulli").double()
    x = bits(3)
    for start in ("posterior", "prior"):
        found = log_likelihood(model, x, 100, method="annealed", steps=4, leapfrog=2, start=start)
        total, doubt = found.log_px.exp().sum(), (found.log_px.exp() * found.stderr).square().sum().sqrt()
        assert abs(total - 1) < 4 * doubt  # p(x) over every x
        assert doubt < 0.2


class Rounded(nn.Module):
    """A likelihood that has no derivative in z."""

    event = (3,)

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.ones(3))

    def forward(self, z: Tensor) -> td.Distribution:
        return td.Independent(td.Bernoulli(logits=(self.own.detach() * z.detach()[..., :1].round())), 1)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: vae("bernoulli", "bernoulli"), "the posterior Bernoulli is discrete or bounded: use method='exact'"),
        (two_layers, "the posterior Chain is discrete or bounded"),
        (lambda: vae("continuous-bernoulli", "bernoulli"), "the posterior ContinuousBernoulli is discrete or bounded"),
        (lambda: VAE(priors.StandardNormal(2), conditionals.Normal(MLP(3), 2), Rounded()), "Rounded has none"),
        (lambda: bayesian(vae("normal", "bernoulli")), "weights are random: use method='importance'"),
    ],
)
def test_what_cannot_be_annealed_is_refused_with_the_remedy(model, why):
    made = model()
    with pytest.raises(ConfigError, match=why):
        log_likelihood(made, torch.zeros(2, 3), method="annealed")
    with pytest.raises(ConfigError, match=why):
        sandwich(made, 3)


def test_settings_that_make_no_sense_are_refused():
    model, x = vae("normal", "bernoulli"), torch.zeros(2, 3)
    for options, why in (
        ({"method": "harmonic"}, "method must be one of importance, annealed, exact, was 'harmonic'"),
        ({"method": "annealed", "start": "middle"}, "start must be one of posterior, prior, was 'middle'"),
        ({"method": "annealed", "steps": 0}, "steps must be at least 1, was 0"),
        ({"method": "annealed", "leapfrog": 1.5}, "leapfrog must be a whole number"),
    ):
        with pytest.raises(ConfigError, match=why):
            log_likelihood(model, x, **options)
    for options, why in (({"examples": 1}, "examples must be at least 2"), ({"chains": 0}, "chains must be at least 1")):
        with pytest.raises(ConfigError, match=why):
            sandwich(model, **options)
    with pytest.raises(ConfigError, match="weights are random"):
        log_likelihood(bayesian(model), x, method="exact")


def test_a_method_that_a_model_has_no_use_for_is_refused_and_not_ignored():
    plain = xhat.build("autoencoder", shape=(4,), latent=2, hidden=[8])
    assert xhat.evaluate(plain, torch.zeros(5, 4)).log_likelihood is None
    with pytest.raises(ConfigError, match="has no prior and so cannot have a likelihood of x"):
        xhat.evaluate(plain, torch.zeros(5, 4), method="annealed")


@pytest.mark.parametrize("option", [{"steps": 5}, {"leapfrog": 3}, {"start": "prior"}])
@pytest.mark.parametrize("measure", [log_likelihood, xhat.evaluate])
def test_options_of_annealing_are_refused_for_other_methods(measure, option):
    (name,) = option
    with pytest.raises(ConfigError, match=f"{name} is an option of method='annealed', but the method is 'importance'"):
        measure(easy(), torch.zeros(5, 4, dtype=F64), samples=3, **option)


class Counts(nn.Module):
    """A likelihood of one's own, whose law checks its arguments as torch's laws do unless they are told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.event = (4,)
        self.rate = nn.Linear(2, 4)

    def forward(self, z: Tensor) -> td.Distribution:
        return td.Independent(td.Poisson((8 * self.rate(z)).exp()), 1)


@pytest.mark.parametrize("start", ["posterior", "prior"])
def test_a_trajectory_that_leaves_a_law_of_ones_own_is_refused_and_stops_nothing(start):
    model = VAE(priors.StandardNormal(2), conditionals.Normal(MLP(4), 2), Counts())
    x = torch.poisson(torch.full((6, 4), 3.0))
    found = log_likelihood(model, x, samples=8, method="annealed", steps=10, leapfrog=5, start=start)
    assert found.log_px.isfinite().all()
    assert td.Distribution._validate_args
    with pytest.raises(ValueError, match="rate"):
        td.Poisson(torch.tensor(math.nan))


@pytest.mark.parametrize("sampling", ["shared", "local"])
def test_the_standard_error_is_calibrated_where_weights_are_random_too(sampling):
    model = bayesian(easy(), sampling=sampling, initial_scale=0.1)
    x = 0.3 * torch.randn(5, 4, dtype=F64)
    runs = [log_likelihood(model, x, samples=60) for _ in range(150)]
    spread = torch.stack([run.log_px for run in runs]).var(0).mean().sqrt()
    said = torch.stack([run.stderr for run in runs]).square().mean().sqrt()
    assert 0.75 < spread / said < 1.33


# The sandwich


@pytest.mark.parametrize("start", ["posterior", "prior"])
def test_the_truth_lies_between_the_bounds_which_meet_with_more_steps(start):
    model = linear(size=5, latent=2)
    with torch.no_grad():
        model.posterior.head.linear.bias[2:] += 0.5
    z, batch = simulated(model, 200)
    x = batch.x
    known, gaps = truth(model, x), []
    for steps in (3, 30):
        lower, upper, sampled = bounds(model, z, batch, Annealing(steps, 4, start), chains=3, samples=20)
        for below in (known - lower, known - sampled, upper - known):
            assert below.mean() > -4 * below.std() / math.sqrt(200)
        gaps.append((upper - lower).mean().item())
    assert gaps[0] > 0.1
    assert 0 < gaps[1] < 0.3 * gaps[0] + 0.02


def test_a_sandwich_sums_up_its_bounds_and_leaves_the_callers_numbers_alone():
    model = easy()
    before, done = torch.get_rng_state(), []
    settings = {"chains": 2, "steps": 8, "leapfrog": 2, "samples": 50}
    first = sandwich(model, 110, **settings, seed=7, progress=done.append)
    assert (torch.get_rng_state() == before).all()
    assert done == [100, 10]
    assert first == sandwich(model, 110, **settings, seed=7)
    assert first != sandwich(model, 110, **settings, seed=8)
    assert first.gap.value == pytest.approx(first.upper.value - first.lower.value)
    assert first.importance_gap.value == pytest.approx(first.upper.value - first.importance.value)
    assert first.gap.stderr < first.lower.stderr  # what the examples differ by is in both bounds
    assert [line.split("  ")[0] for line in str(first).splitlines()][2] == "log p(x) at most, nats"
    assert len(str(first).splitlines()) == 6


def test_several_processes_are_told_that_a_sandwich_takes_one(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="one process: start it without torchrun"):
        sandwich(vae("normal", "bernoulli"), 3)
