"""Several stochastic layers, bottom-up and as a ladder: linear models whose evidence is exact, enumeration and quadrature."""

from __future__ import annotations

import copy
import functools
import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td
from torch.func import functional_call

import xhat
from catalogue import F64, HIERARCHIES, bits
from proofs import within
from xhat import VAE, conditionals, distributions, gradients, objectives, priors
from xhat.conditionals import Ladder
from xhat.conditionals.ladder import merged
from xhat.data import Batch, Examples
from xhat.distributions import widths
from xhat.errors import ConfigError
from xhat.models.base import Model, centre
from xhat.models.hierarchy import hierarchy
from xhat.networks import MLP, ConvDecoder, ConvEncoder, Take
from xhat.training.engine import Compiled, Eager
from xhat.training.optimizer import Optimizer
from xhat.training.program import Program

DIRECTIONS = ("bottom-up", "ladder")
X = torch.tensor([[0.5, -1.0, 0.3], [2.0, 0.4, -0.7], [-0.2, 0.1, 1.5]], dtype=F64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def model_of(
    latents: tuple[int, ...], direction: str, *, linear: bool = False, scale: str | float = "softplus", **options: object
) -> VAE:
    """A small model in float64; a linear one has a fixed σ everywhere, wide enough for importance weights of finite variance."""
    hidden = () if linear else (4,)
    parts = hierarchy((3,), latents, hidden, hidden, direction=direction, posterior_scale=1.0 if linear else scale)
    model = VAE(parts.prior, parts.posterior, conditionals.Normal(parts.decoder, (3,), scale=0.7), **options)
    if linear and direction == "ladder":
        for estimate in list(parts.posterior.estimates)[:-1]:
            estimate.transform = 2.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.7 if linear else 1.5)
    return model.double()


# Linear layers: the evidence is that of one Normal


def layers_of(prior: nn.Module) -> list[conditionals.Normal]:
    """The conditionals of a prior, from the top down."""
    return [*layers_of(prior.top), prior.below] if isinstance(prior, priors.Chain) else []


def exact_evidence(model: VAE, x: Tensor) -> Tensor:
    """log p(x): each layer down is an affine map of the one above with noise, and so is x."""
    top = model.prior
    while isinstance(top, priors.Chain):
        top = top.top
    mean, covariance = torch.zeros(top.event, dtype=F64), torch.eye(*top.event, dtype=F64)
    for layer in [*layers_of(model.prior), model.likelihood]:
        weight, bias = layer.head.linear.weight, layer.head.linear.bias
        noise = layer.transform**2 * torch.eye(len(bias), dtype=F64)
        mean, covariance = weight @ mean + bias, weight @ covariance @ weight.T + noise
    return td.MultivariateNormal(mean, covariance).log_prob(x).detach()


SIZES = [(2, 1), (1, 2, 1), (2, 1, 2, 1)]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("latents", SIZES)
def test_the_bounds_of_a_linear_model_rise_to_its_exact_evidence(latents, direction):
    model = model_of(latents, direction, linear=True)
    exact = exact_evidence(model, X)
    with torch.no_grad():
        found = xhat.log_likelihood(model, X, samples=20_000)
        assert ((found.log_px - exact).abs() <= 4.5 * found.stderr + 1e-4).all()
        wide = X[:1].expand(1500, 3)
        elbo, iwae, more = (objectives.IWAE(k)(model.pose(Batch(wide))).measures["iwae"] for k in (1, 10, 200))
        errors = [bound.std() / math.sqrt(len(wide)) for bound in (elbo, iwae, more)]
        assert elbo.mean() + 4.5 * errors[0] < iwae.mean() < more.mean() < exact[0] + 4.5 * errors[2]
        assert exact[0] - more.mean() < 0.1 * (exact[0] - elbo.mean())


def affine(taken: int, weight: Tensor, bias: Tensor, scale: float, above: int | None = None) -> conditionals.Normal:
    """A Normal layer with this mean, which looks at the first of the numbers that it gets."""
    network = MLP(taken, []) if above is None else Take(MLP(taken, []), above)
    layer = conditionals.Normal(network, len(bias), scale=scale).double()
    with torch.no_grad():
        layer.head.linear.weight.copy_(weight)
        layer.head.linear.bias.copy_(bias)
    return layer


def solved(depth: int, direction: str) -> VAE:
    """One number a layer, and the posterior that Bayes' rule gives, worked out here by hand."""
    slope, shift, noise = [0.8, -1.3, 0.6][: depth - 1], [0.2, -0.5, 0.1][: depth - 1], [0.7, 0.5, 0.9][: depth - 1]
    w, b, s = torch.tensor([1.0, -0.5, 0.3], dtype=F64), torch.tensor([0.1, 0.2, -0.3], dtype=F64), 0.6
    one = functools.partial(torch.full, (1,), dtype=F64)
    prior: nn.Module = priors.StandardNormal(1).double()
    for i in reversed(range(depth - 1)):
        above = depth - 1 - i
        layer = affine(1, one(slope[i])[None], one(shift[i]), noise[i], None if above == 1 else above)
        prior = priors.Chain(prior, layer)
    likelihood = affine(1, w[:, None], b, s, depth)
    # What x says of each layer as a density in it: N(z_i; rows[i] · x + starts[i], spreads[i]²)
    rows, starts, spreads = [w / (w @ w)], [-(w @ b) / (w @ w)], [s / (w @ w).sqrt()]
    for a, c, sigma in zip(slope, shift, noise, strict=True):
        rows.append(rows[-1] / a)
        starts.append((starts[-1] - c) / a)
        spreads.append((spreads[-1] ** 2 + sigma**2).sqrt() / abs(a))
    # What the prior says of each layer by itself
    means, variances = [torch.zeros((), dtype=F64)], [torch.ones((), dtype=F64)]
    for a, c, sigma in zip(slope[::-1], shift[::-1], noise[::-1], strict=True):
        means.insert(0, a * means[0] + c)
        variances.insert(0, a**2 * variances[0] + sigma**2)

    def given_x(i: int) -> conditionals.Normal:
        share = variances[i] / (variances[i] + spreads[i] ** 2)
        scale = (share * spreads[i] ** 2).sqrt().item()
        return affine(3, share * rows[i][None], ((1 - share) * means[i] + share * starts[i])[None], scale)

    posterior: nn.Module
    if direction == "ladder":
        estimates = [affine(3, rows[i][None], starts[i][None], spreads[i].item()) for i in range(depth - 1)]
        posterior = Ladder([*estimates, given_x(depth - 1)])
    else:
        layers = [given_x(0)]
        for i in range(depth - 1):  # z_{i+1} given z_i, the other way round than the prior's
            gain = slope[i] * variances[i + 1] / variances[i]
            scale = (variances[i + 1] - gain * slope[i] * variances[i + 1]).sqrt().item()
            layers.append(affine(1, gain.reshape(1, 1), (means[i + 1] - gain * means[i])[None], scale))
        posterior = functools.reduce(lambda then, first: conditionals.Chain(first, then), layers[::-1])
    return VAE(prior, posterior, likelihood)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_with_the_exact_posterior_every_draw_weighs_the_evidence(depth, direction):
    model = solved(depth, direction)
    q, p = model.posterior(X), model.prior()
    z = q.sample((50,))
    log_w = model.likelihood(z).log_prob(X) + p.log_prob(z) - q.log_prob(z)
    torch.testing.assert_close(log_w, exact_evidence(model, X).expand(50, 3), rtol=0, atol=1e-9)
    # and sticking the landing, of which nothing is left there for the posterior alone
    if direction == "bottom-up":
        model.gradient = gradients.STL()
        slopes = torch.autograd.grad(model.loss(X).sum(), list(model.posterior.parameters()))
        assert max(slope.abs().max() for slope in slopes) < 1e-9


# Bits: everything is a sum


@pytest.mark.parametrize("latents", [(3, 2), (2, 3, 2), (2, 1, 2, 1)])
def test_layers_of_bits_against_enumeration(latents):
    parts = hierarchy((3,), latents, [4], [4], layer="bernoulli", learn_prior=True)
    model = VAE(
        parts.prior, parts.posterior, conditionals.Bernoulli(parts.decoder, 3), objectives.IWAE(5), gradients.VIMCO()
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
        x, z = bits(3), bits(sum(latents)).unsqueeze(1)
        points = z.expand(-1, len(x), -1)
        q, p = model.posterior(x), model.prior()
        log_q, log_p = q.log_prob(points), p.log_prob(points)
        torch.testing.assert_close(log_q.logsumexp(0), torch.zeros(8, dtype=F64))
        torch.testing.assert_close(log_p.logsumexp(0), torch.zeros(8, dtype=F64))
        log_joint = log_p + model.likelihood(points).log_prob(x)
        exact = log_joint.logsumexp(0)
        torch.testing.assert_close(exact.logsumexp(0), torch.zeros((), dtype=F64))
        elbo = (log_q.exp() * (log_joint - log_q)).sum(0)
        assert (elbo < exact).all()
        found = xhat.log_likelihood(model, x, samples=5000)
        assert ((found.log_px - exact).abs() <= 4.5 * found.stderr + 1e-4).all()
        wide = x[5:6].expand(20_000, 3)
        within(objectives.ELBO(samples=2)(model.pose(Batch(wide))).measures["elbo"], elbo[5])
        each = torch.stack([(q.sample((4000,)) == point).all(-1).double().mean(0) for point in points])
        assert ((each - log_q.exp()).abs() <= 5 * (log_q.exp() / 4000).sqrt() + 1e-9).all()
    assert model.variables == (1,) * sum(latents)
    assert [tuple(p.shape) for p in model.prior.parameters() if p.shape == (latents[-1],)]


# Quadrature


def grid(layers: int, reach: float, count: int) -> tuple[Tensor, float]:
    axis = torch.linspace(-reach, reach, count, dtype=F64)
    step = (axis[1] - axis[0]).item()
    return torch.cartesian_prod(*[axis] * layers), step**layers


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("layers", "reach", "count"), [(2, 9.0, 181), (3, 8.0, 65)])
def test_each_law_integrates_to_one_and_is_drawn_from_as_declared(layers, reach, count, direction):
    model = model_of((1,) * layers, direction)
    points, cell = grid(layers, reach, count)
    with torch.no_grad():
        for law in (model.posterior(X[:1]), model.prior()):
            mass = cell * law.log_prob(points.reshape(-1, *law.batch_shape, layers)).exp().reshape(-1)
            assert mass.sum().item() == pytest.approx(1, abs=1e-6)
            z = law.sample((20_000,)).reshape(-1, layers)
            for of in (lambda z: z, lambda z: z.square(), lambda z: z[:, :1] * z[:, 1:], lambda z: z[:, -1:].sin()):
                within(of(z), (mass[:, None] * of(points)).sum(0))
            mean = (mass[:, None] * points).sum(0)
            average = law.average(lambda each: each.mean, 20_000).reshape(-1)
            assert ((average - mean).abs() <= 4.5 * z.std(0) / math.sqrt(20_000) + 1e-9).all()


def test_the_average_of_curved_layers_is_made_of_draws_and_not_of_means():
    """z₁ ~ N(0, 1), z₂ ~ N(z₁, 1), z₃ ~ N(z₂², 1), whose mean is 2, however the three are nested."""

    def law(loc: Tensor) -> td.Distribution:
        return td.Independent(td.Normal(loc, 1.0), 1)

    zero = torch.zeros(4, 1, dtype=F64)
    then = distributions.Chain(law(zero), lambda z1: distributions.Chain(law(z1), lambda z2: law(z2.square())))
    first = distributions.Chain(distributions.Chain(law(zero), law), lambda z: law(z[..., 1:].square()))
    for chain in (then, first):
        for draws in (256, 20_000):
            average = chain.average(lambda each: each.mean, draws)
            off = (average - torch.tensor([0.0, 0.0, 2.0], dtype=F64)).abs()
            assert (off <= 4.5 * torch.tensor([0.0, 1.0, 8**0.5], dtype=F64) / draws**0.5).all()


def test_the_average_of_layers_agrees_with_the_centre_and_keeps_no_gradient():
    model = model_of((2, 1, 2), "bottom-up", linear=True)
    q = model.posterior(X)
    average = q.average(lambda law: law.mean, 40_000)
    assert not average.requires_grad
    spread = q.sample((1000,)).std(0)
    assert ((centre(q) - average).abs() <= 4.5 * spread / math.sqrt(256) + 1e-9).all()
    assert torch.equal(centre(q), centre(q))


def test_the_merge_is_the_normalised_product_of_two_densities():
    axis = torch.linspace(-12, 12, 4001, dtype=F64)
    p = td.Independent(td.Normal(torch.randn(3, 1, dtype=F64), torch.rand(3, 1, dtype=F64) + 0.2), 1)
    q = td.Independent(td.Normal(torch.randn(5, 3, 1, dtype=F64), torch.rand(3, 1, dtype=F64) + 0.2), 1)
    law = merged(p, q)
    assert (law.batch_shape, law.event_shape) == ((5, 3), (1,))
    points = axis.reshape(-1, 1, 1, 1).expand(-1, 5, 3, 1)
    product = (p.log_prob(points) + q.log_prob(points)).exp()
    product = product / (product.sum(0) * (axis[1] - axis[0]))
    torch.testing.assert_close(law.log_prob(points).exp(), product, rtol=0, atol=1e-9)
    torch.testing.assert_close(merged(q, p).log_prob(points), law.log_prob(points))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_side_that_says_nothing_leaves_the_other_as_it_is(dtype):
    vague = td.Independent(td.Normal(torch.full((4,), 3.0, dtype=dtype), torch.inf), 1)
    sure = td.Independent(td.Normal(torch.arange(4.0, dtype=dtype), torch.tensor([1e-4, 0.1, 1.0, 30.0], dtype=dtype)), 1)
    for law in (merged(vague, sure), merged(sure, vague)):
        torch.testing.assert_close(law.mean, sure.mean)
        torch.testing.assert_close(law.base_dist.scale, sure.base_dist.scale)
    sharp = td.Independent(td.Normal(torch.full((4,), 3.0, dtype=dtype), 1e-4), 1)
    torch.testing.assert_close(merged(sharp, sharp).base_dist.scale, torch.full((4,), 1e-4 / math.sqrt(2), dtype=dtype))


def test_a_ladder_that_learns_nothing_from_x_below_the_top_draws_as_the_prior_does():
    model = model_of((2, 1, 2), "ladder")
    lower = [conditionals.Normal(MLP(3, []), 2, scale=1e12), conditionals.Normal(MLP(3, []), 1, scale=1e12)]
    ladder = Ladder([*lower, affine(3, torch.zeros(2, 3, dtype=F64), torch.zeros(2, dtype=F64), 1.0)]).double()
    ladder.meet(model.prior, ladder)
    z = 2 * torch.randn(40, 3, 5, dtype=F64)
    torch.testing.assert_close(ladder(X).log_prob(z), model.prior().log_prob(z))
    torch.manual_seed(1)
    drawn = ladder(X).sample((2,))
    torch.manual_seed(1)
    torch.testing.assert_close(drawn, model.prior().expand((3,)).sample((2,)), rtol=1e-9, atol=1e-9)


# Gradients


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_derivatives_against_finite_differences(direction):
    model = model_of((2, 1, 1), direction, objective=objectives.IWAE(2))
    names = [name for name, _ in model.named_parameters()]

    def loss(*values: Tensor) -> Tensor:
        torch.manual_seed(3)
        return functional_call(model, dict(zip(names, values, strict=True)), (X[:2],)).loss

    values = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    assert torch.autograd.gradcheck(loss, values, fast_mode=True)
    assert all(slope.abs().sum() > 0 for slope in torch.autograd.grad(loss(*values).sum(), values))


def slopes_of(model: VAE, objective: objectives.Objective, gradient: gradients.Gradient, repeats: int) -> Tensor:
    """Independent estimates of the loss's derivative in all parameters, ``(repeats, numbers)``."""
    model.objective, model.gradient = objective, gradient
    wide, rows = X[:1].expand(100, 3), []
    for _ in range(repeats):
        slopes = torch.autograd.grad(model.loss(wide).mean(), list(model.parameters()))
        rows.append(torch.cat([slope.flatten() for slope in slopes]))
    return torch.stack(rows)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_estimators_of_the_bounds_derivative_against_quadrature(direction):
    """Also in the prior's parameters, which a ladder's posterior is made of, too."""
    model = model_of((1, 1), direction)
    points, cell = grid(2, 9.0, 121)
    points = points.unsqueeze(1)
    q, p = model.posterior(X[:1]), model.prior()
    log_q = q.log_prob(points)
    elbo = (cell * log_q.exp() * (model.likelihood(points).log_prob(X[:1]) + p.log_prob(points) - log_q)).sum()
    exact = torch.cat([slope.flatten() for slope in torch.autograd.grad(-elbo, list(model.parameters()))])
    layered = gradients.Layers([gradients.Pathwise(), gradients.Pathwise()])
    for gradient in (gradients.Pathwise(), gradients.STL(), gradients.LeaveOneOut(), layered):
        within(slopes_of(model, objectives.ELBO(samples=gradient.usable(1)), gradient, 40), exact, errors=4.5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_doubly_reparameterised_and_pathwise_gradients_of_a_bound_of_three_agree(direction):
    model = model_of((1, 1), direction)
    path, double = (slopes_of(model, objectives.IWAE(3), gradient, 60) for gradient in (gradients.Pathwise(), gradients.DReG()))
    away = (path.mean(0) - double.mean(0)).abs() / ((path.var(0) + double.var(0)) / 60).sqrt()
    assert away.max() < 4.5


# Models


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("latents", SIZES[:2])
def test_a_model_encodes_measures_and_comes_back_from_its_file(latents, direction, tmp_path):
    model = model_of(latents, direction, objective=objectives.IWAE(3)).float()
    x = X.float()
    q, p, size = model.posterior(x), model.prior(), sum(latents)
    assert widths(q) == widths(p) == model.variables == (1,) * size
    z = q.rsample((4,))
    assert z.requires_grad
    assert z.shape == (4, 3, size)
    assert q.log_prob(z).shape == p.log_prob(z).shape == model.likelihood(z).log_prob(x).shape == (4, 3)
    assert q.log_prob(z[0, 0]).shape == (3,)
    torch.testing.assert_close(q.log_prob(z)[2], q.log_prob(z[2]))
    wide = q.expand((2, 3))
    torch.testing.assert_close(wide.log_prob(z[:2]), q.log_prob(z[:2]))
    assert wide.sample((5,)).shape == (5, 2, 3, size)
    assert xhat.evaluate(model, x, samples=5).latent == size
    again = xhat.load(xhat.save(model, tmp_path / "model.safetensors"))
    for one in (again, copy.deepcopy(model)):
        assert torch.equal(one.encode(x), model.encode(x))
        assert torch.equal(one.posterior(x).log_prob(z), q.log_prob(z))
        assert len(list(one.parameters())) == len(list(model.parameters()))
        assert not any("_met" in name for name in one.state_dict())


def test_a_copied_ladder_goes_down_the_copied_prior():
    model = model_of((2, 1), "ladder")
    z = model.posterior(X).sample()
    before = model.posterior(X).log_prob(z)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.prior.below.head.linear.bias.add_(1.0)
    assert not torch.allclose(other.posterior(X).log_prob(z), before)
    assert torch.equal(model.posterior(X).log_prob(z), before)


def burda(direction: str = "bottom-up") -> VAE:
    parts = hierarchy((1, 28, 28), direction=direction)
    return VAE(parts.prior, parts.posterior, conditionals.Bernoulli(parts.decoder, (1, 28, 28)), objectives.IWAE(2))


def dense(*sizes: int) -> int:
    """Weights and biases of fully connected layers."""
    return sum((a + 1) * b for a, b in itertools.pairwise(sizes))


def test_the_two_layer_model_of_the_literature_has_the_layers_that_it_should():
    down = dense(50, 100, 100, 200) + dense(100, 200, 200, 784)
    up = dense(784, 200, 200, 200) + dense(100, 100, 100, 100)
    assert sum(p.numel() for p in burda().parameters()) == up + down
    up = dense(784, 200, 200, 200) + dense(200, 100, 100, 100)  # a ladder's second network goes on from 200 features
    assert sum(p.numel() for p in burda("ladder").parameters()) == up + down


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it traces
def test_a_compiled_step_of_a_ladder_is_the_eager_step():
    """The program that the compiler would be given."""

    def stepped(compiled: bool) -> list[Tensor]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = burda("ladder")
        parameters = list(model.parameters())
        program = Program(model.stages()[0], model.gradient, parameters, 100)
        optimizer = Optimizer("adam", parameters)
        options = {"backend": "eager"} if compiled else {}
        engine = (Compiled if compiled else Eager)(program, optimizer, None, 4, **options)
        engine.rate = 1e-3
        examples = Examples(torch.rand(4, *model.event_shape).round())
        torch.manual_seed(1)
        for _ in engine.steps(examples, examples.order(0), [(0, 4)]):
            pass
        return [parameter.detach() for parameter in parameters]

    for one, other in zip(stepped(False), stepped(True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", HIERARCHIES)
def test_models_in_a_stack_are_trained_as_alone(name, monkeypatch):
    """The noise is put at one value, for a stack draws in another order."""
    at = 0.3

    def rsample(law: td.Normal, shape: tuple[int, ...] = ()) -> Tensor:
        return (law.loc + at * law.scale).expand(law._extended_shape(shape))

    monkeypatch.setattr(td.Normal, "rsample", rsample)

    def build(seed: int) -> Model:
        torch.manual_seed(seed)
        return HIERARCHIES[name]()

    x = X.sigmoid().round().float().repeat(4, 1)
    settings = {"epochs": 3, "batch_size": 6, "lr": 0.01}
    for member in xhat.fit_many(build, x, seeds=[3, 5], **settings).members:
        model = build(member.seed)
        xhat.fit(model, x, seed=member.seed, **settings)
        before = build(member.seed)
        for ours, theirs, start in zip(member.model.parameters(), model.parameters(), before.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
            assert not torch.equal(ours, start)
        z = torch.zeros(len(x), *model.latent_shape)
        torch.testing.assert_close(member.model.posterior(x).log_prob(z), model.posterior(x).log_prob(z), rtol=1e-4, atol=1e-4)


def test_bodies_of_ones_own_stand_at_both_ends():
    for direction in DIRECTIONS:
        bodies = ConvEncoder((1, 8, 8), (2,), 5, "tanh"), ConvDecoder((3,), (1, 8, 8), (2,), 5, "tanh")
        parts = hierarchy((1, 8, 8), (3, 2), between=[4], direction=direction, bodies=bodies)
        model = VAE(parts.prior, parts.posterior, conditionals.Bernoulli(parts.decoder, (1, 8, 8)))
        assert model.reconstruct(torch.zeros(2, 1, 8, 8)).shape == (2, 1, 8, 8)


# Refusals


def estimates(*sizes: int) -> list[conditionals.Normal]:
    return [conditionals.Normal(MLP(3, []), size) for size in sizes]


def chained(*sizes: int, layer: type = conditionals.Normal) -> nn.Module:
    prior: nn.Module = priors.StandardNormal(sizes[-1])
    for i in reversed(range(len(sizes) - 1)):
        prior = priors.Chain(prior, layer(MLP(sum(sizes[i + 1 :]), []), sizes[i]))
    return prior


def with_prior(prior: nn.Module, *sizes: int) -> Model:
    ladder = Ladder(estimates(*sizes))
    return VAE(prior, ladder, conditionals.Normal(MLP(ladder.event, []), 3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Ladder(estimates(2)), "two conditionals.Normal or more"),
        (lambda: Ladder([*estimates(2), conditionals.Bernoulli(MLP(3), 2)]), "two conditionals.Normal or more"),
        (lambda: Ladder([*estimates(2), conditionals.Normal(MLP(4, []), 1)]), "layer 2 takes 4 values, but that of layer 1 puts"),
        (lambda: Ladder(estimates(2, 1))(X.float()), "knows none yet: put both into a model"),
        (lambda: with_prior(priors.StandardNormal(3), 2, 1), "at layer 1 the prior has a StandardNormal"),
        (lambda: with_prior(chained(2, 2), 2, 1, 1), "at layer 2 the prior has a StandardNormal"),
        (lambda: with_prior(chained(1, 2), 2, 1), r"layer 1 has the event \(2,\), but the prior's \(1,\)"),
        (lambda: with_prior(chained(2, 1, 1), 2, 1), r"top layer has the event \(1,\), but the prior goes on with a Chain of"),
        (lambda: with_prior(chained(2, 1, layer=conditionals.MultivariateNormal), 2, 1), "one was MultivariateNormal"),
        (lambda: with_prior(chained(2, 1), 2, 1).posterior(torch.zeros(2, 4)), r"Ladder takes a context of shape \(\*batch, 3\)"),
        (lambda: hierarchy(3, [2]), "latents must be the sizes of two layers or more"),
        (lambda: hierarchy(3, [2, 0]), "each of latents must be"),
        (lambda: hierarchy(3, direction="top-down"), "direction must be one of bottom-up, ladder, was 'top-down'"),
        (lambda: hierarchy(3, layer="poisson"), "layer must be one of normal, bernoulli"),
        (lambda: hierarchy(3, layer="bernoulli", direction="ladder"), "use direction='bottom-up'"),
        (lambda: hierarchy(3, learn_prior=True), "learn_prior trains the probabilities of Bernoulli layers"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_a_pattern_of_nested_layers_can_be_traced():
    """While a program is traced nothing is drawn aside, and a chain has no formula for its mean."""
    law = model_of((2, 1, 2), "ladder").posterior(X)
    assert isinstance(law.first, distributions.Chain)
    torch.testing.assert_close(distributions.chain._zeros(law), torch.zeros(3, 5, dtype=F64))
