"""Plain values as YAML that any version of its readers takes alike: every text in quotes, lists in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def yaml_text(document: Mapping[str, Any]) -> str:
    """A document of mappings, lists, texts, numbers and booleans."""
    return "\n".join(_lines(document)) + "\n"


def _lines(value: Any) -> list[str]:
    if isinstance(value, Mapping) and value:
        return [line for key, entry in value.items() for line in _entry(_flow(key), entry)]
    if isinstance(value, list) and value and all(isinstance(entry, Mapping) and entry for entry in value):
        return [f"{'- ' if i == 0 else '  '}{line}" for entry in value for i, line in enumerate(_lines(entry))]
    return [_flow(value)]


def _entry(key: str, value: Any) -> list[str]:
    lines = _lines(value)
    if len(lines) == 1 and not (isinstance(value, Mapping) and value):
        return [f"{key}: {lines[0]}"]
    return [f"{key}:", *(f"  {line}" for line in lines)]


def _flow(value: Any) -> str:
    """On one line. Floats have a point, without which older readers take `1e-05` for a text."""
    if isinstance(value, float):
        mantissa, e, exponent = repr(value).partition("e")
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}{e}{exponent}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
