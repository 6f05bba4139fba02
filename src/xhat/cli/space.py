"""What a sweep varies: ``--set lr=1e-4..1e-2:log`` as a range or as choices, checked against the options that there are."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

from xhat.errors import ConfigError
from xhat.models.options import ModelOptions
from xhat.training.settings import Settings

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

APART = ("seed", "device", "tensorboard", "checkpoint_every")  # settings that make no model better
YES, NO = ("true", "yes"), ("false", "no")


class Dimension(NamedTuple):
    """One option that is varied: from ``low`` to ``high``, or over ``choices``, which are kept as they were written."""

    name: str
    kind: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return not self.choices and self.kind == "int"

    def distribution(self) -> BaseDistribution:
        """The same in optuna's words."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def value(self, drawn: Any) -> Any:
        """The option's value from what optuna drew."""
        return _value(self.name, self.kind, drawn) if self.choices else drawn

    def some(self) -> list[Any]:
        """Values at the edges, or all choices: what can be checked before anything is trained."""
        if self.choices:
            return [self.value(choice) for choice in self.choices]
        return [int(self.low), int(self.high)] if self.whole else [self.low, self.high]


def _known() -> dict[str, str]:
    """Option and kind of what can be swept."""
    held = [*fields(Settings), *fields(ModelOptions)]
    return {field.name: str(field.type).removesuffix(" | None") for field in held if field.name not in APART}


def dimensions(texts: tuple[str, ...] | list[str]) -> list[Dimension]:
    """The dimensions that the command line names.

    Raises:
        ConfigError: an unknown option, a value of another type, a range that is none.

    >>> dimensions(["latent=2,8,32"])[0].some()
    [2, 8, 32]
    >>> dimensions(["lr=1e-4..1e-2:log"])[0].log
    True
    """
    found = [_dimension(text) for text in texts]
    names = [dimension.name for dimension in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"--set names {twice[0]} twice: give each option once, such as --set {twice[0]}=…")
    return found


def _dimension(text: str) -> Dimension:
    name, equals, rest = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    known = _known()
    if not equals or not rest.strip():
        raise ConfigError(f"--set takes OPTION=VALUES, such as lr=1e-4..1e-2:log or latent=2,8,32, was {text!r}")
    if name not in known:
        raise ConfigError(f"--set cannot vary {name!r}; the options are {', '.join(sorted(known))}")
    kind = known[name]
    if ".." not in rest:
        choices = tuple(choice.strip() for choice in rest.split(",") if choice.strip())
        if len(set(choices)) < 2:
            raise ConfigError(f"--set {name} needs two or more different values, was {rest!r}: for one, use --{_dashed(name)}")
        for choice in choices:
            _value(name, kind, choice)
        return Dimension(name, kind, choices)
    if kind not in ("int", "float", "float | str"):
        raise ConfigError(f"{name} has no ranges, its values are of type {kind}: list them, such as --set {name}=A,B")
    kind = "int" if kind == "int" else "float"
    span, colon, scale = rest.partition(":")
    if colon and scale != "log":
        raise ConfigError(f"after the colon of a range there can be only the word log, was {scale!r}")
    low, high = (_value(name, kind, part.strip()) for part in span.split("..", 1))
    if not low < high or not math.isfinite(high - low):
        raise ConfigError(f"the range of {name} must go from a smaller to a larger number, was {span!r}")
    if colon and low <= 0:
        raise ConfigError(f"a logarithmic range must begin above 0, but {name} begins at {low:g}: raise it, or leave :log out")
    return Dimension(name, kind, (), low, high, bool(colon))


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _value(name: str, kind: str, text: str) -> Any:
    try:
        if kind.startswith("tuple"):
            return () if text == "none" else tuple(int(size) for size in text.split("x"))
        if kind == "bool":
            return {**dict.fromkeys(YES, True), **dict.fromkeys(NO, False)}[text.lower()]
        if kind == "float | str":
            return _number_or_word(text)
        return {"int": int, "float": float, "str": str}[kind](text)
    except (ValueError, KeyError) as error:
        needed = {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(
            kind, "sizes such as 256x64, or none"
        )
        raise ConfigError(f"{name} must be {needed}, was {text!r} in --set") from error


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
