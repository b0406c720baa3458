"""The configuration on the command line: names of configs, how values are written, paths, help."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lpjax import errors
from lpjax.config import command_line, describe, load
from lpjax.config.load import default_config

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())


@pytest.mark.parametrize(
    "arg, word, unset",
    [
        ("--config.data.train_examples=None", None, "data.train_examples"),
        ("-config.cuts=None", None, "cuts"),
        ("--config.model.width=None", None, "model.width"),
        ("--config.data.train_examples=1e2", "--config.data.train_examples=100", None),
        ("--config.num_steps=1.5E+3", "--config.num_steps=1500", None),
        ("--config.seed=15e-1", "--config.seed=15e-1", None),  # refused as it is
        ("--config.optimizer.learning_rate=1e2", "--config.optimizer.learning_rate=1e2", None),
        ("--config.data.dir=1e2", "--config.data.dir=1e2", None),
        ("--config.data.flip", "--config.data.flip", None),
        ("--noconfig.data.flip", "--noconfig.data.flip", None),
        ("--mode=eval", "--mode=eval", None),
    ],
)
def test_values(arg, word, unset):
    assert command_line._as_flags(["program", arg]) == (
        ["program", word] if word else ["program"],
        [unset] if unset else [],
    )


@pytest.mark.parametrize(
    "field, message",
    [
        ("data.flap", r"data.flap: no such field; did you mean data.flip\?"),
        ("label_smoothing", r"label_smoothing: no such field; did you mean data.label_smoothing\?"),
        ("nothing_like_it", "nothing_like_it: no such field; known here: method, num_stages"),
        ("data.crop.left", "data.crop.left: no such field; data.crop is not a section"),
    ],
)
def test_fields_that_do_not_exist(field, message):
    for value in ("1", "None", "1e2"):
        with pytest.raises(errors.BadInput, match=message):
            command_line._as_flags([f"--config.{field}={value}"])


def test_the_type_of_a_field():
    assert load.hint_of("data.crop") is int
    assert load.hint_of("data.train_examples") == int | None
    assert load.hint_of("model.function") is str
    assert load.hint_of("model.anything") is None


def test_modules_beside_a_config_can_be_imported(tmp_path):
    file = tmp_path / "my config.py"
    for argv in (["--config", str(file)], [f"--config={file}:argument"]):
        sys.path[:] = [folder for folder in sys.path if folder != str(tmp_path)]
        before = list(sys.path)
        words, _ = command_line._as_flags(argv)
        assert words == argv
        assert sys.path == [*before, str(tmp_path)], "behind all others, so that it hides none of them"


def test_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of me")
    assert command_line.local_path("~/run") == Path("/home/of me/run")
    assert command_line.local_path("a/~/b") == Path("a/~/b")
    assert command_line.config_path("~/a.py:x") == "/home/of me/a.py:x"
    for address in ("gs://bucket/run", "s3://bucket", "https://example.org/a.jpg"):
        with pytest.raises(errors.BadInput, match=f"{address}: expected a path of this machine"):
            command_line.local_path(address)
    with pytest.raises(errors.BadInput, match="write the whole path"):
        command_line.local_path("~nobody_of_that_name/run")


def test_a_name_is_a_config_that_comes_with_lpjax():
    assert Path(command_line.config_path("digits")).samefile(ROOT / "configs/digits.py")
    assert command_line.config_path("digits:argument") == f"{command_line.config_path('digits')}:argument"
    for path in ("configs/digits.py", "digits.py", "/a/b.py:argument"):
        assert command_line.config_path(path) == path
    with pytest.raises(errors.BadInput, match=r"--config=digit: .*did you mean digits?"):
        command_line.config_path("digit")
    with pytest.raises(errors.BadInput, match=r"expected a path, or one of .*, digits, .*imagenet_resnet50"):
        command_line.config_path("nothing_like_it")


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


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "def get_config():\n    return {}",
            "the config file fails .KeyError.*expected get_config.. that returns lpjax.default_",
        ),
        (
            "def get_config():\n    return 1 / 0",
            "the config file fails .ZeroDivisionError: division by zero.: expected",
        ),
        ("x = 1", "the config file fails .*get_config.*--debug shows where"),
        (None, "--config: .*own.py: no such file: expected a config file, or the name of one"),
        (
            "from lpjax.config.load import default_config as get_config",
            "model.dropout: expected an argument of the network that the config file sets; set it there",
        ),
    ],
)
def test_config_files_that_are_none(text, message, tmp_path):
    path = tmp_path / "own.py"
    if text:
        path.write_text(text)
    program = "import sys; from lpjax.config import command_line; command_line.parse(sys.argv)"
    done = subprocess.run(
        [sys.executable, "-c", program, f"--config={path}", "--config.seed=1", "--config.model.dropout=0.1"],
        capture_output=True,
        text=True,
    )
    assert re.search(f"BadInput: {message}", done.stderr), done.stderr


def test_one_config_at_a_time():
    with pytest.raises(errors.BadInput, match=r"--config=a\.py --config=b\.py: expected one config"):
        command_line._as_flags(["program", "--config=a.py", "--config=b.py"])
