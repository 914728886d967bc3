"""The flight recorder: every step to disk, and the loop never waits for it.

The loop only copies numbers and puts them into a queue; a thread makes messages of them and writes. Where the disk does
not keep up, steps are left out and counted; where it is full or gone, recording ends and the loop goes on.
"""

from __future__ import annotations

import itertools
import logging
import platform
import queue
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

import numpy as np

from lram_export.describe import counted, human_bytes
from lram_export.errors import UsageError, describe
from lram_export.flight.events import EVENT_TOPIC, LOG_DEFINITION, LOG_TYPE, encode_log
from lram_export.flight.header import NAME, FlightHeader
from lram_export.flight.steps import TYPE, FlightStep, Messages

LOG = logging.getLogger("lram_export.loop")
SUFFIX = ".mcap"
STEP_TOPIC = "/lram/step"
LEAST_SPACE = 64 << 20
"""Bytes that must be free where a flight begins."""

MOST_QUEUED = 64 << 20
"""Bytes that may wait for the disk."""

SECONDS_PER_CHUNK = 4.0
"""What a process that is killed loses: what it read in so many seconds."""

MOST_CHUNK = 256 << 10
PAUSE = 1e-4
"""Seconds between two messages of a backlog."""

PATIENCE = 3.0
"""Seconds that the end of a flight waits for the disk; the motors have stopped."""


class TakenError(UsageError):
    """A file of that name is there."""


class Recorder:
    """Records nothing. What a loop tells its recorder, see :class:`FlightRecorder`."""

    def begin(self, header: FlightHeader) -> None:
        """A bundle flies from here on."""

    def step(self, step: FlightStep) -> None:
        """A step of the loop is over. What it holds belongs to the recorder now."""

    def event(self, kind: str, text: str, step: int, seconds: float) -> None:
        """Something happened after so many steps, and seconds of the loop's clock since it began."""

    def close(self) -> None:
        """No more is to come."""


class FlightRecorder(Recorder):
    """Writes an MCAP file in a thread of its own.

    Attributes:
        path: the file.
        recorded: steps that are in it.
        dropped: steps that are not, since the disk did not keep up or failed.
        failure: why recording ended early; "": it did not.
    """

    def __init__(self, path: Path) -> None:
        """Make the file; raises UsageError where that is not possible, TakenError where it is there."""
        check_packages()
        try:
            free = shutil.disk_usage(path.absolute().parent).free
            if free < LEAST_SPACE:
                raise UsageError(
                    f"--record: {path}: {human_bytes(free)} are free there; expected {human_bytes(LEAST_SPACE)}"
                )
            self._file: IO[bytes] = path.open("xb")
        except FileExistsError:
            raise TakenError(f"--record: {path}: is there already; choose another name, or a folder") from None
        except OSError as error:
            raise UsageError(f"--record: {path}: {error.strerror}") from None
        self.path, self.recorded, self.dropped, self.failure = path, 0, 0, ""
        self._queue: queue.SimpleQueue[Callable[[_Writing], None] | None] = queue.SimpleQueue()
        self._most, self._closed = 8, False
        self._wall = 0
        self._thread = threading.Thread(target=self._write, name="recorder", daemon=True)

    def begin(self, header: FlightHeader) -> None:
        """See :class:`Recorder`. The first says when the flight began, and how its steps look."""
        if header.number == 0:
            messages = Messages(header.spec, header.ticks)
            self._wall = header.began
            self._most = int(np.clip(MOST_QUEUED // messages.most, 8, 4096))
            chunk = int(np.clip(messages.size * header.rate * SECONDS_PER_CHUNK, 4096, MOST_CHUNK))
            self._begun = (messages, chunk)
            self._thread.start()
        self._queue.put(lambda file: file.header(header))

    def step(self, step: FlightStep) -> None:
        """See :class:`Recorder`; never waits."""
        if self.failure or self._queue.qsize() >= self._most:
            self.dropped += 1
            return
        step.dropped = self.dropped
        self._queue.put(lambda file: file.step(step))

    def event(self, kind: str, text: str, step: int, seconds: float) -> None:
        """See :class:`Recorder`; never waits."""
        if not self.failure and self._queue.qsize() < 2 * self._most:
            at = self._wall + int(seconds * 1e9)  # as of a step: a wall clock that is set in flight moves neither
            self._queue.put(lambda file: file.event(at, kind, text, step))

    def close(self) -> None:
        """See :class:`Recorder`. Waits for the disk, but not for ever. Of a flight that never began nothing is left."""
        if self._closed:
            return
        self._closed = True
        if self._thread.ident is None:
            self._file.close()
            self.path.unlink(missing_ok=True)
            return
        self._queue.put(None)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            LOG.warning("%s: the disk does not answer; the end of the flight may be missing", self.path)

    def __str__(self) -> str:
        parts = [f"{self.path}: {counted(self.recorded, 'step')} recorded"]
        if self.dropped:
            parts.append(f"{self.dropped:,} left out")
        if self.failure:
            parts.append(f"ended early: {self.failure}")
        return ", ".join(parts)

    def _write(self) -> None:
        """What the thread does."""
        try:
            with self._file as file:
                writing = _Writing(file, *self._begun, self._wall)
                while (task := self._queue.get()) is not None:
                    task(writing)
                    self.recorded = writing.steps
                    if not self._queue.empty():  # a backlog: let the loop have the interpreter between two of them
                        time.sleep(PAUSE)
                writing.finish()
        except Exception as error:
            self.failure = describe(error)
            LOG.warning("%s: recording ended, the loop goes on without: %s", self.path, self.failure)


class _Writing:
    """The file while it is written."""

    def __init__(self, file: IO[bytes], messages: Messages, chunk: int, wall: int) -> None:
        from mcap.writer import CompressionType, Writer

        self._file, self._messages, self._wall, self.steps = file, messages, wall, 0
        self._writer = Writer(file, chunk_size=chunk, compression=CompressionType.ZSTD)
        self._writer.start(profile="ros2", library=f"lram-export; Python {platform.python_version()}")
        step = self._writer.register_schema(TYPE, "ros2msg", messages.definition.encode())
        self._step = self._writer.register_channel(STEP_TOPIC, "cdr", step)
        event = self._writer.register_schema(LOG_TYPE, "ros2msg", LOG_DEFINITION.encode())
        self._event = self._writer.register_channel(EVENT_TOPIC, "cdr", event)
        file.flush()

    def header(self, header: FlightHeader) -> None:
        self._writer.add_metadata(NAME, header.to_metadata())
        self._file.flush()

    def step(self, step: FlightStep) -> None:
        at = self._wall + int(step.time * 1e9)
        self._add(self._step, at, self._messages.encode(step), step.step)
        self.steps += 1

    def event(self, at: int, kind: str, text: str, step: int) -> None:
        self._add(self._event, at, encode_log(at, kind, text), step)

    def _add(self, channel: int, at: int, data: bytes, sequence: int) -> None:
        self._writer.add_message(channel, log_time=at, publish_time=at, data=data, sequence=sequence % 2**32)
        self._file.flush()  # a chunk that is complete is safe from a kill

    def finish(self) -> None:
        self._writer.finish()  # type: ignore[no-untyped-call]


def check_place(place: Path) -> None:
    """Raise UsageError unless a flight may go there: a file that ends in .mcap, or a folder that is there."""
    if not place.is_dir() and place.suffix != SUFFIX:
        raise UsageError(f"--record: {place}: expected a file that ends in {SUFFIX}, or a folder that is there")


def open_recorder(place: Path) -> FlightRecorder:
    """A recorder of a file that is not there yet, or of a new one in a folder, named by the time.

    Raises:
        UsageError: no flight can go there.
    """
    check_place(place)
    if not place.is_dir():
        return FlightRecorder(place)
    stem = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H-%M-%SZ")
    for number in itertools.count(1):
        with suppress(TakenError):  # by another loop that began in the same second
            return FlightRecorder(place / f"{stem}{'' if number == 1 else f'-{number}'}{SUFFIX}")
    raise AssertionError


def check_packages() -> None:
    """Raise UsageError unless what reads and writes flights is installed."""
    try:
        import mcap  # noqa: F401
    except ImportError:
        raise UsageError(
            "a flight needs the package 'mcap', which is not installed. Install it with: pip install "
            "'lram-export[flight]'"
        ) from None
