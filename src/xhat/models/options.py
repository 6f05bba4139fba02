"""The options of recipes, as plain data: the command reads them without importing torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What a recipe can be told; ``None`` leaves the choice to the recipe.

    Attributes:
        latent: size of the code z; of a discrete VAE the number of latent variables in each layer.
        hidden: sizes of the encoder's hidden layers, the decoder mirrors them; for a convolutional network the one fully
            connected layer.
        network: "mlp", or "conv" for images.
        channels: feature maps of each level of a convolutional encoder; the decoder mirrors them.
        activation: relu, leaky-relu, elu, gelu, silu, tanh, sigmoid, softplus or identity; leaky-relu:0.3 sets
            the slope.
        posterior: normal, multivariate-normal, bernoulli, categorical, one-hot-categorical, poisson or continuous-bernoulli.
        likelihood: normal, bernoulli, continuous-bernoulli, categorical or poisson.
        posterior_scale: how the posterior's scale is made positive, "softplus" or "exp".
        scale: the Normal likelihood's scale, "softplus", "exp", or a number that fixes it.
        per: whose scale the Normal likelihood has: "shared", "dimension" or "network".
        minimum: lower bound of the Normal likelihood's scale.
        link: "identity", or "sigmoid" to keep the Normal likelihood's mean in (0, 1).
        levels: grey levels of a categorical likelihood or posterior.
        categories: of each latent variable of a one-hot-categorical posterior.
        layers: stochastic layers of a discrete VAE, 1 or 2; the hidden layers stand between any two of them.
        learn_prior: learn the probabilities of a discrete VAE's prior too.
        objective: what is trained on, "elbo", or "iwae" for the tighter bound that weighs several draws by their importance.
        beta: weight of the KL term.
        beta_warmup: epochs over which the weight of the KL term rises from 0.
        free_bits: nats for each latent dimension that cost nothing.
        kl: "auto", "analytic" or "sampled".
        samples: draws of z for each example and step; 50 for "iwae" unless told otherwise.
        gradient: how the derivative gets through z, a name such as pathwise, score, rloo, disarm or concrete; of several
            stochastic layers each has one of its own, but for "iwae", which takes them as one draw; stl is for "elbo" only, vimco
            for "iwae".
        baseline: of the score gradient, "none", "lagged", "leave-one-out", or "network" for one that is learned from x.
        temperature: of a relaxed gradient, such as concrete; its first, where there is a final one.
        final_temperature: where a temperature ends that falls geometrically.
        temperature_epochs: how many epochs that takes.
        noise: of the pathwise gradient, "independent", "antithetic" or "sobol".
        corruption: noise on the encoder's input, "masking:0.5", "normal-noise:0.3" or "salt-and-pepper:0.25".
        tied: let the decoder use the encoder's weights, transposed.
    """

    latent: int | None = None
    hidden: tuple[int, ...] | None = None
    network: str | None = None
    channels: tuple[int, ...] | None = None
    activation: str | None = None
    posterior: str | None = None
    likelihood: str | None = None
    posterior_scale: str | None = None
    scale: float | str | None = None
    per: str | None = None
    minimum: float | None = None
    link: str | None = None
    levels: int | None = None
    categories: int | None = None
    layers: int | None = None
    learn_prior: bool | None = None
    objective: str | None = None
    beta: float | None = None
    beta_warmup: float | None = None
    free_bits: float | None = None
    kl: str | None = None
    samples: int | None = None
    gradient: str | None = None
    baseline: str | None = None
    temperature: float | None = None
    final_temperature: float | None = None
    temperature_epochs: float | None = None
    noise: str | None = None
    corruption: str | None = None
    tied: bool | None = None
