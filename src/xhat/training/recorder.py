"""Recording what a CUDA device is given to do, and leaving everything as it was where that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch


class Recorder:
    """Makes CUDA graphs, on a stream of its own and of one share of memory.

    The graphs are replayed one after the other and hand nothing to each other but what lies outside of that memory, so that one
    may use what another is done with.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """Work on the recorder's stream, in its place among the other work.

        What is to be recorded runs there first, for libraries keep memory of their own for each stream.
        """
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record work, which does not run it, and return what replays it.

        Raises:
            Exception: whatever the work raises, or CUDA, where it cannot be recorded. The stream, the generator and the
                allocator are then as they were; random numbers drawn meanwhile are for the caller to put back.
        """
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # what is held for reuse cannot be used in a graph
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):  # torch.cuda.graph would leave its stream current after a failure
            # Not "global": other threads, such as those that read data, may allocate meanwhile
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                self._abandon(graph)
                raise
            try:
                graph.capture_end()
            except RuntimeError:  # the work caught an error that had ended the recording
                self._abandon(graph)
                raise
        return graph.replay

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a recording that failed."""
        # torch ends it in three steps, and after a failure of the first leaves out the others: the stream no longer records, but
        # the allocator still sets memory aside, and the generator still counts for a graph.
        try:
            graph.capture_end()
        except RuntimeError:  # as it does where CUDA has ended it; the reason is being raised already
            for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
                function: Any = getattr(torch._C, name, None)
                if function is not None:
                    with contextlib.suppress(RuntimeError):  # torch had come so far itself
                        function(self.device.index or 0, self.pool)
        graph.reset()
        # A recording that goes well puts the generator back to counting for itself.
        small = torch.zeros(1, device=self.device)
        torch.cuda.synchronize(self.device)
        again = torch.cuda.CUDAGraph()
        again.capture_begin(capture_error_mode="thread_local")
        small.add_(1)
        again.capture_end()
