"""Gradients: the ways a derivative gets through a random sample.

Every estimator has one method, ``estimate(f, q, samples, reduce)``. It may call ``f`` as often as it wants, at points of its own
choosing; what it returns has the value of the Monte Carlo estimate and the gradient of the estimator.
"""

from xhat.gradients.base import Function, Gradient, honest
from xhat.gradients.expectation import GRADIENTS, expectation, gradient_of
from xhat.gradients.pathwise import Pathwise
from xhat.gradients.reduction import Mean, Reduction
from xhat.gradients.score import Score

__all__ = [
    "GRADIENTS",
    "Function",
    "Gradient",
    "Mean",
    "Pathwise",
    "Reduction",
    "Score",
    "expectation",
    "gradient_of",
    "honest",
]
