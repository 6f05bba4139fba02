"""A rehearsal without a GPU: graphs are "recorded" as the functions that they would be recorded from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xhat.training import choice, loop
from xhat.training.engine import Engine
from xhat.training.graphs import Graphs

Work = Callable[[], None]


def played(work: Work) -> Work:
    """In place of a recorder."""
    return work


def install() -> None:
    """From now on every run that would take graphs on a GPU takes them here."""

    def engine(
        name: str, program: Any, optimizer: Any, clip: Any, size: int, examples: Any, steps: int, **options: Any
    ) -> Engine:
        if name in ("graphs", "auto"):
            return Graphs(program, optimizer, clip, size, tell=choice._to_standard_error, compile=False, record=played)
        return choice.engine_for(name, program, optimizer, clip, size, examples, steps, **options)

    loop.engine_for = engine
