"""Training what is not trained yet, measuring what is not measured yet, and keeping the figures."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.tables.datasets import DATA, ROOT, folder
from benchmarks.tables.study import Figures, Study, Variant

import xhat

RUNS = ROOT / "runs" / "tables"  # trained models: not part of the repository, a second call goes on from them
RESULTS = Path(__file__).parent / "results"


def has_gpu() -> bool:
    return torch.cuda.is_available()


def result_file(study: Study, length: str) -> Path:
    return RESULTS / f"{study.name}-{length}.json"


def do(study: Study, length: str, parts: list[str] | None = None, train_only: bool = False, anew: bool = False) -> None:
    """Train the study's models and measure them, those that have no figures yet.

    ``parts`` names variants, all unless given; ``anew`` forgets the row's figures and models first.
    """
    if anew:
        folder()  # without the data nothing is forgotten
        result_file(study, length).unlink(missing_ok=True)
        shutil.rmtree(RUNS / study.name / length, ignore_errors=True)
    held = _held(result_file(study, length))
    variants = [variant for variant in study.variants if parts is None or variant.name in parts]
    for seed in study.seeds:
        later = study.afterwards is not None and parts is None and not train_only and not _has_later(study, held, seed)
        wanted = [variant for variant in variants if later or _key(variant.name, seed) not in held]
        split = DATA[study.data]() if wanted else None
        models = {}
        for variant in wanted:
            model, seconds = _trained(study, variant, length, seed, split)
            models[variant.name] = model
            if not train_only and _key(variant.name, seed) not in held:
                _keep(study, length, held, variant.name, seed, study.measure(model, split), seconds)
        if later and study.afterwards is not None:
            for name, figures in study.afterwards(models, split).items():
                _keep(study, length, held, name, seed, figures, None)


def _has_later(study: Study, held: dict[str, Any], seed: int) -> bool:
    """Whether there are figures of what is done with the trained models afterwards."""
    trained = {variant.name for variant in study.variants}
    return any(row["seed"] == seed and row["variant"] not in trained for row in held.values())


def _file(name: str, seed: int, figure: str) -> str:
    """The file of the values for each example."""
    return f"{name}-{seed}-{figure}.npy".replace("/", " per ")


def _key(name: str, seed: int) -> str:
    return f"{name} · seed {seed}"


def _held(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _keep(study: Study, length: str, held: dict[str, Any], name: str, seed: int, found: Figures, seconds: float | None) -> None:
    place = RUNS / study.name / length / "each"
    place.mkdir(parents=True, exist_ok=True)
    for figure, values in found.each.items():
        np.save(place / _file(name, seed, figure), values.numpy())
    held[_key(name, seed)] = {
        "variant": name,
        "seed": seed,
        "figures": found.means,
        "training seconds": seconds,
        "torch": torch.__version__,
        "xhat": xhat.__version__,
        "machine": torch.cuda.get_device_name() if has_gpu() else f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    _compare(held, [place, *(RUNS / other / length / "each" for other in study.beside)], beside_of(study, length))
    RESULTS.mkdir(exist_ok=True)
    result_file(study, length).write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n")
    print(f"{study.name}: {name}, seed {seed}: {found.means}", flush=True)


def beside_of(study: Study, length: str) -> dict[str, Any]:
    """The figures of the rows that this one is compared with."""
    rows: dict[str, Any] = {}
    for other in study.beside:
        rows |= _held(RESULTS / f"{other}-{length}.json")
    return rows


def _compare(held: dict[str, Any], places: list[Path], beside: dict[str, Any]) -> None:
    """How much smaller one variant's figures are than another's with the same seed: the mean of the paired differences."""
    for own in held.values():
        own["paired"] = {}
        for other in [*held.values(), *beside.values()]:
            if other is own or other["seed"] != own["seed"]:
                continue
            for figure in own["figures"]:
                names = [_file(row["variant"], row["seed"], figure) for row in (own, other)]
                files = [file for name in names for place in places if (file := place / name).is_file()]
                values = [np.load(file) for file in files]
                if len(values) == 2 and len(values[0]) == len(values[1]):  # of the same images
                    less = values[1] - values[0]
                    doubt = float(less.std(ddof=1) / len(less) ** 0.5)
                    own["paired"].setdefault(other["variant"], {})[figure] = [float(less.mean()), doubt]


def _trained(study: Study, variant: Variant, length: str, seed: int, split: Any) -> tuple[xhat.Model, float | None]:
    """The trained model, from an earlier call if there was one, and how long its training took."""
    place = RUNS / study.name / length / f"{variant.name}-{seed}".replace("/", " of ")
    done = place / "seconds.json"
    if done.is_file():
        return xhat.load(place / "model.safetensors"), json.loads(done.read_text())
    settings: Mapping[str, Any] = variant.cpu if length == "cpu" else variant.full
    began = time.perf_counter()
    torch.manual_seed(seed)
    if variant.trained is not None:
        model = variant.trained(settings, split, seed)
        place.mkdir(parents=True, exist_ok=True)
        xhat.save(model, place / "model.safetensors")
    else:
        model = (variant.build_full or variant.build)() if length == "full" else variant.build()
        resume = (place / "checkpoints").is_dir()
        given = {} if resume else {**settings, "seed": seed}
        if xhat.fit(model, split.train, split.valid, out=place, resume=resume, **given).interrupted:
            raise SystemExit(f"interrupted: the same command goes on with {study.name}, {variant.name}")
    seconds = time.perf_counter() - began
    done.write_text(json.dumps(seconds))
    return model, seconds
