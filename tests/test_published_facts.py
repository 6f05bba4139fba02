"""Facts of the literature that the library must reproduce: PCA, probabilistic PCA, and what denoising learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch import distributions as td

import xhat
from catalogue import F64
from xhat import VAE, conditionals, objectives, priors
from xhat.data import Batch
from xhat.networks import MLP


def make_data(n: int, size: int, rank: int, noise: float, seed: int = 0) -> Tensor:
    """A few directions of different strengths, a mean that is not zero, and noise."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64)

    strengths = torch.linspace(2.0, 1.0, rank, dtype=F64)
    basis = torch.linalg.qr(normal(size, rank))[0]
    x = normal(n, rank) * strengths @ basis.T + noise * normal(n, size) + normal(size)
    return x.float().double()  # evaluation hands models float32 values


def principal(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, eigenvalues of the covariance (1/N), largest first, and its eigenvectors."""
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    return mean, values.flip(0), vectors.flip(1)


# Theory 1.2 and 1.3


@pytest.mark.parametrize("tied", [False, True])
def test_a_linear_autoencoder_finds_the_principal_subspace(tied):
    x, k = make_data(200, 8, 5, 0.3), 3
    mean, values, vectors = principal(x)
    torch.manual_seed(0)
    model = xhat.build("autoencoder", (8,), latent=k, hidden=[], tied=tied).double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.loss(x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    least = values[k:].sum()
    reached = model.loss(x).mean().detach()
    assert reached <= 1.01 * least
    torch.testing.assert_close(reached, least, rtol=1e-6, atol=0)
    encoder = model.posterior.head.linear
    decoder = model.likelihood.head.linear
    w1, b1, b2 = encoder.weight.detach(), encoder.bias.detach(), decoder.bias.detach()
    w2 = w1.T if tied else decoder.weight.detach()
    subspace = vectors[:, :k] @ vectors[:, :k].T
    torch.testing.assert_close(w2 @ w1, subspace, rtol=0, atol=1e-4)
    torch.testing.assert_close(b2, mean - w2 @ (w1 @ mean + b1), rtol=0, atol=1e-4)
    if tied:
        torch.testing.assert_close(w1 @ w1.T, torch.eye(k, dtype=F64), rtol=0, atol=1e-4)


# Theory 8.2: probabilistic PCA


def linear_model(size: int, k: int, posterior: str) -> VAE:
    q = conditionals.Normal(MLP(size), k) if posterior == "normal" else conditionals.MultivariateNormal(MLP(size), k)
    p = conditionals.Normal(MLP(k), size, per="shared")
    return VAE(priors.StandardNormal(k), q, p, objectives.ELBO(kl="analytic")).double()


def unsoftplus(value: Tensor, minimum: float = 1e-4) -> Tensor:
    return torch.log(torch.expm1(value - minimum))


def set_exactly(model: VAE, weight: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Give the decoder these parameters, and the encoder the posterior that belongs to them."""
    k = weight.shape[1]
    inner = weight.T @ weight + variance * torch.eye(k, dtype=F64)
    slope = torch.linalg.solve(inner, weight.T)
    factor = torch.linalg.cholesky(variance * torch.linalg.inv(inner))
    with torch.no_grad():
        decoder, encoder = model.likelihood.head.linear, model.posterior.head.linear
        decoder.weight.copy_(weight)
        decoder.bias.copy_(mean)
        model.likelihood.raw_scale.fill_(unsoftplus(variance.sqrt()) / conditionals.normal.GAIN)
        encoder.weight.zero_()
        encoder.weight[:k] = slope
        encoder.bias[:k] = -slope @ mean
        if isinstance(model.posterior, conditionals.Normal):
            encoder.bias[k:] = unsoftplus(factor.diagonal())
        else:
            numbers = factor.clone()
            numbers.diagonal().copy_(unsoftplus(factor.diagonal()))
            encoder.bias[k:] = numbers[tuple(torch.tril_indices(k, k))]


def exact_log_px(model: VAE, x: Tensor) -> Tensor:
    """log N(x; b, WWᵀ + σ²I) of a model's own parameters."""
    decoder = model.likelihood.head.linear
    scale = model.likelihood(torch.zeros(1, model.latent_shape[0], dtype=F64)).stddev[0, 0]
    covariance = decoder.weight @ decoder.weight.T + scale**2 * torch.eye(len(decoder.weight), dtype=F64)
    return td.MultivariateNormal(decoder.bias, covariance).log_prob(x).detach()


def best(x: Tensor, k: int, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The maximum likelihood solution of Tipping and Bishop."""
    mean, values, vectors = principal(x)
    variance = values[k:].mean()
    return vectors[:, :k] * (values[:k] - variance).sqrt() @ rotation, mean, variance


def rotation_of(k: int, turned: bool) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=F64))[0] if turned else torch.eye(k, dtype=F64)


def test_the_evidence_in_k_dimensions_is_that_in_d():
    x, k = make_data(100, 6, 3, 0.5), 2
    weight, mean, variance = best(x, k, rotation_of(k, True))
    r = x - mean
    inner = weight.T @ weight + variance * torch.eye(k, dtype=F64)
    outer = weight @ weight.T + variance * torch.eye(6, dtype=F64)
    torch.testing.assert_close(torch.logdet(outer), torch.logdet(inner) + (6 - k) * variance.log())
    quadratic = (r.square().sum(1) - (r @ weight @ torch.linalg.inv(inner) * (r @ weight)).sum(1)) / variance
    torch.testing.assert_close((r @ torch.linalg.inv(outer) * r).sum(1), quadratic)


@pytest.mark.parametrize(
    ("posterior", "turned"), [("multivariate-normal", True), ("multivariate-normal", False), ("normal", False)]
)
def test_with_the_exact_posterior_the_bound_is_the_evidence(posterior, turned):
    x, k = make_data(150, 6, 3, 0.5), 2
    model = linear_model(6, k, posterior)
    set_exactly(model, *best(x, k, rotation_of(k, turned)))
    known = exact_log_px(model, x)
    torch.manual_seed(0)
    # Each draw of log p(x, z) − log q(z) is log p(x): no variance at all, and the importance weights are all the same.
    sampled = objectives.ELBO(kl="sampled")(model.pose(Batch(x))).measures["elbo"]
    torch.testing.assert_close(sampled, known, rtol=0, atol=1e-4)
    evidence = xhat.log_likelihood(model, x, samples=10)
    torch.testing.assert_close(evidence.log_px, known, rtol=0, atol=1e-4)
    torch.testing.assert_close(evidence.ess, torch.full((150,), 10.0, dtype=F64), rtol=1e-6, atol=0)
    assert evidence.stderr.max() < 1e-4
    # The analytic KL leaves the noise of log p(x|z), whose mean is right.
    elbo = model.elbo(x.repeat(400, 1)).reshape(400, 150).mean(1).detach()
    assert abs(elbo.mean() - known.mean()) <= 4 * elbo.std() / math.sqrt(400)


def test_an_axis_aligned_posterior_falls_short_where_the_columns_are_not_upright():
    x, k = make_data(150, 6, 3, 0.5), 2
    model = linear_model(6, k, "normal")
    weight, mean, variance = best(x, k, rotation_of(k, False))
    set_exactly(model, weight @ torch.tensor([[1.0, 0.9], [0.0, 0.4]], dtype=F64), mean, variance)  # columns far from upright
    known = exact_log_px(model, x).mean()
    torch.manual_seed(0)
    many = x.repeat(400, 1)
    elbo = objectives.ELBO(kl="sampled")(model.pose(Batch(many))).measures["elbo"].reshape(400, 150).mean(1)
    assert known - elbo.mean() > 10 * elbo.std() / math.sqrt(400)


def test_the_solution_is_a_maximum():
    x, k = make_data(150, 6, 3, 0.5), 2
    model = linear_model(6, k, "normal")
    weight, mean, variance = (value.clone().requires_grad_() for value in best(x, k, rotation_of(k, True)))
    covariance = weight @ weight.T + variance * torch.eye(6, dtype=F64)
    value = td.MultivariateNormal(mean, covariance).log_prob(x).mean()
    for slope in torch.autograd.grad(value, (weight, mean, variance)):
        assert slope.abs().max() < 1e-10
    set_exactly(model, weight.detach(), mean.detach(), variance.detach())
    torch.testing.assert_close(exact_log_px(model, x).mean(), value.detach())


def test_importance_sampling_from_another_law_is_right_within_its_standard_error():
    x, k = make_data(40, 6, 3, 0.5), 2
    model = linear_model(6, k, "multivariate-normal")
    set_exactly(model, *best(x, k, rotation_of(k, True)))
    with torch.no_grad():  # a wider and shifted posterior
        model.posterior.head.linear.bias[:k] += 0.1
        model.posterior.head.linear.bias[k:] += 0.5
    known = exact_log_px(model, x)
    torch.manual_seed(0)
    evidence = xhat.log_likelihood(model, x, samples=4000)
    away = (evidence.log_px - known) / evidence.stderr
    assert away.abs().max() < 4
    assert abs(away.mean()) * math.sqrt(40) < 3
    whole = evidence.stderr.square().sum().sqrt() / 40
    assert abs(evidence.log_px.mean() - known.mean()) < 3 * whole
    assert evidence.ess.max() < 3900


def test_a_trained_linear_decoder_reaches_the_evidence_of_its_own_parameters():
    x, k = make_data(200, 5, 3, 0.5), 2
    torch.manual_seed(0)
    model = linear_model(5, k, "normal")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    for _ in range(800):
        optimizer.zero_grad()
        model.loss(x).mean().backward()
        optimizer.step()
        schedule.step()
    known = exact_log_px(model, x)
    elbo = model.elbo(x, samples=500).mean().item()
    assert known.mean().item() - 0.05 <= elbo <= known.mean().item() + 0.01
    weight, mean, variance = best(x, k, torch.eye(k, dtype=F64))
    top = td.MultivariateNormal(mean, weight @ weight.T + variance * torch.eye(5, dtype=F64)).log_prob(x).mean().item()
    assert top - 0.05 <= known.mean().item() <= top
    own = model.likelihood.head.linear.weight.detach()
    cosine = (own.T @ own)[0, 1] / (own.norm(dim=0)[0] * own.norm(dim=0)[1])
    assert abs(cosine) < 0.2  # training has turned the decoder's columns upright (Lucas et al. 2019)
    evidence = xhat.log_likelihood(model, x, samples=300)
    whole = evidence.stderr.square().sum().sqrt() / len(x)
    assert abs(evidence.log_px.mean() - known.mean()) < 3 * whole


# Theory 1.5: denoising


def test_denoising_learns_the_conditional_mean_and_against_the_corrupted_example_it_would_learn_the_identity():
    """x ~ N(0, diag v), x̃ = x + s ε: E[x | x̃] = v / (v + s²) x̃, entry by entry; a linear network can be just that."""
    torch.manual_seed(0)
    v, s = torch.tensor([4.0, 1.0], dtype=F64), 1.0
    x = torch.randn(40_000, 2, dtype=F64) * v.sqrt()
    model = xhat.build("denoising", (2,), latent=2, hidden=[], corruption=f"normal-noise:{s}").double()
    for against, slope in (("clean", v / (v + s**2)), ("corrupted", torch.ones(2, dtype=F64))):
        seen = model.corruption(x)
        target = x if against == "clean" else seen
        fitted = torch.linalg.lstsq(seen, target).solution  # the best linear map of x̃, in closed form
        torch.testing.assert_close(fitted, torch.diag(slope), rtol=0, atol=0.02)
        with torch.no_grad():
            model.posterior.head.linear.weight.copy_(torch.eye(2))
            model.posterior.head.linear.bias.zero_()
            model.likelihood.head.linear.weight.copy_(torch.diag(slope))
            model.likelihood.head.linear.bias.zero_()
        loss = model.loss(x).mean()
        slopes = torch.autograd.grad(loss, model.likelihood.head.linear.weight)[0]
        still = slopes.abs().max().item() < 0.1
        assert still == (against == "clean"), f"the loss has its minimum at the map learned against the {against} example"
