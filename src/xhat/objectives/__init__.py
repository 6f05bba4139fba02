"""Objectives: what a model is trained to minimise, in nats per example."""

from xhat.objectives.base import Chassis, Objective, Terms
from xhat.objectives.bound import bound
from xhat.objectives.elbo import ELBO
from xhat.objectives.iwae import IWAE
from xhat.objectives.reconstruction import NegativeLogLikelihood, SquaredError

__all__ = ["ELBO", "IWAE", "Chassis", "NegativeLogLikelihood", "Objective", "SquaredError", "Terms", "bound"]
