"""Estimators with a state of their own: baselines, and control variates that train on the gradient's variance."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

from catalogue import F64, GRADIENTS, numbers
from proofs import FITS, ForcedBernoulli, independent, shown, within
from xhat.errors import ConfigError
from xhat.gradients import REBAR, RELAX, ContextBaseline, DoubleCV, Gradient, Score, expectation
from xhat.networks import MLP

ON_BITS = [name for name, law in FITS if law == "bits in a wave"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# Training an estimator's own parameters, and nothing else


OWNERS = [name for name in ON_BITS if list(GRADIENTS[name]().parameters())]


@pytest.mark.parametrize("name", OWNERS)
def test_the_auxiliary_loss_trains_the_estimator_and_nothing_else(name):
    logits = torch.randn(6, 3, dtype=F64, requires_grad=True)
    network = nn.Sequential(nn.Linear(3, 4, dtype=F64), nn.Tanh(), nn.Linear(4, 1, dtype=F64))
    q, estimator = independent(logits), GRADIENTS[name]()
    before = [p.clone() for p in estimator.parameters()]
    value = expectation(lambda z: network(z).squeeze(-1).exp(), q, shown(estimator, q), estimator.usable(2))
    loss = estimator.auxiliary_loss()
    assert loss.shape == ()
    assert loss.isfinite()
    assert estimator.auxiliary_loss() is None
    loss.backward()
    assert logits.grad is None
    assert all(p.grad is None for p in network.parameters())
    moved = [p.grad for p in estimator.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert moved
    estimator.zero_grad()
    value.sum().backward()  # and the estimate trains those, and not the estimator
    assert logits.grad.abs().sum() > 0
    assert all(p.grad is not None for p in network.parameters())
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in estimator.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, estimator.parameters(), strict=True))
    estimator.eval()
    expectation(lambda z: network(z).squeeze(-1), independent(logits), shown(estimator, q), estimator.usable(2))
    assert estimator.auxiliary_loss() is None


def mean_square(estimator: Gradient, logits: Tensor, f: Callable, samples: int, contexts: Tensor | None = None) -> float:
    """The gradient's variance, summed over coordinates, up to the square of its mean."""
    at = logits.clone().requires_grad_()
    if contexts is not None:
        estimator.see(contexts)
    value = expectation(f, independent(at), estimator, samples)
    return torch.autograd.grad(value.sum(), at)[0].square().sum(-1).mean().item()


def train(estimator: Gradient, logits: Tensor, f: Callable, samples: int, steps: int, contexts: Tensor | None = None) -> None:
    optimiser = torch.optim.Adam(estimator.parameters(), lr=0.03)
    for _ in range(steps):
        if contexts is not None:
            estimator.see(contexts)
        expectation(f, independent(logits.clone().requires_grad_()), estimator, samples)
        optimiser.zero_grad()
        estimator.auxiliary_loss().backward()
        optimiser.step()


def _started(estimator: Gradient, **values: float) -> Gradient:
    with torch.no_grad():
        for name, value in values.items():
            getattr(estimator, name).fill_(value)
    return estimator


def curved(z: Tensor) -> Tensor:
    return (z.sum(-1) - 1.45) ** 2 + 2 * z[..., 0] * z[..., 1]


@pytest.mark.parametrize(
    ("make", "samples", "share"),
    [
        (lambda: _started(REBAR(), scale=0.0), 1, 0.7),
        (lambda: _started(REBAR(5.0), scale=1.0), 1, 0.95),
        (lambda: _started(REBAR(learn_temperature=False), scale=-0.5), 1, 0.6),
        (lambda: RELAX(through_f=False), 1, 0.9),
        (lambda: _started(RELAX(), scale=0.0), 1, 0.7),
        (lambda: _started(DoubleCV(), alpha=-0.5), 2, 0.8),
    ],
    ids=["rebar", "rebar from a bad temperature", "rebar, temperature held", "relax, without f", "relax", "double-cv"],
)
def test_training_on_the_auxiliary_loss_lowers_the_variance(make, samples, share):
    estimator, logits = make(), numbers(0.4, -0.8, 0.1, 1.0).expand(500, 4)
    big = logits[:1].expand(20_000, 4)
    before = mean_square(estimator, big, curved, samples)
    train(estimator, logits, curved, samples, 150)
    assert mean_square(estimator, big, curved, samples) < share * before
    at = big.clone().requires_grad_()  # and it is as unbiased as before
    exact_at = logits[0].clone().requires_grad_()
    value = expectation(curved, independent(at), estimator, samples)
    exact = expectation(curved, independent(exact_at), "enumerate")
    within(torch.autograd.grad(value.sum(), at)[0], torch.autograd.grad(exact, exact_at)[0])


@pytest.mark.parametrize("law", [independent, lambda logits: td.OneHotCategorical(logits=logits)], ids=["bits", "one-hot"])
@pytest.mark.parametrize("name", ["rebar", "relax", "double-cv"])
def test_the_auxiliary_loss_is_the_variance_and_its_derivative(name, law):
    """The mean over examples of the squared gradient, differentiated numerically in the estimator's own parameters."""
    logits = numbers(0.4, -0.8, 0.1).expand(50, 3)

    def estimate(estimator: Gradient) -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        at = logits.clone().requires_grad_()
        value = expectation(curved, law(at), estimator, 2)
        return estimator.auxiliary_loss(), torch.autograd.grad(value.sum(), at)[0]

    estimator = GRADIENTS[f"{name}, stirred"]().to(F64)
    loss, slopes = estimate(estimator)
    assert loss.item() == pytest.approx(slopes.square().sum(-1).mean().item())
    loss.backward()
    for parameter in estimator.parameters():
        flat, slope = parameter.data.view(-1), parameter.grad.reshape(-1)
        for i in range(0, len(flat), 7):
            ends = []
            for step in (1e-5, -2e-5):
                flat[i] += step
                ends.append(estimate(estimator)[0].item())
            flat[i] += 1e-5
            assert slope[i].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-7)


def test_a_network_of_the_context_learns_what_f_is_about_and_lowers_the_variance():
    contexts = torch.randn(400, 3, dtype=F64)
    logits = torch.zeros(400, 2, dtype=F64)
    estimator = Score(MLP(3, [16], "tanh").to(F64)).to(F64)

    def f(z: Tensor) -> Tensor:
        return 10 * contexts[:, 0] + z.sum(-1)

    start = mean_square(Score(), logits, f, 1)
    train(estimator, logits, f, 1, 200, contexts)
    estimator.eval()
    assert mean_square(estimator, logits, f, 1, contexts) < 0.1 * start


def test_a_network_of_the_context_must_have_seen_one():
    estimator = Score(MLP(3, [4]))
    with pytest.raises(ConfigError, match=r"a network of the context and was shown none: call gradient.see\(context\) first"):
        expectation(lambda z: z, td.Bernoulli(logits=torch.zeros(4, requires_grad=True)), estimator)


def test_a_context_s_graph_is_not_followed():
    context = torch.randn(5, 3, dtype=F64, requires_grad=True)
    baseline = ContextBaseline(MLP(3, [4]).to(F64)).to(F64)
    assert not baseline(context).requires_grad
    baseline.loss(context, torch.ones(5, dtype=F64, requires_grad=True)).backward()
    assert context.grad is None


@pytest.mark.parametrize("name", ON_BITS)
def test_an_estimator_is_copied_and_restored_after_it_was_used(name):
    logits = torch.randn(6, 3, dtype=F64, requires_grad=True)
    q, estimator = independent(logits), GRADIENTS[name]()
    for _ in range(2):
        expectation(curved, q, shown(estimator, q), estimator.usable(2))
    again, restored = copy.deepcopy(estimator), GRADIENTS[name]()
    restored.load_state_dict(estimator.state_dict())
    assert again.auxiliary_loss() is None
    slopes = []
    for each in (estimator, again, restored):
        torch.manual_seed(5)
        at = logits.detach().clone().requires_grad_()
        value = expectation(curved, independent(at), shown(each, q), each.usable(2))
        slopes.append(torch.autograd.grad(value.sum(), at)[0])
    assert torch.equal(slopes[0], slopes[1])
    assert torch.equal(slopes[0], slopes[2])


# The lagged baseline


def lagged_slope(estimator: Score, draw: float) -> float:
    logits = numbers(0.0).requires_grad_()
    q = ForcedBernoulli(logits=logits)
    q.forced = numbers(draw)[None]
    return torch.autograd.grad(expectation(lambda b: 10 + b, q, estimator).sum(), logits)[0].item()


def test_the_lagged_baseline_is_the_weighted_mean_of_earlier_values_only():
    estimator = Score("lagged", decay=0.5)
    assert lagged_slope(estimator, 1.0) == pytest.approx(11 * 0.5)  # nothing came before
    assert lagged_slope(estimator, 0.0) == pytest.approx((10 - 11) * -0.5)
    mean = (0.25 * 11 + 0.5 * 10) / 0.75
    assert lagged_slope(estimator, 1.0) == pytest.approx((11 - mean) * 0.5)


def test_the_lagged_baseline_stays_as_it_is_in_evaluation_mode():
    estimator = Score("lagged")
    lagged_slope(estimator, 1.0)
    before = {name: value.clone() for name, value in estimator.state_dict().items()}
    estimator.eval()
    assert lagged_slope(estimator, 0.0) == lagged_slope(estimator, 0.0) == pytest.approx((10 - 11) * -0.5, rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in estimator.state_dict().items())


def test_the_lagged_baseline_is_saved_and_restored():
    estimator, again = Score("lagged"), Score("lagged")
    for draw in (1.0, 0.0, 1.0):
        lagged_slope(estimator, draw)
    again.load_state_dict(estimator.state_dict())
    assert lagged_slope(again, 1.0) == lagged_slope(estimator, 1.0)
    assert estimator.lagged.average != 0


def test_the_lagged_baseline_holds_nothing_of_a_deeper_layer_that_shares_it():
    """The deeper layer's values are taken at this layer's draw: a baseline that has met them would depend on that draw."""
    estimator, slopes = Score("lagged", decay=0.0), []
    for draw in (0.0, 1.0):
        estimator.load_state_dict({"lagged.average": torch.tensor(2.0), "lagged.seen": torch.tensor(1.0)})
        logits = numbers(0.0).requires_grad_()
        q = ForcedBernoulli(logits=logits)
        q.forced = numbers(draw)[None]

        def f(b: Tensor) -> Tensor:
            return expectation(lambda y: 0 * y + 100 * b, td.Bernoulli(probs=torch.full_like(b, 0.5)), estimator)

        (slope,) = torch.autograd.grad(expectation(f, q, estimator).sum(), logits)
        slopes.append(slope.item())
    assert slopes == [pytest.approx((0 - 2) * -0.5), pytest.approx((100 - 2) * 0.5)]


def test_every_estimator_that_is_shared_by_layers_holds_nothing_of_the_deeper_one():
    """The same with a network of the context, whose running average is a baseline, too."""
    estimator = Score(MLP(3, [4]).to(F64), decay=0.0).to(F64)
    for parameter in estimator.parameters():
        nn.init.zeros_(parameter)
    slopes = []
    for draw in (0.0, 1.0):
        estimator.learned.lagged.load_state_dict({"average": torch.tensor(2.0), "seen": torch.tensor(1.0)})
        logits = numbers(0.0).requires_grad_()
        q = ForcedBernoulli(logits=logits)
        q.forced = numbers(draw)[None]
        estimator.see(torch.zeros(1, 3, dtype=F64))

        def f(b: Tensor) -> Tensor:
            below = td.Bernoulli(probs=torch.full_like(b, 0.5))
            return expectation(lambda y: 0 * y + 100 * b, below, estimator)

        (slope,) = torch.autograd.grad(expectation(f, q, estimator).sum(), logits)
        slopes.append(slope.item())
    assert slopes == [pytest.approx((0 - 2) * -0.5), pytest.approx((100 - 2) * 0.5)]
