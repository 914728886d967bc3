"""The server that `nvidia-pytriton` ships, as it is: it has the Python backend alone, and runs without a GPU."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

SECONDS_TO_START = 60


def backends(packages: Path, place: Path) -> Path:
    """The folder of the server's backends, with the stub for this Python beside the Python backend."""
    shipped = packages / "pytriton" / "tritonserver"
    stub = (
        shipped / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}" / "triton_python_backend_stub"
    )
    if not stub.is_file():
        pytest.skip(f"nvidia-pytriton has no stub for Python {sys.version_info[0]}.{sys.version_info[1]}")
    python = place / "python"
    if not python.exists():
        shutil.copytree(shipped / "backends" / "python", python)
        shutil.copy(stub, python)
    return place


@contextmanager
def serving(models: Path, packages: Path, folder: Path, more_backends: Path | None = None) -> Iterator[str]:
    """The address of a server of a model repository, which is ready.

    Args:
        models: the repository.
        packages: where `nvidia-pytriton` is installed.
        folder: for what the server needs.
        more_backends: a folder of backends in place of the one that is shipped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # the interpreter in the stub is isolated, and finds its packages by the first python3 on the path: this project's
    libraries = [packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    http, grpc = _free_port(), _free_port()
    command = [
        packages / "pytriton" / "tritonserver" / "bin" / "tritonserver",
        f"--model-repository={models}",
        f"--backend-directory={more_backends or backends(packages, folder / 'backends')}",
        *("--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}"),
        *("--allow-metrics=false", "--exit-on-error=true", "--exit-timeout-secs=3"),
    ]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            list(map(str, command)), cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            _wait(server, f"http://127.0.0.1:{http}/v2/health/ready", folder / "server.log")
            yield f"127.0.0.1:{http}"
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < until and server.poll() is None:
        try:
            with urlopen(url, timeout=1):
                return
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise AssertionError(f"the server is not ready:\n{log.read_text()[-3000:]}")
