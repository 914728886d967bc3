"""A Ray cluster: one of this machine's own, or the one at an address. What is wrong is said in a line, soon."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lram_export.cluster.parcels import FOLDER
from lram_export.errors import LramError, UsageError, describe
from lram_export.system.files import workplace
from lram_export.system.machine import usable_cores

LOCAL = "local"
"""In place of an address: a cluster of this machine alone, which ends with the command."""
EXTRA = "ray"
_ADDRESS = re.compile(r"(?P<host>[^\s/:\[\]]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")
_NO_TOKEN = "InvalidAuthToken"
_AUTH_MODE, _AUTH_TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
SECONDS_TO_REACH, SECONDS_TO_ANSWER = 3.0, 12.0
OBJECT_STORE_BYTES = 1 << 30
"""Of a cluster of our own; what does not fit is put on the disk."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


_VITAL = ("raylet", "gcs_server")
"""Processes of a cluster that it does not survive."""


@dataclass
class Connection:
    """The module `ray`, connected; ``variables`` that workers of this cluster get.

    It is ``lost`` when a process of a cluster that was started here has ended: Ray answers no more then, and ends this
    process within seconds, without a word.
    """

    ray: Any
    variables: Mapping[str, str] = field(default_factory=dict)
    lost: bool = False

    def check(self) -> None:
        """Raises LramError: the cluster was started here, and is lost."""
        from ray._private import worker

        node = getattr(worker, "_global_node", None)
        ended = [kind for kind, _ in getattr(node, "dead_processes", list)() if kind in _VITAL]
        if ended:
            self.lost = True
            raise LramError(f"--ray: the cluster of this machine is gone: its {ended[0]} has ended")


@contextmanager
def connected(address: str = LOCAL) -> Iterator[Connection]:
    """Start a cluster of this machine's own, or take part in the one at ``HOST:PORT``; left or ended with the block.

    A connection that this process has already is used as it is.

    Raises:
        UsageError: Ray is missing, the address is none, or the cluster there is of other versions or has no node here.
        LramError: nobody answers there, or a cluster could not be started.
    """
    check_installed()
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    node = None if address == LOCAL else find_cluster(address)
    import ray

    if ray.is_initialized():
        yield Connection(ray)
        return
    with _temporary(address == LOCAL) as folder, _own_token(address == LOCAL), _silent():
        variables = {} if folder is None else {FOLDER: str(folder / "parcels")}
        terminate = signal.getsignal(signal.SIGTERM)
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if folder is not None:
            settings |= {"num_cpus": usable_cores(), "include_dashboard": False, "_temp_dir": str(folder)}
            settings |= {"object_store_memory": OBJECT_STORE_BYTES}
        else:
            settings |= {"_node_ip_address": node}
        connection = Connection(ray, variables)
        try:
            try:
                ray.init(address=address, **settings)
            except (Exception, SystemExit) as error:  # Ray leaves the program where it cannot start
                what = "could not be started" if folder is not None else "could not be joined"
                raise LramError(f"--ray: a cluster {what} ({_first_line(error)})") from None
            finally:  # Ray takes it, but how a signal ends a command is not its business
                if signal.getsignal(signal.SIGTERM) is not terminate:
                    signal.signal(signal.SIGTERM, terminate)
            yield connection
        finally:
            if not connection.lost:
                ray.shutdown()


@contextmanager
def _silent() -> Iterator[None]:
    """Ray prints what a node's end looks like to it on standard output, whatever is said of logs, in the middle of
    what a command prints there; that a node is gone is said by the crew."""
    from ray._private import worker

    kept = getattr(worker, "print_to_stdstream", None)
    if kept is None:
        yield
        return
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = kept


@cache
def _token() -> str:
    return secrets.token_hex(32)


@contextmanager
def _own_token(wanted: bool) -> Iterator[None]:
    """A cluster of our own takes orders of this process alone; Ray would leave a token in the user's home."""
    before = {name: os.environ.get(name) for name in (_AUTH_MODE, _AUTH_TOKEN)}
    if not wanted or any(before.values()):
        yield
        return
    os.environ[_AUTH_TOKEN] = _token()
    try:
        yield
    finally:
        for name in before:
            os.environ.pop(name, None)


def check_installed() -> None:
    """Raise UsageError, with the command, unless Ray is installed."""
    if find_spec("ray") is None:
        raise UsageError(
            f"--ray: needs the package 'ray', which is not installed. Install it with: pip install "
            f"'lram-export[{EXTRA}]'"
        )


def find_cluster(address: str) -> str:
    """The node of this machine in the cluster at ``HOST:PORT``; what is wrong is known within seconds.

    Raises:
        UsageError: no address, a cluster of another version, or none of its nodes is here.
        LramError: nobody answers.
    """
    host, port = parse_address(address)
    try:
        socket.create_connection((host, port), SECONDS_TO_REACH).close()
    except OSError as error:
        raise LramError(f"--ray {address}: no cluster is there ({_why(error)}); {_start(port)}") from None
    try:
        command = [sys.executable, "-m", "lram_export.cluster.asking", address]
        asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS_TO_ANSWER)
        found = json.loads(asked.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        if _NO_TOKEN in str(getattr(error, "stderr", "")):
            raise UsageError(
                f"--ray {address}: the cluster there asks for a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH "
                f"here as on its nodes"
            ) from None
        raise LramError(f"--ray {address}: something answers there, but it is no Ray cluster; {_start(port)}") from None
    import ray

    here = {"Ray": ray.__version__, "Python": platform.python_version()}
    for name, version in here.items():
        if found[name] != version:
            raise UsageError(
                f"--ray {address}: {name} is {found[name]} there and {version} here; install the same on all nodes"
            )
    node = next((node for node in found["nodes"] if _is_here(node)), None)
    if node is None:
        raise UsageError(
            f"--ray {address}: this machine is none of its nodes ({', '.join(found['nodes'])}); let it take part with: "
            f"ray start --address={address}"
        )
    return str(node)


def parse_address(address: str) -> tuple[str, int]:
    """``HOST:PORT`` in its parts; raises UsageError."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 1 << 16:
        raise UsageError(
            f"--ray: expected HOST:PORT, got '{address}'; for a cluster of this machine alone, write --ray last or "
            f"before another option"
        )
    return match["host"].strip("[]"), int(match["port"])


def _start(port: int) -> str:
    return f"start one with: ray start --head --port={port}"


def _why(error: OSError) -> str:
    return "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error))


def _is_here(address: str) -> bool:
    """Whether an address is one of this machine's: only then a socket can be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _first_line(error: BaseException) -> str:
    return describe(error)[:300]


@contextmanager
def _temporary(wanted: bool) -> Iterator[Path | None]:
    """A folder for a cluster of our own, with a short name, as sockets lie in it; a killed command's is removed."""
    if not wanted:
        yield None
        return
    with workplace(Path("/tmp" if Path("/tmp").is_dir() else tempfile.gettempdir()) / "ray") as folder:
        (folder / "parcels").mkdir(mode=0o700)
        yield folder
