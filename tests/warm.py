"""The program `lram-export` in processes that have imported everything: pages of the documentation run dozens of
commands, which take longer to import torch than for what they do.

``python -m tests.warm SOCKET SHARED`` imports, then forks for every command that comes to SOCKET; what
:mod:`tests.once` computes once is kept in the folder SHARED. The program that :func:`install` writes sends it what a
process is: arguments, folder, environment, and the open standard streams.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
IMPORTED = (
    "lram_export.cli.export",
    "lram_export.cli.verify",
    "lram_export.export",
    "lram_export.report.page",
    "matplotlib.backends.backend_svg",
    "networkx",
    "onnxscript",
    "torch._dynamo",
    "torch.onnx._internal.exporter._core",
)
"""What commands import that takes long and starts no thread: a process that has some cannot be forked."""
PROGRAM = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({socket!r})
    process = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
    socket.send_fds(server, [b"x"], [0, 1, 2])
    server.sendall(json.dumps(process).encode())
    server.shutdown(socket.SHUT_WR)
    code = server.recv(1)
sys.exit(code[0] if code else "tests/warm.py: the command ended without an exit code")
"""


@contextmanager
def install(folder: Path, shared: Path, environment: dict[str, str]) -> Iterator[Path]:
    """Start a server; yields the folder of its program. It is nobody's child, and ends when its standard input does."""
    address = folder / "socket"
    (folder / "bin").mkdir()
    program = folder / "bin" / "lram-export"
    program.write_text(PROGRAM.format(python=sys.executable, socket=str(address)), encoding="utf-8")
    program.chmod(0o755)
    command = [sys.executable, "-m", "tests.warm", str(address), str(shared)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdin=pipe, stdout=pipe) as starter:
        assert starter.stdout is not None
        assert starter.stdout.read() == b"ready", "tests/warm.py does not start"  # it closes the stream then
        assert starter.wait() == 0
        yield program.parent


def serve(address: Path, shared: Path) -> None:
    """Fork for every command; returns in the processes that are to run one, and never in this."""
    if os.fork() != 0:
        os._exit(0)  # tests count the children of their process
    import pytest

    from tests import once

    for name in IMPORTED:
        importlib.import_module(name)
    patch = pytest.MonkeyPatch()
    once.measure_briefly(patch)
    once.translate_once(patch, shared)
    once.compile_once(patch, shared)
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(address))
        server.listen()
        os.write(1, b"ready")
        os.dup2(2, 1)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for a command
        while True:
            if 0 in select.select([server, 0], [], [])[0]:
                os._exit(0)
            client, _ = server.accept()
            if os.fork() == 0:
                server.close()
                break
            client.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(client, 1, 3)
    process = json.loads(b"".join(iter(lambda: client.recv(1 << 16), b"")))
    command = os.fork()
    if command != 0:
        code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
        client.send(bytes([code if code >= 0 else 128 - code]))
        os._exit(0)
    client.close()
    for number, (stream, name) in enumerate(zip(streams, ("stdin", "stdout", "stderr"), strict=True)):
        os.dup2(stream, number)
        os.close(stream)
        # those of before know what kind of file theirs was
        setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", 1 if number == 2 else -1, closefd=False))
    os.chdir(process["folder"])
    os.environ.clear()
    os.environ.update(process["environment"])
    sys.argv[:] = ["lram-export", *process["arguments"]]


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
    from lram_export.entry import main

    main()
