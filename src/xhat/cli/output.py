"""Where the commands' arrays go: npy, npz, csv or a picture, by the file's ending."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xhat.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

ENDINGS = (".npy", ".npz", ".csv", ".png")


def check_ending(path: Path) -> None:
    """Refuse, before any work is done, a file that cannot be written later.

    Raises:
        ConfigError: an unknown ending.
    """
    if path.suffix not in ENDINGS:
        raise ConfigError(f"--out must end in one of {', '.join(ENDINGS)}, was {path.name!r}")


def write(
    path: Path,
    arrays: dict[str, Tensor],
    columns: tuple[str, ...] | None = None,
    label_names: tuple[str, ...] | None = None,
    exact: bool = False,
) -> None:
    """Write arrays; the first is the one that formats for one array hold.

    Args:
        path: where to.
        arrays: by name; those called ``labels`` are codes.
        columns: what the first one's columns are called, in a csv file.
        label_names: what the codes stand for; they are then written as text, an unknown one (-1) as empty text.
        exact: write numbers of a csv file with all their digits.

    Raises:
        ConfigError: the ending does not suit the arrays.
        CheckpointError: the file cannot be written.
    """
    import numpy as np

    from xhat.models.files import write_bytes

    check_ending(path)
    values = {name: tensor.cpu().numpy() for name, tensor in arrays.items()}
    if label_names is not None and "labels" in values:
        values["labels"] = np.array([*label_names, ""])[values["labels"]]
    name, first = next(iter(values.items()))
    buffer = io.BytesIO()
    if path.suffix == ".npy":
        np.save(buffer, first, allow_pickle=False)
    elif path.suffix == ".npz":
        np.savez_compressed(buffer, **values)  # type: ignore[arg-type]
    elif path.suffix == ".csv":
        buffer.write(_csv(name, values, columns, exact).encode())
    else:
        buffer.write(_picture(arrays))
    make_folder(path)
    write_bytes(path, buffer.getvalue())


def make_folder(path: Path) -> None:
    """Make the folder that a file is to lie in.

    Raises:
        CheckpointError: it cannot be made.
    """
    from xhat.models.files import unwritable

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def _csv(name: str, values: dict[str, Any], columns: tuple[str, ...] | None, exact: bool) -> str:
    table = values[name].reshape(len(values[name]), -1)
    header = list(columns) if columns is not None and len(columns) == table.shape[1] else []
    header = header or [f"{name}_{i}" for i in range(table.shape[1])]
    labels = values.get("labels")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header if labels is None else [*header, "label"])
    for index, row in enumerate(table):
        cells = [repr(float(value)) if exact and float(f"{value:.9g}") != value else f"{value:.9g}" for value in row]
        writer.writerow(cells if labels is None else [*cells, labels[index]])
    return text.getvalue()


def _picture(arrays: dict[str, Tensor]) -> bytes:
    """A grid of images; several arrays stand beside each other, example by example."""
    import math

    import torch
    from matplotlib.image import imsave

    images = [tensor.cpu() for name, tensor in arrays.items() if name != "labels"]
    if any(tensor.ndim != 4 or tensor.shape[1] not in (1, 3) for tensor in images):
        raise ConfigError("only grey and colour images go into a png: choose .npy, .npz or .csv")
    count = min(len(images[0]), 100)
    across = max(1, math.ceil(math.sqrt(count / len(images))))
    tiles = torch.stack([tensor[:count] for tensor in images], 1).clamp(0, 1)
    tiles = torch.nn.functional.pad(tiles, (1, 1, 1, 1), value=1.0)
    missing = -count % across
    tiles = torch.cat([tiles, tiles.new_ones(missing, *tiles.shape[1:])])
    rows, height, width = len(tiles) // across, *tiles.shape[-2:]
    # (rows, across, beside, C, H, W) to (rows·H, across·beside·W, C)
    grid = tiles.reshape(rows, across, len(images), -1, height, width).permute(0, 4, 1, 2, 5, 3)
    grid = grid.reshape(rows * height, across * len(images) * width, -1)
    enlarge = max(1, 600 // grid.shape[1])
    grid = grid.repeat_interleave(enlarge, 0).repeat_interleave(enlarge, 1).expand(-1, -1, 3)
    buffer = io.BytesIO()
    imsave(buffer, grid.contiguous().numpy(), format="png")
    return buffer.getvalue()


def read_codes(path: Path, latent: tuple[int, ...]) -> Tensor:
    """Codes from an npy, npz (array ``codes``) or csv file, ``(N, *latent)``.

    Raises:
        DataError: the file cannot be read, or holds arrays of another shape.
    """
    from xhat.data import read_array

    held = read_array(path, "codes")
    width = 1
    for size in latent:
        width *= size
    if held.ndim < 2 or held.shape[1:].numel() != width or not len(held):
        raise DataError(f"{path} holds an array of shape {tuple(held.shape)}, but codes of this model have shape (N, {width})")
    return held.reshape(len(held), *latent)
