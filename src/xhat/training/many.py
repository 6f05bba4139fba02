"""``xhat.fit_many``: many small models, of several seeds and values of β, trained at once as one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xhat.data import Batch, Examples, given, preparation_of
from xhat.errors import ConfigError, DataError, TrainingError, whole_number
from xhat.heap import kept_heap
from xhat.models.base import Model
from xhat.parts import rebuild, specification
from xhat.training.fit import History
from xhat.training.loop import Step
from xhat.training.optimizer import Optimizer
from xhat.training.progress import bar
from xhat.training.rate import rate_at
from xhat.training.settings import Settings
from xhat.training.stack import ALONE, Stack, put

CHUNK = 1000  # examples at once in validation, and
ELEMENTS = 20_000_000  # numbers at once that the likelihoods of all members make for them
OWN = (
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "weight_decay",
    "epsilon",
    "schedule",
    "warmup",
    "clip",
    "patience",
    "keep",
    "device",
)
OPTIMIZERS = ("adam", "adamw")


class Member(NamedTuple):
    """One of many: an ordinary trained model, and what its training left behind."""

    seed: int
    beta: float | None
    model: Model
    history: History

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return f"seed {self.seed}" if self.beta is None else f"seed {self.seed}, β {self.beta:g}"


class Many(NamedTuple):
    """What :func:`fit_many` made; ``str()`` of it is a table of means and standard deviations over seeds."""

    members: list[Member]
    seconds: float
    interrupted: bool

    @property
    def models(self) -> list[Model]:
        """The trained models, in the order of ``members``."""
        return [member.model for member in self.members]

    def __str__(self) -> str:
        trained = [member for member in self.members if member.history.rows]
        if not trained:
            return "no epoch was finished"
        state = "interrupted" if self.interrupted else "finished"
        lines = [f"{len(trained)} models, {state} after {self.seconds:.1f} s"]
        betas = list(dict.fromkeys(member.beta for member in trained))
        for beta in betas:
            rows = [member.history.best for member in trained if member.beta == beta]
            lines.append(f"{len(rows)} seeds" if beta is None else f"β {beta:g}, {len(rows)} seeds")
            for name in [name for name in rows[0] if name.startswith(("train_", "valid_"))]:
                values = torch.tensor([row[name] for row in rows], dtype=torch.float64)
                spread = f" ± {float(values.std()):.4f}" if len(values) > 1 else ""
                lines.append(f"  {name.replace('_', ' '):<24}  {float(values.mean()):.4f}{spread}")
        return "\n".join(lines)


def fit_many(
    build: Callable[[int], Model],
    x: Any,
    valid: Any = None,
    *,
    seeds: int | Sequence[int] = 16,
    beta: float | Sequence[float] | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Many:
    r"""Train models of one structure at once: one for each seed, or for each β and seed.

    Their weights lie in stacks, ``(M, *shape)``, and one vectorised program (``torch.func``) takes all members' steps. Each
    member has the initial weights, the order of examples and the β that :func:`xhat.fit` with its seed would give it, its own
    noise, and its own best epoch; Adam works on each number by itself, so a stack of them is the same Adam. A model without
    noise ends as it would have ended alone, up to the order in which floating-point numbers are added; with noise the members are
    further draws of the same law, and which ones they are depends on all the seeds that are trained together.

    Args:
        build: makes the model of a seed, with torch's generator freshly seeded; it need not use the seed itself.
        x: training examples, ``(N, *event_shape)``.
        valid: validation examples; each member ends with the weights that were best on them (``keep="last"`` for the last).
        seeds: how many (0, 1, …), or which.
        beta: weights of the KL term: each is trained with every seed, in place of the model's own.
        progress: show a progress bar; None: if standard error is a terminal.
        **settings: epochs, batch_size, optimizer, lr, weight_decay, epsilon, schedule, warmup, clip, patience, keep and device of
            :class:`xhat.training.settings.Settings`.

    Returns:
        the members, β by β. After Ctrl-C they are as the last whole epoch left them, and ``interrupted`` is set.

    Raises:
        DataError: examples that do not suit the model.
        ConfigError: settings that make no sense, or a model that a stack cannot train (stages, batch normalisation, random
            weights, estimators that learn): before training begins.
        TrainingError: the loss or the weights of a member are no longer finite; names its seed.

    >>> import torch, xhat
    >>> many = fit_many(lambda seed: xhat.build("vae", shape=(4,), latent=2, hidden=[8]), torch.rand(100, 4), seeds=3, epochs=2)
    >>> [(member.seed, len(member.history.rows)) for member in many.members]
    [(0, 2), (1, 2), (2, 2)]
    >>> many.models[0].sample(5).shape
    torch.Size([5, 4])
    """
    began = time.perf_counter()
    chosen = _settings(settings)
    train = given(x, None, "the training data")
    told = preparation_of(train, None)
    held = None if valid is None else given(valid, told, "the validation data")
    members = [(seed, weight) for weight in _betas(beta) for seed in _seeds(seeds)]
    models = [_built(build, seed, weight) for seed, weight in members]
    for model in models:
        model.preparation = told
    names = [Member(seed, weight, model, None).name for (seed, weight), model in zip(members, models, strict=True)]  # type: ignore[arg-type]
    work = _Work(models, [seed for seed, _ in members], names, train, held, chosen)
    interrupted = False
    try:
        with kept_heap(), bar(work.batches * chosen.epochs, 0, progress) as show:
            for step in work.run():
                show(step)
    except KeyboardInterrupt:
        interrupted = True
    for index, model in enumerate(models):
        put(model, work.kept, index)
    seconds = time.perf_counter() - began
    result = [
        Member(seed, weight, model, History(rows, seconds, interrupted, None))
        for (seed, weight), model, rows in zip(members, models, work.rows, strict=True)
    ]
    return Many(result, seconds, interrupted)


class _Work:
    """The training of a stack: as that of one model, with every number a vector."""

    def __init__(
        self,
        models: list[Model],
        seeds: list[int],
        names: list[str],
        train: Examples,
        valid: Examples | None,
        settings: Settings,
    ) -> None:
        self.seeds, self.names, self.settings = seeds, names, settings
        _check_data(models[0], train, valid, settings)
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.models = [model.to(device) for model in models]
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device {device!r} is not to be had here: {str(error).splitlines()[0]}") from error
        self.train = train.to(device)
        for seed, model in zip(seeds, self.models, strict=True):
            torch.manual_seed(seed)  # as for one model, whose parts may start at examples that they draw
            model.prepare(self.train)
        # One draw for all members, or their differences would be those of their yardsticks.
        self.valid = None if valid is None else valid.fixed(seeds[0]).to(device)
        torch.manual_seed(seeds[0])
        self.batch_size = min(settings.batch_size or 128, len(train))
        # As for one model: a last batch of one example joins the one before.
        self.batches = max(1, math.ceil((len(train) - 1) / self.batch_size))
        with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
            first = self.train.batch(self._order(0)[:, : self.batch_size]).to(models[0].like)
        self.stack = Stack(self.models, first)
        self.trained = [*self.stack.trained.values()]
        self.optimizer = Optimizer(settings.optimizer, self.trained, settings.weight_decay, settings.epsilon)
        self.rate = settings.lr
        self.warmup = models[0].objective.warmup
        self.chunk = max(1, min(CHUNK, ELEMENTS // (models[0].numbers * models[0].objective.samples * len(models))))
        self.rows: list[list[dict[str, Any]]] = [[] for _ in models]
        self.best, self.waited = [math.inf] * len(models), [0] * len(models)
        self.going = [True] * len(models)
        self.kept = self.stack.state()  # what the members end with

    def _order(self, epoch: int) -> Tensor:
        """The members' orders of the examples in an epoch, ``(M, N)``: those of one model with the seed, see ``Loop.order``."""
        orders = [self.train.order((seed * 1_000_003 + epoch) % 2**63)[:] for seed in self.seeds]
        return torch.stack(orders).to(self.train.device)

    def _rate(self, done: float) -> float:
        """The learning rate when ``done`` epochs are done, as for one model."""
        return rate_at(self.settings, self.settings.epochs, self.batches, done)

    def run(self) -> Iterator[Step]:
        """Train; each step is yielded after it is taken."""
        total = self.batches * self.settings.epochs
        for epoch in range(self.settings.epochs):
            order, sums = self._order(epoch), torch.zeros(())
            for batch in range(self.batches):
                start = batch * self.batch_size
                end = len(self.train) if batch == self.batches - 1 else start + self.batch_size
                values = self._step(self.train.batch(order[:, start:end]).to(self.models[0].like), epoch, batch)
                sums = sums + values.double() * ((end - start) / len(self.train))
                if batch == self.batches - 1:
                    self._end_epoch(epoch, sums)
                loss = float(values[:, 0].mean())
                yield Step(f"{self.stack.size} models", epoch + 1, epoch * self.batches + batch + 1, total, loss, None)
            if not any(self.going):
                return

    def _step(self, rows: Batch, epoch: int, batch: int) -> Tensor:
        done = epoch + batch / self.batches
        self.rate = self._rate(done)
        self.stack.at(done)
        last = batch == self.batches - 1
        gradients, values = self.stack.gradients(rows, self.settings.epochs * (1 if last else self.batches - 1))
        self._check(values[:, :1], f"the loss of the model with {{}} is not finite at step {epoch * self.batches + batch + 1}")
        if self.settings.clip is not None:
            _clip([gradient for gradient in gradients if gradient is not None], self.settings.clip)
        self.optimizer.step(gradients, self.rate)
        return values

    def _check(self, values: Tensor, sentence: str) -> None:
        """Refuse to go on with a member whose numbers, ``(M, …)``, are not finite."""
        if bool(values.isfinite().all()):
            return
        finite = values.flatten(1).isfinite().all(1).tolist()
        for index, name in enumerate(self.names):
            if self.going[index] and not finite[index]:
                raise TrainingError(f"{sentence.format(name)}: lower the learning rate (lr) or clip the gradient (clip=1)")

    def _end_epoch(self, epoch: int, sums: Tensor) -> None:
        """Validate, log, and keep the weights of the members for which they are to be kept."""
        for parameter in self.trained:
            self._check(parameter, f"the weights of the model with {{}} are no longer finite after epoch {epoch + 1}")
        common: dict[str, Any] = {"stage": "train", "epoch": epoch + 1, "step": (epoch + 1) * self.batches}
        common["lr"] = self.rate
        trained = _named("train", self.stack.names(True), sums)
        validated = None if self.valid is None else self._validate(self.valid)
        keep = []
        for index in range(self.stack.size):
            if not self.going[index]:
                continue
            row: dict[str, Any] = common | trained[index]
            improved = False
            if validated is not None:
                row |= validated[index]
                improved = row["valid_loss"] < self.best[index]
                if improved:
                    row["improved"] = True
                    self.best[index], self.waited[index] = row["valid_loss"], 0
                elif epoch + 1 > self.warmup:
                    self.waited[index] += 1
            self.rows[index].append(row)
            if improved or self.settings.keep == "last" or self.best[index] == math.inf:
                keep.append(index)
            patience = self.settings.patience
            self.going[index] = patience is None or self.waited[index] < patience
        self._keep(keep)

    def _keep(self, which: list[int]) -> None:
        state = self.stack.state()
        chosen = torch.zeros(self.stack.size, dtype=torch.bool)
        chosen[which] = True
        # Made whole before it takes the old one's place: Ctrl-C may come at any moment.
        self.kept = {
            name: torch.where(chosen.to(new.device).view(-1, *(1,) * (new.ndim - 1)), new, self.kept[name])
            for name, new in state.items()
        }

    def _validate(self, x: Examples) -> list[dict[str, float]]:
        """Each member's means over examples, with random numbers of their own: the same at each epoch."""
        device = self.models[0].device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seeds[0])
            self.stack.at(math.inf)
            sums = self.stack.sums(batch.to(self.models[0].like) for batch in x.batched(self.chunk))
        return _named("valid", self.stack.names(False), sums / len(x))


def _named(prefix: str, names: list[str], values: Tensor) -> list[dict[str, float]]:
    return [{f"{prefix}_{name}": value for name, value in zip(names, row, strict=True)} for row in values.tolist()]


def _clip(gradients: list[Tensor], largest: float) -> None:
    """Scale each member's gradient down to a norm, as ``torch.nn.utils.clip_grad_norm_`` does for one model."""
    norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    factors = (largest / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *(1,) * (gradient.ndim - 1)))


def _settings(given: dict[str, Any]) -> Settings:
    unknown = [name for name in given if name not in OWN]
    if "seed" in unknown:
        raise ConfigError("fit_many has a seed for each model: pass seeds=[0, 1, …] in place of seed")
    if unknown:
        known = unknown[0] in {field.name for field in fields(Settings)}
        reason = f"is none of many models at once: {ALONE}, or leave it out" if known else "is unknown"
        raise ConfigError(f"the setting {unknown[0]} {reason}; fit_many has {', '.join(OWN)}")
    settings = Settings(**given)
    if settings.optimizer not in OPTIMIZERS:
        raise ConfigError(f"optimizer must be one of {', '.join(OPTIMIZERS)} for many models, was {settings.optimizer!r}")
    return settings


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, Sequence) and not isinstance(seeds, str):
        chosen = [*seeds]
    else:
        whole_number("seeds", seeds)
        chosen = [*range(seeds)]
    for seed in chosen:
        whole_number("each seed", seed, 0)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigError(f"seeds must be a number, or different whole numbers, was {seeds!r}")
    return [int(seed) for seed in chosen]


def _betas(beta: float | Sequence[float] | None) -> list[float] | list[None]:
    if beta is None:
        return [None]
    betas = [*beta] if isinstance(beta, Sequence) and not isinstance(beta, str) else [beta]
    if not betas or len(set(betas)) < len(betas):
        raise ConfigError(f"beta must be a number, or different numbers, was {beta!r}")
    return betas


def _built(build: Callable[[int], Model], seed: int, beta: float | None) -> Model:
    """The model that ``build`` makes after torch was seeded, as before a single run; with another β, where one is given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(seed)
    if not isinstance(model, Model):
        raise ConfigError(f"build must return a model of xhat, returned {type(model).__name__}")
    if beta is None:
        return model
    objective = specification(model.objective)
    if not hasattr(model.objective, "beta"):
        raise ConfigError(f"beta weighs the KL of an ELBO, and {type(model.objective).__name__} has none: leave it out")
    objective["arguments"]["beta"] = beta
    model.objective = rebuild(objective).to(model.device)
    return model


def _check_data(model: Model, train: Examples, valid: Examples | None, settings: Settings) -> None:
    for examples, name in ((train, "the training data"), (valid, "the validation data")):
        if examples is not None and not examples.resident:
            raise ConfigError(f"{name} are streamed, and many models at once need them in memory: {ALONE}, or load fewer")
        first = 0
        for batch in () if examples is None else examples.batched(8192):
            model.check(batch, name, first)
            model.need_condition(batch.condition, batch.size)
            first += batch.size
    if len(train) < 2:
        raise DataError(f"training needs at least 2 examples, the data have {len(train)}: give it more")
    if settings.batch_size is not None and settings.batch_size > len(train):
        raise ConfigError(
            f"batch_size is {settings.batch_size}, but there are only {len(train)} training examples: lower it, or leave it out"
        )
    if settings.patience is not None and valid is None:
        raise ConfigError("patience needs validation examples to watch: pass valid=…, or leave patience out")
