"""Parts that remember how they were made, so that a model can be saved as data and rebuilt without running anything.

A part's *specification* is JSON: ``{"part": "conditionals.Normal", "arguments": {...}}`` with parts nested inside. Only
classes of xhat that derive from :class:`Part` are in the table, and nothing is imported by a name that a file gives:
that is what makes a model file from a stranger safe to open.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from xhat.errors import CheckpointError, ConfigError

PARTS: dict[str, type[Part]] = {}
PLAIN = "dict"  # stands for a dictionary that has a key "part" of its own


def _recording(init: Any) -> Any:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        if "_arguments" not in self.__dict__:  # the outermost __init__ holds what the user wrote
            bound = signature.bind(self, *args, **kwargs)
            arguments = dict(list(bound.arguments.items())[1:])
            for name, parameter in signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    arguments.update(arguments.pop(name, {}))
            object.__setattr__(self, "_arguments", arguments)
        init(self, *args, **kwargs)

    return wrapped


class Part:
    """Mixin for whatever can stand in a saved model: it keeps the arguments that made it.

    >>> from xhat.networks import MLP
    >>> specification(MLP(4, [3]))
    {'part': 'networks.MLP', 'arguments': {'in_shape': 4, 'hidden': [3]}}
    """

    _arguments: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__module__.startswith("xhat."):
            return  # a user's own class: its weights are saved, its code never is
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]
        PARTS[part_name(cls)] = cls


def part_name(cls: type) -> str:
    """The public name of a part: its floor and its class, ``networks.MLP``."""
    return f"{cls.__module__.removeprefix('xhat.').split('.')[0]}.{cls.__name__}"


def specification(value: Any) -> Any:
    """The JSON that rebuilds ``value``.

    Raises:
        ConfigError: ``value`` holds something that is neither a part nor plain data (a network of your own, say).
    """
    if isinstance(value, Part):
        name = part_name(type(value))
        if PARTS.get(name) is not type(value):
            raise _foreign(value)
        return {
            "part": name,
            "arguments": {key: specification(item) for key, item in _arguments_of(value).items()},
        }
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [specification(item) for item in value]
    if isinstance(value, dict):
        held = {str(key): specification(item) for key, item in value.items()}
        return {"part": PLAIN, "arguments": held} if "part" in held else held
    raise _foreign(value)


def _arguments_of(part: Part) -> dict[str, Any]:
    """The arguments that made a part; where they were modules, those that it holds now, for parts can be swapped."""
    made = dict(getattr(part, "_arguments", {}))
    held = part.__dict__.get("_modules", {})
    for name, parameter in inspect.signature(type(part).__init__).parameters.items():
        argument = made.get(name, parameter.default)
        # Any other argument, such as an activation's name, made the module that is held under its name.
        if name in held and (argument is None or hasattr(argument, "_modules")):
            made[name] = held[name]
    return made


def _foreign(value: Any) -> ConfigError:
    return ConfigError(
        f"{type(value).__module__}.{type(value).__qualname__} is not a part of xhat, so a file cannot describe it; "
        "its weights can still be saved, and xhat.load(path, model=your_model) puts them back"
    )


def rebuild(spec: Any) -> Any:
    """The value that :func:`specification` described.

    Raises:
        CheckpointError: it names a part that this version of xhat does not have, or arguments that the part refuses.
    """
    if isinstance(spec, list):
        return [rebuild(item) for item in spec]
    if isinstance(spec, dict) and spec.get("part") == PLAIN:
        return {str(key): rebuild(item) for key, item in dict(spec.get("arguments", {})).items()}
    if isinstance(spec, dict) and "part" in spec:
        cls = PARTS.get(str(spec["part"]))
        if cls is None:
            raise CheckpointError(
                f"the file needs the part {spec['part']!r}, which this version of xhat does not have: "
                "open it with the version that wrote it"
            )
        arguments = {str(key): rebuild(item) for key, item in dict(spec.get("arguments", {})).items()}
        try:
            return cls(**arguments)
        except TypeError as error:
            raise CheckpointError(f"the file's arguments do not fit the part {spec['part']}: {error}") from error
    if isinstance(spec, dict):
        return {key: rebuild(item) for key, item in spec.items()}
    return spec
