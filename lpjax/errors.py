"""Errors of lpjax, and the exit code that each ends a command with."""

import contextlib
from collections.abc import Iterator


class Error(Exception):
    """An error that a command ends with: its message is for the user."""

    exit_code = 1


class BadInput(Error, ValueError):
    """Bad configuration, data, arguments or workdir."""

    exit_code = 2


class CorruptDataError(ValueError):
    """More image files could not be decoded than `data.max_corrupt`."""


@contextlib.contextmanager
def extra_packages(what: str = "reading this data set", extra: str = "data") -> Iterator[None]:
    """Around imports of what not every run needs: raises ValueError, saying how to install it."""
    try:
        yield
    except ImportError as error:
        raise ValueError(f"{error}: {what} needs more packages; pip install 'lpjax[{extra}]'") from error
