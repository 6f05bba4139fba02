"""Normalising flows: normalised, drawn from as declared, remembered draws told truly, and of use as posterior and as prior."""

from __future__ import annotations

import gc
import itertools
import math
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch import distributions as td
from torch.distributions.transforms import AffineTransform, TanhTransform

import xhat
from proofs import within
from xhat import VAE, conditionals, gradients, objectives, priors
from xhat.distributions import Flow, has_closed_form
from xhat.errors import ConfigError, DataError
from xhat.models.base import centre
from xhat.networks import MLP
from xhat.networks.invertible import Invertible

F64 = torch.float64
POSTERIORS = ["iaf", "coupling"]
PRIORS = ["autoregressive", "coupling", "spline"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def stirred(module: nn.Module, size: float = 0.3) -> nn.Module:
    """In float64, with weights that training could have led to: a new flow is the identity and would prove nothing."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return module


def posterior(kind: str, size: int, context: int = 3, **options) -> conditionals.Flow:
    options = {"transforms": 2, "hidden": (8,)} | options
    made = conditionals.Flow(MLP(4, [5], "tanh"), size, kind, context=context, **options)
    return stirred(made, 0.3 if size < 3 else 0.15)


def prior(kind: str, size: int, **options) -> priors.Flow:
    made = stirred(priors.Flow(size, kind, **({"transforms": 2, "hidden": (8,)} | options)), 0.3 if size < 3 else 0.15)
    made.standardise(torch.randn(50, size, dtype=F64) * torch.linspace(0.6, 1.2, size, dtype=F64) + 0.3)
    return made


X = torch.tensor([[0.3, -1.0, 0.5, 0.8], [1.0, 0.2, -0.4, 0.0]], dtype=F64)
# Every kind of flow as a law of the given size, with batch shape () and in the two directions.
LAWS = {
    **{f"posterior {kind}": lambda size, kind=kind: posterior(kind, size)(X[0]) for kind in POSTERIORS},
    "posterior without context": lambda size: posterior("iaf", size, 0)(X[0]),
    "posterior without hidden layer": lambda size: posterior("iaf", size, hidden=())(X[0]),
    **{f"prior {kind}": lambda size, kind=kind: prior(kind, size)() for kind in PRIORS},
}


def grid(law: td.Distribution, size: int, count: int) -> tuple[Tensor, Tensor]:
    """Points that hold all of a law of one or two numbers, ``(n, size)``, and the mass at each.

    Evenly spaced in t, where z = middle + spread · sinh(t): fine in the middle, and as wide as a tail can be.
    """
    reach = law.sample((4000,))
    middle, spread = reach.median(0).values, reach.quantile(torch.tensor([0.25, 0.75], dtype=F64), dim=0).diff(dim=0)[0]
    t = torch.linspace(-5.5, 5.5, count, dtype=F64)
    t = torch.cartesian_prod(*[t] * size).reshape(-1, size)
    cell = (11 / (count - 1)) ** size * (spread * t.cosh()).prod(-1)
    points = middle + spread * t.sinh()
    with torch.no_grad():
        return points, law.log_prob(points).exp() * cell


# The law


@pytest.mark.parametrize("normalising", [False, True])
def test_an_affine_flow_is_the_normal_that_it_must_be(normalising):
    steps = [AffineTransform(torch.tensor([1.0, -2.0], dtype=F64), torch.tensor([3.0, 0.5], dtype=F64), event_dim=1)]
    steps.append(AffineTransform(-0.5, 2.0))  # an elementwise step after one of the whole event
    base = td.Independent(td.Normal(torch.zeros(4, 2, dtype=F64), 1.0), 1)
    law = Flow(base, [step.inv for step in reversed(steps)] if normalising else steps, normalising)
    known = td.Independent(td.Normal(torch.tensor([1.5, -4.5], dtype=F64).expand(4, 2), torch.tensor([6.0, 1.0], dtype=F64)), 1)
    z = torch.randn(5, 4, 2, dtype=F64)
    torch.testing.assert_close(law.log_prob(z), known.log_prob(z))
    torch.testing.assert_close(law.log_prob(z[0, 0]), known.log_prob(z[0, 0]))
    drawn = law.sample((4000,))
    within(drawn[:, 0], known.mean[0])
    within((drawn[:, 0] - known.mean[0]).square(), known.variance[0])
    torch.testing.assert_close(law.log_prob(drawn), known.log_prob(drawn))
    wide = law.expand((3, 4))
    assert (wide.batch_shape, wide.event_shape, wide.rsample((2,)).shape) == ((3, 4), (2,), (2, 3, 4, 2))
    torch.testing.assert_close(wide.log_prob(z[:3]), known.log_prob(z[:3]))
    assert law.support.check(z).all()
    assert not law.support.check(torch.full((4, 2), math.nan)).any()


def test_what_makes_no_flow_is_refused():
    normal = td.Normal(torch.zeros(3), 1.0)
    with pytest.raises(ConfigError, match="at least one transform"):
        Flow(normal, [])
    with pytest.raises(ConfigError, match="rsample, was Bernoulli"):
        Flow(td.Bernoulli(torch.zeros(3)), [TanhTransform()])
    with pytest.raises(ConfigError, match="wrap the base law in Independent"):
        Flow(normal, [AffineTransform(0.0, 1.0, event_dim=1)])
    with pytest.raises(NotImplementedError):
        _ = Flow(normal, [AffineTransform(0.0, 1.0)]).mean
    with pytest.raises(ValueError, match="support"):
        Flow(normal, [AffineTransform(0.0, 1.0)], validate_args=True).log_prob(torch.full((3,), math.nan))


# Densities


@pytest.mark.parametrize(("size", "count"), [(1, 4001), (2, 351)])
@pytest.mark.parametrize("name", LAWS)
def test_densities_integrate_to_one(name, size, count):
    """The trapezoidal rule, which the jumps of the derivative at a spline's knots make less exact."""
    _, mass = grid(LAWS[name](size), size, count)
    assert mass.sum().item() == pytest.approx(1, abs=3e-3 if name == "prior spline" and size == 2 else 1e-5)


@pytest.mark.parametrize("name", LAWS)
def test_draws_have_the_moments_of_the_density(name):
    law = LAWS[name](2)
    points, mass = grid(law, 2, 251)
    z = law.sample((8000,))
    for f in (lambda z: z, lambda z: z.square(), lambda z: z.prod(-1, True), lambda z: (z[..., :1] > z[..., 1:]).double()):
        # An indicator on a grid is off by the cells that the edge cuts
        assert ((f(z).mean(0) - (mass[:, None] * f(points)).sum(0)).abs() < 4 * f(z).std(0) / math.sqrt(len(z)) + 2e-3).all()


@pytest.mark.parametrize("name", LAWS)
def test_draws_of_one_number_have_the_distribution_function_of_the_density(name):
    law = LAWS[name](1)
    points, mass = grid(law, 1, 4001)
    at, below = points[:, 0].numpy(), (mass.cumsum(0) - mass / 2).numpy()
    assert stats.kstest(law.sample((4000,))[:, 0].numpy(), lambda z: np.interp(z, at, below)).pvalue > 1e-3


@pytest.mark.parametrize("name", LAWS)
def test_the_mean_of_a_density_over_that_of_the_flow_is_one(name):
    """In seven dimensions, where no grid goes: E_q[g/q] = 1 for any g that q covers."""
    law = LAWS[name](7)
    z = law.sample((4000,))
    middle, spread = z.mean(0), z.std(0)
    fresh = law.sample((4000,))
    inner = td.Independent(td.Normal(middle, 0.6 * spread), 1)
    within((inner.log_prob(fresh) - law.log_prob(fresh)).exp(), 1.0)


@pytest.mark.parametrize("kind", ["affine", "spline"])
@pytest.mark.parametrize(("size", "groups"), [(1, 1), (2, 2), (5, 5), (5, 2), (5, 3)])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_layers_volume_is_that_of_its_jacobian_and_its_inverse_is_one(kind, size, groups, backwards):
    layer = stirred(Invertible(size, 2, kind, groups, backwards, (6, 7)))
    context, x = torch.randn(2, dtype=F64), torch.randn(size, dtype=F64)
    transform = layer(context)
    y, change = transform.call_and_ladj(x)
    jacobian = torch.autograd.functional.jacobian(transform, x)
    torch.testing.assert_close(change, jacobian.slogdet().logabsdet)
    place = torch.arange(size)
    group = (size - 1 - place if backwards else place) // math.ceil(size / groups)
    allowed = (group[:, None] > group) | torch.eye(size, dtype=torch.bool)
    assert (jacobian[~allowed] == 0).all()
    assert (jacobian[allowed] != 0).all()  # and nothing less: an element does see all groups before its own
    torch.testing.assert_close(transform.inv(y), x, rtol=0, atol=1e-10)
    assert torch.autograd.functional.jacobian(lambda c: layer(c)(x), context).abs().sum(-1).gt(0).all()


def test_few_hidden_units_are_spread_over_all_elements():
    layer = stirred(Invertible(9, 0, "affine", 9, False, (3,)))
    jacobian = torch.autograd.functional.jacobian(layer(), torch.randn(9, dtype=F64))
    assert jacobian[8, :8].ne(0).any()
    assert jacobian[3:, 0].ne(0).any()


# Beginnings


@pytest.mark.parametrize("kind", POSTERIORS)
def test_a_new_posterior_is_the_plain_normal(kind):
    made = conditionals.Flow(MLP(4, [5]), 3, kind).double()
    raw = made.raw(X)
    law, plain = made.law(raw), td.Independent(td.Normal(raw[:, :3], 1e-4 + nn.functional.softplus(raw[:, 3:6])), 1)
    z = plain.sample((5,))
    torch.testing.assert_close(law.log_prob(z), plain.log_prob(z))
    torch.manual_seed(3)
    z = law.rsample()
    torch.manual_seed(3)
    torch.testing.assert_close(z, plain.rsample())
    assert made.head.linear.out_features == 3 + 3 + 16


@pytest.mark.parametrize("kind", PRIORS)
def test_a_new_prior_is_the_standard_normal_or_that_of_the_codes(kind):
    made = priors.Flow(3, kind).double()
    z = 2 * torch.randn(5, 3, dtype=F64)
    torch.testing.assert_close(made().log_prob(z), priors.StandardNormal(3).double()().log_prob(z))
    codes = torch.randn(40, 3, dtype=F64) * torch.tensor([0.1, 1.0, 0.0]) + torch.tensor([5.0, 0.0, 2.0])
    made.standardise(codes)
    spread = torch.tensor([codes[:, 0].std(), codes[:, 1].std(), 1.0], dtype=F64)  # one that does not vary keeps 1
    torch.testing.assert_close(made().log_prob(z), td.Normal(codes.mean(0), spread).log_prob(z).sum(-1))
    assert {"loc", "scale"} <= made.state_dict().keys()
    for bad in (codes[:, :2], codes[:1], codes[0], torch.full((3, 3), math.inf)):
        with pytest.raises(DataError, match="codes must"):
            made.standardise(bad)


# The remembered draw


def passes(module: nn.Module) -> list[int]:
    """How often the masked networks ran, counted from now on in the list's only number."""
    count = [0]
    for layer in module.flow:
        layer.network.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    return count


@pytest.mark.parametrize("kind", POSTERIORS)
def test_a_remembered_density_and_its_derivative_are_those_computed_anew(kind):
    made = posterior(kind, 4)
    raw = made.raw(X).detach().requires_grad_()
    of = [raw, *made.flow.parameters()]
    weight = torch.randn(3, 2, dtype=F64)

    def told(again: bool) -> tuple[Tensor, ...]:
        law = made.law(raw)
        torch.manual_seed(1)
        z = law.rsample((3,))
        count = passes(made)
        log_q = made.law(raw).log_prob(z) if again else law.log_prob(z)
        assert bool(count[0]) is again
        # z's own path, too: what a pathwise gradient of log p - log q is made of
        return log_q, *torch.autograd.grad((weight * (z.sin().sum(-1) - log_q)).sum(), of)

    for known, anew in zip(told(False), told(True), strict=True):
        torch.testing.assert_close(known, anew, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", POSTERIORS)
def test_the_score_of_a_remembered_draw_is_not_forgotten(kind):
    """A draw without a graph has a density that moves with the parameters all the same."""
    made = posterior(kind, 3)
    raw = made.raw(X).detach().requires_grad_()
    of = [raw, *made.flow.parameters()]
    law = made.law(raw)
    for z in (law.sample(), law.rsample().detach()):
        scores = [torch.autograd.grad(q.log_prob(z).sum(), of, retain_graph=True) for q in (law, made.law(raw))]
        for a, b in zip(*scores, strict=True):
            torch.testing.assert_close(a, b)
        assert scores[0][0].abs().sum() > 0
    assert torch.autograd.gradcheck(lambda r: made.law(r).log_prob(z), raw)


@pytest.mark.parametrize("kind", POSTERIORS)
def test_values_alone_of_the_last_draw_take_no_pass(kind):
    made = posterior(kind, 3)
    law = made(X)
    z = law.rsample((2,))
    log_q = law.log_prob(z)
    count = passes(made)
    with torch.no_grad():
        law.log_prob(z).add_(1.0)  # what is handed out is the caller's
        for seen in (z, z.detach(), z.detach()[:2]):
            assert torch.equal(law.log_prob(seen), log_q.detach())
            assert not law.log_prob(seen).requires_grad
    assert count == [0]
    with torch.no_grad():
        for other, expected in ((z.detach()[:1], log_q[:1]), (z.detach().clone(), log_q), (z.detach().flip(0), log_q.flip(0))):
            torch.testing.assert_close(law.log_prob(other), expected.detach())
        w = law.sample()
        torch.testing.assert_close(law.log_prob(z), log_q.detach())  # no longer the last
        assert torch.equal(law.log_prob(w), law.log_prob(w))


@pytest.mark.parametrize("name", LAWS)
def test_a_draw_that_was_written_to_is_another_point(name):
    law = LAWS[name](3)
    z = law.sample((4,))
    z[:, 1] = 0.25
    torch.testing.assert_close(law.log_prob(z), law.expand(()).log_prob(z.clone()))


def test_inference_mode_is_served_though_nothing_tells_whether_a_tensor_was_written_to():
    law = posterior("iaf", 3)(X)
    with torch.inference_mode():
        z = law.sample()
        before = law.log_prob(z)
        z += 1
        assert not torch.allclose(law.log_prob(z), before)


@pytest.mark.parametrize("kind", POSTERIORS)
def test_the_derivative_at_a_draw_is_the_densitys_own(kind):
    made = posterior(kind, 3)
    law = made(X)
    z = law.rsample()
    with torch.no_grad():
        slope = torch.func.grad(lambda z: law.log_prob(z).sum())(z)
    with pytest.raises(RuntimeError, match="not have been used in the graph"):  # said, not 0
        torch.autograd.grad(law.log_prob(z).sum(), z, retain_graph=True)
    point = z.detach().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(law.log_prob(point).sum(), point)[0], slope)
    assert torch.autograd.gradcheck(lambda z: law.log_prob(z), point)
    each = torch.func.vmap(made(X[0]).log_prob)(z.detach())
    torch.testing.assert_close(each, made(X[0]).log_prob(z.detach()))


def test_a_draw_of_a_frozen_flow_that_is_made_a_variable_gets_its_derivative():
    made = posterior("iaf", 3).requires_grad_(False)
    law = made(X)
    for z in (law.rsample(), law.sample()):
        z.requires_grad_()
        torch.testing.assert_close(
            torch.autograd.grad(law.log_prob(z).sum(), z)[0], torch.func.grad(lambda z: made(X).log_prob(z).sum())(z.detach())
        )


def test_a_law_that_goes_takes_its_draws_with_it():
    """Without the garbage collector: no draw or graph hangs in a circle."""
    made = posterior("iaf", 3)
    gc.disable()
    try:
        law = made(X)
        z = law.rsample()
        law.log_prob(z), law.log_prob(z.detach().clone())
        gone = [weakref.ref(z), weakref.ref(law)]
        del law, z
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


# Gradients


def exact_bound(made: conditionals.Flow, raw: Tensor, log_joint, size: int) -> Tensor:
    """The ELBO of a flow on two numbers, by Gauss-Hermite quadrature in the noise: differentiable in raw."""
    nodes, weights = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(40))
    noise = torch.cartesian_prod(*[nodes] * size).reshape(-1, size)
    weight = torch.cartesian_prod(*[weights / weights.sum()] * size).reshape(len(noise), -1).prod(-1)
    law = made.law(raw)
    u = law.base.base_dist.loc + law.base.base_dist.scale * noise
    z, change = law._forward(u)
    return (weight * (log_joint(z) - law.base.log_prob(u) + change)).sum()


def joint(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(-1) - 0.5 * (z[..., 0] - 0.5 * z[..., 1].square()).square() / 0.3


@pytest.mark.parametrize("gradient", ["pathwise", "stl", "dreg", "score", "rloo"])
@pytest.mark.parametrize("kind", POSTERIORS)
def test_every_gradient_of_a_flows_bound_has_the_exact_mean(kind, gradient):
    made = posterior(kind, 2, transforms=1)
    at = made.raw(X[0]).detach().requires_grad_()
    exact = exact_bound(made, at, joint, 2)
    (slope,) = torch.autograd.grad(exact, at)
    raw = at.detach().expand(4000, -1).clone().requires_grad_()  # one estimate a row
    value = xhat.bound(joint, made.law(raw), gradient=gradient, samples=2)
    within(value, exact.detach())
    within(torch.autograd.grad(value.sum(), raw)[0], slope)


@pytest.mark.parametrize("made", [lambda: posterior("iaf", 2), lambda: stirred(conditionals.MultivariateNormal(MLP(4, [5]), 2))])
def test_the_gradients_of_a_multi_sample_bound_agree(made):
    """Of a flow, and of a Normal with full covariance: plain, doubly reparameterised and by the score."""
    q = made()
    at = q.raw(X[0]).detach()
    found = []
    for gradient in ("pathwise", "dreg", "vimco"):
        raw = at.expand(6000, -1).clone().requires_grad_()
        value = xhat.bound(joint, q.law(raw), objective="iwae", gradient=gradient, samples=3)
        found.append(torch.autograd.grad(value.sum(), raw)[0])
    for other in found[1:]:
        within(found[0] - other, 0.0)


# Models


D = 3  # with two numbers a coupling is autoregressive


def model(
    q: str | None = "iaf",
    p: str | None = None,
    objective: objectives.Objective | None = None,
    gradient: str = "pathwise",
    layers: int = 2,
) -> VAE:
    z = conditionals.Normal(MLP(4, [5]), D) if q is None else conditionals.Flow(MLP(4, [5]), D, q, layers, (6,), context=3)
    top = priors.StandardNormal(D) if p is None else priors.Flow(D, p, layers, (6,))
    return VAE(top, z, conditionals.Bernoulli(MLP(D, [5]), 4), objective, xhat.gradients.GRADIENTS[gradient]())


BITS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)))
PAIRS = [(q, p) for q in (None, *POSTERIORS) for p in (None, *PRIORS) if (q, p) != (None, None)]


@pytest.mark.parametrize(("q", "p"), PAIRS)
def test_models_with_flows_do_all_that_models_do(q, p, tmp_path):
    made = stirred(model(q, p), 0.2).float()
    assert not has_closed_form(made.posterior(BITS), made.prior())
    terms = made(BITS)
    torch.testing.assert_close(terms.loss, -terms.measures["elbo"])
    derivatives = torch.autograd.grad(terms.loss.sum(), list(made.parameters()))
    assert all(d.isfinite().all() for d in derivatives)
    assert all(d.abs().sum() > 0 for d in derivatives)
    torch.manual_seed(5)
    found = xhat.evaluate(made, BITS, samples=200)
    assert found.elbo.value <= found.log_likelihood.value + 0.02
    assert made.sample(3).shape == (3, 4)
    assert torch.equal(made.encode(BITS), centre(made.posterior(BITS)))
    again = xhat.load(xhat.save(made, tmp_path / "model.safetensors"))
    z = torch.randn(16, D)
    for one, other in ((again.posterior(BITS), made.posterior(BITS)), (again.prior(), made.prior())):
        assert torch.equal(one.log_prob(z), other.log_prob(z))


@pytest.mark.parametrize("objective", [objectives.ELBO(), objectives.ELBO(samples=3), objectives.IWAE(3)])
def test_a_step_of_training_takes_one_pass_of_each_layer(objective):
    made = model("iaf", "spline", objective)
    posterior, prior = passes(made.posterior), passes(made.prior)
    made(BITS).loss.mean().backward()
    assert (posterior, prior) == ([2], [2])
    xhat.log_likelihood(made, BITS[:3], samples=10)
    assert (posterior, prior) == ([4], [4])


@pytest.mark.parametrize(
    ("objective", "gradient"),
    [
        (objectives.IWAE(3), "pathwise"),
        (objectives.IWAE(3), "dreg"),
        (objectives.IWAE(3), "vimco"),
        (None, "stl"),
        (None, "score"),
    ],
)
@pytest.mark.parametrize("q", POSTERIORS)
def test_flows_train_with_every_objective_that_fits(q, objective, gradient):
    made = model(q, "autoregressive", objective, gradient)
    history = xhat.fit(made, BITS, epochs=1, batch_size=8, seed=0)
    assert math.isfinite(history.rows[-1]["train_loss"])


def test_a_full_covariance_trains_with_a_multi_sample_bound():
    z = conditionals.MultivariateNormal(MLP(4, [5]), 2)
    made = VAE(priors.StandardNormal(2), z, conditionals.Bernoulli(MLP(2, [5]), 4), objectives.IWAE(3), gradients.DReG())
    assert math.isfinite(xhat.fit(made, BITS, epochs=1, batch_size=8, seed=0).rows[-1]["train_loss"])


def test_objectives_that_need_a_closed_form_refuse_a_flow():
    for objective in (objectives.ELBO(kl="analytic"), objectives.ELBO(free_bits=0.1)):
        for q, p in (("iaf", None), (None, "spline")):
            with pytest.raises(ConfigError, match="no closed form"):
                model(q, p, objective)


def test_a_traced_step_is_the_eager_one():
    from xhat.training.engine import compiled
    from xhat.training.program import Program

    made = stirred(model("coupling", "spline", layers=1), 0.2).float().train()
    program = Program(made.stages()[0], made.gradient, list(made.parameters()), 16)
    torch.manual_seed(3)
    values, derivatives, _ = program(BITS)
    torch.manual_seed(3)
    traced = compiled(program, "eager")(BITS)
    torch.testing.assert_close(traced[0], values, rtol=1e-5, atol=1e-6)
    for one, other in zip(traced[1], derivatives, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("q", POSTERIORS)
def test_the_evidence_of_a_linear_normal_model_is_the_exact_one(q):
    """p(x) is estimated without bias whatever the posterior is, and a flow is drawn from as it is weighed."""
    z = stirred(conditionals.Flow(MLP(3, [5], "tanh"), 3, q, hidden=(6,), context=3), 0.15)
    with torch.no_grad():
        z.head.linear.bias[3:6] += 1.0  # wider than the exact posterior, or the weights have no variance
    likelihood = conditionals.Normal(MLP(3), 3, scale=0.8).double()
    made = VAE(priors.StandardNormal(3).double(), z, likelihood)
    x = torch.randn(4, 3, dtype=F64)
    weight, bias = likelihood.head.linear.weight, likelihood.head.linear.bias
    exact = td.MultivariateNormal(bias, weight @ weight.mT + 0.64 * torch.eye(3, dtype=F64)).log_prob(x).detach()
    law = made.posterior(x)
    with torch.no_grad():
        z = law.sample((20_000,))
        log_w = made.likelihood(z).log_prob(x) + made.prior().log_prob(z) - law.log_prob(z)
    within((log_w - exact).exp(), 1.0)
    found = xhat.log_likelihood(made, x, samples=4000)
    assert ((found.log_px - exact).abs() < 4 * found.stderr).all()


def test_a_flow_closes_most_of_the_gap_that_the_best_normal_leaves_on_a_banana():
    """The target is N(z₂; 0, 1) N(z₁; z₂², ½²) e, so log Z = 1.

    The best Normal of any covariance is known: a slope of z₁ on z₂ only makes up for a mean of z₂, which costs. With variances ¼
    and s of z₁ and z₂ its bound is greatest where 16 s² + s = 1.
    """

    def log_banana(z: Tensor) -> Tensor:
        return td.Normal(0.0, 1.0).log_prob(z[..., 1]) + td.Normal(z[..., 1].square(), 0.5).log_prob(z[..., 0]) + 1.0

    s = (math.sqrt(65) - 1) / 32
    entropy = math.log(2 * math.pi * math.e) + 0.5 * math.log(0.25 * s)
    normal = 1.0 - math.log(2 * math.pi) - math.log(0.5) - 0.5 * s - 2 * (0.25 + 2 * s**2) + entropy
    q = conditionals.Flow(MLP(1), 2, "iaf", hidden=(16,), context=0).double()
    one, steps = torch.ones(1, 1, dtype=F64), 200
    optimizer = torch.optim.Adam(q.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        optimizer.zero_grad()
        (-xhat.bound(log_banana, q(one), samples=32)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        law = q(one)
        z = law.sample((20_000,))
        log_w = log_banana(z) - law.log_prob(z)
    error = log_w.std() / math.sqrt(len(z))
    assert log_w.mean() <= 1.0 + 4 * error
    assert 1.0 - log_w.mean() < 0.5 * (1.0 - normal)
    # And the Normal that it is said to beat has the bound that is said
    best = td.MultivariateNormal(torch.tensor([s, 0.0], dtype=F64), torch.diag(torch.tensor([0.25, s], dtype=F64)))
    z = best.sample((20_000,))
    within(log_banana(z) - best.log_prob(z), normal)


# Edges


@pytest.mark.parametrize("size", [40.0, 100.0])
@pytest.mark.parametrize("kind", POSTERIORS)
def test_extreme_outputs_stay_finite_in_float32(kind, size):
    made = stirred(conditionals.Flow(MLP(2, [5]), 2, kind), 0.5).float()
    for sign in (1.0, -1.0, None):
        raw = torch.full((4, *made.head.shape), size)
        raw = (raw * (torch.randn_like(raw).sign() if sign is None else sign)).requires_grad_()
        law = made.law(raw)
        z = law.rsample((50,))
        for value in (z, law.log_prob(z)):
            assert value.isfinite().all()
            assert torch.autograd.grad(value.sum(), raw, retain_graph=True)[0].isfinite().all()


def test_parameters_that_make_no_flow_are_refused():
    body = MLP(4, [5])
    for make, words in (
        (lambda: conditionals.Flow(body, (2, 3)), "an event with one axis"),
        (lambda: conditionals.Flow(body, 2, "planar"), "kind must be one of iaf, coupling"),
        (lambda: conditionals.Flow(body, 2, scale="square"), "scale must be one of softplus, exp"),
        (lambda: conditionals.Flow(body, 2, minimum=0.0), "minimum must be above 0"),
        (lambda: conditionals.Flow(body, 2, context=-1), "context"),
        (lambda: conditionals.Flow(body, 2, transforms=0), "transforms"),
        (lambda: priors.Flow(2, transforms=10**9), "at most 100"),
        (lambda: conditionals.Flow(body, 2, hidden=(0,)), "each hidden size"),
        (lambda: priors.Flow((2, 3)), "an event with one axis"),
        (lambda: priors.Flow(2, "iaf"), "kind must be one of autoregressive, coupling, spline"),
    ):
        with pytest.raises(ConfigError, match=words):
            make()


def test_without_zuko_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    monkeypatch.setitem(sys.modules, "zuko.transforms", None)
    for make in (lambda: conditionals.Flow(MLP(4, [5]), 2), lambda: priors.Flow(2)):
        with pytest.raises(ConfigError, match=r"pip install 'xhat\[flows\]'"):
            make()


def test_zuko_is_imported_with_the_first_flow_and_torchs_checks_stay_on():
    script = """
import sys, xhat, torch
from xhat import conditionals, priors
assert "zuko" not in sys.modules
priors.Flow(2)
assert "zuko" in sys.modules
try:
    torch.distributions.Normal(0.0, -1.0)
except ValueError:
    print("checked")
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "checked\n"
