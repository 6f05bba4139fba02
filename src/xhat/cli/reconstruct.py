"""``xhat reconstruct``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from xhat.cli.options import named_values
from xhat.cli.output import write
from xhat.cli.run import examples_for, unscaled_examples_for
from xhat.cli.use import CHUNK, limited, mapped, open_run, own_units, place_for, write_by_rows, write_examples

if TYPE_CHECKING:
    from torch import Tensor

    from xhat.data import Batch, Corruption, Examples
    from xhat.models.base import Model

ONE = (".npy", ".csv")  # formats that hold one array


def reconstruct(
    run: Path,
    *,
    data: str | None = None,
    split: str = "test",
    condition: str | None = None,
    as_if: str | None = None,
    corrupt: str | None = None,
    limit: int | None = None,
    out: Path | None = None,
    draw: bool = False,
    seed: int = 0,
) -> None:
    """Reconstruct examples, also from a corrupted input; an npz or png holds x, the corrupted x and x̂ side by side.

    Where values are missing, of a run that was trained with --missing mask, they are filled: a csv or npy file holds the observed
    values as they were and x̂ in place of the others.

    Examples:

        xhat reconstruct runs/digits --limit 20 --out pairs.png
        xhat reconstruct runs/denoiser --corrupt masking:0.5 --out restored.npz
        xhat reconstruct runs/patients --data gaps.csv --out filled.csv
        xhat reconstruct runs/patients --as-if diagnosis=benign

    Parameters
    ----------
    run
        A run folder.
    data
        Other data than the run's own.
    split
        Of the run's own data: train, valid, test or all.
    condition
        What all are encoded under, such as label=3,age=40, in place of the data's own.
    as_if
        Another condition to decode under: what x would look like then. Fields that are left out stay as they are.
    corrupt
        What is done to x first: masking:0.5, normal-noise:0.3 or salt-and-pepper:0.25.
    limit
        The first so many examples only.
    out
        A png, npy, npz or csv file; reconstructions.png or .csv in the run folder unless given.
    draw
        Draw the code and x̂, instead of taking means.
    seed
        Of the draws.
    """
    import torch

    from xhat.data import corruption_from
    from xhat.objectives.posed import squared_error

    folder, model = open_run(run)
    place = place_for(out, folder, model, "reconstructions")
    corruption = None if corrupt is None else corruption_from(corrupt)
    examples = limited(examples_for(folder, model, data, split), limit)
    values = named_values(condition), named_values(as_if)
    torch.manual_seed(seed)

    def back_from(batch: Batch) -> Tensor:
        return model.reconstruct(batch, draw, *values)

    if not examples.resident and place.suffix == ".npy":
        _by_rows(place, model, examples, corruption, back_from)
        return
    batch = examples.batch(slice(None))
    x, seen = batch.x, batch.x if corruption is None else corruption(batch.x)
    back = torch.cat([back_from(block) for block in batch._replace(x=seen).split(CHUNK)]).cpu()
    error = f"mean squared error an example {squared_error(back, x, batch.observed).mean():.4f}"
    if batch.observed is not None and as_if is None and corruption is None and place.suffix != ".png":
        original = limited(unscaled_examples_for(folder, model, data, split), limit)
        count = _write_filled(place, model, batch, back, original)
        print(f"{len(x)} examples written to {place}, observed values as they were, {count} missing ones filled with x̂; {error}")
        return
    arrays = {"x_hat": back, "x": x} if place.suffix in ONE else {"x": x, "x_hat": back}
    if corruption is not None and place.suffix not in ONE:
        arrays = {"x": x, "corrupted": seen, "x_hat": back}
    write_examples(place, model, arrays)
    print(f"{len(x)} reconstructions written to {place}; {error}")
    if corruption is not None:
        own = squared_error(seen, x, batch.observed).mean()
        print(f"the corrupted examples' own squared error to the clean ones is {own:.4f}")


def _write_filled(place: Path, model: Model, batch: Batch, back: Tensor, original: Examples) -> int:
    """Write the examples without their gaps; in an npz file also x, with NaN where it has a gap, and x̂. How many were filled."""
    import torch

    assert batch.observed is not None
    x = original.tensor() if original.scale else original.storage
    x_hat = own_units(back, model)
    filled = torch.where(batch.observed, x.double(), x_hat.double())
    arrays = {"filled": filled}
    if place.suffix not in ONE:
        arrays = {"x": x.double().masked_fill(~batch.observed, torch.nan), "x_hat": x_hat, "filled": filled}
    write(place, arrays, None if model.preparation is None else model.preparation.names, exact=True)
    return int((~batch.observed).sum())


def _by_rows(
    place: Path, model: Model, examples: Examples, corruption: Corruption | None, back_from: Callable[[Batch], Tensor]
) -> None:
    from xhat.objectives.posed import squared_error

    errors = {"back": 0.0, "seen": 0.0}

    def restored(batch: Batch) -> Tensor:
        seen = batch.x if corruption is None else corruption(batch.x)
        back = back_from(batch._replace(x=seen))
        errors["back"] += float(squared_error(back.cpu(), batch.x).double().sum())
        errors["seen"] += float(squared_error(seen, batch.x).double().sum())
        return own_units(back, model)

    count = len(examples)
    write_by_rows(place, count, mapped(model, examples, restored))
    print(f"{count} reconstructions written to {place}; mean squared error an example {errors['back'] / count:.4f}")
    if corruption is not None:
        print(f"the corrupted examples' own squared error to the clean ones is {errors['seen'] / count:.4f}")
