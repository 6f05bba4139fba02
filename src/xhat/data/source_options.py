"""Which part of a source is meant: options that have a meaning for some formats only."""

from __future__ import annotations

from typing import Any, NamedTuple

from xhat.errors import ConfigError

_MEANT = {"resize": "folders of images", "array": ".npz files", "labels": "tables, .npz files and arrays"}


class SourceOptions(NamedTuple):
    """Options that say which part of a source is meant; each has a meaning for some formats only.

    ``asked`` is False where they are not the caller's own but those of a model's training data: what a new source has no use for
    is then passed over.
    """

    resize: tuple[int, int] | None = None
    array: str | None = None
    labels: Any = None
    condition: tuple[str, ...] = ()
    asked: bool = True


def refuse_others(options: SourceOptions, source: Any, *known: str) -> None:
    """Refuse options that have no meaning for a source.

    Args:
        options: what was asked.
        source: what messages call it.
        known: the options that it has.

    Raises:
        ConfigError: one of the others was given.
    """
    for name, meant in _MEANT.items():
        if options.asked and getattr(options, name) is not None and name not in known:
            raise ConfigError(f"{name}= is an option for {meant}, not for {source}: leave it out")
