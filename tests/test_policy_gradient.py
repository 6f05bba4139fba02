"""The policy gradient of examples/policy_gradient.py: the score-function estimator on a sequence, and no other.

Its mean is taken over all trajectories of a small problem, each with its probability, so it comes out exactly.
"""

import copy
import importlib.util
import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

import xhat
from xhat.gradients import Score
from xhat.networks import MLP

SCRIPT = Path(__file__).parents[1] / "examples" / "policy_gradient.py"


def _example():
    spec = importlib.util.spec_from_file_location("policy_gradient", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


example = _example()

# A problem of two steps, two states and two actions; p(s'|s, a) and the rewards of (step, state, action).
STEPS = 2
generator = torch.Generator().manual_seed(0)
START = torch.tensor([0.3, 0.7], dtype=torch.float64)
MOVES = torch.rand(2, 2, 2, generator=generator, dtype=torch.float64).softmax(-1)
REWARDS = 3 + torch.randn(STEPS, 2, 2, generator=generator, dtype=torch.float64)
CONTEXT_BASELINE = torch.tensor([[7.0, 5.0], [2.0, 4.0]], dtype=torch.float64)  # of (step, state)


class Trajectory(NamedTuple):
    states: tuple[int, ...]
    actions: tuple[int, ...]

    @property
    def rewards(self) -> Tensor:
        rows = zip(range(STEPS), self.states, self.actions, strict=True)
        return torch.stack([REWARDS[row] for row in rows]).unsqueeze(1)  # (T, 1)

    def log_prob(self, logits: Tensor) -> Tensor:
        """log π of the actions, ``(T, 1)``."""
        return logits.log_softmax(-1)[list(self.states), list(self.actions)].unsqueeze(1)

    def probability(self, logits: Tensor) -> Tensor:
        environment = START[self.states[0]] * MOVES[self.states[0], self.actions[0], self.states[1]]
        return environment * self.log_prob(logits).sum().exp()


ALL = [Trajectory((s1, s2), (a1, a2)) for s1, s2, a1, a2 in itertools.product(range(2), repeat=4)]


@pytest.fixture
def logits() -> Tensor:
    return torch.tensor([[0.4, -0.3], [-0.8, 0.5]], dtype=torch.float64, requires_grad=True)


def of_state(trajectory: Trajectory) -> Tensor:
    return CONTEXT_BASELINE[range(STEPS), list(trajectory.states)].unsqueeze(1)


def of_action(trajectory: Trajectory) -> Tensor:
    """The trap: what the action itself has changed."""
    return trajectory.rewards


def enumerated(logits: Tensor, baseline, causal: bool) -> tuple[Tensor, Tensor]:
    """The exact mean and the exact variance of the gradient of one episode."""
    weights = torch.stack([t.probability(logits) for t in ALL]).detach()
    assert torch.isclose(weights.sum(), torch.ones((), dtype=torch.float64))
    rows = []
    for t in ALL:
        value = example.expected_return(t.log_prob(logits), t.rewards, baseline(t), causal)
        assert value.item() == t.rewards.sum().item()  # what is logged is the return
        rows.append(torch.autograd.grad(value, logits)[0].flatten())
    gradients = torch.stack(rows)
    mean = weights @ gradients
    return mean, weights @ (gradients - mean).square()


def exact(logits: Tensor) -> Tensor:
    expected = torch.stack([t.probability(logits) * t.rewards.sum() for t in ALL]).sum()
    return torch.autograd.grad(expected, logits)[0].flatten()


def none(trajectory: Trajectory) -> float:
    return 0.0


def test_reward_to_go_of_a_trajectory_made_by_hand():
    # The second episode ended after two steps.
    rewards = torch.tensor([[1.0, 5.0], [0.0, -1.0], [2.0, 0.0], [4.0, 0.0]])
    expected = torch.tensor([[7.0, 4.0], [6.0, -1.0], [6.0, 0.0], [4.0, 0.0]])
    assert torch.equal(example.reward_to_go(rewards), expected)


@pytest.mark.parametrize("causal", [True, False], ids=["reward-to-go", "whole return"])
@pytest.mark.parametrize("baseline", [none, of_state], ids=["no baseline", "baseline"])
def test_mean_over_all_trajectories_is_the_gradient(logits, baseline, causal):
    mean, _ = enumerated(logits, baseline, causal)
    torch.testing.assert_close(mean, exact(logits), rtol=0, atol=1e-12)


def test_a_baseline_that_the_action_has_touched_is_seen_to_be_wrong(logits):
    mean, _ = enumerated(logits, of_action, True)
    assert (mean - exact(logits)).abs().max() > 0.01


def test_reward_to_go_and_a_baseline_each_lower_the_variance(logits):
    _, whole = enumerated(logits, none, False)
    _, to_go = enumerated(logits, none, True)
    _, both = enumerated(logits, of_state, True)
    assert (to_go < whole).all()
    assert (both < to_go).all()


def test_the_rewards_of_the_past_have_mean_zero_against_the_score(logits):
    # What reward-to-go drops: r₁ ∇ log π(a₂ | s₂).
    terms = [
        t.probability(logits).detach() * torch.autograd.grad(t.rewards[0, 0] * t.log_prob(logits)[1, 0], logits)[0] for t in ALL
    ]
    assert torch.stack(terms).sum(0).abs().max() < 1e-12


def test_several_episodes_are_the_samples(logits):
    episodes = [ALL[3], ALL[9], ALL[14]]
    rewards = torch.cat([t.rewards for t in episodes], 1)
    together = example.expected_return(torch.cat([t.log_prob(logits) for t in episodes], 1), rewards)
    apart = torch.stack([example.expected_return(t.log_prob(logits), t.rewards) for t in episodes]).mean()
    torch.testing.assert_close(together, apart)
    of_together, of_apart = (torch.autograd.grad(value, logits)[0] for value in (together, apart))
    torch.testing.assert_close(of_together, of_apart)


@pytest.mark.parametrize("kind", ["none", "network"])
def test_with_one_step_it_is_the_score_function_gradient_of_the_library(kind):
    arms, pulls = torch.tensor([1.0, -2.0, 0.5]), 64
    logits = torch.tensor([0.2, -0.4, 1.0], requires_grad=True)
    drawn = []

    def pay(z: Tensor) -> Tensor:
        drawn.append(z)
        return arms[z]

    context = torch.ones(4)
    estimator = Score() if kind == "none" else Score(MLP(4, [8]))
    baseline: Tensor | float = 0.0
    if estimator.learned is not None:
        estimator.learned.join(torch.tensor([0.3]))
        estimator.see(context)
        baseline = copy.deepcopy(estimator.learned)(context)
        assert baseline.abs() > 0.01
    ours = xhat.expectation(pay, Categorical(logits=logits), estimator, samples=pulls)
    (expected,) = torch.autograd.grad(ours, logits)

    (actions,) = drawn  # an episode is one pull; its law is π itself
    actions = actions.unsqueeze(0)  # (T = 1, S)
    value = example.expected_return(Categorical(logits=logits).log_prob(actions), arms[actions], baseline)
    assert value.item() == pytest.approx(ours.item(), rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(value, logits)[0], expected)


def test_without_gymnasium_one_sentence_says_what_to_do():
    hidden = (
        "import runpy, sys; sys.modules['gymnasium'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", hidden, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "pip install -e '.[rl]'" in done.stderr


def _policy():
    pytest.importorskip("gymnasium")
    return example.Policy(MLP(example.STATE, [32], "tanh"))


def test_an_episode_ends_once():
    policy, games = _policy(), example.environments(8)
    drawn = example.play(games, policy, seed=0)
    games.close()
    steps = drawn.alive.sum(0)
    assert (drawn.rewards.sum(0) == steps).all()  # a point for each step, none after the end
    assert (drawn.alive.long().diff(dim=0) <= 0).all()
    assert len(drawn.states) == steps.max() > steps.min()
    assert example.contexts(drawn).shape == (*drawn.actions.shape, example.STATE + 1)


def test_the_same_game_alone_gives_the_same_return():
    gymnasium = pytest.importorskip("gymnasium")
    policy, games = _policy(), example.environments(3)
    drawn = example.play(games, policy, seed=1, greedy=True)
    games.close()
    alone = gymnasium.make(example.GAME).unwrapped
    for s in range(3):
        alone.reset()
        alone.state = tuple(drawn.states[0, s].double().tolist())
        lasted, ended = 0, False
        while not ended and lasted < example.LONGEST:
            torch.testing.assert_close(torch.tensor(alone.state).float(), drawn.states[lasted, s], rtol=1e-3, atol=1e-4)
            _, _, ended, _, _ = alone.step(int(drawn.actions[lasted, s]))
            lasted += 1
        assert lasted == drawn.alive[:, s].sum()


def test_a_short_training_improves_the_mean_return(capsys):
    policy = _policy()
    before = example.evaluate(policy, 1_000_000, greedy=False).mean()
    assert example.train(policy, seed=0, episodes=960, minutes=math.inf, quiet=True) == 960
    after = example.evaluate(policy, 1_000_000, greedy=False).mean()
    assert capsys.readouterr().out == ""
    assert before < 40
    assert after > 2 * before


def test_a_seed_repeats_a_run():
    ends = []
    for _ in range(2):
        torch.manual_seed(3)
        policy = _policy()
        example.train(policy, seed=3, episodes=96, minutes=math.inf, quiet=True)
        ends.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    assert torch.equal(*ends)


def test_interrupted_training_keeps_what_it_has(monkeypatch):
    policy, first = _policy(), example.play
    calls = []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return first(*arguments, **options)

    monkeypatch.setattr(example, "play", interrupted)
    assert example.train(policy, episodes=320, minutes=math.inf, quiet=True) == 2 * example.BATCH
