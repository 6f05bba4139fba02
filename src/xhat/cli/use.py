"""The commands that use a trained run: evaluate, sample, encode, decode, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xhat.cli.options import named_values
from xhat.cli.output import check_ending, make_folder, read_codes, write
from xhat.cli.run import examples_for, run_data, run_folder, told_of
from xhat.errors import CheckpointError, ConfigError, DataError
from xhat.ranks import first

if TYPE_CHECKING:
    from torch import Tensor

    from xhat.data import Batch, Examples, Scaling
    from xhat.evaluation.evaluate import Evaluation
    from xhat.models.base import Model
    from xhat.training.folder import RunFolder

CHUNK = 1000


def evaluate(
    run: Path,
    *,
    samples: int | None = None,
    method: str = "importance",
    steps: int | None = None,
    leapfrog: int | None = None,
    start: str | None = None,
    refine: int = 0,
    data: str | None = None,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
) -> None:
    """Measure a trained model: bound and what it is made of, likelihood, errors, active units, each with its standard error.

    Writes evaluation.json into the run folder.

    Examples:

        xhat evaluate runs/digits
        xhat evaluate runs/mnist --samples 5000 --limit 1000
        xhat evaluate runs/mnist --method annealed --samples 16 --limit 100
        xhat evaluate runs/mnist --refine 100

    Parameters
    ----------
    run
        A run folder.
    samples
        Draws of z for each example's log-likelihood, 500 unless given; chains where it is annealed, then 16.
    method
        How log p(x) is found: importance, annealed (dear, and trustworthy where the effective sample size is small), or exact
        (linear Normal models and small discrete codes).
    steps
        Laws that annealing goes through from the start to the posterior, 100 unless given.
    leapfrog
        Steps of each of its trajectories, 10 unless given.
    start
        Where its chains start: posterior, unless given, or prior.
    refine
        Steps that refine the posterior of each of up to 500 examples, which gives the amortisation gap; 0 leaves it out.
    data
        Other data than the run's own.
    split
        Of the run's own data: train, valid, test or all.
    limit
        Measure the first so many examples only.
    seed
        Of the draws.
    """
    from xhat.models.files import write_bytes

    folder, model = open_run(run)
    examples = examples_for(folder, model, data, split)
    examples = limited(examples, limit)
    train = run_data(folder).train if data is None and split == "test" else None
    if samples is None:
        samples = 16 if method == "annealed" else 500
    ways: dict[str, Any] = {"method": method, "steps": steps, "leapfrog": leapfrog, "start": start, "refine_steps": refine}
    result = _evaluate(model, examples, samples, train, seed, ways)
    print(result)
    scaling = _scaling(model)
    if scaling is not None and result.log_likelihood is not None:
        shift, average = scaling.log_jacobian, ""
        if examples.observed is not None:  # each example has its own, of what was observed of it
            shift = -float((examples.observed.double() * scaling.std.log()).flatten(1).sum(1).mean())
            average = " on average"
        print(f"densities are of standardised values; add {shift:.4f} nats{average} for the density in the data's own units")
    place = folder.path / "evaluation.json"
    held = {"source": data, "split": None if data else split, "limit": limit, "seed": seed, **result.as_dict()}
    if first():
        write_bytes(place, (json.dumps(held, indent=2) + "\n").encode())
    print(f"written to {place}")


def _evaluate(
    model: Model, examples: Examples, samples: int, train: Any, seed: int, ways: dict[str, Any] | None = None
) -> Evaluation:
    import sys

    from xhat.evaluation.evaluate import evaluate as measure

    if not sys.stderr.isatty():
        return measure(model, examples, samples, train=train, seed=seed, **ways or {})
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("log p(x)", total=len(examples))
        return measure(
            model, examples, samples, train=train, seed=seed, progress=lambda n: progress.advance(task, n), **ways or {}
        )


def sample(
    run: Path, *, n: int = 64, condition: str | None = None, out: Path | None = None, draw: bool = False, seed: int = 0
) -> None:
    """Draw new examples from a trained model.

    Examples:

        xhat sample runs/digits --n 100 --out samples.png
        xhat sample runs/table --n 1000 --draw --out synthetic.csv
        xhat sample runs/patients --n 100 --condition diagnosis=benign,age=40

    Parameters
    ----------
    run
        A run folder.
    n
        How many.
    condition
        What they are made for, of a model with a condition: values by name, such as label=3,age=40.
    out
        A png, npy, npz or csv file; samples.png or samples.csv in the run folder unless given.
    draw
        Draw x from the likelihood too, instead of its mean: what synthetic data need.
    seed
        Of the draws.
    """
    import torch

    folder, model = open_run(run)
    place = place_for(out, folder, model, "samples")
    torch.manual_seed(seed)
    x = model.sample(n, sample=draw, condition=named_values(condition))
    write_examples(place, model, {"samples": x})
    print(f"{n} new examples of shape {tuple(x.shape[1:])} written to {place}")


def encode(
    run: Path,
    *,
    data: str | None = None,
    split: str = "test",
    condition: str | None = None,
    out: Path | None = None,
    draw: bool = False,
    seed: int = 0,
) -> None:
    """Write the codes of examples: the posterior's mean, and the labels where there are any.

    Examples:

        xhat encode runs/digits --split all --out codes.csv
        xhat encode runs/table --data new.csv --out codes.npy

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
    out
        An npy, npz or csv file; codes.npy in the run folder unless given.
    draw
        Draw the codes from the posterior, instead of taking its mean.
    seed
        Of the draws.
    """
    import torch

    folder, model = open_run(run)
    place = folder.path / "codes.npy" if out is None else out
    check_ending(place)
    examples = examples_for(folder, model, data, split)
    torch.manual_seed(seed)
    encoded = mapped(model, examples, lambda batch: model.encode(batch, draw, named_values(condition)))
    if not examples.resident and place.suffix == ".npy":
        write_by_rows(place, len(examples), encoded)
        print(f"codes of {len(examples)} examples, {tuple(model.event_shape)} to {model.latent_shape}, written to {place}")
        return
    codes = torch.cat(list(encoded))
    arrays = {"codes": codes} if examples.labels is None else {"codes": codes, "labels": examples.labels}
    write(place, arrays, label_names=None if model.preparation is None else model.preparation.label_names)
    print(f"codes of {len(codes)} examples, {tuple(model.event_shape)} to {tuple(codes.shape[1:])}, written to {place}")


def decode(
    run: Path, codes: Path, *, condition: str | None = None, out: Path | None = None, draw: bool = False, seed: int = 0
) -> None:
    """Turn codes back into examples.

    Examples:

        xhat decode runs/digits codes.npy --out decoded.png
        xhat decode runs/patients codes.npy --condition diagnosis=benign,age=40

    Parameters
    ----------
    run
        A run folder.
    codes
        An npy, npz or csv file of codes.
    condition
        What all are decoded under, of a model with a condition: values by name, such as label=3,age=40.
    out
        A png, npy, npz or csv file; decoded.png or decoded.csv in the run folder unless given.
    draw
        Draw x from the likelihood, instead of its mean.
    seed
        Of the draws.
    """
    import torch

    folder, model = open_run(run)
    place = place_for(out, folder, model, "decoded")
    z = read_codes(codes, model.latent_shape)
    torch.manual_seed(seed)
    x = torch.cat([model.decode(block, draw, named_values(condition)) for block in z.split(CHUNK)])
    write_examples(place, model, {"decoded": x})
    print(f"{len(x)} examples written to {place}")


def report(run: Path, *, out: Path | None = None, samples: int = 100, seed: int = 0) -> None:
    """Write one self-contained HTML page about a run: curves, reconstructions, samples, latent space, measures.

    Examples:

        xhat report runs/digits

    Parameters
    ----------
    run
        A run folder.
    out
        The page; report.html in the run folder unless given.
    samples
        Draws of the log-likelihood, if the run has no evaluation of its test data yet.
    seed
        Of the draws.
    """
    from xhat.report.write import write_report

    folder, model = open_run(run)
    if out is not None:
        make_folder(out)
    data = run_data(folder)
    held = _held_evaluation(folder)
    evaluation = _evaluate(model, data.test, samples, data.train, seed) if held is None else held
    print(f"written to {write_report(folder.path, model, data, evaluation, out=out)}")


def _held_evaluation(folder: RunFolder) -> Evaluation | None:
    """What ``xhat evaluate`` wrote about the test split of this run, if it did and the model is no newer."""
    from xhat.evaluation.evaluate import Evaluation

    place = folder.path / "evaluation.json"
    if not place.exists() or place.stat().st_mtime < folder.model_file.stat().st_mtime:
        return None
    try:
        held = json.loads(place.read_text())
        own = held.get("split") == "test" and held.get("limit") is None
        return Evaluation.from_dict(held) if own else None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place} is damaged ({error}): write it again with xhat evaluate {folder.path}") from error


def open_run(run: Path) -> tuple[RunFolder, Model]:
    """A run's folder and its model."""
    from xhat.models.files import MODEL_FILE, load
    from xhat.training.folder import LAST

    folder = run_folder(run)
    folder.config()
    if not folder.model_file.exists() and (folder.checkpoints / LAST).exists():
        raise ConfigError(f"{run} is not finished (no {MODEL_FILE}): go on with xhat train --resume {run}")
    model: Model = load(folder.model_file)
    shape = told_of(folder).get("shape")
    if shape is not None and tuple(shape) != model.event_shape:
        raise CheckpointError(
            f"{folder.config_file} speaks of examples of shape {tuple(shape)}, but the model takes {model.event_shape}: restore "
            "the one or the other from a copy"
        )
    return folder, model


def limited(examples: Examples, limit: int | None) -> Examples:
    """The first so many of them."""
    if limit is None:
        return examples
    if limit < 1:
        raise ConfigError(f"limit must be at least 1, was {limit}")
    return examples.subset(slice(0, limit))


def place_for(out: Path | None, folder: RunFolder, model: Model, name: str) -> Path:
    """The file that is written: the one that was named, or one in the run folder."""
    if out is None:
        is_image = len(model.event_shape) == 3 and model.event_shape[0] in (1, 3)
        out = folder.path / f"{name}.{'png' if is_image else 'csv'}"
    check_ending(out)
    return out


def mapped(model: Model, examples: Examples, function: Callable[[Batch], Tensor]) -> Iterator[Tensor]:
    """What becomes of the examples, block by block."""
    for block in examples.batched(CHUNK):
        if tuple(block.x.shape[1:]) != model.event_shape:
            raise DataError(
                f"the data have examples of shape {tuple(block.x.shape[1:])}, but the model takes {model.event_shape}"
            )
        yield function(block)


def write_by_rows(place: Path, count: int, blocks: Iterable[Tensor]) -> None:
    """Write an npy file block by block: what is streamed may be larger than memory, and so may be what becomes of it."""
    from xhat.data.streams.npy_writer import write_rows

    make_folder(place)
    write_rows(place, count, blocks)


def write_examples(place: Path, model: Model, arrays: dict[str, Tensor]) -> None:
    """Write examples in the units, and under the column names, of the run's data."""
    columns = None if model.preparation is None else model.preparation.names
    write(place, {name: own_units(values, model) for name, values in arrays.items()}, columns)


def own_units(x: Tensor, model: Model) -> Tensor:
    """Values in the units of the data, where they were standardised."""
    scaling = _scaling(model)
    return x if scaling is None else scaling.invert(x.double())


def _scaling(model: Model) -> Scaling | None:
    return None if model.preparation is None else model.preparation.scaling
