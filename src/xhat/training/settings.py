"""How a model is trained, as plain data: the command reads it without importing torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from xhat.errors import ConfigError

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine")
KEEP = ("best", "last")
ENGINES = ("auto", "eager", "compiled", "graphs")
PRECISIONS = ("float32", "bfloat16")


def drops_of(schedule: str) -> tuple[list[int], float]:
    """The epochs at which the learning rate drops, and by what it is multiplied then.

    Raises:
        ConfigError: the schedule is none.

    >>> drops_of("steps:200,350:0.63")
    ([200, 350], 0.63)
    """
    found = re.fullmatch(r"steps:(\d+(?:,\d+)*):(\d*\.?\d+(?:e-?\d+)?)", schedule)
    at = [int(epoch) for epoch in found[1].split(",")] if found else []
    if found is None or at != sorted(set(at)) or not 0 < float(found[2]) <= 1:
        raise ConfigError(
            f"schedule must be one of {', '.join(SCHEDULES)}, or steps:EPOCHS:FACTOR with rising epochs and a factor of at most "
            f"1, such as steps:200,350:0.63; was {schedule!r}"
        )
    return at, float(found[2])


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Training settings.

    Attributes:
        epochs: passes over the training examples (of the last stage, where a model has several).
        pretrain_epochs: passes of each greedy stage of a stacked model; a quarter of epochs unless given.
        batch_size: examples in a step; 128, or all where there are fewer.
        optimizer: "adam" or "adamw".
        lr: learning rate.
        weight_decay: of the optimiser.
        epsilon: what the optimiser adds to the root of the second moment.
        schedule: "constant"; "cosine" down to 0 at the last step; or "steps:200,350:0.63", at each of these epochs times 0.63.
        warmup: epochs over which the learning rate rises from 0.
        clip: largest norm of the gradient; longer ones are scaled down.
        patience: stop after this many epochs without a better objective on the validation examples; a β warm-up does not count.
        keep: which weights the model ends with, the "best" by the objective on the validation examples or the "last".
        seed: of everything random.
        checkpoint_every: epochs between checkpoints.
        device: "auto", "cpu", "cuda".
        engine: "eager", "compiled" (torch.compile), "graphs" (CUDA graphs), or "auto" for whichever ends soonest.
        precision: "float32", or "bfloat16" for the networks' products, with float32 weights, densities and divergences.
        shards: parts into which a batch is cut, and which the processes of a run share; as many as there are processes unless
            given. With one number of shards a run is the same on any number of processes.
        shard_weights: each process keeps a part of the weights and of the optimiser's state only (FSDP).
        tensorboard: also write TensorBoard's event files.
    """

    epochs: int = 50
    pretrain_epochs: int | None = None
    batch_size: int | None = None
    optimizer: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    epsilon: float = 1e-8
    schedule: str = "constant"
    warmup: float = 0.0
    clip: float | None = None
    patience: int | None = None
    keep: str = "best"
    seed: int = 0
    checkpoint_every: int = 1
    device: str = "auto"
    engine: str = "auto"
    precision: str = "float32"
    shards: int | None = None
    shard_weights: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        kinds: dict[str, Any] = {"int": int, "float": int | float, "str": str, "bool": bool}
        for field in fields(self):
            value, (kind, *none) = getattr(self, field.name), str(field.type).split(" | ")
            fits = isinstance(value, kinds[kind]) and (kind == "bool" or not isinstance(value, bool))
            if not fits and not (value is None and none):
                raise ConfigError(f"{field.name} must be of type {field.type}, was {value!r}")
        words = {"optimizer": OPTIMIZERS, "keep": KEEP, "engine": ENGINES, "precision": PRECISIONS}
        for name, options in words.items():
            if getattr(self, name) not in options:
                raise ConfigError(f"{name} must be one of {', '.join(options)}, was {getattr(self, name)!r}")
        if self.schedule not in SCHEDULES:
            drops_of(self.schedule)
        for name in ("epochs", "checkpoint_every", "pretrain_epochs", "batch_size", "patience", "shards"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, was {value}")
        if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device) is None:
            raise ConfigError(f"device must be auto, cpu, cuda, cuda:N or mps, was {self.device!r}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be at least 0 and below 2^63, was {self.seed}")
        for name in ("lr", "epsilon"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be above 0, was {getattr(self, name)}")
        for name in ("weight_decay", "warmup"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be at least 0, was {getattr(self, name)}")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip must be above 0, was {self.clip}")
