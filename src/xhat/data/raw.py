"""What a reader hands on: arrays as the source holds them, before they are checked, split and scaled."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xhat.errors import DataError, XhatError

CHANNELS = (1, 3, 4)  # grey, colour, colour with transparency


class Raw(NamedTuple):
    """The arrays of a source, a split that it does not bring being None; labels may still be text.

    ``columns`` are the names of a table's columns. For messages: ``rows`` are the rows in the file, from 1, of the
    training examples, and ``places`` what each column is called (``"column 'age'"``, ``"column 3"``). ``layout`` is that of
    pictures in files, whose arrays here have channels first; ``dtype`` is NumPy's name of the type that an array in memory had.
    ``beside`` are the columns of a table that its training examples are conditioned on, which are not in ``train``.
    """

    train: np.ndarray
    valid: np.ndarray | None = None
    test: np.ndarray | None = None
    train_labels: np.ndarray | None = None
    valid_labels: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    columns: tuple[str, ...] | None = None
    rows: np.ndarray | None = None
    places: tuple[str, ...] | None = None
    layout: str | None = None
    dtype: str | None = None
    beside: Mapping[str, np.ndarray] | None = None

    @property
    def splits(self) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        return self.train, self.valid, self.test

    @property
    def labels(self) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        return self.train_labels, self.valid_labels, self.test_labels


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turns whatever a damaged, forbidden or vanished file raises into one sentence that names the file.

    Raises:
        DataError: instead of the reader's own error, which is kept as its cause.
    """
    try:
        yield
    except XhatError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: check the path") from error
    except PermissionError as error:
        raise DataError(f"{path} cannot be read, permission is denied: allow it with chmod u+r") from error
    except MemoryError as error:
        raise DataError(
            f"{path} claims to hold more than fits in memory: use a part of it, or write it again if it is damaged"
        ) from error
    except (
        OSError,
        EOFError,
        ValueError,
        SyntaxError,  # Pillow's, for a broken PNG chunk
        KeyError,
        IndexError,
        OverflowError,
        NotImplementedError,  # a compression method that zipfile lacks
        RuntimeError,  # an encrypted zip
        struct.error,
        tokenize.TokenError,  # numpy's, for the header of an array
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path} holds pickled Python objects or is no {what}, and unpickling would run code from the file: "
                "write it again with plain numeric arrays"
            ) from error
        reason = str(error).split("\n")[0] or type(error).__name__
        raise DataError(
            f"{path} is no readable {what}, it is damaged or cut short ({reason}): fetch or write it again"
        ) from error


def refuse_empty(path: Path) -> None:
    """Refuse a file of no bytes, which would otherwise be called damaged in as many ways as there are readers."""
    with reading(path, "file"):
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty, it has 0 bytes: fetch or write it again")


def as_events(array: np.ndarray) -> np.ndarray:
    """Examples in the layout of networks: grey images get a channel axis, channels-last images put channels first.

    ``(N, H, W)`` becomes ``(N, 1, H, W)``; bytes ``(N, H, W, 1 | 3 | 4)`` become ``(N, C, H, W)``; the rest stays.

    >>> as_events(np.zeros((5, 8, 8))).shape, as_events(np.zeros((5, 8, 9, 3), np.uint8)).shape
    ((5, 1, 8, 8), (5, 3, 8, 9))
    """
    layout = layout_of(array)
    if layout == "grey":
        return array[:, None]
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if layout == "channels-last" else array


def layout_of(array: np.ndarray) -> str:
    """How an array holds its examples: as rows (``plain``), or as pictures ``grey``, ``channels-first`` or ``channels-last``."""
    if array.ndim < 3:
        return "plain"
    if array.ndim == 3:
        return "grey"
    last = array.ndim == 4 and array.shape[3] in CHANNELS and array.shape[1] not in CHANNELS and array.dtype == np.uint8
    return "channels-last" if last else "channels-first"
