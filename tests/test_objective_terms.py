"""Objectives that weigh or add terms: capacity, total correlation, a discrepancy from the prior; and which couple a batch.

What they make of the aggregate posterior is proved in test_aggregate.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch import distributions as td

import xhat
from catalogue import EVENT, F64, LATENT, OBJECTIVES, bits
from xhat import VAE, Autoencoder, conditionals, gradients, objectives, priors
from xhat.data import Batch, Examples
from xhat.errors import ConfigError
from xhat.gradients.base import Path
from xhat.models.base import Model
from xhat.networks import MLP
from xhat.objectives import ELBO, Info, Objective, TotalCorrelation
from xhat.training.engine import Compiled, Eager
from xhat.training.optimizer import Optimizer
from xhat.training.program import Program

X = bits(3)[[1, 4, 7, 2, 6, 0]]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Still(Path):
    """Pathwise, with a noise that is a function of the example and of nothing else."""

    unbiased = False
    requires = frozenset({"rsample"})
    reductions = frozenset({"mean", "log-mean-exp"})
    plain = False

    def see(self, context: Tensor) -> None:
        self.key = context.flatten(1) @ torch.arange(1.0, 1 + context[0].numel(), dtype=context.dtype)

    def evaluations(self, samples, q=None):
        return samples

    def draw(self, q: td.Distribution, samples: int) -> Tensor:
        steps = 1.0 + torch.arange(samples * q.event_shape.numel(), dtype=F64).reshape(samples, 1, *q.event_shape)
        noise = 1.5 * torch.sin(17.0 * steps + 1.3 * self.key[:, None])
        return q.mean + q.stddev * noise.to(q.mean.dtype)

    def estimate(self, f, q, samples, reduce):
        return reduce(f(self.draw(q, samples)))


def model_of(objective: Objective, gradient: gradients.Gradient | None = None) -> Model:
    """A small model in float64 whose posteriors are far from each other and from the prior."""
    likelihood = conditionals.Bernoulli(MLP(LATENT, [4], "tanh"), EVENT)
    if not objective.needs_prior:
        return Autoencoder(conditionals.Delta(MLP(EVENT, [4], "tanh"), LATENT), likelihood, objective).double()
    posterior = conditionals.Normal(MLP(EVENT, [4], "tanh"), LATENT)
    model = VAE(priors.StandardNormal(LATENT), posterior, likelihood, objective, gradient or gradients.Pathwise()).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


# Which objectives couple the examples of a batch


def test_every_objective_has_a_row():
    known = {getattr(objectives, name) for name in objectives.__all__}
    classes = {cls for cls in known if isinstance(cls, type) and issubclass(cls, Objective) and cls is not Objective}
    assert {type(make()) for make in OBJECTIVES.values()} == classes


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_depends_on_how_the_batch_is_cut_where_it_says_so(name):
    model = model_of(OBJECTIVES[name](), Still())
    whole = model(X).loss
    cut = torch.cat([model(piece).loss for piece in (X[:2], X[2:])])
    if model.objective.coupled:
        assert not torch.allclose(whole, cut, rtol=1e-3)
    else:
        torch.testing.assert_close(whole, cut)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if OBJECTIVES[name]().coupled])
def test_a_coupled_objective_is_not_trained_in_shards(name):
    model = model_of(OBJECTIVES[name]())
    with pytest.raises(ConfigError, match=r"batch.* and a shard is a part of it: .*shards=1"):
        xhat.fit(model, X, epochs=1, shards=2)


# What every one of them owes


# PIWAE's derivatives are those of two losses, one for the encoder and one for the decoder.
@pytest.mark.parametrize("name", [name for name in OBJECTIVES if OBJECTIVES[name]().needs_prior and name != "piwae"])
def test_the_derivative_is_that_of_finite_differences(name):
    model = model_of(OBJECTIVES[name](), Still())
    parameters = list(model.parameters())
    direction = [torch.randn_like(p) for p in parameters]

    def loss(step: float) -> Tensor:
        torch.manual_seed(3)  # for the prior's draws
        with torch.no_grad():
            for parameter, way in zip(parameters, direction, strict=True):
                parameter.add_(step * way)
            value = model(X).loss.mean()
            for parameter, way in zip(parameters, direction, strict=True):
                parameter.sub_(step * way)
        return value

    torch.manual_seed(3)
    slopes = torch.autograd.grad(model(X).loss.mean(), parameters)
    known = sum((slope * way).sum() for slope, way in zip(slopes, direction, strict=True))
    measured = (loss(1e-5) - loss(-1e-5)) / 2e-5
    torch.testing.assert_close(measured, known, rtol=1e-6, atol=1e-7)
    assert known.abs() > 1e-3


@pytest.mark.parametrize("name", ["elbo, capacity", "tc", "tc, weighted", "info", "info, imq"])
def test_the_true_bound_is_measured_whatever_the_loss_is(name):
    model = model_of(OBJECTIVES[name](), Still())
    measures = model(X).measures
    plain = ELBO(samples=model.objective.samples)(model.pose(Batch(X))).measures
    for term in ("elbo", "log_px_given_z", "kl"):
        torch.testing.assert_close(measures[term], plain[term].detach() if name.startswith(("tc", "info")) else plain[term])
    assert all(values.shape == (len(X),) for values in measures.values())


@pytest.mark.parametrize("name", ["elbo, capacity", "tc", "info", "info, imq"])
def test_a_file_gives_the_same_loss_back(name, tmp_path):
    model = model_of(OBJECTIVES[name]())
    again = xhat.load(xhat.save(model, tmp_path / "m.safetensors"))
    torch.manual_seed(1)
    loss = model.loss(X)
    torch.manual_seed(1)
    assert torch.equal(again.loss(X), loss)


@pytest.mark.parametrize("name", ["elbo, capacity", "tc", "info, imq"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_a_traced_step_is_the_eager_one(name):
    def trained(kind: type, **options: object) -> list[Tensor]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = model_of(OBJECTIVES[name]()).train()
        parameters = list(model.parameters())
        program = Program(model.stages()[0], model.gradient, parameters, len(X))
        engine = kind(program, Optimizer("adam", parameters), None, 3, **options)
        engine.rate = 1e-2
        torch.manual_seed(1)
        values = [taken.values for taken in engine.steps(Examples(X), Examples(X).order(0), [(0, 3), (3, 6)])]
        return [*values, *(parameter.detach() for parameter in parameters)]

    for ours, theirs in zip(trained(Compiled, backend="eager"), trained(Eager), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("make", [lambda: ELBO(beta=2.0, capacity=1.0, capacity_warmup=2.0), TotalCorrelation])
def test_many_at_once_are_trained_as_each_alone(make):
    def build(seed: int) -> Model:
        return model_of(make(), Still()).float()

    settings = {"epochs": 4, "batch_size": 4, "lr": 0.02, "keep": "last"}
    many = xhat.fit_many(build, X, X[:5], seeds=[0, 1], **settings)
    for member in many.members:
        torch.manual_seed(member.seed)
        model = build(member.seed)
        history = xhat.fit(model, X, X[:5], seed=member.seed, progress=False, **settings)
        assert [row["valid_loss"] for row in member.history.rows] == pytest.approx(
            [row["valid_loss"] for row in history.rows], rel=1e-4
        )
        for ours, theirs in zip(member.model.state_dict().values(), model.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["elbo, capacity", "tc", "info, imq"])
def test_many_at_once_are_prepared_and_judged_as_one_alone(name):
    """Noise is drawn in another order, so what is compared is what both say of the same weights in the mean over much of it."""
    x = X.repeat(8, 1).float()

    def build(seed: int) -> Model:
        made = OBJECTIVES[name]() if name != "tc" else TotalCorrelation()
        return model_of(made).float()

    many = xhat.fit_many(build, x, x.repeat(6, 1), seeds=[0, 1], epochs=2, batch_size=16, keep="last")
    for member in many.members:
        if name == "tc":
            assert member.model.objective.size == len(x)
        last = member.history.rows[-1]
        with torch.no_grad():
            losses = torch.stack([member.model.loss(x.repeat(6, 1)).mean() for _ in range(12)])
        assert last["valid_loss"] == pytest.approx(losses.mean().item(), abs=5 * losses.std().item() + 0.01)
        apart = build(member.seed).state_dict().items()
        assert any(not torch.equal(member.model.state_dict()[key], value) for key, value in apart)


# Capacity


@pytest.mark.parametrize(
    ("capacity", "epochs", "epoch", "allowed"),
    [(0.7, 0.0, None, 0.7), (0.7, 10.0, None, 0.0), (0.7, 10.0, 2.5, 0.175), (0.7, 10.0, 40.0, 0.7), (25.0, 4.0, math.inf, 25.0)],
)
def test_the_capacity_is_the_published_formula_and_rises_linearly(capacity, epochs, epoch, allowed):
    model = model_of(ELBO(), Still())
    objective = ELBO(beta=3.0, capacity=capacity, capacity_warmup=epochs)
    if epoch is not None:
        objective.at(epoch)
    assert objective.allowed.item() == pytest.approx(allowed)
    plain = model(X).measures
    expected = 3.0 * (plain["kl"] - allowed).abs() - plain["log_px_given_z"]
    torch.testing.assert_close(objective.double()(model.pose(Batch(X))).loss, expected, rtol=1e-6, atol=1e-6)


def test_the_capacity_draws_the_divergence_up_as_well_as_down():
    model = model_of(ELBO(), Still())
    kl = model(X).measures["kl"].detach()
    between = kl.sort().values[2:4].mean().item()
    objective = ELBO(beta=2.0, capacity=between)
    parameters = list(model.posterior.parameters())
    terms = objective(model.pose(Batch(X)))
    slopes = torch.autograd.grad((terms.loss + terms.measures["log_px_given_z"]).sum(), parameters)
    signs = torch.sign(kl - between)
    assert sorted(signs.tolist()) == [-1, -1, -1, 1, 1, 1]
    known = torch.autograd.grad((2.0 * signs * model(X).measures["kl"]).sum(), parameters)
    for ours, theirs in zip(slopes, known, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_both_schedules_count_as_warm_up_and_are_saved(tmp_path):
    assert ELBO(warmup=3.0, capacity=2.0, capacity_warmup=8.0).warmup == 8.0
    assert ELBO(warmup=9.0, capacity=2.0, capacity_warmup=8.0).warmup == 9.0
    objective = ELBO(beta=2.0, capacity=4.0, capacity_warmup=8.0)
    assert objective.weight.item() == 2.0
    model = model_of(objective)
    model.objective.at(2.0)
    again = xhat.load(xhat.save(model, tmp_path / "m.safetensors")).objective
    assert (again.weight.item(), again.allowed.item()) == (2.0, 1.0)
    assert "allowed" not in dict(ELBO().named_buffers())  # files of earlier versions have none


def test_patience_does_not_count_while_the_capacity_rises():
    model = model_of(ELBO(capacity=1.0, capacity_warmup=8.0))
    history = xhat.fit(model, X, X, epochs=20, lr=1e-9, patience=1)
    assert len(history.rows) >= 9


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ELBO(capacity=-1.0), "capacity must be at least 0 and at most 1e.30, was -1"),
        (lambda: ELBO(capacity_warmup=math.inf), "capacity_warmup must be at least 0 and at most 1e.30, was inf"),
        (lambda: ELBO(capacity_warmup=5.0), "needs one above 0"),
        (lambda: ELBO(capacity=1.0, kl="sampled"), "capacity needs the KL itself"),
        (lambda: ELBO(capacity=1.0, free_bits=0.1), "capacity and free_bits .* leave one of them out"),
        (lambda: model_of(ELBO(capacity=1.0), gradients.STL()).loss(X), "capacity needs the KL in closed form, and a path"),
        (lambda: TotalCorrelation(beta=-1.0), "beta must be at least 0"),
        (lambda: TotalCorrelation(estimate="exact"), "estimate must be one of stratified, weighted, was 'exact'"),
        (lambda: TotalCorrelation(size=0), "size must be at least 1"),
        (lambda: TotalCorrelation(samples=0), "samples must be at least 1"),
        (lambda: model_of(TotalCorrelation()).loss(X), r"number of examples .* pass size=…, or train the model with xhat\.fit"),
        (
            lambda: model_of(TotalCorrelation(size=9), gradients.Score()).loss(X),
            "couples the examples .* Score .*pathwise, concrete",
        ),
        (lambda: model_of(TotalCorrelation(size=9), gradients.STL()).loss(X), "couples the examples .* gradient of STL is wrong"),
        (lambda: model_of(Info(samples=2), gradients.LeaveOneOut()).loss(X), "Info couples the examples"),
        (lambda: Info(alpha=1.5), "alpha must be at most 1"),
        (lambda: Info(alpha=math.nan), "alpha must be a finite number, was nan"),
        (lambda: Info(alpha=0.5, lambda_=0.1), "lambda_, the weight of the MMD, must be at least 1 - alpha = 0.5"),
        (lambda: Info(kernel="laplace"), "kernel must be one of rbf, imq, was 'laplace'"),
        (lambda: Info(bandwidth=0.0), "bandwidth must be above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_a_capacity_without_a_closed_form_is_refused_when_the_model_is_made():
    class Mixture(torch.nn.Module):
        event = LATENT

        def forward(self):
            parts = td.Independent(td.Normal(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 0.8), 1)
            return td.MixtureSameFamily(td.Categorical(torch.ones(2)), parts)

    def made(objective: Objective) -> Model:
        return VAE(Mixture(), conditionals.Normal(MLP(3), LATENT), conditionals.Bernoulli(MLP(2), EVENT), objective)

    with pytest.raises(ConfigError, match="capacity need: use kl='sampled' without"):
        made(ELBO(capacity=1.0))
    with pytest.raises(ConfigError, match=r"those of the prior MixtureSameFamily are not independent: .*StandardNormal"):
        made(TotalCorrelation())
    # where the KL has no closed form it is sampled, at the draws that the rest is made of
    model = made(Info(0.3, 2.0)).double()
    model.gradient = Still()
    torch.manual_seed(1)
    terms = model(X)
    z = model.gradient.draw(model.posterior(X), 1)[0]
    torch.testing.assert_close(terms.measures["kl"], (model.posterior(X).log_prob(z) - model.prior().log_prob(z)).detach())
    m = terms.measures
    torch.testing.assert_close(terms.loss.detach(), 0.7 * m["kl"] + 1.3 * m["mmd"] - m["log_px_given_z"])
