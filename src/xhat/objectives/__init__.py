"""Objectives: what a model is trained to minimise, in nats per example."""

from xhat.objectives.base import Chassis, Objective, Terms
from xhat.objectives.bound import bound
from xhat.objectives.elbo import ELBO
from xhat.objectives.reconstruction import NegativeLogLikelihood, SquaredError

OBJECTIVES: dict[str, type[Objective]] = {
    "elbo": ELBO,
    "squared-error": SquaredError,
    "negative-log-likelihood": NegativeLogLikelihood,
}

__all__ = ["ELBO", "OBJECTIVES", "Chassis", "NegativeLogLikelihood", "Objective", "SquaredError", "Terms", "bound"]
