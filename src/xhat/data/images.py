"""A folder of images: every file one example, every sub-folder a label."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xhat.data.arrays import SPLITS
from xhat.data.raw import Raw, reading, refuse_empty
from xhat.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
# Only these decoders are tried: Pillow knows formats that start other programs
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")


def read_images(folder: Path, resize: tuple[int, int] | None = None) -> Raw:
    """All images below ``folder``, as bytes ``(N, 1 or 3, H, W)``: colour if any of them is.

    Sub-folder names are labels; sub-folders called train, valid and test are splits.

    Args:
        folder: where the images are; hidden files are passed over.
        resize: (height, width) that all images are brought to.

    Raises:
        DataError: no image, images of several sizes, a damaged image, or Pillow is not installed.
    """
    paths = image_paths(folder)
    if not paths:
        raise DataError(f"{folder} holds no images: put files in it that end in {', '.join(IMAGE_ENDINGS)}")
    groups = by_split(folder, paths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's, about damage that it goes on to repair or to raise
        images = {split: [decode(path, resize) for path in group] for split, group in groups.items()}
    _check_sizes(groups, images)
    colour = any(image.ndim == 3 for group in images.values() for image in group)
    chosen: dict[str, Any] = {split: stack(group, colour) for split, group in images.items()}
    for split, group in groups.items():
        chosen[f"{split}_labels"] = labels_of(folder, group, depth=int(len(groups) > 1))
    return Raw(**chosen, layout="channels-last" if colour else "grey")


def image_paths(folder: Path) -> list[Path]:
    """The image files below ``folder``, in an order that depends on their names alone."""
    found = []
    with reading(folder, "folder"):
        for place, folders, files in os.walk(folder, onerror=_reraise):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            visible = sorted(name for name in files if not name.startswith("."))
            found += [Path(place, name) for name in visible if name.lower().endswith(IMAGE_ENDINGS)]
    return found


def _reraise(error: OSError) -> None:
    raise error


def _name_at(folder: Path, path: Path, depth: int) -> str:
    """The name of the sub-folder that the file lies in, so many levels down; empty if it lies above."""
    folders = path.relative_to(folder).parts[:-1]
    return folders[depth] if len(folders) > depth else ""


def by_split(folder: Path, paths: list[Path]) -> dict[str, list[Path]]:
    """The images of each split, if every one lies below a folder called after a split and train is among them."""
    split_of = {alias: split for split, aliases in SPLITS.items() for alias in aliases}
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(split_of.get(_name_at(folder, path, 0).lower(), ""), []).append(path)
    return groups if "train" in groups and "" not in groups and len(groups) > 1 else {"train": paths}


def labels_of(folder: Path, paths: list[Path], depth: int) -> np.ndarray | None:
    """The names of the sub-folders so many levels down, as text, if every image lies in one."""
    names = [_name_at(folder, path, depth) for path in paths]
    return np.array(names) if all(names) else None


def decode(path: Path, resize: tuple[int, int] | None) -> np.ndarray:
    """One image as bytes, ``(H, W)`` if it is grey and ``(H, W, 3)`` if it is in colour."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"reading {path} needs Pillow, which is not installed: pip install 'xhat[data]'") from error
    refuse_empty(path)
    try:
        with reading(path, "image"), Image.open(path, formats=_FORMATS) as opened:
            image = _eight_bits(opened, path)
            if resize is not None:
                image = image.resize((resize[1], resize[0]), Image.Resampling.BICUBIC)
            array = np.array(image)
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} has too many pixels to be opened safely: make it smaller first") from error
    if opened.mode == "P" and array.ndim == 3 and bool((array == array[..., :1]).all()):
        return array[..., 0]  # a palette of greys: GIF knows no other way to say grey
    return array


def _eight_bits(image: Image, path: Path) -> Image:
    """The image in mode L or RGB; transparency is dropped, 16-bit greys keep their upper 8 bits."""
    if image.mode in ("1", "L", "LA", "La"):
        return image.convert("L")
    if image.mode == "F":
        raise DataError(f"{path} holds floating-point grey levels: write it as an 8-bit image, or the data as .npy")
    if image.mode.startswith("I"):
        from PIL import Image as pillow

        # convert("L") would clip at 255 instead of scaling
        return pillow.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


def check_size(path: Path, image: np.ndarray, height: int, width: int) -> None:
    """Refuse an image of another size than the first.

    Raises:
        DataError: says which, and how all are brought to one size.
    """
    if image.shape[:2] != (height, width):
        raise DataError(
            f"{path} is {image.shape[0]}x{image.shape[1]} pixels, the first image is {height}x{width}, and all "
            f"must be of one size: resize=({height}, {width}) (--resize {height}x{width}) brings them to it"
        )


def _check_sizes(groups: dict[str, list[Path]], images: dict[str, list[np.ndarray]]) -> None:
    decoded = [(path, image) for split in groups for path, image in zip(groups[split], images[split], strict=True)]
    height, width = decoded[0][1].shape[:2]
    for path, image in decoded:
        check_size(path, image, height, width)


def stack(images: list[np.ndarray], colour: bool) -> np.ndarray:
    """Decoded images of one size as one array, ``(N, 1 or 3, H, W)``."""
    height, width = images[0].shape[:2]
    result = np.empty((len(images), 3 if colour else 1, height, width), np.uint8)
    for row, image in zip(result, images, strict=True):
        row[:] = image.transpose(2, 0, 1) if image.ndim == 3 else image
    return result
