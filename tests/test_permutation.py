"""A permutation that is computed: a bijection, uniform, and the same everywhere."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from xhat.data.counter import keys, uniform
from xhat.data.permutation import Permutation, permuted
from xhat.errors import ConfigError

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 97, 127, 128, 129, 255, 256, 257, 1000, 4093, 65_536, 65_537, 100_003]


@pytest.mark.parametrize("n", SIZES)
def test_it_is_a_bijection(n):
    order = Permutation(n, seed=3)[:]
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(n))


@pytest.mark.parametrize("n", [2**31 - 1, 2**40 + 7, 2**62])
def test_large_ones_stay_inside_and_repeat_nothing(n):
    positions = torch.cat([torch.arange(2000), torch.tensor([n - 1, n // 2])])
    order = Permutation(n, seed=1)(positions)
    assert len(order.unique()) == len(positions)
    assert int(order.min()) >= 0
    assert int(order.max()) < n
    assert int(order.max()) > n // 2


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7])
def test_all_orders_of_a_few_are_equally_likely(n):
    draws = 60 * math.factorial(n)
    seeds = keys(0, np.arange(draws))
    columns = [permuted(np.full(draws, i), n, seeds) for i in range(n)]
    code = sum(column * n**i for i, column in enumerate(columns))
    counts = np.unique(code, return_counts=True)[1]
    assert len(counts) == math.factorial(n)
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("n", [9, 16, 31, 100, 200, 257])
@pytest.mark.parametrize("pair", [(0, 1), (3, 8)])
def test_pairs_of_positions_are_uniform_over_seeds(n, pair):
    draws = 20 * n * n
    seeds = keys(1, np.arange(draws))
    first, second = (permuted(np.full(draws, i), n, seeds) for i in pair)
    counts = np.bincount(first * n + second, minlength=n * n).reshape(n, n)
    assert counts.diagonal().sum() == 0
    assert stats.chisquare(counts[~np.eye(n, dtype=bool)]).pvalue > 1e-4


def test_one_permutation_of_many_scatters_neighbours():
    n, bins = 1_000_000, 20
    order = Permutation(n, seed=0)[:200_000].numpy()
    pairs = np.bincount((order[:-1] * bins // n) * bins + order[1:] * bins // n, minlength=bins * bins)
    assert stats.chisquare(pairs).pvalue > 1e-4
    steps = np.diff(order)
    assert np.abs(stats.pearsonr(order[:-1], order[1:]).statistic) < 4 / math.sqrt(len(order))
    assert len(np.unique(steps)) > 0.9 * len(steps)


def test_seeds_are_apart():
    orders = [Permutation(10_000, seed)[:] for seed in (0, 1, 2, -1, 2**63)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            # two independent permutations agree in one place on average
            assert int((one == other).sum()) < 8


def test_it_is_the_same_on_every_platform():
    assert Permutation(10, seed=0)[:].tolist() == PINNED[10]
    assert Permutation(1000, seed=7)[:6].tolist() == PINNED[1000]
    assert Permutation(2**62, seed=7)[:2].tolist() == PINNED[2**62]


def test_each_size_and_key_has_its_own_permutation():
    sizes = np.repeat([1, 5, 300], [1, 5, 300])
    own = np.repeat(keys(0, [0, 1, 2]), [1, 5, 300])
    positions = np.concatenate([np.arange(size) for size in (1, 5, 300)])
    together = permuted(positions, sizes, own)
    apart = [permuted(np.arange(size), size, keys(0, number)) for number, size in enumerate((1, 5, 300))]
    assert together.tolist() == np.concatenate(apart).tolist()


def test_a_long_stretch_is_what_short_ones_are():
    order = Permutation(300_000, seed=5)
    assert torch.equal(order[100:200_000], torch.cat([order[100:70_000], order[70_000:200_000]]))
    assert torch.equal(order[10:20:3], order(torch.tensor([10, 13, 16, 19])))


@pytest.mark.parametrize("n", [0, -1, 2**62 + 1, 2.5, True])
def test_sizes_out_of_range_are_refused(n):
    with pytest.raises(ConfigError, match="n "):
        Permutation(n, seed=0)


@pytest.mark.parametrize("position", [-1, 10])
def test_positions_out_of_range_are_refused(position):
    with pytest.raises(ConfigError, match="from 0 to 9"):
        Permutation(10, 0)(torch.tensor([0, position]))


def test_uniform_draws_are_uniform_and_belong_to_their_row():
    drawn = uniform(4, np.arange(3000), 40)
    assert drawn.dtype == np.float32
    assert 0 <= drawn.min() < drawn.max() < 1
    assert stats.kstest(drawn.reshape(-1), "uniform").pvalue > 1e-3
    for one, other in ((drawn[:, 0], drawn[:, 1]), (drawn[:-1, 3], drawn[1:, 3]), (drawn[:-1, 1], drawn[1:, 0])):
        assert abs(stats.pearsonr(one, other).statistic) < 4 / math.sqrt(3000)
    assert np.array_equal(uniform(4, np.array([2999, 0, 7]), 40), drawn[[2999, 0, 7]])
    assert abs(stats.pearsonr(uniform(5, np.arange(3000), 40)[:, 0], drawn[:, 0]).statistic) < 4 / math.sqrt(3000)


PINNED = {
    10: [0, 6, 5, 4, 8, 9, 1, 7, 3, 2],
    1000: [286, 864, 730, 487, 62, 13],
    2**62: [2716231919478643590, 3037622113506819339],
}
