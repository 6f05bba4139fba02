"""Random weights: three ways to draw them with one law for each example, the exact divergence, and models made Bayesian."""

import json
import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl
from torch.nn import functional as F

import xhat
from xhat.errors import CheckpointError, ConfigError
from xhat.networks import MLP, BayesianConv2d, BayesianLinear, bayesian, kl, mean_weights
from xhat.networks.bayesian_linear import SAMPLINGS, divergence, raw_scale_of
from xhat.parts import rebuild, specification

F64 = torch.float64
DRAWS = 20_000
SIGMAS = 4.0


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def linear(sampling, inputs=3, outputs=2, bias=True, spread=0.7):
    """A layer in float64 whose scales differ from weight to weight; the same weights for every sampling."""
    generator = torch.Generator().manual_seed(1)
    layer = BayesianLinear(inputs, outputs, bias, sampling).double()
    with torch.no_grad():
        for loc, raw in layer.laws():
            loc.copy_(torch.randn(loc.shape, generator=generator, dtype=F64))
            raw.copy_(raw_scale_of(spread) + 0.5 * torch.randn(raw.shape, generator=generator, dtype=F64))
    return layer


def rows(count, size=3):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(2), dtype=F64)


def close(draws, truth):
    """The mean of draws, ``(N, …)``, is the truth within 4 standard errors, coordinate by coordinate."""
    stderr = draws.std(0) / math.sqrt(len(draws))
    off = (draws.mean(0) - truth).abs() / stderr.clamp_min(1e-12)
    assert (off < SIGMAS).all(), f"off by {off.max():.1f} standard errors"


def outputs(layer, x, draws=DRAWS):
    """Outputs of many calls, ``(draws, *y.shape)``; each call makes its own draw, and all are made at once."""
    with torch.no_grad():
        return torch.func.vmap(lambda _: layer(x), randomness="different")(torch.empty(draws))


def gradients(net, draws, loss, names=None):
    """Gradients of many calls with respect to the parameters of these names, ``(draws, numbers)``; each makes its own draw."""
    held = {name: parameter.detach() for name, parameter in net.named_parameters()}
    chosen = {name: held[name] for name in names or held}

    def one(_):
        slopes = torch.func.grad(lambda at: loss(lambda x: torch.func.functional_call(net, {**held, **at}, (x,))))(chosen)
        return torch.cat([slope.flatten() for slope in slopes.values()])

    return torch.func.vmap(one, randomness="different")(torch.empty(draws))


def moments(layer, x):
    mean = F.linear(x, layer.weight_loc, layer.bias_loc)
    bias = None if layer.bias_scale is None else layer.bias_scale.square()
    return mean.detach(), F.linear(x.square(), layer.weight_scale.square(), bias).detach()


# The law of the outputs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_each_output_has_the_law_of_random_weights(sampling, bias):
    layer, x = linear(sampling, bias=bias), rows(2)
    y = outputs(layer, x, DRAWS // 2)
    mean, variance = moments(layer, x)
    close(y, mean)
    close((y - mean).square(), variance)
    close((y - mean) ** 4, 3 * variance.square())  # a Normal, so also the fourth moment
    # One example's outputs have rows of W of their own, so they are independent.
    close((y - mean)[..., 0] * (y - mean)[..., 1], torch.zeros(2, dtype=F64))


def test_shared_weights_give_examples_their_exact_covariance_and_the_others_none():
    x = rows(2)
    for sampling in SAMPLINGS:
        layer = linear(sampling)
        mean, _ = moments(layer, x)
        off = outputs(layer, x, DRAWS // 2) - mean
        covariance = (x[0] * x[1] * layer.weight_scale.square()).sum(1) + layer.bias_scale.square()
        assert (covariance.abs() > 0.1).all()  # so that the samplings can be told apart
        close(off[:, 0] * off[:, 1], covariance.detach() if sampling == "shared" else torch.zeros(2, dtype=F64))


def test_flipout_shares_the_sizes_of_its_noise_and_local_draws_nothing():
    # With v_k the variance that input k brings: Cov(y_1², y_2²) = 2 Σ v_k² under flipout, whose signs for the inputs remove the
    # products of different inputs; 2 (Σ v_k)² for shared weights; 0 for local draws.
    x = torch.ones(2, 3, dtype=F64)
    for sampling in SAMPLINGS:
        layer = linear(sampling, outputs=1, bias=False)
        mean, _ = moments(layer, x)
        brought = layer.weight_scale.detach().square()
        truth = {"shared": 2 * brought.sum() ** 2, "flipout": 2 * brought.square().sum(), "local": torch.zeros((), dtype=F64)}
        assert truth["flipout"] < 0.6 * truth["shared"]
        square = (outputs(layer, x) - mean).square().squeeze(-1) - brought.sum()
        close(square[:, 0] * square[:, 1], truth[sampling])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_any_number_of_leading_dimensions(sampling):
    layer = linear(sampling)
    for shape in ((3,), (5, 3), (4, 5, 3), (2, 4, 5, 3), (0, 3)):
        assert layer(torch.zeros(shape, dtype=F64)).shape == (*shape[:-1], 2)
    y = outputs(layer, rows(4).reshape(2, 2, 3), 4000)
    close(y, moments(layer, rows(4).reshape(2, 2, 3))[0])
    assert layer.float()(torch.zeros(5, 3)).dtype == torch.float32


def test_draws_in_both_modes_and_the_mean_where_it_is_asked_for():
    x = rows(4)
    for sampling in SAMPLINGS:
        net = nn.Sequential(linear(sampling), nn.Tanh()).eval()
        assert not torch.equal(net(x), net(x))
        with mean_weights(net):
            assert torch.equal(net(x), torch.tanh(F.linear(x, net[0].weight_loc, net[0].bias_loc)))
            with mean_weights(net[0]):
                pass
            assert torch.equal(net(x), net(x))  # an inner block does not switch the outer one off
        assert not torch.equal(net(x), net(x))


# Gradients


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_gradients_of_an_expected_sine_are_the_closed_form(sampling):
    # E sin(m + v^½ ε) = sin(m) e^(-v/2)
    layer, x = linear(sampling, outputs=1), rows(3)
    parameters = list(layer.parameters())
    variance = F.linear(x.square(), layer.weight_scale.square(), layer.bias_scale.square())
    exact = (F.linear(x, layer.weight_loc, layer.bias_loc).sin() * (-variance / 2).exp()).mean()
    truth = torch.cat([grad.flatten() for grad in torch.autograd.grad(exact, parameters)])
    assert (truth.abs() > 1e-3).all()
    close(gradients(layer, 6000, lambda run: run(x).sin().mean()), truth)
    each = [torch.autograd.grad(layer(x).sin().mean(), parameters) for _ in range(400)]  # and one call after the other
    close(torch.stack([torch.cat([slope.flatten() for slope in slopes]) for slopes in each]), truth)


def test_the_three_samplings_agree_through_two_layers():
    x, means, stderrs = rows(4), [], []
    for sampling in SAMPLINGS:
        net = nn.Sequential(linear(sampling, outputs=4), nn.Tanh(), linear(sampling, inputs=4, outputs=1))
        draws = gradients(net, 3000, lambda run: (run(x) - 0.5).square().mean())
        means.append(draws.mean(0))
        stderrs.append(draws.std(0) / math.sqrt(len(draws)))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        off = (means[a] - means[b]).abs() / (stderrs[a].square() + stderrs[b].square()).sqrt()
        assert off.max() < SIGMAS


def spread_of(sampling, batch, parameter, loss=torch.square, draws=3000):
    """Sum over coordinates of the gradient's variance for copies of one example, and its standard error."""
    layer, x = linear(sampling, outputs=1), rows(1).expand(batch, 3)
    found = gradients(layer, draws, lambda run: loss(run(x)).mean(), [parameter])
    squares = (found - found.mean(0)).square().sum(1)
    return float(squares.mean()), float(squares.std() / math.sqrt(draws))


@pytest.mark.parametrize(
    ("sampling", "parameter", "falls"),
    [
        ("shared", "weight_loc", False),
        ("local", "weight_loc", True),
        ("flipout", "weight_loc", True),
        ("shared", "weight_raw_scale", False),
        ("local", "weight_raw_scale", True),
    ],
)
def test_how_the_variance_of_a_gradient_falls_with_the_batch(sampling, parameter, falls):
    batch = 32
    one, one_error = spread_of(sampling, 1, parameter)
    many, many_error = spread_of(sampling, batch, parameter)
    expected = 1 / batch if falls else 1.0
    error = math.hypot(many_error, expected * one_error)
    assert abs(many - expected * one) < SIGMAS * error
    assert abs(many - (1.0 if not falls else 0.0) * one) < 0.3 * one  # and the test can tell the two apart


def test_flipout_leaves_a_floor_under_the_variance_with_respect_to_the_scale():
    # With one input and μ = 0, d/dσ of (σ ε r s)² = 2 σ ε²: the same for all examples, whatever their signs.
    x = torch.ones(32, 1, dtype=F64)
    layer = linear("flipout", inputs=1, outputs=1, bias=False)
    with torch.no_grad():
        layer.weight_loc.zero_()
    per_row = torch.autograd.functional.jacobian(lambda raw: _replayed(layer, x, raw), layer.weight_raw_scale).flatten()
    assert per_row[0] != 0
    torch.testing.assert_close(per_row, per_row[:1].expand(32))


def _replayed(layer, x, raw):
    torch.manual_seed(3)
    return torch.func.functional_call(layer, {"weight_raw_scale": raw}, (x,)).square().flatten()


def test_an_input_of_zeros_has_a_finite_gradient():
    layer, x = linear("local", bias=False), torch.zeros(4, 3, dtype=F64, requires_grad=True)
    y = layer(x)
    assert torch.equal(y, torch.zeros(4, 2, dtype=F64))
    for grad in torch.autograd.grad(y.sum(), [x, layer.weight_loc, layer.weight_raw_scale]):
        assert grad.isfinite().all()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_several_forwards_before_one_backward(sampling):
    net, x = nn.Sequential(linear(sampling), nn.Tanh(), linear(sampling, inputs=2)), rows(4)
    parameters = list(net.parameters())

    def loss(seed):
        torch.manual_seed(seed)
        return net(x).square().sum()

    apart = [torch.autograd.grad(loss(seed), parameters) for seed in (5, 6)]
    assert not torch.equal(apart[0][0], apart[1][0])
    together = torch.autograd.grad(loss(5) + loss(6), parameters)
    for a, b, both in zip(*apart, together, strict=True):
        torch.testing.assert_close(a + b, both)


def test_only_torchs_generator_is_used():
    x = rows(4)
    for sampling in SAMPLINGS:
        layer = linear(sampling)
        torch.manual_seed(7)
        first = layer(x)
        torch.manual_seed(7)
        assert torch.equal(first, layer(x))
        assert not list(layer.buffers())


# Divergence


def test_the_divergence_and_its_gradient_are_torchs():
    for prior_scale in (0.3, 1.0, 5.0):
        layer = linear("shared")
        layer.prior_scale = prior_scale
        prior = Normal(torch.zeros((), dtype=F64), torch.full((), prior_scale, dtype=F64))
        laws = [Normal(loc, F.softplus(raw)) for loc, raw in layer.laws()]
        truth = sum(torch_kl(law, prior).sum() for law in laws)
        torch.testing.assert_close(layer.kl(), truth)
        parameters = list(layer.parameters())
        torch.testing.assert_close(torch.autograd.grad(layer.kl(), parameters), torch.autograd.grad(truth, parameters))
    assert torch.autograd.gradcheck(lambda loc, raw: divergence(loc, F.softplus(raw), 0.9), (rows(2).requires_grad_(),) * 2)


@pytest.mark.parametrize("off", [1e-1, 4.9e-2, 1e-3, 1e-6, -1e-6, -1e-3, -4.9e-2])
def test_the_divergence_is_precise_where_the_posterior_is_nearly_the_prior(off):
    # t² - t³/3 + t⁴/4 - …, the series of (t² + 2t - 2 ln(1 + t)) / 2
    prior = 0.25
    scale = torch.tensor(prior * (1 + off), dtype=torch.float32, requires_grad=True)
    t = (scale.item() - prior) / prior
    value = divergence(torch.tensor(0.0), scale, prior)
    series = t * t + sum((-1) ** n * t**n / n for n in range(3, 40))
    assert value.item() == pytest.approx(series, rel=1e-5 if abs(off) < 0.05 else 1e-4)
    (slope,) = torch.autograd.grad(value, scale)
    assert slope.item() == pytest.approx((t + t / (1 + t)) / prior, rel=1e-5)


def test_no_divergence_from_a_posterior_that_is_the_prior():
    layer = BayesianLinear(3, 2, prior_scale=0.5, initial_scale=0.5).double()
    with torch.no_grad():
        for loc, raw_scale in layer.laws():
            loc.zero_()
            raw_scale.fill_(raw_scale_of(0.5))
    assert 0 <= layer.kl().item() < 1e-28


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 0.1, 1.0, 50.0, 1000.0])
def test_a_layer_starts_at_the_scale_it_was_given(scale):
    layer = BayesianLinear(2, 2, initial_scale=scale).double()
    torch.testing.assert_close(F.softplus(torch.tensor(raw_scale_of(scale), dtype=F64)).item(), scale, rtol=1e-12, atol=0)
    torch.testing.assert_close(layer.weight_scale, torch.full((2, 2), scale, dtype=F64), rtol=1e-4, atol=0)
    assert layer.weight_loc.abs().max() <= 1 / math.sqrt(2)


# Convolutions


def convolution(sampling="flipout", **options):
    generator = torch.Generator().manual_seed(1)
    layer = BayesianConv2d(**({"in_channels": 2, "out_channels": 2, "kernel_size": 2, "sampling": sampling} | options)).double()
    with torch.no_grad():
        for loc, raw in layer.laws():
            loc.copy_(torch.randn(loc.shape, generator=generator, dtype=F64))
            raw.copy_(0.5 * torch.randn(raw.shape, generator=generator, dtype=F64))
    return layer


@pytest.mark.parametrize("sampling", ["shared", "flipout"])
def test_each_image_has_the_joint_law_of_shared_weights_over_its_positions(sampling):
    layer, x = convolution(sampling), rows(2, 2 * 3 * 2).reshape(2, 2, 3, 2)
    patches = F.unfold(x, 2).transpose(1, 2)  # (N, positions, elements of a kernel)
    weight, scale = layer.weight_loc.flatten(1), layer.weight_scale.flatten(1)
    mean = (patches @ weight.T + layer.bias_loc).detach()
    y = outputs(layer, x, 8000).flatten(3).transpose(2, 3)  # (draws, N, positions, channels)
    close(y, mean)
    off = y - mean
    covariance = torch.einsum("npk,ok,nqk->npqo", patches, scale.square(), patches) + layer.bias_scale.square()
    close(off[:, :, :, None] * off[:, :, None], covariance.detach())
    between = torch.einsum("pk,ok,qk->pqo", patches[0], scale.square(), patches[1]) + layer.bias_scale.square()
    cross = off[:, 0, :, None] * off[:, 1, None]
    close(cross, between.detach() if sampling == "shared" else torch.zeros_like(between))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_convolution_of_one_pixel_is_a_linear_layer(sampling):
    flat = linear(sampling)
    layer = BayesianConv2d(3, 2, 1, sampling=sampling).double()
    layer.load_state_dict(
        {name: value.reshape(layer.state_dict()[name].shape) for name, value in flat.state_dict().items()}, strict=True
    )
    x = rows(4)
    torch.manual_seed(8)
    expected = flat(x)
    torch.manual_seed(8)
    torch.testing.assert_close(layer(x[..., None, None])[..., 0, 0], expected)
    torch.testing.assert_close(layer.kl(), flat.kl())


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_positions_of_a_convolution_share_their_weights_and_drawn_locally_their_law_alone(sampling):
    layer = BayesianConv2d(1, 1, (1, 2), bias=False, sampling=sampling).double()
    with torch.no_grad():
        layer.weight_loc.zero_()
        layer.weight_raw_scale.fill_(raw_scale_of(0.7))
    x = torch.tensor([1.0, -2.0, 3.0], dtype=F64).reshape(1, 1, 1, 3)
    first, second = outputs(layer, x)[:, 0, 0, 0].unbind(-1)
    close(first.square(), torch.tensor(0.49 * 5, dtype=F64))
    close(second.square(), torch.tensor(0.49 * 13, dtype=F64))
    close(first * second, torch.tensor(0.0 if sampling == "local" else 0.49 * -8, dtype=F64))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)},
        {"kernel_size": 3, "groups": 2, "bias": False},
        {"kernel_size": (4, 3), "padding": "same", "dilation": 2},
        {"kernel_size": 3, "padding": "valid"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": (2, 3), "padding": "same", "padding_mode": "circular"},
    ],
    ids=str,
)
def test_the_mean_of_a_convolution_is_torchs_convolution(options):
    plain = nn.Conv2d(4, 6, **options).double()
    x = torch.randn(2, 4, 9, 8, dtype=F64)
    for sampling in SAMPLINGS:
        layer = bayesian(plain, sampling, initial_scale=0.1)
        assert layer(x).shape == plain(x).shape
        with mean_weights(layer):
            torch.testing.assert_close(layer(x), plain(x))
            torch.testing.assert_close(layer(x[0]), plain(x[0]))
        assert layer(x[0]).shape == plain(x[0]).shape
    made = BayesianConv2d(4, 6, **options)
    assert made.weight_loc.shape == plain.weight.shape


# Whole models


def test_a_model_keeps_its_means_and_the_original_its_layers():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 2, 2), nn.Flatten(), nn.Linear(32, 3)).double().eval()
    x = torch.randn(4, 1, 5, 5, dtype=F64)
    before, state = model(x), torch.get_rng_state()
    made = bayesian(model, prior_scale=0.5, initial_scale=0.2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(layer).__name__ for layer in made] == ["BayesianConv2d", "ConvTranspose2d", "Flatten", "BayesianLinear"]
    assert torch.equal(model(x), before)
    assert type(model[3]) is nn.Linear
    assert not any(a is b for a in model.parameters() for b in made.parameters())
    assert all(p.dtype == F64 and not p.is_meta for p in made.parameters())
    assert not made[0].training
    with mean_weights(made):
        torch.testing.assert_close(made(x), before)
    assert not torch.equal(made(x), made(x))
    prior = Normal(torch.zeros((), dtype=F64), torch.full((), 0.5, dtype=F64))
    truth = sum(torch_kl(Normal(p, torch.full_like(p, 0.2)), prior).sum() for i in (0, 3) for p in model[i].parameters())
    torch.testing.assert_close(kl(made), truth)


def test_shared_layers_and_shared_parameters_stay_shared_and_count_once():
    layer, twin = nn.Linear(3, 3), nn.Linear(3, 3)
    twin.weight = layer.weight
    made = bayesian(nn.Sequential(layer, nn.Tanh(), layer, twin))
    assert made[0] is made[2]
    assert made[3] is not made[0]
    assert made[3].weight_loc is made[0].weight_loc
    assert made[3].weight_raw_scale is made[0].weight_raw_scale
    assert made[3].bias_raw_scale is not made[0].bias_raw_scale
    bias = divergence(made[3].bias_loc, made[3].bias_scale, 1.0)
    torch.testing.assert_close(kl(made), made[0].kl() + bias)


def test_frozen_layers_stay_frozen():
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    assert [p.requires_grad for p in bayesian(model).parameters()] == [False] * 4 + [True] * 4


def test_what_reads_weights_instead_of_calling_layers_is_left_alone():
    model = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0), nn.Linear(4, 2)).eval()
    made = bayesian(model)
    assert type(made[0].linear1) is nn.Linear
    assert type(made[1]) is BayesianLinear
    with torch.no_grad():
        assert made(torch.randn(2, 3, 4)).shape == (2, 3, 2)


def test_a_bayesian_regression_finds_the_exact_posterior():
    # One linear layer with a Normal likelihood of known noise: the best diagonal Normal has the posterior's mean, and the
    # precision's diagonal. Orthogonal columns make it the posterior itself.
    noise, prior = 0.5, 2.0
    x = torch.linalg.qr(rows(16, 2)).Q * 2.0
    y = x @ torch.tensor([[1.0], [-2.0]], dtype=F64) + noise * rows(16, 1)
    precision = x.T @ x / noise**2 + torch.eye(2, dtype=F64) / prior**2
    mean = torch.linalg.solve(precision, x.T @ y / noise**2)
    layer = BayesianLinear(2, 1, bias=False, sampling="local", prior_scale=prior, initial_scale=0.1).double()
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, 1500)
    for _ in range(1500):
        loss = (layer(x.repeat(8, 1)) - y.repeat(8, 1)).square().sum() / (8 * 2 * noise**2) + layer.kl()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    scale = precision.diagonal().rsqrt()
    assert ((layer.weight_loc.flatten() - mean.flatten()).abs() < 0.1 * scale).all()
    assert ((layer.weight_scale.flatten() / scale).log().abs() < 0.1).all()


# Files


@pytest.mark.parametrize(
    "part",
    [
        BayesianLinear(3, 2, False, "local", prior_scale=0.5, initial_scale=0.3),
        BayesianConv2d(2, 4, (3, 2), stride=2, padding="valid", groups=2, sampling="shared", prior_scale=3.0),
    ],
    ids=["linear", "convolution"],
)
def test_a_layer_comes_back_from_its_description_and_its_state(part):
    described = json.loads(json.dumps(specification(part)))
    with torch.device("meta"):
        outline = rebuild(described)
    again = rebuild(described)
    assert {name: p.shape for name, p in outline.named_parameters()} == {name: p.shape for name, p in part.named_parameters()}
    assert specification(again) == specification(part)
    assert not torch.equal(again.weight_loc, part.weight_loc)
    again.load_state_dict(part.state_dict())
    x = torch.randn(5, 3) if isinstance(part, BayesianLinear) else torch.randn(5, 2, 7, 7)
    torch.manual_seed(9)
    expected = part(x)
    torch.manual_seed(9)
    assert torch.equal(again(x), expected)
    assert torch.equal(again.kl(), part.kl())


def test_a_model_with_bayesian_bodies_is_described_and_loaded(tmp_path):
    def model():
        return xhat.VAE(
            prior=xhat.priors.StandardNormal(2),
            posterior=xhat.conditionals.Normal(BayesianLinear(4, 6), event=2),
            likelihood=xhat.conditionals.Bernoulli(MLP(2, [5]), event=4),
        )

    made = model()
    again = xhat.load(xhat.save(made, tmp_path / "model.safetensors"))
    assert torch.equal(again.posterior.network.weight_raw_scale, made.posterior.network.weight_raw_scale)


def test_a_converted_model_trains_and_its_weights_come_back_into_another(tmp_path):
    x = (torch.rand(24, 4) < 0.5).float()
    torch.manual_seed(3)
    plain = xhat.build("vae", shape=(4,), latent=2, hidden=[5], likelihood="bernoulli")
    made = bayesian(plain, initial_scale=0.05)
    before = kl(made).item()
    xhat.fit(made, x, epochs=1, out=tmp_path / "run")
    assert kl(made).item() != before
    again = xhat.load(tmp_path / "run", model=bayesian(plain))
    with mean_weights(made), mean_weights(again):
        assert torch.equal(again.encode(x), made.encode(x))
    with pytest.raises(CheckpointError, match="model=…"):  # never a plain model in its place
        xhat.load(tmp_path / "run")
    xhat.load(xhat.save(plain, tmp_path / "plain.safetensors"))


# Bad input


def embedding_tied():
    net = nn.ModuleDict({"embed": nn.Embedding(3, 2), "out": nn.Linear(2, 3)})
    net["out"].weight = net["embed"].weight
    return net


def normalised():
    layer = nn.Linear(2, 2)
    layer.register_forward_pre_hook(lambda module, args: None)
    return nn.Sequential(layer)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BayesianLinear(0, 2), "in_features must be at least 1, was 0"),
        (lambda: BayesianLinear(4, 3)(torch.zeros(2, 5)), r"takes x of shape \(\*batch, 4\), was \(2, 5\)"),
        (lambda: BayesianLinear(2, 2.5), r"out_features must be a whole number, was 2\.5"),
        (lambda: BayesianLinear(2, 2, sampling="flip"), "must be one of shared, local, flipout, was 'flip': choose"),
        (lambda: BayesianLinear(2, 2, prior_scale=-1.0), r"prior_scale must be a finite number above 0, was -1\.0"),
        (lambda: BayesianLinear(2, 2, initial_scale=0), "initial_scale must be a finite number above 0, was 0"),
        (lambda: BayesianLinear(2, 2, prior_scale=math.inf), "prior_scale must be a finite"),
        (lambda: BayesianLinear(2, 2, prior_scale="1"), "prior_scale must be a finite number above 0, was '1'"),
        (lambda: BayesianConv2d(2, 2, 3, sampling="flip"), "must be one of shared, local, flipout, was 'flip': choose"),
        (lambda: BayesianConv2d(2, 3, 3, groups=2), "groups must divide in_channels=2 and out_channels=3, was 2"),
        (lambda: BayesianConv2d(2, 2, (3, 3, 3)), "kernel_size must be a whole number or two"),
        (lambda: BayesianConv2d(2, 2, 3, padding=-1), "padding must be at least 0, was -1"),
        (lambda: BayesianConv2d(2, 2, 3, padding="full"), "padding must be .*'same' or 'valid', was 'full'"),
        (lambda: BayesianConv2d(2, 2, 3, stride=2, padding="same"), "needs stride 1"),
        (lambda: BayesianConv2d(2, 2, 3, padding_mode="wrap"), "padding_mode must be one of zeros, .*, was 'wrap'"),
        (lambda: bayesian(nn.Sequential(nn.ReLU())), "Sequential has no nn.Linear or nn.Conv2d .*: give"),
        (lambda: bayesian(nn.ConvTranspose2d(2, 2, 3)), "ConvTranspose2d has no nn.Linear"),
        (lambda: bayesian(nn.Linear(2, 2), sampling="flip"), "sampling of a BayesianLinear must be one of"),
        (lambda: bayesian(nn.Conv2d(2, 2, 1), sampling="flip"), "sampling of a BayesianConv2d must be one of"),
        (lambda: bayesian(nn.Linear(2, 2), initial_scale=-1), "initial_scale must be a finite"),
        (lambda: bayesian(embedding_tied()), r"embed \(Embedding\) is tied .*: build the model without"),
        (lambda: bayesian(xhat.build("autoencoder", shape=(4,), latent=2, hidden=[3], tied=True)), "TransposedLinear.* is tied"),
        (lambda: bayesian(normalised()), "the layer '0' has hooks"),
        (lambda: kl(nn.Linear(2, 2)), r"Linear has no layer with random weights: make it Bayesian with bayesian\(model\) first"),
        (lambda: mean_weights(nn.Linear(2, 2)).__enter__(), "has no layer with random weights"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(make, words):
    with pytest.raises(ConfigError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
