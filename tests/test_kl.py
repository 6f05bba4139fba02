"""Every closed form against independent draws, its gradient against finite differences, and the hard cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributions as td

from xhat.distributions import (
    ContinuousBernoulli,
    Delta,
    Levels,
    kl_divergence,
    kl_per_dimension,
)
from xhat.distributions.standard_normal import standard_normal
from xhat.errors import ConfigError

Law = td.Distribution
F64 = torch.float64


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def tril(seed: int, size: int, batch: tuple[int, ...] = ()) -> Tensor:
    raw = noise(seed, *batch, size, size)
    return 0.5 * raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())


def full(seed: int, size: int = 3) -> Law:
    return td.MultivariateNormal(noise(seed, size), scale_tril=tril(seed + 1, size))


def low(seed: int, size: int = 3, rank: int = 2) -> Law:
    return td.LowRankMultivariateNormal(noise(seed, size), noise(seed + 1, size, rank), noise(seed + 2, size).exp())


def diagonal(seed: int, size: int = 3) -> Law:
    return td.Independent(td.Normal(noise(seed, size), noise(seed + 1, size).exp()), 1)


NORMALS = {"full": full, "low rank": low, "diagonal": diagonal}
simplex = t(0.2, 0.5, 0.3)
other = t(0.3, 0.3, 0.4)
cb = ContinuousBernoulli
tcb = td.ContinuousBernoulli

# One row a pair: a name and the two laws. Pairs whose divergence is known to be infinite are further down.
PAIRS: dict[str, tuple[Law, Law]] = {
    **{f"{a}/{b}": (f(1), g(11)) for a, f in NORMALS.items() for b, g in NORMALS.items()},
    "low rank/low rank, other rank": (low(1, rank=1), low(5, rank=2)),
    "normal": (td.Normal(t(0.3), t(0.5)), td.Normal(t(-0.2), t(2.0))),
    "independent^2/full": (td.Independent(td.Normal(noise(1, 2, 3), 1.0), 2), td.Independent(full(3).expand((2,)), 1)),
    "independent(independent)/independent": (
        td.Independent(td.Independent(td.Laplace(noise(1, 2, 3), 1.0), 1), 1),
        td.Independent(td.Laplace(noise(2, 2, 3), 2.0), 2),
    ),
    "independent gamma": (
        td.Independent(td.Gamma(t(1.0, 2.0), t(1.0, 3.0)), 1),
        td.Independent(td.Gamma(t(2.0, 2.0), 1.0), 1),
    ),
    "bernoulli": (td.Bernoulli(t(0.2, 0.9)), td.Bernoulli(logits=t(0.5, 1.0))),
    "categorical": (td.Categorical(simplex), td.Categorical(logits=other.log())),
    "one-hot": (td.OneHotCategorical(simplex), td.OneHotCategorical(other)),
    "levels": (Levels(noise(1, 6), -1.0, 1.0), Levels(noise(2, 6), -1.0, 1.0)),
    "multinomial": (td.Multinomial(5, simplex), td.Multinomial(5, other)),
    "binomial": (td.Binomial(7, t(0.3)), td.Binomial(7, t(0.6))),
    "geometric": (td.Geometric(t(0.3)), td.Geometric(t(0.6))),
    "negative binomial": (td.NegativeBinomial(3.5, t(0.3)), td.NegativeBinomial(3.5, t(0.6))),
    "poisson": (td.Poisson(t(3.0)), td.Poisson(t(2.0))),
    "bernoulli/poisson": (td.Bernoulli(t(0.3)), td.Poisson(t(0.5))),
    "delta/bernoulli": (Delta(t(1.0, 0.0)), td.Bernoulli(t(0.3, 0.3))),
    "delta/categorical": (Delta(torch.tensor(2)), td.Categorical(simplex)),
    "delta/one-hot": (Delta(t(0.0, 1.0, 0.0), 1), td.OneHotCategorical(simplex)),
    "delta/poisson": (Delta(t(3.0)), td.Poisson(t(2.0))),
    "delta/multinomial": (Delta(t(2.0, 2.0, 1.0), 1), td.Multinomial(5, simplex)),
    "delta/levels": (Delta(t(0.2)[0]), Levels(noise(1, 6))),
    "delta/independent": (Delta(t(1.0, 0.0, 1.0), 1), td.Independent(td.Bernoulli(simplex), 1)),
    "delta/delta": (Delta(t(1.5, 2.0), 1), td.Independent(Delta(t(1.5, 2.0)), 1)),
    "beta": (td.Beta(t(2.0), t(3.0)), td.Beta(t(1.5), t(1.0))),
    "dirichlet": (td.Dirichlet(t(1.0, 2.0, 3.0)), td.Dirichlet(t(2.0, 2.0, 2.0))),
    "exponential": (td.Exponential(t(2.0)), td.Exponential(t(0.7))),
    "gamma": (td.Gamma(t(2.0), t(3.0)), td.Gamma(t(1.5), t(1.0))),
    "gumbel": (td.Gumbel(t(0.3), t(0.8)), td.Gumbel(t(0.0), t(1.2))),
    "half-normal": (td.HalfNormal(t(0.8)), td.HalfNormal(t(1.2))),
    "half-cauchy": (td.HalfCauchy(t(0.8)), td.HalfCauchy(t(1.2))),
    "cauchy": (td.Cauchy(t(0.8), t(1.0)), td.Cauchy(t(0.0), t(2.0))),
    "laplace": (td.Laplace(t(0.3), t(0.8)), td.Laplace(t(0.0), t(1.2))),
    "log-normal": (td.LogNormal(t(0.3), t(0.8)), td.LogNormal(t(0.0), t(1.2))),
    "logistic-normal": (td.LogisticNormal(t(0.3, 0.0), t(0.8, 1.0)), td.LogisticNormal(t(0.0, 0.0), t(1.2, 1.0))),
    "inverse gamma": (td.InverseGamma(t(3.0), t(2.0)), td.InverseGamma(t(2.0), t(1.0))),
    "pareto": (td.Pareto(t(1.5), t(3.0)), td.Pareto(t(1.0), t(2.0))),
    "uniform": (td.Uniform(t(0.2), t(0.8)), td.Uniform(t(0.0), t(1.0))),
    "weibull": (td.Weibull(t(1.5), t(2.0)), td.Weibull(t(1.0), t(1.3))),
    "von mises": (td.VonMises(t(0.5), t(3.0)), td.VonMises(t(-1.0), t(1.0))),
    "wishart": (td.Wishart(t(5.0), scale_tril=tril(1, 2)), td.Wishart(t(6.5), scale_tril=tril(2, 2))),
    "continuous bernoulli": (cb(t(1.5, -30.0, 0.0)), cb(t(-0.5, 20.0, 1e-4))),
    "continuous bernoulli, torch's": (tcb(logits=t(1.5)), cb(t(-0.5))),
    "continuous bernoulli/normal": (cb(t(3.0)), td.Normal(t(0.3), t(0.5))),
    "continuous bernoulli/exponential": (cb(t(3.0)), td.Exponential(t(0.7))),
    "continuous bernoulli/uniform": (cb(t(3.0)), td.Uniform(t(0.0), t(1.5))),
    "uniform/continuous bernoulli": (td.Uniform(t(0.0), t(1.0)), cb(t(3.0))),
    "uniform/continuous bernoulli, torch's": (td.Uniform(t(0.0), t(1.0)), tcb(logits=t(3.0))),
    "continuous bernoulli/uniform, torch's": (tcb(logits=t(3.0)), td.Uniform(t(0.0), t(1.0))),
    "beta/continuous bernoulli": (td.Beta(t(2.0), t(3.0)), cb(t(1.0))),
    "beta/exponential": (td.Beta(t(2.0), t(3.0)), td.Exponential(t(1.0))),
    "beta/gamma": (td.Beta(t(2.0), t(3.0)), td.Gamma(t(1.0), t(2.0))),
    "beta/normal": (td.Beta(t(2.0), t(3.0)), td.Normal(t(1.0), t(2.0))),
    "beta/uniform": (td.Beta(t(2.0), t(3.0)), td.Uniform(t(0.0), t(2.0))),
    "exponential/gamma": (td.Exponential(t(2.0)), td.Gamma(t(1.5), t(2.0))),
    "exponential/gumbel": (td.Exponential(t(2.0)), td.Gumbel(t(0.5), t(2.0))),
    "exponential/normal": (td.Exponential(t(2.0)), td.Normal(t(0.5), t(2.0))),
    "gamma/exponential": (td.Gamma(t(2.0), t(3.0)), td.Exponential(t(1.0))),
    "gamma/gumbel": (td.Gamma(t(2.0), t(3.0)), td.Gumbel(t(0.5), t(2.0))),
    "gamma/normal": (td.Gamma(t(2.0), t(3.0)), td.Normal(t(0.5), t(2.0))),
    "gumbel/normal": (td.Gumbel(t(0.5), t(2.0)), td.Normal(t(0.0), t(3.0))),
    "laplace/normal": (td.Laplace(t(0.5), t(2.0)), td.Normal(t(0.0), t(3.0))),
    "normal/gumbel": (td.Normal(t(0.5), t(1.0)), td.Gumbel(t(0.0), t(2.0))),
    "normal/laplace": (td.Normal(t(0.5), t(1.0)), td.Laplace(t(0.0), t(2.0))),
    "pareto/exponential": (td.Pareto(t(0.5), t(6.0)), td.Exponential(t(1.0))),
    "pareto/gamma": (td.Pareto(t(0.5), t(6.0)), td.Gamma(t(2.0), t(1.0))),
    "pareto/normal": (td.Pareto(t(0.5), t(9.0)), td.Normal(t(0.5), t(2.0))),
    "uniform/beta": (td.Uniform(t(0.2), t(0.9)), td.Beta(t(2.0), t(3.0))),
    "uniform/exponential": (td.Uniform(t(0.2), t(0.9)), td.Exponential(t(2.0))),
    "uniform/gamma": (td.Uniform(t(0.2), t(0.9)), td.Gamma(t(2.0), t(3.0))),
    "uniform/gumbel": (td.Uniform(t(0.2), t(0.9)), td.Gumbel(t(0.0), t(3.0))),
    "uniform/normal": (td.Uniform(t(0.2), t(0.9)), td.Normal(t(0.0), t(3.0))),
    "uniform/pareto": (td.Uniform(t(0.6), t(0.9)), td.Pareto(t(0.5), t(3.0))),
}


@pytest.mark.filterwarnings("ignore:Singular sample")
@pytest.mark.parametrize("name", PAIRS)
def test_closed_form_agrees_with_draws(name: str) -> None:
    torch.manual_seed(3)
    p, q = PAIRS[name]
    with torch.no_grad():
        z = p.sample((20_000 if name != "wishart" else 2_000,))
        ratio = p.log_prob(z) - q.log_prob(z)
        exact = kl_divergence(p, q)
    assert exact.shape == torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    off = (ratio.mean(0) - exact).abs()
    assert (off <= 4 * ratio.std(0) / math.sqrt(len(z)) + 1e-6).all()
    assert (kl_divergence(p, p).abs() < 1e-6).all()


@pytest.mark.parametrize("name", PAIRS)
def test_batch_shapes_broadcast(name: str) -> None:
    p, q = PAIRS[name]
    one = kl_divergence(p, q)
    wide = kl_divergence(p.expand((3, 1, *p.batch_shape)), q.expand((2, *q.batch_shape)))
    assert wide.shape == (3, 2, *one.shape)
    torch.testing.assert_close(wide, one.expand(wide.shape))


def _normal(kind: str, seed: int) -> tuple[Callable[..., Law], list[Tensor]]:
    loc, raw, factor = noise(seed, 2, 3), noise(seed + 1, 2, 3, 3), noise(seed + 2, 3, 2)
    if kind == "full":
        return lambda m, r: td.MultivariateNormal(m, scale_tril=r.tril(-1) + torch.diag_embed(_diag(r).exp())), [
            loc,
            raw,
        ]
    if kind == "low rank":
        return lambda m, r, w: td.LowRankMultivariateNormal(m, w, _diag(r).exp()), [loc, raw, factor]
    return lambda m, r: td.Independent(td.Normal(m, _diag(r).exp()), 1), [loc, raw]


def _diag(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)


def _equal_singular_values(m: Tensor, d: Tensor) -> Law:
    return td.LowRankMultivariateNormal(m, torch.eye(3, 2, dtype=F64) * d[:2].prod(), d.exp())


def _counts(logits: Tensor) -> Law:
    return td.Multinomial(3, logits=logits)


def _failures(probs: Tensor) -> Law:
    return td.NegativeBinomial(2.0, probs)


MAKERS: dict[str, tuple[Callable[..., Law], list[Tensor], Callable[..., Law], list[Tensor]]] = {
    **{f"{a}/{b}": (*_normal(a, 7), *_normal(b, 27)) for a in NORMALS for b in NORMALS},
    "repeated singular values": (
        _equal_singular_values, [noise(1, 3), torch.zeros(3, dtype=F64) + 1],
        _equal_singular_values, [noise(2, 3), torch.zeros(3, dtype=F64) + 0.5],
    ),
    "normal": (td.Normal, [t(0.1, 0.2), t(1.0, 2.0)], td.Normal, [t(0.1, 0.5), t(1.1, 5.0)]),
    "bernoulli": (td.Bernoulli, [t(0.3, 0.5)], td.Bernoulli, [t(0.31, 0.9)]),
    "categorical": (td.Categorical, [simplex], td.Categorical, [t(0.21, 0.1, 0.69)]),
    "levels": (Levels, [noise(1, 2, 4)], Levels, [noise(2, 2, 4)]),
    "multinomial": (_counts, [noise(1, 3)], _counts, [noise(2, 3)]),
    "geometric": (td.Geometric, [t(0.3)], td.Geometric, [t(0.5)]),
    "negative binomial": (_failures, [t(0.3)], _failures, [t(0.5)]),
    "poisson": (td.Poisson, [t(0.3, 4.0)], td.Poisson, [t(0.5, 3.9)]),
    "weibull": (td.Weibull, [t(1.5), t(2.0)], td.Weibull, [t(1.0), t(1.3)]),
    "von mises": (td.VonMises, [t(0.5), t(3.0)], td.VonMises, [t(-1.0), t(1.0)]),
    "wishart": (
        lambda n, r: td.Wishart(n, scale_tril=r.tril()), [t(5.0), tril(1, 2)],
        lambda n, r: td.Wishart(n, scale_tril=r.tril()), [t(6.0), tril(2, 2)],
    ),
    "continuous bernoulli": (cb, [t(0.0, 0.99, 1.01, 30.0)], cb, [t(1.0, -2.0, 0.0, -30.0)]),
    "continuous bernoulli/normal": (cb, [t(0.0, 5.0)], td.Normal, [t(1.0, -2.0), t(0.5, 2.0)]),
    "log-normal": (td.LogNormal, [t(0.1), t(1.0)], td.LogNormal, [t(0.4), t(2.0)]),
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_match_finite_differences(name: str) -> None:
    make_p, at_p, make_q, at_q = MAKERS[name]
    inputs = [x.clone().requires_grad_() for x in (*at_p, *at_q)]

    def divergence(*x: Tensor) -> Tensor:
        return kl_divergence(make_p(*x[: len(at_p)]), make_q(*x[len(at_p) :]))

    assert torch.autograd.gradcheck(divergence, inputs)


def test_worked_example() -> None:
    p, q = td.Categorical(t(9.0, 12.0, 4.0) / 25), td.Categorical(torch.ones(3, dtype=F64) / 3)
    assert kl_divergence(p, q).item() == pytest.approx(0.0852996, abs=5e-8)
    assert kl_divergence(q, p).item() == pytest.approx(math.log(15625 / 11664) / 3, rel=1e-14)


def _reference(p_loc: Tensor, p_tril: Tensor, q_loc: Tensor, q_tril: Tensor) -> float:
    """The full/full divergence in extended precision, from M = L_q^-1 L_p by forward substitution."""
    lp, lq = (x.numpy().astype(np.longdouble) for x in (p_tril, q_tril))
    shift = p_loc.numpy().astype(np.longdouble) - q_loc.numpy().astype(np.longdouble)
    right = np.concatenate([lp, shift[:, None]], 1)
    for i in range(len(lq)):
        right[i] = (right[i] - lq[i, :i] @ right[:i]) / lq[i, i]
    ratio = np.diag(right[:, :-1])
    gap = (np.diag(lp) - np.diag(lq)) / np.diag(lq)
    far = ratio**2 - 1 - 2 * np.log(ratio)
    near = np.zeros_like(gap) + gap**2
    for n in range(2, 40):
        near += 2 * (-gap) ** n / n
    on = np.where(np.abs(gap) < 0.1, near, far).sum()
    return float((on + (np.tril(right[:, :-1], -1) ** 2).sum() + (right[:, -1] ** 2).sum()) / 2)


def _conditioned(seed: int, size: int) -> Tensor:
    """A Cholesky factor of a covariance of condition number 1e8."""
    basis = torch.linalg.qr(noise(seed, size, size)).Q
    values = torch.logspace(0, 4, size, dtype=F64)
    factor = torch.linalg.qr((basis * values).mT).R.mT
    return factor * _diag(factor).sign()


def test_full_covariances_of_condition_1e8_in_512_dimensions() -> None:
    p, q = (td.MultivariateNormal(noise(s, 512), scale_tril=_conditioned(s, 512)) for s in (1, 2))
    # Once far from each other, and once close, where the large terms of the usual formula would cancel.
    close = td.MultivariateNormal(p.loc + 1e-3, scale_tril=p.scale_tril @ (torch.eye(512, dtype=F64) + 1e-4 * tril(3, 512)))
    for other_law in (q, close):
        expected = _reference(p.loc, p.scale_tril, other_law.loc, other_law.scale_tril)
        assert kl_divergence(p, other_law).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("change", ["mean", "scale", "both"])
def test_nearly_equal_laws_keep_their_digits(change: str) -> None:
    loc, factor = torch.zeros(6, dtype=F64), tril(3, 6)
    shift = 1e-9 if change != "scale" else 0.0
    scale = 1 + 1e-7 if change != "mean" else 1.0
    p = td.MultivariateNormal(loc + shift, scale_tril=factor * scale)
    q = td.MultivariateNormal(loc, scale_tril=factor)
    expected = _reference(p.loc, p.scale_tril, q.loc, q.scale_tril)
    assert expected < 1e-12
    assert kl_divergence(p, q).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("factor", [1 + 1e-7, 1.0499, 1.0501, 0.9501, 0.9499, 1e-30, 1e30])
def test_normal_scales_near_and_far(factor: float) -> None:
    value = kl_divergence(td.Normal(t(0.0), t(factor)), td.Normal(t(0.0), t(1.0))).item()
    m = np.longdouble(factor)
    gap = m - 1
    expected = (m * m - 1) / 2 - np.log(m) if abs(gap) > 1e-3 else gap**2 - gap**3 / 3
    assert value == pytest.approx(float(expected), rel=1e-12)


def test_low_rank_matches_dense_when_factors_are_strong() -> None:
    size, rank = 40, 3
    p = td.LowRankMultivariateNormal(noise(1, size), 1e3 * noise(2, size, rank), noise(3, size).exp())
    q = td.LowRankMultivariateNormal(noise(4, size), 1e4 * noise(5, size, rank), noise(6, size).exp())

    def dense(law: Law) -> Tensor:  # the factor of W Wᵀ + D by QR, which never squares the condition number
        upper = torch.linalg.qr(torch.cat([law.cov_factor, law.cov_diag.sqrt().diag()], 1).mT).R
        return (upper * _diag(upper).sign().unsqueeze(-1)).mT

    expected = _reference(p.loc, dense(p), q.loc, dense(q))
    assert kl_divergence(p, q).item() == pytest.approx(expected, rel=1e-8)
    assert kl_divergence(q, q).item() == pytest.approx(0.0, abs=1e-10)
    assert kl_divergence(q, q).item() >= 0


def test_low_rank_never_builds_a_square_matrix() -> None:
    size = 200_000  # a square matrix would be 160 GB
    law = td.LowRankMultivariateNormal(torch.zeros(size), torch.full((size, 2), 0.1), torch.ones(size))
    prior = td.Independent(td.Normal(torch.zeros(size), torch.ones(size)), 1)
    assert kl_divergence(law, prior).isfinite()
    assert kl_divergence(prior, law).isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_and_zero_probabilities(dtype: torch.dtype) -> None:
    tiny = torch.tensor([1e-12, 1 - 1e-12], dtype=dtype)
    half = torch.tensor([0.5, 0.5], dtype=dtype)
    sure = torch.tensor([0.0, 1.0], dtype=dtype)
    laws = [td.Categorical, td.OneHotCategorical, lambda probs: td.Bernoulli(probs[..., 0])]
    for law in laws:
        expected = 0.5 * math.log(0.5 / 1e-12) + 0.5 * math.log(0.5)
        assert kl_divergence(law(half), law(tiny)).item() == pytest.approx(expected, rel=1e-6)
        assert kl_divergence(law(sure), law(half)).item() == pytest.approx(math.log(2), rel=1e-6)
        assert kl_divergence(law(sure), law(tiny)).item() == pytest.approx(1e-12, rel=1e-6 if dtype == F64 else 1e-3, abs=2e-13)
        assert kl_divergence(law(half), law(sure)).item() == math.inf
        assert kl_divergence(law(sure), law(sure)).item() == 0.0
    at_zero = sure.clone().requires_grad_()
    kl_divergence(td.Categorical(at_zero), td.Categorical(half)).backward()
    assert at_zero.grad is not None
    assert at_zero.grad.isfinite().all()


def test_monte_carlo_value_error_and_gradient() -> None:
    torch.manual_seed(0)
    df = t(5.0, 9.0).requires_grad_()
    loc = t(0.5, 0.0).requires_grad_()
    p = td.StudentT(df, loc)
    q = td.Normal(t(0.0), t(1.5))
    estimate = kl_divergence(p, q, samples=4000)
    grid = torch.linspace(-200, 200, 400_001, dtype=F64)[:, None]
    log_p = p.log_prob(grid)
    exact = torch.trapezoid(log_p.exp() * (log_p - q.log_prob(grid)), grid, dim=0)
    assert estimate.value.shape == estimate.stderr.shape == (2,)
    assert ((estimate.value - exact).abs() < 4 * estimate.stderr).all()
    (ours,) = torch.autograd.grad(estimate.value.sum(), loc, retain_graph=True)
    (true,) = torch.autograd.grad(exact.sum(), loc)
    torch.testing.assert_close(ours, true, atol=0.05, rtol=0)
    assert not estimate.stderr.requires_grad


def test_monte_carlo_without_rsample_is_detached() -> None:
    torch.manual_seed(0)
    rate = t(2.0).requires_grad_()
    estimate = kl_divergence(td.Poisson(rate), td.Geometric(t(0.3)), samples=100)
    assert not estimate.value.requires_grad
    mixture = td.MixtureSameFamily(td.Categorical(simplex), td.Normal(noise(1, 3).requires_grad_(), 1.0))
    assert not kl_divergence(mixture, td.Normal(t(0.0), t(1.0)), samples=100).value.requires_grad


def test_monte_carlo_with_closed_form_or_outside_the_support() -> None:
    exact = kl_divergence(td.Normal(t(0.0), t(1.0)), td.Normal(t(1.0), t(1.0)), samples=2)
    assert exact.value.item() == 0.5
    assert exact.stderr.item() == 0.0
    outside = kl_divergence(td.Normal(t(0.0), t(1.0)), td.LogNormal(t(0.0), t(1.0)), samples=50)
    assert outside.value.item() == math.inf
    assert outside.stderr.item() == 0.0


def test_one_sample_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        kl_divergence(td.StudentT(t(3.0)), td.Normal(t(0.0), t(1.0)), samples=1)


def test_per_dimension() -> None:
    q, p = diagonal(1), diagonal(5)
    each = kl_per_dimension(q, p.expand((2,)))
    assert each.shape == (2, 3)
    torch.testing.assert_close(each.sum(-1), kl_divergence(q, p).expand(2))
    grid = td.Independent(td.Bernoulli(logits=noise(1, 4, 2, 3)), 2)
    assert kl_per_dimension(grid, grid).shape == (4, 2, 3)
    for correlated in (full(1), low(1)):
        marginal = kl_per_dimension(correlated, p)
        expected = kl_divergence(td.Normal(correlated.mean, correlated.variance.sqrt()), p.base_dist)
        torch.testing.assert_close(marginal, expected)
    with pytest.raises(ConfigError, match="MultivariateNormal"):
        kl_per_dimension(p, full(1))
    with pytest.raises(ConfigError, match="samples=1000"):
        kl_per_dimension(td.StudentT(t(3.0)), td.Normal(t(0.0), t(1.0)))


def test_torch_is_left_as_it_was() -> None:
    with pytest.raises(NotImplementedError):
        td.kl_divergence(td.Weibull(t(1.0), t(1.0)), td.Weibull(t(1.0), t(2.0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_the_standard_normal_every_digit_is_that_of_any_normal(dtype):
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(50, 7, dtype=dtype, generator=generator)
    scale = (0.5 * torch.randn(50, 7, dtype=dtype, generator=generator)).exp()
    scale[:, 0] = 1 + torch.linspace(-0.06, 0.06, 50, dtype=dtype)  # on both sides of where the formula changes
    found = []
    noise = torch.randn(50, 7, dtype=dtype, generator=generator)
    for zeros_type in (dtype, torch.float64):
        zeros = torch.zeros(7, dtype=zeros_type)
        for prior in (standard_normal(zeros), td.Normal(zeros, torch.ones_like(zeros))):
            given = [loc.clone().requires_grad_(), scale.clone().requires_grad_()]
            value = kl_divergence(td.Independent(td.Normal(*given), 1), td.Independent(prior, 1))
            drawn = (given[0] + noise * given[1]).square().sum()  # what is added up in another order has other digits
            found.append([value.detach(), *torch.autograd.grad(value.sum() + drawn, given)])
    for special, general in zip(found[::2], found[1::2], strict=True):
        for a, b in zip(special, general, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
