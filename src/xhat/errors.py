"""The library's errors: one family, so that ``except xhat.XhatError`` catches whatever xhat refuses.

Each message is one sentence that says what, where, what it must be, what it was, and the remedy.
"""

from numbers import Integral


class XhatError(Exception):
    """Base of every error that xhat raises on purpose."""


def whole_number(name: str, value: object, least: int = 1) -> None:
    """Refuse what is no whole number, or too small a one.

    Raises:
        ConfigError: says what it was.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} must be a whole number, was {value!r}")
    if value < least:
        raise ConfigError(f"{name} must be at least {least}, was {value}")


class DataError(XhatError, ValueError):
    """The data cannot be read or cannot be used as asked: a missing file, a NaN, a value outside a support."""


class DataWarning(UserWarning):
    """The data can be used, but look as if they were not meant: values far outside the range of the training data."""


class ConfigError(XhatError, ValueError):
    """Parts or options that make no sense together, or an option outside its range."""


class CheckpointError(XhatError, RuntimeError):
    """A saved model or run that is missing, damaged, foreign, or does not match what it is loaded into."""


class TrainingError(XhatError, RuntimeError):
    """Training cannot go on: the loss is not finite, or the disk refuses a checkpoint."""
