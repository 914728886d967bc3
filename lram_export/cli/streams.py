"""Standard output and error as they are found: closed, a pipe whose reader has left, a full disk, another encoding."""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper

import click

CLOSED_PIPE = 128 + signal.SIGPIPE


def prepare_streams() -> None:
    """Give closed streams a file, before the next file that is opened takes their number; print any name somehow."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """A line on standard error, if anyone is there to read it."""
    with suppress(OSError):
        click.echo(line, err=True)


@contextmanager
def logged(name: str, handler: logging.Handler) -> Iterator[None]:
    """What a part of the package logs, from INFO on, goes to a handler and nowhere else."""
    log = logging.getLogger(name)
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before


def write_out() -> tuple[int, str | None] | None:
    """Write what is still held back; exit code and line of a failure if that cannot be done, else None."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)  # what Python still holds does not fail once more when it ends
            os.close(nowhere)
            return failure(error)
    return None


def failure(error: OSError) -> tuple[int, str | None]:
    """Exit code and line for an error of the system; no line for a reader that has seen enough, such as `head`."""
    if error.errno == errno.EPIPE and (unread(1) or unread(2)):
        return CLOSED_PIPE, None
    # files name themselves, and a full disk is told by those who write files
    where = error.filename or ("standard output" if error.errno == errno.ENOSPC else None)
    return 1, (f"{where}: " if where else "") + (error.strerror or str(error))


def unread(number: int) -> bool:
    """Whether a stream is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(number, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
