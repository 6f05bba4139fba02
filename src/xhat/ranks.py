"""The processes of one job, as torchrun starts them: which one this is, and what all of them do together."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from xhat.errors import ConfigError, XhatError

if TYPE_CHECKING:
    from torch import Tensor

# Torch is imported where it is used: the command asks for its rank before it has read its options.

TIMEOUT = timedelta(minutes=10)  # how long a process waits for the others: the slowest may compile meanwhile, or write
LOST = "another process of this run has stopped"


def stream_seed(*numbers: int) -> int:
    """The seed of a random stream of its own for each tuple of whole numbers.

    >>> stream_seed(0, 1) == stream_seed(0, 1), stream_seed(0, 1) == stream_seed(1, 0)
    (True, False)
    """
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Lost(XhatError, RuntimeError):
    """Another process is gone, or cannot be reached; what is wrong is its to say."""


class Ranks:
    """The processes of a job, ``world`` of them, and this one's place among them, ``rank``.

    What is called on it is called by all of them, in the same order. Alone, everything is as it is without it.

    >>> alone = Ranks()
    >>> alone.first, alone.any(True), alone.mine(5)
    (True, True, range(0, 5))
    """

    def __init__(self, rank: int = 0, world: int = 1, group: Any = None) -> None:
        self.rank, self.world, self._group = rank, world, group

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def mine(self, count: int) -> range:
        """This process's stretch of ``count`` things in a row.

        >>> [list(Ranks(rank, 3).mine(5)) for rank in range(3)]
        [[0], [1, 2], [3, 4]]
        """
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over the processes.

        Raises:
            Lost: another process is gone.
        """
        if self.world == 1:
            return
        import torch.distributed as dist

        with _losing():
            for work in [dist.all_reduce(tensor, group=self._of(tensor), async_op=True) for tensor in tensors]:
                work.wait()

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """The tensor, of one shape everywhere, of every process.

        Raises:
            Lost: another process is gone.
        """
        if self.world == 1:
            return [tensor]
        import torch
        import torch.distributed as dist

        result = [torch.empty_like(tensor) for _ in range(self.world)]
        with _losing():
            dist.all_gather(result, tensor.contiguous(), group=self._of(tensor))
        return result

    def copy(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by the first process's.

        Raises:
            Lost: another process is gone.
        """
        if self.world == 1:
            return
        import torch.distributed as dist

        with _losing():
            for tensor in tensors:
                whole = tensor.detach().contiguous()
                dist.broadcast(whole, 0, group=self._of(tensor))
                if whole.data_ptr() != tensor.data_ptr():
                    tensor.detach().copy_(whole)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.world == 1:
            return flag
        import torch

        flags = torch.tensor([float(flag)])
        self.add([flags])
        return bool(flags[0] > 0)

    def first_does(self, action: Callable[[], object]) -> None:
        """Let the first process do something while the others wait; what it raises stops all of them.

        Raises:
            Lost: in the others, where the first has failed.
        """
        error: XhatError | None = None
        if self.first:
            try:
                action()
            except XhatError as raised:
                error = raised
        failed = self.any(error is not None)
        if error is not None:
            raise error
        if failed:
            raise Lost(f"{LOST}: see its message")

    def _of(self, tensor: Tensor) -> Any:
        return self._group if tensor.device.type == "cpu" else None


@contextlib.contextmanager
def _losing() -> Iterator[None]:
    """What torch raises when a process does not answer, as one sentence."""
    try:
        yield
    except RuntimeError as error:
        raise Lost(f"{LOST}, or cannot be reached: see its message, and go on from the last checkpoint") from error


def place() -> tuple[int, int]:
    """This process's rank and the number of processes, from torchrun's environment variables; (0, 1) without them.

    Raises:
        ConfigError: the variables are no whole numbers.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():  # some clusters set one of them by themselves
        return 0, 1
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except ValueError as error:
        raise ConfigError("RANK and WORLD_SIZE must be whole numbers: start with torchrun, or unset them") from error
    return (rank, world) if world > 1 else (0, 1)


def first() -> bool:
    """Whether this is the process that writes and prints, by torchrun's variables."""
    return place()[0] == 0


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The processes of this job: those of a process group that is there, or else those that torchrun's variables tell of.

    A group that is made here is destroyed at the end of the block.

    Raises:
        Lost: the others do not come.
    """
    rank, world = place()
    # Without torchrun only a caller who has imported torch.distributed can have made a group
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        with _controlled(dist.get_rank(), dist.get_world_size()) as ranks:
            yield ranks
        return
    if world == 1:
        yield Ranks()
        return
    import torch
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    with _losing():
        store, rank, world = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        # A job may start several groups one after the other, and none may read what an earlier one left in the store
        start = (store.add("xhat/starts", 1) - 1) // world
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore(f"xhat/{start}", store),
            rank=rank,
            world_size=world,
            timeout=TIMEOUT,
        )
    try:
        yield Ranks(rank, world)
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


@contextlib.contextmanager
def _controlled(rank: int, world: int) -> Iterator[Ranks]:
    """The caller's group; one that serves CUDA tensors alone gets another beside it for what lies in memory."""
    import torch.distributed as dist

    if world == 1 or "gloo" in str(dist.get_backend_config(dist.group.WORLD)):
        yield Ranks(rank, world)
        return
    group = dist.new_group(backend="gloo")
    try:
        yield Ranks(rank, world, group)
    finally:
        dist.destroy_process_group(group)


def own_device(name: str) -> str:
    """The device of this process: of ``"cuda"``, that of its place on the machine; ``"auto"`` is CUDA where there is one.

    Raises:
        ConfigError: the machine has fewer CUDA devices than processes.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if place()[1] == 1 or name != "cuda":
        return name
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= count:
        raise ConfigError(
            f"there are {os.environ.get('LOCAL_WORLD_SIZE', 'more')} processes on this machine and {count} CUDA devices: start "
            f"one for each (--nproc-per-node {count}), or use device='cpu' (--device cpu)"
        )
    torch.cuda.set_device(local)
    return f"cuda:{local}"
