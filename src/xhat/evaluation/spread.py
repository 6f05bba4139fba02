"""Measuring on several processes: each takes a part of the examples, or of the draws where the examples are few."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from xhat.data import Batch, Examples
from xhat.data.streams.order import InOrder
from xhat.ranks import Ranks, stream_seed


class Spread:
    """Blocks of examples, each with a random stream of its own: what is drawn depends on no number of processes.

    Args:
        examples: all of them, the same in every process.
        size: of a block.
        ranks: the processes.
        seed: of the blocks' streams; None leaves torch's global generator to go on as it does, which one process alone may.
        purpose: keeps the streams of one pass over the examples apart from another's.

    Attributes:
        parted: whether each process has blocks of its own; else, with fewer blocks than processes, all go through all of them.
        own: the numbers of this process's blocks.

    >>> from xhat.data import as_examples
    >>> x = as_examples(torch.arange(10.0).reshape(5, 2))
    >>> [[number for number, _, _ in Spread(x, 2, Ranks(rank, 2), seed=0).blocks()] for rank in range(2)]
    [[0], [1, 2]]
    """

    def __init__(self, examples: Examples, size: int, ranks: Ranks, seed: int | None, purpose: int = 0) -> None:
        self.examples, self.size, self.ranks, self.seed, self.purpose = examples, size, ranks, seed, purpose
        count = math.ceil(len(examples) / size)
        self.parted = 1 < ranks.world <= count
        self.own = ranks.mine(count) if self.parted else range(count)

    @property
    def stretch(self) -> slice:
        """The positions of this process's examples."""
        return slice(self.own.start * self.size, min(self.own.stop * self.size, len(self.examples)))

    def blocks(self) -> Iterator[tuple[int, int, Batch]]:
        """This process's blocks: the number, the position of the first example, and the examples."""
        count = len(self.examples)
        if self.parted:
            bounds = [(number * self.size, min((number + 1) * self.size, count)) for number in self.own]
            batches = self.examples.fed(InOrder(count), bounds)
        else:
            batches = self.examples.batched(self.size)
        for number in self.own:
            self.draw_from(number)  # dynamic binarisation draws, too
            yield number, number * self.size, next(batches)

    def draw_from(self, *numbers: int) -> None:
        """Go on with the stream that belongs to these numbers: a block's, or a block's and a chunk's."""
        if self.seed is not None:
            torch.manual_seed(stream_seed(self.seed, self.purpose, *numbers))

    def chunks(self, samples: int, size: int) -> list[tuple[int, int]]:
        """This process's chunks of a block's draws, ``(number, draws)``: all of them, unless processes share a block."""
        chunks = [(number, min(size, samples - start)) for number, start in enumerate(range(0, samples, size))]
        if self.parted:
            return chunks
        return [chunks[number] for number in self.ranks.mine(len(chunks))]
