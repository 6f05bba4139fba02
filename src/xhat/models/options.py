"""The options of recipes, as plain data: the command reads them without importing torch."""

from __future__ import annotations

from dataclasses import dataclass

LEVELLED = ("categorical", "discretised-normal", "logistic-mixture", "beta-binomial")  # likelihoods of grey levels


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What a recipe can be told; ``None`` leaves the choice to the recipe.

    Attributes:
        latent: size of the code z; of a discrete VAE the number of latent variables in each layer.
        latents: sizes of the layers of z of a hierarchical VAE, from the one next to x up.
        hidden: sizes of the encoder's hidden layers, the decoder mirrors them; for a convolutional network the one fully
            connected layer.
        network: "mlp", or "conv" for images.
        channels: feature maps of each level of a convolutional encoder; the decoder mirrors them.
        between: sizes of the hidden layers between two layers of z of a hierarchical VAE.
        direction: how those are inferred, "bottom-up", or "ladder" for from the top down, as they are generated.
        activation: relu, leaky-relu, elu, gelu, silu, tanh, sigmoid, softplus or identity; leaky-relu:0.3 sets
            the slope; "gated" multiplies each layer by a gate.
        prior: "standard" for the usual one of the posterior's kind; or one that is learned: "mixture" of Normals, "vamp"
            (a mixture of posteriors at learned inputs), or a normalising flow, "flow", "coupling" or "spline".
        components: of a mixture or vamp prior.
        posterior: normal, multivariate-normal, bernoulli, categorical, one-hot-categorical, poisson or continuous-bernoulli; or
            a normalising flow, "iaf" or "coupling".
        transforms: layers of a normalising flow, the posterior's and the prior's.
        likelihood: normal, bernoulli, continuous-bernoulli, categorical or poisson; of grey levels also discretised-normal,
            logistic-mixture or beta-binomial.
        posterior_scale: how the posterior's scale is made positive, "softplus" or "exp".
        scale: the (discretised) Normal likelihood's scale, "softplus", "exp", or a number that fixes it.
        per: whose scale the Normal likelihood has: "shared", "dimension" or "network".
        minimum: lower bound of the Normal likelihood's scale.
        link: "identity", or "sigmoid" to keep the Normal likelihood's mean in (0, 1).
        levels: grey levels of a likelihood of grey levels, or of a categorical posterior.
        logistics: components of each element's logistic-mixture.
        categories: of each latent variable of a one-hot-categorical posterior.
        layers: stochastic layers of a discrete VAE, 1 or 2; the hidden layers stand between any two of them.
        learn_prior: learn the probabilities of a discrete VAE's prior too.
        objective: what is trained on, "elbo"; "iwae" for the tighter bound that weighs several draws by their importance, and
            its kin "miwae", "piwae", "ciwae" and "renyi"; "tc" for a weight on the total correlation; "info" for a divergence
            between all codes together and the prior (InfoVAE, with alpha 1 the Wasserstein autoencoder).
        beta: weight of the KL term; of the total correlation with "tc".
        beta_warmup: epochs over which the weight of the KL term rises from 0.
        free_bits: nats for each latent dimension that cost nothing.
        capacity: nats that each example's KL is drawn to.
        capacity_warmup: epochs in which the capacity rises from 0.
        groups: M of "miwae" and "piwae".
        share: the ELBO's, in "ciwae".
        alpha: of "renyi" its order, of "tc" the weight of the mutual information, of "info" what the KL is spared.
        gamma: of "tc", the weight of the dimension-wise KL.
        estimate: of "tc", "stratified" or "weighted".
        mmd_weight: of "info", λ.
        kernel: of "info", "rbf" or "imq".
        bandwidth: of that kernel, a squared length.
        kl: "auto", "analytic" or "sampled".
        samples: draws of z for each example and step; 50 for "iwae", "ciwae" and "renyi" unless told otherwise, and 8 in each
            of 8 groups for "miwae" and "piwae".
        gradient: how the derivative gets through z, a name such as pathwise, score, rloo, disarm or concrete; of several
            stochastic layers each has one of its own, but for "iwae", which takes them as one draw; stl is for "elbo" only, vimco
            for "iwae".
        baseline: of the score gradient, "none", "lagged", "leave-one-out", or "network" for one that is learned from x.
        temperature: of a relaxed gradient, such as concrete; its first, where there is a final one.
        final_temperature: where a temperature ends that falls geometrically.
        temperature_epochs: how many epochs that takes.
        noise: of the pathwise gradient, "independent", "antithetic" or "sobol".
        prior_condition: let the prior depend on the condition too, as encoder and decoder do.
        corruption: noise on the encoder's input, "masking:0.5", "normal-noise:0.3" or "salt-and-pepper:0.25".
        tied: let the decoder use the encoder's weights, transposed.
    """

    latent: int | None = None
    latents: tuple[int, ...] | None = None
    hidden: tuple[int, ...] | None = None
    network: str | None = None
    channels: tuple[int, ...] | None = None
    between: tuple[int, ...] | None = None
    direction: str | None = None
    activation: str | None = None
    prior: str | None = None
    components: int | None = None
    posterior: str | None = None
    transforms: int | None = None
    likelihood: str | None = None
    posterior_scale: str | None = None
    scale: float | str | None = None
    per: str | None = None
    minimum: float | None = None
    link: str | None = None
    levels: int | None = None
    logistics: int | None = None
    categories: int | None = None
    layers: int | None = None
    learn_prior: bool | None = None
    objective: str | None = None
    beta: float | None = None
    beta_warmup: float | None = None
    free_bits: float | None = None
    capacity: float | None = None
    capacity_warmup: float | None = None
    groups: int | None = None
    share: float | None = None
    alpha: float | None = None
    gamma: float | None = None
    estimate: str | None = None
    mmd_weight: float | None = None
    kernel: str | None = None
    bandwidth: float | None = None
    kl: str | None = None
    samples: int | None = None
    gradient: str | None = None
    baseline: str | None = None
    temperature: float | None = None
    final_temperature: float | None = None
    temperature_epochs: float | None = None
    noise: str | None = None
    prior_condition: bool | None = None
    corruption: str | None = None
    tied: bool | None = None
