"""The sampling layer: a law in, z out, and a derivative through the draw."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

import xhat
from catalogue import F64, numbers
from xhat.errors import ConfigError
from xhat.gradients import GRADIENTS, Concrete, GumbelRao, Path, Pathwise, Sampling, Score, STGumbel
from xhat.parts import rebuild, specification

RELAXED = ["concrete", "straight-through", "st-gumbel", "gumbel-rao", "reinmax"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_every_gradient_that_needs_the_sample_alone_has_a_layer_and_no_other():
    for name, cls in GRADIENTS.items():
        if issubclass(cls, Path):
            assert isinstance(Sampling(name).gradient, cls)
            continue
        with pytest.raises(ConfigError, match=rf"xhat\.expectation\(f, q, '{name}'\), or one of pathwise, concrete, "):
            Sampling(name)
    assert {name for name, cls in GRADIENTS.items() if issubclass(cls, Path)} == {"pathwise", *RELAXED}
    with pytest.raises(ConfigError, match="weighs the function that follows, which a layer does not see"):
        Sampling(Score("lagged"))
    with pytest.raises(ConfigError, match="gradient must be one of pathwise, score, rloo"):
        Sampling("reparam")


def test_a_normal_draw_moves_one_to_one_with_its_mean_and_with_its_noise_for_its_scale():
    loc = torch.randn(5, 3, dtype=F64, requires_grad=True)
    scale = torch.rand(5, 3, dtype=F64).add(0.1).requires_grad_()
    z = Sampling()(loc, scale)
    dloc, dscale = torch.autograd.grad(z.sum(), (loc, scale))
    assert torch.equal(dloc, torch.ones_like(dloc))
    torch.testing.assert_close(dscale, (z - loc) / scale)
    for noise in ("antithetic", "sobol"):  # one draw of a pair, or of a set, is a draw like any other
        z = Sampling(Pathwise(noise))(loc, scale)
        assert z.shape == (5, 3)
        dloc, dscale = torch.autograd.grad(z.sum(), (loc, scale))
        torch.testing.assert_close(dloc, torch.ones_like(dloc))
        torch.testing.assert_close(dscale, (z - loc) / scale)


@pytest.mark.parametrize("gradient", ["pathwise", Pathwise("antithetic"), Pathwise("sobol")])
def test_draws_have_the_moments_of_the_law(gradient):
    loc, scale = torch.full((20_000,), 0.7, dtype=F64), torch.full((20_000,), 1.3, dtype=F64)
    z = Sampling(gradient)(loc, scale)
    assert z.mean().item() == pytest.approx(0.7, abs=4 * 1.3 / math.sqrt(20_000))
    assert z.var().item() == pytest.approx(1.69, abs=4 * 1.69 * math.sqrt(2 / 20_000))


@pytest.mark.parametrize(
    ("law", "event"),
    [
        (td.Gamma(torch.ones(5, 3), 2.0), (5, 3)),
        (td.MultivariateNormal(torch.zeros(5, 2), torch.eye(2)), (5, 2)),
        (td.Independent(td.Laplace(torch.zeros(5, 4), 1.0), 1), (5, 4)),
        (td.Dirichlet(torch.ones(5, 3)), (5, 3)),
    ],
)
def test_any_law_with_a_path_goes_in(law, event):
    z = Sampling()(law)
    assert z.shape == event
    assert law.support.check(z).all()


@pytest.mark.parametrize("name", RELAXED)
@pytest.mark.parametrize("categories", [False, True])
def test_logits_give_bits_or_one_hot_vectors(name, categories):
    logits = torch.randn(6, 4, 3, dtype=F64, requires_grad=True)
    z = Sampling(name, categories=categories)(logits)
    assert z.shape == logits.shape
    assert z.dtype == F64
    (slope,) = torch.autograd.grad((z * torch.randn_like(z)).sum(), logits)
    assert slope.isfinite().all()
    assert slope.abs().max() > 0
    if categories:
        torch.testing.assert_close(z.sum(-1), torch.ones(6, 4, dtype=F64))
    if name == "concrete":
        assert ((z > 0) & (z < 1)).any()
    else:
        torch.testing.assert_close(z, z.round())  # hard in the forward pass


@pytest.mark.parametrize("name", RELAXED)
def test_hard_draws_have_the_probabilities_of_the_law(name):
    logits = numbers(0.3, -0.7, 0.9).expand(20_000, 3)
    for categories, probs in ((False, logits[0].sigmoid()), (True, logits[0].softmax(-1))):
        z = Sampling(name, categories=categories)(logits)
        hard = (z > 0.5).double() if not categories else torch.nn.functional.one_hot(z.argmax(-1), 3).double()
        assert ((hard.mean(0) - probs).abs() < 4 * (probs * (1 - probs) / 20_000).sqrt()).all()


def test_a_discrete_law_may_be_given_as_it_is():
    levels = xhat.distributions.Levels(torch.randn(5, 2, 4))
    z = Sampling("straight-through")(td.Independent(levels, 1))
    assert levels.support.check(z).all()
    pairs = td.Independent(td.OneHotCategorical(logits=torch.randn(5, 2, 3)), 1)
    assert Sampling("reinmax")(pairs).shape == (5, 2, 3)
    assert Sampling("st-gumbel")(td.Bernoulli(logits=torch.randn(5))).shape == (5,)


def test_straight_through_is_the_derivative_of_the_mean():
    logits = torch.randn(7, 3, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(Sampling("straight-through")(logits).sum(), logits)
    p = logits.sigmoid()
    torch.testing.assert_close(slope, (p * (1 - p)).detach())


def test_a_low_temperature_is_nearly_hard_and_a_schedule_leads_there():
    logits = torch.randn(200, 3, dtype=F64)
    layer = Sampling(Concrete(temperature=5.0, final=0.01, epochs=4.0))
    warm = layer(logits)
    layer.gradient.at(4.0)
    cold = layer(logits)
    assert (warm * (1 - warm)).mean() > 10 * (cold * (1 - cold)).mean()
    assert ((cold < 0.05) | (cold > 0.95)).double().mean() > 0.9


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Sampling()(torch.zeros(3)), "needs a law, or a loc and a scale, but was given one tensor"),
        (lambda: Sampling()(td.Bernoulli(logits=torch.zeros(3))), "'pathwise' needs a reparameterised sample"),
        (lambda: Sampling("concrete")(td.Normal(torch.zeros(3), 1.0)), "'concrete' needs independent elements"),
        (lambda: Sampling("reinmax")(torch.zeros(3), torch.ones(3)), "'reinmax' needs independent elements"),
        (lambda: Sampling(Pathwise("antithetic"))(td.Gamma(torch.ones(3), 1.0)), "symmetric about a centre"),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize("name", ["pathwise", *RELAXED])
def test_evaluation_mode_draws_too(name):
    layer = Sampling(name).eval()
    given = (torch.zeros(50, 3), torch.ones(50, 3)) if name == "pathwise" else (torch.zeros(50, 3),)
    assert not torch.equal(layer(*given), layer(*given))
    with torch.no_grad():
        assert not layer(*given).requires_grad


def test_a_seed_of_the_callers_repeats_the_draw():
    layer, logits = Sampling("st-gumbel"), torch.zeros(20, 3)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(layer(logits))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    "layer",
    [
        lambda: Sampling(),
        lambda: Sampling("gumbel-rao", categories=True),
        lambda: Sampling(Concrete(0.7, 0.1, 5.0)),
        lambda: Sampling(GumbelRao(draws=3)),
        lambda: Sampling(Pathwise("sobol")),
    ],
)
def test_the_layer_is_a_part(layer):
    """What made it can be written down, and its state, a schedule's temperature, goes through a state_dict."""
    first = layer()
    again = rebuild(specification(first))
    assert type(again.gradient) is type(first.gradient)
    assert specification(again) == specification(first)
    assert again.categories == first.categories
    first.gradient.at(3.0)
    again.load_state_dict(first.state_dict())
    if isinstance(first.gradient, Concrete | GumbelRao | STGumbel):
        assert torch.equal(again.gradient.schedule.now, first.gradient.schedule.now)


def test_inside_a_sequential_network_it_learns():
    """A binary code of 4 bits of an XOR-like pattern: the loss falls by half."""
    network = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 4), Sampling("straight-through"), nn.Linear(4, 1))
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).repeat(25, 1)
    y = (x[:, :1] != x[:, 1:]).float()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    losses = []
    for _ in range(300):
        loss = nn.functional.mse_loss(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


@pytest.mark.parametrize("kind", ["Normal", "bits", "categories"])
def test_a_vae_around_it_trains(kind):
    """Two clusters of 12 pixels: the bound rises well above that of the best code-free model, 12 · ln ½."""
    centres = torch.tensor([[1.0, 0.0] * 6, [0.0, 1.0] * 6])
    x = centres[torch.arange(200) % 2]
    x = torch.where(torch.rand_like(x) < 0.05, 1 - x, x)
    encoder, decoder = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)), nn.Linear(2, 12)
    layer = Sampling() if kind == "Normal" else Sampling("st-gumbel", categories=kind == "categories")
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.02)

    def loss_of() -> Tensor:
        out = encoder(x)
        if kind == "Normal":
            loc, scale = out[:, :2], nn.functional.softplus(out[:, 2:])
            z = layer(loc, scale)
            kl = xhat.kl_divergence(td.Normal(loc, scale), td.Normal(0.0, 1.0)).sum(-1)
        else:
            logits = out[:, :2]
            z = layer(logits)
            q = td.OneHotCategorical(logits=logits) if kind == "categories" else td.Bernoulli(logits=logits)
            p = td.OneHotCategorical(torch.ones(2)) if kind == "categories" else td.Bernoulli(torch.full((2,), 0.5))
            kl = xhat.kl_divergence(q, p)
            kl = kl if kind == "categories" else kl.sum(-1)
        return (kl - td.Bernoulli(logits=decoder(z)).log_prob(x).sum(-1)).mean()

    losses = []
    for _ in range(300):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9 * 12 * math.log(2)
    assert sum(losses[-20:]) / 20 < 0.7 * 12 * math.log(2)
