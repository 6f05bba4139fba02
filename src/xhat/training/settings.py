"""How a model is trained, as plain data: the command reads it without importing torch."""

from __future__ import annotations

from dataclasses import dataclass

from xhat.errors import ConfigError

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine")
KEEP = ("best", "last")


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
        schedule: "constant", or "cosine" down to 0 at the last step.
        warmup: epochs over which the learning rate rises from 0.
        clip: largest norm of the gradient; longer ones are scaled down.
        patience: stop after this many epochs without a better validation bound.
        keep: which weights the model ends with, the "best" by the validation bound or the "last".
        seed: of everything random.
        checkpoint_every: epochs between checkpoints.
        device: "auto", "cpu", "cuda".
        tensorboard: also write TensorBoard's event files.
    """

    epochs: int = 50
    pretrain_epochs: int | None = None
    batch_size: int | None = None
    optimizer: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: float = 0.0
    clip: float | None = None
    patience: int | None = None
    keep: str = "best"
    seed: int = 0
    checkpoint_every: int = 1
    device: str = "auto"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name, options in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("keep", KEEP)):
            if getattr(self, name) not in options:
                raise ConfigError(f"{name} must be one of {', '.join(options)}, was {getattr(self, name)!r}")
        for name in ("epochs", "checkpoint_every", "pretrain_epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, was {value}")
        if not 0 < self.lr < float("inf"):
            raise ConfigError(f"lr must be above 0, was {self.lr}")
        for name in ("weight_decay", "warmup"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0, was {getattr(self, name)}")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip must be above 0, was {self.clip}")
