"""A VAE with a linear decoder and a Normal likelihood is probabilistic PCA, whose log p(x) is exact: compare.

    python benchmarks/probabilistic_pca.py

Trains on the bundled digits (64 pixels, 8 latent dimensions), then prints, on the test digits, the ELBO, the
importance-sampled and the exact log p(x) of the trained model, and the maximum of the likelihood (Tipping & Bishop 1999) on
the training digits.
"""

import math

import torch
from torch.distributions import MultivariateNormal

import xhat
from xhat.evaluation.evaluate import measure

LATENT, SAMPLES = 8, 2000


def exact(model: xhat.VAE, x: torch.Tensor) -> torch.Tensor:
    """log N(x; b, W Wᵀ + σ² I) of the model's own decoder, in float64."""
    layer = model.likelihood.head.linear
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    sigma = model.likelihood.scale(bias).detach().double()
    covariance = weight @ weight.T + sigma.square().diag()
    return MultivariateNormal(bias, covariance).log_prob(x.double())


def maximum(x: torch.Tensor) -> float:
    """The largest mean log-likelihood that probabilistic PCA can reach on x."""
    x = x.double()
    size = x.shape[1]
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    sigma2 = values[LATENT:].mean()
    logdet = values[:LATENT].log().sum() + (size - LATENT) * sigma2.log()
    return float(-0.5 * (size * math.log(2 * math.pi) + logdet + size))


def main() -> None:
    data = xhat.load_data("digits", seed=0)
    train, valid, test = (part.tensor().flatten(1) for part in (data.train, data.valid, data.test))
    torch.manual_seed(0)
    model = xhat.build("vae", shape=(64,), latent=LATENT, hidden=[], likelihood="normal", samples=8)
    history = xhat.fit(model, train, valid, epochs=800, lr=0.01, schedule="cosine", seed=0)
    truth, bound = exact(model, test), model.elbo(test, samples=1000).detach()
    evidence = xhat.log_likelihood(model, test, samples=SAMPLES)
    stderr = float(evidence.stderr.square().sum().sqrt() / len(test))
    off = float((evidence.log_px - truth).mean())
    print(f"trained for {len(history.rows)} epochs in {history.seconds:.0f} s")
    print(f"exact log p(x), {len(test)} test digits      {measure(truth)}")
    print(f"ELBO                                {measure(bound)}")
    print(f"exact minus ELBO                    {float((truth - bound).mean()):.4f} nats")
    print(f"importance sampled, K = {SAMPLES}        {measure(evidence.log_px)}")
    print(f"importance sampled minus exact      {off:+.5f} nats, {off / stderr:+.2f} standard errors of sampling z")
    print(f"training digits: mean log p(x) {float(exact(model, train).mean()):.3f}, largest possible {maximum(train):.3f}")


if __name__ == "__main__":
    main()
