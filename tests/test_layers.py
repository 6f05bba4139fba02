"""Several stochastic layers: any estimator above any other, each for its own layer, against the exact gradient.

Each row of a batch is one estimate, with parameters of its own: of the first layer, of the second, and of f.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from catalogue import F64, bits, numbers
from xhat import gradients
from xhat.distributions import Chain
from xhat.errors import ConfigError
from xhat.gradients import GRADIENTS, REBAR, RELAX, DisARM, Enumerate, Gradient, Layers, Pathwise, Score, expectation

R = 3000


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def within(estimates: Tensor, truth: Tensor | float, errors: float = 4.5) -> None:
    """Independent estimates (R, …) have this mean; the errors are those of a maximum over many hundreds of coordinates."""
    estimates = estimates.detach()
    stderr = estimates.std(0) / math.sqrt(len(estimates))
    away = (estimates.mean(0) - truth).abs()
    assert (away <= errors * stderr + 1e-9).all(), f"off by {(away / stderr).max():.1f} standard errors"


def layer(logits: Tensor) -> td.Distribution:
    return td.Independent(td.Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)


def hidden(z: Tensor, weights: Tensor) -> Tensor:
    return (z.unsqueeze(-2) @ weights).squeeze(-2) - 0.2


def normal(loc: Tensor) -> td.Distribution:
    return td.Independent(td.Normal(loc, 0.8, validate_args=False), 1, validate_args=False)


AXIS = torch.linspace(-9.0, 9.0, 401, dtype=F64)[:, None]  # the trapezoidal rule is exact enough for what falls off like a Normal
STEP = (AXIS[1] - AXIS[0]).item()


def product(first: Tensor, second: Tensor) -> Tensor:
    """Every point of a first layer with every one of a second."""
    both = [torch.cat([a, b]) for a, b in itertools.product(first, second)]
    return torch.stack(both)


class Case(NamedTuple):
    """Parameters of the layers, the law that they make, the points of the sum or integral and what each of them weighs."""

    parameters: tuple[Tensor, ...]
    law: Callable[..., Chain]
    points: Tensor
    weight: float = 1.0


SQUARE = torch.tensor([[0.7, -0.4], [0.5, 1.1]], dtype=F64)
CASES = {
    "bits, bits": Case(
        (numbers(0.4, -0.7), SQUARE),
        lambda a, w: Chain(layer(a), lambda z: layer(hidden(z, w)), (2,), validate_args=False),
        bits(4),
    ),
    "Normal, bits": Case(
        (numbers(0.4), SQUARE[:1]),
        lambda a, w: Chain(normal(a), lambda z: layer(hidden(z, w)), (2,), validate_args=False),
        product(AXIS, bits(2)),
        STEP,
    ),
    "bits, Normal": Case(
        (numbers(0.4, -0.7), SQUARE[:, :1]),
        lambda a, w: Chain(layer(a), lambda z: normal(hidden(z, w)), (1,), validate_args=False),
        product(bits(2), AXIS),
        STEP,
    ),
    "categories, bits": Case(
        (numbers(0.4, -0.7, 0.9), torch.cat([SQUARE, -SQUARE[:1]])),
        lambda a, w: Chain(
            td.OneHotCategorical(logits=a, validate_args=False), lambda z: layer(hidden(z, w)), (2,), validate_args=False
        ),
        product(torch.eye(3, dtype=F64), bits(2)),
    ),
    "three layers of bits": Case(
        (numbers(0.4, -0.7), SQUARE, SQUARE.T - 0.5),
        lambda a, w, v: Chain(
            layer(a),
            lambda z: Chain(layer(hidden(z, w)), lambda y: layer(hidden(y, v)), (2,), validate_args=False),
            (4,),
            validate_args=False,
        ),
        bits(6),
    ),
}


def f_of(z: Tensor, theta: Tensor) -> Tensor:
    """No sum over elements or layers, differentiable, and with a parameter of its own."""
    return theta * (z.sum(-1) - 1.2).square() + z[..., 0] * z[..., -1] - torch.sin(z[..., -1] + 0.5 * z[..., 0])


def exact(name: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    case = CASES[name]
    at = [p.clone().requires_grad_() for p in case.parameters]
    theta = numbers(0.6).squeeze().requires_grad_()
    law = case.law(*at)
    mass = case.weight * law.log_prob(case.points).exp()
    assert mass.sum().item() == pytest.approx(1.0, abs=1e-8)
    value = (mass * f_of(case.points, theta)).sum()
    return value.detach(), torch.autograd.grad(value, [*at, theta])


EXACT = {name: exact(name) for name in CASES}


class Seen(NamedTuple):
    value: Tensor
    slopes: tuple[Tensor, ...]
    points: Tensor  # of f's first call
    values: Tensor
    count: int
    law: Chain


def estimate(name: str, estimator: Gradient, samples: int, count: int = R) -> Seen:
    case = CASES[name]
    at = [p.expand(count, *p.shape).clone().requires_grad_() for p in case.parameters]
    theta = torch.full((count,), 0.6, dtype=F64, requires_grad=True)
    seen: list[tuple[Tensor, Tensor]] = []

    def f(z: Tensor) -> Tensor:
        values = f_of(z, theta)
        seen.append((z.detach(), values.detach()))
        return values

    law = case.law(*at)
    value = expectation(f, law, estimator, samples)
    total = sum(len(z) for z, _ in seen)
    return Seen(value.detach(), torch.autograd.grad(value.sum(), [*at, theta]), *seen[0], total, law)


def gradients_for(law: td.Distribution) -> list[str]:
    return [
        name
        for name, cls in GRADIENTS.items()
        if cls().lacks(law) is None and "mean" in cls.reductions and "log weight" not in cls().requires
    ]


BITS = gradients_for(layer(torch.zeros(2)))
FEW = ["score", "rloo", "disarm", "rebar", "double-cv", "muprop", "enumerate", "carms", "straight-through"]
PAIRS = [
    *(("bits, bits", a, b) for a, b in itertools.product(BITS, BITS)),
    *(("Normal, bits", a, b) for a, b in itertools.product(gradients_for(normal(torch.zeros(1))), FEW)),
    *(("bits, Normal", a, b) for a, b in itertools.product(FEW, ["pathwise", "score", "rloo", "measure"])),
    *(
        ("categories, bits", a, b)
        for a, b in itertools.product(
            gradients_for(td.OneHotCategorical(torch.ones(3))), ["score", "disarm", "rebar", "enumerate"]
        )
    ),
]


def test_the_pairs_are_what_is_meant():
    assert set(BITS) == set(GRADIENTS) - {"pathwise", "stl", "dreg", "vimco"}
    assert len(PAIRS) > 300


@pytest.mark.parametrize(("name", "outer", "inner"), PAIRS)
def test_any_estimator_above_any_other(name, outer, inner):
    """Unbiased where both declare it, in both layers' parameters and in f's; an honest value; and the evaluations it tells."""
    estimator = Layers([GRADIENTS[outer](), GRADIENTS[inner]()])
    samples = estimator.usable(2)
    seen = estimate(name, estimator, samples, count=R if estimator.unbiased else 100)
    assert estimator.unbiased == (GRADIENTS[outer]().unbiased and GRADIENTS[inner]().unbiased)
    assert seen.count == estimator.evaluations(samples, seen.law)
    assert len(seen.points) == estimator.points(samples, seen.law)
    weights = estimator.weights(seen.law, seen.points)
    assert (weights is None) == estimator.plain == (GRADIENTS[outer]().plain and GRADIENTS[inner]().plain)
    if weights is None:
        torch.testing.assert_close(seen.value, seen.values.mean(0))
    else:
        torch.testing.assert_close(seen.value, (weights * seen.values).sum(0))
    if not estimator.unbiased:
        assert all(slope.isfinite().all() for slope in seen.slopes)
        return
    value, slopes = EXACT[name]
    within(seen.value, value)
    for found, truth in zip(seen.slopes, slopes, strict=True):
        within(found, truth)


@pytest.mark.parametrize(
    "names",
    [
        ("score", "score", "score"),
        ("rloo", "disarm", "double-cv"),
        ("disarm", "enumerate", "rloo"),
        ("rebar", "rloo", "muprop"),
        ("enumerate", "unordered-set", "score"),
        ("unordered-set", "enumerate", "sum-and-sample"),
        ("double-cv", "rebar", "disarm"),
        ("enumerate", "enumerate", "enumerate"),
    ],
)
def test_three_layers(names):
    estimator = Layers([GRADIENTS[name]() for name in names])
    samples = estimator.usable(2)
    seen = estimate("three layers of bits", estimator, samples, count=4000)
    assert seen.count == estimator.evaluations(samples, seen.law)
    weights = estimator.weights(seen.law, seen.points)
    honest = seen.values.mean(0) if weights is None else (weights * seen.values).sum(0)
    torch.testing.assert_close(seen.value, honest)
    value, slopes = EXACT["three layers of bits"]
    within(seen.value, value)
    for found, truth in zip(seen.slopes, slopes, strict=True):
        within(found, truth)
    if set(names) == {"enumerate"}:
        torch.testing.assert_close(seen.value[0], value)
        for found, truth in zip(seen.slopes, slopes, strict=True):
            torch.testing.assert_close(found[0], truth)


def test_a_biased_layer_biases_the_whole():
    """Straight-through at one layer, an exact sum at the other: the bias is in that layer's parameters."""
    for names, where in ((("enumerate", "straight-through"), 1), (("straight-through", "enumerate"), 0)):
        estimator = Layers([GRADIENTS[name]() for name in names])
        found = estimate("bits, bits", estimator, 1, count=20_000).slopes[where]
        stderr = found.std(0) / math.sqrt(len(found))
        assert ((found.mean(0) - EXACT["bits, bits"][1][where]).abs() > 8 * stderr).any()


def test_the_signal_of_a_layer_is_all_that_is_downstream():
    """f sees the second layer alone: the first one's gradient is that of what it does to the second."""
    start = numbers(0.4, -0.7)
    weights = torch.tensor([[2.0, -1.5], [1.0, 2.5]], dtype=F64)

    def law(a: Tensor) -> Chain:
        return Chain(layer(a), lambda z: layer(hidden(z, weights)), (2,), validate_args=False)

    def f(z: Tensor) -> Tensor:
        return 4 * z[..., 2] * z[..., 3]

    one = start.clone().requires_grad_()
    (truth,) = torch.autograd.grad((law(one).log_prob(bits(4)).exp() * f(bits(4))).sum(), one)
    assert truth.abs().max() > 0.3
    for names in (("score", "score"), ("disarm", "disarm"), ("rebar", "rebar"), ("double-cv", "straight-through")):
        a = start.expand(R, 2).clone().requires_grad_()
        value = expectation(f, law(a), Layers([GRADIENTS[name]() for name in names]), 2)
        (slope,) = torch.autograd.grad(value.sum(), a)
        if names[1] != "straight-through":
            within(slope, truth)
        assert slope.abs().max() > 0  # it is not that of an f without the layer below


def test_the_layers_below_are_drawn_anew_at_every_further_point():
    """An antithetic pair above: the two points meet second layers of their own, drawn from the laws that they make."""
    law = Chain(layer(torch.zeros(500, 2, dtype=F64)), lambda z: layer(20 * (2 * z - 1)), (2,), validate_args=False)
    kept = []
    expectation(lambda z: (kept.append(z), z.sum(-1))[1], law, Layers([DisARM(), Score()]), 2)
    assert len(kept) == 1
    assert kept[0].shape == (2, 500, 4)
    assert torch.equal(kept[0][..., :2], kept[0][..., 2:])  # the lower layer copies its own upper one
    assert torch.equal(kept[0][0], 1 - kept[0][1])


def test_more_draws_of_the_first_layer_only():
    estimator = Layers([DisARM(), DisARM()])
    assert [estimator.evaluations(n) for n in (2, 4, 8)] == [4, 8, 16]
    assert estimator.usable(3) == 4
    seen = estimate("bits, bits", estimator, 6)
    assert seen.count == 12
    within(seen.value, EXACT["bits, bits"][0])


def test_every_layer_is_trained_and_told():
    """Auxiliary losses of all layers, schedules and contexts reach each; once asked for, they are gone."""
    estimator = Layers([REBAR(), GRADIENTS["double-cv"](), gradients.Concrete(1.0, 0.1, 10.0)])
    estimator.at(10.0)
    assert estimator.gradients[2].schedule.now.item() == pytest.approx(0.1)
    assert estimator.auxiliary_loss() is None
    estimate("three layers of bits", estimator, 2, count=50)
    loss = estimator.auxiliary_loss()
    loss.backward()
    for own in estimator.parameters():
        assert (own.grad is not None) == own.requires_grad or own is estimator.gradients[0].log_temperature
    assert estimator.auxiliary_loss() is None
    network = torch.nn.Linear(3, 4)
    network.in_shape = (3,)
    context = Layers([Score(network), Score()])
    context.see(torch.zeros(100, 3))
    estimate("bits, bits", context, 2, count=100)
    assert context.auxiliary_loss().requires_grad


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Layers([DisARM()]), "Layers needs two gradients or more"),
        (lambda: Layers([DisARM(), "disarm"]), "Layers needs two gradients or more"),
        (lambda: Layers([DisARM(), gradients.STL()]), "STL is a gradient of a whole bound, not of one layer's expectation"),
        (lambda: Layers([gradients.VIMCO(), DisARM()]), "VIMCO is a gradient of a whole bound, not of one layer's expectation"),
    ],
)
def test_what_makes_no_sense_in_a_layer_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_a_layer_that_does_not_fit_its_law_is_refused_before_anything_is_drawn():
    law = CASES["bits, Normal"].law(*CASES["bits, Normal"].parameters)
    before = torch.get_rng_state()
    for names, words in ((("disarm", "disarm"), "Bernoulli"), (("pathwise", "pathwise"), "rsample")):
        with pytest.raises(ConfigError, match=words):
            expectation(lambda z: z.sum(-1), law, Layers([GRADIENTS[name]() for name in names]), 2)
    with pytest.raises(ConfigError, match="several stochastic layers"):
        expectation(lambda z: z.sum(-1), layer(torch.zeros(2)), Layers([DisARM(), DisARM()]), 2)
    with pytest.raises(ConfigError, match="serves no multi-sample bound"):
        expectation(lambda z: z.sum(-1), law, Layers([DisARM(), Pathwise()]), 2, gradients.LogMeanExp())
    assert torch.equal(torch.get_rng_state(), before)


def test_second_derivatives_are_refused():
    case = CASES["bits, bits"]
    at = [p.clone().requires_grad_() for p in case.parameters]
    value = expectation(lambda z: z.sum(-1).square(), case.law(*at), Layers([Score(), Score()]), 2)
    (slope,) = torch.autograd.grad(value, at[0], create_graph=True)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(slope.sum(), at)


# The same by hand: an f that takes an expectation itself

INNER = {
    "score": (lambda logits: td.Bernoulli(logits=logits, validate_args=False), 1),
    "rloo": (lambda logits: td.Bernoulli(logits=logits, validate_args=False), 2),
    "disarm": (lambda logits: td.Bernoulli(logits=logits, validate_args=False), 2),
    "enumerate": (lambda logits: td.Bernoulli(logits=logits, validate_args=False), 1),
    "pathwise": (lambda logits: td.Normal(logits, 0.7, validate_args=False), 1),
}


def outer_of(name: str) -> Gradient:
    if name == "rebar":
        return REBAR(learn_temperature=False)
    return RELAX(learn_temperature=False) if name == "relax" else GRADIENTS[name]()


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("outer", [name for name in BITS if GRADIENTS[name].unbiased])
def test_an_expectation_inside_f(outer, inner):
    """E over two bits b of E over y given b, with parameters in both laws and in f."""
    make, samples = INNER[inner]
    a = numbers(0.4, -0.6).expand(R, 2).clone().requires_grad_()
    w, theta = (torch.full((R,), v, dtype=F64, requires_grad=True) for v in (0.9, 0.5))

    def f(b: Tensor, w: Tensor, theta: Tensor, y_gradient: str, y_samples: int) -> Tensor:
        q = make(w * b[..., 0] - b[..., 1] + 0.3)
        return expectation(lambda y: theta * y.square() * (1 + b[..., 1]) + (y - b[..., 0]) ** 3, q, y_gradient, y_samples)

    estimator = outer_of(outer)
    value = expectation(lambda b: f(b, w, theta, inner, samples), layer(a), estimator, estimator.usable(2))
    slopes = torch.autograd.grad(value.sum(), (a, w, theta))
    at = [numbers(0.4, -0.6).requires_grad_(), *(torch.tensor(v, dtype=F64, requires_grad=True) for v in (0.9, 0.5))]
    mass = layer(at[0]).log_prob(bits(2)).exp()
    if inner == "pathwise":
        loc = at[1] * bits(2)[:, 0] - bits(2)[:, 1] + 0.3
        cube = (loc - bits(2)[:, 0]) ** 3 + 3 * (loc - bits(2)[:, 0]) * 0.49
        each = at[2] * (loc**2 + 0.49) * (1 + bits(2)[:, 1]) + cube
    else:
        each = f(bits(2), at[1], at[2], "enumerate", 1)
    truth = (mass * each).sum()
    within(value, truth.detach())
    for found, known in zip(slopes, torch.autograd.grad(truth, at), strict=True):
        within(found, known)


@pytest.mark.parametrize("outer", [REBAR, RELAX])
def test_a_temperature_cannot_be_learned_through_a_surrogate_and_the_error_says_so(outer):
    a = torch.zeros(5, 2, requires_grad=True)

    def f(b: Tensor) -> Tensor:
        return expectation(lambda y: y * b[..., 1], td.Bernoulli(logits=b[..., 0], validate_args=False), "score")

    with pytest.raises(ConfigError, match="learn_temperature=False"):
        expectation(f, layer(a), outer(), 2)
    value = expectation(f, layer(a), outer(learn_temperature=False), 2)
    assert torch.autograd.grad(value.sum(), a)[0].isfinite().all()
    with torch.no_grad():
        expectation(f, layer(a), outer(), 2)

    def smooth(b: Tensor) -> Tensor:  # an inner pathwise gradient can be differentiated twice
        return expectation(lambda y: y * b[..., 1], td.Normal(b[..., 0], 1.0))

    estimator = outer()
    assert torch.autograd.grad(expectation(smooth, layer(a), estimator, 2).sum(), a)[0].isfinite().all()
    estimator.auxiliary_loss().backward()
    assert estimator.log_temperature.grad is not None


def test_layers_agree_with_the_same_by_hand():
    """Same draws, same numbers: Layers is the nested expectation."""
    case = CASES["bits, bits"]
    at = [p.expand(50, *p.shape).clone().requires_grad_() for p in case.parameters]
    law = case.law(*at)
    torch.manual_seed(3)
    ours = expectation(lambda z: f_of(z, torch.tensor(0.6, dtype=F64)), law, Layers([Score(), Enumerate()]), 3)
    torch.manual_seed(3)

    def below(z: Tensor) -> Tensor:
        def at_second(y: Tensor) -> Tensor:
            return f_of(torch.cat([z.expand(len(y), *z.shape), y], -1), torch.tensor(0.6, dtype=F64))

        return expectation(at_second, law.then(z), "enumerate")

    by_hand = expectation(below, law.first, "score", 3)
    torch.testing.assert_close(ours, by_hand)
    for a, b in zip(torch.autograd.grad(ours.sum(), at), torch.autograd.grad(by_hand.sum(), at), strict=True):
        torch.testing.assert_close(a, b)


def test_a_parameter_that_a_lower_layer_learns_is_seen_before_it_is_drawn():
    """The measure-valued gradient has none in a Gamma's concentration: refused, also where only the layer above moves it."""
    a = torch.zeros(4, 1, dtype=F64, requires_grad=True)
    own = torch.ones(1, dtype=F64, requires_grad=True)

    def gamma(concentration: Tensor) -> td.Distribution:
        return td.Independent(td.Gamma(concentration, torch.ones_like(concentration)), 1)

    for then in (lambda z: gamma(own.expand_as(z)), lambda z: gamma(z.exp())):
        law = Chain(normal(a), then, (1,), validate_args=False)
        with pytest.raises(ConfigError, match="weak derivative"):
            expectation(lambda z: z.sum(-1), law, Layers([Pathwise(), GRADIENTS["measure"]()]), 2)
