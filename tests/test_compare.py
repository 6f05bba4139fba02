"""The laboratory: what it measures is true, what does not fit is told, and what it recommends is the cheapest."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from catalogue import F64, bits, numbers
from xhat import gradients
from xhat.errors import ConfigError
from xhat.gradients import GRADIENTS, REBAR, Concrete, LogMeanExp, LogWeight, Score, compare

T, P = 0.45, 0.3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def toy(t: float = T, p: float = P) -> tuple:
    logit = torch.tensor([math.log(p / (1 - p))], dtype=F64, requires_grad=True)
    return (lambda b: (b - t) ** 2), (lambda: td.Bernoulli(logits=logit)), logit


def rows(result) -> dict:
    return {row.name: row for row in result}


@pytest.fixture(scope="module")
def whole():
    torch.manual_seed(0)
    return compare(*toy(), samples=4, repeats=150, train=20)


def test_every_gradient_is_run_or_told_why_not(whole):
    names = set(GRADIENTS) | {"pathwise, antithetic", "pathwise, sobol"}
    assert set(rows(whole)) | set(whole.misfits) == names
    assert not set(rows(whole)) & set(whole.misfits)
    assert "rsample" in whole.misfits["pathwise"]
    assert "multi-sample bounds" in whole.misfits["vimco"]
    assert whole.reference == "enumerated"
    for name in ("disarm", "arms", "rebar", "measure", "enumerate", "straight-through"):
        assert name in rows(whole)


def test_nothing_takes_more_values_of_f_than_were_allowed(whole):
    for row in whole:
        assert 1 <= row.evaluations <= 4
    taken = {name: (row.samples, row.evaluations) for name, row in rows(whole).items()}
    assert taken["score"] == (4, 4)
    assert taken["rebar"] == (2, 4)
    assert taken["muprop"] == (3, 4)
    assert taken["enumerate"] == (1, 2)


def test_a_budget_that_is_too_small_is_a_reason():
    result = compare(*toy(), ["score", "rloo", "rebar", "enumerate", "measure"], samples=1, repeats=10)
    assert set(rows(result)) == {"score"}
    assert all("1 were allowed" in result.misfits[name] for name in ("rloo", "rebar", "enumerate", "measure"))


def test_the_bias_is_about_one_standard_error_where_there_is_none():
    """Over 12 coordinates, a root mean square near 1; a biased gradient is tens of them away."""
    logits = torch.linspace(-1, 1, 12, dtype=F64).reshape(4, 3).requires_grad_()

    def f(z: Tensor) -> Tensor:
        return (z.sum(-1) - 1.2) ** 2 * 3 + z[..., 0] * z[..., 1]

    names = ["score", "rloo", "disarm", "arms", "arm", "muprop", "straight-through", "concrete"]
    result = compare(f, lambda: td.Independent(td.Bernoulli(logits=logits), 1), logits, names, samples=4, repeats=1500)
    assert result.reference == "enumerated"
    for name, row in rows(result).items():
        assert row.unbiased == GRADIENTS[name].unbiased
        if row.unbiased:
            assert 0.4 < row.bias < 1.8
            assert row.worst < 4
            assert row.relative_bias < 0.1
    assert rows(result)["straight-through"].bias > 8
    assert rows(result)["straight-through"].relative_bias > 0.03


@pytest.mark.parametrize(
    ("name", "samples", "variance"), [("score", 1, 1.5594e-2), ("rloo", 2, 6.09e-4), ("arm", 2, 3.39e-4), ("disarm", 2, 2.94e-4)]
)
def test_the_known_variances_come_out(name, samples, variance):
    """Within 4 standard errors of an estimated variance, whose own kurtosis is that of the estimates."""
    repeats = 2000
    row = compare(*toy(), [name], samples=samples, repeats=repeats)[0]
    truth = P * (1 - P) * (1 - 2 * T)
    logit = torch.full((20_000,), math.log(P / (1 - P)), dtype=F64, requires_grad=True)
    value = gradients.expectation(lambda b: (b - T) ** 2, td.Bernoulli(logits=logit), name, samples)
    fourth = (torch.autograd.grad(value.sum(), logit)[0] - truth).pow(4).mean().item()
    assert row.variance == pytest.approx(variance, abs=4 * math.sqrt((fourth - variance**2) / repeats) + 2e-3 * variance)
    assert row.snr == pytest.approx(truth / math.sqrt(row.variance))
    assert row.cost == pytest.approx(row.variance * row.seconds)
    assert row.seconds > 0
    assert list(row.spread) == sorted(row.spread)
    assert row.spread[0] <= row.mean <= row.spread[-1]


def test_the_variances_of_a_square_under_a_normal():
    at = [torch.ones(1, dtype=F64, requires_grad=True) for _ in range(2)]
    two = torch.full((1,), 2.0, dtype=F64)
    result = compare(lambda z: z**2, lambda: td.Normal(*at), at, ["score", "pathwise"], samples=1, repeats=2000, exact=[two, two])
    assert result.reference == "given"
    assert rows(result)["score"].variance == pytest.approx(30 + 136, rel=0.25)
    assert rows(result)["pathwise"].variance == pytest.approx(4 + 12, rel=0.15)
    assert all(row.bias < 2.5 for row in result)
    assert result.recommended == "pathwise"


def test_antithetic_and_quasi_random_noise_have_rows_of_their_own():
    at = [torch.ones(1, dtype=F64, requires_grad=True) for _ in range(2)]
    result = compare(lambda z: torch.tanh(z), lambda: td.Normal(*at), at, samples=8, repeats=100)
    found = rows(result)
    assert found["pathwise, sobol"].variance < found["pathwise"].variance / 4
    assert {"pathwise, antithetic", "score", "rloo", "measure"} <= set(found)
    assert "disarm" in result.misfits
    assert result.reference == "pathwise, sobol"  # nothing exact is known: the steadiest unbiased one serves
    assert math.isnan(found["pathwise, sobol"].bias)
    assert all(row.bias < 3 for name, row in found.items() if name != result.reference and row.unbiased)


def test_a_wrong_truth_shows_as_a_bias():
    f, q, logit = toy()
    result = compare(f, q, logit, ["score", "rloo"], samples=2, repeats=500, exact=torch.tensor([0.2], dtype=F64))
    assert all(row.bias > 10 for row in result)


def test_the_recommendation_is_the_least_variance_times_seconds_among_the_unbiased(whole):
    steady = [row for row in whole if row.unbiased]
    exact = [row for row in steady if row.variance == 0]
    if exact:
        assert whole.recommended == min(exact, key=lambda row: row.seconds).name
    assert whole.recommended in whole.reason
    result = compare(*toy(), ["score", "rloo", "arm", "straight-through"], samples=2, repeats=300)
    best = min((row for row in result if row.unbiased), key=lambda row: row.cost)
    assert result.recommended == best.name
    second = min((row for row in result if row.unbiased and row is not best), key=lambda row: row.cost)
    assert f"times less than {second.name}" in result.reason
    lone = compare(*toy(), ["straight-through", "concrete"], samples=2, repeats=50)
    assert lone.recommended is None
    assert "no unbiased gradient fits" in lone.reason


def test_an_exact_gradient_has_no_variance_no_bias_and_an_infinite_ratio_also_in_single_precision():
    """What rounding alone does is no bias: t = ½ leaves DisARM nothing, in float32 as well."""
    for dtype in (torch.float32, F64):
        logit = torch.zeros(1, dtype=dtype, requires_grad=True)
        found = rows(compare(lambda b: (b - 0.45) ** 2, td.Bernoulli(logits=logit), logit, ["disarm", "enumerate"], 2, 30))
        for row in found.values():
            assert (row.variance, row.bias, row.snr, row.cost) == (0.0, 0.0, math.inf, 0.0)


def test_the_result_is_plain_data_and_a_table(whole):
    data = json.loads(json.dumps(whole.as_dict(), allow_nan=False))
    assert len(data["rows"]) == len(whole)
    assert data["recommended"] == whole.recommended
    assert data["repeats"] == 150
    assert set(data["misfits"]) == set(whole.misfits)
    named = {row["name"]: row for row in data["rows"]}
    assert named["enumerate"]["snr"] is None  # infinite
    text = str(whole)
    for name in [*rows(whole), *whole.misfits]:
        assert name in text
    assert whole.reason in text
    assert "(biased)" in text


def test_the_law_may_be_given_made_anew_or_made_with_f():
    f, q, logit = toy()
    seeded = []
    for given in ((f, q()), (f, q), (None, lambda: (q(), f))):
        torch.manual_seed(4)
        seeded.append(compare(*given, logit, ["rloo"], samples=2, repeats=50)[0])
    assert seeded[0].variance == seeded[1].variance == seeded[2].variance
    assert seeded[0].bias == seeded[1].bias == seeded[2].bias


def test_multi_sample_bounds_are_compared_too():
    logits = numbers(0.4, -0.9).requires_grad_()
    table = numbers(0.3, -1.2, 0.8, 1.5)

    def problem():
        q = td.Independent(td.Bernoulli(logits=logits), 1)
        return q, LogWeight(lambda z: table[(2 * z[..., 0] + z[..., 1]).long()], q)

    result = compare(None, problem, logits, samples=3, repeats=200, reduce=LogMeanExp())
    assert set(rows(result)) == {"score", "rloo", "vimco"}
    assert "multi-sample" in result.misfits["disarm"]
    one = logits.detach().clone().requires_grad_()
    law = td.Independent(td.Bernoulli(logits=one), 1)
    log_q = law.log_prob(bits(2))
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    value = (log_q[every].sum(1).exp() * ((table - log_q)[every].logsumexp(1) - math.log(3))).sum()
    (exact,) = torch.autograd.grad(value, one)
    torch.manual_seed(1)
    again = compare(None, problem, logits, ["vimco", "rloo"], samples=3, repeats=1000, reduce=LogMeanExp(), exact=exact)
    assert all(row.bias < 3 for row in again)
    loc = torch.zeros(1, dtype=F64, requires_grad=True)

    def normal():
        q = td.Normal(loc, 1.0)
        return q, LogWeight(lambda z: -(z - 1).square(), q)

    path = compare(None, normal, loc, ["dreg", "stl", "vimco", "pathwise"], samples=4, repeats=200, reduce=LogMeanExp())
    assert set(rows(path)) == {"dreg", "vimco", "pathwise"}
    assert rows(path)["dreg"].variance < rows(path)["pathwise"].variance


def test_a_function_that_jumps_shows_the_bias_of_pathwise_and_stops_nothing():
    loc = torch.full((1,), 0.4, dtype=F64, requires_grad=True)
    exact = td.Normal(0.0, 1.0).log_prob(torch.tensor([0.4], dtype=F64)).exp()
    result = compare(lambda z: (1 + z.sign()) / 2, lambda: td.Normal(loc, 1.0), loc, ["pathwise", "score"], 4, 300, exact=exact)
    found = rows(result)
    assert found["pathwise"].relative_bias == pytest.approx(1.0)
    assert found["pathwise"].bias == math.inf
    assert found["score"].bias < 4


def test_f_that_cannot_be_relaxed_leaves_those_who_need_it_out():
    logits = torch.zeros(3, 2, dtype=F64, requires_grad=True)
    q = td.Independent(td.Bernoulli(logits=logits), 1)
    inner = td.Independent(td.Bernoulli(torch.full((3, 2), 0.4, dtype=F64)), 1)  # validates its arguments
    result = compare(inner.log_prob, q, logits, ["score", "rebar", "concrete", "disarm"], samples=2, repeats=10)
    assert set(rows(result)) == {"score", "disarm"}
    assert "refuses relaxed values" in result.misfits["rebar"]


def test_estimators_with_options_are_rows_of_their_own():
    f, q, logit = toy()
    result = compare(f, q, logit, [Concrete(0.1), Concrete(2.0), "concrete", Score("lagged")], samples=2, repeats=20)
    assert [row.name for row in result] == ["concrete", "concrete (2)", "concrete (3)", "score"]
    assert rows(result)["concrete"].variance != rows(result)["concrete (2)"].variance
    assert [row.name for row in compare(f, q, logit, {"mine": Concrete(0.3)}, samples=2, repeats=5)] == ["mine"]
    assert [row.name for row in compare(f, q, logit, "score", samples=2, repeats=5)] == ["score"]


def test_estimators_with_parameters_are_trained_and_yours_are_left_alone():
    f, q, logit = toy(t=0.45, p=0.5)
    mine = REBAR()
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    torch.manual_seed(0)
    trained = compare(f, q, logit, [mine], samples=2, repeats=400, train=150)[0]
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())
    torch.manual_seed(0)
    raw = compare(f, q, logit, [mine], samples=2, repeats=400, train=0)[0]
    assert trained.variance < 0.75 * raw.variance


def test_progress_is_told():
    names = []
    compare(*toy(), ["score", "rloo"], samples=2, repeats=5, progress=names.append)
    assert names == ["score", "rloo"]


def test_a_seed_of_the_callers_repeats_everything_but_the_seconds():
    results = []
    for _ in range(2):
        torch.manual_seed(11)
        results.append(compare(*toy(), ["score", "rebar", "disarm", "relax"], samples=2, repeats=50, train=10))
    for a, b in zip(*results, strict=True):
        a, b = (row._replace(seconds=0.0, cost=0.0) for row in (a, b))
        assert str(a) == str(b)  # NaN is no equal of itself


def test_parameters_are_taken_in_their_order_and_one_that_does_not_matter_has_a_zero():
    f, q, logit = toy()
    idle = torch.zeros(2, dtype=F64, requires_grad=True)
    exact = [torch.zeros(2, dtype=F64), torch.tensor([P * (1 - P) * (1 - 2 * T)], dtype=F64)]
    row = compare(f, q, [idle, logit], ["rloo"], samples=2, repeats=400, exact=exact)[0]
    assert row.bias < 4
    assert row.relative_bias < 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f, q, a: compare(f, q, a.detach()), "parameters with requires_grad=True"),
        (lambda f, q, a: compare(f, q, []), "parameters with requires_grad=True"),
        (lambda f, q, a: compare(f, q, a, samples=0), "samples must be at least 1, was 0"),
        (lambda f, q, a: compare(f, q, a, repeats=1), "repeats must be at least 2, was 1"),
        (lambda f, q, a: compare(f, q, a, ["reparam"]), "gradient must be one of pathwise, score"),
        (lambda f, q, a: compare(f, q, a, ["pathwise", "vimco"]), "no gradient fits: .*rsample.*multi-sample"),
        (lambda f, q, a: compare(None, q, a), "compare needs a function f, or a q that makes a pair"),
        (lambda f, q, a: compare(f, q, a, exact=torch.zeros(3)), "exact must have a number for each of the 1 .*had 3"),
        (lambda f, q, a: compare(lambda b: b.sum(), q, a, ["score"]), r"f must map \(S, \*batch, \*event\)"),
    ],
)
def test_what_makes_no_sense_is_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call(*toy())
