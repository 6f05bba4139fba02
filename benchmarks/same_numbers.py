"""One small model for each recipe, gradient, objective and law: do a change's numbers stay what they were?

``python benchmarks/same_numbers.py before.json`` trains them, from fixed seeds, and writes the sha256 of their weights and what
is measured of them; ``--against before.json``, after the change, says which are others. Digits differ between machines and
versions of torch, so a file holds for the machine that wrote it. Half a minute.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

import xhat
from xhat.models.files import state_of

VAE = {"likelihood": "bernoulli", "latent": 4, "hidden": [16]}
BITS = {"likelihood": "bernoulli", "latent": 6, "hidden": [16]}
LAYERED = {"likelihood": "bernoulli", "hidden": [16], "between": [8]}
SEVERAL = {**VAE, "samples": 4}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "recipe autoencoder": ("autoencoder", {"latent": 4, "hidden": [16]}),
    "recipe autoencoder tied": ("autoencoder", {"latent": 4, "hidden": [16], "tied": True}),
    "recipe autoencoder bernoulli": ("autoencoder", {"latent": 4, "hidden": [16], "likelihood": "bernoulli"}),
    "recipe denoising": ("denoising", {"latent": 4, "hidden": [16]}),
    "recipe stacked": ("stacked", {"latent": 4, "hidden": [16, 8]}),
    "recipe vae": ("vae", VAE),
    "recipe vae denoising": ("vae", {**VAE, "corruption": "salt-and-pepper:0.1"}),
    "recipe vae conv": ("vae", {**VAE, "network": "conv", "channels": [4, 8]}),
    "recipe hierarchical-vae": ("hierarchical-vae", {**LAYERED, "latents": [4, 3]}),
    "recipe hierarchical-vae ladder": (
        "hierarchical-vae",
        {**LAYERED, "latents": [4, 3, 2], "direction": "ladder"},
    ),
    "recipe bernoulli-vae": ("bernoulli-vae", BITS),
    "recipe bernoulli-vae two layers": ("bernoulli-vae", {**BITS, "layers": 2}),
    "recipe categorical-vae": ("categorical-vae", {**BITS, "categories": 3}),
    "recipe categorical-vae two layers": ("categorical-vae", {**BITS, "categories": 3, "layers": 2}),
    **{
        f"likelihood {name}": ("vae", {**VAE, "likelihood": name, **options})
        for name, options in {
            "normal": {},
            "normal per dimension": {"likelihood": "normal", "per": "dimension"},
            "normal network exp": {"likelihood": "normal", "per": "network", "scale": "exp"},
            "continuous-bernoulli": {},
            "poisson": {},
            "categorical": {"levels": 2},
            "discretised-normal": {"levels": 2},
            "logistic-mixture": {"levels": 2, "logistics": 2},
            "beta-binomial": {"levels": 2},
        }.items()
    },
    **{
        f"posterior {name}": ("vae", {**VAE, "posterior": name})
        for name in ("multivariate-normal", "iaf", "coupling", "continuous-bernoulli")
    },
    **{f"prior {name}": ("vae", {**VAE, "prior": name}) for name in ("mixture", "vamp", "flow", "coupling", "spline")},
    "objective elbo beta": ("vae", {**VAE, "beta": 2.0, "beta_warmup": 1.0}),
    "objective elbo free bits": ("vae", {**VAE, "free_bits": 0.2}),
    "objective elbo capacity": ("vae", {**VAE, "capacity": 2.0, "capacity_warmup": 1.0, "beta": 3.0}),
    "objective elbo sampled": ("vae", {**VAE, "kl": "sampled", "samples": 2}),
    "objective iwae": ("vae", {**SEVERAL, "objective": "iwae"}),
    "objective miwae": ("vae", {**VAE, "objective": "miwae", "groups": 2, "samples": 2}),
    "objective piwae": ("vae", {**VAE, "objective": "piwae", "groups": 2, "samples": 2}),
    "objective ciwae": ("vae", {**SEVERAL, "objective": "ciwae", "share": 0.3}),
    "objective renyi": ("vae", {**SEVERAL, "objective": "renyi", "alpha": 0.5}),
    "objective tc": ("vae", {**VAE, "objective": "tc", "beta": 3.0}),
    "objective info": ("vae", {**VAE, "objective": "info", "mmd_weight": 10.0, "samples": 2}),
    **{
        f"gradient {name} on a Normal code": ("vae", {**VAE, "gradient": name, "samples": 2, **options})
        for name, options in {
            "pathwise": {"noise": "antithetic"},
            "stl": {},
            "score": {"baseline": "lagged"},
            "rloo": {},
            "measure": {},
        }.items()
    },
    "gradient score with a network": ("vae", {**VAE, "gradient": "score", "baseline": "network", "samples": 1}),
    "gradient dreg": ("vae", {**SEVERAL, "objective": "iwae", "gradient": "dreg"}),
    "gradient vimco": ("bernoulli-vae", {**BITS, "samples": 4, "objective": "iwae", "gradient": "vimco"}),
    **{
        f"gradient {name} on bits": ("bernoulli-vae", {**BITS, "gradient": name})
        for name in (
            "score", "enumerate", "arm", "disarm", "arms", "muprop", "double-cv", "rebar", "relax", "concrete",
            "straight-through", "st-gumbel", "reinmax",
        )
    },
    **{
        f"gradient {name} on categories": ("categorical-vae", {**BITS, "categories": 3, "gradient": name})
        for name in ("carms", "sum-and-sample", "unordered-set", "gumbel-rao", "concrete", "rebar")
    },
}  # fmt: skip


def digest(*tensors: torch.Tensor) -> str:
    """sha256 of the tensors' bytes."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def train(recipe: str, options: dict[str, Any], data: xhat.Data) -> tuple[xhat.Model, dict[str, Any]]:
    """A model after three short epochs, and what stays of it."""
    torch.manual_seed(0)
    x, valid = data.train.subset(slice(200)), data.valid.subset(slice(50))
    model = xhat.build(recipe, shape=data.shape, **options)
    history = xhat.fit(model, x, valid=valid, epochs=3, batch_size=48, seed=3, engine="eager", progress=False)
    state = state_of(model)
    return model, {
        "weights": digest(*(state[name] for name in sorted(state))),
        "history": {key: value for key, value in history.rows[-1].items() if "second" not in key},
    }


def measured(model: xhat.Model, data: xhat.Data) -> dict[str, Any]:
    """What the library says of a model."""
    x = data.test.subset(slice(20))
    torch.manual_seed(1)
    found: dict[str, Any] = {"codes": digest(model.encode(x)), "reconstructions": digest(model.reconstruct(x, sample=True))}
    found["loss"] = digest(model.loss(x))
    found["evaluation"] = {name: str(value) for name, value in xhat.evaluate(model, x, samples=20)._asdict().items()}
    if model.has_bound:
        found["elbo"] = digest(model.elbo(x, samples=2))
        found["importance"] = digest(*xhat.log_likelihood(model, x, samples=30))
        found["samples"] = digest(model.sample(5, sample=True))
        found["anatomy"] = str(xhat.anatomy(model, x, samples=2))
    return found


def extra(data: xhat.Data) -> dict[str, Any]:
    """Evidence by annealing, bounds from both sides, refinement, a prior fitted afterwards, many models, random weights."""
    model, _ = train("vae", VAE, data)
    x, found = data.test.subset(slice(6)), {}
    torch.manual_seed(2)
    found["annealed"] = digest(*xhat.log_likelihood(model, x, samples=3, method="annealed", steps=4, leapfrog=3))
    found["sandwich"] = str(xhat.sandwich(model, 5, samples=3, steps=4))
    found["refined"] = str(xhat.refine(model, x, steps=5, samples=5))
    plain, _ = train("autoencoder", {"latent": 4, "hidden": [16]}, data)
    fitted = xhat.fit_prior(plain, data.train.subset(slice(100)), components=2, seed=0)
    found["fitted prior"] = digest(fitted.sample(4))
    many = xhat.fit_many(
        lambda seed: xhat.build("vae", shape=data.shape, **VAE), data.train.subset(slice(100)), seeds=2, epochs=2, batch_size=32
    )
    found["many"] = [digest(*(value for _, value in sorted(state_of(each).items()))) for each in many.models]
    torch.manual_seed(4)
    random = xhat.networks.bayesian(xhat.build("vae", shape=data.shape, **VAE))
    xhat.fit(random, data.train.subset(slice(100)), epochs=2, seed=0, engine="eager", progress=False)
    found["random weights"] = digest(*(value for _, value in sorted(state_of(random).items())))
    return found


def run() -> dict[str, Any]:
    """Everything, by name."""
    torch.set_num_threads(1)
    data = xhat.load_data("digits", binarize="threshold")
    found: dict[str, Any] = {}
    for name, (recipe, options) in CASES.items():
        model, kept = train(recipe, options, data)
        found[name] = {**kept, **measured(model, data)}
    return json.loads(json.dumps({**found, "extra": extra(data)}))


def same(a: Any, b: Any) -> bool:
    """Equality in which NaN equals itself, and what is measured today and was not before is no difference."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() <= b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Which parts of which cases are others, a line each."""
    lines = [f"{name}: not there any more" for name in before if name not in after]
    for name in before.keys() & after.keys():
        parts = [key for key in before[name] if not same(before[name][key], after[name].get(key))]
        if parts:
            lines.append(f"{name}: {', '.join(parts)}")
    return sorted(lines)


def main() -> int:
    """Exit with 1 where numbers changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, help="write what is found here")
    parser.add_argument("--against", type=Path, help="a file that was written before")
    given = parser.parse_args()
    found = run()
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.against is None:
        print(f"{len(found)} cases")
        return 0
    lines = differences(json.loads(given.against.read_text(encoding="utf-8")), found)
    print("\n".join(lines) or f"{len(found)} cases, all the same")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
