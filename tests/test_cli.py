"""Errors become exit codes and a line on stderr, in one place for all commands."""

import itertools
from pathlib import Path

import pytest

from lpjax import cli, errors
from lpjax.config import describe
from lpjax.config.load import default_config
from lpjax.training.checkpoint import CheckpointError
from lpjax.training.log import NonFiniteError
from lpjax.training.loop import StoppedError
from lpjax.training.workdir import WorkdirError

ROOT = Path(__file__).parent.parent


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


def test_a_name_is_a_config_that_comes_with_lpjax():
    assert Path(cli.config_path("digits")).samefile(ROOT / "configs/digits.py")
    assert cli.config_path("digits:argument") == f"{cli.config_path('digits')}:argument"
    for path in ("configs/digits.py", "digits.py", "./digits", "/a/b.py:argument"):
        assert cli.config_path(path) == path
    with pytest.raises(errors.BadInput, match=r"--config=digit: .*did you mean digits?"):
        cli.config_path("digit")
    with pytest.raises(errors.BadInput, match=r"expected a path, or one of .*, digits, .*imagenet_resnet50"):
        cli.config_path("nothing_like_it")


def test_every_field_is_described():
    """By the docstring of its section, or of the network's function; --help shows nothing without words."""
    fields = default_config().to_dict() | {"model": {"function": "resnet", "depth": 8, "width": 4}}
    lines = describe.fields_in_words(fields).splitlines()
    names = [line.partition("=")[0].strip() for line in lines if line.startswith("  --config.")]
    assert len(names) == len(set(names)) > 80
    assert {"--config.method", "--config.model.width", "--config.aux_optimizer.learning_rate"} <= set(names)
    assert not [line for line in lines if not line.strip()]
    assert all(after.startswith("      ") for line, after in itertools.pairwise(lines) if line.startswith("  --"))
    own = {"model": {"function": "lpjax.configs.digits_mlp:residual_mlp", "blocks": 3, "width": 8}}
    assert "--config.model.blocks=3  (int)\n      An argument of lpjax.configs.digits_mlp:residual_mlp." in (
        describe.fields_in_words(own)
    )


def test_entries_of_a_docstring():
    doc = """Do it.

    Args:
      first: One
        and a half.
      second: Two: both.

    Returns:
      third: Not an argument.
    """
    assert describe.entries(doc, "Args") == {"first": "One and a half.", "second": "Two: both."}
    assert describe.entries(doc, "Attributes") == {}
    assert describe.entries(None, "Args") == {}
