"""The shape that shapes broadcast to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch


def broadcast(*shapes: Sequence[int]) -> torch.Size:
    """The common shape of several, by torch's rules.

    ``torch.broadcast_shapes`` gives the same, but its first call imports a system for symbolic algebra, which takes half a
    second: too long before a program's first step.

    Raises:
        RuntimeError: they do not broadcast.

    >>> broadcast((5, 1), (3,), ())
    torch.Size([5, 3])
    """
    if all(shape == shapes[0] for shape in shapes):
        return torch.Size(shapes[0])
    common = []
    for sizes in zip_longest(*(tuple(reversed(shape)) for shape in shapes), fillvalue=1):
        wide = [size for size in sizes if size != 1]
        if any(size != wide[0] for size in wide):
            raise RuntimeError(f"the shapes {', '.join(str(tuple(shape)) for shape in shapes)} do not broadcast")
        common.append(wide[0] if wide else 1)
    return torch.Size(reversed(common))
