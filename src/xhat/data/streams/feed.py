"""Feeding a model from a stream: threads read and prepare batches ahead of the one that is worked on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from xhat.data.streams.order import Order, Windows
from xhat.data.streams.streamed import Streamed

# How far the threads may be ahead of the model: in batches, and in bytes of batches.
_AHEAD, _AHEAD_BYTES = 16, 2**25
_PREPARING = 2  # threads that turn rows in memory into batches


def feed(source: Streamed, order: Order, bounds: Iterable[tuple[int, int]], pin: bool = False) -> Iterator[Tensor]:
    """Float32 batches ``(n, *event)``, one for each stretch ``(start, stop)`` of an order.

    What a thread raises is raised here, in its place. To leave the iterator (or to let go of it) stops the threads.

    Args:
        source: the examples.
        order: of an epoch.
        bounds: the stretches; they are taken some batches ahead.
        pin: put the batches into page-locked memory, from which a GPU fetches them by itself.
    """
    pin = pin and torch.cuda.is_available()
    preparing = ThreadPoolExecutor(max(source.stream.workers, _PREPARING), thread_name_prefix="xhat-batches")
    reading = ThreadPoolExecutor(1, thread_name_prefix="xhat-windows")
    row_bytes = 4 * math.prod(source.shape)
    waiting: deque[Future[Tensor]] = deque()
    held: _Held | None = None
    ahead = 0  # bytes of the batches that wait
    try:
        for start, stop in bounds:
            out = torch.empty(stop - start, *source.shape, pin_memory=pin)
            if isinstance(order, Windows) and source.windowed:
                held = held or _Held(source, order, reading)
                waiting.append(preparing.submit(_gathered, source, order, start, stop, held.around(start, stop), out))
            else:
                waiting.append(preparing.submit(_straight, source, order, start, stop, out))
            ahead += (stop - start) * row_bytes
            while len(waiting) > _AHEAD or (ahead > _AHEAD_BYTES and len(waiting) > 1):
                batch = waiting.popleft().result()
                ahead -= len(batch) * row_bytes
                yield batch
        while waiting:
            yield waiting.popleft().result()
    finally:
        for executor in (preparing, reading):
            executor.shutdown(wait=True, cancel_futures=True)


def _straight(source: Streamed, order: Order, start: int, stop: int, out: Tensor) -> Tensor:
    return source.fetch(order[start:stop].numpy(), out)


def _gathered(
    source: Streamed, order: Windows, start: int, stop: int, windows: dict[int, Future[np.ndarray]], out: Tensor
) -> Tensor:
    """A batch out of windows that are in memory, or will be."""
    seen = order.seen(np.arange(start, stop))
    loaded = {number: window.result() for number, window in windows.items()}
    if len(loaded) == 1:
        raw = next(iter(loaded.values()))[seen.offsets]
    else:
        raw = np.concatenate([rows[seen.offsets[seen.windows == number]] for number, rows in loaded.items()])
    return source.prepared(raw, lambda: order[start:stop].numpy(), out)


class _Held:
    """The windows in memory: those of the batch that was asked for last, and the one after them, which is read ahead."""

    def __init__(self, source: Streamed, order: Windows, reading: ThreadPoolExecutor) -> None:
        self._source, self._order, self._reading = source, order, reading
        self._windows: dict[int, Future[np.ndarray]] = {}

    def around(self, start: int, stop: int) -> dict[int, Future[np.ndarray]]:
        """The windows that a stretch lies in."""
        first, last = self._order.spanned(start, stop)
        self._windows = {number: window for number, window in self._windows.items() if first <= number <= last + 1}
        for number in range(first, min(last + 2, self._order.windows)):
            if number not in self._windows:
                self._windows[number] = self._reading.submit(self._read, number)
        return {number: self._windows[number] for number in range(first, last + 1)}

    def _read(self, number: int) -> np.ndarray:
        return self._source.raw(self._order.content(number))
