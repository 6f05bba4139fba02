"""Which of several processes tells what went wrong: of what all of them see, one."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

from xhat.ranks import LOST, place

_HEARD = 2.0  # seconds in which another process can say what is wrong


def speaks(message: str) -> bool:
    """Whether this process is the one to tell what went wrong: what all of them see, the first one tells alone.

    >>> speaks("the disk is full")
    True
    """
    rank, world = place()
    if world == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # no store that outlives a failed process
        return True
    from torch.distributed.rendezvous import rendezvous

    try:
        store = next(iter(rendezvous("env://", timeout=timedelta(seconds=10))))[0]
        store.set(f"xhat/said/{rank}", message)
        end = time.monotonic() + _HEARD
        while (told := _told(store, rank, world, message)) is None and time.monotonic() < end:
            time.sleep(0.05)
        if told is None and message.startswith(LOST):  # nobody knows why, and one says so
            told = not any(store.check([f"xhat/said/{other}"]) for other in range(rank))
    except RuntimeError:
        return True
    if told is False:
        time.sleep(0.2)  # torchrun ends the others as soon as one is gone, and the one that tells must have told
    return told is not False


def _told(store: Any, rank: int, world: int, message: str) -> bool | None:
    """False when another tells it, True when this one must, None while that is open."""
    others = [other for other in range(world) if other != rank and store.check([f"xhat/said/{other}"])]
    said = {other: store.get(f"xhat/said/{other}").decode() for other in others}
    if message.startswith(LOST):
        if any(not text.startswith(LOST) for text in said.values()):
            return False
        return None
    if rank == 0:
        return True
    return None if 0 not in said else said[0] != message
