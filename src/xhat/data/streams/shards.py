"""Several streams as one: the shards of a folder, or the splits of a source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from xhat.data.streams.base import Stream
from xhat.errors import DataError


@final
class Shards(Stream):
    """Several streams one after the other, as one.

    Args:
        streams: of one shape.
        name: what messages call them together.

    Raises:
        DataError: the shapes differ.
    """

    def __init__(self, streams: Sequence[Stream], name: str) -> None:
        self.name, self.shape = name, streams[0].shape
        self.layout, self.source_dtype = streams[0].layout, streams[0].source_dtype
        for stream in streams:
            if stream.shape != self.shape:
                raise DataError(
                    f"{stream.name} has examples of shape {stream.shape}, {streams[0].name} has {self.shape}, and all must have "
                    "one shape: correct the source"
                )
        self._streams = tuple(streams)
        self._first = np.concatenate([[0], np.cumsum([len(stream) for stream in streams])])
        self.dtype = max((stream.dtype for stream in streams), key=lambda dtype: dtype.itemsize)
        self.scattered = all(stream.scattered for stream in streams)
        self.workers = max(stream.workers for stream in streams)
        inner = [stream.bounds[:-1] + first for stream, first in zip(streams, self._first.tolist(), strict=False)]
        whole = np.array([0, self._first[-1]])
        self.bounds = whole if self.scattered else np.append(np.concatenate(inner), self._first[-1])

    def read(self, indices: Tensor) -> Tensor:
        rows = indices.numpy()
        shard = np.searchsorted(self._first, rows, "right") - 1
        out = torch.empty((len(rows), *self.shape), dtype=self.dtype)
        for number in np.unique(shard).tolist():
            places = np.flatnonzero(shard == number)
            out[torch.from_numpy(places)] = (
                self._streams[number].read(torch.from_numpy(rows[places] - self._first[number])).to(self.dtype)
            )
        return out

    def where(self, row: int) -> str:
        number = int(np.searchsorted(self._first, row, "right")) - 1
        return self._streams[number].where(row - int(self._first[number]))
