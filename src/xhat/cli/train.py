"""``xhat train``."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from xhat.cli.options import DataOptions, beside_x, described
from xhat.cli.run import run_data, run_folder
from xhat.errors import ConfigError
from xhat.models.options import LEVELLED, ModelOptions
from xhat.training.settings import Settings


def _flat(group: str) -> Parameter:
    """The fields of a dataclass as options of their own, under a heading."""
    return Parameter(name="*", group=group)


def train(
    source: str | None = None,
    *,
    recipe: str = "vae",
    out: Path | None = None,
    resume: Path | None = None,
    overwrite: bool = False,
    model: Annotated[ModelOptions, _flat("Model")] = ModelOptions(),  # noqa: B008 - frozen
    settings: Annotated[Settings, _flat("Training")] = Settings(),  # noqa: B008 - frozen
    data: Annotated[DataOptions, _flat("Data")] = DataOptions(),  # noqa: B008 - frozen
) -> int:
    """Train a model on data, into a run folder.

    Ctrl-C finishes the step, saves, and says how to go on. Any option can also stand in a TOML file: --config run.toml.

    Examples:

        xhat train digits --recipe vae --latent 8 --epochs 30 --out runs/digits
        xhat train mnist/ --binarize dynamic --hidden 400 --latent 20 --epochs 20 --out runs/mnist
        xhat train mnist/ --binarize static --recipe bernoulli-vae --latent 200 --gradient disarm --out runs/bits
        xhat train table.csv --recipe autoencoder --hidden none --latent 3 --out runs/pca
        xhat train table.csv --condition diagnosis,age --missing mask --out runs/table
        xhat train --resume runs/mnist
        torchrun --nproc-per-node 8 -m xhat train mnist/ --batch-size 1024 --out runs/mnist

    Parameters
    ----------
    source
        digits, or a file (npy, npz, idx, idx.gz, csv, parquet), or a folder (of images, or MNIST's four files).
    recipe
        autoencoder, denoising, stacked, vae, hierarchical-vae, bernoulli-vae or categorical-vae.
    out
        The run folder to make; runs/SOURCE-RECIPE unless given.
    resume
        A run folder to go on with, from its last checkpoint, instead of a source.
    overwrite
        Replace the run that the folder holds.
    """
    if resume is not None:
        given = ["the source"] * (source is not None) + _changed(model) + _changed(settings) + _changed(data)
        given += ["--recipe"] * (recipe != "vae") + ["--out"] * (out is not None) + ["--overwrite"] * overwrite
        if given:
            raise ConfigError(f"--resume goes on with the run's own data and options: leave {', '.join(given)} out")
        return _resume(resume)
    if source is None:
        raise ConfigError("train needs data: a file, a folder or the word digits, such as xhat train digits")
    import torch

    from xhat.data import load_data
    from xhat.models.recipes import RECIPES, build, given_options
    from xhat.training.fit import fit

    keywords = data.keywords()
    loaded = load_data(source, seed=settings.seed, **keywords)
    print(loaded.describe())
    options = given_options(model)
    if "likelihood" not in options and recipe in RECIPES and RECIPES[recipe].variational:
        options["likelihood"] = loaded.kind.likelihood
    if options.get("likelihood") in LEVELLED and loaded.kind.levels:
        options.setdefault("levels", loaded.kind.levels)
    out = Path("runs") / f"{Path(source).stem}-{recipe}" if out is None else out
    torch.manual_seed(settings.seed)
    built = build(recipe, loaded.shape, **options, **beside_x(loaded))
    parameters = sum(p.numel() for p in built.parameters())
    chosen = {**RECIPES[recipe].defaults, **options}
    shown = ", ".join(
        f"{name} {chosen[name]}" for name in dict.fromkeys(["latent", "hidden", "likelihood", *options]) if name in chosen
    )
    print(f"{recipe} with {parameters:,} parameters: {shown}")
    about = {
        "command": shlex.join(["xhat", *sys.argv[1:]]),
        "recipe": recipe,
        "options": options,
        "data": described(source, settings.seed, keywords, loaded),
    }
    history = fit(built, loaded.train, valid=loaded.valid, out=out, overwrite=overwrite, about=about, **asdict(settings))
    return _told(history.interrupted, str(history), out)


def _changed(options: Any) -> list[str]:
    """The options that are not what they are when nobody says anything, as they are written on the command line."""
    return [f"--{field.name.replace('_', '-')}" for field in fields(options) if getattr(options, field.name) != field.default]


def _resume(path: Path) -> int:
    from xhat.models.files import rebuilt
    from xhat.training.fit import fit

    folder = run_folder(path)
    config = folder.config()
    if config.get("model") is None:
        raise ConfigError(f"{path} holds a model with parts of its own: resume it from Python, xhat.fit(…, resume=True)")
    if isinstance(config.get("prior"), dict):
        raise ConfigError(
            f"{path} holds a model whose prior was fitted after training, which cannot go on: resume the run that it was made "
            f"of, {config['prior'].get('of')}, and fit the prior again"
        )
    tensors, state = folder.read_state()
    if state.get("done") is True and folder.model_file.exists():
        print(f"{path} is finished, nothing is left to do; {_next(path)}")
        return 0
    weights = {name.removeprefix("model/"): tensor for name, tensor in tensors.items() if name.startswith("model/")}
    model = rebuilt(json.dumps(config["model"]), weights, str(folder.config_file))
    held = run_data(folder)
    history = fit(model, held.train, valid=held.valid, out=path, resume=True)
    return _told(history.interrupted, str(history), path)


def _told(interrupted: bool, text: str, out: Path) -> int:
    print(text)
    if interrupted:
        return 130
    print(f"the model is {out / 'model.safetensors'}; {_next(out)}")
    return 0


def _next(out: Path) -> str:
    folder = shlex.quote(str(out))
    return f"next: xhat evaluate {folder}, xhat report {folder}"
