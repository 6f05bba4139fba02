"""What knowing the class is worth: log p(x|c) beside log p(x), the average over classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xhat.data import Batch, Examples
from xhat.evaluation.evidence import IMPORTANCE, Sampler, evidence_by_batches
from xhat.models.base import Model

MOST = 100  # classes


def has_classes(model: Model) -> bool:
    """Whether the condition is the class of an example and nothing else, and the classes are few."""
    known = model.conditions
    return known is not None and len(known.fields) == 1 and known.fields[0].levels is not None and known.size <= MOST


def class_gain(model: Model, examples: Examples, samples: int, way: Sampler | None = IMPORTANCE) -> Tensor:
    r"""How much more an example is worth under its class than over all classes, ``(N,)`` in nats, float64.

    .. math:: \log p(x|c) - \log \sum_{c'} p(c')\, p(x|c'),

    with p(c') the shares of the classes among these examples. At most -log p(c), which it comes to where x tells the class.

    Args:
        model: conditioned on a class and nothing else.
        examples: with their conditions.
        samples: of each log p(x|c').
        way: how it is found.
    """
    assert examples.condition is not None
    own = examples.condition.argmax(1)
    shares = torch.bincount(own, minlength=model.condition_size).double() / len(own)
    found = []
    for number, share in enumerate(shares.tolist()):
        if share == 0:
            continue
        row = torch.nn.functional.one_hot(torch.tensor(number), model.condition_size).float()
        under = _under(examples, row.expand(len(own), -1))
        log_px = torch.cat([part.log_px for part in evidence_by_batches(model, under, samples, way=way)])
        found.append((number, log_px + math.log(share)))
    joint = torch.stack([log_px for _, log_px in found])
    place = {number: index for index, (number, _) in enumerate(found)}
    chosen = torch.tensor([place[number] for number in own.tolist()])
    return joint.gather(0, chosen[None]).squeeze(0) - shares[own].log() - joint.logsumexp(0)


def _under(examples: Examples, condition: Tensor) -> Examples:
    """The same examples under other conditions."""
    batch: Batch = examples.batch(slice(None))
    return Examples(batch.x, observed=batch.observed, condition=condition, exposure=batch.exposure)
