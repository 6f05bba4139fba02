"""Training: exact resume, stopping, schedules, what is written and what is refused."""

import copy
import json
import math
import signal
import subprocess
import sys
from itertools import islice, pairwise

import pytest
import torch

import xhat
from xhat.errors import CheckpointError, ConfigError, DataError, TrainingError
from xhat.models.files import state_of
from xhat.networks import bayesian, kl
from xhat.training.fit import fit, train
from xhat.training.folder import RunFolder
from xhat.training.loop import Loop
from xhat.training.rate import rate_at
from xhat.training.settings import Settings

X = torch.rand(70, 6, generator=torch.Generator().manual_seed(1))
BINARY = xhat.Examples(X, binarize="dynamic")
VALID = torch.rand(20, 6, generator=torch.Generator().manual_seed(2))

MODELS = {
    "vae": {"recipe": "vae", "latent": 2, "hidden": [8]},
    "denoising": {"recipe": "denoising", "latent": 2, "hidden": [8], "tied": True},
    "stacked": {"recipe": "stacked", "latent": 2, "hidden": [8, 4], "corruption": "normal-noise:0.1"},
    "score": {
        "recipe": "vae",
        "latent": 2,
        "hidden": [8],
        "likelihood": "bernoulli",
        "posterior": "bernoulli",
        "gradient": "score",
        "baseline": "lagged",
        "beta_warmup": 2.0,
    },
}


def made(name: str) -> xhat.Model:
    torch.manual_seed(5)
    return xhat.build(shape=(6,), **MODELS[name])


def data_for(name: str) -> tuple[xhat.Examples | torch.Tensor, xhat.Examples | torch.Tensor]:
    return (BINARY, (VALID > 0.5).float()) if name == "score" else (X, VALID)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = state_of(one), state_of(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", MODELS)
def test_a_run_stopped_at_any_step_and_resumed_ends_bit_for_bit_the_same(name, tmp_path):
    x, valid = data_for(name)
    settings = {
        "epochs": 3,
        "batch_size": 16,
        "seed": 3,
        "schedule": "cosine",
        "warmup": 0.5,
        "clip": 1.0,
        "optimizer": "adamw",
    }
    if name == "stacked":
        settings["pretrain_epochs"] = 1
    whole = made(name)
    unbroken = fit(whole, x, valid, **settings, out=tmp_path / "whole")
    broken = made(name)
    for stop in (1, 4, 3, 7):  # steps before each break: within an epoch, at its end, across stages
        torch.manual_seed(999)  # a new process has other random numbers
        settings_now = settings if stop == 1 else {}
        steps = train(broken, x, valid, **settings_now, out=tmp_path / "broken", resume=stop != 1)
        for _ in islice(steps, stop):
            pass
        # what fit does when a signal arrives
        _save_now(broken, x, valid, tmp_path / "broken", steps)
        broken = made(name)
        with torch.no_grad():
            for parameter in broken.parameters():
                parameter.add_(1.0)  # nothing of the old model may be needed
    torch.manual_seed(998)
    resumed = fit(broken, x, valid, out=tmp_path / "broken", resume=True)
    assert same(whole, broken)
    assert resumed.rows == unbroken.rows
    assert same(xhat.load(tmp_path / "broken"), xhat.load(tmp_path / "whole"))


def _save_now(model, x, valid, out, steps):
    loop = steps.gi_frame.f_locals["loop"]
    RunFolder(out).save_state(loop.tensors(), loop.state())
    steps.close()


SCRIPT = """
import os, sys, torch, xhat
x = torch.rand(600, 6, generator=torch.Generator().manual_seed(1))
torch.manual_seed(5)
model = xhat.build("vae", shape=(6,), latent=2, hidden=[8])
calls = []
def ask(*given):
    calls.append(given)
    if len(calls) == 100:  # in the middle of a step of the fourth epoch
        os.kill(os.getpid(), int(sys.argv[2]))
model.posterior.register_forward_pre_hook(ask)
history = xhat.fit(model, x, x[:50], out=sys.argv[1], epochs=8, batch_size=20, checkpoint_every=10)
print("interrupted" if history.interrupted else "finished")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(number, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-c", SCRIPT, str(out), str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout.strip() == "interrupted"
    assert f"xhat.fit(model, x, …, out={str(out)!r}, resume=True)" in done.stderr
    assert len(RunFolder(out).rows()) == 3
    state = RunFolder(out).read_state()[1]
    assert 90 < state["step"] < 100  # validation takes a call as well
    assert not state["done"]


def test_two_runs_with_one_seed_are_equal_and_with_two_are_not():
    runs = []
    for seed in (0, 0, 1):
        model = made("vae")
        fit(model, X, epochs=2, seed=seed)
        runs.append(model)
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_the_order_is_a_permutation_that_changes_with_epoch_stage_and_seed():
    orders = []
    for seed, stage, epoch in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
        loop = Loop(made("stacked"), xhat.Examples(X), None, Settings(seed=seed))
        loop.progress.stage, loop.progress.epoch = stage, epoch
        orders.append(loop.order())
        assert orders[-1].sort().values.equal(torch.arange(len(X)))
        assert orders[-1].equal(loop.order())
    assert all(not a.equal(b) for i, a in enumerate(orders) for b in orders[:i])


def test_every_example_is_seen_once_an_epoch_and_the_last_batch_may_be_smaller():
    model = made("vae")
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    steps = list(train(model, X, epochs=1, batch_size=16))
    assert [len(batch) for batch in seen] == [16, 16, 16, 16, 6]
    assert torch.cat(seen).sort(0).values.equal(X.sort(0).values)
    assert [step.record is None for step in steps] == [True] * 4 + [False]


def test_the_logged_loss_is_the_mean_over_examples_not_over_batches():
    model = made("denoising")
    model.corruption = None
    (step,) = [s for s in train(model, X, epochs=1, batch_size=64, lr=1e-30) if s.record is not None]
    assert step.record["train_loss"] == pytest.approx(model.loss(X).mean().item(), rel=1e-6)


def test_rate_rises_linearly_then_follows_a_cosine_to_zero():
    loop = Loop(made("vae"), xhat.Examples(X), None, Settings(epochs=10, warmup=2, schedule="cosine", lr=1.0, batch_size=7))
    rates = [loop.rate(done / 10) for done in range(101)]
    assert 0 < rates[0] < rates[10] < rates[19] <= rates[20] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert all(a >= b for a, b in pairwise(rates[20:]))


def test_patience_stops_and_the_best_weights_are_kept(tmp_path):
    model = made("vae")
    history = fit(model, X, VALID, epochs=200, patience=2, lr=0.5, out=tmp_path / "run")
    scores = [-row["valid_loss"] for row in history.rows]
    assert len(scores) < 200
    assert max(scores) == scores[-3]
    assert history.best["epoch"] == len(scores) - 2
    loop = Loop(model, xhat.Examples(X), xhat.Examples(VALID), Settings(lr=0.5))
    assert loop.validate(xhat.Examples(VALID))["elbo"] == pytest.approx(max(scores), rel=1e-6)
    assert same(xhat.load(tmp_path / "run" / "checkpoints" / "best.safetensors"), model)


def test_keep_last_keeps_the_last():
    model = made("vae")
    history = fit(model, X, VALID, epochs=6, lr=0.5, keep="last")
    loop = Loop(model, xhat.Examples(X), None, Settings(lr=0.5))
    assert loop.validate(xhat.Examples(VALID))["elbo"] == pytest.approx(history.rows[-1]["valid_elbo"], rel=1e-6)


def test_validation_leaves_the_random_stream_alone():
    with_valid, without = made("vae"), made("vae")
    fit(with_valid, X, VALID, epochs=2, keep="last")
    fit(without, X, epochs=2)
    assert same(with_valid, without)


def test_clipping_bounds_the_step_of_the_gradient():
    model = made("vae")
    fit(model, X * 1000, epochs=1, clip=0.01)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
    assert norm <= 0.01 * 1.001


def test_an_infinite_loss_stops_the_run_and_nothing_bad_is_saved(tmp_path):
    model = made("vae")
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf|-inf) at step \d+ .*last\.safetensors"):
        fit(model, X, VALID, epochs=50, lr=1e20, out=out)
    tensors, _ = RunFolder(out).read_state()
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values() if tensor.is_floating_point())
    assert not (out / "model.safetensors").exists()


def test_a_run_folder_holds_what_it_promises(tmp_path):
    out = tmp_path / "run"
    fit(made("vae"), X, VALID, epochs=2, out=out, about={"command": "xhat train …"})
    config = json.loads((out / "config.json").read_text())
    assert config["command"] == "xhat train …"
    assert config["settings"]["epochs"] == 2
    assert config["model"]["part"] == "models.VAE"
    rows = RunFolder(out).rows()
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"train_loss", "valid_loss", "train_elbo", "valid_elbo", "train_kl", "lr", "step"} <= rows[0].keys()
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["best.safetensors", "last.safetensors"]


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    model = made("vae")
    fit(model, X, VALID, epochs=2, out=tmp_path / "run")
    again = made("vae")
    history = fit(again, X, VALID, out=tmp_path / "run", resume=True)
    assert same(model, again)
    assert len(history.rows) == 2


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    fit(made("vae"), X, epochs=1, out=tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds a run already"):
        fit(made("vae"), X, epochs=1, out=tmp_path / "run")


def test_resume_refuses_other_data_and_other_settings(tmp_path):
    fit(made("vae"), X, epochs=1, out=tmp_path / "run")
    with pytest.raises(TrainingError, match="was trained on 70 examples"):
        fit(made("vae"), X[:50], out=tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match="lr differ"):
        fit(made("vae"), X, out=tmp_path / "run", resume=True, lr=0.1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": -1.0}, "lr must be above 0"),
        ({"lr": math.nan}, "lr must be above 0"),
        ({"optimizer": "sgd"}, "optimizer must be one of adam, adamw"),
        ({"schedule": "step"}, "schedule must be one of"),
        ({"batch_size": 71}, "only 70 training examples"),
        ({"patience": 3}, "patience needs validation examples"),
        ({"device": "cuda:99"}, "is not to be had here"),
        ({"epoch": 3}, "the settings are epochs"),
        ({"tensorboard": True}, "needs a run folder"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        fit(made("vae"), X, **settings)


def test_data_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="at least 2 examples"):
        fit(made("vae"), X[:1])
    with pytest.raises(DataError, match=r"must have shape \(B, 6\)"):
        fit(made("vae"), X[:, :5])
    with pytest.raises(DataError, match="outside the support of the Bernoulli"):
        fit(xhat.build("vae", shape=(6,), likelihood="bernoulli"), X)


def test_tensorboard_gets_the_records(tmp_path):
    fit(made("vae"), X, epochs=1, out=tmp_path / "run", tensorboard=True)
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.*"))


def test_the_steps_of_stages_are_named_and_counted():
    steps = list(train(made("stacked"), X, epochs=2, pretrain_epochs=1, batch_size=70))
    assert [step.stage for step in steps] == ["layer 1 of 3", "layer 2 of 3", "layer 3 of 3", "fine-tune", "fine-tune"]
    assert [step.step for step in steps] == [1, 2, 3, 4, 5]
    assert {step.steps for step in steps} == {5}


def test_random_weights_pay_their_divergence_from_the_prior_and_codes_are_still():
    torch.manual_seed(0)
    x = torch.rand(64, 4)
    model = bayesian(xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="normal"), initial_scale=0.1)
    twin = copy.deepcopy(model)
    before = kl(model).item()
    history = xhat.fit(model, x, epochs=1, batch_size=64, lr=1e-9, seed=0)
    record = history.rows[-1]
    assert record["train_weights_kl"] == pytest.approx(before, rel=1e-4)
    # One batch, so the same draws again: what is added to the loss is the divergence over the number of examples.
    assert record["train_loss"] == pytest.approx(-record["train_elbo"] + before / 64, rel=1e-4)
    assert torch.equal(twin.encode(x), twin.encode(x))
    assert not torch.equal(twin.decode(twin.encode(x), sample=True), twin.decode(twin.encode(x), sample=True))
    plain = xhat.build("autoencoder", shape=(4,), latent=2, hidden=[8])
    with pytest.raises(ConfigError, match="random weights need a loss in nats"):
        xhat.fit(bayesian(plain), x, epochs=1)


def test_the_learning_rate_drops_at_the_epochs_that_a_schedule_names():
    settings = Settings(epochs=4, lr=0.5, schedule="steps:1,3:0.1")
    rates = [rate_at(settings, 4, 3, step / 3) for step in range(12)]
    assert rates == pytest.approx([0.5] * 3 + [0.05] * 6 + [0.005] * 3)
    # And it reaches the steps: with a rate of nearly nothing from epoch 1 on, the weights stay where they are.
    model = xhat.build("autoencoder", shape=(4,), latent=2, hidden=[])
    seen = [
        torch.cat([p.detach().flatten() for p in model.parameters()])
        for _ in train(
            model, torch.rand(12, 4), epochs=2, batch_size=6, lr=0.5, schedule="steps:1:1e-9", engine="eager", keep="last"
        )
    ]
    assert (seen[0] - seen[1]).abs().max() > 0.1
    assert (seen[1] - seen[3]).abs().max() < 1e-6


@pytest.mark.parametrize("schedule", ["steps", "steps:", "steps:3,2:0.1", "steps:2:1.5", "steps:2:0", "steps:1,1:0.5", "linear"])
def test_a_schedule_that_makes_no_sense_is_refused(schedule):
    with pytest.raises(ConfigError, match="schedule must be one of"):
        Settings(schedule=schedule)
