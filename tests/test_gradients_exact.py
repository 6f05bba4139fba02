"""Estimators whose own randomness is finite, or piecewise polynomial: all of it, with its weights, and no chance left."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from catalogue import F64, GRADIENTS, bits, numbers
from proofs import (
    exactly,
    forced_bits,
    forced_categories,
    forced_repelled,
    forced_sets,
    forced_uniforms,
    independent,
    one_hots,
    patterns,
    within,
)
from xhat.gradients import CARMS, Gradient, SumAndSample, UnorderedSet, antithetic, expectation, without_replacement

LOGITS = numbers(0.7, -1.3)
TABLE = torch.tensor([[0.2, 0.9, -0.5], [1.0, -1.0, 0.3]], dtype=F64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tangled(z: Tensor, logits: Tensor) -> Tensor:
    """A random function of bits: a polynomial with interactions, an exponential, a sine, and the law's parameters."""
    draw = torch.Generator().manual_seed(1)
    a, b, c = (torch.randn(z.shape[-1], generator=draw, dtype=F64) for _ in range(3))
    return (a * z).sum(-1) ** 3 + ((b * z).sum(-1) + logits[..., 0]).exp() * z[..., 0] + torch.sin((c * z).sum(-1) * 3)


def tangled_categories(z: Tensor, logits: Tensor) -> Tensor:
    return tangled(z.flatten(-2), logits.flatten(-2))


def truth(logits: Tensor, law: Callable, f: Callable) -> tuple[Tensor, Tensor]:
    at = logits.clone().requires_grad_()
    value = expectation(lambda z: f(z, at), law(at), "enumerate")
    return value.detach(), torch.autograd.grad(value, at)[0]


def equals(estimator: Gradient, samples: int, logits: Tensor, law: Callable, f: Callable, weight: Tensor) -> None:
    """The mean of all estimates is the derivative, in each coordinate, and that of the values the value."""
    value, slope = truth(logits, law, f)
    found = exactly(estimator, samples, logits, law, f, weight)
    torch.testing.assert_close(found.mean, slope, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.value, value, rtol=1e-9, atol=1e-11)


def test_the_truth_itself_is_the_sum_that_a_person_would_write():
    at = LOGITS.clone().requires_grad_()
    p = at.sigmoid()
    by_hand = sum(
        torch.stack([p[i] if b else 1 - p[i] for i, b in enumerate(z)]).prod() * tangled(torch.tensor(z, dtype=F64), at)
        for z in itertools.product((0, 1), repeat=2)
    )
    value, slope = truth(LOGITS, independent, tangled)
    torch.testing.assert_close(by_hand.detach(), value)
    torch.testing.assert_close(torch.autograd.grad(by_hand, at)[0], slope)


INDEPENDENT = ("score", "score, leave-one-out", "score, network", "rloo", "measure", "muprop", "double-cv", "double-cv, stirred")


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("name", INDEPENDENT)
def test_over_all_independent_draws_of_bits(name, more, monkeypatch):
    estimator = GRADIENTS[name]()
    samples = estimator.fewest_samples + more
    equals(estimator, samples, LOGITS, independent, tangled, forced_bits(monkeypatch, LOGITS, samples))


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("name", INDEPENDENT)
def test_over_all_independent_draws_of_categories(name, more, monkeypatch):
    estimator = GRADIENTS[name]()
    samples = estimator.fewest_samples + more
    equals(estimator, samples, TABLE, one_hots, tangled_categories, forced_categories(monkeypatch, TABLE, samples))


@pytest.mark.parametrize("samples", [2, 4])
@pytest.mark.parametrize("name", ["arm", "disarm"])
def test_over_all_antithetic_pairs(name, samples, monkeypatch):
    weight = forced_uniforms(monkeypatch, LOGITS, samples)
    equals(GRADIENTS[name](), samples, LOGITS, independent, tangled, weight)


@pytest.mark.parametrize("samples", [2, 3, 4, 5])
def test_arms_over_all_ways_in_which_its_draws_can_repel_each_other(samples, monkeypatch):
    weight = forced_repelled(monkeypatch, (-LOGITS.abs()).sigmoid(), samples)
    equals(GRADIENTS["arms"](), samples, LOGITS, independent, tangled, weight)


def _stops(logits: Tensor) -> Tensor:
    """Of categories in the order of rising probability: that of stopping at each, having come so far."""
    p = logits.softmax(-1).sort(-1).values
    return (p / p.flip(-1).cumsum(-1).flip(-1))[..., :-1]


@pytest.mark.parametrize("samples", [2, 3])
def test_carms_over_all_ways_in_which_its_draws_can_repel_each_other(samples, monkeypatch):
    weight = forced_repelled(monkeypatch, _stops(TABLE), samples)
    equals(CARMS(), samples, TABLE, one_hots, tangled_categories, weight)


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_carms_for_one_variable_of_four_categories(samples, monkeypatch):
    logits = numbers(0.2, 0.2, -1.5, 1.0)[None]  # two of them alike
    weight = forced_repelled(monkeypatch, _stops(logits), samples)
    equals(CARMS(), samples, logits, one_hots, tangled_categories, weight)


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_the_draws_repel_each_other_as_their_formula_says(samples):
    rare = numbers(0.5, 0.3, 0.01).expand(40_000, 3)
    hits, probability = patterns(numbers(0.5, 0.3, 0.01), samples)
    drawn = antithetic._repelled(rare, samples)
    for pattern, known in zip(hits, probability, strict=True):
        within((drawn == pattern.reshape(-1, 1, 1)).all(0).to(F64), known)
    together = (drawn[0] & drawn[1]).to(F64)
    within(together, antithetic._both(numbers(0.5, 0.3, 0.01), samples))


def _set_problem(kind: str) -> tuple[Tensor, Callable, Callable, Tensor, Tensor]:
    """Logits, law, f, all points as category numbers ``(N, n)``, and their probabilities."""
    if kind == "bits":
        logits = numbers(0.7, -1.3, 0.2)
        points = bits(3)
        both = torch.stack([-logits, logits], -1)
    else:
        logits = TABLE if kind == "categories" else numbers(0.5, -1.0, 0.3, 2.0)[None]
        points = bits(len(logits), tuple(range(logits.shape[-1])))
        both = logits
    log_p = both.softmax(-1) if kind != "bits" else torch.stack([(-logits).sigmoid(), logits.sigmoid()], -1)
    mass = log_p[torch.arange(len(log_p)), points.long()].prod(-1)
    return (
        logits,
        independent if kind == "bits" else one_hots,
        tangled if kind == "bits" else tangled_categories,
        points.long(),
        mass,
    )


@pytest.mark.parametrize("samples", [2, 3, 4])
@pytest.mark.parametrize("kind", ["bits", "categories", "one variable"])
def test_sum_and_sample_over_all_that_it_can_draw(kind, samples, monkeypatch):
    logits, law, f, points, mass = _set_problem(kind)
    best = mass.topk(samples - 1).indices.tolist()
    weight = forced_sets(monkeypatch, points, mass, 1, given=best)
    equals(SumAndSample(), samples, logits, law, f, weight)


@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize("kind", ["bits", "categories", "one variable"])
def test_the_unordered_set_over_all_orders_in_which_it_can_be_drawn(kind, samples, monkeypatch):
    logits, law, f, points, mass = _set_problem(kind)
    equals(UnorderedSet(), samples, logits, law, f, forced_sets(monkeypatch, points, mass, samples))


def test_a_set_of_all_values_but_one_needs_no_luck(monkeypatch):
    """With all values but one summed, that one is all that can be drawn."""
    logits, law, f, points, mass = _set_problem("one variable")
    best = mass.topk(3).indices.tolist()
    found = exactly(SumAndSample(), 4, logits, law, f, forced_sets(monkeypatch, points, mass, 1, given=best))
    torch.testing.assert_close(found.mean, truth(logits, law, f)[1])
    assert found.variance.abs().max() < 1e-12


def test_the_most_probable_combinations_are_found_exactly():
    logits = torch.randn(5, 4, 3, dtype=F64).log_softmax(-1)
    index = without_replacement._most_probable(logits, 20).movedim(0, 1)
    every = bits(4, (0, 1, 2)).long()
    for example, found in zip(logits, index, strict=True):
        mass = example[torch.arange(4), every].sum(-1)
        chosen = example[torch.arange(4), found].sum(-1)
        torch.testing.assert_close(chosen, mass.topk(20).values)
        assert len(found.unique(dim=0)) == 20


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_what_is_drawn_from_the_rest_has_the_rest_s_law(taken):
    logits = torch.tensor([[0.2, 0.9, -0.5], [1.0, -1.0, 0.3]], dtype=F64).log_softmax(-1)
    points = bits(2, (0, 1, 2)).long()
    mass = logits[torch.arange(2), points].sum(-1).exp()
    gone = points[torch.tensor([0, 4, 6][:taken], dtype=torch.long)]
    known = mass.clone()
    known[[0, 4, 6][:taken]] = 0
    drawn = without_replacement._draw_outside(logits.expand(40_000, 2, 3), gone[:, None].expand(taken, 40_000, 2))[0]
    hits = (drawn[:, None] == points).all(-1).to(F64)
    within(hits, known / known.sum())
    assert hits[:, known == 0].sum() == 0
