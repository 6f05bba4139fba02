"""The training loop: a generator of steps over a state that can be written down at any of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xhat.data import Examples
from xhat.errors import CheckpointError, ConfigError, TrainingError
from xhat.models.base import Model, Stage
from xhat.models.files import put_state, state_of
from xhat.networks.bayesian_models import is_bayesian
from xhat.networks.precision import reduced
from xhat.objectives import SquaredError
from xhat.ranks import Ranks, own_device
from xhat.training.choice import engine_for
from xhat.training.distributed import Sharded, Shards, Work, refuse_shards
from xhat.training.engine import Engine, Taken, put_random_states, random_states
from xhat.training.fsdp import InPieces, Pieces, moved, refuse_pieces
from xhat.training.optimizer import Optimizer
from xhat.training.program import Program
from xhat.training.rate import rate_at
from xhat.training.settings import Settings
from xhat.training.validation import validate as judged

READ_EVERY = 50  # steps between two readings of the losses, where reading waits for a device
ABOARD = 0.5  # share of a device's free memory that the examples may take


class Step(NamedTuple):
    """One step of training.

    ``loss`` is the batch's mean, in the objective's unit; on a device that works on its own, that of the last batch read (every
    50 steps). ``record`` is the epoch's line of the log, at its last step.
    """

    stage: str
    epoch: int
    step: int
    steps: int
    loss: float
    record: dict[str, Any] | None


@dataclass
class Progress:
    """Where training is; with the tensors of :meth:`Loop.tensors` all that a resumed run needs."""

    stage: int = 0
    epoch: int = 0  # epochs of this stage that are done
    batch: int = 0  # batches of this epoch that are done
    step: int = 0  # optimiser steps in all
    sums: dict[str, float] = field(default_factory=dict)  # of this epoch's measures
    best: float = math.inf  # validation score, lower is better
    best_epoch: int = 0
    waited: int = 0
    done: bool = False
    rows: int = 0


def _aboard(examples: Examples, device: torch.device) -> Examples:
    """The examples in a CUDA device's memory, where they fit; else as they are."""
    if device.type != "cuda" or not examples.resident:
        return examples
    free, _ = torch.cuda.mem_get_info(device)
    return examples.to(device) if examples.nbytes <= ABOARD * free else examples


class Loop:
    """Trains a model through its stages.

    Args:
        model: where it is to be trained.
        train: what it is trained on, the same in every process.
        valid: what it is judged on.
        settings: how.
        ranks: the processes that share the work.
        shards: into how many parts a batch is cut; the settings' number unless given.

    Attributes:
        asked: says whether this process was asked to stop.
        hasty: several steps may be taken at once. Each is still yielded, but the state can be written down only where
            :attr:`settled` says so; for callers that look at nothing else meanwhile.
        stop: whether any process was; all of them know it after the same step.
    """

    def __init__(
        self,
        model: Model,
        train: Examples,
        valid: Examples | None,
        settings: Settings,
        ranks: Ranks | None = None,
        shards: int | None = None,
    ) -> None:
        self.ranks = Ranks() if ranks is None else ranks
        self.pieces: Pieces | None = None
        if settings.shard_weights:
            refuse_pieces(model, settings)
            if self.ranks.world > 1:
                self.pieces = Pieces(model, torch.device(own_device(settings.device)), self.ranks)
        self.model, self.settings = model if self.pieces is None else self.pieces.model, settings
        self.asked: Callable[[], bool] = lambda: False
        self.stop = self.hasty = False
        self.device = self.model.device
        self.source = train
        self.train = _aboard(train, self.device)
        self.valid = None if valid is None else _aboard(valid, self.device)
        self.progress = Progress()
        self.unread: list[Taken] = []  # steps whose losses lie on the device still
        self.loss = math.nan
        self.stages = self.model.stages()
        self.batch_size = min(settings.batch_size or 128, len(train))
        # A last batch of one example, which batch normalisation cannot take, joins the one before.
        self.batches = max(1, math.ceil((len(train) - 1) / self.batch_size))
        self.best: dict[str, Tensor] | None = None
        self._following: tuple[int, Any] = (-1, None)  # the next epoch's order, by its seed, where it is known already
        count = shards or settings.shards or self.ranks.world
        if count > self.batch_size:
            raise ConfigError(
                f"a batch of {self.batch_size} examples cannot be cut into {count} shards: raise batch_size (--batch-size), or "
                "start fewer processes"
            )
        self.shards = Shards(count, self.batch_size, self.batches, len(train))
        self._enter(0)

    @property
    def stage(self) -> Stage:
        return self.stages[self.progress.stage]

    def epochs(self, stage: int) -> int:
        """Epochs of a stage."""
        if stage == len(self.stages) - 1:
            return self.settings.epochs
        return self.settings.pretrain_epochs or max(1, self.settings.epochs // 4)

    @property
    def total_steps(self) -> int:
        """Steps of all stages, if nothing stops them early."""
        return self.batches * sum(self.epochs(stage) for stage in range(len(self.stages)))

    def _enter(self, stage: int, engine: str | None = None) -> None:
        self.progress.stage, self.progress.epoch, self.progress.batch = stage, 0, 0
        self.progress.best, self.progress.best_epoch, self.progress.waited = math.inf, 0, 0
        self.best = None
        settings = self.settings
        parameters = [p for p in self.stage.module.parameters() if p.requires_grad]
        if not parameters:
            raise ConfigError(f"nothing can be trained in {self.stage.name}: every parameter is frozen (requires_grad is False)")
        if is_bayesian(self.stage.module) and isinstance(self.stage.objective, SquaredError):
            raise ConfigError(
                "random weights need a loss in nats, and the squared error is none: use objectives.NegativeLogLikelihood"
            )
        moving = moved(parameters, self.pieces)
        self.optimizer = Optimizer(settings.optimizer, moving, settings.weight_decay, settings.epsilon)
        program = Program(self.stage, self.model.gradient, parameters, len(self.train))
        self.engine = self._engine(program, self.batches * self.epochs(stage), engine)

    @property
    def together(self) -> bool:
        """Whether batches are cut, or shared with other processes."""
        return self.shards.count > 1 or self.ranks.world > 1

    def _engine(self, program: Program, steps: int, held: str | None) -> Engine:
        name, clip, count = self.settings.engine, self.settings.clip, self.shards.count
        if not self.together:
            return engine_for(name, program, self.optimizer, clip, self.batch_size, self.train, steps, held=held)
        if name == "graphs":
            raise ConfigError(
                "the engine graphs records the whole step of one process, and between its derivative and its move the shards are "
                "added up: use engine='compiled' (--engine compiled)"
            )
        if count > 1:
            whole = self.model if self.pieces is None else self.pieces.whole
            few = whole.batch(self.source.batch(slice(min(4, len(self.source))))).bare
            refuse_shards(whole, self.stage if self.pieces is None else whole.stages()[0], few, count)
        work = Work(self.shards, self.ranks, self.settings.seed, lambda: self.progress.step, lambda: self.asked())
        if self.pieces is not None:
            return InPieces(program, self.optimizer, clip, self.batch_size, self.pieces, work)
        part = self.batch_size // count
        inner = engine_for(name, program, self.optimizer, clip, part, self.train, steps, held=held, alone=False)
        return Sharded(inner, work)

    def rate(self, done: float) -> float:
        """The learning rate when ``done`` epochs of the stage are done."""
        return rate_at(self.settings, self.epochs(self.progress.stage), self.batches, done)

    def order(self) -> Any:
        """This epoch's order of the examples: a function of the seed, the stage and the epoch."""
        seed = self._seed(self.progress.epoch)
        if self.together:
            return seed  # a shard may have an order of its own
        known, order = self._following
        return order if known == seed else self.train.order(seed)

    def _seed(self, epoch: int) -> int:
        # Weights that keep (seed, stage, epoch) apart; manual_seed scrambles neighbouring seeds.
        return (self.settings.seed * 1_000_003 + self.progress.stage * 10_007 + epoch) % 2**63

    @property
    def settled(self) -> bool:
        """Whether the state is the one after the step that was yielded last, and can be written down."""
        return self.engine.ahead == 0

    def bounds(self) -> list[tuple[int, int]]:
        """Where the batches that are left of this epoch begin and end in its order."""
        starts = range(self.progress.batch * self.batch_size, self.batches * self.batch_size, self.batch_size)
        return [(start, start + self.batch_size) for start in starts[:-1]] + [(starts[-1], len(self.train))]

    def run(self) -> Iterator[Step]:
        """Train; each step is yielded after it is taken, when the state can be written down."""
        progress = self.progress
        while not progress.done:
            self.stage.module.train()
            with contextlib.closing(self.engine.steps(self.train, self.order(), self.bounds())) as steps:  # type: ignore[type-var]
                while progress.batch < self.batches:
                    self._take(steps)
                    last = progress.batch == self.batches
                    record = self._end_epoch() if last else None
                    stage = self.stage.name if record is None else record["stage"]
                    epoch = progress.epoch + 1 if record is None else record["epoch"]
                    yield Step(stage, epoch, progress.step, self.total_steps, self.loss, record)
                    if last:
                        break

    def _take(self, steps: Iterator[Taken]) -> None:
        progress, settings = self.progress, self.settings
        done = progress.epoch + progress.batch / self.batches
        self.engine.rate = self.rate(done)
        if self.settled:
            self.stage.objective.at(done)
            self.model.gradient.at(done)
            self.engine.coming = self._coming(done)
        with reduced(self.stage.module, settings.precision) if settings.precision != "float32" else contextlib.nullcontext():
            self.unread.append(next(steps))
        progress.batch += 1
        if progress.batch == self.batches and self.device.type == "cuda" and not self.together and self.train.resident:
            seed = self._seed(progress.epoch + 1)
            self._following = seed, self.train.order(seed)  # now, while the device has work to do
        progress.step += 1
        if self.device.type == "cpu" or len(self.unread) >= READ_EVERY:
            self.read()

    def _coming(self, done: float) -> list[float]:
        """The rates of the next steps, as far as they may be taken at once."""
        together = min(self.engine.most, self.batches - self.progress.batch) if self.hasty else 1
        if together < 2 or not (self.stage.objective.settled(done) and self.model.gradient.settled(done)):
            return []
        return [self.rate(self.progress.epoch + (self.progress.batch + n) / self.batches) for n in range(together)]

    def read(self) -> None:
        """Add the steps that were taken since the last reading to the epoch's sums.

        Raises:
            TrainingError: a loss among them is not finite.
        """
        if not self.unread:
            return
        progress, names = self.progress, self.unread[0].names
        rows = torch.stack([taken.values for taken in self.unread]).tolist()
        for number, (taken, row) in enumerate(zip(self.unread, rows, strict=True), progress.step - len(rows) + 1):
            if not math.isfinite(row[0]):
                raise TrainingError(
                    f"the loss is {row[0]} at step {number} (epoch {progress.epoch + 1} of {self.stage.name}): lower the "
                    "learning rate (--lr), clip the gradient (--clip 1) or look at the data's range"
                )
            weight = taken.size / len(self.train)
            for name, value in zip(names, row, strict=False):  # after them, from shards, the wish to stop
                progress.sums[name] = progress.sums.get(name, 0.0) + weight * value
        self.stop = self.stop or (self.together and any(row[-1] > 0 for row in rows))
        self.loss = rows[-1][0]
        self.unread.clear()

    def _end_epoch(self) -> dict[str, Any]:
        """Validate, log, and go on to the next epoch, the next stage or the end."""
        progress, settings = self.progress, self.settings
        self.read()
        self.check_weights()
        record: dict[str, Any] = {"stage": self.stage.name, "epoch": progress.epoch + 1, "step": progress.step}
        record |= {"lr": self.engine.rate}
        record |= {f"train_{name}": value for name, value in progress.sums.items()}
        if self.valid is not None:
            measures = self.validate(self.valid)
            record |= {f"valid_{name}": value for name, value in measures.items()}
            score = measures["loss"]
            if score < progress.best:
                progress.best, progress.best_epoch, progress.waited = score, progress.epoch + 1, 0
                record["improved"] = True
                self.best = {name: tensor.clone() for name, tensor in self._state().items()}
            elif progress.epoch + 1 > self.stage.objective.warmup:
                progress.waited += 1
        progress.sums, progress.batch = {}, 0
        progress.epoch += 1
        progress.rows += 1
        patience = settings.patience
        if progress.epoch >= self.epochs(progress.stage) or (patience is not None and progress.waited >= patience):
            if settings.keep == "best" and self.best is not None:
                self._put(self.best, "the best weights")
            if progress.stage + 1 < len(self.stages):
                self._enter(progress.stage + 1)
            else:
                progress.done = True
        return record

    def check_weights(self) -> None:
        """Refuse to go on, or to save, with weights that are not finite.

        Raises:
            TrainingError: names the first such weights and the step.
        """
        named = [
            (name, tensor if self.pieces is None else self.pieces.own(tensor)) for name, tensor in self.model.named_parameters()
        ]
        # One reading for all, where reading waits for a device
        finite = torch.stack([own.isfinite().all().to(self.model.device) for _, own in named]).tolist() if named else []
        for (name, _), well in zip(named, finite, strict=True):
            if not well if self.pieces is None else self.ranks.any(not well):
                raise TrainingError(
                    f"the weights {name} are no longer finite after step {self.progress.step} (epoch "
                    f"{self.progress.epoch + 1}): lower the learning rate (--lr) or clip the gradient (--clip 1)"
                )

    def validate(self, x: Examples) -> dict[str, float]:
        """Means over examples of the loss and the measures, with random numbers of their own: the same at each epoch."""
        return judged(self.model, self.stage, x, self.settings.seed, self.shards.count, self.ranks)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, by name."""
        pieces, model, best, slots = self.pieces, self._state(), self.best, self.optimizer.tensors()
        if pieces is not None:
            model, slots = pieces.joined_state(model), pieces.joined_slots(slots)
            best = None if best is None else pieces.joined_state(best)
        state = {f"model/{name}": tensor for name, tensor in model.items()}
        state |= {f"optimizer/{name}": tensor for name, tensor in slots.items()}
        if best is not None:
            state |= {f"best/{name}": tensor for name, tensor in best.items()}
        return state | dict(zip(("random/cpu", "random/cuda"), random_states(self.device), strict=False))

    def _state(self) -> dict[str, Tensor]:
        return state_of(self.model) if self.pieces is None else self.pieces.state()

    def _put(self, state: dict[str, Tensor], where: str) -> None:
        if self.pieces is None:
            put_state(self.model, state, where)
        else:
            self.pieces.put(state)

    def gather(self) -> Model:
        """The model that the loop was given, with its weights of now."""
        if self.pieces is None:
            return self.model
        self.pieces.gather()
        return self.pieces.whole

    def state(self) -> dict[str, Any]:
        """The rest of the state, as JSON."""
        self.read()
        about = {"examples": len(self.train), "batch_size": self.batch_size, "engine": self.engine.name}
        about["shards"] = self.shards.count
        return {**asdict(self.progress), **about}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any], where: str) -> None:
        """Go back to where a checkpoint was written.

        Raises:
            TrainingError: the data or the batch size are not those of the run.
            CheckpointError: the tensors do not fit the model.
        """
        missing = {"examples", "batch_size", *asdict(self.progress)} - state.keys()
        if missing:
            raise CheckpointError(f"{where} is not a training checkpoint of this version: it lacks {', '.join(sorted(missing))}")
        if state["examples"] != len(self.train) or state["batch_size"] != self.batch_size:
            raise TrainingError(
                f"{where} was trained on {state['examples']} examples in batches of {state['batch_size']}, but is resumed with "
                f"{len(self.train)} in batches of {self.batch_size}: give it the data that it began with"
            )

        def named(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        # The engine that the run began with, or its last digits would be others
        self._enter(state["stage"], state.get("engine"))
        self.progress = Progress(**{name: state[name] for name in asdict(self.progress)})
        model, best, slots = named("model/"), named("best/"), named("optimizer/")
        if self.pieces is not None:
            put_state(self.pieces.whole, model, where)  # refuses another model's
            model, best, slots = self.pieces.pieces_of(model), self.pieces.pieces_of(best), self.pieces.slots_of(slots)
        self._put(model, where)
        self.optimizer.restore(slots, where)
        self.best = {name: value.to(self.device) for name, value in best.items()} or None
        states = [tensors[name] for name in ("random/cpu", "random/cuda") if name in tensors]
        put_random_states(states, self.device)
