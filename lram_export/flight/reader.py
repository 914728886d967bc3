"""Flights read back: whole ones, and those whose recorder was killed in the middle of a write. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lram_export.errors import LramError
from lram_export.flight.events import EVENT_TOPIC, FlightEvent, decode_log
from lram_export.flight.header import NAME, FlightHeader, read_header
from lram_export.flight.recorder import STEP_TOPIC, check_packages
from lram_export.flight.steps import FlightStep, Messages, head

MAGIC = b"\x89MCAP0\r\n"
MOST_RECORD = 256 << 20
"""Bytes of one record in a file that others made."""


@dataclass(frozen=True)
class Flight:
    """A flight. Its steps are read when they are asked for, again each time: a night has millions of them.

    Attributes:
        path: the file.
        headers: the bundles that flew, by number.
        events: what happened, in order.
        count: steps that are in the file.
        missing: steps of the loop that are not, of those before the last that is.
        whole: whether the file was closed; else its end is missing, as after a kill.
    """

    path: Path
    headers: tuple[FlightHeader, ...]
    events: tuple[FlightEvent, ...]
    count: int
    missing: int
    whole: bool

    @property
    def header(self) -> FlightHeader:
        """The first bundle's, which says when the flight began, and how."""
        return self.headers[0]

    def steps(self) -> Iterator[FlightStep]:
        """All that are in the file, in order; raises LramError where one is damaged."""
        messages = Messages(self.header.spec)
        with _named(self.path):
            for _, record, topic in _records(self.path):
                if topic == STEP_TOPIC:
                    yield messages.decode(record.data)


def is_flight(path: str | Path) -> bool:
    """Whether a file is MCAP; False where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_flight(path: str | Path) -> Flight:
    """Read a flight, as far as it goes.

    Raises:
        LramError: not a flight, or damaged: what is wrong, in one line.
        UsageError: the package that reads it is not installed.
    """
    check_packages()
    path = Path(path)
    headers: list[FlightHeader] = []
    events: list[FlightEvent] = []
    count, last, whole = 0, -1, False
    with _named(path):
        for kind, record, topic in _records(path):
            if kind == "metadata" and record.name == NAME:
                header = read_header(record.metadata)
                if header.number != len(headers):
                    raise ValueError(f"number: expected {len(headers)}, got {header.number}")
                if headers and _takes_and_gives(header) != _takes_and_gives(headers[0]):
                    raise ValueError(f"bundle {header.number}: takes or gives something else than the first")
                headers.append(header)
            elif topic == STEP_TOPIC:
                number, _ = head(record.data)
                if number <= last:
                    raise ValueError(f"step {number}: comes after step {last}")
                count, last = count + 1, number
            elif topic == EVENT_TOPIC:
                events.append(decode_log(record.data, record.log_time, record.sequence))
            elif kind == "end":
                whole = True
        if not headers:
            raise ValueError(f"no metadata '{NAME}'; record one with loop --record")
    return Flight(path, tuple(headers), tuple(events), count, last + 1 - count, whole)


def _takes_and_gives(header: FlightHeader) -> list[tuple[str, tuple[int, ...], str]]:
    return [(t.name, t.shape, t.dtype) for t in (*header.spec.inputs, *header.spec.outputs)]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What is wrong with a file, in one line with its name."""
    try:
        yield
    except ValueError as error:
        raise LramError(f"{path}: not a flight of this program: {error}") from None
    except OSError as error:
        raise LramError(f"{path}: cannot be read ({error.strerror})") from None


def _records(path: Path) -> Iterator[tuple[str, Any, str]]:
    """What is in the file: its kind, itself, and of a message its topic; ends where the file is cut off."""
    from mcap.records import Channel, Message, Metadata
    from mcap.stream_reader import StreamReader

    topics: dict[int, str] = {}
    with path.open("rb") as file:
        reader = StreamReader(file, validate_crcs=True, record_size_limit=MOST_RECORD)
        try:
            for record in reader.records:
                if isinstance(record, Channel):
                    topics[record.id] = record.topic
                elif isinstance(record, Message):
                    yield "message", record, topics.get(record.channel_id, "")
                elif isinstance(record, Metadata):
                    yield "metadata", record, ""
        except Exception as error:  # whatever a library says of a file that others made
            if file.read(1):  # there is more: so it is not that its writer was killed
                raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
        else:
            yield "end", None, ""
