r"""CartPole by policy gradient: actions are random nodes too, and the estimator is the score function once more.

    pip install -e '.[rl]'
    python examples/policy_gradient.py

**A trajectory is one draw.** An episode τ = (s₁, a₁, s₂, a₂, …) comes from a law whose log-density splits,

    log p(τ) = [log p(s₁) + Σₜ log p(sₜ₊₁ | sₜ, aₜ)] + Σₜ log π(aₜ | sₜ),

into terms of the environment, which nobody needs to know since they hold no parameter, and terms of the policy π, which hold
all of them. With the return as f, the sum of rewards f(τ) = Σₜ rₜ, the score-function gradient

    ∇ E[f] = E[f(τ) ∇ log p(τ)] = E[Σₜ f(τ) ∇ log π(aₜ | sₜ)]

is the policy gradient (Williams 1992): ``xhat.expectation(f, q, gradient="score")`` with episodes for z. The environment is
part of f and of the draw, and is never differentiated. Several episodes in a batch are the S samples. Two things make it usable;
both subtract, from what multiplies a score, something that this score cannot have caused, so both leave the mean as it is:

- *Reward-to-go.* A reward earned before aₜ is settled when aₜ is drawn, and given the past E[∇ log π(aₜ | sₜ)] = 0. So each of
  those products is a control variate of mean zero. Putting that mean in its place (causality, which term by term is a
  Rao-Blackwellisation) leaves Gₜ = rₜ + rₜ₊₁ + … where f(τ) was.
- *A baseline of the context.* The same argument allows any b(cₜ) that is made of what is known before aₜ is drawn: here the
  state and the number of the step. ``xhat.gradients.ContextBaseline`` is the one of ``gradients.Score(network)``: a running
  average plus a network, trained on the squared error to Gₜ, and used on episodes drawn after those that it was trained on.

What is left is

    ∇ E[f] ≈ (1/S) Σ_episodes Σₜ (Gₜ − b(cₜ)) ∇ log π(aₜ | sₜ).

:func:`expected_return` is that in four lines: ``honest(value, surrogate)`` has the mean return for its value, so what is logged
is the truth, and this gradient for its backward. For episodes of one step it is ``xhat.expectation(f, q, gradients.Score())``,
draw by draw; and on a small problem its mean over all trajectories is the exact gradient (``tests/test_policy_gradient.py``).

Rewards are not discounted, there is no bonus for entropy, and no advantage is normalised (dividing by its spread only rescales
the step, and would blow up the noise where all episodes are equally good). Adam's rate falls linearly to 0.
"""

import argparse
import math
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from xhat.gradients import ContextBaseline, honest
from xhat.networks import MLP, head_of

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

GAME, STATE, ACTIONS, LONGEST = "CartPole-v1", 4, 2, 500
BATCH = 32  # episodes in a batch: the S samples of one estimate
RATE = 1e-2
UNIT = 100.0  # the baseline's network learns in hundreds of points, near 1, where networks start
EVALUATION = 100  # episodes


class Policy(nn.Module):
    """π(a | s), a conditional like the library's own: states ``(*batch, STATE)`` in, the law of the actions ``(*batch)`` out."""

    def __init__(self, network: nn.Module, actions: int = ACTIONS) -> None:
        super().__init__()
        self.network, self.head = network, head_of(network, (actions,))

    def forward(self, states: Tensor) -> Categorical:
        logits = self.head(self.network(states.flatten(0, -2)))
        return Categorical(logits=logits.unflatten(0, states.shape[:-1]), validate_args=False)


class Episodes(NamedTuple):
    """S episodes side by side; those that end before the longest are padded."""

    states: Tensor  # (T, S, STATE), what each action was drawn upon
    actions: Tensor  # (T, S)
    rewards: Tensor  # (T, S), 0 after the end
    alive: Tensor  # (T, S), False after the end


def reward_to_go(rewards: Tensor) -> Tensor:
    """Gₜ = rₜ + rₜ₊₁ + … of rewards ``(T, S)``: what was still to come when an action was drawn."""
    return rewards.flip(0).cumsum(0).flip(0)


def expected_return(log_prob: Tensor, rewards: Tensor, baseline: Tensor | float = 0.0, causal: bool = True) -> Tensor:
    """The mean return of S episodes, whose gradient is the policy gradient.

    Args:
        log_prob: log π(aₜ | sₜ), ``(T, S)``; 0 after an episode's end.
        rewards: ``(T, S)``; 0 after an episode's end.
        baseline: b(cₜ), ``(T, S)``; made of nothing that the action of its step has touched.
        causal: whether an action answers for what came after it only, or for the whole return.
    """
    returns = rewards.sum(0)
    credit = reward_to_go(rewards) if causal else returns.expand_as(rewards)
    signal = (credit - baseline).detach()
    return honest(returns.mean(), (signal * log_prob).sum(0).mean())


def environments(count: int) -> "VectorEnv":
    """So many games side by side, stepped by one call."""
    import gymnasium

    return gymnasium.make_vec(GAME, num_envs=count, vectorization_mode="vector_entry_point")


@torch.no_grad()
def play(games: "VectorEnv", policy: Policy, seed: int | None = None, greedy: bool = False) -> Episodes:
    """One episode of each game, with sampled actions or the likeliest; a seed makes the starts, None goes on from the last."""
    observed, _ = games.reset(seed=seed)
    alive = torch.ones(games.num_envs, dtype=torch.bool)
    steps = []
    while alive.any():
        states = torch.from_numpy(observed)
        law = policy(states)
        actions = law.logits.argmax(-1) if greedy else law.sample()
        observed, rewards, terminated, truncated, _ = games.step(actions.numpy())
        # A game that has ended starts anew by itself; what it does then is no part of the episode.
        steps.append((states, actions, torch.from_numpy(rewards).float() * alive, alive))
        alive = alive & ~torch.from_numpy(terminated | truncated)
    return Episodes(*(torch.stack(part) for part in zip(*steps, strict=True)))


def contexts(episodes: Episodes) -> Tensor:
    """What the baseline sees, ``(T, S, STATE + 1)``: the state, and the share of the longest episode that has passed.

    With the step's number it can know how much may still come; a policy need not, so π sees the state alone.
    """
    steps, count = episodes.actions.shape
    passed = (torch.arange(steps) / LONGEST).reshape(steps, 1, 1).expand(steps, count, 1)
    return torch.cat([episodes.states, passed], -1)


def train(policy: Policy, seed: int = 0, episodes: int = 3840, minutes: float = 4.0, quiet: bool = False) -> int:
    """Improve a policy, in batches, until the episodes or the minutes are spent or Ctrl-C is pressed.

    Returns:
        how many episodes were played.
    """
    games, began, played = environments(BATCH), time.monotonic(), 0
    baseline = ContextBaseline(MLP(STATE + 1, [64], "tanh"))
    optimizer = torch.optim.Adam([*policy.parameters(), *baseline.parameters()], lr=RATE)
    batches = math.ceil(episodes / BATCH)
    try:
        for batch in range(batches):
            if time.monotonic() - began >= 60 * minutes:
                break
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - batch / batches)  # by the batch and not by the clock, so that a seed repeats a run
            drawn = play(games, policy, seed if batch == 0 else None)
            played += BATCH
            context, to_go = contexts(drawn), reward_to_go(drawn.rewards) / UNIT
            log_prob = policy(drawn.states).log_prob(drawn.actions) * drawn.alive
            value = expected_return(log_prob, drawn.rewards, UNIT * baseline(context))
            auxiliary = baseline.loss(context[drawn.alive], to_go[drawn.alive])
            optimizer.zero_grad()
            (auxiliary - value).backward()
            optimizer.step()
            baseline.join(to_go[drawn.alive])  # only now: the running average of earlier batches is what these were compared with
            if not quiet and (batch % 10 == 9 or batch == batches - 1):
                print(f"{played:>6} episodes  mean return {value.item():6.1f}  {time.monotonic() - began:6.1f} s", flush=True)
    except KeyboardInterrupt:
        if not quiet:
            print(f"stopped after {played} episodes", flush=True)
    finally:
        games.close()
    return played


def evaluate(policy: Policy, seed: int, greedy: bool) -> Tensor:
    """The returns of fresh episodes, ``(EVALUATION,)``."""
    games = environments(EVALUATION)
    returns = play(games, policy, seed, greedy).rewards.sum(0)
    games.close()
    return returns


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the starts, the actions and the weights; from 0 on")
    parser.add_argument("--episodes", type=int, default=3840, help=f"to train on, rounded up to batches of {BATCH}")
    parser.add_argument("--minutes", type=float, default=4.0, help="after which training ends, whatever the episodes")
    parser.add_argument("--quiet", action="store_true", help="print the evaluation only")
    a = parser.parse_args()
    if a.seed < 0 or a.episodes < 0 or not a.minutes > 0:
        parser.error(
            f"--seed and --episodes must be at least 0 and --minutes above 0, were {a.seed}, {a.episodes} and {a.minutes:g}"
        )
    try:
        import gymnasium  # noqa: F401
    except ModuleNotFoundError:
        print("This example needs gymnasium: run pip install -e '.[rl]' in the repository's root.", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # the networks are too small to share out
    torch.manual_seed(a.seed)
    began = time.monotonic()
    policy = Policy(MLP(STATE, [32], "tanh"))
    played = train(policy, a.seed, a.episodes, a.minutes, a.quiet)
    figures = []
    for name, greedy in (("sampled", False), ("greedy", True)):
        returns = evaluate(policy, 1_000_000 + a.seed, greedy)  # starts that training has not seen
        figures.append(f"{name} actions {returns.mean():.1f} ± {returns.std() / EVALUATION**0.5:.1f}")
    seconds = time.monotonic() - began
    print(f"mean return over {EVALUATION} episodes: {', '.join(figures)}; {played} episodes of training, {seconds:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
