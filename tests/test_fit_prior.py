"""Priors fitted to codes after training: expectation and maximisation, what the bound gains, and autoencoders that sample."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch import distributions as td

import xhat
from catalogue import F64
from xhat import conditionals, priors
from xhat.data import load_data
from xhat.errors import ConfigError, DataError, TrainingError
from xhat.models.base import Model
from xhat.networks import MLP
from xhat.training.mixture import Normals, fit_normals, log_joint, mean_log_density
from xhat.training.prior import fit_prior

X = torch.rand(300, 6, generator=torch.Generator().manual_seed(0)).round()
QUICK = {"epochs": 3, "batch_size": 64}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def truth(full: bool) -> Normals:
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    locs = torch.tensor([[-4.0, 0.0], [3.0, 3.0], [3.0, -4.0]], dtype=F64)
    roots = torch.tensor([[[1.0, 0.0], [0.8, 0.5]], [[0.6, 0.0], [-0.5, 1.2]], [[1.5, 0.0], [0.0, 0.7]]], dtype=F64)
    covariances = roots @ roots.mT
    return Normals(weights, locs, covariances if full else covariances.diagonal(dim1=-2, dim2=-1).clone())


def law_of(mixture: Normals) -> td.MixtureSameFamily:
    whole = mixture.covariances if mixture.full else torch.diag_embed(mixture.covariances)
    return td.MixtureSameFamily(td.Categorical(mixture.weights), td.MultivariateNormal(mixture.locs, whole))


# Expectation and maximisation


@pytest.mark.parametrize("full", [True, False])
def test_the_density_of_a_fit_is_that_of_torchs_mixture(full):
    mixture = truth(full)
    points = 3 * torch.randn(50, 2, dtype=F64)
    law = law_of(mixture)
    torch.testing.assert_close(log_joint(mixture, points).logsumexp(1), law.log_prob(points))
    assert mean_log_density(mixture, points) == pytest.approx(law.log_prob(points).mean().item(), abs=1e-12)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("components", [1, 2, 3, 6])
def test_no_step_lowers_the_likelihood(full, components):
    points = law_of(truth(full)).sample((800,))
    for floor in (1e-3, 0.3):  # the second holds covariances back
        rising = fit_normals(points, components, "full" if full else "diagonal", floor=floor, tolerance=1e-9).log_likelihoods
        assert all(after >= before - 1e-12 for before, after in itertools.pairwise(rising))


@pytest.mark.parametrize("full", [True, False])
def test_the_truth_is_found_again(full):
    known = truth(full)
    points = law_of(known).sample((6000,))
    fitted = fit_normals(points, 3, "full" if full else "diagonal", tolerance=1e-9)
    # Nothing fits the points themselves better than the best fit does; and other points it fits as the truth does.
    assert fitted.log_likelihoods[-1] >= mean_log_density(known, points)
    fresh = law_of(known).sample((6000,))
    gap = law_of(fitted.mixture).log_prob(fresh) - law_of(known).log_prob(fresh)
    assert gap.mean().abs() < 4 * gap.std() / math.sqrt(len(fresh)) + 17 / len(points)  # a half for each of its numbers
    order = fitted.mixture.weights.argsort(descending=True)
    # Standard errors of a share, of a mean and of a (co)variance are at most these.
    torch.testing.assert_close(fitted.mixture.weights[order], known.weights, atol=4 * 0.5 / 6000**0.5, rtol=0)
    torch.testing.assert_close(fitted.mixture.locs[order], known.locs, atol=4 * 1.5 / 1200**0.5, rtol=0)
    torch.testing.assert_close(fitted.mixture.covariances[order], known.covariances, atol=4 * 2.25 * (2 / 1200) ** 0.5, rtol=0)


def test_one_component_is_the_mean_and_the_covariance():
    points = torch.randn(400, 3, dtype=F64) @ torch.randn(3, 3, dtype=F64) + 1000
    mixture = fit_normals(points, 1).mixture
    torch.testing.assert_close(mixture.locs[0], points.mean(0))
    torch.testing.assert_close(mixture.covariances[0], points.mT.cov(correction=0))


def test_the_step_is_the_textbooks_computed_plainly():
    from xhat.training.mixture import _step

    points, before = law_of(truth(True)).sample((60,)), truth(True)
    shares = torch.stack([w * td.MultivariateNormal(m, c).log_prob(points).exp() for w, m, c in zip(*before, strict=True)], 1)
    value, after = _step(before, points, 1e-9)
    assert value == pytest.approx(shares.sum(1).log().mean().item(), abs=1e-12)
    shares = shares / shares.sum(1, keepdim=True)
    for k in range(3):
        r = shares[:, k]
        loc = (r.unsqueeze(1) * points).sum(0) / r.sum()
        away = points - loc
        torch.testing.assert_close(after.weights[k], r.mean())
        torch.testing.assert_close(after.locs[k], loc)
        torch.testing.assert_close(
            after.covariances[k], (r[:, None, None] * away[:, :, None] * away[:, None, :]).sum(0) / r.sum()
        )


def test_degenerate_points_keep_a_covariance():
    points = torch.randn(200, 3, dtype=F64)
    points[:, 2] = 5.0  # a dead dimension
    points[:50] = points[:1]  # and a point that many share
    for covariance in ("full", "diagonal"):
        mixture = fit_normals(points, 8, covariance, floor=1e-2).mixture
        spread = points.sub(points.mean(0)).square().mean().sqrt()
        values = torch.linalg.eigvalsh(mixture.covariances) if mixture.full else mixture.covariances
        assert values.min() >= (1e-2 * spread) ** 2 * (1 - 1e-9)


def test_points_that_are_held_out_stop_the_steps_at_their_best():
    points, apart = torch.randn(40, 4, dtype=F64), torch.randn(2000, 4, dtype=F64)
    fitted = fit_normals(points, 5, held_out=apart, tolerance=1e-9)
    assert max(fitted.held_out) == pytest.approx(mean_log_density(fitted.mixture, apart), abs=1e-12)
    assert fitted.held_out[-1] <= fitted.held_out[-2]  # it went on until it was worse
    free = fit_normals(points, 5, tolerance=1e-9).mixture
    assert mean_log_density(fitted.mixture, apart) > mean_log_density(free, apart)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (torch.randn(3, 2), "a mixture of 4 components needs as many codes at least, there were 3"),
        (torch.full((9, 2), torch.nan), "codes must be finite"),
        (torch.ones(9, 2), "all codes are the same point"),
    ],
)
def test_points_without_a_mixture_are_refused(points, words):
    with pytest.raises(DataError, match=words):
        fit_normals(points, 4)


# Models


def small(**options: object) -> Model:
    return xhat.build("vae", (6,), latent=2, hidden=[8], likelihood="bernoulli", **options).eval()


@pytest.fixture(scope="module")
def digits() -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    x = load_data("digits").train.tensor()[:600].round()
    model = xhat.build("vae", tuple(x.shape[1:]), latent=4, hidden=[32], likelihood="bernoulli")
    xhat.fit(model, x, epochs=10, seed=0, progress=False, device="cpu")
    return model.eval(), x


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


FLOW = {"transforms": 1, "hidden": [8], "lr": 1e-2}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mixture", {"components": 10}),
        ("mixture", {"components": 10, "covariance": "diagonal"}),
        ("flow", FLOW | {"epochs": 6}),
        ("vamp", {"components": 30, "bounds": (0, 1), "epochs": 2}),
    ],
)
def test_the_bound_gains_what_the_prior_gains_and_nothing_else_moves(digits, kind, options):
    model, x = digits
    before = weights_of(model)
    fitted = fit_prior(model, x, kind, seed=1, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in fitted.parameters()}
    for part in ("posterior", "likelihood"):
        held = getattr(fitted, part).state_dict()
        assert all(torch.equal(tensor, held[name]) for name, tensor in getattr(model, part).state_dict().items())
    with torch.no_grad():
        q = model.posterior(x)
        z = q.sample((20,))
        gain = fitted.prior().log_prob(z) - model.prior().log_prob(z)
        # The log weights at the same draws, of the whole bound
        whole = [m.likelihood(z).log_prob(x) + m.prior().log_prob(z) - q.log_prob(z) for m in (fitted, model)]
    torch.testing.assert_close((whole[0] - whole[1]).double().mean(), gain.double().mean(), atol=1e-5, rtol=0)
    assert gain.mean() > 0.1  # nats
    with torch.no_grad():
        bounds = fitted.elbo(x, samples=100), model.elbo(x, samples=100)
    error = 4 * gain.std(0).double().mean() / math.sqrt(100 * 10)
    assert (bounds[0].double().mean() - bounds[1].double().mean()).item() == pytest.approx(gain.mean().item(), abs=error.item())


def test_a_fit_is_the_same_for_a_seed_and_leaves_the_callers_random_numbers_alone():
    model = small()
    for kind, options in (("mixture", {}), ("flow", FLOW | QUICK), ("vamp", {"components": 5, **QUICK})):
        state = torch.random.get_rng_state()
        one, two = (fit_prior(model, X, kind, seed=4, **options) for _ in range(2))
        assert torch.equal(torch.random.get_rng_state(), state)
        other = fit_prior(model, X, kind, seed=5, **options)
        same = weights_of(one.prior)
        assert all(torch.equal(tensor, same[name]) for name, tensor in two.prior.state_dict().items())
        assert any(not torch.equal(tensor, same[name]) for name, tensor in other.prior.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "options"), [("mixture", {"components": 3}), ("flow", FLOW | QUICK), ("vamp", {"components": 5, **QUICK})]
)
def test_a_model_with_a_fitted_prior_is_the_same_from_its_file(kind, options, tmp_path):
    fitted = fit_prior(small(), X, kind, **options)
    again = xhat.load(xhat.save(fitted, tmp_path / "model.safetensors"))
    z = torch.randn(5, 2)
    assert torch.equal(again.prior().log_prob(z), fitted.prior().log_prob(z))
    xhat.fit(fitted, X, epochs=1, progress=False, device="cpu")  # and it goes on training, prior and all
    assert not torch.equal(again.prior().log_prob(z), fitted.prior().log_prob(z))


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_the_prior_of_a_model_is_the_mixture_that_was_found(covariance, monkeypatch):
    """In float64 nothing is lost on the way through softplus and Cholesky."""
    seen: list[Tensor] = []

    def watched(points: Tensor, *arguments: object, **options: object) -> object:
        fitted = fit_normals(points, *arguments, **options)
        seen.extend((points, *fitted.mixture))
        return fitted

    monkeypatch.setattr("xhat.training.prior.fit_normals", watched)
    values: list[float] = []
    model = small().double()
    fitted = fit_prior(model, X, components=4, covariance=covariance, draws=3, progress=lambda step, value: values.append(value))
    codes, *found = seen
    assert codes.shape == (900, 2)
    assert len(codes.unique(dim=0)) == 900  # three draws of each
    torch.testing.assert_close(fitted.prior().log_prob(codes), law_of(Normals(*found)).log_prob(codes), atol=1e-9, rtol=0)
    assert fitted.prior().log_prob(codes).mean().item() == pytest.approx(values[-1], abs=1e-9)


@pytest.mark.parametrize("options", [{"free_bits": 0.1}, {"kl": "analytic"}])
def test_an_objective_that_wants_a_closed_form_becomes_the_bound(options):
    model = small(**options)
    fitted = fit_prior(model, X, components=2)
    assert type(fitted.objective) is xhat.objectives.ELBO
    assert (fitted.objective.kl, fitted.objective.free_bits) == ("auto", 0)
    assert model.objective.kl == options.get("kl", "auto")
    assert torch.isfinite(fitted.loss(X)).all()


def test_discrete_codes_get_a_vamp_prior_or_none():
    model = xhat.build("bernoulli-vae", (6,), latent=3, hidden=[8], likelihood="bernoulli", learn_prior=False).eval()
    fitted = fit_prior(model, X, "vamp", components=20, bounds=[0, 1], **QUICK)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    assert fitted.prior().log_prob(every).exp().sum().item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(
        ConfigError, match="the codes of this model are discrete, and a mixture prior is a density: use kind='vamp'"
    ):
        fit_prior(model, X)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "normal"}, "kind must be one of mixture, flow, vamp, was 'normal'"),
        ({"bounds": (0, 1)}, "bounds is no option of a mixture prior: it has covariance, steps, floor, tolerance"),
        ({"kind": "flow", "covariance": "full"}, "covariance is no option of a flow prior"),
        ({"kind": "flow", "components": 3}, "a flow prior has no components"),
        ({"kind": "flow", "lr": 0.0}, "lr must be a finite number above 0, was 0.0"),
        ({"floor": "a"}, "floor must be a finite number above 0, was 'a'"),
        ({"kind": "flow", "hidden": 0}, "hidden must be at least 1, was 0"),
        ({"components": 0}, "components must be"),
        ({"draws": 0}, "draws must be"),
        ({"covariance": "low rank"}, "covariance must be one of diagonal, full"),
        ({"steps": 0}, "steps must be"),
    ],
)
def test_what_cannot_be_fitted_is_refused_by_name(options, words):
    with pytest.raises(ConfigError, match=words):
        fit_prior(small(), X, **options)
    with pytest.raises(DataError, match="shape"):
        fit_prior(small(), torch.rand(5, 7))


def test_a_prior_that_takes_from_the_bound_is_refused():
    x = torch.rand(300, 6, generator=torch.Generator().manual_seed(0)).round()
    sharp = xhat.VAE(
        priors.StandardNormal(2),
        conditionals.Normal(MLP(6, [8]), 2, scale=1e-3),  # 64 points, which one Normal does not describe
        conditionals.Bernoulli(MLP(2, [8]), 6),
    )
    many = fit_prior(sharp.eval(), x, components=40)
    with pytest.raises(TrainingError, match="keep the model as it is"):
        fit_prior(many, x, components=1)


# Autoencoders


def autoencoders() -> dict[str, Model]:
    return {
        "autoencoder": xhat.build("autoencoder", (6,), latent=2, hidden=[8], likelihood="bernoulli"),
        "tied": xhat.build("autoencoder", (6,), latent=2, hidden=[8], tied=True),
        "denoising": xhat.build("denoising", (6,), latent=2, hidden=[8]),
        "stacked": xhat.build("stacked", (6,), latent=2, hidden=[8]),
    }


@pytest.mark.parametrize("name", autoencoders())
@pytest.mark.parametrize(("kind", "options"), [("mixture", {"components": 3}), ("flow", FLOW | QUICK)])
def test_an_autoencoder_gets_a_law_of_its_codes_and_no_bound(name, kind, options, tmp_path):
    model = autoencoders()[name].eval()
    assert not model.has_bound
    fitted = fit_prior(model, X, kind, **options)
    assert not fitted.has_bound
    assert fitted.sample(5).shape == (5, 6)
    assert torch.equal(fitted.reconstruct(X), model.reconstruct(X))
    for refused in (lambda: fitted.elbo(X), lambda: xhat.log_likelihood(fitted, X, samples=2)):
        with pytest.raises(ConfigError, match="a code that is a point, without a density to weigh against its prior"):
            refused()
    result = xhat.evaluate(fitted, X, samples=5, train=X)
    told = xhat.evaluate(model, X, samples=5, train=X)
    assert result == told
    assert result.elbo is result.log_likelihood is result.train_elbo is result.kl is None
    again = xhat.load(xhat.save(fitted, tmp_path / "model.safetensors"))
    torch.manual_seed(1)
    drawn = fitted.sample(4)
    torch.manual_seed(1)
    assert torch.equal(again.sample(4), drawn)
    xhat.fit(fitted, X, epochs=1, progress=False, device="cpu")
    assert torch.equal(fitted.prior().log_prob(torch.zeros(2)), again.prior().log_prob(torch.zeros(2)))  # no part of training


def test_the_codes_prior_has_the_codes_own_moments():
    model = autoencoders()["autoencoder"].eval()
    fitted = fit_prior(model, X, components=1)
    codes = model.encode(X)
    torch.testing.assert_close(fitted.prior().mean, codes.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        fitted.prior().component_distribution.covariance_matrix[0], codes.mT.cov(correction=0), atol=1e-5, rtol=1e-3
    )


def test_an_autoencoder_with_random_codes_has_a_bound_as_soon_as_it_has_a_prior():
    parts = conditionals.Normal(MLP(6, [5]), 2), conditionals.Bernoulli(MLP(2, [5]), 6)
    model = xhat.Autoencoder(*parts, prior=priors.StandardNormal(2))
    assert model.has_bound
    assert xhat.Autoencoder(*parts).has_bound is False
    twin = xhat.VAE(priors.StandardNormal(2), *parts)
    torch.manual_seed(2)
    bound = model.elbo(X, samples=3)
    torch.manual_seed(2)
    torch.testing.assert_close(bound, twin.elbo(X, samples=3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda code, back: xhat.VAE(priors.StandardNormal(2), code, back), "a Delta posterior has no density"),
        (
            lambda code, back: xhat.Autoencoder(code, back, prior=priors.StandardNormal(3)),
            r"the prior draws events of shape \(3,\)",
        ),
        (lambda code, back: xhat.Autoencoder(code, back, prior=priors.Bernoulli(2)), "do not live on the same points"),
        (lambda code, back: xhat.Autoencoder(code, back, prior=priors.VampPrior(2, 6, 3)), "do not live on the same points"),
        (
            lambda code, back: xhat.Autoencoder(code, back, prior=torch.nn.Identity()),
            "the prior Identity needs an attribute event",
        ),
    ],
)
def test_priors_that_no_point_can_have_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make(conditionals.Delta(MLP(6, [5]), 2), conditionals.Bernoulli(MLP(2, [5]), 6))


def test_a_code_of_ones_own_that_is_a_point_has_no_bound_either():
    class Own(torch.nn.Module):
        event = 2

        def __init__(self) -> None:
            super().__init__()
            self.code = torch.nn.Linear(6, 2)

        def forward(self, x: Tensor) -> td.Distribution:
            return xhat.distributions.Delta(self.code(x), 1)

    model = xhat.Autoencoder(Own(), conditionals.Bernoulli(MLP(2, [5]), 6), prior=priors.StandardNormal(2))
    assert not model.has_bound
    assert fit_prior(model, X, components=2).sample(3).shape == (3, 6)
