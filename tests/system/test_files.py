"""Outputs appear whole or not at all, replace nothing by accident, and a killed process leaves nothing for ever."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lram_export.errors import LramError, UsageError
from lram_export.system import files as atomic
from lram_export.system import renaming
from lram_export.system.files import (
    atomic_directory,
    atomic_file,
    check_output,
    clear_stale,
    scratch_directory,
    workplace,
)
from tests.conftest import GOLDEN, fail

MARKER = "manifest.json"


@pytest.fixture(params=["renameat2", "NFS", "FAT"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel can do here, and what it cannot do elsewhere."""
    if request.param != "renameat2":
        monkeypatch.setattr(renaming, "_RENAME_NOREPLACE", 1 << 10)  # EINVAL, as a file system says that lacks it
        monkeypatch.setattr(renaming, "_RENAME_EXCHANGE", 1 << 10)
    if request.param == "FAT":
        monkeypatch.setattr(Path, "hardlink_to", _no_links)


def _no_links(*_: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def write(path: Path, text: str, **options: bool) -> None:
    with atomic_directory(path, marker=MARKER, **options) as folder:
        (folder / MARKER).write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.usefixtures("file_system")
class TestWhatAppearedMeanwhile:
    """Between the first check and the last moment."""

    def test_a_folder_stays(self, tmp_path: Path) -> None:
        with (
            pytest.raises(UsageError, match=r"out: was made by somebody else meanwhile and stays"),
            atomic_directory(tmp_path / "out", marker=MARKER) as folder,
        ):
            (folder / MARKER).write_text("ours")
            write(tmp_path / "out", "theirs")
        assert names(tmp_path) == ["out"] and (tmp_path / "out" / MARKER).read_text() == "theirs"

    def test_an_empty_folder_stays(self, tmp_path: Path) -> None:
        with (
            pytest.raises(UsageError, match="meanwhile"),
            atomic_directory(tmp_path / "out", marker=MARKER),
        ):
            (tmp_path / "out").mkdir()
        assert names(tmp_path) == ["out"] and names(tmp_path / "out") == []

    def test_a_file_stays(self, tmp_path: Path) -> None:
        with (
            pytest.raises(UsageError, match=r"out.npz: was made by somebody else meanwhile and stays"),
            atomic_file(tmp_path / "out.npz") as file,
        ):
            file.write_text("ours")
            (tmp_path / "out.npz").write_text("theirs")
        assert names(tmp_path) == ["out.npz"] and (tmp_path / "out.npz").read_text() == "theirs"

    def test_a_dangling_link_stays(self, tmp_path: Path) -> None:
        with (
            pytest.raises(UsageError, match="meanwhile"),
            atomic_file(tmp_path / "out.npz"),
        ):
            (tmp_path / "out.npz").symlink_to("nowhere")
        assert (tmp_path / "out.npz").is_symlink()

    def test_force_replaces_what_is_ours(self, tmp_path: Path) -> None:
        with atomic_directory(tmp_path / "out", marker=MARKER, force=True) as folder:
            (folder / MARKER).write_text("ours")
            write(tmp_path / "out", "theirs")
        assert names(tmp_path) == ["out"] and (tmp_path / "out" / MARKER).read_text() == "ours"

    def test_force_does_not_replace_what_is_not(self, tmp_path: Path) -> None:
        with (
            pytest.raises(UsageError, match="--force replaces only what lram-export wrote"),
            atomic_directory(tmp_path / "out", marker=MARKER, force=True) as folder,
        ):
            (folder / MARKER).write_text("ours")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "thesis.tex").write_text("years of work")
        assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["thesis.tex"]

    def test_force_does_not_replace_what_came_in_the_last_moment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After the last check, before the rename."""
        write(tmp_path / "out", "before")
        checked = atomic._check_still_wanted

        def check(path: Path, marker: str | None, *, force: bool) -> None:
            checked(path, marker, force=force)
            (path / MARKER).unlink()
            (path / "thesis.tex").write_text("years of work")

        monkeypatch.setattr(atomic, "_check_still_wanted", check)
        with pytest.raises(UsageError, match=f"{tmp_path}/out: already exists, and --force replaces only what"):
            write(tmp_path / "out", "after", force=True)
        assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["thesis.tex"]

    def test_force_does_not_put_a_file_where_a_folder_came(self, tmp_path: Path) -> None:
        with (
            pytest.raises(UsageError, match="is a folder"),
            atomic_file(tmp_path / "out", force=True),
        ):
            (tmp_path / "out").mkdir()
        assert names(tmp_path) == ["out"] and (tmp_path / "out").is_dir()

    def test_of_many_processes_one_succeeds(self, tmp_path: Path, request: pytest.FixtureRequest) -> None:
        program = f"""
import pathlib, sys
from lram_export.system import renaming
from lram_export.system.files import atomic_directory, atomic_file
if {"renameat2" not in request.node.name}:
    renaming._RENAME_NOREPLACE = 1 << 10
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
for kind in (lambda: atomic_directory(folder / "out", marker="m"), lambda: atomic_file(folder / "out.npz")):
    try:
        with kind() as made:
            print("ready", flush=True)
            sys.stdin.readline()
            ((made / "m") if made.is_dir() else made).write_text(name)
        print("won", flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", program, tmp_path, str(i)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(4)
        ]
        try:
            for made in ("out/m", "out.npz"):
                assert [_line(p) for p in processes] == ["ready"] * 4
                for process in processes:
                    assert process.stdin is not None
                    process.stdin.write("go\n")
                    process.stdin.flush()
                said = [_line(p) for p in processes]
                assert sorted(said) == ["UsageError"] * 3 + ["won"]
                assert (tmp_path / made).read_text() == str(said.index("won"))
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        assert names(tmp_path) == ["out", "out.npz"]


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.usefixtures("file_system")
class TestFailure:
    def test_what_was_there_is_put_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whichever rename fails: there is always one of the two."""
        write(tmp_path / "out", "before")
        calls = _fail_at(monkeypatch, 10**9)
        write(tmp_path / "out", "before", force=True)
        for at in range(len(calls)):
            with monkeypatch.context() as patch:
                _fail_at(patch, at)
                with pytest.raises(OSError, match="injected"):
                    write(tmp_path / "out", "after", force=True)
            assert names(tmp_path) == ["out"] and (tmp_path / "out" / MARKER).read_text() == "before"


def _fail_at(monkeypatch: pytest.MonkeyPatch, at: int) -> list[str]:
    """Make the rename of that number fail, counted over all ways to rename."""
    calls: list[str] = []

    def counted(name: str, function):  # type: ignore[no-untyped-def]
        def call(*arguments):  # type: ignore[no-untyped-def]
            calls.append(name)
            if len(calls) == at + 1:
                raise OSError(errno.EIO, "injected")
            return function(*arguments)

        return call

    monkeypatch.setattr(Path, "rename", counted("rename", Path.rename))
    monkeypatch.setattr(atomic, "rename_new", counted("rename_new", renaming.rename_new))
    monkeypatch.setattr(atomic, "exchange", counted("exchange", renaming.exchange))
    return calls


def _killed(folder: Path, block: str) -> None:
    """Run a block in a process that kills itself."""
    program = (
        "import os, pathlib, sys\n"
        "from lram_export.system.files import atomic_directory, atomic_file, scratch_directory\n"
        "folder = pathlib.Path(sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", program + block, str(folder)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


class TestWhatAKilledProcessLeft:
    @pytest.mark.parametrize(
        "opened", ["atomic_directory(folder / 'old', marker='m')", "atomic_file(folder / ('old' * 80))"]
    )
    def test_is_removed_by_the_next(self, opened: str, tmp_path: Path) -> None:
        _killed(tmp_path, f"with {opened} as made:\n    os.kill(os.getpid(), 9)\n")
        assert len(names(tmp_path)) == 1
        with atomic_file(tmp_path / "other.npz"):
            assert len(names(tmp_path)) == 1
        assert names(tmp_path) == ["other.npz"]

    def test_what_it_was_about_to_replace_is_put_back(self, tmp_path: Path) -> None:
        """Killed between two renames, where the file system cannot exchange two folders."""
        write(tmp_path / "out", "before")
        _killed(
            tmp_path,
            "from lram_export.system import renaming\n"
            "renaming._RENAME_NOREPLACE = renaming._RENAME_EXCHANGE = 1 << 10\n"
            "rename = pathlib.Path.rename\n"
            "pathlib.Path.rename = lambda self, to: (rename(self, to), os.kill(os.getpid(), 9))\n"
            "with atomic_directory(folder / 'out', marker='manifest.json', force=True) as made:\n"
            "    (made / 'manifest.json').write_text('after')\n",
        )
        assert not (tmp_path / "out").exists()
        with atomic_file(tmp_path / "other.npz"):
            assert (tmp_path / "out" / MARKER).read_text() == "before"
        assert names(tmp_path) == ["other.npz", "out"]

    def test_is_removed_from_the_folder_for_temporary_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        _killed(tmp_path, "with scratch_directory() as made:\n    os.kill(os.getpid(), 9)\n")
        assert len(names(tmp_path)) == 1
        with scratch_directory() as folder:
            assert names(tmp_path) == [folder.name]
        assert names(tmp_path) == []

    @pytest.mark.parametrize("call", ["pathlib.Path.mkdir", "lram_export.system.files._lock"])
    def test_a_signal_while_a_folder_is_made_leaves_none(
        self, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module, name = call.rsplit(".", 1)
        owner = Path if module == "pathlib.Path" else atomic
        before = getattr(owner, name)

        def interrupted(*arguments: object, **options: object) -> None:
            before(*arguments, **options)
            raise KeyboardInterrupt

        monkeypatch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt), workplace(tmp_path / "out"):
            pass
        assert names(tmp_path) == []

    def test_what_others_are_writing_stays(self, tmp_path: Path) -> None:
        with workplace(tmp_path / "out") as folder:
            clear_stale(tmp_path)
            program = "import sys, pathlib, lram_export.system.files as a; a.clear_stale(pathlib.Path(sys.argv[1]))"
            subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
            assert folder.is_dir()

    @pytest.mark.parametrize("name", [".out.abc.tmp", ".out.abcdefgh.tmp", "out.abcdefgh.lram-tmp", ".lram-tmp"])
    def test_what_is_not_ours_stays(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).mkdir()
        clear_stale(tmp_path)
        assert names(tmp_path) == [name]

    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis.tex").touch()
        (tmp_path / ".out.abcdefgh.lram-tmp").symlink_to("home")
        clear_stale(tmp_path)
        assert names(tmp_path / "home") == ["thesis.tex"]

    def test_where_nothing_can_be_locked_nothing_is_taken_for_rubbish(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_locks(*_: object) -> None:
            raise OSError(errno.EBADF, "injected")  # NFS, of a folder

        monkeypatch.setattr("fcntl.flock", no_locks)
        write(tmp_path / "out", "ours")
        with workplace(tmp_path / "out") as folder:
            clear_stale(tmp_path)
            assert folder.is_dir()
        assert names(tmp_path) == ["out"]


class TestCheckOutput:
    def test_a_device_is_never_replaced(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for path in (Path("/dev/null"), tmp_path / "pipe"):
            with pytest.raises(UsageError, match=r"is a device or a pipe"):
                check_output(path, force=True)

    def test_a_dangling_link_is_something(self, tmp_path: Path) -> None:
        (tmp_path / "out").symlink_to("nowhere")
        with pytest.raises(UsageError, match="already exists"):
            check_output(tmp_path / "out", force=False)
        with pytest.raises(UsageError, match="a folder cannot replace it"):
            check_output(tmp_path / "out", force=True, marker=MARKER)
        check_output(tmp_path / "out", force=True)

    def test_force_replaces_a_link_and_not_what_it_leads_to(self, tmp_path: Path) -> None:
        write(tmp_path / "release-1", "first")
        (tmp_path / "current").symlink_to("release-1")
        write(tmp_path / "current", "second", force=True)
        assert (tmp_path / "release-1" / MARKER).read_text() == "first"
        assert names(tmp_path) == ["current", "release-1"] and not (tmp_path / "current").is_symlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


class TestAFullDisk:
    def test_the_file_and_the_bytes_are_named(self, small_disk: Path) -> None:
        with (
            pytest.raises(LramError, match=r"/disk/out.npz: no space for it: more than the \d{6,7} bytes .* needed"),
            atomic_file(small_disk / "out.npz") as file,
        ):
            file.write_bytes(bytes(2 << 20))
        assert names(small_disk) == []

    def test_the_bytes_of_a_checkpoint_are_known_before(self, small_disk: Path) -> None:
        code, line = fail("convert", GOLDEN / "state_m" / "model.zip", "-o", small_disk / "own")
        assert (code, names(small_disk)) == (1, [])
        assert "/disk/own: no space for it: 2021568 bytes are needed, and 1048576 are free" in line

    def test_also_where_foreign_code_keeps_only_the_words(self, tmp_path: Path) -> None:
        with (
            pytest.raises(LramError, match="out: no space for it: more than the 4 bytes"),
            atomic_directory(tmp_path / "out", marker=MARKER) as folder,
        ):
            (folder / "model").write_text("1234")
            raise RuntimeError("cannot serialize: No space left on device (os error 28)")
        assert names(tmp_path) == []
