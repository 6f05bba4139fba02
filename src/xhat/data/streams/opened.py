"""From a path to the streams that stand behind it, where its format can be streamed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xhat.data.arrays import read_npy
from xhat.data.idx import mnist_files
from xhat.data.images import by_split, image_paths, labels_of
from xhat.data.memory import fits
from xhat.data.raw import Raw, reading
from xhat.data.set_aside import LABEL
from xhat.data.source_options import SourceOptions, refuse_others
from xhat.data.streams.base import Stream
from xhat.data.streams.images import ImageStream
from xhat.data.streams.npy import NpyStream
from xhat.data.streams.parquet import ParquetStream
from xhat.data.streams.shards import Shards
from xhat.data.tables import read_parquet
from xhat.errors import ConfigError, DataError

STREAMABLE = ".npy and .parquet files, folders of such files, and folders of images"
_EXPANSION = 50  # bytes in memory for one of a file: more than JPEG and Parquet save
_TABLES = (".parquet", ".pq")


class Opened(NamedTuple):
    """The streams of a source, a split that it does not bring being None.

    ``labels`` are those of each split, as the source has them, or None; ``columns`` the names of a table's columns;
    ``beside`` those that its training examples are conditioned on.
    """

    name: str
    train: Stream
    valid: Stream | None = None
    test: Stream | None = None
    labels: tuple[np.ndarray | None, ...] = (None, None, None)
    columns: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    beside: dict[str, np.ndarray] | None = None

    @property
    def splits(self) -> tuple[Stream | None, ...]:
        return self.train, self.valid, self.test

    @property
    def bytes(self) -> int:
        """What all rows would take in memory."""
        return sum(len(part) * part.row_bytes for part in self.splits if part is not None)


def open_streams(source: Any, options: SourceOptions) -> Opened | None:
    """The streams of a source, or None where it cannot be streamed.

    Raises:
        DataError: a file is damaged, or holds no numbers.
        ConfigError: an option that has no meaning for this format.
    """
    if isinstance(source, Stream):
        return Opened(source.name, source)
    if not _is_path(source):
        return None
    path = Path(source)
    ending = path.suffix.lower()
    if path.is_file() and ending in (".npy", *_TABLES):
        return _of_files(path, [path], options)
    if not path.is_dir() or _mnist(path):
        return None
    shards = shard_paths(path)
    if shards:
        return _of_files(path, shards, options)
    if not image_paths(path):
        return None
    refuse_others(options, path, "resize")
    return _images(path, options.resize)


def _is_path(source: Any) -> bool:
    return isinstance(source, str | os.PathLike) and str(source) not in ("", "digits")


def is_small(source: Any) -> bool:
    """Whether a source's files are so small that it fits in memory, however well they are compressed."""
    if not _is_path(source) or not Path(source).exists():
        return not isinstance(source, Stream)
    path = Path(source)
    with reading(path, "source"):
        files = [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]
        return fits(_EXPANSION * sum(file.stat().st_size for file in files))


def opened_for(source: Any, options: SourceOptions, memory: str) -> Opened | None:
    """The source's streams, if it is to be streamed; else None.

    Raises:
        ConfigError: it is to be, and cannot be.
    """
    if memory == "load" or (memory == "auto" and is_small(source)):
        return None
    opened = open_streams(source, options)
    if opened is None and memory == "stream":
        raise ConfigError(f"{source!r} cannot be streamed, but {STREAMABLE} can: leave memory='stream' (--memory stream) out")
    if opened is not None and memory == "auto" and fits(opened.bytes) and not isinstance(source, Stream):
        return None
    return opened


def _of_files(path: Path, files: list[Path], options: SourceOptions) -> Opened:
    """One file, or the shards of a folder."""
    if files[0].suffix.lower() in _TABLES:
        refuse_others(options, path, "labels")
        return _table(path.name, files, options)
    refuse_others(options, path)
    streams = [NpyStream(file) for file in files]
    return Opened(path.name, streams[0] if len(streams) == 1 else Shards(streams, str(path)))


def _mnist(path: Path) -> bool:
    with reading(path, "folder"):
        return bool(mnist_files(path))


def shard_paths(folder: Path) -> list[Path]:
    """The .npy or .parquet files that lie in a folder, by their names; empty where it is no folder of shards.

    Raises:
        DataError: it holds both kinds, or images besides.
    """
    with reading(folder, "folder"):
        files = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    arrays = [path for path in files if path.suffix.lower() == ".npy"]
    tables = [path for path in files if path.suffix.lower() in _TABLES]
    if arrays and tables:
        raise DataError(f"{folder} holds both .npy and .parquet files, and one kind must be meant: give each a folder of its own")
    return arrays or tables


def read_shards(folder: Path, shards: list[Path], options: SourceOptions) -> Raw:
    """All shards of a folder as one array in memory.

    Raises:
        DataError: a shard is damaged, or of another shape than the first.
    """
    aside = options.labels, options.condition, options.asked
    parts = [read_npy(path) if path.suffix.lower() == ".npy" else read_parquet(path, *aside) for path in shards]
    first = parts[0]
    for path, part in zip(shards, parts, strict=True):
        if part.train.shape[1:] != first.train.shape[1:] or part.columns != first.columns:
            raise DataError(
                f"{path} has examples of shape {part.train.shape[1:]}, {shards[0]} has {first.train.shape[1:]}, and all must "
                "have one shape and the same columns: correct the source"
            )
    found = [part.train_labels for part in parts if part.train_labels is not None]
    return Raw(
        np.concatenate([part.train for part in parts]),
        train_labels=np.concatenate(found) if found else None,
        columns=first.columns,
        beside={name: np.concatenate([part.beside[name] for part in parts if part.beside]) for name in first.beside or {}},
    )


def _table(name: str, paths: list[Path], options: SourceOptions) -> Opened:
    labels = options.labels
    if labels is not None and not isinstance(labels, str | int):
        raise ConfigError(f"{name} is a table, labels must be a column's name or position: give one of these")
    tables = [ParquetStream(path, labels, options.condition, options.asked) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        if table.columns != tables[0].columns:
            raise DataError(f"{path} has other columns than {paths[0]}, and all must have the same: correct the source")
    stream = tables[0] if len(tables) == 1 else Shards(tables, name)
    beside = [table.beside() for table in tables]
    columns = {field: np.concatenate([each[field] for each in beside]) for field in beside[0]}
    if LABEL in options.condition or (labels is not None and str(labels) in options.condition):
        codes = [part for part in (table.labels() for table in tables) if part is not None]
        whole = np.concatenate(codes) if codes else None
        return Opened(name, stream, labels=(whole, None, None), columns=tables[0].columns, beside=columns)
    notes = () if labels is None else ("the column of labels is left out, as a streamed table has no labels",)
    return Opened(name, stream, columns=tables[0].columns, notes=notes, beside=columns)


def _images(folder: Path, resize: tuple[int, int] | None) -> Opened:
    groups = by_split(folder, image_paths(folder))
    streams = {split: ImageStream(paths, str(folder), resize) for split, paths in groups.items()}
    labels = tuple(
        labels_of(folder, groups[split], depth=int(len(groups) > 1)) if split in groups else None
        for split in ("train", "valid", "test")
    )
    return Opened(folder.name, streams["train"], streams.get("valid"), streams.get("test"), labels)
