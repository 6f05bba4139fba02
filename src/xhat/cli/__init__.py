"""The command ``xhat``: train, evaluate, sample, encode, decode, reconstruct, report.

Torch is imported by the commands themselves, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Toml

from xhat import __version__
from xhat.cli.train import train
from xhat.cli.use import decode, encode, evaluate, reconstruct, report, sample
from xhat.errors import XhatError

EPILOGUE = """
Examples:

    xhat train digits --recipe vae --epochs 30 --out runs/digits
    xhat evaluate runs/digits --samples 500
    xhat report runs/digits
    xhat train images/ --resize 64x64 --network conv --likelihood normal --out runs/images
    xhat encode runs/digits --out codes.csv
"""

app = App(
    name="xhat",
    help="Autoencoders, plain to variational: train, measure, sample, encode, reconstruct.",
    help_epilogue=EPILOGUE,
    help_format="plaintext",
    version=__version__,
    default_parameter=Parameter(consume_multiple=True),
)
for command in (train, evaluate, sample, encode, decode, reconstruct, report):
    app.command(command)

LISTS = ("--hidden", "--channels")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit: 0, or 2 with one sentence, or 130 after Ctrl-C."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(_configured(_split_lists(tokens)), exit_on_error=False, print_error=False, result_action="return_value")
    except XhatError as error:
        _refuse(str(error))
    except CycloptsError as error:
        _refuse(" ".join(str(error).split()))
    except MemoryError:
        _refuse("there is not enough memory for this: use a smaller batch, fewer samples or a smaller network")
    except RuntimeError as error:
        if "not enough memory" not in str(error) and "out of memory" not in str(error):
            raise
        _refuse("there is not enough memory for this: use a smaller batch, fewer samples or a smaller network")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away; Python would complain about it at exit
        sys.exit(141)
    sys.exit(code or 0)


def _refuse(message: str) -> NoReturn:
    print(f"xhat: {message}", file=sys.stderr)
    sys.exit(2)


def _split_lists(tokens: list[str]) -> list[str]:
    """``--hidden 400,200`` as ``--hidden 400 200``, and ``--hidden none`` as the empty list."""
    result: list[str] = []
    for token in tokens:
        name, equals, value = token.partition("=")
        if name in LISTS and equals:
            result += [name, *_sizes(name, value, result)]
        elif result and result[-1] in LISTS and not token.startswith("--"):
            result += _sizes(result[-1], token, result)
        else:
            result.append(token)
    return result


def _sizes(name: str, value: str, result: list[str]) -> list[str]:
    if value in ("none", ""):
        if result and result[-1] == name:
            result.pop()
        return [f"--empty-{name.removeprefix('--')}"]
    return [size for size in value.split(",") if size]


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
        app.config = (Toml(path, use_commands_as_keys=False),)
        return tokens[:index] + tokens[index + (1 if equals else 2) :]
    return tokens
