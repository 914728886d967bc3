"""Bundles where robots keep them: links of build tools and stores, folders that nobody may write to, and folders that
go away while a policy runs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lram_export import Bundle, BundleError, load_policy
from lram_export.errors import UsageError
from lram_export.system.cache import CompileCache
from tests.conftest import TARGETS, ExportFunction, fail, load_golden, succeed

OLDER = Path(__file__).parent.parent / "bundles" / "schema-6.lram"
HERE = tuple(target for target in TARGETS if target != "tensorrt")


def files_of(bundle: Path) -> list[Path]:
    return [path.relative_to(bundle) for path in sorted(bundle.rglob("*")) if path.is_file()]


def link(path: Path, to: Path | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)


def installed(bundle: Path, folder: Path) -> Path:
    """As `colcon build --symlink-install` leaves it: each file a link into the folder of the sources."""
    for name in files_of(bundle):
        link(folder / "installed.lram" / name, bundle / name)
    return folder / "installed.lram"


def cached(bundle: Path, folder: Path) -> Path:
    """As in the cache of Hugging Face: each file a relative link to one that is named by its content."""
    for number, name in enumerate(files_of(bundle)):
        blob = folder / "blobs" / f"{number:064x}"
        blob.parent.mkdir(exist_ok=True)
        shutil.copy(bundle / name, blob)
        path = folder / "snapshots" / "cached.lram" / name
        link(path, os.path.relpath(blob, path.parent))
    return folder / "snapshots" / "cached.lram"


def in_store(bundle: Path, folder: Path) -> Path:
    """As Nix joins packages: each file a link to a link into a folder of its own, read-only and of 1970."""
    for number, name in enumerate(files_of(bundle)):
        stored = folder / "store" / f"{number:032x}" / name.name
        stored.parent.mkdir(parents=True)
        shutil.copy(bundle / name, stored)
        stored.chmod(0o444)
        os.utime(stored, (1, 1))
        link(folder / "profile" / str(number), stored)
        link(folder / "joined.lram" / name, folder / "profile" / str(number))
    link(folder / "current.lram", "joined.lram")
    return folder / "current.lram"


LAYOUTS: dict[str, Callable[[Path, Path], Path]] = {"installed": installed, "cached": cached, "in a store": in_store}


def acted(bundle: Path, target: str) -> NDArray[np.float32]:
    """Logits of some steps."""
    with load_policy(bundle, target, threads=1) as policy:
        width = policy.spec.inputs[0].shape[1]
        return np.stack(
            [np.array((policy.act(np.full(width, i, np.float32)), policy.action_logits)[1]) for i in range(3)]
        )


@pytest.fixture(scope="module")
def int8(exported: ExportFunction) -> Path:
    options = (*load_golden("state_ms").task_options, "--precision", "int8")
    return exported("state_ms", targets=("onnxruntime", "native"), options=options)


class TestLinks:
    @pytest.mark.parametrize("target", HERE)
    def test_every_target_acts_from_a_store(self, exported: ExportFunction, tmp_path: Path, target: str) -> None:
        bundle = exported("state_m")
        linked = in_store(bundle, tmp_path)
        np.testing.assert_array_equal(acted(linked, target), acted(bundle, target))
        Bundle.open(linked).check_files()

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_onnx_runtime_finds_codes_and_weights_behind_links(self, int8: Path, tmp_path: Path, layout: str) -> None:
        """By itself it takes no file that a link leads to out of the model's folder."""
        np.testing.assert_array_equal(acted(LAYOUTS[layout](int8, tmp_path), "onnxruntime"), acted(int8, "onnxruntime"))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_so_it_does_in_a_bundle_of_an_earlier_version(self, tmp_path: Path, layout: str) -> None:
        """Whose codes lie in the folder above the model's."""
        np.testing.assert_array_equal(
            acted(LAYOUTS[layout](OLDER, tmp_path), "onnxruntime"), acted(OLDER, "onnxruntime")
        )

    def test_commands_take_it_and_a_kit_holds_files(self, int8: Path, tmp_path: Path) -> None:
        linked, output = in_store(int8, tmp_path), tmp_path / "output"
        output.mkdir()
        np.savez(output / "steps.npz", observations=np.zeros((3, 204), np.float32))
        succeed("inspect", linked)
        succeed("verify", linked)
        succeed("run", linked, "--observations", output / "steps.npz", "-o", output / "actions.npz")
        succeed("deploy", linked, "--target", "onnxruntime", "-o", output / "kit.tar.gz")
        with tarfile.open(output / "kit.tar.gz") as kit:
            assert all(member.isfile() for member in kit if not member.isdir())
            kit.extractall(output, filter="data")
        (packed,) = output.glob("*/*.lram")
        succeed("verify", packed)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def socket_file(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)  # names of sockets are short
        listener.bind(path.name)


NO_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pipe": (pipe, "expected a file, got a pipe; copy or export"),
    "a socket": (socket_file, "expected a file, got a socket; copy or export"),
    "a folder": (Path.mkdir, "expected a file, got a folder; copy or export"),
    "a device": (
        lambda path: path.symlink_to("/dev/zero"),
        "expected a file, got a device; it is a link .*, to /dev/zero",
    ),
    "a terminal": (
        lambda path: path.symlink_to("/dev/tty"),
        "expected a file, got a device; it is a link .*, to /dev/tty",
    ),
    "a circle": (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels of symbolic links; copy or"),
    "nothing": (lambda path: path.symlink_to("nowhere"), "missing; the bundle is incomplete"),
}


class TestWhatIsNoFile:
    @pytest.mark.parametrize("kind", NO_FILES)
    @pytest.mark.parametrize("name", ["reference.npz", "onnxruntime/model.onnx", "onnxruntime/quantized.safetensors"])
    def test_it_is_refused_and_not_waited_for(
        self, int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        copy = Path(shutil.copytree(int8, tmp_path / "copy.lram"))
        make, message = NO_FILES[kind]
        (copy / name).unlink()
        make(copy / name)
        with pytest.raises(BundleError, match=f"{name}: {message}"):
            Bundle.open(copy).check_files()

    @pytest.mark.parametrize("kind", [kind for kind in NO_FILES if kind != "nothing"])
    def test_no_manifest_is_read_from_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "odd.lram").mkdir()
        NO_FILES[kind][0](tmp_path / "odd.lram" / "manifest.json")
        code, line = fail("verify", tmp_path / "odd.lram")
        assert code == 1 and "no manifest.json in it" in line
        with pytest.raises(BundleError, match=r"no manifest\.json in it"):
            load_policy(tmp_path / "odd.lram")


class TestGoneWhileRunning:
    @pytest.mark.parametrize("target", HERE)
    def test_a_policy_goes_on_as_if_nothing_were(self, exported: ExportFunction, tmp_path: Path, target: str) -> None:
        """What was loaded stays, deleted or replaced, also where not all of it was read yet."""
        bundle, copy = exported("state_m"), Path(shutil.copytree(exported("state_m"), tmp_path / "copy.lram"))
        other = Path(shutil.copytree(bundle, tmp_path / "other.lram"))
        for name in files_of(other):
            (other / name).write_bytes(b"\x55" * (other / name).stat().st_size)
        with load_policy(bundle, target, threads=1) as one, load_policy(copy, target, threads=1) as policy:
            for step in range(8):
                if step == 1:
                    copy.rename(tmp_path / "old.lram")
                    other.rename(copy)
                    shutil.rmtree(tmp_path / "old.lram")
                if step == 4:
                    shutil.rmtree(copy)
                    policy.reset()
                    one.reset()
                observation = np.full(39, step / 8, np.float32)
                np.testing.assert_array_equal(policy.act(observation), one.act(observation))
                np.testing.assert_array_equal(policy.action_logits, one.action_logits)

    def test_another_takes_over_from_one_whose_folder_is_gone(self, exported: ExportFunction, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(exported("state_m"), tmp_path / "copy.lram"))
        with load_policy(copy, "onnxruntime", threads=1) as policy:
            policy.act(np.zeros(39))
            shutil.rmtree(copy)
            assert policy.swap(exported("state_m"), "native")
            before = policy.act(np.ones(39))
            with pytest.raises(UsageError, match="no such bundle"):
                policy.swap(copy)
            assert np.isfinite(before).all() and np.isfinite(policy.act(np.ones(39))).all()


ALONE = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--map-root-user", "--mount")
"""A process whose mounts are its own."""
READ_ONLY = """
for each in "$HOME" "$LRAM_CACHE_DIR" store; do
    mount --bind "$each" "$each"
    mount -o remount,ro,bind "$each"
done
exec "$0" -c "$COMMANDS" "$@"
"""
COMMANDS = """
import sys
from pathlib import Path

from lram_export.cli import main
from lram_export.system.cache import CompileCache
from lram_export.targets.tensorrt.engines import EngineStore

bundle, targets = sys.argv[1], [f"--target={target}" for target in sys.argv[2:]]
for command in (
    ["inspect", bundle, "--quiet"],
    ["interface", bundle],
    ["verify", bundle, *targets, "--quiet"],
    ["bench", bundle, *targets, "--steps=5", "--quiet"],
    ["run", bundle, "--observations=steps.npz", "--output=actions.npz", "--quiet"],
    ["report", bundle, "--output=report.html", "--no-timing", "--quiet"],
    ["deploy", bundle, "--target=onnxruntime", "--output=kit.tar.gz", "--quiet"],
):
    main(command, standalone_mode=False)
assert bytes(CompileCache.of("kept").read({"of": "before"})) == b"content"
assert EngineStore.of(Path(bundle)).folder.parent == CompileCache.of("tensorrt").folder
for folder in (bundle, Path.home()):
    try:
        Path(folder, "new").touch()
    except OSError:
        continue
    raise SystemExit(f"{folder} can be written to")
"""


@pytest.mark.skipif(subprocess.run([*ALONE, "true"], check=False).returncode != 0, reason="no mounts of one's own here")
def test_commands_that_read_need_no_folder_to_write_to(exported: ExportFunction, tmp_path: Path) -> None:
    """Bundle, home and cache on read-only file systems: nothing is written, nothing fails, nothing is said."""
    bundle, kept = tmp_path / "store" / "reach.lram", CompileCache(tmp_path / "cache" / "kept")
    shutil.copytree(exported("state_m"), bundle)
    kept.write({"of": "before"}, memoryview(b"content"))
    (tmp_path / "home").mkdir()
    np.savez(tmp_path / "steps.npz", observations=np.zeros((3, 39), np.float32))
    own = {"HOME": str(tmp_path / "home"), "LRAM_CACHE_DIR": str(tmp_path / "cache"), "MPLCONFIGDIR": str(tmp_path)}
    others = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name and "XDG" not in name}
    targets = [target for target in HERE if target != "pytorch"]
    done = subprocess.run(
        [*ALONE, "sh", "-ec", READ_ONLY, sys.executable, bundle, *targets],
        cwd=tmp_path,
        env={**others, **own, "COMMANDS": COMMANDS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not list((tmp_path / "home").iterdir()) and [p.name for p in (tmp_path / "cache").iterdir()] == ["kept"]


def test_libraries_do_not_report_that_they_are_used(tmp_path: Path) -> None:
    """They would write who they are into the home, and open a connection."""
    program = "from lram_export.runtimes import unavailable; print(unavailable('onnxruntime'), unavailable('openvino'))"
    clean = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name and "XDG" not in name}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("None None\n", "") and not list(tmp_path.iterdir())
