"""What can be wrong below the target `native`: an error that names it, never a crash, never a changed state."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lram_export import load_policy
from lram_export.bundle.bundle import Bundle
from lram_export.bundle.manifest import MANIFEST_FILE
from lram_export.errors import BundleError, StepError
from lram_export.system.files import file_sha256
from lram_export.system.machine import total_memory
from lram_export.targets.native.format import FORMAT_VERSION
from tests.conftest import ExportFunction, fail, load_golden

_native = pytest.importorskip("lram_export._native", reason="the native engine was not compiled")

VERSION_AT, FILE_BYTES_AT = 8, 16


@pytest.fixture
def bundle(exported: ExportFunction) -> Path:
    return exported("state_ms", targets=("native",))


@pytest.fixture
def artifact(bundle: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    path = tmp_path / "model.lrn"
    path.write_bytes((bundle / "native" / "model.lrn").read_bytes())
    return path


def refused(path: Path, kind: type[Exception]) -> str:
    """Why the engine does not open a file; one line that begins with its name."""
    with pytest.raises(kind) as caught:
        _native.Model(str(path), threads=1)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text


def patch(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def inputs(observation: np.ndarray, first: int) -> tuple[np.ndarray, ...]:
    """Those of a step of one row."""
    return observation[None], *(np.array([value], np.float32) for value in (0.5, 0, first))


def flip(path: Path, at: int) -> None:
    """The highest bit of a byte."""
    patch(path, at, bytes([path.read_bytes()[at] ^ 0x80]))


class TestArtifact:
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda p: p.write_bytes(p.read_bytes()[:-4096]), "file_bytes: expected"),
            (lambda p: p.write_bytes(p.read_bytes()[:100]), "expected at least 192 bytes, got 100"),
            (lambda p: p.write_bytes(b""), "expected at least 192 bytes, got 0"),
            (lambda p: p.write_bytes(bytes(4096)), "magic: not an artifact of the target `native`"),
            (lambda p: p.write_bytes(b"\x7fELF" * 1024), "magic: not an artifact of the target `native`"),
            (lambda p: patch(p, p.stat().st_size // 2, b"\xa5\x5a\xa5\x5a"), "checksum: the file was altered"),
            (lambda p: patch(p, 60, b"\x03"), "checksum: the file was altered"),
            (lambda p: (flip(p, 5003), flip(p, 5019)), "checksum: the file was altered"),
            (
                lambda p: patch(p, VERSION_AT, b"\x01"),
                f"version: this artifact has 1, this library reads {FORMAT_VERSION}; export the bundle again",
            ),
            (
                lambda p: patch(p, VERSION_AT, struct.pack("<I", FORMAT_VERSION + 1)),
                f"version: this artifact has {FORMAT_VERSION + 1}, this library reads {FORMAT_VERSION}; update",
            ),
        ],
        ids=[
            "cut off",
            "cut short",
            "empty",
            "zeros",
            "another file",
            "altered",
            "altered header",
            "two highest bits",
            "older",
            "newer",
        ],
    )
    def test_damage_is_named(self, damage: Callable[[Path], object], message: str, artifact: Path) -> None:
        damage(artifact)
        assert message in refused(artifact, RuntimeError)

    def test_what_is_no_file_is_named(self, tmp_path: Path) -> None:
        assert "expected a file" in refused(tmp_path, RuntimeError)
        assert "No such file or directory" in refused(tmp_path / "nowhere.lrn", RuntimeError)
        os.mkfifo(tmp_path / "pipe.lrn")  # must not be waited for
        assert "expected a file" in refused(tmp_path / "pipe.lrn", RuntimeError)

    def test_one_larger_than_memory_is_refused_before_it_is_read(self, artifact: Path) -> None:
        memory = total_memory()
        assert memory is not None
        size = memory + 4096
        try:
            os.truncate(artifact, size)  # a hole: takes no disk
        except OSError:
            pytest.skip("no file of that size here")
        assert "file_bytes: expected" in refused(artifact, RuntimeError)
        patch(artifact, FILE_BYTES_AT, struct.pack("<Q", size))
        assert f"{size} bytes do not fit the memory of this machine" in refused(artifact, MemoryError)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            ("limit(); _native.Model(path, threads=1)", "cannot be mapped: Cannot allocate memory"),
            ("model = _native.Model(path, threads=1); limit(); _native.State(model, 4096)", "bytes cannot be had"),
        ],
        ids=["artifact", "state"],
    )
    def test_an_address_space_that_is_too_small_is_an_error(self, call: str, message: str, artifact: Path) -> None:
        program = f"""
import resource
from lram_export import _native
path = {str(artifact)!r}
def limit():
    used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + 100_000, resource.RLIM_INFINITY))
try:
    {call}
except MemoryError as error:
    print(error)
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and message in done.stdout, done.stderr

    def test_other_threads_run_while_it_is_opened(self, artifact: Path) -> None:
        size = 256 << 20
        os.truncate(artifact, size)  # a hole, which is read all the same
        patch(artifact, FILE_BYTES_AT, struct.pack("<Q", size))
        rounds, done = [0], threading.Event()

        def work() -> None:
            while not done.is_set():
                rounds[0] += 1
                time.sleep(0)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(60)  # a thread gives up Python's lock by itself, or not at all
        worker = threading.Thread(target=work)
        worker.start()
        try:
            time.sleep(0.05)
            before = rounds[0]
            _native.Model(str(artifact), threads=1)
            assert rounds[0] > before
        finally:
            done.set()
            sys.setswitchinterval(interval)
            worker.join()

    def test_a_newer_one_in_a_bundle_is_one_line(self, exported: ExportFunction, tmp_path: Path) -> None:
        bundle = tmp_path / "newer.lram"
        subprocess.run(["cp", "-r", exported("state_ms", targets=("native",)), bundle], check=True)
        model = bundle / "native" / "model.lrn"
        patch(model, VERSION_AT, struct.pack("<I", FORMAT_VERSION + 1))
        assert "content differs from the manifest's SHA-256" in fail("verify", bundle)[1]
        manifest = json.loads((bundle / MANIFEST_FILE).read_text(encoding="utf-8"))
        (entry,) = manifest["artifacts"][0]["files"]
        entry["sha256"] = file_sha256(model)
        (bundle / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")
        code, line = fail("verify", bundle)
        assert code == 1 and f"model.lrn: version: this artifact has {FORMAT_VERSION + 1}" in line

    def test_a_load_checks_what_it_reads_and_verify_checks_all(self, exported: ExportFunction, tmp_path: Path) -> None:
        options = [*load_golden("state_m").task_options, "--precision", "int8"]
        bundle = tmp_path / "spoiled.lram"
        subprocess.run(["cp", "-r", exported("state_m", targets=("native",), options=options), bundle], check=True)
        patch(bundle / "quantized.safetensors", 5000, b"\xa5\x5a")
        load_policy(bundle, "native", threads=1).close()
        assert "quantized.safetensors: content differs" in fail("verify", bundle)[1]
        patch(bundle / "native" / "model.lrn", 5000, b"\xa5\x5a")
        with pytest.raises(BundleError, match=r"model\.lrn: content differs"):
            load_policy(bundle, "native", threads=1)

    def test_one_that_is_not_the_manifests_is_one_line(self, exported: ExportFunction, tmp_path: Path) -> None:
        bundle, other = tmp_path / "mixed.lram", exported("state_m", targets=("native",))
        subprocess.run(["cp", "-r", exported("state_ms", targets=("native",)), bundle], check=True)
        model = bundle / "native" / "model.lrn"
        model.write_bytes((other / "native" / "model.lrn").read_bytes())
        manifest = json.loads((bundle / MANIFEST_FILE).read_text(encoding="utf-8"))
        (entry,) = manifest["artifacts"][0]["files"]
        entry["sha256"], entry["size"] = file_sha256(model), model.stat().st_size
        (bundle / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")
        code, line = fail("verify", bundle)
        assert code == 1 and "header.action_dim: the file says 4, the manifest 8" in line

    @pytest.mark.parametrize(
        ("kind", "edit"),
        [
            ("inputs", lambda fields: fields.pop(2)),
            ("inputs", lambda fields: fields[1].update(name="reward_to_go")),
        ],
    )
    def test_fields_that_are_not_the_manifests_are_one_line(
        self, kind: str, edit: Callable[[list[dict[str, object]]], object], bundle: Path, tmp_path: Path
    ) -> None:
        copy = tmp_path / "edited.lram"
        subprocess.run(["cp", "-r", bundle, copy], check=True)
        manifest = json.loads((copy / MANIFEST_FILE).read_text(encoding="utf-8"))
        edit(manifest["specification"][kind])
        (copy / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")
        with pytest.raises(BundleError, match=f"its {kind} are not those that the manifest describes"):
            load_policy(copy, "native", threads=1)


class TestState:
    """Through the binding, without the checks of the runtime before it."""

    @pytest.fixture
    def running(self, bundle: Path) -> tuple[_native.State, list[np.ndarray]]:
        """A state after some steps, and the arrays it reads and writes."""
        spec = Bundle.open(bundle).manifest.spec
        arrays = [np.zeros(t.shape, t.dtype) for t in (*spec.inputs, *spec.outputs)]
        state = _native.State(_native.Model(str(bundle / "native" / "model.lrn"), threads=1), spec.batch_size)
        state.bind(arrays[:4], arrays[4:])
        arrays[0][:] = np.random.default_rng(0).standard_normal(arrays[0].shape)
        for _ in range(5):
            state.step()
        return state, arrays

    @staticmethod
    def saved(state: _native.State) -> np.ndarray:
        values = np.empty(state.size, np.float32)
        state.save(values)
        return values

    @pytest.mark.parametrize(
        ("index", "value", "message"),
        [
            (0, np.nan, "observation: expected finite values, got nan at element 0"),
            (0, np.inf, "observation: expected finite values, got inf at element 0"),
            (1, np.nan, "return_to_go: expected finite values, got nan at element 0"),
            (2, -np.inf, "reward: expected finite values, got -inf at element 0"),
            (3, 0.5, "is_first: expected 0 or 1, got 0.5"),
            (3, np.nan, "is_first: expected 0 or 1, got nan"),
        ],
    )
    def test_a_bad_input_changes_neither_state_nor_outputs(
        self, running: tuple[_native.State, list[np.ndarray]], index: int, value: float, message: str
    ) -> None:
        state, arrays = running
        before, outputs = self.saved(state), [a.copy() for a in arrays[4:]]
        arrays[index].reshape(-1)[0] = value
        with pytest.raises(ValueError, match=message):
            state.step()
        np.testing.assert_array_equal(self.saved(state), before)
        for found, expected in zip(arrays[4:], outputs, strict=True):
            np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize(("index", "name"), [(0, "observation"), (1, "return_to_go"), (2, "reward")])
    def test_an_input_too_large_changes_neither_state_nor_outputs(
        self, running: tuple[_native.State, list[np.ndarray]], index: int, name: str
    ) -> None:
        state, arrays = running
        before, outputs = self.saved(state), [a.copy() for a in arrays[4:]]
        arrays[index].reshape(-1)[0] = 1e38
        with pytest.raises(OverflowError, match=rf"{name}: 1e\+38 in row 0 is too large"):
            state.step()
        np.testing.assert_array_equal(self.saved(state), before)
        for found, expected in zip(arrays[4:], outputs, strict=True):
            np.testing.assert_array_equal(found, expected)
        arrays[index].reshape(-1)[0] = 0
        state.step()

    @pytest.mark.parametrize("isa", _native.instruction_sets())
    @pytest.mark.parametrize("state_format", ["float32", "lazy-fp16"])
    def test_a_spoilt_state_is_refused_until_an_episode_starts(
        self, isa: str, state_format: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LRAM_ISA", isa)
        monkeypatch.setenv("LRAM_NATIVE_STATE_FORMAT", state_format)
        observation = np.linspace(-1, 1, Bundle.open(bundle).manifest.task.observation_dim, dtype=np.float32)
        with load_policy(bundle, "native", threads=1) as policy, load_policy(bundle, "native", threads=1) as fresh:
            runtime = policy.runtime
            action = runtime.step(*inputs(observation, 1)).action.copy()
            runtime._episodes.memory()[:] = np.nan
            with pytest.raises(StepError, match="its state is lost"):
                runtime.step(*inputs(observation, 0))
            with pytest.raises(StepError, match="row 0 was lost in an earlier step; reset it, load one, or start"):
                runtime.step(*inputs(observation, 0))
            with pytest.raises(StepError, match="row 0 was lost in an earlier step"):
                runtime.state()
            np.testing.assert_array_equal(runtime._outputs.action, action)
            for first in (1, 0, 0):
                expected = fresh.runtime.step(*inputs(observation, first))
                found = runtime.step(*inputs(observation, first))
                np.testing.assert_array_equal(found.action_logits, expected.action_logits)

    def test_a_saved_state_that_does_not_fit_changes_nothing(
        self, running: tuple[_native.State, list[np.ndarray]]
    ) -> None:
        state, _ = running
        before = self.saved(state)
        with pytest.raises(ValueError, match=rf"count: this state has {state.size} values, got {state.size - 1}"):
            state.load(before[:-1].copy())
        spoiled = 2 * before
        spoiled[-1] = np.nan
        with pytest.raises(ValueError, match=r"state\.\d\.m: expected finite values, got nan at element"):
            state.load(spoiled)
        spoiled = before.copy()
        spoiled[0] = -1e18
        with pytest.raises(ValueError, match=r"state\.0\.conv: expected magnitudes up to 1e\+17, got -1e\+18"):
            state.load(spoiled)
        np.testing.assert_array_equal(self.saved(state), before)

    def test_arrays_of_another_batch_are_refused(
        self, bundle: Path, running: tuple[_native.State, list[np.ndarray]]
    ) -> None:
        state = _native.State(_native.Model(str(bundle / "native" / "model.lrn"), threads=1), 2)
        with pytest.raises(ValueError, match=r"observation: expected 1632 bytes, got 816"):
            state.bind(running[1][:4], running[1][4:])

    def test_arrays_that_cannot_be_used_as_they_are_are_refused(
        self, running: tuple[_native.State, list[np.ndarray]]
    ) -> None:
        state, arrays = running
        given, wanted = arrays[:4], arrays[4:]
        shown = wanted[1].copy()
        shown.flags.writeable = False
        before = self.saved(state)
        for inputs, outputs, message in (
            (given[:3], wanted, "inputs: expected 4 arrays, got 3"),
            (given, wanted[:1], "outputs: expected 2 arrays, got 1"),
            ([np.zeros((1, 408), np.float32)[:, ::2], *given[1:]], wanted, "observation: expected a contiguous array"),
            ([given[0].tolist(), *given[1:]], wanted, "observation: expected a contiguous array"),
            (given, [wanted[0], shown], "action_logits: expected a contiguous array"),
            (given, [wanted[0][:, :3].copy(), wanted[1]], "action: expected 32 bytes, got 12"),
        ):
            with pytest.raises(ValueError, match=message):
                state.bind(inputs, outputs)
        state.step()  # with the arrays from before
        assert not np.array_equal(self.saved(state), before)

    def test_an_input_that_is_read_is_not_none(self, running: tuple[_native.State, list[np.ndarray]]) -> None:
        state, arrays = running
        state.bind([*arrays[:2], None, arrays[3]], arrays[4:])
        with pytest.raises(ValueError, match="reward: expected an array, got NULL"):
            state.step()

    @pytest.mark.parametrize("batch", [0, -1, 5000])
    def test_a_batch_that_cannot_be_is_named(self, batch: int, bundle: Path) -> None:
        model = _native.Model(str(bundle / "native" / "model.lrn"), threads=1)
        with pytest.raises(ValueError, match=f"batch: expected 1 to 4096, got {batch}"):
            _native.State(model, batch)


@pytest.mark.parametrize("threads", [1, 2])
def test_after_a_fork_the_first_call_is_an_error_and_nothing_waits(threads: int, bundle: Path) -> None:
    program = f"""
import os, signal
import numpy as np
from lram_export import load_policy
bundle, observation = {str(bundle)!r}, np.zeros(204, np.float32)
policy = load_policy(bundle, "native", threads={threads})
expected = policy.act(observation).copy()
if os.fork() == 0:
    signal.alarm(60)
    try:
        policy.act(observation)
    except RuntimeError as error:
        print(error, flush=True)
    policy.close()
    del policy
    own = load_policy(bundle, "native", threads={threads})
    assert (own.act(observation) == expected).all()
    raise SystemExit
assert os.wait()[1] == 0
policy.act(observation)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "fork" in done.stdout and len(done.stdout.splitlines()) == 1
