"""What the commands share: the configuration's flags and help, consoles, and how an error becomes an exit code."""

import ast
import difflib
import functools
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from lpjax.config import describe
from lpjax.errors import BadInput, Error, Interrupted

Main = Callable[[list[str]], int]
"""A command: from the command line to the exit code."""

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A config file (Python: it is executed), or the name of one that comes with lpjax, such as digits."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for metrics and results; runs/<config's name> if not given.")


CONFIGS = Path(__file__).parent / "configs"
"""Folder of the config files that come with lpjax."""


def parse(argv: list[str]) -> tuple[dict, Path]:
    """Read the configuration's fields and the workdir from the command line, or print its help and exit.

    Args:
      argv: the command line, the program first.

    Returns:
      The fields, as the config file and --config.field=value set them, and the workdir.

    Raises:
      BadInput: for anything wrong with them.
      SystemExit: after the text that --help asks for.
    """
    given = [arg for arg in argv if arg.lstrip("-") not in ("help", "helpfull", "helpshort", "h", "?")]
    try:
        rest = flags.FLAGS(_with_paths(given))
        values = _CONFIG.value
        if values is None and given == argv:
            raise BadInput("--config is missing: expected a config file or a name, e.g. --config=digits; see --help")
        fields = {} if values is None else values.to_dict()
    except (flags.Error, AttributeError, KeyError, TypeError, OSError, SyntaxError, ImportError) as error:
        raise BadInput(f"{error}".strip('"')) from error
    if given != argv:
        console().print(help_text(fields))
        raise SystemExit(0)
    if rest[1:]:
        raise BadInput(f"unexpected argument {rest[1]!r}: fields are set as --config.field=value")
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    return fields, Path(_WORKDIR.value or Path("runs") / name)


def _with_paths(argv: list[str]) -> list[str]:
    """The command line, with the path of a config that comes with lpjax where its name was."""
    out = list(argv)
    for i, arg in enumerate(argv):
        if match := re.fullmatch(r"(--?config=)(.*)", arg):
            out[i] = match[1] + config_path(match[2])
        elif re.fullmatch("--?config", arg) and i + 1 < len(argv):
            out[i + 1] = config_path(argv[i + 1])
    return out


def config_path(text: str) -> str:
    """Find a config file.

    Args:
      text: The path of one, or the name of one that comes with lpjax; either may go on with ":", which passes what
        follows to its `get_config`.

    Returns:
      Its path, with what followed.

    Raises:
      BadInput: There is none of that name.
    """
    name, colon, argument = text.partition(":")
    if not name.isidentifier():
        return text
    path = CONFIGS / f"{name}.py"
    if name not in config_names():
        close = difflib.get_close_matches(name, config_names(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected a path, or one of {', '.join(config_names())}"
        raise BadInput(f"--config={text}: no config of that name comes with lpjax; {hint}")
    return f"{path}{colon}{argument}"


def config_names() -> list[str]:
    """Give the names of the configs that come with lpjax, sorted."""
    return sorted(path.stem for path in CONFIGS.glob("[!_]*.py"))


def help_text(fields: dict) -> str:
    """Describe the running command.

    Args:
      fields: Of the configuration that was given; empty for none.

    Returns:
      What the command is and its flags, and the configs that come with lpjax; with a configuration its fields.
    """
    if fields:
        width = min(shutil.get_terminal_size((100, 1)).columns, 100)
        return f"Fields of the configuration, with their values:\n\n{describe.fields_in_words(fields, width)}"
    program = sys.modules["__main__"].__doc__ or ""
    _, _, options = flags.FLAGS.main_module_help().strip().partition("\n")  # without the module's path
    _, _, shared = flags.FLAGS.module_help("lpjax.cli").strip().partition("\n")
    configs = "\n".join(f"  {name}: {_title(CONFIGS / f'{name}.py')}" for name in config_names())
    return (
        f"{program}\nFlags:\n{shared}\n{options}\n\n"
        f"Configs that come with lpjax, for --config=NAME; for the fields of one, --config=NAME --help:\n{configs}"
    )


def _title(path: Path) -> str:
    """The first paragraph of a module's docstring, in one line."""
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(doc.partition("\n\n")[0].split())


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
