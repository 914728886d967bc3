"""The digests of a bundle's files: every byte counts, whoever reads it, and a large file is read by several threads."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lram_export import Bundle, BundleError, load_policy
from lram_export.bundle import digests
from lram_export.bundle.bundle import PIECES_DIFFER
from lram_export.bundle.digests import PIECE_BYTES, both_digests, pieces_sha256
from lram_export.bundle.writer import BundleWriter
from lram_export.system.threads import beside
from tests.conftest import ExportFunction, fail, succeed

SIZES = (0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES, 2 * PIECE_BYTES + 5)


def digests_of(path: Path, threads: int = 1) -> tuple[str, str | None, str]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return *both_digests(file.fileno(), size), pieces_sha256(file.fileno(), size, threads)


class TestDigests:
    @pytest.mark.parametrize("size", SIZES)
    def test_they_are_what_hashlib_says_of_the_whole_and_of_its_pieces(self, tmp_path: Path, size: int) -> None:
        content = os.urandom(size)
        (tmp_path / "file").write_bytes(content)
        pieces = [content[start : start + PIECE_BYTES] for start in range(0, size, PIECE_BYTES)]
        lines = "".join(f"{hashlib.sha256(piece).hexdigest()}\n" for piece in pieces)
        joined = hashlib.sha256(lines.encode()).hexdigest()
        expected = (hashlib.sha256(content).hexdigest(), joined if size > PIECE_BYTES else None, joined)
        for threads in (1, 2, 7):
            assert digests_of(tmp_path / "file", threads) == expected

    def test_tools_of_every_linux_say_the_same(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(os.urandom(2 * PIECE_BYTES + 3))
        line = "split -b 4M --filter=sha256sum file | cut -c -64 | sha256sum"
        said = subprocess.run(line, shell=True, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        assert digests_of(tmp_path / "file")[1] == said.split()[0]

    @pytest.mark.parametrize("threads", [1, 3])
    def test_a_file_that_becomes_shorter_or_cannot_be_read(self, tmp_path: Path, threads: int) -> None:
        path, size = tmp_path / "file", 3 * PIECE_BYTES
        path.write_bytes(bytes(size))
        with path.open("rb") as file:
            before = pieces_sha256(file.fileno(), size, threads)
            os.truncate(path, size - 1)
            assert pieces_sha256(file.fileno(), size, threads) != before
        with path.open("ab") as closed, pytest.raises(OSError, match="Bad file descriptor"):
            pieces_sha256(closed.fileno(), size, threads)
        assert not [thread for thread in threading.enumerate() if thread.name == "lram-hash"]

    def test_progress_is_told_every_byte(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(bytes(PIECE_BYTES + 7))
        told: list[int] = []
        with (tmp_path / "file").open("rb") as file:
            both_digests(file.fileno(), PIECE_BYTES + 7, told.append)
        assert sum(told) == PIECE_BYTES + 7 and len(told) > 2


class TestBeside:
    def test_both_are_done_at_the_end(self) -> None:
        done: list[int] = []
        with beside(lambda: done.append(threading.get_ident())):
            pass
        assert done != [threading.get_ident()] and len(done) == 1

    def test_what_the_work_raised_comes_before_what_the_block_raised(self) -> None:
        def work() -> None:
            raise BundleError("damaged")

        with pytest.raises(BundleError, match="damaged"), beside(work):
            raise ValueError("what damage does")
        with pytest.raises(ValueError, match="by itself"), beside(lambda: None):
            raise ValueError("by itself")


PIECE = 1 << 12
"""So small that the models of the tests have many."""


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(digests, "PIECE_BYTES", PIECE)
    yield


@pytest.fixture
def bundle(small_pieces: None, exported: ExportFunction, tmp_path: Path) -> Path:
    """A copy to be damaged, for two targets, with the digests that it would have if its files were large."""
    path = Path(shutil.copytree(exported("state_m", targets=("onnxruntime", "native")), tmp_path / "copy.lram"))
    writer = BundleWriter(path, path.name)

    def digest(document: dict[str, Any]) -> None:
        for artifact in document["artifacts"]:
            artifact["files"] = [writer.entry(path / file["path"]).to_json() for file in artifact["files"]]

    edit(path, digest)
    return path


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    change(document)
    (bundle / "manifest.json").write_text(json.dumps(document))


def entry_of(document: dict[str, Any], path: str) -> dict[str, Any]:
    files = [file for artifact in document["artifacts"] for file in artifact["files"]]
    return next(file for file in files if file["path"] == path)


FILES = {"native": "native/model.lrn", "onnxruntime": "onnxruntime/model.onnx.data"}


@pytest.mark.parametrize("target", FILES)
class TestLoading:
    def test_large_files_have_both_and_load(self, bundle: Path, target: str) -> None:
        for artifact in Bundle.open(bundle).manifest.artifacts:
            for file in artifact.files:
                assert (file.pieces_sha256 is not None) == (file.size > PIECE)
        for threads in (1, 2):
            load_policy(bundle, target, threads=threads).close()
        Bundle.open(bundle).check_files()
        succeed("verify", bundle, "--target", target, "--quiet")

    @pytest.mark.parametrize("place", [0, PIECE, -1])
    def test_any_byte_counts(self, bundle: Path, target: str, place: int) -> None:
        path = bundle / FILES[target]
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(BundleError, match=f"{FILES[target]}: {PIECES_DIFFER}; copy or export it again"):
            load_policy(bundle, target, threads=2)
        with pytest.raises(BundleError, match=f"{FILES[target]}: content differs from the manifest's SHA-256; copy"):
            Bundle.open(bundle).check_files()

    def test_the_digest_of_pieces_is_what_loading_goes_by(self, bundle: Path, target: str) -> None:
        edit(bundle, lambda d: entry_of(d, FILES[target]).update(pieces_sha256="0" * 64))
        with pytest.raises(BundleError, match=PIECES_DIFFER):
            load_policy(bundle, target)
        for command in ("verify", "inspect"):
            assert PIECES_DIFFER in fail(command, bundle)[1]

    def test_an_altered_sha256_is_noticed_by_commands_that_check_all(self, bundle: Path, target: str) -> None:
        before = Bundle.open(bundle)
        edit(bundle, lambda d: entry_of(d, FILES[target]).update(sha256="0" * 64))
        load_policy(bundle, target).close()  # every byte was compared
        assert before.artifact_digest(target) == Bundle.open(bundle).artifact_digest(target)
        for command in (("verify", bundle, "--target", target), ("inspect", bundle)):
            assert "content differs from the manifest's SHA-256;" in fail(*command)[1]

    def test_without_it_the_sha256_decides(self, bundle: Path, target: str) -> None:
        """As in bundles of earlier versions, whose manifests read the same."""
        edit(bundle, lambda d: entry_of(d, FILES[target]).pop("pieces_sha256"))
        load_policy(bundle, target, threads=2).close()
        edit(bundle, lambda d: entry_of(d, FILES[target]).update(sha256="0" * 64))
        with pytest.raises(BundleError, match="content differs from the manifest's SHA-256;"):
            load_policy(bundle, target)

    @pytest.mark.parametrize("odd", ["x", "0" * 63, "A" * 64, None, 7])
    def test_what_is_no_digest_is_refused(self, bundle: Path, target: str, odd: object) -> None:
        edit(bundle, lambda d: entry_of(d, FILES[target]).update(pieces_sha256=odd))
        with pytest.raises(BundleError, match=r"artifacts\[\d\]\.files\[\d\]\.pieces_sha256: expected"):
            Bundle.open(bundle)


class TestOpenedWhileCompared:
    """The target `native` opens its file beside the threads that hash it."""

    def test_damage_is_told_as_such_though_the_engine_refuses_the_file(self, bundle: Path) -> None:
        path = bundle / FILES["native"]
        path.write_bytes(b"\0" * path.stat().st_size)
        with pytest.raises(BundleError, match=PIECES_DIFFER):
            load_policy(bundle, "native")

    def test_the_engine_has_the_last_word_where_the_file_is_as_listed(self, bundle: Path) -> None:
        path = bundle / FILES["native"]
        path.write_bytes(b"\0" * path.stat().st_size)
        edit(bundle, lambda d: d["artifacts"][1]["files"].__setitem__(0, _entry(bundle, path)))
        with pytest.raises(BundleError, match="not an artifact of the target `native`"):
            load_policy(bundle, "native")

    def test_a_file_of_another_size_and_what_is_no_file_are_not_opened(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("lram_export.policy.load_runtime", lambda *_: pytest.fail("opened"))
        path = bundle / FILES["native"]
        os.truncate(path, path.stat().st_size - 8)
        with pytest.raises(BundleError, match="bytes, the manifest says"):
            load_policy(bundle, "native")
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(BundleError, match="expected a file, got a pipe"):
            load_policy(bundle, "native")

    def test_what_was_opened_of_a_damaged_file_is_closed(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from lram_export.runtimes import load_runtime
        from lram_export.runtimes.native import NativeRuntime

        closed: list[object] = []
        close = NativeRuntime.close
        monkeypatch.setattr(NativeRuntime, "close", lambda self: (closed.append(self), close(self))[1])
        path = bundle / FILES["native"]
        content = bytearray(path.read_bytes())
        content[-1] ^= 1  # a weight: nothing that the engine can know
        path.write_bytes(content)
        with pytest.raises(BundleError, match=PIECES_DIFFER):
            load_policy(bundle, "native", threads=2)
        assert len(closed) == 1 and load_runtime is not None


def _entry(bundle: Path, path: Path) -> dict[str, Any]:
    return BundleWriter(bundle, "").entry(path).to_json()
