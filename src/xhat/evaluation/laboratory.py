"""A trained model as a problem on which gradients are compared."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from xhat.errors import ConfigError
from xhat.gradients import LogWeight
from xhat.gradients.base import Function
from xhat.gradients.problems import Problem
from xhat.models.base import Model


def problem_of(model: Model, x: Any) -> Problem:
    r"""The model's bound on some examples, with the parameters of its posterior to differentiate in.

    The function is the whole log weight, :math:`\log p(x, z) - \log q(z|x)`, so that every gradient, those of bounds included,
    meets the same one.

    Raises:
        ConfigError: the model has no prior, or a posterior without parameters.
        DataError: x has another shape, or values outside the likelihood's support.

    >>> import torch, xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="bernoulli")
    >>> rows = xhat.gradients.compare(None, *problem_of(model, torch.zeros(3, 4))[1:3], ["score", "pathwise"], repeats=5)
    >>> [row.name for row in rows]
    ['score', 'pathwise']
    """
    model.need_bound("have a bound to compare gradients on")
    batch = model.batch(x)
    model.check(batch)
    leaves = [p for p in model.posterior.parameters() if p.requires_grad]
    if not leaves:
        raise ConfigError("the posterior has no parameters that are trained, so there is no gradient to compare")

    def draw() -> tuple[Distribution, Function]:
        posed = model.pose(batch)
        p = posed.prior

        def log_joint(z: Tensor) -> Tensor:
            return posed.log_px(z) + p.log_prob(z)

        return posed.q, LogWeight(log_joint, posed.q)

    return Problem(f"the bound of {type(model).__name__} on {batch.size} examples, derivative in its posterior", draw, leaves)
