"""``xhat sweep``: many training runs over ranges of options, chosen by what the earlier ones came to."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from cyclopts import Parameter

from xhat.cli.options import DataOptions, beside_x, described
from xhat.cli.space import Dimension, dimensions
from xhat.errors import CheckpointError, ConfigError, TrainingError, whole_number
from xhat.models.options import LEVELLED, ModelOptions
from xhat.training.settings import Settings

if TYPE_CHECKING:
    from optuna import Study, Trial

    from xhat.data import Data

METRICS = ("valid_loss", "valid_elbo")
BARGAINS = ("beta", "free_bits", "capacity", "share", "alpha", "gamma", "mmd_weight")  # options that change what the loss means
SWEEP_FILE, TRIALS_FILE, PICTURE = "sweep.json", "trials.jsonl", "sweep.png"
TRIALS = 30
SHOWN = 5  # trials in the table
SPARED, PATIENT = 5, 5  # trials, and epochs of a trial, that are never cut short


class Plan(NamedTuple):
    """All that a sweep is: what sweep.json says."""

    source: str
    recipe: str
    space: list[str]
    metric: str
    trials: int
    seeds: int
    model: dict[str, Any]
    settings: dict[str, Any]
    data: dict[str, Any]


class Tried(NamedTuple):
    """One trial: a line of trials.jsonl. ``values`` are the metric after each epoch, what pruning looks at."""

    trial: int
    state: str  # complete, pruned or failed
    value: float | None
    seconds: float
    parameters: dict[str, Any]
    values: list[float]
    reason: str | None = None


def sweep(
    source: str | None = None,
    *,
    over: Annotated[list[str], Parameter(name="--set", consume_multiple=False, negative=())] = [],  # noqa: B006 - never changed
    recipe: str = "vae",
    trials: int | None = None,
    metric: str | None = None,
    seeds: int = 1,
    out: Path | None = None,
    resume: Path | None = None,
    model: Annotated[ModelOptions, Parameter(name="*", group="Model")] = ModelOptions(),  # noqa: B008 - frozen
    settings: Annotated[Settings, Parameter(name="*", group="Training")] = Settings(),  # noqa: B008 - frozen
    data: Annotated[DataOptions, Parameter(name="*", group="Data")] = DataOptions(),  # noqa: B008 - frozen
) -> int:
    """Search for good options: train again and again, each time with what looks best after the trials so far.

    Each trial is a run folder, OUT/trials/000 and on. Ctrl-C saves and says how to go on. It needs optuna: pip install
    'xhat[sweep]'.

    Examples:

        xhat sweep digits --set lr=1e-4..1e-2:log --set latent=2,8,32 --epochs 20 --trials 30 --out runs/sweep
        xhat sweep digits --set hidden=64,256x64,none --set activation=relu,silu --seeds 3
        xhat sweep mnist/ --binarize static --recipe bernoulli-vae --set gradient=rloo,disarm --set lr=1e-4..1e-2:log
        xhat sweep --resume runs/sweep --trials 60

    Parameters
    ----------
    source
        As for xhat train: the word digits, a file or a folder.
    over
        An option and its values, once for each: a range LOW..HIGH, or LOW..HIGH:log, or choices with commas between.
    recipe
        autoencoder, denoising, stacked, vae, hierarchical-vae, bernoulli-vae or categorical-vae.
    trials
        How many, those of a resumed sweep included. [default: 30]
    metric
        What the best has the lowest valid_loss, or the highest valid_elbo, of; valid_elbo where the recipe has one.
    seeds
        Train each trial with so many seeds, and judge it by their mean.
    out
        The folder to make; runs/SOURCE-RECIPE-sweep unless given.
    resume
        A sweep's folder to go on with, instead of a source.
    """
    if resume is not None:
        parts = [(model, ModelOptions()), (settings, Settings()), (data, DataOptions())]
        if source is not None or over or out is not None or metric is not None or any(a != b for a, b in parts):
            raise ConfigError("--resume goes on with the sweep's own data and options: leave all others but --trials out")
        plan = _read_plan(resume)
        return _search(plan if trials is None else plan._replace(trials=trials), resume)
    if source is None:
        raise ConfigError(
            "sweep needs data: a file, a folder or the word digits, such as xhat sweep digits --set lr=1e-4..1e-2:log"
        )
    if not over:
        raise ConfigError("sweep needs something to vary, such as --set lr=1e-4..1e-2:log")
    whole_number("seeds", seeds)
    chosen = {name: value for name, value in asdict(model).items() if value is not None}
    best = _metric(metric, recipe, over)
    number = TRIALS if trials is None else trials
    plan = Plan(source, recipe, over, best, number, seeds, chosen, asdict(settings), asdict(data))
    _check_space(plan, dimensions(over), settings)
    folder = Path("runs") / f"{Path(source).stem}-{recipe}-sweep" if out is None else out
    if (folder / SWEEP_FILE).exists():
        raise CheckpointError(
            f"{folder} holds a sweep already: go on with it (xhat sweep --resume {shlex.quote(str(folder))}), or choose another "
            "folder"
        )
    return _search(plan, folder)


def _metric(metric: str | None, recipe: str, over: list[str]) -> str:
    from xhat.models.recipes import RECIPES

    if recipe not in RECIPES:
        raise ConfigError(f"recipe must be one of {', '.join(RECIPES)}, was {recipe!r}")
    has_bound = RECIPES[recipe].variational
    chosen = metric or ("valid_elbo" if has_bound else "valid_loss")
    if chosen not in METRICS or (chosen == "valid_elbo" and not has_bound):
        raise ConfigError(f"metric must be {' or '.join(METRICS[: 1 + has_bound])} for the recipe {recipe}, was {chosen!r}")
    bargain = next((d.name for d in dimensions(over) if d.name in BARGAINS), None)
    if chosen == "valid_loss" and bargain is not None:
        raise ConfigError(f"{bargain} changes what the loss means, so trials cannot be compared by it: use --metric valid_elbo")
    return chosen


def _check_space(plan: Plan, space: list[Dimension], settings: Settings) -> None:
    """Refuse now what each trial would be refused for."""
    from xhat.models.recipes import RECIPES

    whole_number("trials", plan.trials)
    own, training = RECIPES[plan.recipe].defaults, {field.name for field in fields(Settings)}
    for dimension in space:
        name = dimension.name
        if name not in training and name not in own:
            raise ConfigError(f"the recipe {plan.recipe!r} has no option {name!r}; its options are {', '.join(own)}")
        if name in plan.model or (name in training and getattr(settings, name) != getattr(Settings(), name)):
            raise ConfigError(f"{name} is fixed by --{name.replace('_', '-')} and varied by --set: leave one of them out")
        for value in dimension.some() if name in training else []:
            replace(settings, **{name: value})


def _read_plan(folder: Path) -> Plan:
    try:
        held = json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))
        plan = Plan(**{name: held[name] for name in Plan._fields})
        Settings(**plan.settings), DataOptions(**plan.data), ModelOptions(**plan.model), dimensions(plan.space)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is not a sweep's folder (no {SWEEP_FILE}): make one with xhat sweep … --out") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / SWEEP_FILE} is damaged ({error}): restore it from a copy, or sweep again") from error
    return plan


def _read_trials(folder: Path) -> list[Tried]:
    """The finished trials; a last line that a crash cut short is cut off."""
    place = folder / TRIALS_FILE
    found: list[Tried] = []
    for line in place.read_text(encoding="utf-8").splitlines() if place.exists() else []:
        try:
            found.append(Tried(**json.loads(line)))
        except (ValueError, TypeError):
            break
    _write(place, "".join(json.dumps(tried._asdict()) + "\n" for tried in found))
    return found


def _write(place: Path, text: str) -> None:
    from xhat.models.files import write_bytes

    write_bytes(place, text.encode())


def _search(plan: Plan, folder: Path) -> int:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("optuna is not installed: pip install 'xhat[sweep]'") from error
    from xhat.cli.output import make_folder
    from xhat.data import load_data

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    loaded = load_data(plan.source, seed=plan.settings["seed"], **DataOptions(**plan.data).keywords())
    if loaded.valid is None or not len(loaded.valid):
        raise ConfigError("a sweep compares trials on validation examples, and there are none: give --valid a share above 0")
    print(loaded.describe())
    make_folder(folder / SWEEP_FILE)
    done = _read_trials(folder)
    _save(plan, folder, done)
    space = dimensions(plan.space)
    interrupted = False
    with _stoppable():
        try:
            study = _study(plan, space, done)
            while len(done) < plan.trials:
                tried = _try(study, plan, space, loaded, folder, len(done))
                with (folder / TRIALS_FILE).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(tried._asdict()) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                done.append(tried)
                print(_line(tried, plan), flush=True)
        except KeyboardInterrupt:
            interrupted = True
    return _finish(plan, space, folder, done, interrupted)


def _study(plan: Plan, space: list[Dimension], done: list[Tried]) -> Study:
    """Optuna's study as it was after these trials."""
    import optuna

    states = {"complete": optuna.trial.TrialState.COMPLETE, "pruned": optuna.trial.TrialState.PRUNED}
    study = optuna.create_study(
        direction="minimize" if plan.metric == "valid_loss" else "maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=SPARED, n_warmup_steps=PATIENT),
    )
    distributions = {dimension.name: dimension.distribution() for dimension in space}
    for tried in done:
        study.add_trial(
            optuna.trial.create_trial(
                state=states.get(tried.state, optuna.trial.TrialState.FAIL),
                value=tried.value if tried.state != "failed" else None,
                params=tried.parameters,
                distributions=distributions,
                intermediate_values=dict(enumerate(tried.values, 1)),
            )
        )
    return study


def _try(study: Study, plan: Plan, space: list[Dimension], loaded: Data, folder: Path, number: int) -> Tried:
    """One trial, from asking optuna to telling it."""
    import optuna

    # A sampler for each trial, seeded by its number: a resumed sweep goes on as if it had never stopped. One sampler with one
    # seed would begin its random numbers again, and with them the first trials.
    study.sampler = optuna.samplers.TPESampler(seed=(plan.settings["seed"] * 1_000_003 + number) % 2**32)
    trial = study.ask({dimension.name: dimension.distribution() for dimension in space})
    began = time.perf_counter()
    values: list[float] = []
    state, reason, value = "complete", None, None
    try:
        value = _mean_over_seeds(trial, plan, space, loaded, folder / "trials" / f"{number:03d}", values)
    except optuna.TrialPruned:
        state, value = "pruned", values[-1]
    except (TrainingError, ConfigError) as error:
        state, reason = "failed", str(error)
    if value is not None and not math.isfinite(value):
        state, reason, value = "failed", f"the {plan.metric} is {value}", None
    outcome = {"complete": optuna.trial.TrialState.COMPLETE, "pruned": optuna.trial.TrialState.PRUNED}
    told = outcome.get(state, optuna.trial.TrialState.FAIL)
    study.tell(trial, value if state == "complete" else None, state=told)
    values = [value if math.isfinite(value) else math.copysign(1e300, value) for value in values]
    return Tried(number, state, value, round(time.perf_counter() - began, 3), dict(trial.params), values, reason)


def _mean_over_seeds(trial: Trial, plan: Plan, space: list[Dimension], loaded: Data, folder: Path, values: list[float]) -> float:
    """Train with each seed; the mean of what the kept weights came to. Fills ``values`` epoch by epoch."""
    import optuna
    import torch

    from xhat.models.recipes import RECIPES, build
    from xhat.training.fit import train

    drawn = {dimension.name: dimension.value(trial.params[dimension.name]) for dimension in space}
    training = {name: value for name, value in drawn.items() if name in Settings.__dataclass_fields__}
    options = plan.model | {name: value for name, value in drawn.items() if name not in training}
    if RECIPES[plan.recipe].variational:
        options.setdefault("likelihood", loaded.kind.likelihood)
    if options.get("likelihood") in LEVELLED and loaded.kind.levels:
        options.setdefault("levels", loaded.kind.levels)
    first = plan.settings["seed"]
    about: dict[str, Any] = {
        "recipe": plan.recipe,
        "options": options,
        "sweep": {"trial": trial.number, "parameters": trial.params},
    }
    about["data"] = described(plan.source, first, DataOptions(**plan.data).keywords(), loaded)
    found = []
    for seed in range(first, first + plan.seeds):
        settings = Settings(**{**plan.settings, **training, "seed": seed})
        torch.manual_seed(seed)
        model = build(plan.recipe, loaded.shape, **options, **beside_x(loaded))
        last_stage = model.stages()[-1].name
        place = folder if plan.seeds == 1 else folder / f"seed-{seed}"
        kept = math.nan
        for step in train(model, loaded.train, loaded.valid, out=place, overwrite=True, about=about, **asdict(settings)):
            record = step.record
            if record is None or record["stage"] != last_stage:
                continue
            if settings.keep == "last" or record.get("improved"):
                kept = record[plan.metric]
            values.append(record[plan.metric])
            trial.report(values[-1], len(values))
            if trial.should_prune():
                raise optuna.TrialPruned
        found.append(kept)
    return sum(found) / len(found)


def _line(tried: Tried, plan: Plan) -> str:
    shown = ", ".join(f"{name} {_short(value)}" for name, value in tried.parameters.items())
    outcome = f"{plan.metric.replace('_', ' ')} {tried.value:.4f}" if tried.value is not None else f"failed: {tried.reason}"
    if tried.state == "pruned":
        outcome += f", cut short after {len(tried.values)} epochs"
    return f"trial {tried.trial + 1} of {plan.trials}: {shown}: {outcome} ({tried.seconds:.1f} s)"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def ranked(plan: Plan, done: list[Tried]) -> list[Tried]:
    """The finished trials, best first."""
    sign = 1 if plan.metric == "valid_loss" else -1
    return sorted((tried for tried in done if tried.state == "complete"), key=lambda tried: sign * (tried.value or 0.0))


def _save(plan: Plan, folder: Path, done: list[Tried]) -> None:
    from xhat import __version__

    best = next(iter(ranked(plan, done)), None)
    pointer = None if best is None else {"folder": f"trials/{best.trial:03d}", **best._asdict()}
    if pointer is not None:
        del pointer["values"]
    _write(folder / SWEEP_FILE, json.dumps({"xhat": __version__, **plan._asdict(), "best": pointer}, indent=2) + "\n")


def _finish(plan: Plan, space: list[Dimension], folder: Path, done: list[Tried], interrupted: bool) -> int:
    from xhat.models.files import write_bytes

    _save(plan, folder, done)
    best = ranked(plan, done)
    if best:
        from xhat.report.sweep import sweep_png

        logarithmic = [dimension.name for dimension in space if dimension.log]
        points = [tried._asdict() for tried in done if tried.value is not None]
        write_bytes(folder / PICTURE, sweep_png(points, logarithmic, plan.metric, best[0].trial))
        print(_table(plan, best))
        run = folder / "trials" / f"{best[0].trial:03d}" / ("" if plan.seeds == 1 else f"seed-{plan.settings['seed']}")
        print(f"written to {folder / SWEEP_FILE} and {folder / PICTURE}; the best: xhat evaluate {shlex.quote(str(run))}")
    if interrupted:
        again = f"xhat sweep --resume {shlex.quote(str(folder))}"
        print(f"stopped after {len(done)} of {plan.trials} trials; go on with: {again}", file=sys.stderr, flush=True)
        return 130
    if not best:
        raise ConfigError(f"no trial was finished, the last one because {done[-1].reason}")
    return 0


def _table(plan: Plan, best: list[Tried]) -> str:
    names = list(best[0].parameters)
    rows = [["trial", plan.metric.replace("_", " "), *names]]
    for tried in best[:SHOWN]:
        rows.append([str(tried.trial + 1), f"{tried.value:.4f}", *(_short(tried.parameters[name]) for name in names)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM stop what Ctrl-C stops, for the time of a block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
