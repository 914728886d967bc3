"""`serve`: act for a fleet of robots."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lram_export.cli import options
from lram_export.cli.console import message, print_facts, print_json, print_table
from lram_export.cli.parameters import INPUT_FILE, Command, Number
from lram_export.cli.streams import logged
from lram_export.describe import counted
from lram_export.spec.bounds import MOST_ROBOTS

if TYPE_CHECKING:
    from lram_export.serving.server import PolicyServer

SWITCH_SECONDS = 5e-4
"""In which a thread of Python lets another one go on: a tenth of what is usual, since robots wait for both."""
HELD = (signal.SIGINT, signal.SIGTERM)


@click.command(cls=Command)
@options.bundle
@click.option(
    "--listen",
    default="127.0.0.1:8431",
    show_default=True,
    metavar="HOST:PORT",
    help="Port 0: any that is free.",
)
@click.option("--robots", type=click.IntRange(1, MOST_ROBOTS), default=32, show_default=True, help="Seats.")
@click.option(
    "--window",
    type=Number(0, 1000),
    default=0.0,
    show_default=True,
    help="Milliseconds that a step waits for those of other robots, to be one step of the engine.",
)
@click.option(
    "--idle",
    type=Number(1, 86_400),
    default=60.0,
    show_default=True,
    help="Seconds that a robot may be silent before its seat is given away.",
)
@click.option("--token-file", type=INPUT_FILE, help="Tokens that let robots in, one per line; nobody else may read it.")
@click.option(
    "--per-token", type=click.IntRange(1, MOST_ROBOTS), help="Seats that robots with one token may have; default: all."
)
@click.option("--certificate", type=INPUT_FILE, help="PEM file of the server's certificate, for TLS.")
@click.option("--key", type=INPUT_FILE, help="PEM file of the certificate's key.")
@click.option("--insecure", is_flag=True, help="Listen beyond this machine though without tokens or without TLS.")
@options.target
@options.threads
@options.as_json
@options.quiet
def serve(
    bundle: Path,
    listen: str,
    robots: int,
    window: float,
    idle: float,
    token_file: Path | None,
    per_token: int | None,
    certificate: Path | None,
    key: Path | None,
    insecure: bool,
    target: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Act for a fleet of robots, each in a session of its own, until it is stopped.

    Robots use `RemotePolicy(url)` as they use a policy of their own. SIGTERM and SIGINT let running steps end. What is
    printed first says what is served, and what last how it went.
    """
    from lram_export.serving.addresses import Address
    from lram_export.serving.server import PolicyServer, ServerOptions
    from lram_export.serving.tokens import read_tokens

    wishes = ServerOptions(
        bundle=bundle,
        target=target,
        threads=threads,
        address=Address.read(listen, "--listen", lowest_port=0),
        robots=robots,
        window=window / 1e3,
        idle=idle,
        tokens=() if token_file is None else read_tokens(token_file),
        per_token=per_token or robots,
        certificate=certificate,
        key=key,
        insecure=insecure,
    )
    sys.setswitchinterval(SWITCH_SECONDS)
    with _stopped() as stopped, logged("lram_export.serving", _Lines(quiet)), PolicyServer(wishes) as server:
        _announce(server, as_json)
        while not stopped.wait(3600):
            pass
    _conclude(server, as_json)


def _announce(server: PolicyServer, as_json: bool) -> None:
    """What is served, and where."""
    said, chosen = server.description, server.options
    tokens, encrypted = len(chosen.tokens), chosen.certificate is not None
    facts: dict[str, Any] = {
        "url": server.url,
        "bundle": str(chosen.bundle),
        "digest": said.bundle,
        "target": said.target,
        "precision": said.precision,
        "threads": server.threads,
        "robots": chosen.robots,
        "window_ms": 1e3 * chosen.window,
        "idle_seconds": chosen.idle,
        "tokens": tokens,
        "tls": encrypted,
    }
    if as_json:
        print_json(facts)
    else:
        shown = {
            "url": server.url,
            "bundle": f"{chosen.bundle}, {said.bundle[:12]}",
            "runs on": f"{said.target}, {said.precision}, {counted(server.threads, 'thread')}",
            "robots": f"{chosen.robots}, silent for at most {chosen.idle:g} s",
            "window": f"{1e3 * chosen.window:g} ms",
            "lets in": counted(tokens, "token") if tokens else "whoever gets there",
            "encrypted": "yes" if encrypted else "no",
        }
        print_facts("serving", list(shown.items()))


def _conclude(server: PolicyServer, as_json: bool) -> None:
    """How it went."""
    measures = server.measures
    if as_json:
        print_json(measures.to_json())
        return
    rows = [
        [name, *(f"{times[key]:.3g}" for key in ("p50_ms", "p99_ms", "max_ms"))]
        for name, times in measures.times().items()
    ]
    notes = [
        f"{counted(measures.sessions, 'session')}, {counted(measures.steps, 'step')}; {measures.mean_batch:.3g} rows "
        f"per step of the engine, at most {max(measures.batches, default=0)}",
        f"refused {measures.refused}, sent again {measures.repeated}, silent {measures.expired}, without a token "
        f"{measures.turned_away}, malformed {measures.malformed}",
    ]
    print_table("milliseconds", ["of a step", "p50", "p99", "max"], rows, notes)


@contextmanager
def _stopped() -> Iterator[threading.Event]:
    """An event that the first signal sets; a second one ends at once, as of any command."""
    stopped = threading.Event()
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in HELD}

    def stop(*_: object) -> None:
        stopped.set()
        for number, handler in before.items():
            signal.signal(number, handler)

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Lines(logging.Handler):
    """Robots that come and go, on standard error."""

    def __init__(self, quiet: bool) -> None:
        super().__init__()
        self._quiet = quiet

    def emit(self, record: logging.LogRecord) -> None:
        """See the base class."""
        message(" ".join(record.getMessage().split()), self._quiet and record.levelno < logging.WARNING)
