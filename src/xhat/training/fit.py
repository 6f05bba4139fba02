"""``xhat.train`` and ``xhat.fit``: training from a model and data, with or without a run folder."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

from xhat.data import Examples, as_examples
from xhat.errors import ConfigError, DataError, TrainingError
from xhat.models.base import Model
from xhat.training.folder import LAST, RunFolder
from xhat.training.loop import Loop, Step
from xhat.training.progress import bar
from xhat.training.settings import Settings


class History(NamedTuple):
    """What training left behind.

    ``rows`` has one record an epoch: means over examples of the loss and of each measure, for training and validation examples.
    """

    rows: list[dict[str, Any]]
    seconds: float
    interrupted: bool
    out: Path | None

    @property
    def best(self) -> dict[str, Any]:
        """The record of the last stage's epoch that improved last, or the last record."""
        last_stage = [row for row in self.rows if row["stage"] == self.rows[-1]["stage"]]
        return next((row for row in reversed(last_stage) if row.get("improved")), last_stage[-1])

    def __str__(self) -> str:
        if not self.rows:
            return "no epoch was finished"
        row = self.best
        figures = ", ".join(
            f"{name.replace('_', ' ')} {row[name]:.4g}"
            for name in ("train_loss", "valid_loss", "train_elbo", "valid_elbo")
            if name in row
        )
        state = "interrupted" if self.interrupted else "finished"
        return f"{state} after {len(self.rows)} epochs in {self.seconds:.1f} s; epoch {row['epoch']}: {figures}"


def _check(model: Model, x: Any, name: str) -> Examples:
    examples = as_examples(x, name)
    first = 0
    for batch in examples.batches(8192):
        model.check(batch, name, first)
        first += len(batch)
    return examples


def _prepare(
    model: Model,
    x: Any,
    valid: Any,
    out: str | Path | None,
    resume: bool,
    overwrite: bool,
    about: dict[str, Any] | None,
    settings: Settings,
) -> tuple[Loop, RunFolder | None]:
    train_examples = _check(model, x, "the training data")
    valid_examples = None if valid is None else _check(model, valid, "the validation data").fixed(settings.seed)
    if len(train_examples) < 2:
        raise DataError(f"training needs at least 2 examples, the data have {len(train_examples)}: give it more")
    if settings.batch_size is not None and settings.batch_size > len(train_examples):
        raise ConfigError(
            f"batch_size is {settings.batch_size}, but there are only {len(train_examples)} training examples: lower it, or "
            "leave it out"
        )
    if settings.pretrain_epochs is not None and len(model.stages()) == 1:
        raise ConfigError(f"pretrain_epochs is for stacked models, and {type(model).__name__} trains in one go: leave it out")
    if settings.patience is not None and valid is None:
        raise ConfigError("patience needs validation examples to watch: pass valid=…, or leave patience out")
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} is not to be had here: {str(error).splitlines()[0]}") from error
    folder = None if out is None else RunFolder(out)
    if resume:
        if folder is None:
            raise ConfigError("resume needs the run folder: pass out=…")
        tensors, state = folder.read_state()
        loop = Loop(model, train_examples, valid_examples, settings)
        loop.restore(tensors, state, str(folder.checkpoints / LAST))
        folder.cut_rows(folder.rows()[: loop.progress.rows])
        return loop, folder
    if folder is not None:
        folder.start(model, settings, about or {}, overwrite)
    torch.manual_seed(settings.seed)
    loop = Loop(model, train_examples, valid_examples, settings)
    if folder is not None:
        folder.save_state(loop.tensors(), loop.state())
    return loop, folder


def _settings(settings: dict[str, Any], out: str | Path | None, resume: bool) -> Settings:
    if resume and out is not None:
        held = RunFolder(out).settings()
        changed = [name for name, value in settings.items() if getattr(held, name, value) != value]
        if changed:
            raise ConfigError(f"a resumed run keeps its settings, but {', '.join(changed)} differ: leave them out")
        return held
    try:
        return Settings(**settings)
    except TypeError as error:
        unknown = ", ".join(name for name in settings if name not in Settings.__dataclass_fields__)
        known = ", ".join(Settings.__dataclass_fields__)
        raise ConfigError(f"there is no setting {unknown}; the settings are {known}") from error


def train(
    model: Model,
    x: Any,
    valid: Any = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    about: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Step]:
    """Train, one step at a time: a generator that yields after each step.

    Arguments as :func:`fit`. Leaving the loop early leaves the model as it is then.

    >>> import torch, xhat
    >>> model = xhat.build("autoencoder", shape=(4,), latent=2, hidden=[])
    >>> steps = train(model, torch.rand(100, 4), epochs=3, batch_size=50)
    >>> [(step.epoch, step.step) for step in steps]
    [(1, 1), (1, 2), (2, 3), (2, 4), (3, 5), (3, 6)]
    """
    loop, folder = _prepare(model, x, valid, out, resume, overwrite, about, _settings(settings, out, resume))
    yield from _steps(loop, folder)


def _steps(loop: Loop, folder: RunFolder | None) -> Iterator[Step]:
    every = loop.settings.checkpoint_every
    with _tensorboard(folder, loop.settings.tensorboard) as log:
        try:
            for step in loop.run():
                if step.record is not None:
                    log(step.record)
                    if folder is not None:
                        folder.add_row(step.record)
                        if step.record.get("improved"):
                            folder.save_best(loop.model)
                        if loop.progress.done:  # before the checkpoint that says so: a crash between them repeats an epoch
                            folder.save_model(loop.model)
                        if loop.progress.done or step.record["epoch"] % every == 0:
                            folder.save_state(loop.tensors(), loop.state())
                yield step
        except TrainingError as error:
            if folder is None:
                raise
            raise TrainingError(f"{error}; the last good checkpoint is {folder.checkpoints / LAST}") from error


def fit(
    model: Model,
    x: Any,
    valid: Any = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    about: dict[str, Any] | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> History:
    """Train a model to the end.

    Ctrl-C and SIGTERM finish the step, save a checkpoint where there is a run folder, and return with ``interrupted`` set.

    Args:
        model: what to train, in place.
        x: training examples, ``(N, *event_shape)``: a tensor, an array or ``data.train``.
        valid: validation examples; the model ends with the weights that were best on them (``keep="last"`` for the last).
        out: run folder; gets config.json, metrics.jsonl, checkpoints and model.safetensors.
        resume: go on from the folder's last checkpoint, bit for bit as if nothing had happened.
        overwrite: replace the run that the folder holds.
        about: what config.json should say beside the settings and the model (where the data came from, say).
        progress: show a progress bar; None: if standard error is a terminal.
        **settings: fields of :class:`xhat.training.settings.Settings`, such as epochs, batch_size, lr and seed. The seed seeds
            torch's global generator.

    Raises:
        DataError: examples of another shape, outside the likelihood's support, or fewer than two.
        ConfigError: settings that make no sense.
        CheckpointError: a folder that cannot be written, or a checkpoint that is missing or damaged.
        TrainingError: the loss or the weights are no longer finite.

    >>> import torch, xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8])
    >>> history = fit(model, torch.rand(100, 4), valid=torch.rand(20, 4), epochs=2, seed=0)
    >>> [row["epoch"] for row in history.rows], history.interrupted
    ([1, 2], False)
    """
    began = time.perf_counter()
    loop, folder = _prepare(model, x, valid, out, resume, overwrite, about, _settings(settings, out, resume))
    rows = [] if folder is None else folder.rows()
    interrupted = False
    with _stop_signal() as stopped, bar(loop.total_steps, loop.progress.step, progress) as show:
        for step in _steps(loop, folder):
            show(step)
            if step.record is not None:
                rows.append(step.record)
            if stopped() and not loop.progress.done:
                interrupted = True
                break
    if interrupted and folder is not None:
        loop.check_weights()
        folder.save_state(loop.tensors(), loop.state())
        print(f"stopped after step {loop.progress.step}; go on with: {_how_to_resume(folder)}", file=sys.stderr, flush=True)
    model.eval()
    return History(rows, time.perf_counter() - began, interrupted, None if folder is None else folder.path)


def _how_to_resume(folder: RunFolder) -> str:
    """The command, where config.json says enough for it; else the call."""
    config = folder.config()
    if config.get("model") is not None and "data" in config:
        return f"xhat train --resume {shlex.quote(str(folder.path))}"
    return f"xhat.fit(model, x, …, out={str(folder.path)!r}, resume=True)"


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a flag for the time of a block; a second Ctrl-C stops at once, as usual."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may set handlers
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _tensorboard(folder: RunFolder | None, wanted: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    if not wanted:
        yield lambda record: None
        return
    if folder is None:
        raise ConfigError("tensorboard needs a run folder to write to: pass out=…")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("tensorboard is not installed: pip install 'xhat[track]'") from error
    with SummaryWriter(str(folder.path / "tensorboard")) as writer:

        def log(record: dict[str, Any]) -> None:
            for name, value in record.items():
                if isinstance(value, float):
                    writer.add_scalar(f"{record['stage']}/{name}", value, record["step"])

        yield log
