"""``xhat gradients``: the laboratory, on a built-in problem or a trained run."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from xhat.cli.output import make_folder
from xhat.cli.run import examples_for
from xhat.cli.use import open_run
from xhat.errors import ConfigError

if TYPE_CHECKING:
    from xhat.gradients.problems import Problem


def gradients(
    run: Path | None = None,
    *,
    problem: str | None = None,
    gradients: str | None = None,
    samples: int | None = None,
    repeats: int = 1000,
    batch: int = 32,
    split: str = "train",
    out: Path | None = None,
    seed: int = 0,
) -> None:
    """Compare gradient estimators: bias, variance and time of each, at equal numbers of values of f.

    Prints a table and a recommendation, and writes gradients.json and gradients.png.

    Examples:

        xhat gradients --problem toy
        xhat gradients --problem discrete-vae --samples 8 --out lecture/
        xhat gradients runs/digits --gradients pathwise,stl,score --repeats 200

    Parameters
    ----------
    run
        A run folder, whose model's bound on its own data is the problem.
    problem
        Instead of a run: toy, polynomial, logistic, discrete-vae or categories.
    gradients
        Names, with commas between; all of them unless given.
    samples
        Values of f that one estimate may take for each example; 4 unless given, 6 for the polynomial.
    repeats
        Independent estimates of each gradient.
    batch
        Of a run: how many examples.
    split
        Of the run's data: train, valid, test or all.
    out
        A folder to write to; the run folder, or runs/gradients-PROBLEM, unless given.
    seed
        Of the draws.
    """
    if (run is None) == (problem is None):
        raise ConfigError("gradients needs a run folder or a --problem, one of the two, such as xhat gradients --problem toy")
    names = None if gradients is None else _names(gradients)
    if names == []:
        raise ConfigError("--gradients needs names with commas between, such as --gradients score,rloo")
    import torch

    from xhat.gradients import compare
    from xhat.models.files import write_bytes
    from xhat.report.comparison import comparison_png

    torch.manual_seed(seed)
    chosen = _built_in(str(problem)) if run is None else _of_run(run, split, batch)
    place = out or (Path("runs") / f"gradients-{problem}" if run is None else run)
    if place.exists() and not place.is_dir():
        raise ConfigError(f"--out must be a folder, {place} is a file")
    make_folder(place / "gradients.json")
    budget = chosen.budget if samples is None else samples
    torch.manual_seed(seed)
    with _shown() as show:
        result = compare(None, chosen.draw, chosen.parameters, names, budget, repeats, exact=chosen.exact, progress=show)
    print(chosen.about)
    print(result)
    about = {"problem": problem, "run": None if run is None else str(run), "about": chosen.about, "seed": seed}
    told = {**about, "budget": budget, **result.as_dict()}
    write_bytes(place / "gradients.json", (json.dumps(told, indent=2) + "\n").encode())
    write_bytes(place / "gradients.png", comparison_png(result, chosen.about))
    print(f"written to {place / 'gradients.json'} and {place / 'gradients.png'}")


def _names(text: str) -> list[str]:
    """Names between commas; "pathwise, antithetic" and its like are one name each."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    names: list[str] = []
    for part in parts:
        if names and part in ("antithetic", "sobol", "lagged"):
            names[-1] = f"{names[-1]}, {part}"
        else:
            names.append(part)
    return names


def _built_in(name: str) -> Problem:
    from xhat.gradients.problems import PROBLEMS

    if name not in PROBLEMS:
        raise ConfigError(f"problem must be one of {', '.join(PROBLEMS)}, was {name!r}")
    return PROBLEMS[name]()


def _of_run(run: Path, split: str, batch: int) -> Problem:
    import torch

    from xhat.evaluation.laboratory import problem_of

    if batch < 1:
        raise ConfigError(f"batch must be at least 1, was {batch}")
    folder, model = open_run(run)
    examples = examples_for(folder, model, None, split)
    if len(examples) > batch:
        examples = examples.subset(torch.randperm(len(examples))[:batch])
    return problem_of(model, examples)


@contextlib.contextmanager
def _shown() -> Iterator[Callable[[str], None]]:
    """A line that says which gradient is being measured; nothing where there is no terminal."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("measuring {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("")
        yield lambda name: progress.update(task, description=name)
