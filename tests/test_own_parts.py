"""What a researcher brings: own conditionals, swapped parts, laws without a mean, data in any form."""

import numpy as np
import pytest
import torch
from torch import distributions as td
from torch import nn

import xhat
from xhat import conditionals, gradients, objectives, priors
from xhat.conditionals import Headed, positive
from xhat.data import Masking
from xhat.errors import ConfigError, TrainingError
from xhat.models.base import centre
from xhat.networks import MLP
from xhat.training.loop import Loop
from xhat.training.settings import Settings

X = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))


class Laplace(Headed):
    """As a script would define it."""

    __module__ = "__main__"

    def __init__(self, network, event):
        super().__init__(network, event, parameters=2)

    def law(self, raw):
        loc, raw_scale = raw.unbind(-1 - self.event_ndim)
        return td.Independent(td.Laplace(loc, positive(raw_scale)), self.event_ndim)


def small(**parts):
    made = {
        "prior": priors.StandardNormal(2),
        "posterior": conditionals.Normal(MLP(6, [5]), event=2),
        "likelihood": conditionals.Normal(MLP(2, [5]), event=6, per="shared"),
    }
    return xhat.VAE(**(made | parts))


def test_a_part_of_a_script_trains_and_its_weights_come_back(tmp_path):
    model = small(likelihood=Laplace(MLP(2, [5]), 6))
    xhat.fit(model, X, epochs=1, out=tmp_path / "run")
    again = xhat.load(tmp_path / "run", model=small(likelihood=Laplace(MLP(2, [5]), 6)))
    assert torch.equal(again.encode(X), model.encode(X))
    with pytest.raises(xhat.CheckpointError, match=r"pass it, xhat\.load\(path, model=…\)"):
        xhat.load(tmp_path / "run")


def test_parts_that_were_swapped_are_the_ones_that_are_saved(tmp_path):
    model = small()
    model.objective = objectives.ELBO(beta=4.0)
    model.gradient = gradients.Score("lagged")
    model.corruption = Masking(0.25)
    again = xhat.load(xhat.save(model, tmp_path / "model.safetensors"))
    assert again.objective.beta == 4.0
    assert again.gradient.baseline == "lagged"
    assert again.corruption.rate == 0.25
    model.likelihood = Laplace(MLP(2, [5]), 6)
    with pytest.raises(xhat.CheckpointError, match="parts of its own"):
        xhat.load(xhat.save(model, tmp_path / "own.safetensors"))


class Bare(nn.Module):
    """A module that is no Conditional: it says its event and returns a law."""

    def __init__(self, event, law):
        super().__init__()
        self.event, self.law = event, law

    def forward(self, context):
        return self.law(context)


@pytest.mark.parametrize(
    ("part", "law", "words"),
    [
        ("posterior", lambda x: td.Independent(td.Normal(torch.zeros(2), 1.0), 1), r"posterior Normal has batch shape \(\)"),
        ("posterior", lambda x: td.Normal(x[:, :2], 1.0), "wrap the law in torch.distributions.Independent"),
        ("posterior", lambda x: x[:, :2], "must return a torch Distribution"),
        ("posterior", lambda x: td.Normal(x @ torch.zeros(9, 2), 1.0), r"fails on a context of shape \(3, 6\)"),
        (
            "likelihood",
            lambda z: td.Independent(td.Normal(z.reshape(-1, 2) @ torch.ones(2, 6), 1.0), 1),
            r"likelihood Normal has batch shape \(6,\) for a context with batch shape \(2, 3\)",
        ),
    ],
)
def test_a_bare_module_that_does_not_fit_is_refused_when_the_model_is_made(part, law, words):
    with pytest.raises(ConfigError, match=words):
        small(**{part: Bare(2 if part == "posterior" else (6,), law)})


def test_names_in_place_of_parts_are_refused_in_words():
    for name, value in (("gradient", "score"), ("objective", "elbo"), ("corruption", "masking:0.5")):
        with pytest.raises(ConfigError, match=f"{name} must be a"):
            small(**{name: value})


def test_a_stacked_autoencoder_of_bare_modules_is_refused():
    with pytest.raises(ConfigError, match=r"its posterior must be one of xhat\.conditionals on an MLP, was Bare"):
        xhat.Stacked(Bare(2, lambda x: x), conditionals.Normal(MLP(2, []), 6, scale=1.0))


def test_the_guess_of_a_foreign_networks_features_stops_at_sequentials():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.skip = nn.Linear(6, 5), nn.Linear(6, 9)

        def forward(self, x):
            return self.main(x)

    with pytest.raises(ConfigError, match="does not say how many features"):
        conditionals.Normal(Net(), event=2)


def test_examples_come_in_any_form():
    model = small()
    expected = model.encode(X)
    for form in (xhat.Examples(X), X.numpy(), X.double(), X.numpy().astype(np.float64)):
        torch.testing.assert_close(model.encode(form), expected)
        torch.testing.assert_close(model.loss(form).shape, model.loss(X).shape)
    double = small().double()
    assert double.encode(X).dtype == torch.float64
    xhat.fit(double, X, epochs=1)


def test_a_law_without_a_mean_gets_the_average_of_fixed_draws():
    law = td.TransformedDistribution(td.Normal(torch.zeros(2), 1.0), [td.transforms.TanhTransform()])
    before = torch.random.get_rng_state()
    assert torch.equal(centre(law), centre(law))
    assert torch.equal(before, torch.random.get_rng_state())
    assert centre(law).abs().max() < 0.25
    assert torch.equal(centre(td.Normal(1.0, 2.0)), torch.tensor(1.0))


def test_objectives_that_need_a_closed_form_are_refused_where_there_is_none():
    flow = Bare(
        2,
        lambda x: td.Independent(td.TransformedDistribution(td.Normal(x[:, :2], 1.0), [td.transforms.SigmoidTransform()]), 1),
    )
    prior = priors.StandardNormal(2)
    for objective in (objectives.ELBO(kl="analytic"), objectives.ELBO(free_bits=0.1)):
        with pytest.raises(ConfigError, match="has no closed form"):
            small(prior=prior, posterior=flow, objective=objective)
    model = small(prior=prior, posterior=flow)
    assert xhat.evaluate(model, X, samples=3).kl_per_dimension is None


def test_the_best_weights_are_those_of_the_objective_that_was_asked_for():
    torch.manual_seed(0)
    model = small(objective=objectives.ELBO(free_bits=1.0))
    history = xhat.fit(model, X, X, epochs=30, lr=0.01)
    losses = [row["valid_loss"] for row in history.rows]
    assert history.best["valid_loss"] == min(losses)


def test_patience_does_not_count_while_beta_warms_up():
    model = small(objective=objectives.ELBO(warmup=8.0))
    history = xhat.fit(model, X, X, epochs=20, lr=1e-9, patience=1)
    assert len(history.rows) >= 9


def test_weights_that_are_not_finite_are_never_saved():
    model = small()
    loop = Loop(model, xhat.Examples(X), None, Settings())
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="no longer finite"):
        loop.check_weights()


def test_a_last_batch_of_one_joins_the_one_before():
    network = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU())
    model = small(posterior=conditionals.Normal(network, event=2))
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    xhat.fit(model, X[:33], epochs=1, batch_size=16)
    assert seen == [16, 17]


def test_nothing_to_train_is_said():
    model = small().requires_grad_(False)
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        xhat.fit(model, X, epochs=1)
