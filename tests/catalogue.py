"""The tests' catalogue: one row enters a part into every generic test.

A conditional's row says how to make one from a network and an event shape; an estimator's how to make one with its options;
a law's what it is made of, what an expectation is taken of, and the exact expectation. Models are the product of the rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributions as td
from torch.distributions import constraints

from xhat import VAE, Autoencoder, build, conditionals, distributions, gradients, objectives, priors
from xhat.conditionals import Headed
from xhat.data import Corruption, Masking, NormalNoise, SaltAndPepper
from xhat.distributions import Delta, is_discrete
from xhat.distributions.grid import Grid
from xhat.gradients import Gradient, Pathwise, Score
from xhat.models.base import Model
from xhat.models.hierarchy import hierarchy
from xhat.networks import MLP
from xhat.objectives import Objective

F64 = torch.float64

# Conditionals: how to make one, on any small event with one axis.

CONDITIONALS: dict[str, Callable[[nn.Module, Sequence[int]], Headed]] = {
    "normal": lambda network, event: conditionals.Normal(network, event),
    "normal-exp": lambda network, event: conditionals.Normal(network, event, scale="exp"),
    "normal-fixed": lambda network, event: conditionals.Normal(network, event, scale=0.7),
    "normal-shared": lambda network, event: conditionals.Normal(network, event, per="shared"),
    "normal-dimension": lambda network, event: conditionals.Normal(network, event, per="dimension", link="sigmoid"),
    "multivariate-normal": lambda network, event: conditionals.MultivariateNormal(network, event),
    "multivariate-normal-exp": lambda network, event: conditionals.MultivariateNormal(network, event, scale="exp"),
    "bernoulli": lambda network, event: conditionals.Bernoulli(network, event),
    "continuous-bernoulli": lambda network, event: conditionals.ContinuousBernoulli(network, event),
    "categorical": lambda network, event: conditionals.Categorical(network, event, levels=5),
    "one-hot-categorical": lambda network, event: conditionals.OneHotCategorical(network, event),
    "poisson": lambda network, event: conditionals.Poisson(network, event),
    "poisson-exp": lambda network, event: conditionals.Poisson(network, event, scale="exp", minimum=0.5),
    "delta": lambda network, event: conditionals.Delta(network, event),
    "delta-sigmoid": lambda network, event: conditionals.Delta(network, event, link="sigmoid"),
    "discretised-normal": lambda network, event: conditionals.DiscretisedNormal(network, event, levels=5, minimum=1.0),
    "logistic-mixture": lambda network, event: conditionals.LogisticMixture(network, event, levels=5, components=2),
    "beta-binomial": lambda network, event: conditionals.BetaBinomial(network, event, levels=5),
}


def law_of(make: Callable[[nn.Module, Sequence[int]], Headed]) -> td.Distribution:
    """A law that a row draws, to see of which kind it is."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return make(MLP(2, []), (2,))(torch.zeros(1, 2))


def single(law: td.Distribution) -> td.Distribution:
    """The law of one element, without the wrapper that makes events of many."""
    while isinstance(law, td.Independent):
        law = law.base_dist
    return law


# A point mass has no density, so these are the rows with a likelihood that can be measured.
RANDOM = {name: make for name, make in CONDITIONALS.items() if not isinstance(law_of(make), Delta)}

# Corruptions.

CORRUPTIONS: dict[str, Callable[[], Corruption]] = {
    "masking": lambda: Masking(0.5),
    "normal-noise": lambda: NormalNoise(0.3),
    "salt-and-pepper": lambda: SaltAndPepper(0.25),
}

# Gradients: every estimator with each of its options, and the fewest draws that it is used with here.

CONTEXT = (3,)


def stirred(estimator: Gradient) -> Gradient:
    """The same with parameters of its own that training could have led to: what it declares must hold for all of them."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in estimator.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype))
    return estimator


def _with_a_network_of_its_own() -> Gradient:
    """For codes of any shape: it sees the sum and the sum of squares of all perturbed logits."""

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out_features = 3
            self.mixed = nn.Linear(2, 3)

        def forward(self, z: Tensor) -> Tensor:
            flat = z.reshape(len(z), -1).clamp(-10, 10)
            return self.mixed(torch.stack([flat.tanh().sum(1), flat.sum(1)], 1)).tanh()

    return stirred(gradients.RELAX(Sums()))


GRADIENTS: dict[str, Callable[[], Gradient]] = {
    "pathwise": Pathwise,
    "pathwise, antithetic": lambda: Pathwise("antithetic"),
    "pathwise, sobol": lambda: Pathwise("sobol"),
    "score": Score,
    "score, lagged": lambda: Score("lagged"),
    "score, leave-one-out": lambda: Score("leave-one-out"),
    "score, network": lambda: stirred(Score(MLP(CONTEXT, [4], "tanh").to(F64)).to(F64)),
    "rloo": gradients.LeaveOneOut,
    "measure": gradients.Measure,
    "enumerate": gradients.Enumerate,
    "arm": gradients.ARM,
    "disarm": gradients.DisARM,
    "arms": gradients.ARMS,
    "carms": gradients.CARMS,
    "sum-and-sample": gradients.SumAndSample,
    "unordered-set": gradients.UnorderedSet,
    "muprop": gradients.MuProp,
    "double-cv": gradients.DoubleCV,
    "double-cv, stirred": lambda: stirred(gradients.DoubleCV()),
    "rebar": gradients.REBAR,
    "rebar, stirred": lambda: stirred(gradients.REBAR(temperature=0.8)),
    "rebar, temperature held": lambda: stirred(gradients.REBAR(learn_temperature=False)),
    "relax": gradients.RELAX,
    "relax, stirred": lambda: stirred(gradients.RELAX()),
    "relax, without f": lambda: stirred(gradients.RELAX(through_f=False)),
    "relax, network": _with_a_network_of_its_own,
    "concrete": gradients.Concrete,
    "concrete, cold": lambda: gradients.Concrete(0.1),
    "concrete, cooling": lambda: gradients.Concrete(1.0, final=0.2, epochs=10),
    "straight-through": gradients.StraightThrough,
    "st-gumbel": gradients.STGumbel,
    "gumbel-rao": gradients.GumbelRao,
    "reinmax": gradients.ReinMax,
    "stl": gradients.STL,
    "dreg": gradients.DReG,
    "vimco": gradients.VIMCO,
}

# Those that are only for evidence bounds.
OF_BOUNDS = {"stl", "dreg", "vimco"}


class Expectation(NamedTuple):
    """A law, a function of a draw and of the law's parameters, and its exact expectation, differentiable in them."""

    parameters: tuple[Tensor, ...]
    law: Callable[..., td.Distribution]
    f: Callable[..., Tensor]
    exact: Callable[..., Tensor]


def enumerated(
    points: Callable[[], Tensor], law: Callable[..., td.Distribution], f: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """The expectation as a sum over all points, ``(n, *event)``."""

    def exact(*parameters: Tensor) -> Tensor:
        q = law(*parameters)
        z = points()
        z = z.reshape(len(z), *(1,) * len(q.batch_shape), *z.shape[1:]).expand(len(z), *q.batch_shape, *z.shape[1:])
        return (q.log_prob(z).exp() * f(z, *parameters)).sum(0)

    return exact


def quadrature(low: float, high: float, law: Callable[..., td.Distribution], f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The expectation of a law of one number as an integral: tanh-sinh, which forgives singular ends."""

    def exact(*parameters: Tensor) -> Tensor:
        t = torch.linspace(-3.0, 3.0, 2001, dtype=F64)
        inner = torch.pi / 2 * t.sinh()
        share = torch.sigmoid(2 * inner)
        weight = (t[1] - t[0]) * torch.pi / 2 * t.cosh() / inner.cosh().square() / 2 * (high - low)
        q = law(*parameters)
        z = (low + (high - low) * share).reshape(-1, *(1,) * len(q.batch_shape)).expand(-1, *q.batch_shape)
        return (weight.reshape(-1, *(1,) * len(q.batch_shape)) * q.log_prob(z).exp() * f(z, *parameters)).sum(0)

    return exact


def bits(n: int, values: Sequence[float] = (0.0, 1.0)) -> Tensor:
    """All strings of n values, ``(len(values)^n, n)``."""
    return torch.tensor(list(itertools.product(values, repeat=n)), dtype=F64)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def _bernoulli(logits: Tensor) -> td.Distribution:
    return td.Independent(td.Bernoulli(logits=logits), 1)


def _parity(z: Tensor, logits: Tensor) -> Tensor:
    return (z[..., 0] - 0.3) * (z[..., 1] + 2 * z[..., 2]) + 3 * z[..., 0] * z[..., 1] * z[..., 2] + (logits * z).sum(-1)


def _levels(logits: Tensor) -> td.Distribution:
    return td.Independent(distributions.Levels(logits), 1)


def _product(z: Tensor, logits: Tensor) -> Tensor:
    return (z[..., 0] - 0.2).square() * (1 + z[..., 1]) + logits.square().sum((-1, -2))


def _full(loc: Tensor, factor: Tensor) -> td.Distribution:
    return td.MultivariateNormal(loc, scale_tril=factor.tril())


def _full_exact(loc: Tensor, factor: Tensor) -> Tensor:
    covariance = factor.tril() @ factor.tril().mT
    return loc[..., 0] ** 2 * loc[..., 1] + 2 * loc[..., 0] * covariance[..., 0, 1] + loc[..., 1] * covariance[..., 0, 0]


def _sine(z: Tensor, *parameters: Tensor) -> Tensor:
    return torch.sin(2 * z) + z * parameters[0]


def _quiet(z: Tensor, *parameters: Tensor) -> Tensor:
    """As the sine, and bounded in z."""
    return torch.sin(2 * z) * (1 + parameters[0]) + torch.exp(-z)


def _one_hot(logits: Tensor) -> td.Distribution:
    return td.OneHotCategorical(logits=logits)


def _bent(z: Tensor, logits: Tensor) -> Tensor:
    return (1.5 * z[..., 0] - z[..., 1]).exp() + z[..., 2].square() * 0.7 + torch.sin(z[..., 3]) + (logits * z).sum(-1)


def _one_hots(logits: Tensor) -> td.Distribution:
    return td.Independent(td.OneHotCategorical(logits=logits), 1)


def _pairs(z: Tensor, logits: Tensor) -> Tensor:
    first, second = z[..., 0, :], z[..., 1, :]
    return (first * second).sum(-1) + (first[..., 0] + 2 * second[..., 1]).square() + logits.sum((-1, -2)) * first[..., 2].sin()


def _all_one_hots(variables: int, count: int) -> Tensor:
    """All tuples of one-hot vectors, ``(count^variables, variables, count)``."""
    index = torch.tensor(list(itertools.product(range(count), repeat=variables)))
    return torch.nn.functional.one_hot(index, count).to(F64)


def _index(logits: Tensor) -> td.Distribution:
    return td.Categorical(logits=logits)


def _indices(logits: Tensor) -> td.Distribution:
    return td.Independent(td.Categorical(logits=logits), 1)


def _looked_up(z: Tensor, logits: Tensor) -> Tensor:
    return numbers(0.3, -1.0, 2.0, 0.5)[z] + logits.broadcast_to(*z.shape, 4).gather(-1, z.unsqueeze(-1)).squeeze(-1) ** 2


def _crossed(z: Tensor, logits: Tensor) -> Tensor:
    table = numbers(0.3, -1.0, 2.0, 1.0, 0.0, -0.5, 4.0, 0.7, 0.1).reshape(3, 3)
    return table[z[..., 0], z[..., 1]] + logits.sum((-1, -2))


def _wave(z: Tensor, logits: Tensor) -> Tensor:
    return torch.exp(0.4 * z.sum(-1)) + torch.sin(3 * z[..., 0] + logits[..., 1]) * z[..., 1]


def _binomial(logits: Tensor) -> td.Distribution:
    return td.Binomial(5, logits=logits)


def _dirichlet_exact(alpha: Tensor) -> Tensor:
    total = alpha.sum(-1)
    first = alpha[..., 0] * (alpha[..., 0] + 1) / (total * (total + 1))
    return first + 3 * alpha[..., 1] * alpha[..., 2] / (total * (total + 1))


class _Bend(td.Transform):
    """The second number stretched and moved by the first."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, by: Tensor) -> None:
        super().__init__()
        self.by = by

    def _call(self, x: Tensor) -> Tensor:
        first, second = x.unbind(-1)
        return torch.stack([first, second * (0.4 * first.tanh()).exp() + self.by * first.square()], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        first, second = y.unbind(-1)
        return torch.stack([first, (second - self.by * first.square()) * (-0.4 * first.tanh()).exp()], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.4 * x[..., 0].tanh()


def _flow(loc: Tensor, scale: Tensor, by: Tensor) -> td.Distribution:
    return distributions.Flow(td.Independent(td.Normal(loc, scale), 1), [_Bend(by)])


def _swung(z: Tensor, loc: Tensor, *rest: Tensor) -> Tensor:
    return torch.sin(z[..., 0] + z[..., 1]) + 0.3 * z[..., 1] * loc[..., 0]


def _flow_exact(loc: Tensor, scale: Tensor, by: Tensor) -> Tensor:
    """By Gauss-Hermite quadrature in the noise."""
    nodes, weights = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(60))
    noise, weight = torch.cartesian_prod(nodes, nodes), torch.cartesian_prod(weights, weights).prod(-1) / (2 * torch.pi)
    return (weight * _swung(_Bend(by)(loc + scale * noise), loc)).sum()


EXPECTATIONS: dict[str, Expectation] = {
    "Normal": Expectation(
        (numbers(0.5, -1.0, 0.0), numbers(0.8, 0.3, 1.5)),
        td.Normal,
        lambda z, loc, scale: z**3 - 2 * z**2 + loc * z,
        lambda loc, scale: loc**3 + 3 * loc * scale**2 - 2 * (loc**2 + scale**2) + loc**2,
    ),
    "full Normal": Expectation(
        (numbers(0.4, -0.7), torch.tensor([[0.9, 0.0], [0.5, 0.6]], dtype=F64)),
        _full,
        lambda z, loc, factor: z[..., 0] ** 2 * z[..., 1],
        _full_exact,
    ),
    "flow": Expectation((numbers(0.4, -0.3), numbers(0.7, 0.5), torch.tensor(0.6, dtype=F64)), _flow, _swung, _flow_exact),
    "Laplace": Expectation(
        (numbers(0.3, -0.2), numbers(0.5, 1.0)), td.Laplace, lambda z, loc, scale: z**2, lambda loc, scale: loc**2 + 2 * scale**2
    ),
    "Gamma": Expectation((numbers(2.5, 0.7), numbers(1.0, 2.0)), td.Gamma, _sine, quadrature(0.0, 60.0, td.Gamma, _sine)),
    "Beta": Expectation((numbers(2.0, 0.8), numbers(1.5, 3.0)), td.Beta, _sine, quadrature(0.0, 1.0, td.Beta, _sine)),
    "Dirichlet": Expectation(
        (numbers(1.5, 0.9, 2.0),), td.Dirichlet, lambda z, alpha: z[..., 0] ** 2 + 3 * z[..., 1] * z[..., 2], _dirichlet_exact
    ),
    "Student's t": Expectation(
        (numbers(4.0), numbers(0.5), numbers(1.2)),
        td.StudentT,
        lambda z, df, loc, scale: torch.exp(-((z - 1) ** 2)),
        quadrature(-30.0, 30.0, td.StudentT, lambda z, df, loc, scale: torch.exp(-((z - 1) ** 2))),
    ),
    "continuous Bernoulli": Expectation(
        (numbers(0.0, -2.0, 5.0),),
        distributions.ContinuousBernoulli,
        _sine,
        quadrature(0.0, 1.0, distributions.ContinuousBernoulli, _sine),
    ),
    "Uniform": Expectation(
        (numbers(-1.0, 0.0), numbers(0.5, 2.0)),
        td.Uniform,
        lambda z, low, high: z**2,
        lambda low, high: (low**2 + low * high + high**2) / 3,
    ),
    "Pareto": Expectation(
        (numbers(1.0), numbers(6.0)),
        td.Pareto,
        lambda z, scale, alpha: z**2,
        lambda scale, alpha: alpha * scale**2 / (alpha - 2),
    ),
    "Delta": Expectation((numbers(0.3, -2.0),), Delta, lambda z, value: z**3, lambda value: value**3),
    "Bernoulli": Expectation(
        (torch.tensor([[0.3, -0.5, 1.0], [0.0, 2.0, -2.0]], dtype=F64),),
        _bernoulli,
        _parity,
        enumerated(lambda: bits(3), _bernoulli, _parity),
    ),
    "ten bits": Expectation(
        (torch.linspace(-1.5, 1.5, 10, dtype=F64),),
        _bernoulli,
        lambda z, logits: (z.sum(-1) - 4).square() + z[..., 0] * z[..., 9],
        enumerated(lambda: bits(10), _bernoulli, lambda z, logits: (z.sum(-1) - 4).square() + z[..., 0] * z[..., 9]),
    ),
    "Levels": Expectation(
        (torch.tensor([[0.0, 0.5, -0.5, 1.0], [1.0, -1.0, 0.3, 0.0]], dtype=F64),),
        _levels,
        _product,
        enumerated(lambda: bits(2, (0.0, 1 / 3, 2 / 3, 1.0)), _levels, _product),
    ),
    "Gamma, its rate": Expectation(
        (numbers(0.7, 2.0),),
        lambda rate: td.Gamma(numbers(2.5, 0.7), rate),
        _quiet,
        quadrature(0.0, 60.0, lambda rate: td.Gamma(numbers(2.5, 0.7), rate), _quiet),
    ),
    "Exponential": Expectation((numbers(0.6, 2.0),), td.Exponential, _quiet, quadrature(0.0, 70.0, td.Exponential, _quiet)),
    "Weibull": Expectation((numbers(0.8, 2.0), numbers(1.7, 1.2)), td.Weibull, _quiet, quadrature(0.0, 40.0, td.Weibull, _quiet)),
    "Weibull, its scale": Expectation(
        (numbers(0.8, 2.0),),
        lambda scale: td.Weibull(scale, numbers(1.7, 1.2)),
        _quiet,
        quadrature(0.0, 40.0, lambda scale: td.Weibull(scale, numbers(1.7, 1.2)), _quiet),
    ),
    "half Normal": Expectation((numbers(0.5, 1.5),), td.HalfNormal, _quiet, quadrature(0.0, 20.0, td.HalfNormal, _quiet)),
    "log Normal": Expectation(
        (numbers(0.2, -0.5), numbers(0.5, 0.8)), td.LogNormal, _quiet, quadrature(0.0, 200.0, td.LogNormal, _quiet)
    ),
    "Gumbel": Expectation((numbers(0.2, -0.5), numbers(0.5, 0.8)), td.Gumbel, _sine, quadrature(-10.0, 40.0, td.Gumbel, _sine)),
    "several Normals": Expectation(
        (torch.tensor([[0.5, -0.2], [1.0, 0.0]], dtype=F64), torch.tensor([[0.6, 1.0], [0.3, 0.8]], dtype=F64)),
        lambda loc, scale: td.Independent(td.Normal(loc, scale), 1),
        lambda z, loc, scale: z[..., 0] ** 2 * z[..., 1] + 2 * z[..., 1] ** 2 * loc[..., 0],
        lambda loc, scale: (
            (loc[..., 0] ** 2 + scale[..., 0] ** 2) * loc[..., 1] + 2 * (loc[..., 1] ** 2 + scale[..., 1] ** 2) * loc[..., 0]
        ),
    ),
    "bits in a wave": Expectation(
        (torch.tensor([[0.7, -1.2, 0.1, 2.5], [-3.0, 0.0, 0.4, -0.4]], dtype=F64),),
        _bernoulli,
        _wave,
        enumerated(lambda: bits(4), _bernoulli, _wave),
    ),
    "one-hot Categorical": Expectation(
        (torch.tensor([[0.0, 0.5, -0.5, 1.0], [1.0, -1.0, 0.3, -2.0]], dtype=F64),),
        _one_hot,
        _bent,
        enumerated(lambda: torch.eye(4, dtype=F64), _one_hot, _bent),
    ),
    "several one-hot Categoricals": Expectation(
        (torch.tensor([[0.2, 0.5, -0.5], [1.0, -1.0, 0.3]], dtype=F64),),
        _one_hots,
        _pairs,
        enumerated(lambda: _all_one_hots(2, 3), _one_hots, _pairs),
    ),
    "Categorical": Expectation(
        (torch.tensor([[0.0, 0.5, -0.5, 1.0], [1.0, -1.0, 0.3, -2.0]], dtype=F64),),
        _index,
        _looked_up,
        enumerated(lambda: torch.arange(4), _index, _looked_up),
    ),
    "several Categoricals": Expectation(
        (torch.tensor([[0.2, 0.5, -0.5], [1.0, -1.0, 0.3]], dtype=F64),),
        _indices,
        _crossed,
        enumerated(lambda: bits(2, (0, 1, 2)).long(), _indices, _crossed),
    ),
    "Binomial": Expectation(
        (numbers(0.3, -1.0),),
        _binomial,
        lambda z, logits: torch.sin(z) + z.square() * logits,
        enumerated(lambda: torch.arange(6, dtype=F64), _binomial, lambda z, logits: torch.sin(z) + z.square() * logits),
    ),
    "Poisson": Expectation(
        (numbers(0.5, 3.0),),
        td.Poisson,
        lambda z, rate: z**2 + rate,
        lambda rate: rate**2 + 2 * rate,
    ),
}

# Models, by parts: each posterior that stands beside some prior, with each likelihood; and by recipe.

EVENT, LATENT = (3,), (2,)


def prior_for(law: td.Distribution) -> priors.Prior:
    """A prior that lives on the same points as a posterior's law."""
    base = single(law)
    if isinstance(base, td.Bernoulli):
        return priors.Bernoulli(LATENT)
    if isinstance(base.support, Grid):
        return priors.Categorical(LATENT, levels=base.support.count)
    if isinstance(base, td.OneHotCategorical):
        return priors.OneHotCategorical(LATENT)
    if is_discrete(law):
        return priors.Poisson(LATENT)
    return priors.Uniform(LATENT) if base.support is constraints.unit_interval else priors.StandardNormal(LATENT)


def vae(posterior: str, likelihood: str, kl: str = "auto", samples: int = 2) -> VAE:
    """A small model of two rows; its gradient is pathwise where the posterior has it."""
    q = CONDITIONALS[posterior](MLP(EVENT, [6], "tanh"), LATENT)
    law = q(torch.zeros(1, *EVENT))
    return VAE(
        prior_for(law),
        q,
        CONDITIONALS[likelihood](MLP(LATENT, [6], "tanh"), EVENT),
        objectives.ELBO(kl=kl, samples=samples),
        gradients.Pathwise() if law.has_rsample else gradients.Score("leave-one-out"),
    )


def _by_parts() -> dict[str, Callable[[], Model]]:
    rows: dict[str, Callable[[], Model]] = {}
    for posterior, likelihood in itertools.product(RANDOM, RANDOM):
        rows[f"vae: {posterior} → {likelihood}"] = lambda a=posterior, b=likelihood: vae(a, b)
    for likelihood in RANDOM:
        rows[f"autoencoder: {likelihood}"] = lambda b=likelihood: Autoencoder(
            conditionals.Delta(MLP(EVENT, [6]), LATENT), CONDITIONALS[b](MLP(LATENT, [6]), EVENT)
        )
    return rows


IMAGE = (1, 8, 8)
RECIPES: dict[str, tuple[str, dict[str, object]]] = {
    **{
        f"{recipe} {likelihood}": (recipe, {"likelihood": likelihood} | ({"levels": 4} if likelihood == "categorical" else {}))
        for recipe in ("autoencoder", "denoising", "stacked", "vae")
        for likelihood in ("normal", "bernoulli", "continuous-bernoulli", "categorical", "poisson")
    },
    **{f"denoising {name}": ("denoising", {"corruption": name}) for name in CORRUPTIONS},
    **{f"denoising vae {name}": ("vae", {"corruption": name, "likelihood": "bernoulli"}) for name in CORRUPTIONS},
    "linear autoencoder": ("autoencoder", {"hidden": []}),
    "tied autoencoder": ("autoencoder", {"hidden": [7], "tied": True}),
    "tied linear autoencoder": ("autoencoder", {"hidden": [], "tied": True}),
    "convolutional autoencoder": ("autoencoder", {"network": "conv", "channels": [2, 3], "hidden": [5]}),
    "convolutional vae": ("vae", {"network": "conv", "channels": [2], "hidden": [5], "likelihood": "bernoulli"}),
    "vae, full covariance": ("vae", {"posterior": "multivariate-normal", "posterior_scale": "exp", "free_bits": 0.1}),
    "vae, σ of the network": ("vae", {"per": "network", "scale": "exp", "link": "sigmoid", "minimum": 0.01}),
    "vae, fixed σ": ("vae", {"scale": 0.5, "kl": "sampled", "beta": 2.0}),
    "discrete vae": (
        "vae",
        {"posterior": "bernoulli", "gradient": "score", "baseline": "leave-one-out", "samples": 2, "likelihood": "bernoulli"},
    ),
    "vae, levels": ("vae", {"posterior": "categorical", "levels": 3, "gradient": "score", "baseline": "lagged"}),
    "vae, counts": ("vae", {"posterior": "poisson", "gradient": "score"}),
    "vae, unit interval": ("vae", {"posterior": "continuous-bernoulli"}),
    "vae, one-hot": ("vae", {"posterior": "one-hot-categorical", "categories": 3, "gradient": "score", "samples": 2}),
    "iwae": ("vae", {"objective": "iwae", "samples": 3, "likelihood": "bernoulli"}),
    "iwae, dreg": ("vae", {"objective": "iwae", "samples": 4, "gradient": "dreg", "posterior": "multivariate-normal"}),
    "iwae, denoising": ("vae", {"objective": "iwae", "samples": 2, "corruption": "masking:0.5"}),
    "bernoulli iwae": ("bernoulli-vae", {"objective": "iwae", "samples": 3, "gradient": "vimco", "likelihood": "bernoulli"}),
    "bernoulli iwae, two layers": ("bernoulli-vae", {"objective": "iwae", "samples": 3, "gradient": "vimco", "layers": 2}),
    "categorical iwae": ("categorical-vae", {"objective": "iwae", "samples": 3, "categories": 3}),
    "bernoulli vae": ("bernoulli-vae", {"likelihood": "bernoulli", "activation": "leaky-relu:0.3"}),
    "bernoulli vae, two layers": ("bernoulli-vae", {"layers": 2, "learn_prior": False}),
    "categorical vae": ("categorical-vae", {"categories": 3, "learn_prior": False}),
    "categorical vae, two layers": ("categorical-vae", {"categories": 3, "layers": 2, "likelihood": "bernoulli"}),
    "vae, discretised Normal": ("vae", {"likelihood": "discretised-normal", "levels": 4}),
    "vae, mixture of logistics": ("vae", {"likelihood": "logistic-mixture", "levels": 4, "logistics": 2}),
    "vae, beta-binomial": ("vae", {"likelihood": "beta-binomial", "levels": 4}),
    "vae, capacity": ("vae", {"capacity": 3.0, "capacity_warmup": 2.0, "beta": 10.0}),
    "miwae": ("vae", {"objective": "miwae", "groups": 2, "samples": 3, "gradient": "dreg"}),
    "piwae": ("vae", {"objective": "piwae", "groups": 3, "samples": 2}),
    "ciwae": ("vae", {"objective": "ciwae", "share": 0.3, "samples": 3, "activation": "gated"}),
    "rényi": ("vae", {"objective": "renyi", "alpha": 0.3, "samples": 3, "gradient": "dreg"}),
    "infovae": ("vae", {"objective": "info", "alpha": 0.5, "mmd_weight": 3.0, "kernel": "imq"}),
    "vae, mixture prior": ("vae", {"prior": "mixture", "components": 3}),
    "vae, vamp prior": ("vae", {"prior": "vamp", "components": 3, "likelihood": "bernoulli"}),
    "vae, flow prior": ("vae", {"prior": "flow", "transforms": 1}),
    "vae, spline prior, coupling posterior": ("vae", {"prior": "spline", "posterior": "coupling", "transforms": 1}),
    "hierarchical vae": ("hierarchical-vae", {"latents": [2, 1], "between": [3], "likelihood": "bernoulli"}),
    "hierarchical vae, ladder": ("hierarchical-vae", {"latents": [2, 1], "between": [3], "direction": "ladder"}),
}


def from_recipe(name: str) -> Model:
    recipe, options = RECIPES[name]
    code = {} if "latents" in options else {"latent": 2}
    return build(recipe, IMAGE, **{**code, "hidden": [6], "activation": "tanh", **options})


def _of_layers(direction: str, latents: Sequence[int], objective: Callable[[], Objective]) -> VAE:
    parts = hierarchy(EVENT, latents, [4], [4], direction=direction)
    return VAE(parts.prior, parts.posterior, conditionals.Bernoulli(parts.decoder, EVENT), objective())


HIERARCHIES: dict[str, Callable[[], Model]] = {
    "two Normal layers, bottom-up": lambda: _of_layers("bottom-up", (2, 1), lambda: objectives.IWAE(3)),
    "three Normal layers, bottom-up": lambda: _of_layers("bottom-up", (2, 1, 1), objectives.ELBO),
    "a ladder of two": lambda: _of_layers("ladder", (2, 1), lambda: objectives.ELBO(beta=1.0, warmup=2.0)),
    "a ladder of three": lambda: _of_layers("ladder", (2, 1, 1), lambda: objectives.IWAE(2)),
}


def _of_flows(posterior: str | None, prior: str | None, objective: Callable[[], Objective] = objectives.ELBO) -> VAE:
    body = MLP(EVENT, [6], "tanh")
    return VAE(
        priors.StandardNormal(3) if prior is None else priors.Flow(3, prior, 2, (6,)),
        conditionals.Normal(body, 3) if posterior is None else conditionals.Flow(body, 3, posterior, 2, (6,), context=2),
        conditionals.Normal(MLP(3, [6], "tanh"), EVENT),
        objective(),
    )


FLOWS: dict[str, Callable[[], Model]] = {
    "an inverse autoregressive posterior": lambda: _of_flows("iaf", None),
    "a coupling posterior, an autoregressive prior": lambda: _of_flows("coupling", "autoregressive", lambda: objectives.IWAE(2)),
    "a prior of couplings": lambda: _of_flows(None, "coupling"),
    "a prior of splines": lambda: _of_flows(None, "spline"),
}


def _of_learned(prior: nn.Module, posterior: str = "normal", objective: Callable[[], Objective] = objectives.ELBO) -> VAE:
    q = CONDITIONALS[posterior](MLP(EVENT, [6], "tanh"), LATENT)
    discrete = posterior == "bernoulli"
    gradient = gradients.LeaveOneOut() if discrete else gradients.Pathwise()
    chosen = objectives.ELBO(samples=2) if discrete else objective()
    return VAE(prior, q, CONDITIONALS["normal"](MLP(LATENT, [6], "tanh"), EVENT), chosen, gradient)


LEARNED: dict[str, Callable[[], Model]] = {
    "a mixture prior": lambda: _of_learned(priors.Mixture(LATENT, 3)),
    "a mixture prior, full": lambda: _of_learned(priors.Mixture(LATENT, 3, "full"), "multivariate-normal"),
    "a VampPrior": lambda: _of_learned(priors.VampPrior(LATENT, EVENT, 4), objective=lambda: objectives.IWAE(2)),
    "a VampPrior of bits, within bounds": lambda: _of_learned(priors.VampPrior(LATENT, EVENT, 4, (-1, 1)), "bernoulli"),
}

MODELS: dict[str, Callable[[], Model]] = {
    **_by_parts(),
    **LEARNED,
    **FLOWS,
    **HIERARCHIES,
    **{name: lambda name=name: from_recipe(name) for name in RECIPES},
}

# Objectives, each for a model of two Normal latents, or for a deterministic code where it asks for no prior.

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "elbo": lambda: objectives.ELBO(beta=2.0, samples=2),
    "elbo, sampled": lambda: objectives.ELBO(kl="sampled"),
    "elbo, free bits": lambda: objectives.ELBO(free_bits=0.4),
    "elbo, capacity": lambda: objectives.ELBO(beta=3.0, capacity=0.4, samples=2),
    "iwae": lambda: objectives.IWAE(3),
    "miwae": lambda: objectives.MIWAE(2, 2),
    "piwae": lambda: objectives.PIWAE(2, 2),
    "ciwae": lambda: objectives.CIWAE(0.3, 3),
    "renyi": lambda: objectives.Renyi(0.4, 3),
    "tc": lambda: objectives.TotalCorrelation(0.5, 6.0, 1.5, size=20, samples=2),
    "tc, weighted": lambda: objectives.TotalCorrelation(0.5, 6.0, 1.5, "weighted", size=20),
    "info": lambda: objectives.Info(0.2, 30.0, samples=2),
    "info, imq": lambda: objectives.Info(1.0, 10.0, "imq"),
    "squared error": objectives.SquaredError,
    "negative log-likelihood": objectives.NegativeLogLikelihood,
}


def examples(model: Model, n: int) -> Tensor:
    """Data that the model's likelihood can have made: drawn from it."""
    with torch.no_grad():
        like = next(model.parameters())
        return model.likelihood(like.new_zeros(n, *model.latent_shape)).sample()
