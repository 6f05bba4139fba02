"""Data-parallel steps: a batch is cut into shards, the processes share the shards, and one sum makes a batch of them again."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from xhat.data import Batch, Examples
from xhat.errors import ConfigError
from xhat.gradients.baselines import Lagged
from xhat.models.base import Model, Stage
from xhat.ranks import Ranks, stream_seed
from xhat.training.engine import Bounds, Engine, Taken
from xhat.training.program import Derived

BUCKET = 2**26  # bytes that are summed over the processes at once: enough to fill any wire


class Shards:
    """How a batch is cut: into ``count`` stretches of one size, or of two sizes that differ by 1.

    The cut depends on nothing but its number, so a run is the same whatever number of processes shares the work. Each shard
    draws from a random stream of its own, a pure function of (seed, step, shard), with steps counted through all stages.

    Of examples in memory each shard is a stretch of the batch. Of streamed ones each shard has a stretch of the *file* to itself,
    in an order of its own: a process then reads its part of the file and no more.

    Args:
        count: the number of shards.
        size: examples in a batch.
        batches: batches of an epoch, of which the last may have another size.
        examples: N.

    >>> shards = Shards(2, size=5, batches=2, examples=8)
    >>> shards.cut(0, 5), shards.cut(5, 8), shards.stretch(0), shards.stretch(1)
    ([(0, 2), (2, 5)], [(5, 6), (6, 8)], (0, 3), (3, 8))
    """

    def __init__(self, count: int, size: int, batches: int, examples: int) -> None:
        self.count, self.size, self.batches, self.examples = count, size, batches, examples

    def piece(self, start: int, stop: int, shard: int) -> tuple[int, int]:
        """A shard of a batch, as a stretch of the epoch's order; empty for some where there are fewer examples than shards."""
        size = stop - start
        return start + size * shard // self.count, start + size * (shard + 1) // self.count

    def cut(self, start: int, stop: int) -> list[tuple[int, int]]:
        """All shards of a batch."""
        return [self.piece(start, stop, shard) for shard in range(self.count)]

    def _size(self, shard: int) -> int:
        start, stop = self.piece(0, self.size, shard)
        return stop - start

    def stretch(self, shard: int) -> tuple[int, int]:
        """The stretch of a file that a shard reads: as many examples as it gets from all batches of an epoch."""
        whole, last = self.batches - 1, (self.batches - 1) * self.size
        sizes = [whole * self._size(other) + stop - start for other, (start, stop) in enumerate(self.cut(last, self.examples))]
        return sum(sizes[:shard]), sum(sizes[: shard + 1])

    def _inside(self, bounds: Bounds, shard: int) -> Iterator[tuple[int, int]]:
        """A shard's part of each batch, counted within its stretch."""
        place = bounds[0][0] // self.size * self._size(shard)
        for bound in bounds:
            start, stop = self.piece(*bound, shard)
            yield place, place + stop - start
            place += stop - start

    def _feed(self, examples: Examples, order: Any, bounds: Bounds, shard: int, fetched: Fetch) -> Iterator[Tensor | Batch]:
        """A shard's part of each batch that has one, one by one: an epoch may have millions of batches."""
        if examples.resident:
            pieces = (self.piece(*bound, shard) for bound in bounds)
            return fetched(examples, order, (piece for piece in pieces if piece[0] < piece[1]))
        own = examples.subset(slice(*self.stretch(shard)))
        inside = (piece for piece in self._inside(bounds, shard) if piece[0] < piece[1])
        return fetched(own, own.order(stream_seed(order, shard)), inside)

    @contextlib.contextmanager
    def feeds(
        self, examples: Examples, seed: int, bounds: Bounds, ranks: Ranks, fetched: Fetch
    ) -> Iterator[dict[int, Iterator[Tensor | Batch]]]:
        """The feeds of a process's shards, by the shard's number, for the time of a block. The shards are dealt out in turn."""
        own = range(ranks.rank, self.count, ranks.world)
        order = examples.order(seed) if examples.resident and own else seed
        feeds = {shard: self._feed(examples, order, bounds, shard, fetched) for shard in own}
        try:
            yield feeds
        finally:
            for feed in feeds.values():
                feed.close()  # type: ignore[attr-defined]


Fetch = Callable[[Examples, Any, Any], Iterator[Tensor | Batch]]


class Sum:
    """Weighted sums of lists of tensors over shards and processes, in few large pieces of memory.

    One large sum over the processes takes less time than one for each weight; torch's own ``DistributedDataParallel`` gathers
    weights in buckets, too, and starts to sum the first while the rest is being derived. Here the sum begins when the derivative
    is whole: the traced program then is the same for one process and for many, compiled or not.
    """

    def __init__(self, like: Sequence[Tensor], ranks: Ranks) -> None:
        self.ranks = ranks
        self.buckets: list[Tensor] = []
        self.views: list[Tensor] = []
        waiting: list[Tensor] = []
        for tensor in like:
            alike = bool(waiting) and (tensor.dtype, tensor.device) == (waiting[0].dtype, waiting[0].device)
            if waiting and not (alike and _bytes([*waiting, tensor]) <= BUCKET):
                self._close(waiting)
                waiting = []
            waiting.append(tensor)
        self._close(waiting)

    def _close(self, tensors: list[Tensor]) -> None:
        bucket = tensors[0].new_zeros(sum(tensor.numel() for tensor in tensors))
        parts = bucket.split([tensor.numel() for tensor in tensors])
        self.buckets.append(bucket)
        self.views += [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def clear(self) -> None:
        """Begin at zero."""
        torch._foreach_zero_(self.buckets)

    def join(self, tensors: Sequence[Tensor], weight: float) -> None:
        """Add tensors of this process, times a weight."""
        torch._foreach_add_(self.views, list(tensors), alpha=weight)

    def total(self) -> list[Tensor]:
        """The sums over all processes; good until the next :meth:`clear`."""
        self.ranks.add(self.buckets)
        return self.views


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Work(NamedTuple):
    """How the work of a step is shared.

    Attributes:
        shards: how a batch is cut.
        ranks: the processes.
        seed: of the shards' random streams.
        now: gives the number of the step to come.
        asked: says whether this process was asked to stop, which the others hear of with the next sum.
    """

    shards: Shards
    ranks: Ranks
    seed: int
    now: Callable[[], int]
    asked: Callable[[], bool]

    def draw(self, step: int, shard: int) -> None:
        """Go on with the random stream of a shard; a batch in one piece draws on as it always does."""
        if self.shards.count > 1:
            torch.manual_seed(stream_seed(self.seed, step, shard))


class Sharded(Engine):
    """Takes the steps of another engine in shards, and shares these among the processes.

    Args:
        inner: gives the loss and its derivative for a shard, eagerly or compiled.
        work: how it is shared.
    """

    def __init__(self, inner: Engine, work: Work) -> None:
        super().__init__(inner.program, inner.optimizer, inner.clip, inner.size)
        self.name = inner.name
        self.derive: Callable[[Tensor | Batch], Derived] = getattr(inner, "derive", inner.program)
        self.work, self.ranks, self.shards = work, work.ranks, work.shards
        # An average of earlier values moves with every shard: each begins where the step began, and their mean is the batch's
        modules = [*inner.program.module.modules(), *inner.program.gradient.modules()]
        self.kept = [buffer for module in dict.fromkeys(modules) if isinstance(module, Lagged) for buffer in module.buffers()]
        self._sum: Sum | None = None
        self._used: list[bool] = []
        self._names: tuple[str, ...] = ()

    def steps(self, examples: Examples, order: Any, bounds: Bounds) -> Iterator[Taken]:
        """As every engine's; but ``order`` is the order's seed, for a shard may have an order of its own."""
        bounds = list(bounds)
        if not bounds:
            return
        with self.shards.feeds(examples, order, bounds, self.ranks, self.fetched) as feeds:
            for start, stop in bounds:
                yield self._step(feeds, examples, start, stop)

    def _step(self, feeds: dict[int, Iterator[Tensor | Batch]], examples: Examples, start: int, stop: int) -> Taken:
        before = [buffer.clone() for buffer in self.kept]
        cuts, step = self.shards.cut(start, stop), self.work.now()
        if self._sum is not None:
            self._sum.clear()
        for shard, feed in feeds.items():
            first, last = cuts[shard]
            if first < last:
                self.work.draw(step, shard)
                self._join(next(feed), (last - first) / (stop - start), before)
        if self._sum is None:
            # A process without a shard learns from one example what the others' sums are made of, and adds nothing to them
            self._join(next(self.fetched(examples, torch.tensor([0]), [(0, 1)])), 0.0, before)
        return self._moved(stop - start)

    def _join(self, x: Tensor | Batch, weight: float, before: list[Tensor]) -> None:
        for buffer, value in zip(self.kept, before, strict=True):
            buffer.copy_(value)
        values, derivatives, self._names = self.derive(x)
        told = torch.cat([values, values.new_zeros(1)])  # and room for the wish to stop
        tensors = [*(d for d in derivatives if d is not None), *self.kept, told]
        if self._sum is None:
            self._sum, self._used = Sum(tensors, self.ranks), [d is not None for d in derivatives]
        if weight > 0:
            self._sum.join(tensors, weight)

    def _moved(self, size: int) -> Taken:
        assert self._sum is not None
        if self.work.asked():
            self._sum.views[-1][-1] = 1.0
        *sums, told = self._sum.total()
        derivatives = iter(sums[: len(sums) - len(self.kept)])
        for buffer, value in zip(self.kept, sums[len(sums) - len(self.kept) :], strict=True):
            buffer.copy_(value)
        used = tuple(next(derivatives) if is_used else None for is_used in self._used)
        return self.update((told.clone(), used, self._names), size, self.rate)


def refuse_shards(model: Model, stage: Stage, x: Tensor | Batch, count: int) -> None:
    """Refuse what a batch in shards would not be the same for.

    Args:
        model: what is trained.
        stage: the stage to begin.
        x: some examples, to find parts that keep a running state.
        count: the number of shards.

    Raises:
        ConfigError: names the part, and the remedy.
    """
    alone = f"train with shards=1 in one process (--shards 1); {count} shards were asked for"
    for name, module in stage.module.named_modules():
        if isinstance(module, _BatchNorm):
            raise ConfigError(
                f"{type(module).__name__} ({name}) normalises by the whole batch, and a shard is a part of it: use nn.GroupNorm "
                f"or nn.LayerNorm, or {alone}"
            )
    if stage.objective.coupled:
        raise ConfigError(
            f"{stage.objective.coupled}, and a shard is a part of it: use an objective that takes each example by itself, such "
            f"as an ELBO with beta_warmup, or {alone}"
        )
    probe = copy.deepcopy((stage.module, model.gradient))
    known = {buffer for part in probe for module in part.modules() if isinstance(module, Lagged) for buffer in module.buffers()}
    before = {name: buffer.clone() for name, buffer in probe[0].named_buffers() if buffer not in known}
    device = model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        probe[0].train()(x)
    for name, buffer in probe[0].named_buffers():
        if name in before and not torch.equal(buffer, before[name]):
            owner = type(probe[0].get_submodule(name.rpartition(".")[0])).__name__
            raise ConfigError(f"{owner} ({name}) keeps a running state of the batches, which shards would tear apart: {alone}")
