"""JSON that others wrote, read so that nothing in it can be taken two ways or take the machine down. Free of torch.

Every error is a ValueError of one line that names the field, what was expected and what came.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lram_export.spec.bounds import MOST_FLOAT32, MOST_JSON_BYTES, MOST_JSON_DEPTH, MOST_TEXT

_INTEGER_BOUND = 2**63
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: not JSON; a key twice in one object; NaN, infinity or a number that no 64-bit type holds; nested
            too deeply; or too long.
    """
    if len(text) > MOST_JSON_BYTES:
        raise ValueError(f"expected at most {MOST_JSON_BYTES} characters, got {len(text)}")
    if _depth(text) > MOST_JSON_DEPTH:
        raise ValueError(f"nested more than {MOST_JSON_DEPTH} levels deep")
    try:
        text.encode()
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse,
            parse_int=_integer,
            parse_float=_float,
        )
    except _Refused as error:
        raise ValueError(str(error)) from None
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None


def read_json(path: Path) -> Any:
    """What a JSON file in UTF-8 says; raises OSError, or ValueError as :func:`parse_json`."""
    return parse_json(read_text(path))


def read_text(path: Path) -> str:
    """A text file in UTF-8, of which no more is read than :func:`parse_json` takes; raises OSError or ValueError."""
    with path.open("rb") as file:
        content = file.read(MOST_JSON_BYTES + 1)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from None


def shown(value: object) -> str:
    """A value as a message shows it: on one line, and not all of a long one."""
    if isinstance(value, list | dict) and len(value) > 8:
        return f"{type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True)
class Fields:
    """The fields of one JSON object, to be taken one by one; ``where`` is its place, for messages."""

    data: dict[str, Any]
    where: str = ""

    @staticmethod
    def of(value: object, where: str) -> Fields:
        """The fields of a value that has to be an object."""
        if not isinstance(value, dict):
            raise ValueError(f"{where or 'document'}: expected an object, got {shown(value)}")
        return Fields(value, where)

    def path(self, name: str) -> str:
        """The place of a field."""
        return f"{self.where}.{name}" if self.where else name

    def only(self, *names: str) -> None:
        """Refuse fields that are not among ``names``, and absence of any of those."""
        odd = sorted(set(self.data) ^ set(names))
        if odd:
            raise ValueError(f"{self.path(odd[0])}: {'unknown field' if odd[0] in self.data else 'missing'}")

    def get(self, name: str) -> Any:
        """The value of a field, whatever it is."""
        if name not in self.data:
            raise ValueError(f"{self.path(name)}: missing")
        return self.data[name]

    def fields(self, name: str) -> Fields:
        """An object."""
        return Fields.of(self.get(name), self.path(name))

    def items(self, name: str, most: int) -> list[Any]:
        """A list of at most so many elements."""
        value = self.get(name)
        if not isinstance(value, list):
            raise ValueError(f"{self.path(name)}: expected a list, got {shown(value)}")
        if len(value) > most:
            raise ValueError(f"{self.path(name)}: expected at most {most}, got {len(value)}")
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``."""
        return whole_number(self.get(name), self.path(name), low, high)

    def number(self, name: str, low: float = -MOST_FLOAT32, high: float = MOST_FLOAT32) -> float:
        """A number from ``low`` to ``high``; by default any that float32 holds."""
        value = self.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{self.path(name)}: expected a number from {low:g} to {high:g}, got {shown(value)}")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.get(name)
        if not isinstance(value, bool):
            raise ValueError(f"{self.path(name)}: expected true or false, got {shown(value)}")
        return value

    def text(self, name: str, choices: Sequence[str] | None = None, pattern: str | None = None) -> str:
        """A printable text; one of ``choices``, if given; all of it matching ``pattern``, if given."""
        value = self.get(name)
        if choices is not None and value not in choices:
            raise ValueError(f"{self.path(name)}: expected one of {', '.join(choices)}, got {shown(value)}")
        check_text(value, self.path(name))
        if pattern is not None and not re.fullmatch(pattern, value):
            raise ValueError(f"{self.path(name)}: expected {pattern}, got {shown(value)}")
        return str(value)

    def texts(self, name: str) -> dict[str, str]:
        """An object whose values are printable texts."""
        found = self.fields(name)
        for key in found.data:
            check_text(key, found.where)
            found.text(key)
        return dict(found.data)


def whole_number(value: object, where: str, low: int, high: int) -> int:
    """A value that has to be a whole number from ``low`` to ``high``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}: expected an integer, got {shown(value)}")
    if not low <= value <= high:
        expected = f"{low}" if low == high else f"{low} to {high}"
        raise ValueError(f"{where}: expected {expected}, got {shown(value)}")
    return value


def check_text(value: object, where: str) -> None:
    """Raise ValueError unless a value is a text that can be printed on one line."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected a text, got {shown(value)}")
    if len(value) > MOST_TEXT or not value.isprintable():
        raise ValueError(f"{where}: expected at most {MOST_TEXT} printable characters, got {shown(value)}")


class _Refused(Exception):
    """JSON, but not for us."""


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r"[\[{\]}]", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"{shown(twice)}: appears twice in one object")
    try:
        "".join(found).encode()
        "".join(value for value in found.values() if isinstance(value, str)).encode()
    except UnicodeEncodeError:
        raise _Refused("a text with half of a surrogate pair") from None
    return found


def _refuse(constant: str) -> Any:
    raise _Refused(f"{constant} is no number of JSON")


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -_INTEGER_BOUND <= int(digits) < _INTEGER_BOUND:
        raise _Refused(f"expected numbers of at most 64 bits, got {shown(digits)}")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _Refused(f"expected finite numbers, got {shown(digits)}")
    return value
