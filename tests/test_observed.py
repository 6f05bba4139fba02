"""What was observed alone counts: marginals of every law, bounds and evidence of what was seen, gradients that stay finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch import distributions as td

import xhat
from catalogue import F64, MODELS, bits, examples
from test_conditions import PLAIN, VARIATIONAL, made, some
from xhat import VAE, conditionals, priors
from xhat.data import Batch
from xhat.distributions import Delta, Flow
from xhat.distributions.observed import observed_log_prob
from xhat.errors import ConfigError, DataError
from xhat.evaluation.annealed import Annealing
from xhat.evaluation.exact import exact_log_px
from xhat.evaluation.importance import Importance
from xhat.models.base import quiet
from xhat.networks import MLP

MASKS = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]).bool()


# Laws


@pytest.mark.parametrize("rank", [0, 1])
def test_a_normals_marginal_is_the_normal_of_what_was_seen(rank):
    torch.manual_seed(0)
    loc = torch.randn(3, 4, 4, dtype=F64)
    factor = torch.randn(4, 4, 4, dtype=F64).tril(-1) + 2 * torch.eye(4, dtype=F64)
    full = td.MultivariateNormal(loc, scale_tril=factor.expand(3, 4, 4, 4))
    if rank:
        full = td.LowRankMultivariateNormal(loc, torch.randn(4, 4, 2, dtype=F64), torch.rand(4, 4, dtype=F64) + 0.5)
    x = torch.randn(4, 4, dtype=F64)
    found = observed_log_prob(full, torch.where(MASKS, x, math.nan), MASKS)
    for b, mask in enumerate(MASKS):
        part = mask.nonzero().flatten()
        if not len(part):
            assert (found[:, b] == 0).all()
            continue
        covariance = full.covariance_matrix.expand(3, 4, 4, 4)[:, b][:, part][:, :, part]
        torch.testing.assert_close(found[:, b], td.MultivariateNormal(loc[:, b][:, part], covariance).log_prob(x[b, part]))


def test_of_independent_elements_those_that_were_seen_add_up():
    torch.manual_seed(0)
    rate = torch.rand(3, 4, 4, dtype=F64) + 0.5
    for element, x in (
        (td.Poisson(rate), torch.arange(16.0, dtype=F64).reshape(4, 4)),
        (td.LogNormal(rate, 1.0), torch.rand(4, 4, dtype=F64) + 0.1),
        (td.Gamma(rate, rate), torch.rand(4, 4, dtype=F64) + 0.1),
        (td.Bernoulli(rate / 2), (torch.rand(4, 4) > 0.5).double()),
    ):
        law = td.Independent(element, 1)
        each = element.log_prob(x).where(MASKS, 0.0).sum(-1)
        torch.testing.assert_close(observed_log_prob(law, x.where(MASKS, math.nan), MASKS), each)
        torch.testing.assert_close(observed_log_prob(law, x, torch.ones(4, 4).bool()), law.log_prob(x), rtol=0, atol=0)


def test_a_mixture_of_vectors_is_the_mixture_of_their_marginals():
    torch.manual_seed(0)
    weights = torch.randn(4, 3, dtype=F64)
    parts = td.Independent(td.Normal(torch.randn(4, 3, 4, dtype=F64), 1.0), 1)
    law = td.MixtureSameFamily(td.Categorical(logits=weights), parts)
    x = torch.randn(4, 4, dtype=F64)
    each = td.Normal(parts.base_dist.loc, 1.0).log_prob(x[:, None]).where(MASKS[:, None], 0.0).sum(-1)
    expected = (each + weights.log_softmax(-1)).logsumexp(-1)
    torch.testing.assert_close(observed_log_prob(law, x.where(MASKS, 0.0), MASKS), expected)
    torch.testing.assert_close(observed_log_prob(law, x, torch.ones(4, 4).bool()), law.log_prob(x))


def test_a_category_is_seen_whole_or_not_at_all():
    law = td.Independent(td.OneHotCategorical(logits=torch.randn(5, 2, 3)), 1)
    x = torch.eye(3)[torch.tensor([[0, 1]])].expand(5, 2, 3)
    seen = torch.ones(5, 2, 3).bool()
    seen[:, 1, 0] = False
    torch.testing.assert_close(observed_log_prob(law, x, seen), law.base_dist.log_prob(x)[:, 0])


def test_a_law_that_cannot_leave_elements_out_is_refused_by_name():
    base = td.Independent(td.Normal(torch.zeros(4), 1.0), 1)
    with pytest.raises(ConfigError, match="Flow cannot leave elements of an event out"):
        observed_log_prob(Flow(base, [td.AffineTransform(0.0, 2.0, event_dim=1)], validate_args=False), torch.zeros(4, 4), MASKS)


@pytest.mark.parametrize("under", [math.nan, math.inf, -math.inf, 1e30, -5.0])
def test_what_stands_under_the_mask_changes_nothing(under):
    torch.manual_seed(0)
    seen, x = MASKS, torch.rand(4, 4)
    for name in ("normal", "bernoulli", "poisson", "multivariate-normal"):
        network = MLP(2, [5])
        make = {
            "normal": conditionals.Normal,
            "bernoulli": conditionals.Bernoulli,
            "poisson": conditionals.Poisson,
            "multivariate-normal": conditionals.MultivariateNormal,
        }[name]
        model = VAE(priors.StandardNormal(2), conditionals.Normal(MLP(4, [5], masked=True), 2), make(network, 4))
        values = x.round() if name in ("bernoulli", "poisson") else x
        results = []
        for held in (0.0, under):
            torch.manual_seed(3)
            model.zero_grad()
            loss = model(Batch(values.where(seen, held), seen)).loss
            loss.sum().backward()
            results.append((loss.detach(), *(p.grad for p in model.parameters())))
        for one, two in zip(*results, strict=True):
            assert two.isfinite().all()
            assert torch.equal(one, two)


# Models


@pytest.mark.parametrize("name", MODELS)
def test_with_all_observed_nothing_changes(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    x = examples(model, 6)
    whole = torch.ones_like(x, dtype=torch.bool)
    found = []
    for batch in (Batch(x), Batch(x, whole)):
        torch.manual_seed(1)
        found.append(model(batch).loss)
    assert torch.equal(*found)


@pytest.mark.parametrize("name", [*PLAIN, *VARIATIONAL])
def test_every_recipe_trains_on_what_was_seen(name):
    torch.manual_seed(0)
    model = made(name, masked=True)
    x = some(model)
    seen = torch.rand(x.shape) > 0.4
    seen[0] = False
    rows = model.condition({"label": 1, "age": 0.5}, 6)
    batch = Batch(x.where(seen, 0.0), seen, rows)
    for stage in model.stages():
        loss = stage.module(batch).loss
        assert loss.isfinite().all()
        torch.autograd.grad(loss.sum(), [p for p in stage.module.parameters() if p.requires_grad], allow_unused=True)
    # The encoder tells a 0 that was seen from one that was not
    assert not torch.equal(model.encode(batch), model.encode(batch._replace(observed=torch.ones_like(seen))))
    assert model.reconstruct(batch).shape == x.shape


def linear() -> VAE:
    torch.manual_seed(1)
    model = VAE(
        priors.StandardNormal(2),
        conditionals.Normal(MLP(4, masked=True), 2),
        conditionals.Normal(MLP(2), 4, per="dimension"),
    ).double()
    with torch.no_grad():
        for name, parameter in model.likelihood.named_parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter) if name == "raw_scale" else torch.randn_like(parameter))
        model.posterior.head.linear.weight.mul_(0.3)
    return model


def truth(model: VAE, x: Tensor) -> Tensor:
    with torch.no_grad():
        bias = model.likelihood(torch.zeros(1, 2, dtype=F64)).mean[0]
        weight = model.likelihood(torch.eye(2, dtype=F64)).mean.T - bias[:, None]
        covariance = weight @ weight.T + model.likelihood(torch.zeros(1, 2, dtype=F64)).variance[0].diag()
    found = []
    for row, mask in zip(x, MASKS, strict=True):
        part = mask.nonzero().flatten()
        law = td.MultivariateNormal(bias[part], covariance[part][:, part]) if len(part) else None
        found.append(torch.zeros((), dtype=F64) if law is None else law.log_prob(row[part]))
    return torch.stack(found)


def test_evidence_of_what_was_seen_is_the_marginals():
    model = linear()
    x = model.sample(4, sample=True)
    batch, exact = Batch(x.where(MASKS, 0.0), MASKS), truth(model, x)
    torch.testing.assert_close(exact_log_px(model, batch, 10_000), exact, rtol=1e-9, atol=1e-9)
    with quiet(model):
        importance = Importance().begin(model, batch, 10_000)(40_000).double()
        annealed = Annealing(20, 4).begin(model, batch, 500)(1000)
    for log_w in (importance, annealed):
        found = log_w.logsumexp(0) - math.log(len(log_w))
        error = (log_w.softmax(0).square().sum(0) - 1 / len(log_w)).clamp(min=0).sqrt()
        assert ((found - exact).abs() < 4.5 * error + 1e-6).all()
    assert (model.elbo(batch, samples=2000) <= exact + 0.05).all()


def test_where_nothing_was_seen_the_bound_is_the_kl_alone():
    model = linear()
    batch = Batch(torch.zeros(3, 4, dtype=F64), torch.zeros(3, 4, dtype=torch.bool))
    q = model.pose(batch).q
    torch.testing.assert_close(model.elbo(batch), -xhat.kl_divergence(q, model.prior()))


def test_codes_of_few_values_are_enumerated_over_what_was_seen():
    torch.manual_seed(0)
    model = xhat.build("bernoulli-vae", shape=(4,), latent=3, hidden=[5], likelihood="bernoulli", masked=True).double()
    x, z = (torch.rand(4, 4) > 0.5).double(), bits(3)
    with torch.no_grad():
        each = model.likelihood(z[:, None].expand(-1, 4, -1)).base_dist.log_prob(x).where(MASKS, 0.0).sum(-1)
        joint = each + model.prior().log_prob(z)[:, None]
        torch.testing.assert_close(exact_log_px(model, Batch(x.where(MASKS, 0.0), MASKS), 1000), joint.logsumexp(0))


def test_a_mask_of_another_shape_is_refused():
    model = linear()
    with pytest.raises(DataError, match=r"observed must have the shape of x, \(4, 4\), was \(4, 3\)"):
        model.loss(Batch(torch.zeros(4, 4), torch.ones(4, 3).bool()))
    bernoulli = xhat.build("vae", shape=(4,), likelihood="bernoulli")
    bernoulli.loss(Batch(torch.full((4, 4), 0.5).where(~MASKS, 1.0), MASKS))
    with pytest.raises(DataError, match=r"example 0 holds 0.5 at \(0,\), outside the support"):
        bernoulli.loss(Batch(torch.full((4, 4), 0.5), MASKS))


def test_a_point_is_seen_in_part():
    law = Delta(torch.tensor([1.0, 2.0, 3.0, 4.0]), 1)
    x = torch.tensor([1.0, 9.0, 3.0, 9.0]).expand(4, 4)
    assert observed_log_prob(law, x, MASKS).tolist() == [-math.inf, 0.0, -math.inf, 0.0]
