"""Many models at once against one at a time: the same weights, orders and steps, no member's numbers in another's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import xhat
from reading import one_sentence
from xhat import conditionals, gradients, objectives, priors
from xhat.data import Batch
from xhat.errors import ConfigError, DataError, TrainingError
from xhat.models.base import Model
from xhat.networks import MLP, bayesian
from xhat.training import stack as stacks
from xhat.training.many import Many, fit_many

Build = Callable[[int], Model]
SHAPE = (6,)


def data(n: int = 70, binary: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(n, *SHAPE, generator=generator)
    return x.round() if binary else x


def plain(seed: int) -> Model:
    return xhat.build("autoencoder", shape=SHAPE, latent=2, hidden=[5])


def vae(seed: int) -> Model:
    return xhat.build("vae", shape=SHAPE, latent=2, hidden=[5])


def exact(seed: int, warmup: float = 0.0, beta: float = 1.0) -> Model:
    """A variational model without noise: the expectation over its bits is summed."""
    options = {"gradient": "enumerate", "samples": 1, "beta_warmup": warmup, "beta": beta}
    return xhat.build("bernoulli-vae", shape=SHAPE, latent=3, hidden=[5], likelihood="bernoulli", **options)


def alone(build: Build, seed: int, x: Tensor, valid: Tensor | None, **settings: object) -> tuple[Model, list[dict]]:
    """What ``xhat.fit`` makes of the seed."""
    torch.manual_seed(seed)
    model = build(seed)
    history = xhat.fit(model, x, valid=valid, seed=seed, progress=False, **settings)
    return model, history.rows


def check_equal(many: Many, build: Build, x: Tensor, valid: Tensor | None, **settings: object) -> None:
    """Each member is what a run of its own ends with, weights, names and numbers."""
    for member in many.members:
        model, rows = alone(build, member.seed, x, valid, **settings)
        for (name, ours), theirs in zip(member.model.state_dict().items(), model.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")
        assert len(member.history.rows) == len(rows)
        for ours, theirs in zip(member.history.rows, rows, strict=True):
            assert ours.keys() == theirs.keys()
            assert {k: v for k, v in ours.items() if not isinstance(v, float)} == {
                k: v for k, v in theirs.items() if not isinstance(v, float)
            }
            for name, value in theirs.items():
                if isinstance(value, float):
                    assert ours[name] == pytest.approx(value, rel=2e-4, abs=1e-5), name


# Equality with runs of their own


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "adamw", "weight_decay": 0.1, "clip": 0.05, "lr": 0.01},
        {"schedule": "cosine", "warmup": 1.5, "weight_decay": 0.01, "epsilon": 1e-3},
        {"keep": "last", "lr": 0.05},
        {"patience": 2, "lr": 0.2, "epochs": 12},
        {"patience": 1, "lr": 0.2, "epochs": 12, "keep": "last"},
        {"batch_size": 23},
    ],
    ids=str,
)
def test_a_stack_without_noise_is_its_members_alone(settings):
    chosen = {"epochs": 4, "batch_size": 16, **settings}
    x, valid = data(), data(20)
    many = fit_many(plain, x, valid, seeds=[3, 0, 7], **chosen)
    check_equal(many, plain, x, valid, **chosen)
    if "patience" in settings:
        assert min(len(member.history.rows) for member in many.members) < 12


def test_without_validation_examples_the_last_weights_are_kept():
    check_equal(fit_many(plain, data(), seeds=2, epochs=3, batch_size=16), plain, data(), None, epochs=3, batch_size=16)


@pytest.mark.parametrize("written", [True, False])
def test_a_written_program_takes_the_same_steps(written, monkeypatch):
    """Also through a β warm-up, whose weight must not become a constant of the program."""
    monkeypatch.setattr(stacks, "WORTHWHILE", 1 if written else 10**9)
    chosen = {"epochs": 4, "batch_size": 16}
    x = data(binary=True)

    def build(seed):
        return exact(seed, warmup=3.0, beta=2.0)

    many = fit_many(build, x, x[:20], seeds=[1, 2], **chosen)
    check_equal(many, build, x, x[:20], **chosen)


def test_tied_weights_stay_tied():
    def build(seed):
        return xhat.build("autoencoder", shape=SHAPE, latent=2, hidden=[5], tied=True)

    check_equal(fit_many(build, data(), data(20), seeds=2, epochs=3), build, data(), data(20), epochs=3)


# β


def test_each_member_has_its_own_beta_and_no_other():
    """As many values of β as members: a mix-up, or one β for all, would show in the weights."""
    x = data(binary=True)
    many = fit_many(exact, x, x[:20], seeds=[4], beta=[0.0, 1.0, 6.0], epochs=4, batch_size=16)
    assert [member.beta for member in many.members] == [0.0, 1.0, 6.0]
    for member in many.members:

        def build(seed, beta=member.beta):
            return exact(seed, beta=beta)

        check_equal(Many([member], 0.0, False), build, x, x[:20], epochs=4, batch_size=16)
        assert float(member.model.objective.beta) == member.beta
        assert float(member.model.objective.weight) == member.beta
    elbos = [member.history.rows[-1]["train_kl"] for member in many.members]
    assert elbos[0] > elbos[1] > elbos[2]


def test_beta_goes_with_every_seed_and_through_the_warm_up():
    x = data(binary=True)
    many = fit_many(lambda seed: exact(seed, warmup=2.0), x, seeds=[0, 9], beta=(0.5, 3.0), epochs=3, batch_size=16)
    assert [(member.beta, member.seed) for member in many.members] == [(0.5, 0), (0.5, 9), (3.0, 0), (3.0, 9)]
    for member in many.members:

        def build(seed, beta=member.beta):
            return exact(seed, warmup=2.0, beta=beta)

        check_equal(Many([member], 0.0, False), build, x, None, epochs=3, batch_size=16)


def test_a_saved_member_keeps_its_beta(tmp_path):
    many = fit_many(vae, data(), seeds=1, beta=[4.0], epochs=1)
    again = xhat.load(xhat.save(many.models[0], tmp_path / "model.safetensors"))
    assert again.objective.beta == 4.0
    torch.testing.assert_close(again.encode(data()), many.models[0].encode(data()))


# Noise


class _Noisy(nn.Module):
    """A body that adds torch's noise in three of the ways in which laws draw it."""

    in_shape, out_features = SHAPE, 6

    def forward(self, x: Tensor) -> Tensor:
        by_filling = torch.empty(x.shape, dtype=x.dtype).normal_()
        return x + by_filling + torch.rand(x.shape) + torch.bernoulli(torch.full_like(x, 0.5))


def test_members_share_no_noise():
    """Models with the same weights, on the same batch: all that can differ is the noise."""
    torch.manual_seed(0)
    model = xhat.Autoencoder(
        conditionals.Delta(_Noisy(), 2), conditionals.Normal(MLP(2, [5]), SHAPE, scale=1.0), objectives.SquaredError()
    )
    x = data(8).expand(3, 8, *SHAPE)
    stack = stacks.Stack([copy.deepcopy(model) for _ in range(3)], Batch(x))
    for steps in (1, 10**6):  # as it is, and written down
        stack._programs.clear()
        losses = [stack.gradients(Batch(x), steps)[1][:, 0] for _ in range(2)]
        assert len({round(float(loss), 6) for pair in losses for loss in pair}) == 6
        is_written = "_step" not in getattr(stack._programs[8], "__name__", "")
        assert is_written == (steps > 1)
    sums = stack.sums([Batch(x[0])])[:, 0]
    assert len({round(float(value), 6) for value in sums}) == 3


@pytest.mark.parametrize("steps", [1, 10**6])
def test_the_reparameterised_noise_of_members_is_independent(steps):
    model = vae(0)
    x = data(64).expand(2, 64, *SHAPE)
    stack = stacks.Stack([copy.deepcopy(model) for _ in range(2)], Batch(x))
    torch.manual_seed(0)
    losses = torch.stack([stack.gradients(Batch(x), steps)[1][:, 0] for _ in range(400)]).double()
    assert float(losses.std(0).min()) > 0
    correlation = float(torch.corrcoef(losses.T)[0, 1])
    assert abs(correlation) < 4 / 400**0.5


def test_a_vae_in_a_stack_ends_where_vaes_alone_end():
    """The mean over seeds of the bound, within four standard errors."""
    x, settings = data(200), {"epochs": 12, "lr": 0.01, "batch_size": 32}
    many = fit_many(vae, x, x[:60], seeds=24, **settings)
    ours = torch.tensor([member.history.rows[-1]["train_elbo"] for member in many.members])
    theirs = torch.tensor([alone(vae, seed, x, x[:60], **settings)[1][-1]["train_elbo"] for seed in range(100, 112)])
    error = (ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt()
    assert abs(float(ours.mean() - theirs.mean())) < 4 * float(error)
    start = torch.tensor([member.history.rows[0]["train_elbo"] for member in many.members])
    assert float(ours.mean() - start.mean()) > 20 * float(error)


def test_the_same_call_gives_the_same_models():
    first, second = (fit_many(vae, data(), data(20), seeds=3, epochs=2) for _ in range(2))
    for a, b in zip(first.models, second.models, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert [m.history.rows for m in first.members] == [m.history.rows for m in second.members]


# Best weights


def test_each_member_ends_with_its_own_best_weights():
    """A rate so high that each is best at another epoch; its weights must give its own best loss."""
    x, valid = data(), data(40)[20:]
    many = fit_many(plain, x, valid, seeds=8, epochs=10, lr=0.15, batch_size=16)
    assert len({member.history.best["epoch"] for member in many.members}) > 1
    for member in many.members:
        best = min(row["valid_loss"] for row in member.history.rows)
        assert float(member.model.loss(valid).detach().mean()) == pytest.approx(best, rel=1e-5)


# What comes out


def test_the_models_are_ordinary_ones_and_the_table_says_what_the_rows_do():
    many = fit_many(vae, data(), data(20), seeds=3, beta=[1.0, 2.0], epochs=2)
    assert xhat.evaluate(many.models[0], data(), samples=5).elbo.value < 0
    assert not many.models[0].training
    assert all(p.requires_grad for p in many.models[0].parameters())
    values = torch.tensor([member.history.best["valid_elbo"] for member in many.members[3:]], dtype=torch.float64)
    text = str(many)
    assert "β 2, 3 seeds" in text
    assert f"{values.mean():.4f} ± {values.std():.4f}" in text.split("β 2")[1]


def test_ctrl_c_returns_what_there_is(monkeypatch):
    calls = []

    def stopping(self, epoch, sums, inner=xhat.training.many._Work._end_epoch):
        calls.append(epoch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        inner(self, epoch, sums)

    monkeypatch.setattr(xhat.training.many._Work, "_end_epoch", stopping)
    many = fit_many(plain, data(), data(20), seeds=2, epochs=9)
    monkeypatch.undo()
    assert many.interrupted
    assert "interrupted" in str(many)
    check_equal(many, plain, data(), data(20), epochs=2)


# Refusals


def _normed(seed: int) -> Model:
    body = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    return xhat.Autoencoder(conditionals.Delta(body, 2), conditionals.Normal(MLP(2, [5]), SHAPE, scale=1.0))


def _bits(gradient: gradients.Gradient) -> Build:
    def build(seed: int) -> Model:
        return xhat.VAE(
            priors.Bernoulli(3),
            conditionals.Bernoulli(MLP(SHAPE, [5]), 3),
            conditionals.Bernoulli(MLP(3, [5]), SHAPE),
            objectives.ELBO(samples=2),
            gradient,
        )

    return build


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda seed: xhat.build("stacked", shape=SHAPE, latent=2, hidden=[5]), ("stages", "xhat.fit")),
        (_normed, ("BatchNorm1d", "xhat.fit")),
        (_bits(gradients.GRADIENTS["relax"]()), ("relax", "xhat.fit")),
        (_bits(gradients.Score("lagged")), ("Lagged", "xhat.fit")),
        (_bits(gradients.GRADIENTS["muprop"]()), ("muprop", "xhat.fit")),
        (lambda seed: bayesian(vae(seed)), ("random weights", "xhat.fit")),
        (lambda seed: xhat.build("vae", shape=SHAPE, latent=2 + seed, hidden=[5]), ("place 2", "alike")),
        (lambda seed: xhat.build("vae", shape=SHAPE, latent=2, hidden=[5], free_bits=0.1 * seed), ("place 2", "alike")),
        (lambda seed: nn.Linear(6, 6), ("build", "Linear")),
    ],
    ids=["stages", "batch norm", "learns", "remembers", "vmap", "random weights", "sizes", "options", "no model"],
)
def test_what_a_stack_cannot_do_is_refused_by_name_before_training(build, words, monkeypatch):
    monkeypatch.setattr(xhat.training.many._Work, "run", lambda self: pytest.fail("training began"))
    with pytest.raises(ConfigError) as error:
        fit_many(build, data(binary=True), seeds=2, epochs=1)
    one_sentence(error.value, *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 3}, ("seeds=",)),
        ({"epoch": 3}, ("epoch ", "epochs")),
        ({"tensorboard": True}, ("tensorboard", "xhat.fit")),
        ({"seeds": 0}, ("seeds",)),
        ({"seeds": [1, 1]}, ("seeds", "different")),
        ({"seeds": [-1]}, ("seed", "-1")),
        ({"beta": [1.0, -2.0]}, ("beta", "-2")),
        ({"beta": []}, ("beta",)),
        ({"batch_size": 1000}, ("batch_size", "70")),
        ({"patience": 2}, ("patience", "valid")),
        ({"device": "cuda:99"}, ("device",)),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ConfigError) as error:
        fit_many(vae, data(), **{"seeds": 2, "epochs": 1, **options})
    one_sentence(error.value, *words)


def test_beta_of_an_autoencoder_is_refused():
    with pytest.raises(ConfigError, match="SquaredError has none"):
        fit_many(plain, data(), seeds=2, beta=2.0)


def test_examples_of_another_shape_are_refused():
    with pytest.raises(DataError, match="validation data"):
        fit_many(plain, data(), torch.rand(5, 3), seeds=2)


def test_streamed_examples_are_refused():
    class Far(xhat.Examples):
        resident = False

    with pytest.raises(ConfigError) as error:
        fit_many(plain, Far(data()), seeds=2)
    one_sentence(error.value, "streamed", "xhat.fit")


def test_the_member_that_diverges_is_named():
    def build(seed):
        model = plain(seed)
        if seed == 5:
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))
        return model

    with pytest.raises(TrainingError) as error:
        fit_many(build, data(), seeds=[4, 5, 6], epochs=2)
    one_sentence(error.value, "seed 5", "step 1", "learning rate")


@pytest.mark.parametrize("name", ["score", "rloo", "disarm", "straight-through", "reinmax"])
def test_estimators_train_in_a_stack(name):
    x = data(binary=True)
    many = fit_many(_bits(gradients.GRADIENTS[name]()), x, x[:20], seeds=2, epochs=3, lr=0.02)
    assert all(member.history.rows[-1]["train_elbo"] > member.history.rows[0]["train_elbo"] for member in many.members)


def test_full_covariances_train_in_a_stack():
    def build(seed):
        return xhat.build("vae", shape=SHAPE, latent=2, hidden=[5], posterior="multivariate-normal")

    many = fit_many(build, data(), seeds=2, epochs=2)
    assert len(many.models) == 2
