"""The training loop: a generator of steps over a state that can be written down at any of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xhat.data import Examples
from xhat.errors import CheckpointError, ConfigError, TrainingError
from xhat.models.base import Model, Stage, quiet
from xhat.models.files import put_state, state_of
from xhat.networks.bayesian_models import is_bayesian, kl
from xhat.objectives import SquaredError, Terms
from xhat.training.settings import Settings

CHUNK = 1000  # examples at once in validation, and
ELEMENTS = 20_000_000  # numbers at once that the likelihood makes for them


class Step(NamedTuple):
    """One step of training.

    ``loss`` is the batch's mean, in the objective's unit. ``record`` is the epoch's line of the log, at its last step.
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


class Loop:
    """Trains a model through its stages."""

    def __init__(self, model: Model, train: Examples, valid: Examples | None, settings: Settings) -> None:
        self.model, self.train, self.valid, self.settings = model, train, valid, settings
        self.device = model.device
        self.progress = Progress()
        self.stages = model.stages()
        self.batch_size = min(settings.batch_size or 128, len(train))
        # A last batch of one example, which batch normalisation cannot take, joins the one before.
        self.batches = max(1, math.ceil((len(train) - 1) / self.batch_size))
        self.best: dict[str, Tensor] | None = None
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

    def _enter(self, stage: int) -> None:
        self.progress.stage, self.progress.epoch, self.progress.batch = stage, 0, 0
        self.progress.best, self.progress.best_epoch, self.progress.waited = math.inf, 0, 0
        self.best = None
        cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.settings.optimizer]
        parameters = [p for p in self.stage.module.parameters() if p.requires_grad]
        if not parameters:
            raise ConfigError(f"nothing can be trained in {self.stage.name}: every parameter is frozen (requires_grad is False)")
        # Random weights are paid for as every latent is: their divergence from the prior, shared among the examples.
        self.random_weights = is_bayesian(self.stage.module)
        if self.random_weights and isinstance(self.stage.objective, SquaredError):
            raise ConfigError(
                "random weights need a loss in nats, and the squared error is none: use objectives.NegativeLogLikelihood"
            )
        self.optimizer = cls(parameters, lr=self.settings.lr, weight_decay=self.settings.weight_decay, fused=True)

    def rate(self, done: float) -> float:
        """The learning rate when ``done`` epochs of the stage are done."""
        settings, epochs = self.settings, self.epochs(self.progress.stage)
        if done < settings.warmup:
            # Half a step on, so that the first step of a warm-up moves.
            return settings.lr * min(1.0, (done + 0.5 / self.batches) / settings.warmup)
        if settings.schedule == "cosine":
            share = (done - settings.warmup) / max(epochs - settings.warmup, 1e-12)
            return settings.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        return settings.lr

    def order(self) -> Tensor:
        """This epoch's order of the examples: a function of the seed, the stage and the epoch."""
        generator = torch.Generator()
        # Weights that keep (seed, stage, epoch) apart; manual_seed scrambles neighbouring seeds.
        generator.manual_seed((self.settings.seed * 1_000_003 + self.progress.stage * 10_007 + self.progress.epoch) % 2**63)
        return torch.randperm(len(self.train), generator=generator)

    def run(self) -> Iterator[Step]:
        """Train; each step is yielded after it is taken, when the state can be written down."""
        progress = self.progress
        while not progress.done:
            self.stage.module.train()
            order = self.order()
            while progress.batch < self.batches:
                start = progress.batch * self.batch_size
                x = self.model.given(self.train[order[start : self._end(start)]])
                loss = self._step(x)
                last = progress.batch == self.batches
                record = self._end_epoch() if last else None
                stage = self.stage.name if record is None else record["stage"]
                epoch = progress.epoch + 1 if record is None else record["epoch"]
                yield Step(stage, epoch, progress.step, self.total_steps, loss, record)
                if last:
                    break

    def _end(self, start: int) -> int:
        """Where the batch that starts here ends."""
        return len(self.train) if self.progress.batch == self.batches - 1 else start + self.batch_size

    def _step(self, x: Tensor) -> float:
        progress, settings = self.progress, self.settings
        done = progress.epoch + progress.batch / self.batches
        rate = self.rate(done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.stage.objective.at(done)
        self.model.gradient.at(done)
        terms: Terms = self.stage.module(x)
        loss = terms.loss.mean()
        if self.random_weights:
            weights_kl = kl(self.stage.module)
            loss = loss + weights_kl / len(self.train)
            terms.measures["weights_kl"] = weights_kl.expand(len(x))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {progress.step + 1} (epoch {progress.epoch + 1} of {self.stage.name}): lower the "
                "learning rate (--lr), clip the gradient (--clip 1) or look at the data's range"
            )
        auxiliary = self.model.gradient.auxiliary_loss()
        self.optimizer.zero_grad(set_to_none=True)
        (loss if auxiliary is None else loss + auxiliary).backward()
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], settings.clip)
        self.optimizer.step()
        weight = x.shape[0] / len(self.train)
        for name, total in {"loss": value, **{k: float(v.detach().mean()) for k, v in terms.measures.items()}}.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + weight * total
        progress.batch += 1
        progress.step += 1
        return value

    def _end_epoch(self) -> dict[str, Any]:
        """Validate, log, and go on to the next epoch, the next stage or the end."""
        progress, settings = self.progress, self.settings
        self.check_weights()
        record: dict[str, Any] = {"stage": self.stage.name, "epoch": progress.epoch + 1, "step": progress.step}
        record |= {"lr": self.optimizer.param_groups[0]["lr"]}
        record |= {f"train_{name}": value for name, value in progress.sums.items()}
        if self.valid is not None:
            measures = self.validate(self.valid)
            record |= {f"valid_{name}": value for name, value in measures.items()}
            score = measures["loss"]
            if score < progress.best:
                progress.best, progress.best_epoch, progress.waited = score, progress.epoch + 1, 0
                record["improved"] = True
                self.best = {name: tensor.clone() for name, tensor in state_of(self.model).items()}
            elif progress.epoch + 1 > self.stage.objective.warmup:
                progress.waited += 1
        progress.sums, progress.batch = {}, 0
        progress.epoch += 1
        progress.rows += 1
        patience = settings.patience
        if progress.epoch >= self.epochs(progress.stage) or (patience is not None and progress.waited >= patience):
            if settings.keep == "best" and self.best is not None:
                put_state(self.model, self.best, "the best weights")
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
        for name, tensor in self.model.named_parameters():
            if not bool(tensor.isfinite().all()):
                raise TrainingError(
                    f"the weights {name} are no longer finite after step {self.progress.step} (epoch "
                    f"{self.progress.epoch + 1}): lower the learning rate (--lr) or clip the gradient (--clip 1)"
                )

    def validate(self, x: Examples) -> dict[str, float]:
        """Means over examples of the loss and the measures, with random numbers of their own: the same at each epoch."""
        sums: dict[str, float] = {}
        devices = [self.device] if self.device.type == "cuda" else []
        with quiet(self.stage.module), torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.settings.seed)
            # Judged by what the objective will be: weights that were best while the KL cost nothing are not wanted back.
            self.stage.objective.at(math.inf)
            chunk = max(1, min(CHUNK, ELEMENTS // (self.model.numbers * self.stage.objective.samples)))
            for batch in x.batches(chunk):
                terms: Terms = self.stage.module(self.model.given(batch))
                for name, values in {"loss": terms.loss, **terms.measures}.items():
                    sums[name] = sums.get(name, 0.0) + float(values.double().sum()) / len(x)
        return sums

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, by name."""
        state = {f"model/{name}": tensor for name, tensor in state_of(self.model).items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer/{index}/{name}": value for name, value in slots.items()}
        if self.best is not None:
            state |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        state["random/cpu"] = torch.random.get_rng_state()
        if self.device.type == "cuda":
            state["random/cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def state(self) -> dict[str, Any]:
        """The rest of the state, as JSON."""
        return {**asdict(self.progress), "examples": len(self.train), "batch_size": self.batch_size}

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

        self._enter(state["stage"])
        self.progress = Progress(**{name: state[name] for name in asdict(self.progress)})
        put_state(self.model, named("model/"), where)
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in named("optimizer/").items():
            index, slot = name.split("/")
            slots.setdefault(int(index), {})[slot] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
        self.best = {name: value.to(self.device) for name, value in named("best/").items()} or None
        torch.random.set_rng_state(tensors["random/cpu"])
        if self.device.type == "cuda" and "random/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random/cuda"], self.device)
