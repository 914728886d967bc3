"""Messages of Protocol Buffers as text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


class Word(str):
    """A value of an enumeration: written without quotes."""


Message = Mapping[str, Any]
"""Field -> a text, number, boolean, :class:`Word`, message, or a list of these."""


def message_text(message: Message) -> str:
    """A message, a field per line; lists of numbers in one."""
    return "\n".join(_lines(message)) + "\n"


def _lines(message: Message) -> Iterator[str]:
    for key, value in message.items():
        if isinstance(value, list) and not any(isinstance(entry, Mapping) for entry in value):
            yield f"{key}: [{', '.join(map(_scalar, value))}]"
            continue
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, Mapping):
                yield f"{key} {{"
                yield from (f"  {line}" for line in _lines(entry))
                yield "}"
            else:
                yield f"{key}: {_scalar(entry)}"


def _scalar(value: Any) -> str:
    if isinstance(value, Word):
        return str(value)
    return json.dumps(value)
