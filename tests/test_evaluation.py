"""Evaluation: the estimate of log p(x), its standard error, and what is said about a model in words."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch import distributions as td

import xhat
from catalogue import EVENT, F64, RECIPES, bits, examples, from_recipe, vae
from xhat import VAE, conditionals, gradients, objectives, priors
from xhat.data import Examples
from xhat.data.batch import size_of
from xhat.distributions import kl_divergence, kl_per_dimension
from xhat.errors import ConfigError, DataError
from xhat.evaluation.diagnostics import findings
from xhat.evaluation.evaluate import Evaluation, Measure, measure
from xhat.evaluation.refinement import refine
from xhat.networks import MLP


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Fixed(nn.Module):
    """A posterior that is the same for every x."""

    event = (1,)

    def __init__(self, loc: float, scale: float) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([loc]))
        self.scale = scale

    def forward(self, x: Tensor) -> td.Distribution:
        return td.Independent(td.Normal(self.loc.expand(len(x), 1), self.scale), 1)


def shifted(loc: float = 0.4, scale: float = 0.9) -> tuple[VAE, Tensor]:
    """x | z ~ N(z, 1), z ~ N(0, 1), so that log p(x) is N(0, 2)'s; q is another law than the posterior N(x/2, 1/2)."""
    model = VAE(priors.StandardNormal(1), Fixed(loc, scale), conditionals.Normal(MLP(1), 1, scale=1.0)).double()
    with torch.no_grad():
        model.likelihood.head.linear.weight.fill_(1.0)
        model.likelihood.head.linear.bias.zero_()
    known = td.Normal(0.0, math.sqrt(2.0)).log_prob(torch.tensor(1.0, dtype=F64))
    return model, known


ONES = torch.ones(1, 1)


# log p(x), theory 8.1


@pytest.mark.parametrize(("samples", "elements"), [(7, 10**6), (7, 9), (7, 6), (7, 3), (10, 9), (1, 9)])
def test_it_is_a_log_mean_exp_over_exactly_k_draws_whatever_the_chunks(samples, elements):
    """Three examples of one element: chunks of elements // 3 draws; the same draws by hand give the same numbers."""
    model, _ = shifted()
    x = torch.tensor([[1.0], [0.2], [-2.0]])
    torch.manual_seed(5)
    evidence = xhat.log_likelihood(model, x, samples, elements=elements)
    torch.manual_seed(5)
    q, p = model.posterior(x.double()), model.prior()
    chunk = max(1, elements // 3)
    z = torch.cat([q.sample((min(chunk, samples - start),)) for start in range(0, samples, chunk)])
    assert len(z) == samples
    log_w = (model.likelihood(z).log_prob(x.double()) + p.log_prob(z) - q.log_prob(z)).detach()
    torch.testing.assert_close(evidence.log_px, log_w.logsumexp(0) - math.log(samples))
    w = (log_w - log_w.max(0).values).exp()
    ess = w.sum(0).square() / w.square().sum(0)
    torch.testing.assert_close(evidence.ess, ess)
    if samples > 1:
        torch.testing.assert_close(evidence.stderr, w.std(0) / w.mean(0) / math.sqrt(samples))
        torch.testing.assert_close(evidence.stderr, ((1 / ess - 1 / samples) * samples / (samples - 1)).sqrt())
    else:
        assert evidence.stderr.isnan().all()
    assert evidence.log_px.dtype == F64


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_batches_do_not_change_an_estimate_that_has_no_variance(batch):
    model, known = shifted()
    model.posterior = Fixed(0.5, math.sqrt(0.5)).double()  # the posterior for x = 1
    evidence = xhat.log_likelihood(model, torch.ones(5, 1), 4, batch=batch)
    torch.testing.assert_close(evidence.log_px, known.expand(5))


def test_the_weights_average_to_the_evidence_and_the_standard_error_is_calibrated():
    model, known = shifted()
    repeats, samples = 3000, 200
    evidence = xhat.log_likelihood(model, torch.ones(repeats, 1), samples)
    ratio = (evidence.log_px - known).exp()  # the estimate of p(x) itself has no bias
    assert abs(ratio.mean() - 1) <= 4 * ratio.std() / math.sqrt(repeats)
    assert evidence.log_px.std().item() == pytest.approx(evidence.stderr.square().mean().sqrt().item(), rel=0.2)
    away = (evidence.log_px - known) / evidence.stderr
    assert (away.abs() < 2).double().mean().item() == pytest.approx(0.954, abs=0.03)
    # To second order the logarithm is low by half its variance.
    bias = (evidence.log_px - known).mean().item()
    assert bias == pytest.approx(-0.5 * evidence.log_px.var().item(), abs=4 * evidence.log_px.std().item() / math.sqrt(repeats))


def test_the_bound_rises_with_the_number_of_draws_from_the_elbo_to_the_evidence():
    model, known = shifted(scale=1.2)
    x = torch.ones(4000, 1)
    means, errors = [], []
    for samples in (1, 2, 5, 25, 125):
        log_px = xhat.log_likelihood(model, x, samples).log_px
        means.append(log_px.mean().item())
        errors.append(log_px.std().item() / math.sqrt(len(log_px)))
    elbo = model.elbo(x.double()).mean().item()
    assert means[0] == pytest.approx(elbo, abs=6 * errors[0])
    for low, high, error in zip(means, means[1:], errors, strict=False):
        assert low < high + error
    assert means[-1] == pytest.approx(known.item(), abs=4 * errors[-1] + 0.01)
    assert all(mean <= known + 4 * error for mean, error in zip(means, errors, strict=True))


def test_an_enumerable_model_is_met():
    model = vae("bernoulli", "bernoulli").double()
    x, z = bits(3), bits(2)
    known = (model.likelihood(z[:, None].expand(-1, 8, -1)).log_prob(x) + model.prior().log_prob(z)[:, None]).logsumexp(0)
    assert known.exp().sum().item() == pytest.approx(1.0)
    evidence = xhat.log_likelihood(model, x, 5000)
    assert ((evidence.log_px - known).abs() <= 4 * evidence.stderr).all()
    assert ((evidence.ess >= 1) & (evidence.ess <= 5000)).all()


def test_the_effective_sample_size_lies_between_one_and_k():
    for loc, scale, samples in ((0.5, math.sqrt(0.5), 50), (6.0, 0.05, 50), (0.4, 0.9, 1)):
        ess = xhat.log_likelihood(shifted(loc, scale)[0], torch.ones(200, 1), samples).ess
        assert (ess >= 1 - 1e-9).all()
        assert (ess <= samples * (1 + 1e-9)).all()
    assert xhat.log_likelihood(shifted(0.5, math.sqrt(0.5))[0], ONES, 50).ess.item() == pytest.approx(50)


class Watching(nn.Module):
    """A likelihood that notes how much it is asked for at once."""

    event = (2, 3)

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.largest, self.draws = nn.Linear(2, 6), 0, 0

    def forward(self, z: Tensor) -> td.Distribution:
        logits = self.linear(z).unflatten(-1, (2, 3))
        if z.ndim == 3:
            self.largest, self.draws = max(self.largest, logits.numel()), self.draws + z.shape[0] * z.shape[1]
        return td.Independent(td.Bernoulli(logits=logits), 2)


def test_memory_is_bounded_and_every_draw_is_made():
    likelihood = Watching()
    model = VAE(priors.StandardNormal(2), conditionals.Normal(MLP((2, 3)), 2), likelihood)
    likelihood.largest = likelihood.draws = 0
    seen = []
    xhat.log_likelihood(model, torch.zeros(13, 2, 3), samples=101, batch=4, elements=240, progress=seen.append)
    assert likelihood.largest == 240
    assert likelihood.draws == 13 * 101
    assert seen == [4, 4, 4, 1]


def test_grey_levels_count_each_level(monkeypatch):
    """A categorical likelihood makes as many numbers for each value of x as it has levels."""
    model = xhat.build("vae", (2, 3), latent=2, hidden=[3], likelihood="categorical", levels=8)
    largest, law = [], model.likelihood.law
    monkeypatch.setattr(model.likelihood, "law", lambda raw: (largest.append(raw.numel()), law(raw))[1])
    xhat.log_likelihood(model, torch.zeros(4, 2, 3), samples=50, elements=4 * 6 * 8 * 5)
    assert max(largest) == 4 * 6 * 8 * 5
    assert len(largest) == 10


def test_what_has_no_likelihood_is_refused():
    autoencoder = from_recipe("autoencoder normal")
    with pytest.raises(ConfigError, match="cannot have a likelihood of x"):
        xhat.log_likelihood(autoencoder, torch.zeros(2, 1, 8, 8))
    model = vae("normal", "bernoulli")
    for call in (xhat.log_likelihood, xhat.evaluate):
        with pytest.raises(ConfigError, match="samples must be at least 1"):
            call(model, torch.zeros(2, 3), samples=0)
        x = torch.zeros(205, 3)
        x[203, 1] = 0.5
        with pytest.raises(DataError, match=r"example 203 holds 0.5 at \(1,\)"):
            call(model, x, samples=2)
        with pytest.raises(DataError, match=r"x must have shape \(B, 3\)"):
            call(model, torch.zeros(2, 4), samples=2)


# Measures


def test_a_measure_is_a_mean_with_its_standard_error():
    values = torch.randn(50)
    expected = stats.sem(values.double().numpy())
    assert measure(values) == Measure(pytest.approx(values.mean().item(), abs=1e-6), pytest.approx(expected, rel=1e-6))
    assert math.isnan(measure(values[:1]).stderr)
    assert str(Measure(1.0, 0.25)) == "1.0000 ± 0.2500"


def test_every_measure_is_what_its_name_says():
    model = vae("normal", "bernoulli")
    x = examples(model, 60)
    result = xhat.evaluate(model, x, samples=50, seed=3)
    q = model.posterior(x)
    torch.testing.assert_close(result.kl.value, kl_divergence(q, model.prior()).double().mean().item())
    each = kl_per_dimension(q, model.prior()).double().mean(0)
    assert result.kl_per_dimension == pytest.approx(each.tolist(), rel=1e-5)
    assert sum(result.kl_per_dimension) == pytest.approx(result.kl.value, rel=1e-5)
    assert result.squared_error.value == pytest.approx((model.reconstruct(x) - x).square().sum(1).mean().item(), rel=1e-5)
    assert result.active_units == (model.encode(x).var(0) > 0.01).sum().item()
    assert (result.examples, result.samples, result.latent) == (60, 50, 2)
    assert -result.elbo.value >= -result.log_likelihood.value - 3 * result.log_likelihood_mc_stderr
    evidence = []
    with torch.random.fork_rng(devices=[]):
        for seed in range(20):
            torch.manual_seed(seed)
            evidence.append(xhat.log_likelihood(model, x, 50).log_px.mean().item())
    assert np.std(evidence, ddof=1) == pytest.approx(result.log_likelihood_mc_stderr, rel=0.6)
    assert abs(result.log_likelihood.value - np.mean(evidence)) < 5 * np.std(evidence)
    assert result.likelihood_scale is None
    assert result.corrupted_error is None


@pytest.mark.parametrize("name", ["vae bernoulli", "vae categorical", "vae poisson", "vae normal", "vae continuous-bernoulli"])
def test_bits_per_dimension_are_those_of_a_probability_and_of_no_density(name):
    model = from_recipe(name)
    result = xhat.evaluate(model, examples(model, 8), samples=4)
    if "normal" in name or "continuous" in name:
        assert result.bits_per_dimension is None
        assert "bits per dimension" not in str(result)
    else:
        assert result.bits_per_dimension == pytest.approx(-result.log_likelihood.value / (math.log(2) * 64))


def test_a_discrete_model_that_knows_nothing_costs_eight_bits():
    model = xhat.build("vae", (1, 2, 2), latent=2, hidden=[3], likelihood="categorical")
    with torch.no_grad():
        model.likelihood.head.linear.weight.zero_()
        model.likelihood.head.linear.bias.zero_()
    result = xhat.evaluate(model, torch.randint(0, 256, (9, 1, 2, 2)) / 255, samples=3000)
    assert result.bits_per_dimension == pytest.approx(8.0, abs=0.02)


def test_dequantised_density_bounds_the_probability_of_a_cell():
    """Theory 8.3, for a Normal density on levels of width 1/256."""
    width, law = 1 / 256, stats.norm(0.4, 0.01)
    for level in (90, 102, 110):
        low = level * width
        cell = math.log(law.cdf(low + width) - law.cdf(low))
        dequantised = np.mean(law.logpdf(low + width * (np.arange(2000) + 0.5) / 2000)) + math.log(width)
        assert dequantised <= cell
        assert -math.log(width) / math.log(2) == 8


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_evaluated_put_down_as_json_and_read_back(name):
    model = from_recipe(name)
    x = examples(model, 12)
    model.train()
    before = torch.get_rng_state()
    result = xhat.evaluate(model, x, samples=6, train=x)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    held = json.loads(json.dumps({**result.as_dict(), "seconds": 1.0}))
    assert Evaluation.from_dict(held) == result
    assert str(Evaluation.from_dict(held)) == str(result)
    again = xhat.evaluate(model, x, samples=6, train=x)
    assert again == result
    assert (result.elbo is not None) == hasattr(model, "prior") == (result.log_likelihood is not None)
    assert (result.denoised_error is not None) == (model.corruption is not None)
    assert result.squared_error.value > 0
    table = str(result)
    assert ("log p(x), nats, K = 6" in table) == hasattr(model, "prior")
    assert "squared error of x̂" in table


def test_an_autoencoder_has_errors_and_no_likelihood():
    model = from_recipe("autoencoder normal")
    result = xhat.evaluate(model, torch.rand(20, 1, 8, 8))
    assert result.elbo is result.log_likelihood is result.kl is result.ess is result.bits_per_dimension is None
    assert result.active_units >= 0
    assert xhat.evaluate(model, torch.rand(1, 1, 8, 8)).findings == ()  # of one example nothing can be said


def test_binarisation_drawn_anew_is_drawn_once_from_the_seed():
    model = vae("normal", "bernoulli")
    grey = Examples(torch.rand(40, 3), binarize="dynamic")
    first = xhat.evaluate(model, grey, samples=5, seed=1)
    assert xhat.evaluate(model, grey, samples=5, seed=1) == first
    assert xhat.evaluate(model, grey, samples=5, seed=2).squared_error != first.squared_error
    assert xhat.evaluate(model, grey.fixed(1), samples=5, seed=1) == first


def test_a_float64_model_is_measured_in_float64():
    model = vae("normal", "normal").double()
    result = xhat.evaluate(model, torch.randn(10, 3), samples=5)
    single = xhat.evaluate(model.float(), torch.randn(10, 3), samples=5)
    assert math.isfinite(result.log_likelihood.value)
    assert math.isfinite(single.log_likelihood.value)


# Findings, each provoked


def found(result: Evaluation, words: str) -> bool:
    return any(words in finding for finding in result.findings)


def silence(model: VAE, dimensions: list[int]) -> None:
    """Put dimensions of the posterior onto the prior, at σ = 1."""
    with torch.no_grad():
        linear = model.posterior.head.linear
        for j in dimensions:
            for row, value in ((j, 0.0), (2 + j, math.log(math.expm1(1 - 1e-4)))):
                linear.weight[row] = 0.0
                linear.bias[row] = value


def test_collapse_is_seen_whole_and_in_part():
    model = vae("normal", "bernoulli")
    x = examples(model, 30)
    assert not found(xhat.evaluate(model, x, samples=20), "collapse")
    silence(model, [1])
    result = xhat.evaluate(model, x, samples=20)
    assert found(result, "1 of 2 latent dimensions are collapsed")
    assert result.kl_per_dimension[1] == pytest.approx(0, abs=1e-6)
    silence(model, [0, 1])
    assert found(xhat.evaluate(model, x, samples=20), "posterior collapse: every latent dimension's KL is below 0.01")


def test_a_code_that_says_nothing_is_seen_without_a_prior():
    model = from_recipe("autoencoder normal")
    assert not found(xhat.evaluate(model, 3 * torch.randn(20, 1, 8, 8)), "says nothing")
    with torch.no_grad():
        model.posterior.head.linear.weight.zero_()
    assert found(xhat.evaluate(model, torch.rand(20, 1, 8, 8)), "no unit of the code varies with x")


def test_a_scale_at_its_bound_is_seen():
    model = xhat.build("vae", (4,), latent=2, hidden=[3], minimum=0.05)
    x = torch.randn(20, 4)
    result = xhat.evaluate(model, x, samples=5)
    assert result.likelihood_scale == pytest.approx(1.05, rel=1e-4)
    assert not found(result, "lower bound")
    with torch.no_grad():
        model.likelihood.raw_scale.fill_(-10.0)
    result = xhat.evaluate(model, x, samples=5)
    assert result.likelihood_scale == pytest.approx(0.05)
    assert found(result, "σ stands at its lower bound 0.05")
    fixed = xhat.build("vae", (4,), latent=2, hidden=[3], scale=0.05, minimum=0.05)
    assert not found(xhat.evaluate(fixed, x, samples=5), "lower bound")


def test_a_small_effective_sample_size_is_seen():
    good, _ = shifted(0.5, math.sqrt(0.5))
    assert not found(xhat.evaluate(good, torch.ones(20, 1), samples=100), "effective sample size")
    bad, _ = shifted(3.0, 0.7)
    result = xhat.evaluate(bad, torch.ones(20, 1), samples=100)
    assert result.ess < 10
    assert found(result, "the estimate of log p(x) is dominated by a few draws")
    mixed, _ = shifted(0.5, math.sqrt(0.5))
    x = torch.ones(50, 1)
    x[7] = 30.0
    result = xhat.evaluate(mixed, x, samples=100)
    assert result.ess_smallest < 2 < result.ess
    assert found(result, "for some examples one draw carries")
    assert not found(xhat.evaluate(bad, torch.ones(20, 1), samples=1), "effective sample size")


def test_overfitting_is_seen():
    model = xhat.build("vae", (4,), latent=2, hidden=[3])
    near = 0.1 * torch.randn(200, 4)
    assert not found(xhat.evaluate(model, near, samples=5, train=near.clone()), "overfits")
    result = xhat.evaluate(model, near + 3, samples=5, train=near)
    assert result.train_elbo.value > result.elbo.value
    assert found(result, "nats better on training examples")


def test_at_most_two_thousand_training_examples_are_compared(monkeypatch):
    model, sizes = vae("normal", "bernoulli"), []
    original = model.check
    monkeypatch.setattr(model, "check", lambda x, *rest: (sizes.append(size_of(x)), original(x, *rest))[1])
    xhat.evaluate(model, torch.zeros(100, *EVENT), samples=1, train=torch.zeros(2345, *EVENT))
    assert sum(sizes) == 100 + 100 + 100 + 2000 + 2000  # twice each: the measures check, and so does the bound


def test_a_useless_denoiser_is_seen():
    model = xhat.build("denoising", (4,), latent=4, hidden=[], corruption="normal-noise:0.5")
    x = torch.randn(50, 4)
    with torch.no_grad():
        for linear in (model.posterior.head.linear, model.likelihood.head.linear):
            linear.weight.copy_(2.0 * torch.eye(4))
            linear.bias.zero_()
    result = xhat.evaluate(model, x)
    assert result.corrupted_error.value == pytest.approx(4 * 0.25, rel=0.2)
    assert result.denoised_error.value > result.corrupted_error.value
    assert found(result, "no closer to the clean example")
    with torch.no_grad():
        for linear in (model.posterior.head.linear, model.likelihood.head.linear):
            linear.weight.copy_(math.sqrt(0.8) * torch.eye(4))
    assert not found(xhat.evaluate(model, x), "no closer")


# What the bound is made of, and what refining posteriors adds to it


def two_bits() -> VAE:
    """Two layers of a bit each: neither a closed form of the KL nor marginals."""
    bit = conditionals.Bernoulli
    return VAE(
        priors.Chain(priors.Bernoulli(1, probs=0.3), bit(MLP(1, []), 1)),
        conditionals.Chain(bit(MLP(EVENT, []), 1), bit(MLP(1, []), 1)),
        bit(MLP(2, []), EVENT),
        objectives.ELBO(samples=2),
        gradients.LeaveOneOut(),
    )


def test_the_parts_of_the_bound_are_those_of_the_anatomy():
    model = vae("normal", "bernoulli")
    x = examples(model, 60)
    result = xhat.evaluate(model, x, samples=20)
    assert result.anatomy_examples == 60
    parts = (result.mutual_information, result.total_correlation, result.dimension_wise_kl)
    noise = 4 * math.sqrt(sum(part.stderr**2 for part in (*parts, result.kl)))
    assert sum(part.value for part in parts) == pytest.approx(result.kl.value, abs=noise)
    assert result.reconstruction.value == pytest.approx(result.elbo.value + result.kl.value, abs=4 * result.reconstruction.stderr)
    assert {each.place for each in result.dimensions} == {0, 1}
    assert result.amortisation_gap is result.refined_steps is None
    for row in ("mutual information I(x; z), nats", "total correlation, nats", "KL of each dimension, summed, nats", "z₁ ("):
        assert row in str(result)


def test_a_kl_without_a_closed_form_is_sampled():
    model = two_bits()
    x = examples(model, 8)
    z = bits(2).float()
    with torch.no_grad():
        log_q = model.posterior(x).log_prob(z.unsqueeze(1).expand(-1, 8, -1))
        known = (log_q.exp() * (log_q - model.prior().log_prob(z).unsqueeze(1))).sum(0).mean().item()
    found = [xhat.evaluate(model, x, samples=100, seed=seed) for seed in range(20)]
    values = [result.kl.value for result in found]
    assert abs(np.mean(values) - known) <= 4 * np.std(values, ddof=1) / math.sqrt(len(values))
    assert found[0].kl_per_dimension is found[0].total_correlation is found[0].dimensions is None
    assert "KL(q(z) ‖ p(z)), nats" in str(found[0])
    assert not collapsed(model, x)
    with torch.no_grad():
        model.posterior.first.head.linear.weight.zero_()
    assert collapsed(model, x)


def collapsed(model: VAE, x: Tensor) -> bool:
    with torch.no_grad():
        scaled = {name: 20 * value if "first" in name and "weight" in name else value for name, value in model.named_parameters()}
        for name, value in model.named_parameters():
            value.copy_(scaled[name])
    return found(xhat.evaluate(model, x, samples=20), "the mutual information of x and z is below 0.01 nats")


def test_collapse_is_seen_where_dimensions_are_sampled():
    model = vae("normal", "bernoulli")
    x = examples(model, 30)
    parts = xhat.evaluate(model, x, samples=20)._replace(kl_per_dimension=None)
    assert not [text for text in findings(model, parts) if "collapse" in text]
    silence(model, [1])
    parts = xhat.evaluate(model, x, samples=20)._replace(kl_per_dimension=None)
    assert any("1 of 2 latent dimensions are collapsed (sampled" in text for text in findings(model, parts))
    silence(model, [0, 1])
    parts = xhat.evaluate(model, x, samples=20)._replace(kl_per_dimension=None)
    assert any("every latent dimension's sampled KL is below" in text for text in findings(model, parts))


def test_more_information_than_the_examples_can_show_is_said():
    model = vae("normal", "bernoulli")
    x = examples(model, 40)
    assert not found(xhat.evaluate(model, x, samples=5), "the most that 40 examples can show")
    model = vae("normal", "normal")
    with torch.no_grad():
        model.posterior.head.linear.weight[:2].mul_(1e4)  # the means
    result = xhat.evaluate(model, torch.randn(40, 3), samples=5)
    assert result.mutual_information.value == pytest.approx(math.log(40), abs=0.1)
    assert found(result, "the most that 40 examples can show (log 40 = 3.69)")


def test_the_amortisation_gap_is_measured_where_it_is_asked_for():
    model = vae("normal", "bernoulli")
    x = examples(model, 30)
    result = xhat.evaluate(model, x, samples=5, refine_steps=20)
    assert result == xhat.evaluate(model, x, samples=5, refine_steps=20)
    assert (result.refined_examples, result.refined_steps) == (30, 20)
    assert result.amortisation_gap == measure(refine(model, x, steps=20).gap)
    assert "(20 steps on 30 examples)" in str(result)
    assert Evaluation.from_dict(json.loads(json.dumps(result.as_dict()))) == result
    with pytest.raises(ConfigError, match="a Chain has none"):
        xhat.evaluate(two_bits(), x, samples=5, refine_steps=20)
    with pytest.raises(ConfigError, match="refine_steps must be at least 1"):
        xhat.evaluate(model, x, samples=5, refine_steps=-1)


def test_how_far_an_estimate_is_too_low_is_told_and_does_not_shrink_with_more_examples():
    model = vae("normal", "bernoulli")
    few = examples(model, 50)
    torch.manual_seed(0)
    errors = torch.stack([xhat.log_likelihood(model, few, samples=50).stderr for _ in range(20)])
    once, often = (xhat.evaluate(model, x, samples=50) for x in (few, few.repeat(20, 1)))
    for result in (once, often):
        assert result.log_likelihood_shortfall == pytest.approx(0.5 * float(errors.square().mean()), rel=0.3)
    assert often.log_likelihood_mc_stderr < 0.3 * once.log_likelihood_mc_stderr
    assert f"too low by about {once.log_likelihood_shortfall:.4f} or more" in str(once)
    assert "too low" not in str(xhat.evaluate(model, few, samples=1))


@pytest.mark.filterwarnings("ignore")
def test_what_is_not_finite_is_told_put_down_and_read_back():
    model = vae("normal", "normal")
    x = examples(model, 10)
    x[3] = 3e22
    result = xhat.evaluate(model, x, samples=3)
    assert result.elbo.value == -math.inf
    assert any("the mean ELBO is -inf" in finding for finding in result.findings)
    held = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    again = Evaluation.from_dict(held)
    assert again.elbo.value == -math.inf
    assert str(again) == str(result)


def test_the_noise_of_a_mean_without_a_formula_makes_no_unit_active():
    class Wide(nn.Module):
        """A posterior that is the same for every x, without a formula for its mean."""

        event = (4,)

        def forward(self, x):
            layers = [td.AffineTransform(torch.zeros(len(x), 4), 2.0)]
            law = td.TransformedDistribution(td.Normal(torch.zeros(len(x), 4), 1.0), layers)
            return td.Independent(law, 1)

    model = VAE(priors.StandardNormal(4), Wide(), conditionals.Bernoulli(MLP(4), 6))
    x = (torch.rand(400, 6) < 0.5).float()
    assert xhat.evaluate(model, x, samples=2).active_units == 0
    assert xhat.anatomy(model, x, samples=1).active_units == 0


def test_what_an_older_version_put_down_is_read():
    model = vae("normal", "bernoulli")
    result = xhat.evaluate(model, examples(model, 10), samples=5)
    held = {name: value for name, value in result.as_dict().items() if name not in Evaluation._field_defaults}
    old = Evaluation.from_dict(json.loads(json.dumps(held)))
    assert old == result._replace(**Evaluation._field_defaults)
    assert "mutual information" not in str(old)
    with pytest.raises(KeyError):
        Evaluation.from_dict({})
