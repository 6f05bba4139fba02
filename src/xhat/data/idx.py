"""IDX, the format of MNIST: a type, the dimensions and the numbers, all big-endian; often gzipped."""

from __future__ import annotations

import gzip
import math
import re
import struct
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from xhat.data.raw import Raw, reading, refuse_empty
from xhat.errors import DataError

IDX_NAME = re.compile(r"(\.idx|[-.]idx\d-u?byte|-ubyte|\.idx\d)(\.gz)?$", re.IGNORECASE)

_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_MOST_AXES = 8
_FILES = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> Raw:
    """One IDX file; labels come from the file beside it that the MNIST names imply, if it is there.

    Raises:
        DataError: the file is damaged or no IDX file.
    """
    beside = path.with_name(path.name.replace("-images", "-labels").replace("idx3", "idx1"))
    labels = read_idx_array(beside) if beside != path and beside.is_file() else None
    return Raw(read_idx_array(path), train_labels=labels)


def mnist_files(folder: Path) -> dict[str, Path]:
    """The files of a folder in MNIST's layout: ``train_images``, ``test_labels``, ...; empty for another folder."""
    found = {}
    for split, prefix in _FILES.items():
        for content, axes in (("images", 3), ("labels", 1)):
            stem = f"{prefix}-{content}"
            names = [f"{stem}{joint}idx{axes}-ubyte{end}" for joint in "-." for end in ("", ".gz")]
            path = next((folder / name for name in names if (folder / name).is_file()), None)
            if path is not None:
                found[f"{split}_{content}"] = path
    return found if "train_images" in found else {}


def read_mnist_folder(files: dict[str, Path]) -> Raw:
    """The training and test split of a folder in MNIST's layout, with labels where they are there.

    Raises:
        DataError: one of the files is damaged or no IDX file.
    """
    arrays = {name: read_idx_array(path) for name, path in files.items()}
    return Raw(
        arrays["train_images"],
        test=arrays.get("test_images"),
        train_labels=arrays.get("train_labels"),
        test_labels=arrays.get("test_labels") if "test_images" in arrays else None,
    )


def read_idx_array(path: Path) -> np.ndarray:
    """The array of one IDX file, gzipped or not, in the machine's byte order."""
    refuse_empty(path)
    with reading(path, "IDX file"), path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        # what gzip gives back reads like any binary file
        return _parse(path, cast(BinaryIO, gzip.GzipFile(fileobj=file)) if zipped else file)


def _parse(path: Path, file: BinaryIO) -> np.ndarray:
    header = file.read(4)
    if len(header) < 4 or header[:2] != b"\0\0" or header[2] not in _TYPES or not 1 <= header[3] <= _MOST_AXES:
        raise DataError(f"{path} is no IDX file, it starts with the bytes {header.hex(' ')}: fetch or write it again")
    shape = struct.unpack(f">{header[3]}I", file.read(4 * header[3]))
    dtype = np.dtype(_TYPES[header[2]])
    size = math.prod(shape) * dtype.itemsize
    # read() takes what there is, so a header that lies about the size costs nothing
    content = file.read()
    if len(content) != size:
        raise DataError(
            f"{path} is cut short or too long, its header promises {size} bytes of shape {shape} "
            f"and {len(content)} follow: fetch or write it again"
        )
    array = np.frombuffer(content, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="))  # a copy also makes it writable, as torch wants it
