"""Gradients: the ways a derivative gets through a random sample.

Every estimator has one method, ``estimate(f, q, samples, reduce)``. It may call ``f`` as often as it wants, at points of its own
choosing; what it returns has the value of the Monte Carlo estimate and the gradient of the estimator.
"""

from xhat.gradients.antithetic import ARM, ARMS, CARMS, DisARM
from xhat.gradients.base import Function, Gradient, LogWeight, Path, honest
from xhat.gradients.baselines import ContextBaseline, Lagged
from xhat.gradients.bounds import STL, DReG
from xhat.gradients.compare import compare
from xhat.gradients.comparison import Comparison, Row
from xhat.gradients.enumeration import Enumerate
from xhat.gradients.expectation import GRADIENTS, expectation, gradient_of
from xhat.gradients.layers import Layers
from xhat.gradients.measure import Measure
from xhat.gradients.pathwise import Pathwise
from xhat.gradients.reduction import Blend, Grouped, LogMeanExp, Mean, Reduction, Renyi
from xhat.gradients.relaxed import REBAR, RELAX
from xhat.gradients.sampling import Sampling
from xhat.gradients.score import VIMCO, LeaveOneOut, Score
from xhat.gradients.straight_through import Concrete, GumbelRao, ReinMax, STGumbel, StraightThrough
from xhat.gradients.taylor import DoubleCV, MuProp
from xhat.gradients.without_replacement import SumAndSample, UnorderedSet

__all__ = [
    "ARM",
    "ARMS",
    "CARMS",
    "GRADIENTS",
    "REBAR",
    "RELAX",
    "STL",
    "VIMCO",
    "Comparison",
    "Concrete",
    "ContextBaseline",
    "DReG",
    "DisARM",
    "DoubleCV",
    "Enumerate",
    "Function",
    "Gradient",
    "GumbelRao",
    "Lagged",
    "Layers",
    "LeaveOneOut",
    "Blend",
    "Grouped",
    "LogMeanExp",
    "Renyi",
    "LogWeight",
    "Mean",
    "Measure",
    "MuProp",
    "Path",
    "Pathwise",
    "Reduction",
    "ReinMax",
    "Row",
    "STGumbel",
    "Sampling",
    "Score",
    "StraightThrough",
    "SumAndSample",
    "UnorderedSet",
    "compare",
    "expectation",
    "gradient_of",
    "honest",
]
