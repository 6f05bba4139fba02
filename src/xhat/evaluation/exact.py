"""Exact log p(x), for the models that have it."""

from __future__ import annotations

from torch import Tensor

from xhat.data import Batch
from xhat.errors import ConfigError
from xhat.evaluation.enumeration import LIMIT, count_of, enumerated_log_px
from xhat.evaluation.linear_normal import linear_normal_of
from xhat.models.base import Model
from xhat.networks.bayesian_models import is_bayesian


def exact_log_px(model: Model, batch: Batch, elements: int) -> Tensor:
    """log p(x) of each example without any draw, ``(B,)`` in float64.

    Args:
        model: a linear Normal model with a standard Normal prior, or one with codes of at most 2¹⁶ values.
        batch: examples.
        elements: numbers that the likelihood makes at once.

    Raises:
        ConfigError: the model is neither.
    """
    if is_bayesian(model):
        raise ConfigError(
            "method='exact' needs a likelihood that stands still, and this model's weights are random: use 'importance'"
        )
    linear = linear_normal_of(model)
    if isinstance(linear, str):
        posed = model.pose(batch)
        count = count_of(posed.prior)
        if count is not None and count <= LIMIT:
            return enumerated_log_px(posed, max(1, elements // (batch.size * model.numbers)))
        if count is not None:
            linear = f"and its code takes more than {LIMIT} values"
        raise ConfigError(
            "method='exact' takes a linear Normal model with a standard Normal prior, or codes of at most "
            f"{LIMIT} values, {linear}: use method='annealed' for continuous codes, or 'importance' with more samples"
        )
    return linear.log_prob(batch)
