"""``xhat fit-prior``: a learned prior for a model that is trained already."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from xhat.cli.run import run_data
from xhat.cli.use import open_run
from xhat.errors import ConfigError

if TYPE_CHECKING:
    from xhat.data import Examples
    from xhat.models.base import Model


def fit_prior(
    run: Path,
    *,
    kind: str = "mixture",
    components: int | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """Fit a prior to the codes of a trained model, which then samples and scores better; an autoencoder learns to sample.

    Writes a run folder beside the run's own, which the other commands take as any other.

    Examples:

        xhat fit-prior runs/digits
        xhat fit-prior runs/digits --kind flow --out runs/digits-flow

    Parameters
    ----------
    run
        A run folder.
    kind
        Of prior: mixture (of Normals), flow (needs zuko), or vamp (of the model's own posteriors).
    components
        Of a mixture, 10 unless given, or of vamp, 500.
    out
        The new run folder; the run's own name and the kind unless given.
    overwrite
        Replace a run that the new folder holds.
    seed
        Of everything random.
    """
    from xhat.models.files import write_bytes
    from xhat.parts import specification
    from xhat.training.folder import RunFolder
    from xhat.training.prior import fit_prior as fit

    folder, model = open_run(run)
    place = run.with_name(f"{run.name}-{kind}") if out is None else out
    if place.resolve() == run.resolve():
        raise ConfigError(f"out is the run's own folder {run}: name another one")
    data = run_data(folder)
    fitted = fit(model, data.train, kind, components=components, valid=data.valid, seed=seed)
    new = RunFolder(place)
    new.start(fitted, folder.settings(), {}, overwrite)
    first = folder.config()
    commands = [first["command"]] if "command" in first else []
    commands.append(shlex.join(["xhat", *sys.argv[1:]]))
    told = {"prior": {"of": str(run), "kind": kind}, "model": specification(fitted), "command": "\n".join(commands)}
    held = {**first, **told}
    write_bytes(new.config_file, (json.dumps(held, indent=2) + "\n").encode())
    new.cut_rows(folder.rows())
    new.save_model(fitted)
    print(f"a {kind} prior fitted to the codes of {len(data.train)} training examples; written to {place}")
    if fitted.has_bound:
        before, after = (_bound(each, data.valid) for each in (model, fitted))
        print(f"ELBO on validation examples: {before:.4f} nats before, {after:.4f} after")


def _bound(model: Model, examples: Examples) -> float:
    """The mean bound, at draws of z that both models share, for their posterior is the same."""
    import torch

    from xhat.models.base import PIECE, quiet

    torch.manual_seed(0)
    with quiet(model):
        total = sum(float(model.elbo(batch, 10).double().sum()) for batch in examples.fixed(0).batched(PIECE))
    return total / len(examples)
