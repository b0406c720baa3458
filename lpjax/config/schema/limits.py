"""Fields of a configuration that have bounds."""

import operator
from collections.abc import Iterator
from dataclasses import field, fields, is_dataclass
from typing import Any

_BOUNDS = {
    "at_least": (operator.ge, "at least"),
    "above": (operator.gt, ">"),
    "at_most": (operator.le, "<="),
    "below": (operator.lt, "<"),
}


def bounded(default: Any, *, remedy: str = "", **bounds: int) -> Any:
    """A field whose values have bounds; where it may be unset, None is allowed.

    Args:
      default: Of the field.
      remedy: What to do about another value, for messages.
      **bounds: `at_least`, `above`, `at_most` or `below`.
    """
    return field(default=default, metadata={"bounds": bounds, "remedy": f"; {remedy}" if remedy else ""})


def at_least(minimum: int, default: Any) -> Any:
    """A field with a default that may not be smaller; where it may be unset, None is allowed."""
    return bounded(default, at_least=minimum)


def out_of_bounds(section: Any, prefix: str = "") -> Iterator[str]:
    """A message for each field of a section, and of those within it, that is not within its bounds."""
    for f in fields(section):
        value, name, bounds = getattr(section, f.name), f"{prefix}{f.name}", f.metadata.get("bounds", {})
        if is_dataclass(value):
            yield from out_of_bounds(value, f"{name}.")
        elif value is not None and not all(_BOUNDS[bound][0](value, limit) for bound, limit in bounds.items()):
            expected = " and ".join(f"{_BOUNDS[bound][1]} {limit}" for bound, limit in bounds.items())
            yield f"{name}={value}: expected {expected}{f.metadata['remedy']}"
