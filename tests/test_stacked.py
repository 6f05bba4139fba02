"""The stacked autoencoder: greedy stages on the layers of the whole, each on the codes that lie below it."""

from __future__ import annotations

import pytest
import torch

import xhat
from catalogue import F64
from xhat import Stacked, conditionals, objectives
from xhat.errors import ConfigError
from xhat.networks import MLP

DEPTH = 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(**options) -> Stacked:
    return xhat.build("stacked", (8,), latent=2, hidden=[6, 4], activation="tanh", **options).double()


def data(n: int = 40) -> torch.Tensor:
    return torch.tanh(torch.randn(n, 3, dtype=F64) @ torch.randn(3, 8, dtype=F64))


def layers(model: Stacked) -> tuple[list, list]:
    up = [*model.posterior.network.layers, model.posterior.head.linear]
    return up, [*model.likelihood.network.layers, model.likelihood.head.linear][::-1]


def test_stages_are_the_layers_from_the_bottom_and_then_the_whole():
    model = make()
    stages = model.stages()
    assert [stage.name for stage in stages] == ["layer 1 of 3", "layer 2 of 3", "layer 3 of 3", "fine-tune"]
    up, down = layers(model)
    for i, stage in enumerate(stages[:-1]):
        own = {id(p) for p in stage.module.parameters()}
        assert own == {id(p) for layer in (up[i], down[i]) for p in layer.parameters()}
    assert stages[-1].module is model
    every = {id(p) for stage in stages[:-1] for p in stage.module.parameters()}
    assert every == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("index", range(DEPTH))
def test_a_greedy_stage_changes_its_own_layers_and_lowers_their_error(index):
    model, x = make(), data()
    stage = model.stages()[index]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(stage.module.parameters(), lr=0.05)
    start = stage.module(x).loss.mean().item()
    for _ in range(50):
        model.zero_grad()
        stage.module(x).loss.mean().backward()
        optimizer.step()
    assert stage.module(x).loss.mean().item() < 0.8 * start
    up, down = layers(model)
    changed = {id(p) for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {id(p) for layer in (up[index], down[index]) for p in layer.parameters()}
    for other in set(range(DEPTH)) - {index}:
        assert all(p.grad is None for layer in (up[other], down[other]) for p in layer.parameters())


def test_each_stage_is_a_shallow_autoencoder_of_the_codes_below():
    """Theory 1.4: the error of f_l(g_l(h)) to h, with h the codes that the layers below make."""
    model, x = make(), data()
    up, down = layers(model)
    h = x
    for i, stage in enumerate(model.stages()[:-1]):
        code = up[i](h)
        code = code if i == DEPTH - 1 else torch.tanh(code)
        back = down[i](code)
        back = back if i == 0 else torch.tanh(back)
        torch.testing.assert_close(stage.module(x).loss, (back - h).square().sum(1))
        h = code
    torch.testing.assert_close(model.encode(x), h)


def test_unrolled_it_is_the_composition_of_its_layers():
    model, x = make(), data()
    up, down = layers(model)
    h = torch.tanh(up[1](torch.tanh(up[0](x))))
    z = up[2](h)
    h = torch.tanh(down[1](torch.tanh(down[2](z))))
    torch.testing.assert_close(model.reconstruct(x), down[0](h).detach())


def test_noise_goes_into_each_stage_and_its_target_stays_clean():
    model, x = make(corruption="masking:1.0"), data()
    up, down = layers(model)
    h = x
    for i, stage in enumerate(model.stages()[:-1]):
        code = up[i](torch.zeros_like(h))
        back = down[i](code if i == DEPTH - 1 else torch.tanh(code))
        back = back if i == 0 else torch.tanh(back)
        torch.testing.assert_close(stage.module(x).loss, (back - h).square().sum(1))
        h = torch.tanh(up[i](h))


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous-bernoulli", "poisson", "categorical"])
def test_the_bottom_layer_is_trained_on_the_likelihood(likelihood):
    model = make(likelihood=likelihood, **({"levels": 2} if likelihood == "categorical" else {}))
    x = torch.randint(0, 2, (20, 8)).double()
    up, _ = layers(model)
    terms = model.stages()[0].module(x)
    code = torch.tanh(up[0](x))
    raw = model.likelihood.head(code) if model.likelihood.head.linear.in_features == code.shape[1] else None
    assert raw is not None
    torch.testing.assert_close(terms.loss, -model.likelihood.law(raw).log_prob(x))
    assert model.stages()[1].module(x).loss.isfinite().all()


def test_a_link_on_the_code_and_another_activation_in_the_decoder_are_those_of_the_whole():
    model = Stacked(
        conditionals.Delta(MLP(8, [6], "tanh"), 2, link="sigmoid"),
        conditionals.Normal(MLP(2, [6], "softplus"), 8, scale=1.0),
    ).double()
    x = data()
    up, down = layers(model)
    h = torch.tanh(up[0](x))
    code = torch.sigmoid(up[1](h))
    torch.testing.assert_close(model.encode(x), code.detach())
    back = torch.nn.functional.softplus(down[1](code))
    torch.testing.assert_close(model.stages()[1].module(x).loss, (back - h).square().sum(1))
    torch.testing.assert_close(model.reconstruct(x), down[0](back).detach())


def test_training_goes_through_all_stages_and_helps(tmp_path):
    model, x = make().float(), data(60).float()
    start = model.loss(x).mean().item()
    history = xhat.fit(model, x, epochs=30, pretrain_epochs=15, seed=0, lr=0.01, batch_size=20)
    assert list(dict.fromkeys(row["stage"] for row in history.rows)) == [stage.name for stage in model.stages()]
    greedy = next(row for row in history.rows if row["stage"] == "fine-tune")["train_loss"]
    end = model.loss(x).mean().item()
    assert greedy < start
    assert end < 0.5 * start
    again = xhat.load(xhat.save(model, tmp_path / "m.safetensors"))
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: Stacked(conditionals.Delta(MLP(8, [6]), 2), conditionals.Normal(MLP(2, [5]), 8, scale=1.0)),
            "mirrors its encoder.*6.*5",
        ),
        (lambda: Stacked(conditionals.Delta(torch.nn.Linear(8, 6), 2), conditionals.Normal(MLP(2, [6]), 8)), "only an MLP"),
        (
            lambda: Stacked(
                conditionals.Delta(MLP(8, [6]), 2), conditionals.Normal(MLP(2, [6]), 8, scale=1.0), objectives.ELBO()
            ),
            "a Stacked autoencoder has no prior",
        ),
        (lambda: xhat.build("stacked", (8,), network="conv"), "has no option 'network'"),
    ],
)
def test_what_cannot_be_stacked_is_refused(build, words):
    with pytest.raises(ConfigError, match=words):
        build()
