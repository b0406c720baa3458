"""For the reference pages: the docstrings' lists of fields as Markdown lists.

A docstring here lists fields as `name: text`, `name, other: text` or in two columns, continued by indented lines.
Markdown would make one paragraph of them.  Outside code `<`, `*`, `[` and `_` are not markup either.
"""

import re

import griffe

FIELD = re.compile(r"([a-z]\w*(?:, \w+)*)(\([^)]*\))?(?:: | {2,})(?=\S)")
SECTIONS = ("Args", "Arguments", "Attributes", "Raises", "Returns", "References")


def as_markdown(text: str) -> str:
    """The docstring with its fields as lists; sections (`Args:` and the like) and indented drawings stay."""
    lines: list[str] = []
    listed = in_section = False
    for line in text.splitlines():
        indented = line.startswith("  ")
        if line.rstrip(":") in SECTIONS and line.endswith(":"):
            in_section, listed = True, False
        elif in_section and line and not indented:
            in_section = False
        if in_section:
            lines.append(line)
            continue
        if not line.strip():
            listed = False
            lines.append(line)
            continue
        if not indented:
            found = FIELD.match(line)
            if found:
                if not listed and lines and lines[-1].strip():
                    lines.append("")
                names = ", ".join(f"`{name}`" for name in found[1].split(", "))
                line = f"- {names}{found[2] or ''}: {escaped(line[found.end() :])}"
                listed = True
            else:
                if listed:
                    lines.append("")
                listed = False
                line = escaped(line)
        elif listed:
            line = escaped(line)
        lines.append(line)
    return "\n".join(lines)


def escaped(line: str) -> str:
    """Text in which these four are what they are, but for code between backticks and for bold."""
    parts = re.split(r"(`[^`]*`|\*\*[^*]+\*\*)", line)
    for mark, shown in (("<", "&lt;"), ("*", "&#42;"), ("[", "&#91;"), ("_", "&#95;")):
        parts[::2] = [part.replace(mark, shown) for part in parts[::2]]
    return "".join(parts)


class Fields(griffe.Extension):
    """Changes the docstrings as griffe loads them; the sources stay."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring and not obj.is_alias:
            obj.docstring.value = as_markdown(obj.docstring.value)
