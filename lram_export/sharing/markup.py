"""Texts of others in Markdown and YAML: whatever is in them is shown, and none of it is markup.

A manifest is written by whoever exported; its names must not become links, images, HTML or fields of a card.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MOST_SHOWN = 200
"""Characters of a text that a card shows."""
_PUNCTUATION = re.compile(r"([!#$&*<>@\[\\\]^_`{|}~]|:(?=\S)|(?<=www)\.)")
"""What means something in a line of Markdown or its extensions, HTML, emoji and addresses of the web among them."""
_PLAIN = re.compile(r"[a-z][a-z_-]*")


def text(value: object) -> str:
    """Any value as one line of Markdown that shows its characters; a long one cut off."""
    shown = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    cut = f"{shown[: MOST_SHOWN - 3]}..." if len(shown) > MOST_SHOWN else shown
    return _PUNCTUATION.sub(r"\\\1", cut)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a table in Markdown, its cells escaped."""
    lines = [columns, ["---"] * len(columns), *([text(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def yaml(fields: Mapping[str, Any]) -> str:
    """Plain values as YAML in block style, which versions 1.1 and 1.2 read alike; keys are plain words of ours."""
    return "".join(f"{line}\n" for line in _mapping(fields))


def _mapping(fields: Mapping[str, Any]) -> Iterator[str]:
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield f"{key}:"
            yield from (f"  {line}" for line in _mapping(value))
        elif isinstance(value, list | tuple):
            yield f"{key}:"
            for item in value:
                lines = list(_mapping(item)) if isinstance(item, Mapping) else [_scalar(item)]
                yield from (f"{'  ' if i else '- '}{line}" for i, line in enumerate(lines))
        else:
            yield f"{key}: {_scalar(value)}"


def _scalar(value: float | str) -> str:
    """A number, or a text: plain if it can be nothing else, or in quotes."""
    if isinstance(value, int | float):
        mantissa, e, exponent = repr(value).partition("e")
        return f"{mantissa}.0e{exponent}" if e and "." not in mantissa else repr(value)  # 1e-05 is a text in YAML 1.1
    if _PLAIN.fullmatch(value) and value not in ("true", "false", "null", "yes", "no", "on", "off", "y", "n"):
        return value
    return f'"{"".join(map(_quoted, value))}"'


def _quoted(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if "\ud800" <= character <= "\udfff":  # half of a pair, which is no character
        return "\ufffd"
    return character if character.isprintable() else f"\\U{ord(character):08x}"
