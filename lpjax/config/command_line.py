"""Read the configuration and the workdir from a command line, or print its help."""

import ast
import difflib
import itertools
import re
import shutil
import sys
import typing
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from lpjax.config import describe, load
from lpjax.errors import BadInput

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A config file (Python: it is executed), or the name of one that comes with lpjax, such as digits."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for metrics and results; runs/<config's name> if not given.")

CONFIGS = Path(__file__).parent.parent / "configs"
"""Folder of the config files that come with lpjax."""


def parse(argv: list[str]) -> tuple[dict, Path]:
    """Read the configuration's fields and the workdir from the command line, or print its help and exit.

    Modules beside the config file can be imported from now on, as they can by a script.

    Args:
      argv: The command line, the program first.  A value None unsets a field; a whole number may be written 1e5.

    Returns:
      The fields, as the config file and --config.field=value set them, and the workdir.

    Raises:
      BadInput: For anything wrong with them.
      SystemExit: After the text that --help asks for.
    """
    given = [arg for arg in argv if arg.lstrip("-") not in ("help", "helpfull", "helpshort", "h", "?")]
    wants_help = len(given) < len(argv)
    try:
        words, unset = _as_flags(given)
        _check_there(words)
        rest = flags.FLAGS(words)
        values = _CONFIG.value
        if values is None and not wants_help:
            raise BadInput("--config is missing: expected a config file or a name, e.g. --config=digits; see --help")
        fields = {} if values is None else values.to_dict()
    except (BadInput, flags.Error) as error:
        raise BadInput(f"{error}".strip('"')) from error
    except Exception as error:  # of the config file, which is a program
        missing = str(error).strip("\"'")
        if any(re.fullmatch(rf"--?config\.model\.{re.escape(missing)}(=.*)?", arg) for arg in given):
            raise BadInput(
                f"model.{missing}: expected an argument of the network that the config file sets; set it there, too"
            ) from error
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        expected = (
            "expected get_config() that returns lpjax.default_config() with fields set; --debug shows where it fails"
        )
        raise BadInput(f"the config file fails ({what}): {expected}") from error
    for name in unset:
        *sections, field = name.split(".")
        section = fields
        for part in sections:
            section = section[part]
        section[field] = None
    if wants_help:
        print(help_text(fields))
        raise SystemExit(0)
    if rest[1:]:
        raise BadInput(f"unexpected argument {rest[1]!r}: fields are set as --config.field=value")
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    return fields, local_path(_WORKDIR.value or f"runs/{name}")


def _check_there(words: list[str]) -> None:
    """Refuse a config file that is not there."""
    for option, word in itertools.pairwise(["", *words]):
        path = re.sub("^--?config=", "", word) if option not in ("-config", "--config") else word
        if path != word or option in ("-config", "--config"):
            name, colon, _ = path.partition(":")
            more = "; what stands behind a colon goes to its get_config" if colon else ""
            if not Path(name).is_file():
                raise BadInput(f"--config: {name}: no such file: expected a config file, or the name of one{more}")


def _as_flags(argv: list[str]) -> tuple[list[str], list[str]]:
    """The command line as the flags' library takes it, and the fields that it unsets, which that cannot."""
    words, unset = [], []
    named = [arg for arg in argv if re.fullmatch(r"--?config(=.*)?", arg)]
    if len(named) > 1:
        raise BadInput(f"{' '.join(named)}: expected one config; leave one out")
    for before, arg in zip(["", *argv], argv, strict=False):
        option, equals, value = arg.partition("=")
        field = re.fullmatch(r"--?config\.(.+)", option)
        hint = load.hint_of(field[1]) if field else None
        if field and value == "None":
            unset.append(field[1])
        elif int in (hint, *typing.get_args(hint)) and re.fullmatch(r"\d+(\.\d+)?[eE]\+?\d+", value):
            words.append(f"{option}={int(float(value))}" if float(value).is_integer() else arg)
        elif option in ("-config", "--config") and equals:
            words.append(f"{option}={_opened(value)}")
        else:
            words.append(_opened(arg) if before in ("-config", "--config") else arg)
    return words, unset


def _opened(text: str) -> str:
    """The path of a config file, whose folder becomes one that modules are imported from."""
    path = config_path(text)
    sys.path.append(str(Path(path.partition(":")[0]).resolve().parent))
    return path


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
        return f"{local_path(name)}{colon}{argument}"
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
    _, _, shared = flags.FLAGS.module_help("lpjax.config.command_line").strip().partition("\n")
    configs = "\n".join(f"  {name}: {_title(CONFIGS / f'{name}.py')}" for name in config_names())
    return (
        f"{program}\nFlags:\n{shared}\n{options}\n\n"
        f"Configs that come with lpjax, for --config=NAME; for the fields of one, --config=NAME --help:\n{configs}"
    )


def _title(path: Path) -> str:
    """The first paragraph of a module's docstring, in one line."""
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(doc.partition("\n\n")[0].split())


def local_path(text: str) -> Path:
    """Read a path from a command line.

    Args:
      text: The path; "~" and "~user" at its begin are home folders.

    Returns:
      The path, which need not exist.

    Raises:
      BadInput: It is an address, such as gs://bucket/run, or the home folder of nobody.
    """
    if re.match(r"\w+://", text):
        raise BadInput(f"{text}: expected a path of this machine; mount what the address names, or copy it there")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise BadInput(f"{text}: {error}; write the whole path") from error
