"""What the commands share: consoles, and how an error becomes an exit code."""

import contextlib
import functools
import io
import os
import stat
import sys
import tempfile
import traceback
import unicodedata
from collections.abc import Callable
from typing import Any, TextIO

import rich.console

from lpjax.errors import Error, Interrupted
from lpjax.version import __version__

Main = Callable[[list[str]], int]
"""A command: from the command line to the exit code."""


def command(interrupted: str = "interrupted") -> Callable[[Main], Main]:
    """Decorate the main function of a command: an error becomes a line on stderr and the command's exit code.

    An error that was not foreseen is a fault: its traceback goes to a file that the line names, or to stderr with
    --debug, which every command takes.

    Args:
      interrupted: what Ctrl-C says.

    Returns:
      The decorator.  An `Error` has its own exit code; an OSError, such as a full disk, has 1, Ctrl-C 130, a fault 1.
      Where the reader of the output has gone, such as `head`, the command ends with 0.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def guarded(argv: list[str]) -> int:
            error: Exception
            _prepare_streams()
            rest = [arg for arg in argv if arg != "--debug"]
            try:
                return _flushed(main, rest)
            except KeyboardInterrupt:
                error = Interrupted(interrupted)
            except BrokenPipeError:
                _discard(sys.stdout)
                return 0
            except (Error, OSError) as raised:
                error = raised
            except Exception as raised:
                error = raised if len(rest) < len(argv) else Error(_fault_in_words(raised))
            if len(rest) < len(argv):
                traceback.print_exception(error)
            try:
                sys.stdout.flush()
            except OSError:  # it would fail again when the process ends
                _discard(sys.stdout)
            text = "\n".join(map(printable, f"lpjax: {error}".splitlines()))
            console(stderr=True, soft_wrap=True, style="red", highlight=False).print(text)
            return error.exit_code if isinstance(error, Error) else Error.exit_code

        return guarded

    return decorate


def _flushed(main: Main, argv: list[str]) -> int:
    """Run a command to its end, at which all that it printed is written."""
    try:
        code = main(argv)
    except SystemExit:  # of a parser of arguments
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


def _prepare_streams() -> None:
    """Make writing never fail: closed streams lead nowhere, and of a character that has no code its number is shown."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _fault_in_words(error: Exception) -> str:
    """Write the traceback of an error that was not foreseen to a file, and say where it is."""
    with tempfile.NamedTemporaryFile("w", prefix="lpjax-fault-", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
        print(f"\nlpjax {__version__}, Python {sys.version}\n{sys.argv}", file=file)
    return (
        f"{type(error).__name__}: {error}: this was not foreseen; please report it with {file.name}, which has the "
        "traceback (--debug shows it here)"
    )


def leave_terminal() -> None:
    """From now on what would be written to a terminal goes nowhere: it was closed, and writing would be an error."""
    for stream in (sys.stdout, sys.stderr):
        if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode):  # a closed one is no longer a terminal by isatty
            _discard(stream)


def _discard(stream: TextIO) -> None:
    """From now on what is written to the stream goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Console(rich.console.Console):
    """A console that falls silent when the reader of the output goes; the command goes on."""

    def on_broken_pipe(self) -> None:
        """Fall silent."""
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()


def console(**options: Any) -> Console:
    """A console that prints text as it is: what is rich's markup or an emoji's name may be part of a path."""
    return Console(**{"soft_wrap": not sys.stdout.isatty()} | options, markup=False, emoji=False)


JOINERS = "\u200c\u200d\u200e\u200f\u2060"
"""What joins the letters before and after it, keeps them apart, or says which way they run: part of many scripts."""


def printable(text: object) -> str:
    """The text without control characters: a file's name may hold what a terminal takes for commands."""
    return "".join(c if _is_shown(c) else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def _is_shown(character: str) -> bool:
    return character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs"
