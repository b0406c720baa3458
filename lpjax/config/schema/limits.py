"""Fields of a configuration that have a least value."""

from dataclasses import field, fields, is_dataclass
from typing import Any


def at_least(minimum: int, default: Any) -> Any:
    """A field with a default that may not be smaller; where it may be unset, None is allowed."""
    return field(default=default, metadata={"at_least": minimum})


def too_small(section: Any, prefix: str = "") -> list[tuple[str, Any, int]]:
    """Name, value and least value of each field of a section, and of those within it, that is too small."""
    found = []
    for f in fields(section):
        value, name, minimum = getattr(section, f.name), f"{prefix}{f.name}", f.metadata.get("at_least")
        if is_dataclass(value):
            found += too_small(value, f"{name}.")
        elif minimum is not None and value is not None and value < minimum:
            found.append((name, value, minimum))
    return found
