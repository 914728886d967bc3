"""Reads messages of Protocol Buffers as text, without knowing what they are."""

from __future__ import annotations

import json
import re
from typing import Any

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[A-Za-z_]\w*|-?[\d.]+(?:e[-+]?\d+)?|[{}\[\]:,]')


def read(text: str) -> dict[str, list[Any]]:
    """Every field with all its values: texts, numbers, words, messages."""
    assert TOKEN.sub("", text).strip() == "", "something is no token"
    message, rest = _message(TOKEN.findall(text))
    assert rest == []
    return message


def _message(tokens: list[str]) -> tuple[dict[str, list[Any]], list[str]]:
    found: dict[str, list[Any]] = {}
    while tokens and tokens[0] != "}":
        name, mark, *tokens = tokens
        values = found.setdefault(name, [])
        if mark == "{":
            message, tokens = _message(tokens)
            assert tokens.pop(0) == "}"
            values.append(message)
        elif tokens[0] == "[":
            end = tokens.index("]")
            assert mark == ":" and all(mark == "," for mark in tokens[2:end:2])
            values += [_value(token) for token in tokens[1:end:2]]
            tokens = tokens[end + 1 :]
        else:
            assert mark == ":"
            values.append(_value(tokens.pop(0)))
    return found, tokens


def _value(token: str) -> Any:
    return token if re.match(r"[A-Z]", token) else json.loads(token)
