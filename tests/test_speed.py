"""The guard against getting slower judges rightly. It measures in ``make guard``, never here: a test holds on every machine."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RATIOS = {"xhat-eager": 1.2, "xhat": 0.6}


@pytest.fixture
def guard(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.speed import guard

    monkeypatch.setattr(guard, "STORED", tmp_path / "guard.json")
    monkeypatch.setattr(guard, "this_machine", lambda: HERE(guard))
    monkeypatch.setattr(guard.time, "sleep", lambda seconds: None)
    return guard


def HERE(guard, **other):
    return guard.Machine(**{"silicon": {"family": "25", "instructions": ["avx2"]}, "torch": "2.13.0", "product": 60.0, **other})


def measuring(guard, monkeypatch, *rounds):
    """A meter that finds these multiples of the ratios, round after round."""

    class Meter:
        def __init__(self, names):
            self.names, self.rounds = names, iter(rounds)

        def measure(self):
            factor = next(self.rounds)
            return {name: factor * RATIOS[name] for name in self.names}

    monkeypatch.setattr(guard, "Meter", Meter)


def test_a_machine_without_ratios_gets_its_own_and_is_told(guard, monkeypatch):
    said = []
    measuring(guard, monkeypatch, *[1.0] * guard.ATTEMPTS)
    assert guard.check(tuple(RATIOS), say=said.append)
    assert "stored its own" in said[0]
    assert [row.ratios for row in guard.read()] == [RATIOS]
    assert guard.read()[0].machine == HERE(guard)


@pytest.mark.parametrize("name", RATIOS)
def test_a_loss_has_to_come_back(guard, monkeypatch, name):
    """A slow first attempt is forgiven, a slow step is not."""
    guard.write(HERE(guard), RATIOS)
    measuring(guard, monkeypatch, 3.0, 1.1)
    assert guard.check((name,))
    measuring(guard, monkeypatch, *[1.3] * guard.ATTEMPTS)
    assert not guard.check((name,))
    assert guard.read()[0].ratios == RATIOS  # a loss never becomes what is compared with


def test_ratios_of_another_machine_are_not_held_against_this_one(guard, monkeypatch):
    for other in ({"silicon": {"family": "25", "instructions": ["avx512f"]}}, {"torch": "2.14.0"}, {"product": 20.0}):
        guard.write(HERE(guard, **other), {name: ratio / 9 for name, ratio in RATIOS.items()})
    measuring(guard, monkeypatch, *[1.0] * guard.ATTEMPTS)
    assert guard.check(tuple(RATIOS))
    assert len(guard.read()) == 4
    measuring(guard, monkeypatch, *[1.3] * guard.ATTEMPTS)
    assert not guard.check(tuple(RATIOS))


def test_ratios_taken_anew_replace_the_old_ones(guard, monkeypatch):
    guard.write(HERE(guard), RATIOS)
    measuring(guard, monkeypatch, *[2.0] * guard.ATTEMPTS)
    assert guard.check(tuple(RATIOS), anew=True)
    assert [row.ratios for row in guard.read()] == [{name: 2 * ratio for name, ratio in RATIOS.items()}]
