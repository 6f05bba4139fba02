"""The table of closed forms: which rule serves which pair of laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch.distributions import Distribution
from torch.distributions import kl_divergence as torch_kl_divergence
from torch.distributions.kl import _KL_REGISTRY

from xhat.distributions.shapes import broadcast
from xhat.distributions.support import join, split

Rule = Callable[[Any, Any], Tensor | None]
_R = TypeVar("_R", bound=Rule)

RULES: dict[tuple[type, type], Rule] = {}


def rule(p: type, q: type) -> Callable[[_R], _R]:
    """Enter a closed form of KL(p || q), serving subclasses too; it returns None for a pair that it cannot do."""

    def enter(function: _R) -> _R:
        RULES[p, q] = function
        return function

    return enter


def closed_form(p: Distribution, q: Distribution) -> Tensor | None:
    """KL(p || q) in nats, of the broadcast batch shape, or None where no rule serves the pair."""
    batch = broadcast(p.batch_shape, q.batch_shape)
    (p_base, p_axes), (q_base, q_axes) = split(p), split(q)
    shared = min(p_axes, q_axes)
    if shared:
        inner = closed_form(join(p_base, p_axes - shared), join(q_base, q_axes - shared))
        return None if inner is None else inner.flatten(-shared).sum(-1).expand(batch)
    p, q = join(p_base, p_axes), join(q_base, q_axes)
    # A rule of ours has the last word: where it declines, torch's would be wrong or fail.
    result = (_find(p, q) or from_torch)(p, q)
    return None if result is None else result.expand(batch)


def _find(p: Distribution, q: Distribution) -> Rule | None:
    for p_type in type(p).__mro__:
        for q_type in type(q).__mro__:
            if (p_type, q_type) in RULES:
                return RULES[p_type, q_type]
    return None


def from_torch(p: Distribution, q: Distribution) -> Tensor | None:
    """torch's closed form, if it has one. Its rules that assign in place need batch shapes that are already equal."""
    # Asked first, for to expand a law that no rule takes is for nothing, and torch 2.11 cannot compile it
    if not any(isinstance(p, ours) and isinstance(q, theirs) for ours, theirs in _KL_REGISTRY):
        return None
    batch = broadcast(p.batch_shape, q.batch_shape)
    try:
        return torch_kl_divergence(
            p if p.batch_shape == batch else p.expand(batch), q if q.batch_shape == batch else q.expand(batch)
        )
    except NotImplementedError:
        return None
