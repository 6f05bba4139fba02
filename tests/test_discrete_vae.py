"""Discrete VAEs: the law of several layers, one-hot codes, learned priors, and models small enough to enumerate."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

import xhat
from catalogue import F64
from xhat import VAE, conditionals, distributions, gradients, objectives, priors
from xhat.cli import main
from xhat.distributions import is_discrete, kl_divergence, kl_per_dimension, widths
from xhat.errors import ConfigError, DataError
from xhat.models.base import Model, centre
from xhat.networks import MLP, Take
from xhat.networks.base import activation_of
from xhat.parts import rebuild, specification


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def every(law: td.Distribution) -> Tensor:
    """All values of a discrete law's flat event, ``(n, numbers)``."""
    values = [torch.eye(width, dtype=F64) if width > 1 else torch.tensor([[0.0], [1.0]], dtype=F64) for width in widths(law)]
    return torch.stack([torch.cat(parts) for parts in itertools.product(*values)])


# The law of several layers


def bits(context: int, n: int) -> conditionals.Bernoulli:
    return conditionals.Bernoulli(MLP(context, [5], "tanh"), n).double()


def categories(context: int | tuple[int, ...], n: int, k: int) -> conditionals.OneHotCategorical:
    return conditionals.OneHotCategorical(MLP(context, [5], "tanh"), (n, k)).double()


def deep(n: int = 2) -> conditionals.Chain:
    return conditionals.Chain(bits(3, n), conditionals.Chain(bits(n, 2), bits(2, 2)))


CHAINS = {
    "bits, bits": lambda: conditionals.Chain(bits(3, 3), bits(3, 2)),
    "categories, bits": lambda: conditionals.Chain(categories(3, 2, 3), bits(6, 2)),
    "categories, categories": lambda: conditionals.Chain(categories(3, 2, 2), categories((2, 2), 1, 3)),
    "three layers": deep,
    "three layers, the other way": lambda: conditionals.Chain(conditionals.Chain(bits(3, 2), bits(2, 1)), bits(3, 2)),
}


def chain(name: str, batch: int = 4) -> distributions.Chain:
    with torch.no_grad():
        module = CHAINS[name]()
        for parameter in module.parameters():
            parameter.mul_(2.0)
        return module(torch.randn(batch, 3, dtype=F64))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_sums_to_one_and_is_drawn_from_as_declared(name, reverse):
    law = chain(name)
    law = distributions.Chain(law.first, law.then, reverse=reverse)
    z = every(law).unsqueeze(1).expand(-1, 4, -1)
    probability = law.log_prob(z).exp()
    torch.testing.assert_close(probability.sum(0), torch.ones(4, dtype=F64))
    draws = law.sample((20_000,))
    assert draws.shape == (20_000, 4, *law.event_shape)
    share = torch.stack([(draws == point).all(-1).double().mean(0) for point in z])
    assert ((share - probability).abs() <= 4.5 * (probability * (1 - probability) / len(draws)).sqrt() + 1e-12).all()
    assert is_discrete(law)
    assert law.support.check(draws).all()
    assert not law.support.check(draws + 0.5).any()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_split_and_join_are_inverse_and_log_prob_is_the_sum_of_the_layers(name, reverse):
    law = chain(name)
    law = distributions.Chain(law.first, law.then, reverse=reverse)
    z = law.sample((5, 2))
    z1, z2 = law.split(z)
    assert z1.shape == (5, 2, 4, *law.first.event_shape)
    assert z2.shape == (5, 2, 4, *law.pattern.event_shape)
    assert torch.equal(law.join(z1, z2), z)
    assert torch.equal(z1.flatten(3), (z[..., -z1[0, 0, 0].numel() :] if reverse else z[..., : z1[0, 0, 0].numel()]))
    torch.testing.assert_close(law.log_prob(z), law.first.log_prob(z1) + law.then(z1).log_prob(z2))
    further = law.then(z1).sample((7,))
    joined = law.join(z1, further)
    assert joined.shape == (7, 5, 2, 4, *law.event_shape)
    assert all(torch.equal(part, whole) for part, whole in zip(law.split(joined[3]), (z1, further[3]), strict=True))
    wider = law.expand((6, 4))
    assert wider.sample((2,)).shape == (2, 6, 4, *law.event_shape)
    torch.testing.assert_close(wider.log_prob(z[0, 0]), law.log_prob(z[0, 0]).expand(6, 4))


def test_a_chain_of_normals_is_a_normal_with_a_path():
    loc, slope = torch.tensor(0.3, dtype=F64, requires_grad=True), torch.tensor(0.7, dtype=F64, requires_grad=True)
    one = torch.ones(2, 1, dtype=F64)

    def then(z: Tensor) -> td.Distribution:
        return td.Independent(td.Normal(slope * z, 0.5), 1)

    law = distributions.Chain(td.Independent(td.Normal(loc * one, one), 1), then)
    assert law.has_rsample
    assert not is_discrete(law)
    covariance = torch.stack([torch.stack([one[0, 0], slope]), torch.stack([slope, slope**2 + 0.25])])
    joint = td.MultivariateNormal(torch.stack([loc, slope * loc]), covariance)
    z = law.rsample((6,))
    torch.testing.assert_close(law.log_prob(z), joint.log_prob(z))
    slopes = torch.autograd.grad(z[..., 1].sum(), (loc, slope))
    torch.testing.assert_close(slopes[0], 12 * slope.detach())
    torch.testing.assert_close(slopes[1], z[..., 0].sum())
    assert not law.sample().requires_grad
    with pytest.raises(NotImplementedError):
        _ = law.mean


def test_the_probe_of_a_second_layer_leaves_the_random_numbers_alone():
    module = deep()
    before = torch.get_rng_state()
    law = module(torch.zeros(1, 3, dtype=F64))
    assert widths(law) == (1,) * 6
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_of_two_kinds_compare_only_in_the_same_order():
    coin, normal = td.Independent(td.Bernoulli(torch.tensor([0.5])), 1), td.Independent(td.Normal(torch.zeros(1), 1.0), 1)
    one, other = distributions.Chain(coin, lambda z: normal), distributions.Chain(normal, lambda z: coin)
    back = distributions.Chain(normal, lambda z: coin, reverse=True)
    assert not is_discrete(one)
    assert kl_divergence(one, back, samples=10).value.abs() < 1e-6
    with pytest.raises(ConfigError, match="choose two discrete laws or two continuous"):
        kl_divergence(one, other, samples=10)


def test_the_divergence_of_a_posterior_chain_from_a_prior_drawn_in_the_other_order():
    q = chain("bits, bits", batch=1)
    p = priors.Chain(priors.Bernoulli(2, learn=True), bits(2, 3)).double()()
    assert not distributions.has_closed_form(q, p)
    z = every(q).unsqueeze(1)
    exact = (q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z))).sum(0)
    value, stderr = kl_divergence(q, p, samples=20_000)
    assert abs(value - exact) <= 4 * stderr
    with pytest.raises(ConfigError, match="no closed form"):
        kl_divergence(q, p)


def test_arguments_are_validated_where_that_is_asked_for():
    law = chain("bits, bits")
    free = distributions.Chain(law.first, law.then, validate_args=False)
    strict = distributions.Chain(law.first, law.then, validate_args=True)
    assert free.log_prob(torch.full((5,), 0.3, dtype=F64)).isfinite().all()
    with pytest.raises(ValueError, match="support"):
        strict.log_prob(torch.full((5,), 0.3, dtype=F64))


# One-hot codes and learned priors


def test_each_one_hot_vector_is_one_dimension_of_the_divergence():
    q, p = categories(3, 4, 3)(torch.randn(5, 3, dtype=F64)), priors.OneHotCategorical((4, 3)).double()()
    each = kl_per_dimension(q, p)
    probs = q.mean
    torch.testing.assert_close(each, (probs * (3 * probs).log()).sum(-1))
    torch.testing.assert_close(each.sum(-1), kl_divergence(q, p))
    assert each.shape == (5, 4)
    single = conditionals.OneHotCategorical(MLP(3), 3).double()(torch.randn(5, 3, dtype=F64))
    assert kl_per_dimension(single, priors.OneHotCategorical(3).double()()).shape == (5, 1)
    assert widths(q) == (3, 3, 3, 3)


def test_data_that_are_not_one_hot_are_refused_with_place_and_remedy():
    x = torch.eye(3).expand(4, 3, 3).clone()
    x[2, 1] = torch.tensor([0.5, 0.5, 0.0])
    likelihood = categories(2, 3, 3)
    likelihood.check(x[:2], "x")
    with pytest.raises(DataError, match=r"x: example 2 holds \[0.5, 0.5, 0\] at \(1,\), outside.*a single 1.*one-hot encode"):
        likelihood.check(x, "x")


@pytest.mark.parametrize("make", [lambda **o: priors.Bernoulli((2,), **o), lambda **o: priors.OneHotCategorical((2, 3), **o)])
def test_a_learned_prior_starts_where_the_fixed_one_is_and_a_file_without_the_word_is_a_fixed_one(make):
    fixed, learned = make(), make(learn=True)
    z = fixed().sample((5,))
    torch.testing.assert_close(learned().log_prob(z), fixed().log_prob(z))
    assert not list(fixed.parameters())
    (logits,) = learned.parameters()
    learned().log_prob(z).sum().backward()
    assert logits.grad.abs().sum() > 0
    old = specification(fixed)
    assert "learn" not in old["arguments"]
    assert torch.equal(rebuild(old)().log_prob(z), fixed().log_prob(z))
    assert priors.Bernoulli(1, probs=0.2, learn=True)().mean.item() == pytest.approx(0.2)


# What is refused, and the smaller parts

REFUSED = [
    (lambda: priors.OneHotCategorical((3, 1)), r"at least 2 categories, was \(3, 1\)"),
    (lambda: conditionals.Chain(bits(3, 2), bits(3, 2)), r"second layer: its network takes 3 values .* gets \(2,\)"),
    (lambda: conditionals.Chain(nn.Identity(), bits(3, 2)), "the first layer Identity needs an attribute event"),
    (lambda: priors.Chain(priors.Bernoulli(2), bits(3, 2)), "lower layer: its network takes 3 values"),
    (lambda: Take(MLP(5, [3]), 4), r"takes 5 numbers, but the input of shape \(4,\) has only 4"),
    (lambda: Take(nn.Tanh(), 4), "does not say what it takes"),
    (lambda: activation_of("relu:0.3"), "only leaky-relu has a slope"),
    (lambda: activation_of("leaky-relu:steep"), "must have a number after the colon"),
    (lambda: activation_of("leaky-relu:"), "must have a number after the colon"),
    (lambda: activation_of("leaky-relu:-0.1"), "from 0 to 1, was -0.1"),
    (lambda: activation_of("leaky-relu:nan"), "from 0 to 1, was nan"),
    (lambda: activation_of("square:2"), "activation must be one of relu"),
    (lambda: xhat.build("bernoulli-vae", 4, layers=3), "layers must be 1 or 2, was 3"),
    (lambda: xhat.build("bernoulli-vae", 4, layers=0), "layers must be at least 1"),
    (lambda: xhat.build("bernoulli-vae", 4, categories=3), "has no option 'categories'"),
    (lambda: xhat.build("bernoulli-vae", 4, posterior="normal"), "has no option 'posterior'"),
    (lambda: xhat.build("categorical-vae", 4, categories=1), "at least 2 categories"),
    (lambda: xhat.build("vae", 4, categories=3), "categories is an option of posterior='one-hot-categorical'"),
    (lambda: xhat.build("bernoulli-vae", 4, gradient="pathwise"), "'pathwise' needs .*; gradients that fit: score, rloo"),
    (lambda: xhat.build("bernoulli-vae", 4, layers=2, gradient="pathwise"), "needs a reparameterised sample"),
    (lambda: xhat.build("bernoulli-vae", 4, gradient="magic"), "gradient must be one of"),
    (lambda: xhat.build("bernoulli-vae", 4, gradient="rloo", temperature=0.5), "temperature is an option of gradient='rebar'"),
    (lambda: xhat.build("bernoulli-vae", 4, gradient="rloo", baseline="lagged"), "baseline is an option of gradient='score'"),
    (lambda: xhat.build("bernoulli-vae", 4, gradient="score", baseline="mean"), "baseline must be one of"),
    (lambda: xhat.build("bernoulli-vae", 4, layers=2, kl="analytic"), "no closed form"),
    (lambda: xhat.build("bernoulli-vae", 4, samples=1), "samples of at least 2"),
]


@pytest.mark.parametrize(("make", "words"), REFUSED)
def test_what_makes_no_sense_is_refused_in_one_sentence(make, words):
    with pytest.raises(ConfigError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_take_passes_the_first_numbers_on():
    inner = MLP((2, 3), [5])
    likelihood = conditionals.Normal(Take(inner, 8), 4)
    z = torch.randn(7, 3, 8)
    changed = z.clone()
    changed[..., 6:] += 1
    assert torch.equal(likelihood(z).mean, likelihood(changed).mean)
    torch.testing.assert_close(likelihood.network(z[0]), inner(z[0, :, :6].reshape(-1, 2, 3)))
    assert activation_of("leaky-relu:0.3")(torch.tensor(-1.0)).item() == pytest.approx(-0.3)


@pytest.mark.parametrize("place", ["likelihood", "second layer"])
def test_batch_normalisation_below_an_estimator_that_weighs_is_refused(place):
    def body(norm: bool) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 3), *([nn.BatchNorm1d(3)] if norm else []), nn.Tanh())

    def model(gradient: gradients.Gradient) -> VAE:
        posterior = conditionals.Chain(bits(4, 2), conditionals.Bernoulli(body(place == "second layer"), 2))
        prior = priors.Chain(priors.Bernoulli(2), conditionals.Bernoulli(body(False), 2))
        likelihood = conditionals.Normal(Take(MLP(2, []), 4), 4)
        if place == "likelihood":
            likelihood = conditionals.Normal(nn.Sequential(nn.Linear(4, 2), body(True)), 4)
        return VAE(prior.float(), posterior.float(), likelihood, objectives.ELBO(samples=2), gradient)

    with pytest.raises(ConfigError, match=r"BatchNorm1d couples the examples .* layer or group normalisation"):
        model(gradients.Layers([gradients.gradient_of("rloo"), gradients.gradient_of("rloo")]))
    straight = gradients.gradient_of("straight-through")
    model(gradients.Layers([straight, gradients.gradient_of("straight-through")]))


# Models small enough to enumerate


MODELS = {
    "bits": ("bernoulli-vae", {"latent": 3}),
    "bits, two layers": ("bernoulli-vae", {"latent": 2, "layers": 2}),
    "categories": ("categorical-vae", {"latent": 2, "categories": 3}),
    "categories, two layers": ("categorical-vae", {"latent": 1, "categories": 3, "layers": 2}),
}


def small(name: str, **options: object) -> Model:
    recipe, own = MODELS[name]
    model = xhat.build(recipe, 4, **{"hidden": [5], "activation": "tanh", "likelihood": "bernoulli", **own, **options}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def exact(model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x) and the ELBO, both ``(B,)``, as sums over all codes."""
    q, p = model.posterior(x), model.prior()
    z = every(q)[:, None].expand(-1, len(x), -1).reshape(-1, len(x), *model.latent_shape)
    log_joint = model.likelihood(z).log_prob(x) + p.log_prob(z)
    log_q = q.log_prob(z)
    return log_joint.logsumexp(0), (log_q.exp() * (log_joint - log_q)).sum(0)


def data(n: int) -> Tensor:
    return (torch.rand(n, 4, dtype=F64) < torch.tensor([0.2, 0.4, 0.6, 0.9], dtype=F64)).double()


@pytest.mark.parametrize("name", MODELS)
def test_the_bound_lies_below_the_evidence_and_both_are_met(name):
    model, x = small(name), data(6)
    with torch.no_grad():
        log_px, elbo = exact(model, x)
        assert (elbo <= log_px).all()
        evidence = xhat.log_likelihood(model, x, samples=4000)
        assert ((evidence.log_px - log_px).abs() <= 4 * evidence.stderr).all()
        draws = torch.stack([model.elbo(x, samples=40) for _ in range(100)])
        assert ((draws.mean(0) - elbo).abs() <= 4 * draws.std(0) / 10).all()
        every_x = every(td.Independent(td.Bernoulli(torch.zeros(4)), 1))
        torch.testing.assert_close(exact(model, every_x)[0].logsumexp(0).exp(), torch.ones((), dtype=F64))


@pytest.mark.parametrize("name", MODELS)
def test_the_enumerated_gradient_is_that_of_the_exact_bound(name):
    """Of all parts: encoder, decoder, every layer of the prior."""
    model, x = small(name, gradient="enumerate"), data(3)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(-exact(model, x)[1].sum(), parameters)
    for got, wanted in zip(torch.autograd.grad(model.loss(x).sum(), parameters), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(model.loss(x), -exact(model, x)[1])


@pytest.mark.parametrize("name", ["bits, two layers", "categories, two layers"])
def test_the_default_gradient_of_two_layers_is_unbiased(name):
    model, x = small(name), data(1)
    wanted = torch.autograd.grad(-exact(model, x)[1].sum(), list(model.parameters()))
    many, repeats = 1000, 30
    got = [torch.autograd.grad(model.loss(x.expand(many, 4)).mean(), list(model.parameters())) for _ in range(repeats)]
    for value, each in zip(wanted, zip(*got, strict=True), strict=True):
        draws = torch.stack(each)
        # Student's t with 29 degrees of freedom, over some hundred numbers
        assert ((draws.mean(0) - value).abs() <= 5 * draws.std(0) / math.sqrt(repeats) + 1e-9).all()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", gradients.GRADIENTS)
@pytest.mark.parametrize("recipe", ["bernoulli-vae", "categorical-vae"])
def test_any_gradient_that_fits_trains_and_any_other_is_refused(recipe, name, layers):
    options = {"categories": 3} if recipe == "categorical-vae" else {}
    options |= {"latent": 2, "hidden": [5], "layers": layers, "gradient": name, "likelihood": "bernoulli"}
    of_bits = name in ("arm", "disarm", "arms")
    if name in ("pathwise", "stl", "dreg", "vimco") or (of_bits and recipe == "categorical-vae"):
        with pytest.raises(ConfigError, match=r"gradient") as caught:
            xhat.build(recipe, 4, **options).loss(data(3).float())
        assert "\n" not in str(caught.value)
        return
    model = xhat.build(recipe, 4, **options)
    model.loss(data(3).float()).mean().backward()
    for key, parameter in model.named_parameters():
        if not key.startswith("gradient."):
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key


def test_options_of_gradients_reach_them():
    model = xhat.build("bernoulli-vae", 4, latent=2, hidden=[5], gradient="concrete", temperature=0.3, likelihood="bernoulli")
    assert specification(model.gradient)["arguments"]["temperature"] == 0.3
    for layers in (1, 2):
        model = xhat.build(
            "bernoulli-vae", 4, latent=2, hidden=[5], layers=layers, gradient="score", baseline="network", likelihood="bernoulli"
        )
        learned = {key: value for key, value in model.named_parameters() if key.startswith("gradient.")}
        assert len({id(value) for value in learned.values()}) == 4 * layers  # two linear layers, each with its bias
        model.loss(data(3).float()).mean().backward()
        model.gradient.auxiliary_loss().backward()
        assert all(value.grad is not None for value in learned.values())


@pytest.mark.parametrize("name", MODELS)
def test_training_lowers_the_loss_and_a_file_keeps_the_model(name, tmp_path):
    model, x = small(name), data(400)
    with torch.no_grad():
        start = exact(model, x)[1].mean()
    xhat.fit(model, x, epochs=6, batch_size=50, lr=0.02, seed=0, out=tmp_path / "run")
    with torch.no_grad():
        assert exact(model, x)[1].mean() > start + 0.05
        again = xhat.load(tmp_path / "run").eval()
        assert torch.equal(exact(again, x)[0], exact(model, x)[0])
        assert torch.equal(again.encode(x), model.encode(x))


@pytest.mark.parametrize("name", MODELS)
def test_the_code_is_the_mean_of_every_layer(name):
    model, x = small(name), data(5)
    with torch.no_grad():
        q = model.posterior(x)
        z = every(q)[:, None].expand(-1, 5, -1).reshape(-1, 5, *model.latent_shape)
        weight = q.log_prob(z).exp()
        mean = (weight.reshape(*weight.shape, *(1,) * len(model.latent_shape)) * z).sum(0)
    code = model.encode(x)
    if isinstance(q, distributions.Chain):
        (first, second), (exactly, about) = q.split(code), q.split(mean)
        torch.testing.assert_close(first, exactly)
        assert ((second - about).abs() <= 4 * 0.5 / math.sqrt(256)).all()
        assert torch.equal(code, centre(q))
    else:
        torch.testing.assert_close(code, mean)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_counts_variables(name):
    model = small(name)
    result = xhat.evaluate(model, data(30), samples=20)
    _, own = MODELS[name]
    layers = own.get("layers", 1)
    assert result.latent == own["latent"] * layers
    assert 0 <= result.active_units <= result.latent
    assert (result.kl_per_dimension is None) == (layers == 2)
    if layers == 1:
        assert len(result.kl_per_dimension) == own["latent"]
        assert sum(result.kl_per_dimension) == pytest.approx(result.kl.value)
    assert "active units" in str(result)


# The commands


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("digits", ("--recipe", "bernoulli-vae", "--binarize", "static", "--latent", "4")),
        ("digits", ("--recipe", "bernoulli-vae", "--layers", "2", "--gradient", "disarm", "--activation", "leaky-relu:0.3")),
        ("digits", ("--recipe", "categorical-vae", "--categories", "3", "--binarize", "dynamic", "--latent", "2")),
        ("table.csv", ("--recipe", "categorical-vae", "--categories", "3", "--layers", "2", "--gradient", "concrete")),
        ("table.csv", ("--recipe", "bernoulli-vae", "--gradient", "score", "--baseline", "network", "--no-learn-prior")),
    ],
)
def test_every_command_goes_through(source, options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = np.random.default_rng(0).normal(size=(120, 3))
    np.savetxt("table.csv", table, delimiter=",", header="a,b,c", comments="")

    def run(*words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(list(words))
        said = capsys.readouterr()
        assert caught.value.code == 0, said.err
        return said.out

    latent = () if "--latent" in options else ("--latent", "3")
    run("train", source, *options, *latent, "--hidden", "8", "--epochs", "1", "--out", "run")
    said = run("evaluate", "run", "--samples", "5", "--limit", "50")
    assert "log p(x)" in said
    assert json.loads(Path("run/evaluation.json").read_text())["latent"] <= 12
    run("sample", "run", "--n", "4", "--out", "samples.npy")
    run("reconstruct", "run", "--limit", "5", "--out", "pairs.npz")
    for codes in ("codes.npy", "codes.csv"):
        run("encode", "run", "--out", codes)
        if codes == "codes.csv":  # without the labels
            held = [line.split(",")[: np.load("codes.npy")[0].size] for line in Path(codes).read_text().splitlines()]
            Path(codes).write_text("\n".join(",".join(line) for line in held) + "\n")
        run("decode", "run", codes, "--out", f"{codes}.npy")
    np.testing.assert_allclose(np.load("codes.npy.npy"), np.load("codes.csv.npy"), rtol=1e-4, atol=1e-5)
    run("report", "run", "--samples", "5")
    assert "Variational autoencoder with" in Path("run/report.html").read_text()


def test_schedules_and_noise_reach_the_gradients():
    options = {"temperature": 1.0, "final_temperature": 0.25, "temperature_epochs": 2.0}
    model = xhat.build("bernoulli-vae", 4, latent=2, hidden=[5], gradient="concrete", likelihood="bernoulli", **options)
    xhat.fit(model, torch.rand(40, 4).round(), epochs=2, batch_size=10)
    last = 0.25 ** ((2 - 1 / 4) / 2)  # at the start of the last of eight steps
    assert model.gradient.schedule.now.item() == pytest.approx(last)
    pathwise = xhat.build("vae", 4, latent=2, hidden=[5], noise="antithetic", samples=2)
    assert pathwise.gradient.noise == "antithetic"
    with pytest.raises(ConfigError, match="noise is an option of gradient='pathwise'"):
        xhat.build("bernoulli-vae", 4, latent=2, noise="sobol")
