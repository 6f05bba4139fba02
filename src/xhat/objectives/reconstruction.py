"""Objectives of autoencoders whose code is deterministic."""

from __future__ import annotations

from xhat.distributions.observed import observed_log_prob
from xhat.objectives.base import Objective, Terms
from xhat.objectives.posed import Posed, squared_error


class SquaredError(Objective):
    r"""Squared error :math:`\sum_j (x_j - \hat x_j)^2` of the likelihood's mean, over what was observed.

    Half of it is a unit-variance Normal's negative log-likelihood without its constant: it is reported as squared error and never
    as a log-likelihood.

    >>> import torch, xhat
    >>> model = xhat.build("autoencoder", shape=(4,), latent=2, hidden=[])
    >>> model.loss(torch.zeros(3, 4)).shape
    torch.Size([3])
    """

    name = "squared-error"

    def forward(self, posed: Posed) -> Terms:
        error = posed.error(posed.q.rsample())
        return Terms(error, {"squared_error": error})


class NegativeLogLikelihood(Objective):
    r"""Negative log-likelihood of the clean example given its code, :math:`-\log p(x \mid z)`, in nats, of what was observed.

    It is not a bound on log p(x): a deterministic code has no prior.
    """

    name = "negative-log-likelihood"

    def forward(self, posed: Posed) -> Terms:
        law = posed.likelihood(posed.q.rsample())
        loss = -observed_log_prob(law, posed.target.x, posed.target.observed)
        return Terms(
            loss,
            {"negative_log_likelihood": loss, "squared_error": squared_error(law.mean, posed.target.x, posed.target.observed)},
        )
