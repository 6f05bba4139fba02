"""Models under a condition: every recipe, p(x|c) against closed forms and sums over all codes, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch import distributions as td

import xhat
from catalogue import F64, bits
from xhat import VAE, conditionals, priors
from xhat.data import Batch, Conditions
from xhat.errors import ConfigError, DataError
from xhat.evaluation.annealed import Annealing
from xhat.evaluation.exact import exact_log_px
from xhat.evaluation.importance import Importance
from xhat.models.base import quiet
from xhat.networks import MLP, ConvDecoder, ConvEncoder

DESCRIBED = {"label": 3, "age": "real"}
VALUES = {"label": [0, 1, 2, 0, 1, 2], "age": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
SMALL = {"likelihood": "bernoulli", "latent": 3, "hidden": [12]}
LAYERED = {"likelihood": "bernoulli", "latents": [3, 2], "hidden": [12], "between": [5]}

PLAIN: dict[str, tuple[str, dict[str, object]]] = {
    "autoencoder": ("autoencoder", {"latent": 3, "hidden": [12]}),
    "denoising": ("denoising", {"latent": 3, "hidden": [12]}),
    "stacked": ("stacked", {"latent": 3, "hidden": [12, 6]}),
}
VARIATIONAL: dict[str, tuple[str, dict[str, object]]] = {
    "vae": ("vae", SMALL),
    "mixture": ("vae", {**SMALL, "prior": "mixture"}),
    "vamp": ("vae", {**SMALL, "prior": "vamp", "components": 5}),
    "flow prior": ("vae", {**SMALL, "prior": "flow"}),
    "spline prior": ("vae", {**SMALL, "prior": "spline"}),
    "iaf": ("vae", {**SMALL, "posterior": "iaf"}),
    "full covariance": ("vae", {**SMALL, "posterior": "multivariate-normal"}),
    "hierarchical": ("hierarchical-vae", LAYERED),
    "ladder": ("hierarchical-vae", {**LAYERED, "direction": "ladder"}),
    "bits": ("bernoulli-vae", SMALL),
    "two layers of bits": ("bernoulli-vae", {**SMALL, "layers": 2}),
    "categories": ("categorical-vae", {**SMALL, "layers": 2, "categories": 3}),
    "conv": ("vae", {**SMALL, "network": "conv", "channels": [4, 4]}),
    "iwae": ("vae", {**SMALL, "objective": "iwae", "samples": 4}),
    "info": ("vae", {**SMALL, "objective": "info"}),
}
EACH = [(name, False) for name in (*PLAIN, *VARIATIONAL)] + [(name, True) for name in VARIATIONAL]


def made(name: str, prior_condition: bool = False, masked: bool = False) -> xhat.Model:
    recipe, options = {**PLAIN, **VARIATIONAL}[name]
    more = {"prior_condition": True} if prior_condition else {}
    shape = (1, 8, 8) if name == "conv" else (8,)
    return xhat.build(recipe, shape=shape, condition=DESCRIBED, masked=masked, **options, **more)


def some(model: xhat.Model, count: int = 6) -> Tensor:
    return (torch.rand(count, *model.event_shape) > 0.5).float()


# The numbers of a condition


def test_what_is_described_is_what_comes_back():
    described = {"label": 10, "sex": ["F", "M"], "age": {"mean": 40.0, "std": 10.0}, "dose": "real"}
    known = Conditions.of(described)
    assert known.described == described
    assert known.size == 14
    rows = known.encode({"label": [3, "9"], "sex": "M", "age": [50, 30.0], "dose": torch.tensor([0.5, 1.5])})
    assert rows.shape == (2, 14)
    assert known.decode(rows) == {"label": ["3", "9"], "sex": ["M", "M"], "age": [50.0, 30.0], "dose": [0.5, 1.5]}
    again = known.encode({"label": 5}, base=rows)
    assert torch.equal(again[:, 10:], rows[:, 10:])
    assert known.decode(again)["label"] == ["5", "5"]


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({}, "must name at least one field"),
        ({"a": 1}, "from 2 to 10,000 classes, had 1"),
        ({"a": ["x", "x"]}, "different classes"),
        ({"a": {"mean": 0.0, "std": 0.0}}, "a std above 0"),
        ({"a": True}, "must be a number of classes"),
        ({"a": "integer"}, "must be a number of classes"),
    ],
)
def test_what_describes_no_condition_is_refused(described, said):
    with pytest.raises(ConfigError, match=said):
        Conditions.of(described)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"label": 7, "age": 1}, "'label' has no class '7': it must be one of 0, 1, 2"),
        ({"label": 1}, "lacks the field 'age'"),
        ({"label": 1, "age": 1, "sex": 2}, "no field 'sex'"),
        ({"label": 1, "age": "old"}, "'age' must be numbers"),
        ({"label": 1, "age": float("nan")}, "'age' must be finite"),
        ({"label": [0, 1], "age": [1.0, 2.0, 3.0]}, "one value for all examples or one for each"),
        ([1, 2], "must give values by name"),
    ],
)
def test_values_that_are_no_condition_are_refused(values, said):
    with pytest.raises(DataError, match=said):
        Conditions.of(DESCRIBED).encode(values)


# Every model


@pytest.mark.parametrize(("name", "prior_condition"), EACH, ids=lambda value: str(value))
def test_every_model_depends_on_its_condition(name, prior_condition, tmp_path):
    torch.manual_seed(0)
    model = made(name, prior_condition)
    x, rows = some(model), model.condition(VALUES, 6)
    model(Batch(x, condition=rows)).loss.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    for stage in model.stages():
        assert stage.module(Batch(x, condition=rows)).loss.isfinite().all()
    with torch.no_grad():
        for parameter in model.parameters():  # what starts at 0 would show nothing
            parameter.add_(0.05 * torch.randn_like(parameter))
    other = model.condition({**VALUES, "label": [1, 2, 0, 1, 2, 0]}, 6)
    assert not torch.equal(model.encode(x, condition=rows), model.encode(x, condition=other))
    assert not torch.equal(model.reconstruct(x, condition=rows), model.reconstruct(x, condition=rows, as_if={"label": 2}))
    again = xhat.load(xhat.save(model, tmp_path / "model.safetensors"))
    assert again.conditions == model.conditions
    assert torch.equal(again.encode(x, condition=VALUES), model.encode(x, condition=rows))
    if model.has_bound:
        p = [priors.law_of(model.prior, part) for part in (rows, other)]
        at = torch.zeros(6, *model.latent_shape) if name != "categories" else model.encode(x, sample=True, condition=rows)
        assert torch.equal(*(law.log_prob(at) for law in p)) is not prior_condition
        assert model.elbo(x, condition=VALUES).shape == (6,)
        assert model.sample(5, condition={"label": 1, "age": 2.0}).shape == (5, *model.event_shape)


@pytest.mark.parametrize(("name", "prior_condition"), EACH, ids=lambda value: str(value))
def test_what_a_model_is_told_is_needed_and_nothing_else(name, prior_condition):
    model = made(name, prior_condition)
    x = some(model)
    for call in (model.loss, model.encode, model.reconstruct):
        with pytest.raises(DataError, match=r"is conditioned on 4 numbers, label .*, age .*, but no condition was given"):
            call(x)
    with pytest.raises(DataError, match=r"must have shape \(6, 4\), a row for each example, was \(2, 4\)"):
        model.loss(x, condition=torch.zeros(2, 4))
    recipe, options = {**PLAIN, **VARIATIONAL}[name]
    without = xhat.build(recipe, shape=model.event_shape, **options)
    for call in (without.loss, without.encode, without.reconstruct):
        with pytest.raises(DataError, match="made without a condition, but one was given"):
            call(x, condition={"label": 1})


def test_parts_that_take_other_conditions_do_not_fit():
    def of(up: int, down: int, **named: object) -> VAE:
        posterior = conditionals.Normal(MLP(4, [5], condition=up), 2)
        return VAE(priors.StandardNormal(2), posterior, conditionals.Normal(MLP(2, [5], condition=down), 4), **named)

    with pytest.raises(ConfigError, match=r"theirs have \[2, 3\] numbers"):
        of(2, 3)
    with pytest.raises(ConfigError, match="has 10 numbers, but the model's networks take one of 3"):
        of(3, 3, condition={"label": 10})
    with pytest.raises(ConfigError, match="take none"):
        of(0, 0, condition={"label": 10})
    numbers = of(3, 3)  # without names
    assert numbers.sample(2, condition=[1.0, 0.0, 2.0]).shape == (2, 4)
    with pytest.raises(DataError, match="has no names"):
        numbers.sample(2, condition={"label": 1})
    of(3, 0), of(0, 3)  # one of the two may do without
    with pytest.raises(ConfigError, match="prior_condition lets the prior depend on a condition, and there is none"):
        xhat.build("vae", shape=4, prior_condition=True)
    with pytest.raises(ConfigError, match="a condition or a mask has no mirror image"):
        xhat.build("autoencoder", shape=4, hidden=[3], tied=True, condition={"label": 2})


def test_images_see_their_condition_in_convolutions():
    up, down = ConvEncoder((1, 8, 8), [4, 4], 8, condition=3), ConvDecoder(2, (1, 8, 8), [4, 4], 8, condition=3)
    x, z, rows = torch.rand(5, 1, 8, 8), torch.randn(5, 2), torch.eye(3)[[0, 1, 2, 0, 1]]
    assert not torch.equal(up(x, condition=rows), up(x, condition=rows.roll(1, 0)))
    assert not torch.equal(down(z, condition=rows), down(z, condition=rows.roll(1, 0)))


# Against closed forms


def linear(prior_condition: bool) -> VAE:
    """x | z, c ~ N(W z + U c + b, σ²), with z ~ N(0, I), or N(A c + a, s²) if the prior depends on c."""
    torch.manual_seed(1)
    prior = priors.Given(conditionals.Normal(MLP(3), 2, per="dimension")) if prior_condition else priors.StandardNormal(2)
    posterior = conditionals.Normal(MLP(4, condition=3), 2)
    model = VAE(prior, posterior, conditionals.Normal(MLP(2, condition=3), 4, per="dimension")).double()
    with torch.no_grad():
        for parameter in (*model.likelihood.parameters(), *model.prior.parameters()):
            parameter.copy_(0.1 * torch.randn_like(parameter) if parameter.ndim == 1 else 0.6 * torch.randn_like(parameter))
        model.posterior.head.linear.weight.mul_(0.3)
    return model


def truth(model: VAE, x: Tensor, rows: Tensor) -> Tensor:
    with torch.no_grad():
        p = priors.law_of(model.prior, rows)
        none, base = torch.zeros(len(x), 2, dtype=F64), model.likelihood
        bias = base(none, condition=rows).mean
        weight = torch.stack([base(none + one, condition=rows).mean - bias for one in torch.eye(2, dtype=F64)], -1)
        loc = bias + (weight @ p.mean.expand(len(x), 2).unsqueeze(-1)).squeeze(-1)
        spread = weight * p.stddev.expand(len(x), 2).unsqueeze(-2)
        noise = torch.diag_embed(base(none, condition=rows).variance)
        return td.MultivariateNormal(loc, spread @ spread.mT + noise).log_prob(x)


@pytest.mark.parametrize("prior_condition", [False, True])
def test_the_evidence_of_a_linear_model_is_that_of_its_normal(prior_condition):
    model = linear(prior_condition)
    rows = torch.randn(5, 3, dtype=F64)
    x = model.decode(torch.randn(5, 2), condition=rows) + 0.5 * torch.randn(5, 4)
    exact, batch = truth(model, x, rows), Batch(x, condition=rows)
    with quiet(model):
        importance = Importance().begin(model, batch, 10_000)(20_000).double()
        annealed = Annealing(20, 4).begin(model, batch, 500)(500)
    for log_w in (importance, annealed):
        found = log_w.logsumexp(0) - torch.tensor(float(len(log_w))).log()
        shares = log_w.softmax(0)
        error = (shares.square().sum(0) - 1 / len(log_w)).clamp(min=0).sqrt()
        assert ((found - exact).abs() < 4.5 * error + 1e-6).all()
    assert (model.elbo(x, samples=2000, condition=rows) <= exact + 0.05).all()
    if not prior_condition:
        torch.testing.assert_close(exact_log_px(model, batch, 10_000), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prior_condition", [False, True])
def test_the_bound_is_tight_where_the_posterior_is_the_true_one(prior_condition):
    model = linear(prior_condition)
    rows = torch.randn(5, 3, dtype=F64)
    x = model.decode(torch.randn(5, 2), condition=rows)
    with torch.no_grad():
        posed = model.pose(Batch(x, condition=rows))
        p, base, none = posed.prior, posed.likelihood, torch.zeros(5, 2, dtype=F64)
        bias = base(none).mean
        weight = torch.stack([base(none + one).mean - bias for one in torch.eye(2, dtype=F64)], -1)
        precision = torch.diag_embed(p.variance.expand(5, 2).reciprocal()) + weight.mT @ (weight / base(none).variance[..., None])
        pull = weight.mT @ ((x - bias) / base(none).variance)[..., None] + (p.mean / p.variance).expand(5, 2)[..., None]
        q = td.MultivariateNormal(torch.linalg.solve(precision, pull).squeeze(-1), precision_matrix=precision)
        tight = xhat.objectives.ELBO(kl="sampled")(model.pose(Batch(x, condition=rows), q=q)).measures["elbo"]
    torch.testing.assert_close(tight, truth(model, x, rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prior_condition", [False, True])
def test_codes_of_few_values_are_enumerated_under_a_condition(prior_condition):
    torch.manual_seed(2)
    model = made("bits", prior_condition).double()
    x, rows = some(model).double(), model.condition(VALUES, 6)
    batch, z = Batch(x, condition=rows), bits(3)
    with torch.no_grad():
        log_pz = priors.law_of(model.prior, rows).log_prob(z[:, None].expand(-1, 6, -1))
        joint = model.likelihood(z[:, None].expand(-1, 6, -1), condition=rows).log_prob(x) + log_pz
        torch.testing.assert_close(exact_log_px(model, batch, 1000), joint.logsumexp(0))


def test_a_vamp_prior_is_the_mixture_of_posteriors_under_its_condition():
    torch.manual_seed(0)
    model = made("vamp", prior_condition=True)
    rows, z = model.condition(VALUES, 6), torch.randn(6, 3)
    inputs = model.prior.pseudo_inputs
    each = torch.stack([model.posterior(u.expand(6, -1), condition=rows).log_prob(z) for u in inputs])
    torch.testing.assert_close(model.prior(rows).log_prob(z), each.logsumexp(0) - torch.tensor(5.0).log())
    beside = made("vamp").prior
    assert beside.beside.shape == (5, 4)


def test_exposure_multiplies_a_rate_and_nothing_else():
    torch.manual_seed(0)
    model = xhat.build("vae", shape=(5,), latent=2, hidden=[6], likelihood="poisson")
    z, exposure = torch.randn(4, 3, 2), torch.tensor([0.5, 1.0, 20.0])
    posed = model.pose(Batch(torch.ones(3, 5), exposure=exposure))
    torch.testing.assert_close(posed.likelihood(z).mean, exposure[:, None] * model.likelihood(z).mean)
    with pytest.raises(ConfigError, match="an exposure multiplies a rate, and Bernoulli has none"):
        xhat.build("vae", shape=(5,), likelihood="bernoulli")(Batch(torch.ones(3, 5), exposure=exposure))
