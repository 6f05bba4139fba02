"""What a run folder holds: config.json, metrics.jsonl, model.safetensors, checkpoints/."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xhat.errors import CheckpointError, ConfigError
from xhat.models.files import (
    MODEL_FILE,
    read_tensors,
    save,
    unwritable,
    write_bytes,
    write_tensors,
)
from xhat.parts import specification
from xhat.training.settings import Settings
from xhat.version import __version__

LAST, BEST = "last.safetensors", "best.safetensors"


class RunFolder:
    """Reads and writes one run. Every file is replaced whole, but metrics.jsonl, which grows by a line an epoch."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.model_file = self.path / MODEL_FILE

    def start(self, model: nn.Module, settings: Settings, about: dict[str, Any], overwrite: bool) -> None:
        """Make the folder for a new run.

        Raises:
            CheckpointError: it holds a run already and ``overwrite`` is not set, or cannot be written.
        """
        if self.config_file.exists() and "xhat" not in self.config():
            raise CheckpointError(f"{self.path} holds a config.json that is not xhat's: choose another folder")
        if overwrite:
            self._remove_run()
        if (self.checkpoints / LAST).exists() or self.model_file.exists():
            raise CheckpointError(
                f"{self.path} holds a run already: go on with it (xhat train --resume {shlex.quote(str(self.path))}, "
                "or resume=True), replace it (--overwrite), or choose another folder"
            )
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error
        try:
            described = specification(model)
        except ConfigError:
            described = None
        config = {
            "xhat": __version__,
            "torch": torch.__version__,
            **about,
            "settings": asdict(settings),
            "model": described,
        }
        write_bytes(self.config_file, (json.dumps(config, indent=2) + "\n").encode())
        write_bytes(self.metrics_file, b"")

    def _remove_run(self) -> None:
        """Remove the files that a run is made of, and no others."""
        own = [self.config_file, self.metrics_file, self.model_file, self.checkpoints / LAST, self.checkpoints / BEST]
        try:
            for file in [*own, self.path / "evaluation.json", self.path / "report.html"]:
                file.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def config(self) -> dict[str, Any]:
        """The configuration.

        Raises:
            CheckpointError: the folder holds no run, or the file is damaged.
        """
        try:
            config = json.loads(self.config_file.read_text())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CheckpointError(
                f"{self.path} is not a run folder (no config.json): make one with xhat train … --out"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.config_file} cannot be read: {error}") from error
        if not isinstance(config, dict):
            raise CheckpointError(f"{self.config_file} is damaged: it must hold an object")
        return config

    def settings(self) -> Settings:
        """The settings of the run.

        Raises:
            CheckpointError: they are not there, or are not this version's.
        """
        held = self.config().get("settings")
        if not isinstance(held, dict):
            raise CheckpointError(f"{self.config_file} holds no training settings")
        try:
            return Settings(**held)
        except TypeError as error:
            raise CheckpointError(f"{self.config_file} holds settings of another version of xhat: {error}") from error

    def rows(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that a crash cut short is left out."""
        if not self.metrics_file.exists():
            return []
        rows: list[dict[str, Any]] = []
        for line in self.metrics_file.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not isinstance(row, dict) or "stage" not in row:
                break
            rows.append(row)
        return rows

    def add_row(self, row: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        try:
            with self.metrics_file.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise unwritable(self.metrics_file, error) from error

    def cut_rows(self, rows: list[dict[str, Any]]) -> None:
        """Replace metrics.jsonl: what was logged after the checkpoint happens again."""
        write_bytes(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def save_state(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Write the checkpoint that training resumes from."""
        write_tensors(self.checkpoints / LAST, tensors, {"kind": "checkpoint", "progress": json.dumps(progress)})

    def read_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read the last checkpoint.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        tensors, metadata = read_tensors(self.checkpoints / LAST)
        try:
            return tensors, json.loads(metadata["progress"])
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{self.checkpoints / LAST} is not a training checkpoint") from error

    def save_best(self, model: nn.Module) -> None:
        """Keep the model of now as the best; the file opens with ``xhat.load``."""
        save(model, self.checkpoints / BEST)

    def save_model(self, model: nn.Module) -> None:
        """Write the finished model."""
        save(model, self.model_file)
