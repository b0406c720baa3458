"""Errors become exit codes and a line on stderr, in one place for all commands."""

import pytest

from lpjax import cli, errors
from lpjax.training.checkpoint import CheckpointError
from lpjax.training.log import NonFiniteError
from lpjax.training.loop import StoppedError
from lpjax.training.workdir import WorkdirError


def ended(capsys, error, interrupted="interrupted"):
    """Exit code and stderr of a command that raises the error."""

    @cli.command(interrupted)
    def main(argv):
        raise error

    code = main([])
    out, err = capsys.readouterr()
    assert out == ""
    return code, err


@pytest.mark.parametrize(
    "error, code",
    [
        (errors.Error("a message"), 1),
        (CheckpointError("a message"), 1),
        (OSError("a message"), 1),
        (errors.BadInput("a message"), 2),
        (errors.CorruptDataError("a message"), 2),
        (WorkdirError("a message"), 2),
        (NonFiniteError("a message"), 3),
        (errors.Interrupted("a message"), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_codes(error, code, capsys):
    assert ended(capsys, error) == (code, "lpjax: a message\n")


@pytest.mark.parametrize("signal, code", [(2, 130), (15, 75)], ids=["SIGINT", "SIGTERM"])
def test_stopped_by_a_signal(signal, code, capsys):
    found, line = ended(capsys, StoppedError(signal))
    assert found == code
    assert line.endswith(": saved; the same command goes on from there\n")


def test_ctrl_c(capsys):
    assert ended(capsys, KeyboardInterrupt()) == (130, "lpjax: interrupted\n")
    said = "interrupted; nothing was written"
    assert ended(capsys, KeyboardInterrupt(), said) == (130, f"lpjax: {said}\n")


def test_a_fault_of_the_program_is_a_traceback(capsys):
    for fault in (ValueError("a fault"), KeyError("a fault"), AssertionError()):
        with pytest.raises(type(fault)):
            ended(capsys, fault)


def test_messages_are_printed_as_they_are(capsys):
    """Not as markup, whole in a line; but a terminal must not take them for commands."""
    path = f"/data/[bold]run[/bold]/:smile:/{'long' * 50}"
    assert ended(capsys, errors.BadInput(path)) == (2, f"lpjax: {path}\n")
    assert ended(capsys, errors.BadInput("a\x1b[2Jb\nc"))[1] == "lpjax: a\ufffd[2Jb\nc\n"


@pytest.mark.parametrize("error", [ValueError("a message"), FileNotFoundError(2, "a message")])
def test_what_libraries_raise_about_the_users_input(error):
    with pytest.raises(errors.BadInput, match="a message") as raised, errors.bad_input():
        raise error
    assert str(raised.value) == str(error)
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [CheckpointError("a message"), errors.CorruptDataError("a message"), KeyError()])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as raised, errors.bad_input():
        raise error
    assert raised.value is error
