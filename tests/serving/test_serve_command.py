"""`lram-export serve` as a user and a service manager see it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lram_export import RemotePolicy
from tests.conftest import fail


@contextmanager
def serving(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The command, and the document with which it begins."""
    command = [sys.executable, "-m", "lram_export", "serve", *map(str, arguments), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
            assert lines[-1], process.communicate()
        yield process, json.loads("".join(lines))
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_it_tells_how_it_went(number: int, small: Path) -> None:
    with serving(small, "--target", "native", "--listen", "127.0.0.1:0", "--robots", "3") as (process, said):
        assert (said["robots"], said["target"], said["tls"], said["tokens"]) == (3, "native", False, 0)
        with RemotePolicy(said["url"], robot="arm 7") as remote:
            for step in range(5):
                remote.act(np.zeros(204), 1.0 if step else None)
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    told = json.loads(out)
    assert told["steps"] == 5 and told["sessions"] == 1 and told["batches"] == {"1": 5}
    assert set(told["answered"]) == {"p50_ms", "p99_ms", "max_ms"}
    assert "robot 'arm 7' sits on seat 0, 1 taken" in err and "Traceback" not in err


def test_a_token_is_asked_for_and_never_in_the_process_list(small: Path, tmp_path: Path) -> None:
    path, token = tmp_path / "tokens", "s3cret" * 5
    path.write_text(token)
    path.chmod(0o600)
    with serving(small, "--target", "native", "--listen", "127.0.0.1:0", "--token-file", path) as (process, said):
        assert said["tokens"] == 1
        RemotePolicy(said["url"], token_file=path).close()
        for name in ("cmdline", "environ"):
            assert token.encode() not in Path(f"/proc/{process.pid}/{name}").read_bytes()
        process.terminate()
        out, err = process.communicate(timeout=20)
    assert token not in out + err + json.dumps(said)


def test_what_makes_no_sense_is_refused_before_anything_is_loaded(small: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("x" * 32)
    tokens.chmod(0o644)
    for options, said in (
        (["--listen", "localhost"], "--listen: expected HOST:PORT, such as 127.0.0.1:8431, got 'localhost'"),
        (["--listen", "0.0.0.0:0"], "--listen 0.0.0.0:0: others than this machine get there"),
        (["--token-file", tokens], "others than its owner may read or change it"),
        (["--robots", "0"], "--robots"),
        (["--window", "-1"], "--window"),
    ):
        code, line = fail("serve", tmp_path / "none", *options)
        assert code == 2 and said in line
    assert "no such bundle" in fail("serve", tmp_path / "none")[1]
