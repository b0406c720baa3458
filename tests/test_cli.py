"""Errors become exit codes and a line on stderr, in one place for all commands."""

import errno
import os
import shlex
import subprocess
import sys
import tempfile

import pytest

from lpjax import cli, errors
from lpjax.parallel import platform
from lpjax.training.checkpoint import CheckpointError
from lpjax.training.log import NonFiniteError
from lpjax.training.stop import StoppedError
from lpjax.training.workdir import WorkdirError
from lpjax.version import __version__


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


def test_a_fault_of_the_program(capsys, tmp_path, monkeypatch):
    """One line, which names a file with the traceback; with --debug the traceback is on stderr."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    @cli.command()
    def main(argv):
        assert argv == ["one"]
        raise KeyError("a fault")

    assert main(["one"]) == 1
    line = capsys.readouterr().err
    (log,) = tmp_path.iterdir()
    assert line.startswith("lpjax: KeyError: 'a fault': ")
    assert str(log) in line
    assert "Traceback" not in line
    text = log.read_text()
    assert text.startswith("Traceback")
    assert "KeyError: 'a fault'" in text
    assert __version__ in text
    assert main(["one", "--debug"]) == 1
    assert capsys.readouterr().err.startswith("Traceback")
    assert list(tmp_path.iterdir()) == [log]


READER_GONE = """
import sys
from lpjax import cli

@cli.command()
def main(argv):
    for i in range(100_000):
        {print}(i)
    sys.stderr.write("went on")
    return 3

sys.exit(main([]))
"""


@pytest.mark.parametrize("function, code, err", [("print", 0, ""), ("cli.console().print", 3, "went on")])
def test_the_reader_of_the_output_ends(function, code, err):
    """What prints its results ends quietly; what prints on a console, as a run does, goes on."""
    program = READER_GONE.replace("{print}", function)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == err
    assert process.wait() == code
    process.stderr.close()


def test_output_that_cannot_be_written():
    """All of it is written before the command ends, that of the parser of arguments too."""
    full = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as output:
        command = [sys.executable, "-m", "lpjax.predict", "--help"]
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, env=full)
    assert (done.returncode, done.stderr) == (1, "lpjax: [Errno 28] No space left on device\n")


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


def test_a_full_disk_is_not_the_users_input():
    with pytest.raises(OSError, match="full") as raised, errors.bad_input():
        raise OSError(errno.ENOSPC, "full")
    assert not isinstance(raised.value, errors.Error)


def test_a_flag_that_xla_does_not_know_is_named(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false --xla_gone=1")
    with pytest.raises(errors.BadInput, match=r"XLA_FLAGS=.*: this version of XLA does not know --xla_gone=1; take it"):
        platform.provide_devices(1)


@pytest.mark.parametrize(
    "redirect, expected", [(">&-", ""), ("", "lpjax: \\xe9\\U0001f600"), ("<&-", "lpjax: \\xe9\\U0001f600")]
)
def test_streams_that_are_closed_or_have_no_code_for_a_character(redirect, expected):
    said = "print('lpjax: \\xe9\\U0001f600') or 0"
    program = f"from lpjax import cli; print(cli.command()(lambda argv: {said})([]))"
    done = subprocess.run(
        f"{sys.executable} -c {shlex.quote(program)} {redirect}",
        shell=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (f"{expected}\n0\n" if expected else "")
