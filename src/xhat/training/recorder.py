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
        self.index = torch.cuda.current_device() if device.index is None else device.index
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.failed: list[torch.cuda.CUDAGraph] = []

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
            Exception: whatever the work raises, or CUDA, where it cannot be recorded. The stream, the device's generator and the
                allocator are then as they were. What was recorded before must not be replayed any more: its random numbers come
                from what was the generator's state, and the generator has another one now.
        """
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # what is held for reuse cannot be used in a graph
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):  # torch.cuda.graph would leave its stream current after a failure
            generator = torch.cuda.default_generators[self.index]
            before = generator.clone_state()  # seed and offset, but not whether it counts for a graph
            try:
                # Not "global": other threads, such as those that read data, may allocate meanwhile
                graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
                work()
                graph.capture_end()
            except BaseException:  # also where the beginning fails, or the work caught an error that had ended the recording
                self._abandon(graph)
                # Before torch 2.13 a state is marked while it counts for a graph, and nothing but a recording that goes well
                # removes the mark; the next draw would be refused.
                generator.graphsafe_set_state(before)
                raise
        return graph.replay

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a recording that failed, whichever way it had come."""
        try:
            graph.capture_end()
        except RuntimeError:  # as it does where CUDA has ended it; the reason is being raised already
            # torch then leaves out the steps that follow: the allocator still sets memory aside for the graph
            with contextlib.suppress(RuntimeError):  # it had come so far itself, or not even begun
                end: Any = torch._C._cuda_endAllocateToPool
                release: Any = torch._C._cuda_releasePool
                end(self.index, self.pool)
                release(self.index, self.pool)
        graph.reset()
        self.failed.append(graph)  # torch may still ask it which allocations are its own
        self.pool = torch.cuda.graph_pool_handle()  # a pool that no graph uses any more cannot be used again
