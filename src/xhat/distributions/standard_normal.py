"""The standard Normal as a law of its own, so that what is known of it need not be computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal


class StandardNormal(Normal):
    """Normals whose ``loc`` is 0 and whose ``scale`` is 1 everywhere; made by :func:`standard_normal`."""


def standard_normal(zeros: Tensor, **options: Any) -> StandardNormal:
    """Independent standard Normals, one for each of the zeros."""
    return StandardNormal(zeros, torch.ones_like(zeros), **options)
