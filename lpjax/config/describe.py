"""Say in words what a configuration has: each field, its value, its type and what it does.

The words are those of the docstrings: "Attributes:" of the dataclasses in `lpjax.config.schema`, and "Args:" of the
function that makes the network.
"""

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from lpjax.config import named
from lpjax.config.load import from_config_dict
from lpjax.config.schema import ModelConfig


def fields_in_words(values: dict[str, Any], width: int = 100) -> str:
    """Describe the fields of a configuration.

    Args:
      values: Fields, and sections as mappings, such as `get_config().to_dict()`.
      width: Of the text, in characters.

    Returns:
      For each field a line `--config.field=value  (type)` and below it what the field does.

    Raises:
      BadInput: A field does not exist or has a value of another type.
    """
    out = []
    for name, value, hint, words in _fields(from_config_dict(values), ""):
        shown = "unset" if value is None else repr(value)
        out += [f"  --config.{name}={shown}  ({hint})", textwrap.fill(words, width, **_INDENT)]
    return "\n".join(out)


_INDENT: dict[str, Any] = {"initial_indent": " " * 6, "subsequent_indent": " " * 6}


def _fields(section: Any, prefix: str) -> Iterator[tuple[str, Any, str, str]]:
    """Name, value, type and description of each field of a section, those of its sections last."""
    words, hints = entries(type(section).__doc__, "Attributes"), typing.get_type_hints(type(section))
    sections = []
    for name in hints:
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            sections.append((value, f"{prefix}{name}."))
        elif not isinstance(section, ModelConfig) or name == "function":
            yield f"{prefix}{name}", value, _type_in_words(hints[name]), words[name]
    if isinstance(section, ModelConfig):
        words = entries(named.load(section.function, "model.function").__doc__, "Args")
        for name, value in section.arguments.items():
            yield f"{prefix}{name}", value, type(value).__name__, words.get(name, f"An argument of {section.function}.")
    for value, name in sections:
        yield from _fields(value, name)


def _type_in_words(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def entries(doc: str | None, heading: str) -> dict[str, str]:
    """Read a section of a docstring in Google form.

    Args:
      doc: The docstring.
      heading: Of the section: "Args", "Attributes".

    Returns:
      What the section says of each name, in one line; nothing where there is no such section.
    """
    section = re.search(rf"^{heading}:\n((?:  .*\n)*)", inspect.cleandoc(doc or "") + "\n", re.MULTILINE)
    found = re.finditer(r"^  (\w+): (.*(?:\n    .*)*)", section[1] if section else "", re.MULTILINE)
    return {entry[1]: " ".join(entry[2].split()) for entry in found}
