"""Objectives: what a model is trained to minimise, in nats per example."""

from xhat.objectives.base import Objective, Terms
from xhat.objectives.between import CIWAE, Renyi
from xhat.objectives.bound import bound
from xhat.objectives.elbo import ELBO
from xhat.objectives.info import Info
from xhat.objectives.iwae import IWAE
from xhat.objectives.miwae import MIWAE, PIWAE
from xhat.objectives.posed import Posed
from xhat.objectives.reconstruction import NegativeLogLikelihood, SquaredError
from xhat.objectives.total_correlation import TotalCorrelation

__all__ = [
    "CIWAE",
    "ELBO",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "Info",
    "NegativeLogLikelihood",
    "Objective",
    "Posed",
    "Renyi",
    "SquaredError",
    "Terms",
    "TotalCorrelation",
    "bound",
]
