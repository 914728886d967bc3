"""Events of a flight: messages of ROS 2's type for logs, which its tools and Foxglove show. Free of torch."""

from __future__ import annotations

import struct
from dataclasses import dataclass

EVENT_TOPIC = "/lram/event"
LOG_TYPE = "rcl_interfaces/msg/Log"
LOG_DEFINITION = f"""\
byte DEBUG=10
byte INFO=20
byte WARN=30
byte ERROR=40
byte FATAL=50
builtin_interfaces/Time stamp
uint8 level
string name
string msg
string file
string function
uint32 line
{"=" * 80}
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""

EPISODE, RESUMED, DONE, SWAPPED, FAULT, RECOVERED, NO_EVENT, STOPPED, ENDED = (
    "episode", "resumed", "done", "swapped", "fault", "recovered", "no event", "stopped", "ended",
)  # fmt: skip
"""Kinds of events."""

_LEVELS = {FAULT: 30, NO_EVENT: 30, STOPPED: 40}
_INFO = 20
_PREFIX = "lram."


@dataclass(frozen=True)
class FlightEvent:
    """Something that happened: ``at`` nanoseconds since 1970, after ``step`` steps; a kind, and words."""

    at: int
    step: int
    kind: str
    text: str


def encode_log(at: int, kind: str, text: str) -> bytes:
    """The message of an event."""
    seconds, nanoseconds = divmod(at, 10**9)
    body = bytearray(struct.pack("<iIB", seconds & 0x7FFFFFFF, nanoseconds, _LEVELS.get(kind, _INFO)))
    for words in (_PREFIX + kind, text, "", ""):
        data = words.encode("utf-8", errors="replace") + b"\0"
        body += bytes(-len(body) % 4) + struct.pack("<I", len(data)) + data
    body += bytes(-len(body) % 4) + bytes(4)
    return b"\x00\x01\x00\x00" + bytes(body)


def decode_log(data: bytes, at: int, step: int) -> FlightEvent:
    """The event of a message; raises ValueError where it is none."""
    try:
        view, place, texts = data[4:], 9, []
        for _ in range(2):
            place += -place % 4
            (size,) = struct.unpack_from("<I", view, place)
            if place + 4 + size > len(view):
                raise ValueError("ends too early")
            texts.append(view[place + 4 : place + 4 + size].rstrip(b"\0").decode("utf-8", errors="replace"))
            place += 4 + size
    except struct.error:
        raise ValueError("ends too early") from None
    return FlightEvent(at, step, texts[0].removeprefix(_PREFIX), texts[1])
