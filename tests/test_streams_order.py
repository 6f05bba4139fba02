"""The order of an epoch over a stream, and the threads that feed it."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import stats

from reading import one_sentence
from xhat.data import Examples, as_examples
from xhat.data.streams import Stream, streamed
from xhat.data.streams.order import InOrder, Windows
from xhat.errors import ConfigError, DataError


class Numbers(Stream):
    """Rows that say which they are, in pieces of given sizes; keeps account of what is read."""

    def __init__(self, sizes, scattered=False, dtype=torch.float32, width=3):
        self.name, self.shape, self.dtype, self.scattered = "numbers", (width,), dtype, scattered
        self.bounds = np.concatenate([[0], np.cumsum([sum(sizes)] if scattered else sizes)])
        self.reads, self.broken, self.wait, self.gate = [], None, 0.0, lambda indices: None

    def read(self, indices):
        time.sleep(self.wait)
        self.reads.append(indices)
        self.gate(indices)
        if self.broken is not None and bool((indices == self.broken).any()):
            raise DataError(f"row {self.broken} is broken")
        return (indices[:, None] % 1000 / 1000).expand(-1, *self.shape).to(self.dtype)

    def where(self, row):
        return f"numbers, row {row}"


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("xhat-")]


@pytest.fixture(autouse=True)
def _leaves_no_threads():
    assert threads() == []
    yield
    assert threads() == []


@pytest.fixture
def small_windows(monkeypatch):
    """Windows of 3 pieces of 20 rows."""
    monkeypatch.setattr(streamed, "WINDOW", 3 * 20 * 12)


SIZES = [[1], [5], [4, 4, 4, 1], [1, 1, 1], [20] * 31 + [3], [7, 1, 30, 2, 2, 19], [100, 1]]


@pytest.mark.parametrize("sizes", SIZES, ids=map(len, SIZES))
@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_every_example_comes_once_and_the_order_starts_anywhere(sizes, count):
    starts = np.concatenate([[0], np.cumsum(sizes)])
    order = Windows(starts, seed=4, pieces=count)
    n = sum(sizes)
    whole = order[:]
    assert whole.dtype == torch.int64
    assert len(order) == n
    assert whole.sort().values.tolist() == list(range(n))
    for start, stop in ((0, 1), (n // 2, n), (n - 1, n), (n // 3, n // 2 + 1), (n, n), (0, n + 5)):
        assert torch.equal(Windows(starts, seed=4, pieces=count)[start:stop], whole[start:stop])
    assert torch.equal(order[::3], whole[::3])


def test_a_window_holds_whole_pieces_and_mixes_them():
    starts = np.arange(0, 4001, 20)
    order = Windows(starts, seed=0, pieces=5)
    windows = order[:].reshape(-1, 100)
    for number, window in enumerate(windows):
        found = (window // 20).unique()
        assert len(found) == 5
        assert sorted(window.tolist()) == sorted(order.content(number).tolist())
        # mixed: the first half of a window comes from all its pieces
        assert len((window[:50] // 20).unique()) == 5
    assert not torch.equal(windows[:, 0].sort().values, windows[:, 0])
    offsets = order.seen(np.arange(4000)).offsets.reshape(-1, 100)
    assert len({tuple(row) for row in offsets}) == 40, "two windows are shuffled alike"
    for number, window in enumerate(windows):
        assert torch.equal(torch.from_numpy(order.content(number)[offsets[number]]), window)


def test_places_are_uniform_over_seeds():
    starts = np.array([0, 4, 8, 12, 16])
    counts = np.zeros((16, 16))
    for seed in range(3000):
        counts[np.arange(16), Windows(starts, seed, pieces=2)[:].numpy()] += 1
    assert stats.chisquare(counts.reshape(-1)).pvalue > 1e-4
    orders = {tuple(Windows(starts, seed, pieces=2)[:].tolist()) for seed in range(200)}
    assert len(orders) == 200


def test_resident_order_is_randperm_as_it_always_was():
    x = as_examples(torch.rand(101, 2))
    expected = torch.randperm(101, generator=torch.Generator().manual_seed(9))
    assert torch.equal(x.order(9)[:], expected)
    batches = list(x.feed(x.order(9), [(0, 50), (50, 101)]))
    assert torch.equal(torch.cat(batches), x[expected])


BOUNDS = [
    lambda n: [(start, min(start + 7, n)) for start in range(0, n, 7)],
    lambda n: [(start, min(start + 64, n)) for start in range(0, n, 64)],
    lambda n: [(0, n)],
    lambda n: [(n - 3, n), (0, 5), (n // 2, n // 2 + 1)],
    lambda n: [],
]


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("bounds", BOUNDS, ids=range(len(BOUNDS)))
@pytest.mark.usefixtures("small_windows")
def test_feed_gives_the_examples_of_the_order(scattered, bounds):
    x = Examples(Numbers([20] * 30 + [9], scattered)).subset(slice(3, 600))
    order, wanted = x.order(5), bounds(len(x))
    batches = list(x.feed(order, iter(wanted)))
    assert len(batches) == len(wanted)
    for (start, stop), batch in zip(wanted, batches, strict=True):
        assert batch.dtype == torch.float32
        assert torch.equal(batch, x[order[start:stop]])
        assert torch.equal((batch[:, 0] * 1000).round().long(), (order[start:stop] + 3) % 1000)


@pytest.mark.usefixtures("small_windows")
def test_each_row_is_read_once_an_epoch_in_whole_pieces():
    stream = Numbers([20] * 31)
    x = Examples(stream)
    assert sum(map(len, x.feed(x.order(0), BOUNDS[0](len(x))))) == 620
    assert torch.cat(stream.reads).sort().values.tolist() == list(range(620))
    assert len(stream.reads) == 11
    for rows in stream.reads:
        assert all(len(piece) % 20 == 0 for piece in [rows[rows // 20 == number] for number in (rows // 20).unique()])


class Pool(ThreadPoolExecutor):
    """Threads that say what was asked of them, and when they were told to stop."""

    pools: ClassVar = []

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.asked, self.stopped = 0, threading.Event()
        self.pools.append(self)

    def submit(self, *given):
        self.asked += 1
        return super().submit(*given)

    def shutdown(self, wait=True, *, cancel_futures=False):
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        self.stopped.set()
        super().shutdown(wait=wait)


@pytest.fixture
def pools(monkeypatch):
    monkeypatch.setattr("xhat.data.streams.feed.ThreadPoolExecutor", Pool)
    monkeypatch.setattr(Pool, "pools", [])
    return Pool.pools


@pytest.mark.usefixtures("small_windows")
def test_no_more_than_a_few_windows_are_read_ahead(pools):
    x = Examples(Numbers([20] * 300))
    batches = x.feed(x.order(0), [(start, start + 30) for start in range(0, 6000, 30)])
    next(batches)
    batches.close()
    # 17 batches of 30 lie in 9 windows of 60, and one more is read ahead
    assert [pool.asked for pool in pools] == [17, 10]


def test_a_list_of_indices_is_an_order_as_well():
    x = Examples(Numbers([20] * 5))
    chosen = torch.tensor([99, 3, 3, 50])
    assert torch.equal(torch.cat(list(x.feed(chosen, [(0, 3), (3, 4)]))), x[chosen])


@pytest.mark.parametrize("scattered", [False, True])
def test_what_a_thread_raises_is_raised_in_its_place(scattered):
    stream = Numbers([20] * 30, scattered)
    x = Examples(stream)
    order = InOrder(600) if scattered else x.order(0)
    stream.broken = 333
    seen = []
    with pytest.raises(DataError, match=r"^row 333 is broken$"):
        seen.extend(map(len, x.feed(order, BOUNDS[0](600))))
    assert sum(seen) == (329 if scattered else 0)


@pytest.mark.parametrize("leave", ["close", "break", "forget"])
def test_to_leave_early_stops_the_threads_at_once(leave, pools):
    stream = Numbers([20] * 100, scattered=True)
    x = Examples(stream)
    order, bounds = x.order(0), BOUNDS[0](2000)
    wanted = [order[start:stop] for start, stop in bounds[:2]]

    def gate(indices):
        """Whatever is read ahead takes until the threads are told to stop."""
        if not any(torch.equal(indices, rows) for rows in wanted):
            assert pools[0].stopped.wait(600)

    stream.gate = gate
    batches = x.feed(order, bounds)
    next(batches)
    assert len(threads()) == 2
    if leave == "close":
        batches.close()
    elif leave == "break":
        for _ in batches:
            break
    del batches
    assert threads() == []
    assert pools[0].asked >= 17
    assert len(stream.reads) <= 4  # the two that were wanted, and what each thread was at


def test_a_feed_that_is_never_begun_has_no_threads():
    x = Examples(Numbers([20] * 100))
    x.feed(x.order(0), BOUNDS[0](2000))
    x.batches(10)
    assert threads() == []


def test_bounds_that_fail_end_the_threads():
    x = Examples(Numbers([20] * 100))

    def bounds():
        yield 0, 5
        raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="own"):
        list(x.feed(x.order(0), bounds()))


@pytest.mark.usefixtures("small_windows")
def test_what_is_random_is_drawn_in_order_so_that_a_resumed_run_is_the_same():
    stream = Numbers([20] * 30)
    x = Examples(stream, binarize="dynamic")
    order, bounds = x.order(3), BOUNDS[0](600)
    torch.manual_seed(1)
    noise, whole, states = [], [], []
    for batch in x.feed(order, bounds):
        whole.append(batch)
        noise.append(torch.rand(2))  # the model's own draws, in between
        states.append(torch.get_rng_state())
    assert set(torch.cat(whole).unique().tolist()) == {0.0, 1.0}
    stream.wait = 0.002
    for step in (1, 40, 80):
        torch.set_rng_state(states[step - 1])
        for number, batch in enumerate(Examples(stream, binarize="dynamic").feed(x.order(3), bounds[step:]), start=step):
            assert torch.equal(batch, whole[number])
            assert torch.equal(torch.rand(2), noise[number])


def test_dynamic_binarisation_draws_what_bernoulli_draws():
    x = Examples(Numbers([20] * 10), binarize="dynamic")
    torch.manual_seed(2)
    batches = list(x.batches(64))
    torch.manual_seed(2)
    grey = Examples(Numbers([20] * 10))
    assert all(torch.equal(batch, torch.bernoulli(p)) for batch, p in zip(batches, grey.batches(64), strict=True))


# ---- sets of examples


VIEWS = [
    slice(10, 150),
    slice(None),
    slice(-30, None),
    slice(5, 190, 4),
    [3, 199, 3],
    torch.tensor([-1, 0]),
    np.arange(200) % 3 == 0,
]


@pytest.mark.parametrize("view", VIEWS, ids=range(len(VIEWS)))
def test_subsets_are_those_of_a_tensor_and_read_nothing(view):
    stream = Numbers([20] * 10)
    x = Examples(stream, torch.arange(200))
    held = Examples(stream.read(torch.arange(200)), torch.arange(200))
    stream.reads.clear()
    own, other = x.subset(view), held.subset(view)
    twice = [part.subset(slice(1, None)) for part in (own, other)]
    assert stream.reads == []
    assert not own.resident
    for one, two in ((own, other), twice):
        assert len(one) == len(two)
        assert torch.equal(one.tensor(), two.tensor())
        assert torch.equal(one.labels, two.labels)
        assert torch.equal(torch.cat(list(one.batches(7))), two.tensor())
        shuffled = torch.cat(list(one.feed(one.order(1), [(0, len(one))])))
        assert torch.equal(shuffled.sort(0).values, two.tensor().sort(0).values)


@pytest.mark.parametrize("index", [0, 199, -200, np.int64(7)])
def test_int_index_gives_one_example(index):
    x = Examples(Numbers([20] * 10))
    assert x[index].shape == (3,)
    assert float(x[index][0]) == pytest.approx(index % 200 / 1000)


def test_indices_out_of_range_and_the_end_of_iteration():
    x = Examples(Numbers([20] * 2))
    assert sum(1 for _ in x) == 40
    for index in (40, -41, [0, 40], np.ones(39, bool)):
        with pytest.raises(IndexError):
            x[index]
    with pytest.raises(DataError, match="no examples"):
        x.subset([])
    with pytest.raises(ConfigError, match="batch size"):
        x.batches(0)


def test_fixed_is_a_function_of_the_seed_and_the_row():
    stream = Numbers([200] * 50, width=2)
    x = Examples(stream, torch.arange(10_000), binarize="dynamic")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one = x.fixed(7)
    whole = one.tensor()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x.fixed(7).tensor(), whole)
    assert torch.equal(one[[5000, 3]], whole[[5000, 3]])
    assert torch.equal(x.subset(slice(4000, 6000)).fixed(7).tensor(), whole[4000:6000])
    order = one.order(1)
    assert torch.equal(torch.cat(list(one.feed(order, [(0, 77), (77, 10_000)]))), whole[order[:]])
    assert not torch.equal(x.fixed(8).tensor(), whole)
    assert torch.equal(one.labels, x.labels)
    p = stream.read(torch.arange(10_000)).double()
    assert abs((whole - p).sum()) <= 4 * (p * (1 - p)).sum().sqrt()
    assert abs(np.corrcoef((whole - p).T)[0, 1]) < 0.04
    plain = Examples(stream)
    assert plain.fixed(0) is plain


def test_binarisation_refuses_by_row_what_is_no_probability():
    class Off(Numbers):
        def read(self, indices):
            return super().read(indices) - (indices == 57)[:, None].float()

    x = Examples(Off([20] * 5), binarize="dynamic")
    for part in (x, x.fixed(0)):
        with pytest.raises(DataError) as error:
            list(part.feed(part.order(0), [(0, 100)]))
        one_sentence(error.value, "numbers, row 57 ", "-0.943", "[0, 1]")


@pytest.mark.parametrize(("wrong", "word"), [(np.nan, "nan"), (np.inf, "inf"), (1e300, "inf")])
def test_values_that_are_not_finite_are_refused_by_row(wrong, word):
    class Off(Numbers):
        def read(self, indices):
            values = super().read(indices)
            values[indices == 71, 2] = wrong
            return values

    x = Examples(Off([20] * 5, dtype=torch.float64)).subset(slice(10, None))
    with pytest.raises(DataError) as error:
        list(x.feed(x.order(0), [(0, 90)]))
    one_sentence(error.value, "numbers, row 71 ", word, "(2,)", "finite")


def test_a_check_of_the_model_names_the_row():
    def check(batch, where, first):
        bad = (batch[:, 0] > 0.0425).nonzero()
        if len(bad):
            raise DataError(f"{where}: example {first + int(bad[0])} is too large")

    stream = Numbers([20] * 5)
    x = Examples(stream).checked(check)
    assert len(x[:43]) == 43
    with pytest.raises(DataError, match=r"^numbers, row 43: example 0 is too large"):
        x.tensor()
    held = Examples(stream.read(torch.arange(100)))
    with pytest.raises(DataError, match=r"^mine: example 43 is too large"):
        held.checked(check, "mine")
    with pytest.raises(DataError, match="too large"):
        Examples(stream, binarize="dynamic").checked(check)


def test_streamed_examples_say_so_and_have_no_storage():
    x = Examples(Numbers([20] * 5), binarize="dynamic")
    assert not x.resident
    assert as_examples(torch.rand(2, 2)).resident
    assert "streamed" in repr(x)
    assert x.shape == (3,)
    assert x.to("cpu") is x
    assert x.device.type == "cpu"
    with pytest.raises(DataError) as error:
        _ = x.storage
    one_sentence(error.value, "numbers", "batches", "--memory load")


def test_more_than_memory_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr("xhat.data.memory.available_memory", lambda: 10**6)
    stream = Numbers([20_000] * 2)
    x = Examples(stream)
    for fetch in (x.tensor, lambda: x[5:39_000], lambda: np.asarray(x)):
        with pytest.raises(DataError) as error:
            fetch()
        one_sentence(error.value, "numbers", "batches")
    assert stream.reads == []
    assert sum(map(len, x.batches(500))) == 40_000


def test_many_seeds_give_many_orders_of_a_subset():
    x = Examples(Numbers([20] * 10)).subset(slice(17, 22))  # of two pieces
    seen = {tuple(x.order(seed)[:].tolist()) for seed in range(1500)}
    assert seen == set(itertools.permutations(range(5)))


@pytest.mark.parametrize("binarize", [None, "dynamic"])
def test_batches_are_pinned_where_a_gpu_can_use_it(binarize):
    x = Examples(Numbers([20] * 5), binarize=binarize)
    batches = list(x.feed(x.order(0), [(0, 50), (50, 100)], pin=True))
    assert [batch.is_pinned() for batch in batches] == [torch.cuda.is_available()] * 2
