"""``write_report``: the one page of a run."""

from __future__ import annotations

from pathlib import Path

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from xhat.data import Data
from xhat.evaluation.evaluate import Evaluation
from xhat.models.base import Model
from xhat.models.files import write_bytes
from xhat.report import facts
from xhat.report.anatomy import bound_parts, kl_bars
from xhat.report.examples import prior_samples, reconstructions
from xhat.report.figures import training_curves
from xhat.report.latent import latent_map, traversals
from xhat.report.style import Figured
from xhat.report.subject import Subject
from xhat.training.folder import RunFolder

REPORT_FILE = "report.html"
SEED = 0  # of what the report draws: the same run gives the same page


def write_report(folder: str | Path, model: Model, data: Data, evaluation: Evaluation, out: str | Path | None = None) -> Path:
    """Write one HTML file that says what a run has learnt: it needs no network, no script and no other file.

    What does not apply is left out: a model without a prior has no samples from it.

    Args:
        folder: the run folder that the model was trained in.
        model: the trained model.
        data: what it was trained on; up to 3,000 of its test examples are shown.
        evaluation: what :func:`xhat.evaluate` measured on ``data.test``.
        out: where to write; ``report.html`` in the run folder unless given.

    Returns:
        Where it was written.

    Raises:
        CheckpointError: the folder holds no run, or the file cannot be written.
    """
    run = RunFolder(folder)
    config, rows = run.config(), run.rows()
    subject = Subject(model, data, evaluation)
    with torch.random.fork_rng(devices=[subject.device] if subject.device.type == "cuda" else []):
        torch.manual_seed(SEED)
        sections: list[Figured | None] = [
            training_curves(rows),
            reconstructions(subject),
            prior_samples(subject),
            latent_map(subject),
            traversals(subject),
            bound_parts(subject),
            kl_bars(subject),
        ]
    environment = Environment(
        loader=PackageLoader("xhat.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("page.html.j2").render(
        title=facts.title(config, subject),
        lead=facts.lead(subject),
        cards=facts.cards(evaluation),
        findings=evaluation.findings,
        sections=[section for section in sections if section is not None],
        measures=facts.measures(evaluation),
        groups=facts.configuration(config, subject),
        command=facts.command(config),
        seed=(config.get("settings") or {}).get("seed"),
    )
    return write_bytes(run.path / REPORT_FILE if out is None else out, page.encode())
