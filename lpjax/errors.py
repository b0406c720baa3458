"""Errors that end a command with a message instead of a traceback, each with the exit code of the command."""

import contextlib
import errno
from collections.abc import Iterator


class Error(Exception):
    """Ends a command with its message.

    Attributes:
      exit_code: of the command.
    """

    exit_code: int = 1


class BadInput(Error, ValueError):  # noqa: N818
    """Bad configuration, data, arguments or workdir; says what was found, what was expected and what to do."""

    exit_code = 2


class CorruptDataError(BadInput):
    """More image files could not be decoded than `data.max_corrupt`."""


class Interrupted(Error):  # noqa: N818
    """Stopped by Ctrl-C."""

    exit_code = 130


def require(ok: object, message: str) -> None:
    """Raises BadInput with the message unless ok."""
    if not ok:
        raise BadInput(message)


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Around work on what the user gave: ValueErrors and OSErrors of the libraries that do it become BadInput.

    But not a full disk, which is no fault of the input.

    Raises:
      BadInput: for any of them.
    """
    try:
        yield
    except (Error, BrokenPipeError):  # the reader of the output has gone, which is no fault of the input
        raise
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise BadInput(f"{error}") from error


@contextlib.contextmanager
def extra_packages(what: str = "reading this data set", extra: str = "data") -> Iterator[None]:
    """Around imports of packages that not every run needs.

    Args:
      what: needs them.
      extra: of lpjax's installation that brings them.

    Raises:
      BadInput: where one is missing, saying how to install it.
    """
    try:
        yield
    except ImportError as error:
        raise BadInput(f"{error}: {what} needs more packages; pip install 'lpjax[{extra}]'") from error
