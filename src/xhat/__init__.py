"""xhat: autoencoders, plain to variational, and the gradients through their random samples.

Names load when they are first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from xhat.version import __version__

if TYPE_CHECKING:
    from xhat import conditionals, data, distributions, gradients, networks, objectives, priors
    from xhat.data import Data, Examples, load_data
    from xhat.distributions import kl_divergence
    from xhat.errors import CheckpointError, ConfigError, DataError, TrainingError, XhatError
    from xhat.evaluation.anatomy import Anatomy, anatomy
    from xhat.evaluation.evaluate import Evaluation, evaluate
    from xhat.evaluation.evidence import Evidence, log_likelihood
    from xhat.evaluation.refinement import Refinement, refine
    from xhat.evaluation.sandwich import Sandwich, sandwich
    from xhat.gradients import Sampling, expectation
    from xhat.models.autoencoder import Autoencoder
    from xhat.models.base import Model
    from xhat.models.files import load, save
    from xhat.models.recipes import RECIPES, build
    from xhat.models.stacked import Stacked
    from xhat.models.vae import VAE
    from xhat.objectives import bound
    from xhat.training.fit import fit, train
    from xhat.training.many import fit_many
    from xhat.training.prior import fit_prior

_HOME = {
    "Anatomy": "xhat.evaluation.anatomy",
    "Autoencoder": "xhat.models.autoencoder",
    "CheckpointError": "xhat.errors",
    "ConfigError": "xhat.errors",
    "Data": "xhat.data",
    "DataError": "xhat.errors",
    "Evaluation": "xhat.evaluation.evaluate",
    "Evidence": "xhat.evaluation.evidence",
    "Examples": "xhat.data",
    "Model": "xhat.models.base",
    "RECIPES": "xhat.models.recipes",
    "Refinement": "xhat.evaluation.refinement",
    "Sampling": "xhat.gradients",
    "Sandwich": "xhat.evaluation.sandwich",
    "Stacked": "xhat.models.stacked",
    "TrainingError": "xhat.errors",
    "VAE": "xhat.models.vae",
    "XhatError": "xhat.errors",
    "anatomy": "xhat.evaluation.anatomy",
    "bound": "xhat.objectives",
    "build": "xhat.models.recipes",
    "evaluate": "xhat.evaluation.evaluate",
    "expectation": "xhat.gradients",
    "fit": "xhat.training.fit",
    "fit_many": "xhat.training.many",
    "fit_prior": "xhat.training.prior",
    "kl_divergence": "xhat.distributions",
    "load": "xhat.models.files",
    "load_data": "xhat.data",
    "log_likelihood": "xhat.evaluation.evidence",
    "refine": "xhat.evaluation.refinement",
    "sandwich": "xhat.evaluation.sandwich",
    "save": "xhat.models.files",
    "train": "xhat.training.fit",
}
_MODULES = ("conditionals", "data", "distributions", "gradients", "networks", "objectives", "priors")

__all__ = [
    "Anatomy",
    "Autoencoder",
    "CheckpointError",
    "ConfigError",
    "Data",
    "DataError",
    "Evaluation",
    "Evidence",
    "Examples",
    "Model",
    "RECIPES",
    "Refinement",
    "Sampling",
    "Sandwich",
    "Stacked",
    "TrainingError",
    "VAE",
    "XhatError",
    "__version__",
    "anatomy",
    "bound",
    "build",
    "conditionals",
    "data",
    "distributions",
    "evaluate",
    "expectation",
    "fit",
    "fit_many",
    "fit_prior",
    "gradients",
    "kl_divergence",
    "load",
    "load_data",
    "log_likelihood",
    "networks",
    "objectives",
    "priors",
    "refine",
    "sandwich",
    "save",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"xhat.{name}")
    else:
        raise AttributeError(f"module 'xhat' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
