"""Which part of a source is meant: options that have a meaning for some formats only."""

from __future__ import annotations

from typing import Any, NamedTuple

from xhat.errors import ConfigError


class Choices(NamedTuple):
    """Options that say which part of a source is meant; each has a meaning for some formats only."""

    resize: tuple[int, int] | None = None
    array: str | None = None
    labels: Any = None


def refuse_others(choices: Choices, source: Any, *known: str) -> None:
    """Refuse options that have no meaning for a source.

    Args:
        choices: what was asked.
        source: what messages call it.
        known: the options that it has.

    Raises:
        ConfigError: one of the others was given.
    """
    for name, value in choices._asdict().items():
        if value is not None and name not in known:
            meant = {
                "resize": "folders of images",
                "array": ".npz files",
                "labels": "tables, .npz files and arrays",
            }
            raise ConfigError(f"{name}= is an option for {meant[name]}, not for {source}: leave it out")
