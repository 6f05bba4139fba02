"""Sources: from a word, a path or an array to the :class:`~xhat.data.raw.Raw` arrays that stand behind it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xhat.data.arrays import read_npy, read_npz
from xhat.data.examples import Examples
from xhat.data.frames import is_frame, read_frame
from xhat.data.idx import IDX_NAME, mnist_files, read_idx, read_mnist_folder
from xhat.data.images import IMAGE_ENDINGS, image_paths, read_images
from xhat.data.raw import Raw, reading, refuse_empty
from xhat.data.source_options import SourceOptions, refuse_others
from xhat.data.storage import as_storage, check_finite
from xhat.data.streams.opened import read_shards, shard_paths
from xhat.data.tables import read_csv, read_parquet
from xhat.errors import ConfigError, DataError

UNDERSTOOD = (
    "understood are the word digits, files .npy, .npz, .idx, -ubyte (also .gz), .csv, .tsv and .parquet, "
    "a folder of images, of .npy or of .parquet files, and a folder with the MNIST files"
)
_DIGITS = "datasets/data/digits.csv.gz"


def read(source: Any, options: SourceOptions | None = None, where: str | None = None) -> tuple[str, Raw]:
    """The name and the arrays of ``source``: the word ``digits``, a path, a data frame, or something that is an array.

    Args:
        source: what is read.
        options: which part of it is meant.
        where: what messages call a source in memory.

    Raises:
        DataError: nothing there, an unknown format, or a damaged file.
        ConfigError: an option that has no meaning for this format.
    """
    options = options or SourceOptions()
    if isinstance(source, str) and source == "digits":
        refuse_others(options, "the digits")
        return "digits", read_digits()
    if isinstance(source, str | os.PathLike):
        if source == "":  # Path would take it for the working folder
            raise DataError(f"the source is an empty text: {UNDERSTOOD}")
        path = Path(source)
        return path.name or str(path), _read_path(path, options)
    if is_frame(source):
        refuse_others(options, "a data frame", "labels")
        name = where or "the data frame"
        held = not isinstance(options.labels, str | int) and not options.asked
        return name, read_frame(source, None if held else options.labels, name, options.condition, options.asked)
    return where or "the array", _read_array(source, options, where or "x")


def read_digits() -> Raw:
    """scikit-learn's bundled digits, ``(1797, 1, 8, 8)`` with values k/16; scikit-learn itself is not imported.

    Raises:
        DataError: scikit-learn is not installed.
    """
    found = importlib.util.find_spec("sklearn")
    places = [Path(place, _DIGITS) for place in (found.submodule_search_locations or ())] if found else []
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise DataError("the digits come with scikit-learn, which is not installed: pip install 'xhat[sklearn]'")
    with reading(path, "digits file"):
        table = np.loadtxt(path, delimiter=",", dtype=np.float32)
    return Raw((table[:, :64] / 16).reshape(-1, 1, 8, 8), train_labels=table[:, 64])


def _read_path(path: Path, options: SourceOptions) -> Raw:
    with reading(path, "source"):
        if not path.exists():
            raise DataError(f"there is no file or folder {str(path)!r}: check the path; {UNDERSTOOD}")
        folder = path.is_dir()
    if folder:
        return _read_folder(path, options)
    ending = path.suffix.lower()
    if ending == ".npz":
        refuse_others(options, path, "array", "labels")
        if options.labels is not None and not isinstance(options.labels, str):
            raise ConfigError(f"{path} has named arrays, labels must be one of the names, not {options.labels!r}: name it")
        return read_npz(path, options.array, options.labels)
    if ending in _TABLES:
        refuse_others(options, path, "labels")
        if options.labels is not None and not isinstance(options.labels, str | int):
            raise ConfigError(f"{path} is a table, labels must be a column's name or position: give one of these")
        return _TABLES[ending](path, options.labels, options.condition, options.asked)
    refuse_others(options, path)
    if ending == ".npy":
        return read_npy(path)
    if IDX_NAME.search(path.name):
        return read_idx(path)
    if ending in IMAGE_ENDINGS:
        raise DataError(f"{path} is a single image: give the folder that it is in")
    refuse_empty(path)
    raise DataError(f"{path} has the unknown ending {ending!r}: {UNDERSTOOD}")


_TABLES: dict[str, Callable[[Path, str | int | None, Sequence[str], bool], Raw]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".pq": read_parquet,
}


def _read_folder(path: Path, options: SourceOptions) -> Raw:
    with reading(path, "folder"):
        files = mnist_files(path)
    if files:
        refuse_others(options, path)
        return read_mnist_folder(files)
    shards = shard_paths(path)
    if shards:
        tables = shards[0].suffix.lower() in _TABLES
        refuse_others(options, path, *("labels",) * tables)
        return read_shards(path, shards, options)
    if not image_paths(path):
        raise DataError(
            f"the folder {path} holds neither images nor the MNIST files (train-images-idx3-ubyte, ...): {UNDERSTOOD}"
        )
    refuse_others(options, path, "resize")
    return read_images(path, options.resize)


def files_of(source: str | os.PathLike[str]) -> list[Path]:
    """The files that :func:`read` takes a source's examples from, in a fixed order.

    Raises:
        DataError: the source has vanished.
    """
    path = Path(source)
    with reading(path, "source"):
        if not path.is_dir():
            return [path] if path.is_file() else []
        files = mnist_files(path)
        return [files[name] for name in sorted(files)] or shard_paths(path) or image_paths(path)


def _read_array(source: Any, options: SourceOptions, where: str) -> Raw:
    refuse_others(options, "an array in memory", "labels")
    if isinstance(source, Examples):
        # the grey values, also where batches are drawn from them
        values = Examples(source.storage, scale=True).tensor() if source.scale else source.storage
        labels = options.labels if options.labels is not None else source.labels
        if source.condition is not None:
            raise DataError("the examples carry a condition, which load_data would lose: give the source of the condition to it")
        if source.observed is not None:
            values = values.float() if values.dtype == torch.uint8 else values
            values = values.masked_fill(~source.observed, torch.nan)
    else:
        values, labels = as_storage(source, where), options.labels if options.asked else None
    if isinstance(labels, str | int):
        raise ConfigError(f"labels={labels!r} names a column of a file, x is an array: give the labels themselves")
    if isinstance(labels, Tensor):
        labels = labels.cpu()
    given = None if labels is None else np.asarray(labels)
    return Raw(values.cpu().numpy(), train_labels=given, dtype=_dtype_name(values if isinstance(source, Examples) else source))


def _dtype_name(array: Any) -> str:
    """NumPy's name of the type of the values; those of a type that NumPy lacks are held as float32."""
    if isinstance(array, Tensor):
        name = str(array.dtype).removeprefix("torch.")
        return name if name != "bfloat16" else "float32"
    return np.asarray(array).dtype.newbyteorder("=").name


def read_array(path: str | Path, name: str) -> Tensor:
    """One float array from an npy, npz (the array ``name``) or csv file, as it is; a csv column ``label`` is left out.

    Raises:
        DataError: the file cannot be read.
    """
    ending = Path(path).suffix.lower()
    if ending == ".csv":
        try:
            _, raw = read(path, SourceOptions(labels="label"))
        except DataError:
            _, raw = read(path)
    else:
        _, raw = read(path, SourceOptions(array=name if ending == ".npz" else None))
    values = as_storage(raw.train, str(path)).float()
    check_finite(values, str(path))
    return values
