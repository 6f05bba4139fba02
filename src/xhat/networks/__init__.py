"""Networks: bodies that turn a context into features, and the heads that a law asks of them.

A body is any ``nn.Module`` that sees exactly one batch dimension. Its last layer is missing on purpose: a conditional asks
``head(shape)`` for a layer of the size that its law needs, so nobody counts outputs.
"""

from xhat.networks.base import Network, head_of, in_shape_of
from xhat.networks.bayesian_convolution import BayesianConv2d
from xhat.networks.bayesian_linear import BayesianLinear
from xhat.networks.bayesian_models import bayesian, kl, mean_weights
from xhat.networks.convolutional import ConvDecoder, ConvEncoder
from xhat.networks.mlp import MLP, tie
from xhat.networks.take import Take

__all__ = [
    "MLP",
    "BayesianConv2d",
    "BayesianLinear",
    "ConvDecoder",
    "ConvEncoder",
    "Network",
    "Take",
    "bayesian",
    "head_of",
    "in_shape_of",
    "kl",
    "mean_weights",
    "tie",
]
