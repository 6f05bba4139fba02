"""Models: every posterior with every likelihood, every recipe; one chassis, and one sentence for what does not fit."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import distributions as td
from torch import nn

import xhat
from catalogue import CORRUPTIONS, EVENT, F64, LATENT, MODELS, RECIPES, examples, from_recipe, vae
from xhat import VAE, Autoencoder, conditionals, gradients, objectives, priors
from xhat.data import Masking
from xhat.errors import CheckpointError, ConfigError, DataError
from xhat.models.base import centre
from xhat.models.recipes import RECIPES as ROWS
from xhat.networks import MLP, ConvDecoder, ConvEncoder


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_every_recipe_has_a_row():
    assert {recipe for recipe, _ in RECIPES.values()} == set(ROWS) == set(xhat.RECIPES)


# Every model of the catalogue


@pytest.mark.parametrize("name", MODELS)
def test_shapes_gradients_and_calm(name):
    model = MODELS[name]()
    x = examples(model, 4)
    event, latent = model.event_shape, model.latent_shape
    loss = model.loss(x)
    assert loss.shape == (4,)
    assert loss.isfinite().all()
    loss.mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None or "raw_scale" in key, f"{key} gets no gradient"
        assert parameter.grad is None or parameter.grad.isfinite().all()
    encoder = [p.grad.abs().sum() for p in model.posterior.parameters()]
    assert sum(encoder) > 0

    before = {key: value.clone() for key, value in model.state_dict().items()}
    for training in (True, False):
        model.train(training)
        results = {
            "encode": (model.encode(x), (4, *latent)),
            "decode": (model.decode(model.encode(x)), (4, *event)),
            "reconstruct": (model.reconstruct(x), (4, *event)),
            "drawn": (model.reconstruct(x, sample=True), (4, *event)),
        }
        if hasattr(model, "prior"):
            results["sample"] = (model.sample(3), (3, *event))
            results["sample, drawn"] = (model.sample(3, sample=True), (3, *event))
            assert model.elbo(x, samples=2).shape == (4,)
        for what, (value, shape) in results.items():
            assert value.shape == shape, what
            assert value.isfinite().all(), what
            assert not value.requires_grad, what
        assert all(module.training == training for module in model.modules())
    assert torch.equal(model.encode(x), centre(model.posterior(x)))
    assert torch.equal(model.encode(x), model.encode(x))
    assert torch.equal(model.reconstruct(x), model.likelihood(model.encode(x)).mean)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert all(key.startswith("gradient.") for key in moved)  # a running average


FILES = [name for name in MODELS if not name.startswith("vae: ") or "→ normal" in name or name.startswith("vae: normal →")]


@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_the_same_model_back(name, tmp_path):
    model = MODELS[name]()
    x = examples(model, 4)
    state = torch.get_rng_state()
    again = xhat.load(xhat.save(model, tmp_path / "m.safetensors"))
    assert torch.equal(torch.get_rng_state(), state)
    assert type(again) is type(model)
    assert not again.training
    assert torch.equal(again.encode(x), model.encode(x))
    assert torch.equal(again.decode(model.encode(x)), model.reconstruct(x))
    torch.manual_seed(1)
    loss = model.eval().loss(x)
    torch.manual_seed(1)
    assert torch.equal(again.loss(x), loss)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())


def test_a_float64_model_stays_one_and_keeps_every_bit(tmp_path):
    model = vae("normal", "normal").double()
    x = torch.randn(4, *EVENT, dtype=F64)
    again = xhat.load(xhat.save(model, tmp_path / "m.safetensors"))
    assert again.encode(x).dtype == F64
    assert torch.equal(again.encode(x), model.encode(x))


@pytest.mark.parametrize("name", ["vae normal", "vae bernoulli", "autoencoder normal", "tied autoencoder", "denoising masking"])
def test_a_few_steps_lower_the_loss(name):
    model = from_recipe(name)
    x = examples(model, 64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def mean_loss() -> float:
        with torch.no_grad():
            return sum(model.loss(x).mean().item() for _ in range(10)) / 10

    start = mean_loss()
    for _ in range(40):
        optimizer.zero_grad()
        model.loss(x).mean().backward()
        optimizer.step()
    assert mean_loss() < start - 0.01


# What the verbs mean


def test_sampling_starts_from_the_prior_and_reconstructing_from_the_posterior():
    """Theory 6.1, with a decoder that copies its code."""
    model = VAE(
        priors.StandardNormal(1), conditionals.Normal(MLP(1), 1, scale=0.1), conditionals.Normal(MLP(1), 1, scale=0.5)
    ).double()
    with torch.no_grad():
        for conditional, slope, bias in ((model.posterior, 1.0, 5.0), (model.likelihood, 1.0, 0.0)):
            conditional.head.linear.weight.fill_(slope)
            conditional.head.linear.bias.fill_(bias)
    n = 20_000
    x = torch.zeros(n, 1, dtype=F64)
    # (draws, mean, variance): z ~ N(0, 1) decoded; with its noise; variants of x
    for draws, mean, variance in (
        (model.sample(n), 0.0, 1.0),
        (model.sample(n, sample=True), 0.0, 1.25),
        (model.encode(x, sample=True), 5.0, 0.01),
        (model.reconstruct(x, sample=True), 5.0, 0.26),
        (model.decode(x, sample=True), 0.0, 0.25),
    ):
        assert abs(draws.mean().item() - mean) <= 4 * math.sqrt(variance / n)
        assert abs(draws.var().item() - variance) <= 4 * variance * math.sqrt(2 / n)
    assert torch.equal(model.reconstruct(x), torch.full_like(x, 5.0))
    with pytest.raises(ConfigError, match="n must be at least 1"):
        model.sample(0)


def test_each_example_has_noise_of_its_own():
    """Theory 9: not one ε for the batch."""
    model = vae("normal", "bernoulli")
    codes = model.encode(torch.zeros(50, *EVENT), sample=True)
    assert len(codes.unique(dim=0)) == 50


def test_a_code_is_what_has_to_be_sent():
    model = xhat.build("autoencoder", (1, 28, 28), latent=30, hidden=[8])
    x = torch.rand(2, 1, 28, 28)
    code = model.encode(x)
    assert torch.equal(model.decode(code), model.reconstruct(x))  # theory 1.6: the decoder needs no more than this
    assert code[0].numel() * 32 == 960
    assert x[0].numel() * 8 / 960 == pytest.approx(6.5, abs=0.05)


def test_a_verb_restores_the_mode_of_each_part_also_of_one_that_is_frozen():
    model = vae("normal", "bernoulli")
    model.likelihood.eval()
    model.encode(torch.zeros(2, *EVENT))
    model.sample(2)
    assert model.training
    assert model.posterior.training
    assert not any(module.training for module in model.likelihood.modules())


def test_the_mode_is_restored_after_an_error_too():
    model = vae("normal", "bernoulli")
    with pytest.raises(ConfigError):
        model.encode(torch.zeros(2, 7))
    assert model.training
    assert torch.is_grad_enabled()


def test_elbo_is_the_bound_for_clean_x_whatever_the_loss_is():
    model = VAE(
        priors.StandardNormal(2),
        conditionals.Normal(MLP(EVENT), LATENT),
        conditionals.Bernoulli(MLP(LATENT), EVENT),
        objectives.ELBO(beta=7.0, warmup=3.0, free_bits=2.0),
        corruption=Masking(1.0),
    )
    x = examples(model, 4)
    torch.manual_seed(1)
    bound = model.elbo(x, samples=3)
    torch.manual_seed(1)
    z = model.posterior(x).rsample((3,))
    expected = model.likelihood(z).log_prob(x).mean(0) - xhat.kl_divergence(model.posterior(x), model.prior())
    torch.testing.assert_close(bound, expected)


def test_elbo_takes_one_draw_also_where_the_gradient_needs_two():
    model = from_recipe("discrete vae")
    assert model.elbo(examples(model, 4)).shape == (4,)


# Denoising


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_is_drawn_anew_and_only_the_encoder_sees_it(name):
    model = from_recipe(f"denoising {name}")
    x = examples(model, 4)
    seen = []
    model.posterior.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model.loss(x)
    model.loss(x)
    assert not torch.equal(seen[0], x)
    assert not torch.equal(seen[0], seen[1])
    seen.clear()
    model.reconstruct(x)
    assert torch.equal(seen[0], x)


# Tied weights


@pytest.mark.parametrize("hidden", [[], [5], [7, 5]])
def test_tied_weights_are_one_tensor_counted_once_that_learns_from_both_uses(hidden, tmp_path):
    model = xhat.build("autoencoder", (6,), latent=2, hidden=hidden, tied=True, activation="tanh").double()
    apart = xhat.build("autoencoder", (6,), latent=2, hidden=hidden, activation="tanh").double()
    sizes = [6, *hidden, 2]
    weights = sum(a * b for a, b in itertools.pairwise(sizes))
    biases = sum(sizes[1:]) + sum(sizes[:-1])
    assert sum(p.numel() for p in model.parameters()) == weights + biases
    assert sum(p.numel() for p in apart.parameters()) == 2 * weights + biases

    # The same function, written with two copies of each weight: a shared weight's gradient is the sum over both uses.
    up = [*apart.posterior.network.layers, apart.posterior.head.linear]
    down = [*apart.likelihood.network.layers, apart.likelihood.head.linear]
    own_up = [*model.posterior.network.layers, model.posterior.head.linear]
    own_down = [*model.likelihood.network.layers, model.likelihood.head.linear]
    with torch.no_grad():
        for mine, theirs in zip(own_up, up, strict=True):
            theirs.weight.copy_(mine.weight)
            theirs.bias.copy_(mine.bias)
        for mine, theirs, source in zip(own_down, down, reversed(own_up), strict=True):
            theirs.weight.copy_(source.weight.T)
            theirs.bias.copy_(mine.bias)
    x = torch.randn(5, 6, dtype=F64)
    torch.testing.assert_close(model.reconstruct(x), apart.reconstruct(x))
    for one in (model, apart):
        one.loss(x).sum().backward()
    for i, mine in enumerate(own_up):
        torch.testing.assert_close(mine.weight.grad, up[i].weight.grad + down[-1 - i].weight.grad.T)

    path = xhat.save(model, tmp_path / "m.safetensors")
    again = xhat.load(path)
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))
    with torch.no_grad():  # still shared
        again.posterior.head.linear.weight.add_(1)
    assert not torch.equal(again.decode(x[:, :2]), model.decode(x[:, :2]))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.posterior.head.linear.weight.zero_()
    assert torch.equal(again.likelihood(x[:, :2]).mean, again.decode(x[:, :2]))
    assert not torch.equal(twin.decode(x[:, :2]), model.decode(x[:, :2]))


# What does not fit


def normal(context=EVENT, event=LATENT):
    return conditionals.Normal(MLP(context), event)


def bernoulli(context=LATENT, event=EVENT):
    return conditionals.Bernoulli(MLP(context), event)


class NoLaw(nn.Module):
    event = LATENT

    def forward(self, x):
        return x[:, :2]


class NoEvent(nn.Module):
    def forward(self, x):
        return td.Independent(td.Normal(x[:, :2], 1.0), 1)


class FlatEvent(nn.Module):
    event = LATENT

    def forward(self, x):
        return td.Normal(x[:, :2], 1.0)


REFUSED = [
    (
        lambda: VAE(priors.StandardNormal(3), normal(), bernoulli()),
        r"the prior draws events of shape \(3,\), the posterior of shape \(2,\)",
    ),
    (
        lambda: VAE(priors.StandardNormal(2), conditionals.Delta(MLP(3), 2), bernoulli()),
        "a Delta posterior has no density.* use xhat.Autoencoder",
    ),
    (
        lambda: VAE(priors.StandardNormal(2), bernoulli(EVENT, LATENT), bernoulli(), gradient=gradients.Score()),
        "the posterior Bernoulli and the prior StandardNormal do not live on the same points.* of the posterior's kind",
    ),
    (
        lambda: VAE(priors.Bernoulli(2), normal(), bernoulli()),
        "the posterior Normal and the prior Bernoulli do not live on the same",
    ),
    (lambda: VAE(priors.Uniform(2), normal(), bernoulli()), "impossible under the prior Uniform"),
    (
        lambda: VAE(priors.Bernoulli(2), conditionals.Poisson(MLP(3), 2), bernoulli(), gradient=gradients.Score()),
        "the posterior Poisson draws values that are impossible under the prior Bernoulli",
    ),
    (
        lambda: VAE(priors.Categorical(2, 3), conditionals.Categorical(MLP(3), 2, 4), bernoulli(), gradient=gradients.Score()),
        "the posterior Levels draws values that are impossible under the prior Categorical",
    ),
    (lambda: VAE(priors.Bernoulli(2), bernoulli(EVENT, LATENT), bernoulli()), "'pathwise' needs .* gradients that fit: score"),
    (
        lambda: VAE(priors.StandardNormal(2), normal(), bernoulli(), gradient=gradients.Score("leave-one-out")),
        "needs samples of at least 2, was 1",
    ),
    (
        lambda: VAE(priors.StandardNormal(2), normal(), bernoulli(context=5)),
        r"likelihood: its network takes 5 values .* gets \(2,\)",
    ),
    (
        lambda: VAE(priors.StandardNormal(2), normal(context=5), bernoulli()),
        r"posterior: its network takes 5 values .* gets \(3,\)",
    ),
    (
        lambda: VAE(priors.StandardNormal(2), NoLaw(), bernoulli()),
        "the posterior must return a torch Distribution, returned Tensor",
    ),
    (lambda: VAE(priors.StandardNormal(2), NoEvent(), bernoulli()), "the posterior NoEvent needs an attribute event"),
    (
        lambda: VAE(priors.StandardNormal(2), FlatEvent(), bernoulli()),
        r"has event shape \(\), but declares \(2,\): wrap the law in",
    ),
    (lambda: VAE(nn.Identity(), normal(), bernoulli()), "the prior Identity needs an attribute event"),
    (lambda: Autoencoder(conditionals.Delta(MLP(3), 2), bernoulli(), objectives.ELBO()), "an Autoencoder has no prior"),
    (lambda: Autoencoder(NoEvent(), bernoulli(), tied=True), "tied weights need conditionals of xhat"),
    (lambda: priors.Bernoulli(2, probs=1.0), "probs must be between 0 and 1"),
    (lambda: priors.Poisson(2, rate=0.0), "rate must be above 0"),
    (lambda: priors.Poisson(2, rate=math.inf), "rate must be above 0 and finite, was inf"),
    (lambda: priors.VampPrior(2, 4, bounds=(0.0, math.inf)), "bounds must be two finite numbers"),
    (lambda: xhat.build("gan", 4), "recipe must be one of autoencoder, denoising, stacked, vae, .*was 'gan'"),
    (lambda: xhat.build(["vae"], 4), "recipe must be one of autoencoder, .*was \\[.vae.\\]"),
    (lambda: xhat.build("vae", 4, posterior=["flow"]), "posterior must be one name, such as .normal., was \\[.flow.\\]"),
    (lambda: xhat.build("vae", 4, activation={"relu"}), "activation must be one name, such as .relu."),
    (lambda: xhat.build("autoencoder", 4, beta=2.0), "the recipe 'autoencoder' has no option 'beta'; its options are"),
    (lambda: xhat.build("vae", 4, colour="red"), "there is no option 'colour'"),
    (lambda: xhat.build("vae", 4, latent=0), "latent must be"),
    (lambda: xhat.build("vae", (1, 0, 3)), "shape must be"),
    (lambda: xhat.build("vae", 4, likelihood="cauchy"), "likelihood must be one of normal, .*, was 'cauchy'"),
    (lambda: xhat.build("vae", 4, likelihood="delta"), "a Delta likelihood gives every other x probability 0"),
    (lambda: xhat.build("vae", 4, posterior="delta"), "a Delta posterior"),
    (lambda: xhat.build("vae", 4, posterior="bernoulli"), "gradients that fit: score"),
    (lambda: xhat.build("vae", 4, likelihood="bernoulli", link="sigmoid"), "link is an option of likelihood='normal'"),
    (lambda: xhat.build("vae", 4, network="transformer"), "network must be one of mlp, conv, was .transformer."),
    (lambda: xhat.build("vae", 4, network="conv"), r"\(channels, height, width\), was \(4,\): use network='mlp'"),
    (lambda: xhat.build("vae", (1, 4, 4), network="conv", hidden=[3, 3]), "one fully connected layer"),
    (lambda: xhat.build("vae", (1, 4, 4), likelihood="multivariate-normal"), "an event with one axis"),
    (lambda: xhat.build("autoencoder", (1, 4, 4), network="conv", tied=True, hidden=[3]), "only an MLP"),
    (lambda: xhat.build("vae", 4, baseline="lagged"), r"option.*gradient.*'pathwise'|'pathwise' .*option"),
]


@pytest.mark.parametrize(("make", "words"), REFUSED)
def test_parts_that_do_not_fit_are_refused_by_name(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_bernoulli_on_grey_values_is_refused_with_the_remedy():
    model = vae("normal", "bernoulli")
    x = torch.zeros(4, *EVENT)
    x[3, 2] = 0.25
    for call in (model.loss, model.elbo):
        with pytest.raises(
            DataError, match=r"x: example 3 holds 0.25 at \(2,\), .*0 and 1.*binarise='?.*continuous-bernoulli|binarise"
        ):
            call(x)
    with pytest.raises(DataError, match=r"x must have shape \(B, 3\) for this model, was \(4, 2\)"):
        model.loss(torch.zeros(4, 2))


def test_an_autoencoder_says_what_it_cannot_do():
    model = from_recipe("autoencoder normal")
    with pytest.raises(ConfigError, match="Autoencoder has no prior and so cannot sample new examples: train a VAE"):
        model.sample(3)
    with pytest.raises(ConfigError, match="cannot have an evidence lower bound"):
        model.elbo(torch.zeros(2, *model.event_shape))


# Parts of one's own


class Strange(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.out_features = 4

    def forward(self, x):
        return self.first(x).tanh()


def strange() -> VAE:
    return VAE(priors.StandardNormal(2), conditionals.Normal(Strange(), 2), bernoulli())


def test_weights_of_strange_networks_are_saved_and_put_back_into_a_model_like_it(tmp_path):
    model, x = strange(), torch.zeros(4, *EVENT)
    path = xhat.save(model, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"pass it, xhat\.load"):
        xhat.load(path)
    again = xhat.load(path, model=strange())
    assert torch.equal(again.encode(x), model.encode(x))
    with pytest.raises(CheckpointError, match="does not match this model"):
        xhat.load(path, model=vae("normal", "bernoulli"))


class Own(nn.Module):
    """A conditional that knows nothing of xhat."""

    def __init__(self, size, event, law):
        super().__init__()
        self.linear, self.event, self.make = nn.Linear(size, 2 * event[0]), event, law

    def forward(self, context):
        a, b = self.linear(context).chunk(2, -1)
        return td.Independent(self.make(a, b.exp()), 1)


def test_conditionals_of_ones_own_get_everything():
    model = VAE(priors.StandardNormal(2), Own(3, (2,), td.Normal), Own(2, (3,), td.Laplace))
    x = torch.randn(6, 3)
    model.loss(x).mean().backward()
    assert model.sample(4).shape == (4, 3)
    assert model.reconstruct(x).shape == (6, 3)
    result = xhat.evaluate(model, x, samples=20)
    assert result.log_likelihood.value > result.elbo.value - 1
    assert result.kl is not None


def test_a_model_of_images_by_parts():
    shape = (3, 9, 5)
    model = VAE(
        priors.StandardNormal(4),
        conditionals.Normal(ConvEncoder(shape, [4], 8), 4),
        conditionals.Normal(ConvDecoder(4, shape, [4], 8), shape, per="dimension"),
    )
    assert model.loss(torch.rand(2, *shape)).shape == (2,)
    assert model.sample(2).shape == (2, *shape)


@pytest.mark.parametrize(
    "prior",
    [priors.StandardNormal(2), priors.Bernoulli(2, 0.3), priors.Categorical(2, 4), priors.Poisson(2, 1.5), priors.Uniform(2)],
)
def test_priors_are_normalised_and_follow_the_dtype(prior):
    prior = prior.double()
    p = prior()
    assert p.event_shape == (2,)
    assert p.sample().dtype == F64
    base = p.base_dist
    if base.support.is_discrete:
        axis = base.enumerate_support()[:, 0] if base.has_enumerate_support else torch.arange(60.0, dtype=F64)
        total = p.log_prob(torch.cartesian_prod(axis, axis)).exp().sum()
    elif isinstance(prior, priors.Uniform):
        values = torch.tensor([[0.0, 1.0], [0.3, 0.3], [1.0, 0.5]], dtype=F64)
        assert (p.log_prob(values) == 0).all()  # the ends too, which a continuous Bernoulli posterior does draw
        total = p.log_prob(values)[1].exp()
    else:
        axis = torch.linspace(-9, 9, 181, dtype=F64)
        total = p.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * 0.01
    assert total.item() == pytest.approx(1.0, abs=1e-9)
