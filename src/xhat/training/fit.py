"""``xhat.train`` and ``xhat.fit``: training from a model and data, with or without a run folder."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xhat.data import Examples, given, preparation_of
from xhat.errors import ConfigError, DataError, TrainingError
from xhat.heap import kept_heap
from xhat.models.base import Model
from xhat.ranks import Ranks, joined, own_device
from xhat.training.folder import LAST, RunFolder
from xhat.training.loop import Loop, Step
from xhat.training.progress import bar
from xhat.training.settings import Settings

AGAIN = 5.0  # seconds after which a second Ctrl-C is another one


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


def _check(model: Model, x: Examples, name: str) -> Examples:
    """The examples, which the likelihood must be able to have made; those in files are checked as they are read."""
    model.need_condition(x.condition, len(x))
    return x.checked(model.check, name)


def _prepare(
    model: Model,
    x: Any,
    valid: Any,
    out: str | Path | None,
    resume: bool,
    overwrite: bool,
    about: dict[str, Any] | None,
    settings: Settings,
    ranks: Ranks,
) -> tuple[Loop, RunFolder | None]:
    train_examples = x if isinstance(x, Examples) else model.examples(x, "the training data")
    told = preparation_of(train_examples, model.preparation)
    train_examples = _check(model, train_examples, "the training data")
    if told.conditions is not None and model.conditions is not None and told.conditions != model.conditions:
        raise ConfigError(
            f"the training data are conditioned on {told.conditions.described}, but the model on {model.conditions.described}: "
            "build it with condition=data.conditions.described"
        )
    valid_examples = None
    if valid is not None:
        valid_examples = given(valid, told, "the validation data")
        valid_examples = _check(model, valid_examples, "the validation data").fixed(settings.seed)
    if len(train_examples) < 2:
        raise DataError(f"training needs at least 2 examples, the data have {len(train_examples)}: give it more")
    if settings.batch_size is not None and settings.batch_size > len(train_examples):
        raise ConfigError(
            f"batch_size is {settings.batch_size}, but there are only {len(train_examples)} training examples: lower it, or "
            "leave it out"
        )
    if settings.batch_size is not None and settings.batch_size < model.objective.fewest_examples:
        raise ConfigError(
            f"{type(model.objective).__name__} compares the examples of a batch with each other, and batch_size is "
            f"{settings.batch_size}: it must be at least {model.objective.fewest_examples}"
        )
    if settings.pretrain_epochs is not None and len(model.stages()) == 1:
        raise ConfigError(f"pretrain_epochs is for stacked models, and {type(model).__name__} trains in one go: leave it out")
    if settings.patience is not None and valid is None:
        raise ConfigError("patience needs validation examples to watch: pass valid=…, or leave patience out")
    model.preparation = told
    device = own_device(settings.device)
    try:
        if not (settings.shard_weights and ranks.world > 1):  # or the pieces alone go there
            model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} is not to be had here: {str(error).splitlines()[0]}") from error
    _agree(ranks, model, len(train_examples), 0 if valid_examples is None else len(valid_examples), settings)
    folder = None if out is None else RunFolder(out)
    if resume:
        if folder is None:
            raise ConfigError("resume needs the run folder: pass out=…")
        tensors, state = folder.read_state()
        loop = Loop(model, train_examples, valid_examples, settings, ranks, shards=state.get("shards", 1))
        loop.restore(tensors, state, str(folder.checkpoints / LAST))
        kept = folder.rows()[: loop.progress.rows]
        ranks.first_does(lambda: folder.cut_rows(kept))
        return loop, folder
    ranks.copy([*model.parameters(), *model.buffers()])  # whatever seeds the processes made it with
    torch.manual_seed(settings.seed)
    model.prepare(train_examples)
    loop = Loop(model, train_examples, valid_examples, settings, ranks)
    if folder is not None:
        tensors = loop.tensors()
        ranks.first_does(lambda: _start(folder, loop, tensors, about or {}, overwrite))
    return loop, folder


def _start(folder: RunFolder, loop: Loop, tensors: dict[str, Tensor], about: dict[str, Any], overwrite: bool) -> None:
    folder.start(loop.model if loop.pieces is None else loop.pieces.whole, loop.settings, about, overwrite)
    folder.save_state(tensors, loop.state())


def _agree(ranks: Ranks, model: Model, train: int, valid: int, settings: Settings) -> None:
    """Refuse to train one model on several processes that were given different things.

    Raises:
        ConfigError: says what differs.
    """
    told = {
        "number of training examples": train,
        "number of validation examples": valid,
        "number of weights": sum(p.numel() for p in model.parameters()),
        "settings": zlib.crc32(repr(settings).encode()),
    }
    for name, *values in zip(told, *(t.tolist() for t in ranks.gathered(torch.tensor([*told.values()]))), strict=True):
        if len(set(values)) > 1:
            raise ConfigError(f"the processes of this run differ in their {name}: give every process the same data and options")


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
    with joined() as ranks:
        loop, folder = _prepare(model, x, valid, out, resume, overwrite, about, _settings(settings, out, resume), ranks)
        yield from _steps(loop, folder)


def _steps(loop: Loop, folder: RunFolder | None) -> Iterator[Step]:
    every = loop.settings.checkpoint_every
    last = None if folder is None else folder.checkpoints / LAST
    if not loop.ranks.first:
        folder = None  # one process writes
    with kept_heap(), _tensorboard(folder, loop.settings.tensorboard and loop.ranks.first) as log:
        try:
            for step in loop.run():
                if step.record is not None:
                    log(step.record)
                    due = loop.progress.done or step.record["epoch"] % every == 0
                    # Pieces are put together by all processes, whether they write or not
                    model = loop.gather() if loop.progress.done or step.record.get("improved") else loop.model
                    tensors = loop.tensors() if due and (folder is not None or loop.pieces is not None) else {}
                    if folder is not None:
                        folder.add_row(step.record)
                        if step.record.get("improved"):
                            folder.save_best(model)
                        if loop.progress.done:  # before the checkpoint that says so: a crash between them repeats an epoch
                            folder.save_model(model)
                        if due:
                            folder.save_state(tensors, loop.state())
                yield step
        except TrainingError as error:
            if last is None:
                raise
            raise TrainingError(f"{error}; the last good checkpoint is {last}") from error


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

    Under torchrun all processes call it, with the same arguments, and share the work: ``batch_size`` is that of all together,
    one of them writes, and all end with the same model.

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
    with joined() as ranks:
        loop, folder = _prepare(model, x, valid, out, resume, overwrite, about, _settings(settings, out, resume), ranks)
        rows = [] if folder is None or not resume else folder.rows()
        interrupted = _run(loop, folder, rows, progress)
    model.eval()
    return History(rows, time.perf_counter() - began, interrupted, None if folder is None else folder.path)


def _run(loop: Loop, folder: RunFolder | None, rows: list[dict[str, Any]], progress: bool | None) -> bool:
    """Take all steps, collecting the epochs' records, or as many as there are until a signal comes; whether one did."""
    ranks, interrupted = loop.ranks, False
    if ranks.first and ranks.world > loop.shards.count:
        idle, count = ranks.world - loop.shards.count, loop.shards.count
        print(f"idle processes: {idle} of {ranks.world}, for a batch of this run is cut into {count} (shards)", file=sys.stderr)
    shown = progress if ranks.first else False
    with _stop_signal(ranks.world) as stopped, bar(loop.total_steps, loop.progress.step, shown) as show:
        loop.asked, loop.hasty = stopped, True
        for step in _steps(loop, folder):
            show(step)
            if step.record is not None:
                rows.append(step.record)
            # Several processes stop after one and the same step, the first after which all know that one of them must
            if (stopped() if ranks.world == 1 else loop.stop) and loop.settled and not loop.progress.done:
                interrupted = True
                break
    if interrupted and folder is not None:
        loop.check_weights()
        tensors = loop.tensors()
        ranks.first_does(lambda: folder.save_state(tensors, loop.state()))
        if ranks.first:
            told = f"stopped after step {loop.progress.step}; go on with: {_how_to_resume(folder)}"
            print(told, file=sys.stderr, flush=True)
    if loop.pieces is not None:
        loop.gather()
    if loop.together:
        torch.manual_seed(loop.settings.seed)  # each process drew other numbers: let what comes after be the same in all
    return interrupted


def _how_to_resume(folder: RunFolder) -> str:
    """The command, where config.json says enough for it; else the call."""
    config = folder.config()
    if config.get("model") is not None and "data" in config:
        return f"xhat train --resume {shlex.quote(str(folder.path))}"
    return f"xhat.fit(model, x, …, out={str(folder.path)!r}, resume=True)"


@contextlib.contextmanager
def _stop_signal(world: int) -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a flag for the time of a block; a second Ctrl-C stops at once, as usual.

    Of several processes each gets a Ctrl-C twice, from the terminal and from torchrun: there one counts for some seconds.
    """
    asked: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may set handlers
        return

    def ask(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if asked and number == signal.SIGINT and (world == 1 or now - asked[0] > AGAIN):
            raise KeyboardInterrupt
        asked.append(now)

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
