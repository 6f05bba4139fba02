"""Learned priors: densities against closed forms and quadrature, the VampPrior through the model's own posterior."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from torch import distributions as td

import xhat
from catalogue import F64
from xhat import VAE, conditionals, gradients, objectives, priors
from xhat.conditionals import Headed
from xhat.data import Batch, Examples
from xhat.errors import ConfigError
from xhat.evaluation.evaluate import evaluate
from xhat.models.choices import POSTERIORS
from xhat.networks import MLP
from xhat.parts import PARTS, rebuild, specification
from xhat.priors.mixture import Mixed
from xhat.training.engine import compiled
from xhat.training.program import Program

X = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
KINDS = ("normal", "multivariate-normal", "bernoulli")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def stirred(prior: torch.nn.Module) -> torch.nn.Module:
    """A prior that is nothing special, in float64."""
    prior.double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return prior


def vamp(posterior: str = "normal", components: int = 7, bounds: tuple[float, float] | None = (0, 1), **parts: object) -> VAE:
    q = POSTERIORS[posterior].make(MLP(6, [5], "tanh"), 2)
    prior = priors.VampPrior(2, inputs=6, components=components, bounds=bounds)
    if posterior == "bernoulli":
        parts.setdefault("gradient", gradients.Score("leave-one-out"))
        parts.setdefault("objective", objectives.ELBO(samples=2))
    return VAE(prior, q, conditionals.Bernoulli(MLP(2, [5], "tanh"), 6), **parts)


def grid(low: float, high: float, count: int, axes: int) -> tuple[Tensor, float]:
    """Points of a grid, ``(count^axes, axes)``, and the volume of a cell: for smooth densities the sum is as good as exact."""
    line = torch.linspace(low, high, count, dtype=F64)
    return torch.cartesian_prod(*[line] * axes).reshape(-1, axes), float(line[1] - line[0]) ** axes


# Names


def test_every_name_stays_where_files_look_for_it():
    for name in ("StandardNormal", "Bernoulli", "Categorical", "OneHotCategorical", "Poisson", "Uniform", "Chain", "Mixture"):
        assert PARTS[f"priors.{name}"] is getattr(priors, name)
    again = rebuild({"part": "priors.VampPrior", "arguments": {"event": [2], "inputs": [6], "components": 3, "bounds": [0, 1]}})
    assert tuple(again.inputs.shape) == (3, 6)


# Mixture


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_mixture_integrates_to_one_and_its_moments_are_those_of_its_density(covariance, size):
    prior = stirred(priors.Mixture(size, components=4, covariance=covariance))
    z, cell = grid(-12, 12, 4001 if size == 1 else 601, size)
    law = prior()
    mass = law.log_prob(z).exp() * cell
    assert mass.sum().item() == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close((mass.unsqueeze(1) * z).sum(0), law.mean, atol=1e-8, rtol=0)
    torch.testing.assert_close((mass.unsqueeze(1) * (z - law.mean).square()).sum(0), law.variance, atol=1e-8, rtol=0)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_mixtures_density_is_the_weighted_sum_of_its_normals(covariance):
    prior = stirred(priors.Mixture(3, components=5, covariance=covariance))
    weights = torch.rand(5, dtype=F64).softmax(0)
    locs, roots = torch.randn(5, 3, dtype=F64), torch.randn(5, 3, 3, dtype=F64)
    covariances = roots @ roots.mT + 0.1 * torch.eye(3)
    if covariance == "diagonal":
        covariances = covariances.diagonal(dim1=-2, dim2=-1)
    prior.put(weights, locs, covariances)
    whole = covariances if covariance == "full" else torch.diag_embed(covariances)
    z = torch.randn(4, 6, 3, dtype=F64)
    each = td.MultivariateNormal(locs, whole).log_prob(z.unsqueeze(-2)).exp()
    torch.testing.assert_close(prior().log_prob(z), (weights * each).sum(-1).log())


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_draws_of_a_mixture_have_its_moments(covariance):
    law = stirred(priors.Mixture(2, components=4, covariance=covariance))()
    z = law.sample((20_000,))
    assert z.shape == (20_000, 2)
    assert law.sample().shape == (2,)
    assert law.sample((3, 5)).shape == (3, 5, 2)
    for of in (lambda z: z, lambda z: z.square(), lambda z: z.prod(-1, keepdim=True), lambda z: (z > 0.3).double()):
        points, cell = grid(-12, 12, 601, 2)
        exact = (law.log_prob(points).exp().unsqueeze(1) * of(points)).sum(0) * cell
        values = of(z)
        stderr = values.std(0) / math.sqrt(len(z))
        assert ((values.mean(0) - exact).abs() < 4 * stderr + 1e-4).all()


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_mixtures_gradients_match_finite_differences(covariance):
    prior = stirred(priors.Mixture(2, components=3, covariance=covariance))
    z = torch.randn(4, 2, dtype=F64, requires_grad=True)
    named = dict(prior.named_parameters())

    def density(z: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(_Density(prior), {f"prior.{n}": v for n, v in zip(named, values, strict=True)}, (z,))

    assert torch.autograd.gradcheck(density, (z, *named.values()))


class _Density(torch.nn.Module):
    def __init__(self, prior: torch.nn.Module) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, z: Tensor) -> Tensor:
        return self.prior().log_prob(z)


def test_a_mixture_starts_near_the_standard_normal_and_with_components_of_their_own():
    torch.manual_seed(1)
    one, two = priors.Mixture(2, components=400), priors.Mixture(2, components=400)
    assert not torch.equal(one.locs, two.locs)  # torch's generator goes on
    assert len(one.locs.unique(dim=0)) == 400
    torch.testing.assert_close(one().mean, torch.zeros(2), atol=0.15, rtol=0)
    torch.testing.assert_close(one().variance, torch.ones(2), atol=0.1, rtol=0)
    assert one().component_distribution.stddev[0, 0].item() == pytest.approx(math.sqrt(1 - 0.7**2), abs=1e-6)


@pytest.mark.parametrize("make", [lambda: priors.Mixture(3, 4, "full"), lambda: priors.VampPrior(2, 6, 4, (0, 1))])
def test_learned_priors_are_made_on_the_meta_device(make):
    with torch.device("meta"):
        assert {p.device.type for p in make().parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: priors.Mixture((2, 3)), r"one axis, was \(2, 3\)"),
        (lambda: priors.Mixture(2, components=0), "components must be"),
        (lambda: priors.Mixture(2, covariance="low rank"), "covariance must be one of diagonal, full, was 'low rank'"),
        (lambda: priors.Mixture(2, spread=1.0), "spread must be between 0 and 1, was 1.0"),
        (lambda: priors.Mixture(2, minimum=0.0), "minimum must be above 0"),
        (lambda: priors.Mixture(2, 1).put(torch.ones(1), torch.zeros(1, 3), torch.ones(1, 3)), "must have shapes"),
        (lambda: priors.Mixture(1, 1).put(torch.ones(1), torch.zeros(1, 1), torch.full((1, 1), 1e-8)), "smaller minimum"),
        (lambda: priors.VampPrior(2, 6, bounds=(1, 0)), "the lower one first"),
        (lambda: priors.VampPrior(2, 6)(), r"has met none: give it to a model"),
        (lambda: vamp().with_prior(priors.VampPrior(3, 6)), r"its event is \(3,\), the posterior's \(2,\)"),
        (lambda: vamp().with_prior(priors.VampPrior(2, 5)), r"the shape of the examples, \(6,\), were \(5,\)"),
        (lambda: vamp(objective=objectives.ELBO(kl="analytic")), "no closed form"),
    ],
)
def test_what_makes_no_prior_is_refused_by_name(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


# VampPrior


@pytest.mark.parametrize("posterior", KINDS)
def test_a_vamp_prior_is_the_mean_of_the_posteriors_at_its_inputs(posterior):
    model = vamp(posterior).double().eval()
    u = model.prior.inputs.clamp(0, 1)
    z = model.posterior(X[:5].double()).sample((3,))
    by_hand = torch.stack([model.posterior(u[k : k + 1]).log_prob(z).exp() for k in range(7)]).mean(0).log()
    torch.testing.assert_close(model.prior().log_prob(z), by_hand)
    assert model.sample(4).shape == (4, 6)


def test_a_vamp_prior_of_two_layers_is_the_mean_of_the_chains():
    q = conditionals.Chain(conditionals.Bernoulli(MLP(6, [5], "tanh"), 2), conditionals.Bernoulli(MLP(2, [5], "tanh"), 1))
    prior = priors.VampPrior(3, 6, components=4)
    prior.meet(prior, q)
    q.double(), prior.double()
    z = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F64)] * 3)
    assert prior().log_prob(z).exp().sum().item() == pytest.approx(1, abs=1e-12)
    by_hand = torch.stack([q(prior.inputs[k : k + 1]).log_prob(z.unsqueeze(1)).squeeze(1).exp() for k in range(4)]).mean(0)
    torch.testing.assert_close(prior().log_prob(z).exp(), by_hand)


def test_a_vamp_prior_of_normals_integrates_to_one():
    model = vamp().double()
    z, cell = grid(-12, 12, 601, 2)
    assert (model.prior().log_prob(z).exp().sum() * cell).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("posterior", KINDS)
def test_the_encoder_is_trained_through_the_prior_too(posterior):
    model = vamp(posterior, components=3).double()
    z = model.posterior(X[:4].double()).sample()
    named = {**dict(model.posterior.named_parameters(prefix="posterior")), "prior.inputs": model.prior.inputs}
    assert all(id(p) in {id(q) for q in model.parameters()} for p in named.values())

    class Density(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.posterior, self.prior = model.posterior, model.prior

        def forward(self) -> Tensor:
            return self.prior().log_prob(z)

    def density(*values: Tensor) -> Tensor:  # the swap reaches the posterior that the prior holds
        return torch.func.functional_call(Density(), dict(zip(named, values, strict=True)), ())

    assert torch.autograd.gradcheck(density, tuple(named.values()))
    slopes = torch.autograd.grad(density(*named.values()).sum(), list(named.values()))
    assert all(slope.abs().max() > 0 for slope in slopes)


def test_the_posterior_is_listed_once_and_goes_with_its_model():
    model = vamp()
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len({id(p) for p in model.parameters()})
    assert "prior.inputs" in names
    twin = copy.deepcopy(model)
    assert twin.prior._posterior[0] is twin.posterior
    assert twin.posterior is not model.posterior
    with torch.no_grad():
        for parameter in twin.posterior.parameters():
            parameter.add_(0.3)
    z = torch.zeros(1, 2)
    assert not torch.equal(twin.prior().log_prob(z), model.prior().log_prob(z))


@pytest.mark.parametrize("make", [*[lambda p=p: vamp(p) for p in KINDS], lambda: small_mixture("full"), lambda: small_mixture()])
def test_a_model_with_a_learned_prior_is_the_same_from_its_file(make, tmp_path):
    model = make()
    xhat.fit(model, X.round(), epochs=1, batch_size=20, progress=False, device="cpu")
    again = xhat.load(xhat.save(model, tmp_path / "model.safetensors"))
    z = model.posterior(X).sample((2,))
    assert torch.equal(again.prior().log_prob(z), model.eval().prior().log_prob(z))
    assert specification(again) == specification(model)


def small_mixture(covariance: str = "diagonal", **parts: object) -> VAE:
    return VAE(
        priors.Mixture(2, 5, covariance),
        conditionals.Normal(MLP(6, [5], "tanh"), 2),
        conditionals.Bernoulli(MLP(2, [5], "tanh"), 6),
        **parts,
    )


def test_training_starts_the_pseudo_inputs_at_examples():
    model = vamp(components=40, bounds=None)
    model.prepare(Examples(X))
    nearest = torch.cdist(model.prior.inputs.detach(), X)
    assert nearest.min(1).values.max() < 0.05  # noise of a hundredth of σ in each of six
    assert sorted(nearest.argmin(1).tolist()) == list(range(40))  # each example once
    before = model.prior.inputs.clone()
    xhat.fit(model, X.round(), epochs=1, progress=False, device="cpu")
    assert not torch.equal(model.prior.inputs, before)


def test_pseudo_inputs_of_few_binary_examples_differ_and_have_derivatives():
    model = vamp(components=9)
    model.prepare(Examples(X[:4].round()))
    u = model.prior.inputs
    assert len(u.unique(dim=0)) == 9
    assert ((u > 0) & (u < 1)).all()
    (slope,) = torch.autograd.grad(model.prior().log_prob(torch.zeros(2)), u)
    assert (slope != 0).all()
    with torch.no_grad():
        u[0] = 5.0
    assert model.prior.pseudo_inputs.max() == 1


def test_another_shape_of_examples_is_refused_when_training_starts():
    prior = priors.VampPrior(2, 6, 3)
    with pytest.raises(ConfigError, match=r"the shape of the examples, \(5,\), were \(6,\)"):
        prior.prepare(Examples(torch.rand(8, 5)))


def test_vamp_priors_train_in_a_stack_each_from_its_own_examples():
    x, starts = X.round(), {}

    def build(seed: int) -> VAE:
        starts[seed] = vamp(components=8, bounds=None)
        return starts[seed]

    many = xhat.fit_many(build, x, seeds=2, epochs=1, batch_size=20, lr=1e-4, progress=False, device="cpu")
    inputs = [member.model.prior.inputs.detach() for member in many.members]
    for u in inputs:  # two steps of a ten-thousandth away from where they started
        assert torch.cdist(u, x).min(1).values.max() < 0.1
    assert not torch.allclose(inputs[0], inputs[1], atol=0.1)


def test_in_a_stack_each_prior_is_of_its_own_posterior():
    from xhat.training.stack import Stack

    models = [vamp(components=5).eval() for _ in range(3)]
    stack = Stack(models, Batch(X[:12].round().reshape(3, 4, 6)))
    template = stack.template.model
    z = torch.randn(4, 2)

    class Density(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = template

        def forward(self) -> Tensor:
            return self.model.prior().log_prob(z)

    both = torch.vmap(lambda p: torch.func.functional_call(Density(), p, ()))(stack.parameters)
    torch.testing.assert_close(both, torch.stack([model.prior().log_prob(z) for model in models]))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, of torch.compile
@pytest.mark.parametrize("make", [lambda: vamp(), lambda: vamp("bernoulli"), lambda: small_mixture("full")])
def test_the_compiled_program_is_the_eager_one(make):
    model = make()
    (stage,) = model.stages()
    program = Program(stage, model.gradient, list(model.parameters()), len(X))
    torch.manual_seed(3)
    values, slopes, names = program(X.round())
    torch.manual_seed(3)
    again, traced, _ = compiled(program, "eager")(X.round())
    torch.testing.assert_close(again, values)
    assert "elbo" in names
    for ours, theirs in zip(slopes, traced, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("posterior", ["normal", "bernoulli"])
def test_the_sampled_divergence_to_a_vamp_prior_is_the_true_one(posterior):
    model = vamp(posterior).double().eval()
    x = X[:3].double().round()
    q, p = model.posterior(x), model.prior()
    z, cell = (
        grid(-12, 12, 401, 2)
        if posterior == "normal"
        else (torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F64)] * 2), 1.0)
    )
    z = z.unsqueeze(1)
    inner = model.likelihood(z.expand(-1, 3, -1)).log_prob(x) + p.log_prob(z) - q.log_prob(z)
    exact = (q.log_prob(z).exp() * inner).sum(0) * cell
    estimates = torch.stack([model.elbo(x, samples=50).detach() for _ in range(60)])
    stderr = estimates.std(0) / math.sqrt(60)
    assert ((estimates.mean(0) - exact).abs() < 4 * stderr).all()


@pytest.mark.parametrize("make", [vamp, small_mixture])
def test_evaluation_takes_a_prior_without_a_closed_form(make):
    model = make()
    result = evaluate(model, X.round(), samples=20, train=X.round())
    draws = torch.stack([model.elbo(X.round()) for _ in range(400)]).detach().double()
    stderr = draws.std(0).square().sum().sqrt() / len(X)  # of one draw for each example
    assert abs(result.elbo.value - draws.mean().item()) < 4 * stderr * math.sqrt(1 / 20 + 1 / 400)
    assert result.elbo.value <= result.log_likelihood.value + 3 * result.log_likelihood_mc_stderr
    assert math.isfinite(result.train_elbo.value)


def test_a_mixed_law_draws_from_the_chosen_components_only():
    seen: list[Tensor | None] = []
    locs = torch.tensor([[-100.0], [0.0], [100.0]])

    def at(which: Tensor | None) -> td.Distribution:
        seen.append(which)
        return td.Independent(td.Normal(locs if which is None else locs[which], 1.0), 1)

    law = Mixed(torch.tensor([0.0, -torch.inf, 0.0]), at)
    z = law.sample((50, 2))
    assert (z.abs() > 50).all()
    assert len(seen) == 2
    assert seen[1].numel() == 100
    wide = law.expand((4,))
    assert wide.batch_shape == (4,)
    torch.testing.assert_close(wide.log_prob(z[:4, :1].squeeze(1)), law.log_prob(z[:4, :1].squeeze(1)))


def test_a_conditional_of_ones_own_serves_a_vamp_prior():
    class Laplace(Headed):
        __module__ = "__main__"

        def __init__(self) -> None:
            super().__init__(MLP(6, [4]), 2, parameters=1)

        def law(self, raw: Tensor) -> td.Distribution:
            return td.Independent(td.Laplace(raw.squeeze(-2), 1.0), 1)

    model = VAE(priors.VampPrior(2, 6, 5), Laplace(), conditionals.Bernoulli(MLP(2, [4]), 6))
    u = model.prior.inputs
    z = torch.randn(3, 2)
    by_hand = torch.stack([model.posterior(u[k : k + 1]).log_prob(z).exp() for k in range(5)]).mean(0).log()
    torch.testing.assert_close(model.prior().log_prob(z), by_hand)
