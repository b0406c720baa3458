"""What the commands share: the configuration's flags, consoles, and how an error becomes an exit code."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from lpjax.errors import BadInput, Error, Interrupted

Main = Callable[[list[str]], int]
"""A command: from the command line to the exit code."""

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file (Python: it is executed), e.g. configs/digits.py."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for metrics and results; runs/<config's name> if not given.")


def parse(argv: list[str]) -> tuple[dict, Path]:
    """Read the configuration's fields and the workdir from the command line.

    Args:
      argv: the command line, the program first.

    Returns:
      The fields, as the config file and --config.field=value set them, and the workdir.

    Raises:
      BadInput: for anything wrong with them.
    """
    try:
        rest = flags.FLAGS(argv)
        values = _CONFIG.value
        if values is None:
            raise BadInput("--config is missing: expected a config file, e.g. --config=configs/digits.py")
        name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
        fields = values.to_dict()
    except (flags.Error, AttributeError, KeyError, TypeError, OSError, SyntaxError, ImportError) as error:
        raise BadInput(f"{error}".strip('"')) from error
    if rest[1:]:
        raise BadInput(f"unexpected argument {rest[1]!r}: fields are set as --config.field=value")
    return fields, Path(_WORKDIR.value or Path("runs") / name)


def command(interrupted: str = "interrupted") -> Callable[[Main], Main]:
    """Decorate the main function of a command: an error becomes a line on stderr and the command's exit code.

    Args:
      interrupted: what Ctrl-C says.

    Returns:
      The decorator.  An `Error` has its own exit code; an OSError, such as a full disk, has 1, Ctrl-C 130.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def guarded(argv: list[str]) -> int:
            error: Exception
            try:
                return main(argv)
            except KeyboardInterrupt:
                error = Interrupted(interrupted)
            except (Error, OSError) as raised:
                error = raised
            text = "\n".join(map(printable, f"lpjax: {error}".splitlines()))
            console(stderr=True, soft_wrap=True, style="red", highlight=False).print(text)
            return error.exit_code if isinstance(error, Error) else Error.exit_code

        return guarded

    return decorate


def console(**options: Any) -> Console:
    """A console that prints text as it is: what is rich's markup or an emoji's name may be part of a path."""
    return Console(**{"soft_wrap": not sys.stdout.isatty()} | options, markup=False, emoji=False)


def printable(text: object) -> str:
    """The text without control characters: a file's name may hold what a terminal takes for commands."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
