"""Laws without the check of their arguments, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch.distributions import Distribution


@contextlib.contextmanager
def unvalidated() -> Iterator[None]:
    """For the time of a block, torch's laws do not check their arguments; afterwards they do as they did before.

    No traced program can check values. So ``torch.compile`` turns the checks off when it is first called, for the whole process
    and for good, which is not ours to do to a user's other laws. And a trajectory may leave for where a law has no parameters:
    there it is refused by its density, which is no number, and must not stop the others.
    """
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)
