"""The command ``xhat``: train, sweep, evaluate, fit-prior, sample, encode, decode, reconstruct, report, gradients.

Torch is imported by the commands themselves, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import io
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from cyclopts import App, CycloptsError, Parameter, Token, convert
from cyclopts.config import Toml

from xhat import __version__
from xhat.cli.laboratory import gradients
from xhat.cli.prior import fit_prior
from xhat.cli.reconstruct import reconstruct
from xhat.cli.sweep import sweep
from xhat.cli.telling import speaks
from xhat.cli.train import train
from xhat.cli.use import decode, encode, evaluate, report, sample
from xhat.errors import ConfigError, XhatError
from xhat.ranks import place

EPILOGUE = """
Examples:

    xhat train digits --recipe vae --epochs 30 --out runs/digits
    xhat evaluate runs/digits --samples 500
    xhat report runs/digits
    xhat train images/ --resize 64x64 --network conv --likelihood normal --out runs/images
    xhat encode runs/digits --out codes.csv
    xhat gradients --problem toy

The options of a command can also stand in a file, --config run.toml; those on the command line go before it.
"""
TOGETHER = ("train", "evaluate")  # what several processes can share
LISTS = ("--hidden", "--channels", "--latents", "--between")


def _typed(type_: Any, tokens: Sequence[Token]) -> Any:
    """A value from its text; a fraction is no whole number, and a number is no word."""
    leaves = {type_, *get_args(type_), *(leaf for part in get_args(type_) for leaf in get_args(part))}
    if int in leaves:
        name = f"{tokens[0].keyword} " if len(tokens) > 1 else ""
        for token in tokens:
            if "." in token.value and not float(token.value).is_integer():
                raise ValueError(f"{name}must be a whole number, was {token.value}")
            if len(token.value) > 18 and token.value.lstrip("+-").isdigit():
                raise ValueError(f"{name}must have at most 18 digits, was {token.value[:40]}")
    if {float, str} <= leaves:
        try:
            return float(tokens[0].value)
        except ValueError:
            return tokens[0].value
    return convert(type_, tokens)


app = App(
    name="xhat",
    help="Autoencoders, plain to variational: train, measure, sample, encode, reconstruct.",
    help_epilogue=EPILOGUE,
    help_format="plaintext",
    version=__version__,
    default_parameter=Parameter(consume_multiple=True, converter=_typed),
)
for command in (train, sweep, evaluate, fit_prior, sample, encode, decode, reconstruct, report, gradients):
    app.command(command, help_epilogue="")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit: 0, or 2 with one sentence, or 130 after Ctrl-C."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no "±" shows a "?"
    try:
        _share(tokens)
        code = app(_configured(_split_lists(tokens)), exit_on_error=False, print_error=False, result_action="return_value")
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk, or a reader that went away, is seen now
    except XhatError as error:
        _refuse(str(error))
    except CycloptsError as error:
        _refuse(str(error).replace(". Did you mean", ", did you mean"))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _mute()
        sys.exit(141)
    except OSError as error:
        if error.filename is None:
            _mute()
        _refuse(f"{error.filename or 'the output'} cannot be read or written: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(word in str(error) for word in _MEMORY):
            raise
        _refuse("there is not enough memory for this: use a smaller batch, fewer samples or a smaller network")
    sys.exit(code or 0)


# How torch says that it cannot allocate: on the CPU, on a GPU, and for sizes beyond any machine
_MEMORY = ("not enough memory", "out of memory", "allocate memory", "size calculation overflowed", "multiplication overflow")


def _share(tokens: list[str]) -> None:
    """Under torchrun, let the first process alone print, and refuse what one process does.

    Raises:
        ConfigError: several processes were started for a command of one.
    """
    rank, world = place()
    if rank > 0:
        sys.stdout.flush()
        _mute()
    if world > 1 and tokens and tokens[0] not in TOGETHER and not tokens[0].startswith("-"):
        raise ConfigError(f"xhat {tokens[0]} is the work of one process: start it without torchrun")


def _mute() -> None:
    """Send what is still to be printed nowhere, or Python would complain of it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(message: str) -> NoReturn:
    if speaks(message):
        print(f"xhat: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(2)


def _split_lists(tokens: list[str]) -> list[str]:
    """``--hidden 400,200`` as ``--hidden 400 200``, and ``--hidden none`` as the empty list.

    Raises:
        ConfigError: no sizes follow.
    """
    result: list[str] = []
    waiting = list(reversed(tokens))
    while waiting:
        token = waiting.pop()
        name, equals, value = token.partition("=")
        if name not in LISTS:
            result.append(token)
            continue
        if not equals:
            value = waiting.pop() if waiting and not waiting[-1].startswith("--") else ""
        if value == "none":
            result.append(f"--empty-{name.removeprefix('--')}")
        elif value.strip(","):
            result += [name, *(size for size in value.split(",") if size)]
        else:
            raise ConfigError(f"{name} needs sizes, such as {name} 400,200, or the word none")
    return result


def _configured(tokens: list[str]) -> list[str]:
    """Take ``--config FILE`` out of the tokens and let the file answer for whatever they leave open."""
    app.config = ()
    for index, token in enumerate(tokens):
        name, equals, value = token.partition("=")
        if name != "--config":
            continue
        if not equals:
            value = tokens[index + 1] if index + 1 < len(tokens) else ""
        path = Path(value)
        if not value or not path.is_file():
            _refuse(f"the configuration {value!r} is not a file: give a TOML file, such as --config run.toml")
        _check_toml(path)
        app.config = (Toml(path, use_commands_as_keys=False),)
        return tokens[:index] + tokens[index + (1 if equals else 2) :]
    return tokens


def _check_toml(path: Path) -> None:
    try:
        held = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        _refuse(f"{path} is no readable TOML file: {error}")
    for name in LISTS:
        value = held.get(name.removeprefix("--"))
        if isinstance(value, str):
            _refuse(f"{path}: {name.removeprefix('--')} must be a list, such as [400, 200], or [] for none, was {value!r}")
