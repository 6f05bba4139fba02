"""Examples: N of them in one tensor or on disk, fetched in whole batches as floats."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from xhat.data.batch import Batch
from xhat.data.conversion import Conversion
from xhat.data.memory import available_memory, fits
from xhat.data.storage import STORED, as_storage, check_finite, check_size, too_flat
from xhat.data.streams import Stream
from xhat.data.streams.feed import feed
from xhat.data.streams.order import InOrder, Order
from xhat.data.streams.rows import AllRows, Listed, Stretch
from xhat.data.streams.streamed import Check, Streamed
from xhat.errors import ConfigError, DataError

if TYPE_CHECKING:
    from xhat.data.preparation import Preparation

_CHUNK = 4096  # examples drawn at once: a whole data set as float32 would be four times its bytes


class Examples:
    """N examples held as one tensor, or left on disk, with a label each if there are any.

    Args:
        storage: ``(N, *event)``, uint8, float32 or float64; shared with the caller, not copied. Or a stream of such rows, which
            are then read when they are fetched.
        labels: ``(N,)``, whole numbers, or None.
        scale: divide by 255 when a batch is fetched, so that bytes stay bytes in memory (uint8 storage only).
        binarize: ``"dynamic"`` makes every fetch draw Bernoulli(value) anew from torch's global generator.
        preparation: what was done to the user's data to make these examples, where it is known.
        observed: ``(N, *event)`` bool, which values were seen, of examples in memory; the others are stored as 0. None: all.
        condition: ``(N, C)``, what each example is conditioned on; None: nothing.
        exposure: ``(N,)``, positive, what multiplies a rate; None: 1.

    Raises:
        DataError: storage of another dtype, without examples or without an event axis; labels of another length;
            ``binarize`` on values outside [0, 1] (of a stream, when they are fetched).
        ConfigError: ``binarize`` is another word, or ``scale`` is asked of floats.

    >>> x = Examples(torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8), scale=True)
    >>> len(x), x.shape, x.storage.dtype
    (2, (2,), torch.uint8)
    >>> x[:1]
    tensor([[0., 1.]])
    >>> x[torch.tensor([1, 1])].shape, x[0].shape
    (torch.Size([2, 2]), torch.Size([2]))
    """

    def __init__(
        self,
        storage: Tensor | Stream | Streamed,
        labels: Tensor | None = None,
        *,
        scale: bool = False,
        binarize: str | None = None,
        preparation: Preparation | None = None,
        observed: Tensor | None = None,
        condition: Tensor | None = None,
        exposure: Tensor | None = None,
    ) -> None:
        if storage.dtype not in STORED:
            raise DataError(f"examples must be stored as uint8, float32 or float64, not {storage.dtype}: as_examples(x) converts")
        if isinstance(storage, Tensor):
            if storage.dim() < 2:
                raise too_flat("the storage", tuple(storage.shape))
            if storage.numel() == 0:
                raise DataError(f"the storage holds no examples, its shape is {tuple(storage.shape)}: give at least one")
        elif len(storage) == 0:
            raise DataError("the stream holds no examples: give at least one")
        if scale and storage.dtype != torch.uint8:
            raise ConfigError(f"scale=True divides bytes by 255, the storage is {storage.dtype}: leave scale out")
        if labels is not None and tuple(labels.shape) != (len(storage),):
            raise DataError(
                f"labels must hold one number for each of the {len(storage)} examples, "
                f"their shape is {tuple(labels.shape)}: give labels of shape ({len(storage)},)"
            )
        if binarize not in (None, "dynamic"):
            raise ConfigError(
                f"binarize must be None or 'dynamic' for examples in memory, not {binarize!r}: "
                "load_data(...) also knows 'static' and 'threshold'"
            )
        self.labels = None if labels is None else labels.detach().to(torch.int64)
        self.binarize = binarize
        self.preparation = preparation
        self.observed, self.condition, self.exposure = _beside(storage, observed, condition, exposure)
        self.streamed: Streamed | None = None
        if isinstance(storage, Tensor):
            storage = storage.detach()
            # One value stands for all that was not seen, so that nothing hangs on what else would
            self._storage = storage if self.observed is None else storage.where(self.observed, storage.new_zeros(()))
            self.scale = scale
            if binarize is not None:
                check_unit_range(self)
            return
        if isinstance(storage, Stream):
            storage = Streamed(storage, AllRows(storage.bounds), storage.shape, Conversion(scale=scale))
        if binarize is not None:
            storage = dataclasses.replace(storage, unit=True)
        self.streamed, self.scale = storage, storage.scale

    @property
    def resident(self) -> bool:
        """Whether all examples are in memory; else they are streamed."""
        return self.streamed is None

    @property
    def storage(self) -> Tensor:
        """The tensor that holds the examples.

        Raises:
            DataError: they are streamed.
        """
        if self.streamed is not None:
            raise DataError(
                f"the examples of {self.streamed.stream.name} are streamed and in no tensor: take batches (x.batches(size), "
                "x[indices]), or load them with memory='load' (--memory load)"
            )
        return self._storage

    @property
    def nbytes(self) -> int:
        """Bytes that the stored examples take in memory, or of streamed ones would take."""
        beside = sum(part.nbytes for part in (self.observed, self.condition, self.exposure) if part is not None)
        return beside + (self._storage.nbytes if self.streamed is None else len(self) * self.streamed.stream.row_bytes)

    @property
    def device(self) -> torch.device:
        """Where batches come from."""
        return torch.device("cpu") if self.streamed is not None else self._storage.device

    @property
    def shape(self) -> tuple[int, ...]:
        """The event shape, without N."""
        return tuple(self._storage.shape[1:]) if self.streamed is None else self.streamed.shape

    def __len__(self) -> int:
        return len(self._storage) if self.streamed is None else len(self.streamed)

    def __getitem__(self, index: Any) -> Tensor:
        """A float32 batch ``(n, *event)``; for an int, one example ``(*event)``.

        Raises:
            DataError: streamed examples that are damaged, not finite, or more than fit in memory.
        """
        values = self._grey(index) if self.streamed is None else self._fetched(self.streamed, index)
        return values if self.binarize is None else torch.bernoulli(values)

    def batch(self, index: Any) -> Batch:
        """The examples at an index that keeps the first axis, with what is known beside them."""
        index = _as_index(index)
        return self._with_beside(self[index], index)

    def batched(self, size: int) -> Iterator[Batch]:
        """Consecutive batches of ``size`` examples, with what is known beside them; the last one may be shorter."""
        starts = range(0, len(self), size)
        return (self._with_beside(x, slice(start, start + size)) for start, x in zip(starts, self.batches(size), strict=True))

    def fed(self, order: Tensor | Order, bounds: Iterable[tuple[int, int]], pin: bool = False) -> Iterator[Batch]:
        """What :meth:`feed` yields, with what is known beside it."""
        bounds = list(bounds)  # gone through twice: for the rows, and for what is known beside them
        if self.streamed is None:
            return (self.batch(order[start:stop]) for start, stop in bounds)
        batches = self.feed(order, bounds, pin)
        return _closing(batches, (self._with_beside(x, order[a:b]) for x, (a, b) in zip(batches, bounds, strict=False)))

    def _with_beside(self, x: Tensor, index: Any) -> Batch:
        parts = (None if part is None else part[index] for part in (self.observed, self.condition, self.exposure))
        return Batch(x, *parts)

    def _grey(self, index: Any) -> Tensor:
        values = self._storage[_as_index(index)].to(torch.float32)
        return values / 255 if self.scale else values

    def _fetched(self, streamed: Streamed, index: Any) -> Tensor:
        if isinstance(index, int | np.integer):
            return streamed.fetch(_positions(int(index), len(self)))[0]
        positions = _positions(index, len(self))
        wanted = streamed.bytes() // len(self) * len(positions)
        if len(positions) > _CHUNK and not fits(wanted):
            raise DataError(
                f"{len(positions)} examples of {streamed.stream.name} are {wanted / 2**30:.3g} GiB as one tensor, and "
                f"{available_memory() / 2**30:.3g} GiB of memory are free: take them in batches (x.batches(size)), or fewer"
            )
        result = torch.empty(len(positions), *self.shape)
        for chunk, place in zip(result.split(_CHUNK), range(0, len(positions), _CHUNK), strict=False):
            streamed.fetch(positions[place : place + _CHUNK], chunk)
        return result

    def tensor(self) -> Tensor:
        """All examples as one float32 tensor ``(N, *event)``.

        Raises:
            DataError: streamed examples that are more than fit in memory.
        """
        return self[:]

    def batches(self, size: int) -> Iterator[Tensor]:
        """Consecutive float32 batches of ``size`` examples; the last one may be shorter.

        Raises:
            ConfigError: ``size`` is below 1.

        >>> [len(batch) for batch in as_examples(torch.rand(5, 2)).batches(2)]
        [2, 2, 1]
        """
        if size < 1:
            raise ConfigError(f"the batch size must be at least 1, not {size}: give a positive whole number")
        bounds = ((start, min(start + size, len(self))) for start in range(0, len(self), size))
        if self.streamed is not None:
            return self.feed(InOrder(len(self)), bounds)
        return (self[start:stop] for start, stop in bounds)

    def order(self, seed: int) -> Tensor | Order:
        """A shuffled order of the examples, a function of the seed: ``order[start:stop]`` are the int64 indices of a stretch.

        In memory it is ``torch.randperm``; of a stream it is computed where it is asked, see
        :class:`~xhat.data.streams.order.Windows`.
        """
        if self.streamed is not None:
            return self.streamed.order(seed)
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))

    def feed(self, order: Tensor | Order, bounds: Iterable[tuple[int, int]], pin: bool = False) -> Iterator[Tensor]:
        """Float32 batches ``(n, *event)``, one for each stretch ``(start, stop)`` of an order.

        A stream is read ahead by threads; what is random is drawn by the caller's thread, batch by batch. To leave the iterator
        stops the threads.

        Args:
            order: of :meth:`order`, or a tensor of indices.
            bounds: the stretches; of a stream, they are taken some batches ahead.
            pin: put streamed batches into page-locked memory, where there is a GPU to fetch them.

        >>> x = as_examples(torch.arange(6.0).reshape(3, 2))
        >>> [len(batch) for batch in x.feed(x.order(seed=0), [(0, 2), (2, 3)])]
        [2, 1]
        """
        if self.streamed is None:
            return (self[order[start:stop]] for start, stop in bounds)
        if isinstance(order, Tensor):
            # A list of indices is another set of examples, gone through in order
            listed = dataclasses.replace(self.streamed, rows=Listed(self.streamed.rows, _positions(order, len(self))))
            batches = feed(listed, InOrder(len(listed)), bounds, pin)
        else:
            batches = feed(self.streamed, order, bounds, pin)
        return batches if self.binarize is None else _drawn_one_by_one(batches, pin and torch.cuda.is_available())

    def subset(self, indices: Any) -> Examples:
        """The examples at ``indices`` (slice, list, array or int64 tensor), with their labels. Of a stream no row is read.

        Raises:
            DataError: no index is given.
        """
        index = _as_index(indices)
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        labels = None if self.labels is None else self.labels[index]
        if self.streamed is not None:
            start, stop, step = index.indices(len(self)) if isinstance(index, slice) else (0, 0, 0)
            if step == 1 and stop > start:
                rows: Stretch | Listed = Stretch(self.streamed.rows, start, stop)
            else:
                rows = Listed(self.streamed.rows, _positions(index, len(self)))
            return self._with(dataclasses.replace(self.streamed, rows=rows), labels, lambda part: part[index])
        return self._with(self.storage[index], labels, lambda part: part[index])

    def fixed(self, seed: int) -> Examples:
        """The same examples with dynamic binarisation replaced by one draw, a pure function of ``seed``.

        Of a stream each example is drawn when it is fetched, as a pure function of the seed and its row.

        >>> x = Examples(torch.full((4, 3), 0.5), binarize="dynamic")
        >>> torch.equal(x.fixed(0).tensor(), x.fixed(0).tensor())
        True
        """
        return self if self.binarize is None else drawn(self, seed)

    def checked(self, check: Check, where: str = "x") -> Examples:
        """The same examples, of which ``check(batch, where, first)`` is asked: now, or of a stream whenever they are fetched.

        Args:
            check: raises what is wrong with a batch, whose first example is called ``first``: ``model.check``, say.
            where: what messages call examples in memory; those of a stream are called by their file and row.
        """
        if self.streamed is None:
            for first in range(0, len(self), _CHUNK):
                batch = self.batch(slice(first, first + _CHUNK))
                check(batch.bare, where, first)
            return self
        if self.binarize is None:
            return self._with(dataclasses.replace(self.streamed, check=check), self.labels)
        # What is drawn is 0 or 1, whatever the rows hold
        for value in (0.0, 1.0):
            check(torch.full((1, *self.shape), value), where, 0)
        return self

    def with_beside(self, observed: Tensor | None, condition: Tensor | None) -> Examples:
        """The same examples with a mask ``(N, *event)`` and a condition ``(N, C)``, where these are given."""
        if observed is None and condition is None:
            return self
        return Examples(
            self.storage if self.streamed is None else self.streamed,
            self.labels,
            scale=self.scale and self.streamed is None,
            binarize=self.binarize,
            preparation=self.preparation,
            observed=self.observed if observed is None else observed,
            condition=self.condition if condition is None else condition,
            exposure=self.exposure,
        )

    def to(self, device: torch.device | str) -> Examples:
        """The same examples, stored on another device: batches then come from there. A stream stays where it is."""
        if self.streamed is not None:
            return self
        labels = None if self.labels is None else self.labels.to(device)
        return self._with(self.storage.to(device), labels, lambda part: part.to(device))

    def _with(
        self,
        storage: Tensor | Streamed,
        labels: Tensor | None,
        change: Callable[[Tensor], Tensor] = lambda part: part,
    ) -> Examples:
        """The same of other rows, with what a change makes of what is known beside them."""
        parts = {"observed": self.observed, "condition": self.condition, "exposure": self.exposure}
        return Examples(
            storage,
            labels,
            scale=self.scale and isinstance(storage, Tensor),
            binarize=self.binarize,
            preparation=self.preparation,
            **{name: None if part is None else change(part) for name, part in parts.items()},
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.tensor().cpu().numpy().astype(dtype or np.float32, copy=bool(copy))

    def __repr__(self) -> str:
        options = ("scaled by 1/255",) * self.scale + (f"binarize={self.binarize}",) * (self.binarize is not None)
        labelled = ("labelled",) * (self.labels is not None)
        kind = self._storage.dtype if self.streamed is None else self.streamed.dtype
        words: tuple[str, ...] = (f"{len(self)} of shape {self.shape}", str(kind).removeprefix("torch."))
        words += ("streamed",) * (self.streamed is not None)
        return f"Examples({', '.join(words + options + labelled)})"


def drawn(examples: Examples, seed: int) -> Examples:
    """One Bernoulli draw of every value, a pure function of the values and ``seed``; stored as bytes 0 and 1, if in memory."""
    if examples.streamed is not None:
        return _as_drawn(examples, dataclasses.replace(examples.streamed, seed=seed, unit=True))
    check_unit_range(examples)
    generator = torch.Generator().manual_seed(seed)
    result = torch.empty(examples.storage.shape, dtype=torch.uint8)
    for start in range(0, len(examples), _CHUNK):
        # On the CPU whatever the device: another device's stream would be another data set under the same seed.
        grey = examples._grey(slice(start, start + _CHUNK)).cpu()
        result[start : start + _CHUNK] = torch.rand(grey.shape, generator=generator) < grey
    return _as_drawn(examples, result.to(examples.storage.device))


def _as_drawn(examples: Examples, storage: Tensor | Streamed) -> Examples:
    """The same examples in values that were drawn."""
    return Examples(
        storage,
        examples.labels,
        preparation=examples.preparation,
        observed=examples.observed,
        condition=examples.condition,
        exposure=examples.exposure,
    )


def _beside(
    storage: Tensor | Stream | Streamed, observed: Tensor | None, condition: Tensor | None, exposure: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What is known beside N examples, checked.

    Raises:
        DataError: another number of rows, a mask of another shape or of a stream, numbers that are not finite.
    """
    count = len(storage)
    if observed is not None:
        if not isinstance(storage, Tensor):
            raise DataError("observed is a mask of examples in memory, but these are streamed: load them (memory='load')")
        if observed.dtype != torch.bool or observed.shape != storage.shape:
            raise DataError(
                f"observed must be bool and of the examples' shape {tuple(storage.shape)}, was {observed.dtype} of shape "
                f"{tuple(observed.shape)}"
            )
    for name, part, axes in (("condition", condition, 2), ("exposure", exposure, 1)):
        if part is not None and (part.ndim != axes or len(part) != count):
            shape = f"({count}, C)" if axes == 2 else f"({count},)"
            raise DataError(f"{name} must have shape {shape}, a row for each example, was {tuple(part.shape)}")
        if part is not None and not bool(part.isfinite().all()):
            raise DataError(f"{name} must be finite numbers, and some are not: fill them in, or leave such examples out")
    if exposure is not None and not bool((exposure > 0).all()):
        raise DataError("exposure multiplies a rate and must be above 0, and some are not: leave such examples out")
    return observed, *(None if part is None else part.detach().to(torch.float32) for part in (condition, exposure))  # type: ignore[return-value]


def _closing(inner: Iterator[Tensor], outer: Iterator[Batch]) -> Iterator[Batch]:
    """An iterator that ends the one within it when it is left."""
    try:
        yield from outer
    finally:
        if isinstance(inner, Generator):
            inner.close()


def check_unit_range(examples: Examples) -> None:
    """Refuse to binarise what is no probability.

    Raises:
        DataError: a value lies outside [0, 1].
    """
    low, high = (float(bound) for bound in torch.aminmax(examples.storage))
    if not examples.scale and not (low >= 0 and high <= 1):
        raise DataError(f"binarisation needs values in [0, 1], these go from {low:g} to {high:g}: rescale them, or leave it out")


def as_examples(x: Any, where: str = "x") -> Examples:
    """Examples from whatever holds numbers: a tensor, an array, a nested list, Examples (returned as they are),
    or a stream.

    The first axis counts the examples. Bytes that reach above 1 are grey levels and are divided by 255 when fetched;
    other whole numbers are kept as they are, as floats. Memory is shared where the dtype allows it.

    Args:
        x: shape ``(N, *event)``.
        where: what messages call ``x``.

    Raises:
        DataError: no examples, no event axis, values that are no real numbers, NaN or infinity.

    >>> as_examples(np.array([[0, 128], [255, 1]], dtype=np.uint8))
    Examples(2 of shape (2,), uint8, scaled by 1/255)
    >>> as_examples([[1, 2], [3, float("nan")]])
    Traceback (most recent call last):
    xhat.errors.DataError: x holds nan at row 1, column 1 (x[1, 1], counted from 0), must be finite:
    remove or fill that row
    """
    if isinstance(x, Examples):
        return x
    if isinstance(x, Batch):
        return Examples(x.x, observed=x.observed, condition=x.condition, exposure=x.exposure)
    if isinstance(x, Stream):
        return Examples(x, scale=x.dtype == torch.uint8 and int(x.read(torch.arange(min(len(x), _CHUNK))).max()) > 1)
    storage = as_storage(x, where)
    check_size(storage, where)
    check_finite(storage, where)
    scale = storage.dtype == torch.uint8 and int(storage.max()) > 1
    return Examples(storage, scale=scale)


def _drawn_one_by_one(batches: Iterator[Tensor], pin: bool) -> Iterator[Tensor]:
    try:
        for batch in batches:
            yield torch.bernoulli(batch, out=torch.empty_like(batch, pin_memory=pin))
    finally:
        if isinstance(batches, Generator):
            batches.close()


def _positions(index: Any, count: int) -> np.ndarray:
    """An index as positions from 0, int64 ``(n,)``."""
    index = _as_index(index)
    if isinstance(index, slice):
        return np.arange(*index.indices(count), dtype=np.int64)
    positions = np.atleast_1d(np.asarray(index.cpu() if isinstance(index, Tensor) else index))
    if positions.dtype == bool:
        if len(positions) != count:
            raise IndexError(f"a mask of {len(positions)} does not fit {count} examples")
        return np.flatnonzero(positions)
    positions = positions.astype(np.int64)
    if len(positions) and not (-count <= positions.min() and positions.max() < count):
        raise IndexError(f"an index from {positions.min()} to {positions.max()} is out of range for {count} examples")
    return np.where(positions < 0, positions + count, positions)


def _as_index(index: Any) -> Any:
    if isinstance(index, slice | Tensor):
        return index
    if isinstance(index, int | np.integer):
        return int(index)
    array = np.asarray(index)
    return torch.from_numpy(array.astype(bool if array.dtype == bool else np.int64))
