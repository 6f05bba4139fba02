"""What is known beside x, a condition and a mask, arrives wherever x does: engines, stacks, shards, streams, measures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import xhat
from test_streams_order import Numbers
from xhat.data import Batch, Examples, as_examples
from xhat.errors import ConfigError, DataError
from xhat.evaluation.classes import class_gain
from xhat.evaluation.evidence import log_likelihood
from xhat.models.files import state_of

ROWS = 90


def examples(rows: int = ROWS, seed: int = 0) -> Examples:
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (rows,), generator=draw)
    x = (torch.rand(rows, 8, generator=draw) < (label[:, None] + 1) / 5).float()
    seen = torch.rand(rows, 8, generator=draw) > 0.2
    return Examples(x, label, observed=seen, condition=torch.nn.functional.one_hot(label, 3).float())


def vae(**options: object) -> xhat.Model:
    torch.manual_seed(1)
    chosen = {"likelihood": "bernoulli", "latent": 3, "hidden": [12], **options}
    return xhat.build("vae", shape=8, condition={"label": 3}, masked=True, **chosen)


def weights(model: xhat.Model) -> Tensor:
    return torch.cat([tensor.flatten().double() for _, tensor in sorted(state_of(model).items())])


SETTINGS = {"epochs": 2, "batch_size": 32, "seed": 0}


def test_examples_keep_what_is_known_beside_them():
    x = examples()
    batch = x.batch([3, 1])
    assert batch.x.shape == (2, 8)
    assert torch.equal(batch.condition, x.condition[[3, 1]])
    assert torch.equal(batch.observed, x.observed[[3, 1]])
    assert (batch.x[~batch.observed] == 0).all()  # whatever was stored there
    part = x.subset(slice(10, 50)).subset([5, 0]).fixed(0)
    assert torch.equal(part.condition, x.condition[[15, 10]])
    assert torch.equal(part.observed, x.observed[[15, 10]])
    assert sum(piece.size for piece in x.batched(40)) == ROWS
    order = x.order(3)
    fed = list(x.fed(order, [(0, 50), (50, 90)]))
    assert torch.equal(torch.cat([piece.condition for piece in fed]), x.condition[order])
    again = as_examples(x.batch(slice(None)))
    assert torch.equal(again.observed, x.observed)
    assert x[4].shape == (8,)  # an index gives a tensor, as ever


def test_streams_carry_a_condition():
    rows = torch.arange(60.0)[:, None].expand(60, 2)
    x = Examples(Numbers([20] * 3), condition=rows, exposure=rows[:, 0] + 1)
    for batch in (*x.batched(25), *x.fed(x.order(0), [(0, 30), (30, 60)]), x.subset([7, 40]).batch(slice(None))):
        assert torch.equal(batch.condition[:, 0] % 1000 / 1000, batch.x[:, 0])
        assert torch.equal(batch.exposure, batch.condition[:, 0] + 1)
    with pytest.raises(DataError, match="these are streamed"):
        Examples(Numbers([20]), observed=torch.ones(20, 3).bool())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"observed": torch.ones(ROWS, 7).bool()}, "observed must be bool and of the examples' shape"),
        ({"observed": torch.ones(ROWS, 8)}, "observed must be bool"),
        ({"condition": torch.ones(5, 3)}, r"condition must have shape \(90, C\)"),
        ({"condition": torch.full((ROWS, 3), math.nan)}, "condition must be finite"),
        ({"exposure": torch.zeros(ROWS)}, "exposure multiplies a rate and must be above 0"),
    ],
)
def test_what_does_not_fit_the_examples_is_refused(given, said):
    with pytest.raises(DataError, match=said):
        Examples(torch.rand(ROWS, 8), **given)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of torch.compile
@pytest.mark.usefixtures("compiler")
def test_the_compiled_step_is_the_eager_one():
    ends = []
    for engine in ("eager", "compiled"):
        model = vae()
        xhat.fit(model, examples(), engine=engine, **SETTINGS)
        ends.append(weights(model))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)


def test_a_stack_of_models_trains_as_each_alone():
    def build(seed: int) -> xhat.Model:
        return xhat.build("autoencoder", shape=8, latent=2, hidden=[6], condition={"label": 3}, masked=True)

    x = examples()
    many = xhat.fit_many(build, x, x.subset(slice(30)), seeds=2, epochs=2, batch_size=32)
    for seed, member in enumerate(many.members):
        torch.manual_seed(seed)
        alone = build(seed)
        xhat.fit(alone, x, valid=x.subset(slice(30)), **{**SETTINGS, "seed": seed})
        torch.testing.assert_close(weights(member.model), weights(alone), rtol=1e-4, atol=1e-5)


def test_shards_are_the_whole_batch():
    ends = []
    for shards in (1, 2):
        torch.manual_seed(0)
        model = xhat.build("autoencoder", shape=8, latent=2, hidden=[6], condition={"label": 3}, masked=True)
        xhat.fit(model, examples(), shards=shards, **SETTINGS)
        ends.append(weights(model))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_run_ends_bit_for_bit_the_same(stop, tmp_path):
    x = examples()
    whole = vae()
    xhat.fit(whole, x, valid=x.subset(slice(30)), out=tmp_path / "whole", **SETTINGS)
    broken = vae()
    steps = xhat.train(broken, x, valid=x.subset(slice(30)), out=tmp_path / "broken", **SETTINGS)
    for _ in range(stop):
        next(steps)
    steps.close()
    again = vae()
    xhat.fit(again, x, valid=x.subset(slice(30)), out=tmp_path / "broken", resume=True)
    assert torch.equal(weights(whole), weights(again))
    opened = xhat.load(tmp_path / "broken")
    assert opened.conditions == whole.conditions
    assert torch.equal(opened.encode(x), whole.encode(x))


def test_a_condition_that_the_model_has_not_is_refused_before_training():
    x = examples()
    with pytest.raises(DataError, match=r"is conditioned on 3 numbers, label \(one of 0, 1, 2\), but no condition was given"):
        xhat.fit(vae(), x.tensor(), **SETTINGS)
    with pytest.raises(DataError, match="made without a condition, but one was given"):
        xhat.fit(xhat.build("vae", shape=8, likelihood="bernoulli"), x, **SETTINGS)
    with pytest.raises(DataError, match="is conditioned on 3 numbers"):
        xhat.fit_many(lambda seed: vae(), x.tensor(), seeds=2, epochs=1)


def test_evaluation_says_what_it_is_given_and_what_was_observed():
    x, model = examples(40), vae()
    result = xhat.evaluate(model, x, samples=20)
    assert "log p(x|c), nats" in str(result)
    assert "of their values observed" in str(result)
    assert "log p(x|c) − log p(x), nats" in str(result)
    share = float(x.observed.double().mean())
    assert result.bits_per_dimension == pytest.approx(-result.log_likelihood.value / (math.log(2) * 8 * share))
    again = xhat.evaluation.result.Evaluation.from_dict(result.as_dict())
    assert again.class_gain == result.class_gain
    blank = Examples(x.storage, observed=x.observed & (torch.arange(40) > 2)[:, None], condition=x.condition)
    assert any("of 3 examples no value was observed" in finding for finding in xhat.evaluate(model, blank, samples=5).findings)
    of_class = xhat.evaluate(vae(prior_condition=True), x, samples=5)
    assert of_class.mutual_information is None
    with pytest.raises(ConfigError, match="no one p"):
        xhat.anatomy(vae(prior_condition=True), x)


def test_what_a_class_is_worth_is_the_difference_from_the_average_over_classes():
    """Enumerated codes, so that nothing is sampled."""
    torch.manual_seed(0)
    model = xhat.build(
        "bernoulli-vae", shape=8, latent=3, hidden=[6], likelihood="bernoulli", condition={"label": 3}, masked=True
    )
    x = examples(30)
    found = class_gain(model, x, 1, way=None)
    each = torch.stack(
        [
            log_likelihood(model, x.batch(slice(None))._replace(condition=torch.eye(3)[[k]].expand(30, 3)), method="exact").log_px
            for k in range(3)
        ]
    )
    shares = x.condition.mean(0).double()
    own = (each * x.condition.T).sum(0)
    torch.testing.assert_close(found, own - (each + shares.log()[:, None]).logsumexp(0))
    assert (found <= -(shares.log() @ x.condition.T.double()) + 1e-9).all()


def test_every_measure_takes_a_batch():
    model, x = vae(), examples(6)
    batch = x.batch(slice(None))
    assert isinstance(batch, Batch)
    assert torch.equal(model.encode(batch), model.encode(x))
    assert log_likelihood(model, batch, samples=3).log_px.shape == (6,)
    assert log_likelihood(model, x, samples=3, method="annealed", steps=3).log_px.shape == (6,)
    assert xhat.refine(model, x, steps=3).gap.shape == (6,)
    assert xhat.fit_prior(model, x, components=2).sample(2, condition={"label": 1}).shape == (2, 8)
