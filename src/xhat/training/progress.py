"""A progress bar with rate, time left and the last loss; silent when standard error is not a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from xhat.training.loop import Step


@contextlib.contextmanager
def bar(steps: int, done: int, show: bool | None) -> Iterator[Callable[[Step], None]]:
    """A context that gives a function to call with each step.

    Args:
        steps: all steps of the run.
        done: steps that an earlier part of the run took.
        show: True, False, or None for "if standard error is a terminal".
    """
    if show is False or (show is None and not sys.stderr.isatty()):
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: object) -> Text:
            speed = getattr(task, "speed", None)
            return Text(f"{speed:,.0f} steps/s" if speed else "", style="cyan")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("train", total=steps, completed=done, loss="")

        def show_step(step: Step) -> None:
            progress.update(
                task, completed=step.step, description=f"{step.stage}, epoch {step.epoch}", loss=f"loss {step.loss:.4g}"
            )

        yield show_step
