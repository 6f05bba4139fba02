"""Objectives of autoencoders whose code is deterministic."""

from __future__ import annotations

from torch import Tensor

from xhat.objectives.base import Chassis, Objective, Terms


def squared_error(mean: Tensor, target: Tensor) -> Tensor:
    r"""The squared error :math:`\sum_j (x_j - \hat x_j)^2`, summed over the event, ``(B,)``."""
    return (mean - target).square().flatten(1).sum(1)


class SquaredError(Objective):
    r"""Squared error :math:`\sum_j (x_j - \hat x_j)^2` of the likelihood's mean.

    Half of it is a unit-variance Normal's negative log-likelihood without its constant: it is reported as squared error and never
    as a log-likelihood.

    >>> import torch, xhat
    >>> model = xhat.build("autoencoder", shape=(4,), latent=2, hidden=[])
    >>> model.loss(torch.zeros(3, 4)).shape
    torch.Size([3])
    """

    name = "squared-error"

    def forward(self, model: Chassis, x: Tensor, target: Tensor) -> Terms:
        z = model.posterior(x).rsample()
        error = squared_error(model.likelihood(z).mean, target)
        return Terms(error, {"squared_error": error})


class NegativeLogLikelihood(Objective):
    r"""Negative log-likelihood of the clean example given its code, :math:`-\log p(x \mid z)`, in nats.

    It is not a bound on log p(x): a deterministic code has no prior.
    """

    name = "negative-log-likelihood"

    def forward(self, model: Chassis, x: Tensor, target: Tensor) -> Terms:
        z = model.posterior(x).rsample()
        law = model.likelihood(z)
        loss = -law.log_prob(target)
        return Terms(loss, {"negative_log_likelihood": loss, "squared_error": squared_error(law.mean, target)})
