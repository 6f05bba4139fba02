"""A folder of images as a stream: each is decoded when it is wanted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from xhat.data.images import check_size, decode, stack
from xhat.data.permutation import Permutation
from xhat.data.streams.base import Stream
from xhat.errors import DataError

_LOOKED_AT = 256  # images that are decoded to find out whether any is in colour
_MOST_WORKERS = 8  # more threads than this wait for each other and for the disk


@final
class ImageStream(Stream):
    """Image files, each one row of bytes ``(1 or 3, H, W)``.

    In colour if one of 256 of the images is, drawn by a fixed seed; grey ones are then given three equal channels.

    Args:
        paths: the files.
        name: what messages call the folder.
        resize: (height, width) that all images are brought to.

    Raises:
        DataError: an image is damaged, or Pillow is not installed.
    """

    scattered = True
    dtype = torch.uint8

    def __init__(self, paths: list[Path], name: str, resize: tuple[int, int] | None = None) -> None:
        self.name, self._paths, self._resize = name, [str(path) for path in paths], resize
        self.bounds = np.array([0, len(paths)])
        self.workers = min(_MOST_WORKERS, os.cpu_count() or 1)
        looked_at = [0, *Permutation(len(paths), seed=0)[:_LOOKED_AT].tolist()]
        images = self._decoded(looked_at)
        height, width = images[0].shape[:2]
        self.shape = (3 if any(image.ndim == 3 for image in images) else 1, height, width)
        self.layout, self.source_dtype = "channels-last" if self.shape[0] == 3 else "grey", "uint8"

    def _decoded(self, rows: list[int]) -> list[np.ndarray]:
        # Pillow's warnings of damage that it repairs are let through: to silence them is no business of one thread among several
        return [decode(Path(self._paths[row]), self._resize) for row in rows]

    def read(self, indices: Tensor) -> Tensor:
        rows = indices.tolist()
        images = self._decoded(rows)
        channels, height, width = self.shape
        for row, image in zip(rows, images, strict=True):
            check_size(Path(self._paths[row]), image, height, width)
            if channels == 1 and image.ndim == 3:
                raise DataError(
                    f"{self._paths[row]} is in colour, and the images that were looked at before are all grey: bring all to one "
                    "kind, or load them into memory (memory='load', --memory load)"
                )
        return torch.from_numpy(stack(images, colour=channels == 3)) if rows else torch.empty(0, *self.shape, dtype=self.dtype)

    def where(self, row: int) -> str:
        return self._paths[row]
