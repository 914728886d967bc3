"""A kit in C proves itself: made with a library that is built here, compiled by the lines of its README, run there."""

from __future__ import annotations

import json
import platform
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lram_export import ExportOptions, export_bundle
from lram_export.bundle.bundle import Bundle
from lram_export.deploy.recording import pack_recording
from lram_export.quantization.quantize import QuantizationOptions
from tests.conftest import ExportFunction, cli, load_golden, succeed
from tests.deploy.test_deploy import unpack
from tests.step_module.modules import POLICIES
from tests.tamper.bundles import seal, with_checksum
from tests.targets.test_native_install import prefix, pytestmark  # noqa: F401
from wheels.matrix import Library
from wheels.packing import pack

Kits = Callable[[Path], Path]
NAMES = ("xlstm", "images", "module")


@pytest.fixture(scope="module")
def kits(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Kits:  # noqa: F811
    """Of a bundle an unpacked kit for this machine."""
    dist = tmp_path_factory.mktemp("dist")
    pack(prefix, Library(platform.machine()), {}, dist)

    def make(bundle: Path) -> Path:
        folder = tmp_path_factory.mktemp("kit")
        succeed("deploy", bundle, "-o", folder / "kit.tar.gz", "--language", "c", "--dist", dist, "-q")
        return unpack(folder / "kit.tar.gz", folder / "unpacked")

    return make


@pytest.fixture(scope="module")
def bundles(exported: ExportFunction, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An xLSTM of codes in a batch; images and discrete actions; a module's own fields, scores, and numbers of any
    magnitude."""

    def of(name: str, batch: int, *options: str) -> Path:
        task = load_golden(name).task_options
        return exported(name, targets=("native",), batch=batch, options=[*task, *options])

    module = tmp_path_factory.mktemp("own") / "awkward.lram"
    options = ExportOptions(("native",), 2, report=False, quantization=QuantizationOptions("int8"), reference_steps=32)
    export_bundle(POLICIES["awkward"](), None, module, options)
    return {
        "xlstm": of("state_ms", 2, "--precision", "int8"),
        "images": of("image_m", 1),
        "module": module,
    }


@pytest.fixture(scope="module")
def made(kits: Kits, bundles: dict[str, Path]) -> dict[str, Path]:
    """Unpacked kits whose README's first two commands compiled the program that checks."""
    found = {name: kits(bundles[name]) for name in NAMES}
    for kit in found.values():
        compiler = commands(kit)[0].replace("g++", "g++ -Wall -Wextra -Wpedantic -Werror")
        subprocess.run(["sh", "-c", compiler], check=True, cwd=kit)
    return found


def commands(kit: Path) -> list[str]:
    """What the README says to type."""
    lines = [line.strip() for line in (kit / "README.txt").read_text().splitlines()]
    return [line for line in lines if line.startswith(("g++", "./"))]


def check(kit: Path, **instead: Path) -> tuple[int, list[str]]:
    """Exit code and lines of the README's second command, with another ``model`` or ``reference``."""
    program, model, reference = commands(kit)[1].split()
    arguments = (program, instead.get("model", model), instead.get("reference", reference))
    done = subprocess.run(arguments, cwd=kit, capture_output=True, text=True)
    assert bool(done.stderr) != bool(done.stdout)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def model_of(kit: Path) -> Path:
    return next(kit.glob("*.lram")) / "native" / "model.lrn"


def compare(lines: list[str], bundle: Path) -> None:
    """Whether every line is what `verify` finds of a bundle, digit by digit."""
    done = cli("verify", bundle, "--target", "native", "--threads", "1", "--json")
    expected = json.loads(done.stdout)["targets"]["native"]
    assert done.exit_code == (0 if expected["passed"] else 1)
    said = {line.split()[0]: line.partition(" ")[2].strip() for line in lines}
    unit = "" if expected["precision"] == "fp32" else ", relative"
    assert said["steps"].startswith(f"{expected['steps']} with ")
    error = expected["relative_error" if unit else "max_logit_error"]
    assert error > 0 and said["error"].startswith(f"{error:.2g}{unit}, at most ")
    worst = expected["worst"]
    assert said["worst"].startswith(f"step {worst['step']}, row {worst['row']}, ")
    assert said["worst"].endswith(f": recorded {worst['expected']:.6g}, here {worst['actual']:.6g}")
    assert said["state"].startswith(f"{expected['state_error']:.2g}, relative, at most ")
    assert said["state"].endswith(f"; the largest in {expected['worst_state']}")
    different = expected["actions_different"]
    actions = f"{different} of {expected['actions']} differ" if expected["actions"] else ""
    if different:
        tie = expected["largest_tie"]  # None: infinite
        actions += ", not all of them at a tie" if tie is None else f", at ties within {tie:.2g}{unit}, at most "
    assert said.get("actions", "").startswith(actions)
    assert said["verdict"] == ("passed" if expected["passed"] else "FAILED")


@pytest.mark.parametrize("name", NAMES)
def test_it_finds_what_verify_finds(name: str, made: dict[str, Path]) -> None:
    code, lines = check(made[name])
    assert code == 0 and lines[-1] == "verdict  passed"
    assert lines[0].startswith(f"model    {made[name].name}, ") and lines[1].endswith(
        "1 row" if name == "images" else "2 rows"
    )
    compare(lines, next(made[name].glob("*.lram")))


def test_a_policy_without_memory_has_no_state_to_compare(kits: Kits, tmp_path: Path) -> None:
    bundle = tmp_path / "plain.lram"
    export_bundle(POLICIES["plain"](), None, bundle, ExportOptions(("native",), report=False))
    kit = kits(bundle)
    subprocess.run(["sh", "-c", commands(kit)[0]], check=True, cwd=kit)
    code, lines = check(kit)
    assert code == 0 and lines[-1] == "verdict  passed"


@pytest.mark.parametrize("name", ["images", "xlstm"])
@pytest.mark.parametrize("tied", [True, False])
def test_of_other_actions_it_finds_what_verify_finds(
    tied: bool, name: str, made: dict[str, Path], bundles: dict[str, Path], tmp_path: Path
) -> None:
    bundle, reference = tmp_path / "other.lram", tmp_path / "other.lrs"
    shutil.copytree(bundles[name], bundle)
    with np.load(bundle / "reference.npz") as file:
        recorded = dict(file)
    recorded["action"][3, 0, 0] += 1
    if tied:  # recorded as if the second best had been the best
        logits = recorded["action_logits"][3, 0].reshape(-1, recorded["action_logits"].shape[-1])[0]
        second, best = np.argsort(logits)[-2:]
        logits[[second, best]] = logits[[best, second]]
    np.savez(bundle / "reference.npz", **recorded)
    seal(bundle)
    reference.write_bytes(pack_recording(Bundle.open(bundle), "native"))
    code, lines = check(made[name], reference=reference)
    assert lines[-2].startswith("actions  1 of ") and ("at ties within" in lines[-2]) is tied
    assert code == (0 if tied and name == "xlstm" else 1)  # of whose many choices the second best is all but as good
    compare(lines, bundle)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_whose_weights_are_others_fails(name: str, made: dict[str, Path], tmp_path: Path) -> None:
    model = tmp_path / "model.lrn"
    content = bytearray(model_of(made[name]).read_bytes())
    content[len(content) // 2 : len(content) // 2 + 256] = bytes(256)
    model.write_bytes(with_checksum(bytes(content)))
    code, lines = check(made[name], model=model)
    assert code == 1 and lines[-1] == "verdict  FAILED"
    model.write_bytes(bytes(content))
    code, lines = check(made[name], model=model)
    assert code == 1 and len(lines) == 1 and "model.lrn: checksum: the file was altered" in lines[0]


def altered(content: bytes, place: int, by: bytes) -> bytes:
    """A recording with other bytes at a place, and a checksum that fits them."""
    changed = content[16:place] + by + content[place + len(by) :]
    return content[:12] + struct.pack("<I", zlib.crc32(changed)) + changed


def test_a_recording_that_says_otherwise_fails(made: dict[str, Path], tmp_path: Path) -> None:
    kit, reference = made["images"], tmp_path / "reference.lrs"
    content = (kit / "reference.lrs").read_bytes()
    first = content.index(b"is_first")
    assert content[first + 8 :][:4] == b"\0\0\0\0"
    for place, by in (
        (len(content) - 4, struct.pack("<f", 1e3)),  # the last number of the last tensor of the state
        (len(content) // 2, bytes(4096)),  # part of an image
    ):
        reference.write_bytes(altered(content, place, by))
        code, lines = check(kit, reference=reference)
        assert code == 1 and lines[-1] == "verdict  FAILED"


def test_what_is_no_such_recording_is_one_line(made: dict[str, Path], tmp_path: Path) -> None:
    kit, reference = made["xlstm"], tmp_path / "reference.lrs"
    content = (kit / "reference.lrs").read_bytes()
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 1
    counts = content.index(b"observation") - 4 - 20  # steps, rows, inputs, outputs, states; then the first name
    for damaged, said in (
        (b"", "expected the recorded steps of a kit, got another file"),
        (b"PK\3\4" + content, "expected the recorded steps of a kit, got another file"),
        (content[:8] + struct.pack("<I", 2) + content[12:], "expected version 1, got 2"),
        (content[:10], "damaged: it is not what was written into the kit"),
        (content[:-4], "damaged: it is not what was written into the kit"),
        (bytes(flipped), "damaged: it is not what was written into the kit"),
        *(
            (altered(content, counts + 4 * at, struct.pack("<I", number)), "damaged: it is not what was written")
            for at in range(5)
            for number in ((2**32 - 1,) if at == 4 else (0, 2**32 - 1))
        ),
        (altered(content, counts + 16, bytes(4)), "expected the model that was recorded"),  # it has a state
        (altered(content, 16, struct.pack("<I", 2**32 - 1)), "damaged: it is not what was written into the kit"),
        (altered(content + bytes(4), 16, b""), "damaged: it is not what was written into the kit"),
    ):
        reference.write_bytes(damaged)
        code, lines = check(kit, reference=reference)
        assert code == 1 and len(lines) == 1 and said in lines[0], lines
    code, lines = check(kit, reference=tmp_path / "nowhere")
    assert code == 1 and lines == [f"error: {tmp_path / 'nowhere'}: cannot be opened"]
    code, lines = check(kit, reference=tmp_path)
    assert code == 1 and lines == [f"error: {tmp_path}: cannot be read"]
    code, lines = check(kit, model=tmp_path / "nowhere")
    assert code == 1 and len(lines) == 1 and "nowhere: cannot be opened" in lines[0]


def test_another_models_recording_is_refused(made: dict[str, Path], exported: ExportFunction, kits: Kits) -> None:
    for name, other in (("images", "xlstm"), ("xlstm", "images"), ("module", "xlstm"), ("xlstm", "module")):
        code, lines = check(made[name], model=model_of(made[other]))
        said = f"expected the model that was recorded, '{made[name].name}', but it is '{made[other].name}' of another"
        assert code == 1 and len(lines) == 1 and said in lines[0]
    # of the same checkpoint, not quantized
    kit = kits(exported("state_ms", targets=("native",), batch=2))
    code, lines = check(made["xlstm"], reference=kit / "reference.lrs")
    assert code == 1 and lines[-1] == "verdict  FAILED"
