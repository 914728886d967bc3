"""How the program starts and ends: signals at any time, closed streams, names that a terminal cannot show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lram_export.cli.console import ConsoleProgress
from tests.conftest import GOLDEN, cli

STATE_M = GOLDEN / "state_m" / "model.zip"
REACH = ("--task", "metaworld/reach-v2")
PROGRAM = [sys.executable, "-m", "lram_export"]

INTERRUPTED_BY_IMPORT = """
import builtins, os, signal, sys
from lram_export.entry import main
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == WHEN:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.argv = ["lram-export", "inspect", CHECKPOINT]
main()
"""


class TestSignals:
    @pytest.mark.parametrize("module", ["lram_export.cli", "click", "lram_export.cli.inspect", "numpy"])
    def test_an_interrupt_during_an_import_is_one_line(self, module: str) -> None:
        program = INTERRUPTED_BY_IMPORT.replace("WHEN", repr(module)).replace("CHECKPOINT", repr(str(STATE_M)))
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "error: interrupted")

    @pytest.mark.parametrize(
        ("number", "code", "line"),
        [
            (signal.SIGINT, 130, "error: interrupted"),
            (signal.SIGTERM, 143, "error: terminated"),
            (signal.SIGHUP, 129, "error: the terminal was closed"),
        ],
    )
    def test_a_stopped_export_leaves_nothing(
        self, number: signal.Signals, code: int, line: str, tmp_path: Path
    ) -> None:
        with _exporting(tmp_path) as process:
            process.send_signal(number)
            _, stderr = process.communicate(timeout=60)
        assert (process.returncode, stderr.strip().splitlines()[-1]) == (code, line)
        assert "Traceback" not in stderr and list(tmp_path.iterdir()) == []

    def test_what_a_killed_export_left_is_removed_by_the_next(self, tmp_path: Path) -> None:
        with _exporting(tmp_path) as process:
            process.kill()
        (left,) = tmp_path.iterdir()
        assert cli("convert", STATE_M, "-o", tmp_path / "another").exit_code == 0
        assert not left.exists() and [p.name for p in tmp_path.iterdir()] == ["another"]

    def test_a_hangup_is_ignored_under_nohup(self) -> None:
        program = (
            "import os, signal\n"
            "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
            "from lram_export.cli.stopping import stopped_by_signals\n"
            "with stopped_by_signals():\n"
            "    os.kill(os.getpid(), signal.SIGHUP)\n"
        )
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@contextmanager
def _exporting(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """An export that has begun to write, and that has ended afterwards, whatever happens."""
    arguments = ["export", str(STATE_M), "-o", str(folder / "out.lram"), *REACH, "--reference-steps", "100000"]
    with subprocess.Popen([*PROGRAM, *arguments], stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 120
            while not list(folder.iterdir()):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


PRINTING = {"help": ("--help",), "table": ("inspect", STATE_M, "-q"), "json": ("inspect", STATE_M, "--json", "-q")}


class TestStreams:
    @pytest.mark.parametrize("kind", PRINTING)
    def test_a_reader_that_has_seen_enough_is_no_error(self, kind: str) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        done = _run(*PRINTING[kind], stdout=writing)
        os.close(writing)
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")

    @pytest.mark.parametrize("kind", PRINTING)
    def test_results_that_cannot_be_written_are_an_error(self, kind: str) -> None:
        with Path("/dev/full").open("w") as full:
            done = _run(*PRINTING[kind], stdout=full.fileno())
        assert done.returncode == 1
        assert done.stderr == "error: standard output: No space left on device\n"

    def test_closed_streams(self, tmp_path: Path) -> None:
        """The next files that are opened must not take their place."""
        folder = tmp_path / "out"
        command = f"{sys.executable} -m lram_export convert {STATE_M} -o {folder} --json <&- >&- 2>&-"
        assert subprocess.run(["bash", "-c", command], check=False).returncode == 0
        assert cli("inspect", folder).exit_code == 0

    @pytest.mark.parametrize("closed", [">&-", "2>&-"])
    def test_a_closed_stream_is_no_error(self, closed: str) -> None:
        command = f"{sys.executable} -m lram_export --version {closed}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    def test_an_error_that_nobody_can_read_keeps_its_code(self) -> None:
        command = f"{sys.executable} -m lram_export inspect nothing 2>&-"
        assert subprocess.run(["bash", "-c", command], check=False).returncode == 2


def _run(*arguments: str | Path, stdout: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
    )


TABLES = """
import sys
from lram_export.cli.console import ConsoleProgress, print_facts, print_table
from lram_export.cli.streams import prepare_streams, say
prepare_streams()
for name in sys.argv[1:]:
    print_table(name, [name, "x"], [[name, name]], [name])
    print_facts(name, [(name, name)])
    say(name)
"""


class TestNames:
    @pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
    def test_any_name_is_printed(self, encoding: str) -> None:
        """Brackets are markup to what draws tables; a name may be bytes that are no text; a terminal may be of 1970."""
        names = ["[red]", "[/bold]", "[bold", "arm[0]", "\\[x]", "größe", "腕", "a\udcff"]
        done = subprocess.run(
            [sys.executable, "-c", TABLES, *map(os.fsencode, names)],
            env={**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        counts = {name: done.stdout.count(name.encode(encoding, "backslashreplace")) for name in names}
        assert counts == dict.fromkeys(names, 8) and len(done.stderr.splitlines()) == len(names)

    def test_a_name_that_is_not_ascii_in_a_locale_that_is(self, tmp_path: Path) -> None:
        environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        for arguments in (("convert", str(STATE_M), "-o"), ("inspect",)):
            command = [*PROGRAM, *arguments, str(tmp_path / "größe").encode()]
            done = subprocess.run(command, env=environment, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr
        assert [p.name for p in tmp_path.iterdir()] == ["größe"]

    @pytest.mark.parametrize("quiet", [False, True])
    def test_a_stage_may_have_any_name(self, quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
        with ConsoleProgress(quiet).stage("[/bold] checking arm[0]"):
            pass
