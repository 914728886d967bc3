"""Files that others wrote: what contradicts itself or could take the machine down is refused in one line."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lram_export import Bundle, BundleError
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.episodes.reference import load_reference
from lram_export.episodes.steps import load_steps
from lram_export.errors import LramError
from lram_export.lowering import lower
from lram_export.spec.bounds import MOST_JSON_BYTES
from lram_export.spec.codes import QUANTIZED_FILE, QuantizedFile
from lram_export.spec.json_fields import parse_json
from lram_export.system.files import file_sha256
from lram_export.verification.consistency import check_limits, check_model
from lram_export.verification.verify import verify_targets
from tests.conftest import GOLDEN, ExportFunction

REACH = ["--task", "metaworld/reach-v2"]


@pytest.fixture
def bundle(exported: ExportFunction, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported("state_m"), tmp_path / "copy.lram"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested more than 32 levels deep"),
        ('{"a": ' * 33 + "1" + "}" * 33, "nested more than 32 levels deep"),
        ('{"a": 1, "a": 2}', "'a': appears twice in one object"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ('{"a": -Infinity}', "-Infinity is no number of JSON"),
        ('{"a": 1e999}', "expected finite numbers, got '1e999'"),
        ('{"a": %s}' % ("9" * 5000), "expected numbers of at most 64 bits"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ("{", "not JSON"),
        (" " * (MOST_JSON_BYTES + 1), f"expected at most {MOST_JSON_BYTES} characters"),
    ],
)
def test_json_that_is_not_taken(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_brackets_in_a_text_are_no_nesting() -> None:
    assert parse_json('{"a": "%s"}' % ('[\\"{' * 50)) == {"a": '["{' * 50}


MODEL: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a model of a billion blocks": (
        lambda d: d["model"]["backbone"].update(num_blocks=10**9),
        "model.backbone.num_blocks: expected 1 to 256, got 1000000000",
    ),
    "a negative width": (
        lambda d: d["model"]["backbone"].update(hidden_size=-64),
        "model.backbone.hidden_size: expected 1 to",
    ),
    "a width that is true": (
        lambda d: d["model"]["backbone"].update(num_heads=True),
        "model.backbone.num_heads: expected an integer",
    ),
    "a block that is a text": (
        lambda d: d["model"]["backbone"].update(slstm_at=["1"]),
        r"model.backbone.slstm_at\[0\]: expected an integer",
    ),
    "an image of no channels": (
        lambda d: d["model"]["encoders"].append({"kind": "image", "shape": [0, 64, 64]}),
        r"model.encoders\[.\].shape\[0\]: expected 1 to",
    ),
    "a size left out": (
        lambda d: d["model"]["backbone"].pop("slstm_num_heads"),
        "model.backbone.slstm_num_heads: missing",
    ),
    "an activation nobody knows": (
        lambda d: d["model"]["backbone"].update(ffn_activation="tanh"),
        "model.backbone.ffn_activation: expected",
    ),
    "a backbone nobody knows": (
        lambda d: d["model"]["backbone"].update(kind="hyena"),
        "model.backbone.kind: this lram-export knows xlstm",
    ),
    "a head nobody knows": (lambda d: d["model"]["head"].update(kind="x"), "model.head.kind: expected one of"),
    "an encoder of nothing": (lambda d: d["model"]["encoders"].pop(0), "model.encoders: expected at least one"),
    "tokens that are read nowhere": (lambda d: d["model"]["tokens"].update(read="x"), "model.tokens.read: expected"),
    "a wrong number of parameters": (
        lambda d: d["model"].update(parameters=d["model"]["parameters"] + 1),
        "model.parameters: is .* follows",
    ),
    "an impossible task": (
        lambda d: d["task"].update(observation_dim=500),
        "observation_dim: the task has 500, the model takes at most 204",
    ),
    "another task": (
        lambda d: d["task"].update(observation_dim=38),
        r"specification.inputs\[0\].shape\[1\]: is 39, .* follows 38",
    ),
    "a state of another width": (
        lambda d: d["specification"]["state"][1]["shape"].__setitem__(1, 7),
        r"specification.state\[1\].shape\[1\]: is 7, .* follows",
    ),
    "another role": (
        lambda d: d["specification"]["state"][1].update(role="stabilizer"),
        r"specification.state\[1\].role: is 'stabilizer', .* follows 'matrix'",
    ),
    "another beginning": (
        lambda d: d["specification"]["state"][1].update(initial=1.0),
        r"specification.state\[1\].initial: is 1.0, .* follows 0.0",
    ),
}
"""What a reader, which does not know the model, takes: whoever verifies does not."""
MANIFEST: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a state of a rank beyond all bounds": (
        lambda d: d["specification"]["state"][0].update(shape=[1] * 9),
        r"specification.state\[0\].shape: expected at most 8",
    ),
    "a state beyond all memory": (
        lambda d: d["specification"]["state"][0].update(shape=[1, 1 << 20, 1 << 20]),
        r"specification.state\[0\].shape: expected at most \d+ elements",
    ),
    "a state that begins as a tensor which is not there": (
        lambda d: d["specification"]["state"][0].update(initial=None),
        "initial: expected a file where a state starts as a tensor",
    ),
    "a role nobody knows": (
        lambda d: d["specification"]["state"][0].update(role="x"),
        r"specification.state\[0\].role: expected one of",
    ),
    "a step without an observation": (
        lambda d: d["specification"]["inputs"].pop(0),
        "specification.inputs: expected 'observation' first, got 'return_to_go'",
    ),
    "two outputs of one name": (
        lambda d: d["specification"]["outputs"][1].update(name="action"),
        "specification: expected different names, got .'action', 'action'.",
    ),
    "a field nobody knows": (lambda d: d.update(extra=1), "extra: unknown field"),
    "activations that loosen the tolerance": (
        lambda d: d["artifacts"][0].update(activations="int8"),
        r"artifacts\[0\].activations: expected 'float32' for pytorch at fp32, got 'int8'",
    ),
    "activations nobody knows": (
        lambda d: d["artifacts"][0].update(activations="nonsense"),
        r"artifacts\[0\].activations: expected one of float32, int8, fp16, bf16, got 'nonsense'",
    ),
    "activations left out": (lambda d: d["artifacts"][0].pop("activations"), r"artifacts\[0\].activations: missing"),
    "precision without codes": (
        lambda d: [entry.update(precision="int8") for entry in d["artifacts"]],
        "quantization: does not fit the artifacts' precision 'int8'",
    ),
    "a proof of another precision": (
        lambda d: d["artifacts"][0]["parity"].update(precision="int8"),
        r"artifacts\[0\].parity.precision: expected the artifact's",
    ),
    "a proof that failed": (
        lambda d: d["artifacts"][0]["parity"].update(passed=False),
        r"artifacts\[0\].parity.passed: expected a proof that passed",
    ),
    "a proof beyond the tolerance": (
        lambda d: d["artifacts"][0]["parity"].update(state_error=1.0),
        r"artifacts\[0\].parity.passed: expected a proof that passed, within the tolerance",
    ),
    "a proof of more actions than steps": (
        lambda d: d["artifacts"][0]["parity"].update(steps=65),
        r"artifacts\[0\].parity.actions: expected",
    ),
    "a proof whose error is made small": (
        lambda d: d["artifacts"][0]["parity"]["worst"].update(scale=1e9),
        r"artifacts\[0\].parity.worst.scale: expected 1, since errors of logits are absolute",
    ),
    "a proof whose error is divided by nothing": (
        lambda d: d["artifacts"][0]["parity"]["worst"].update(scale=0),
        r"artifacts\[0\].parity.worst.scale: expected a number from 2.22507e-308 to",
    ),
    "a proof by what cannot run it": (
        lambda d: d["artifacts"][0].update(verified_by="native"),
        r"artifacts\[0\].verified_by: 'native' runs no 'pytorch'",
    ),
    "a state format nobody knows": (
        lambda d: d["artifacts"][0]["parity"].update(state_format="int2"),
        "parity.state_format: expected one of float32, lazy-fp16",
    ),
    "a return that float32 does not hold": (lambda d: d["task"].update(target_return=1e300), "task.target_return"),
    "a name of two lines": (lambda d: d.update(name="a\nb"), "name: expected at most 1000 printable characters"),
    "a tool that is a number": (lambda d: d["artifacts"][0]["tools"].update(torch=2), "tools.torch: expected a text"),
    "a size below zero": (lambda d: d["reference"].update(size=-1), "reference.size: expected 0 to"),
    "a source of another kind": (lambda d: d["source"].update(sha256="x"), "source.sha256: expected"),
    "an older schema": (lambda d: d.update(schema_version=1), "schema_version: 1 has no quantization"),
}


@pytest.mark.parametrize("change", MODEL)
def test_a_manifest_whose_model_says_something_else_does_not_verify(bundle: Path, change: str) -> None:
    edit, message = MODEL[change]
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=message) as caught:
        check_model(Bundle.open(bundle))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("change", MANIFEST)
def test_a_manifest_that_contradicts_itself_is_refused(bundle: Path, change: str) -> None:
    edit, message = MANIFEST[change]
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(bundle)
    assert len(str(caught.value).splitlines()) == 1


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def cut(arrays: dict[str, np.ndarray], steps: int) -> None:
    for name in arrays:
        if not name.startswith("sample."):
            arrays[name] = arrays[name][:steps]


ARRAYS: dict[str, tuple[Callable[[dict[str, np.ndarray]], Any], str]] = {
    "NaN in an input": (
        lambda a: a["observation"].__setitem__((3, 0, 5), np.nan),
        r"observation: .* nan at \[3, 0, 5\]",
    ),
    "an input beyond its limit": (
        lambda a: a["observation"].__setitem__((3, 0, 5), 1e30),
        r"observation: .* of magnitude up to .* got 1e\+30 at \[3, 0, 5\]",
    ),
    "infinity in an output": (lambda a: a["action_logits"].fill(np.inf), "action_logits: expected finite"),
    "NaN in a state": (lambda a: a["sample.state.0.C"].fill(np.nan), "sample.state.0.C: expected finite"),
    "texts": (lambda a: a.update(action=a["action"].astype(str)), "expected numbers, got <U"),
    "double precision": (
        lambda a: a.update(reward=a["reward"].astype(float)),
        "reward: expected float32 .* got float64",
    ),
    "objects": (lambda a: a.update(reward=np.array([{}], object)), "expected numbers, got object"),
    "no steps": (lambda a: cut(a, 0), "observation: expected 1 to 1048576 steps, got 0"),
    "a step less in one array": (lambda a: a.update(reward=a["reward"][:-1]), "reward: expected float32 of shape"),
    "one sample of a state": (
        lambda a: a.update({"sample.state.0.C": np.zeros(1, np.float32)}),
        "sample.state.0.C: exp",
    ),
    "no sample of a state": (lambda a: a.pop("sample.state.0.C"), "sample.state.0.C: missing"),
    "an array nobody reads": (lambda a: a.update(more=np.zeros(3)), "more: unknown array"),
    "half a start": (lambda a: a["is_first"].__setitem__(5, 0.5), "is_first: expected 0 or 1"),
    "no start": (lambda a: a["is_first"].fill(0), "is_first: .* 1 at step 0"),
    "a scalar": (lambda a: a.update(observation=np.float32(1)), "observation: expected 1 to"),
}


@pytest.mark.parametrize("change", ARRAYS)
def test_a_reference_that_is_none_is_refused(bundle: Path, change: str) -> None:
    edit, message = ARRAYS[change]
    path, spec = bundle / "reference.npz", Bundle.open(bundle).manifest.spec
    with np.load(path) as file:
        arrays = dict(file)
    edit(arrays)
    save(path, arrays)
    with pytest.raises(BundleError, match=message):
        load_reference(path, spec)


def npy(shape: tuple[int, ...], data: bytes) -> bytes:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return head.getvalue() + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"observation.npy": npy((10**6, 1, 204), b"")}, "bytes that unpack to 816000000; refused"),
        ({"observation.npy": npy((10**30, 1), b"")}, "bytes that unpack to"),
        ({"observation.npy": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535}, "not a readable .npz file"),
        ({"observation.txt": b"x"}, "'observation.txt' is no array"),
    ],
)
def test_an_archive_made_to_fill_the_memory_is_refused(
    bundle: Path, content: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    path, spec = tmp_path / "bomb.npz", Bundle.open(bundle).manifest.spec
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    with pytest.raises(BundleError, match=message):
        load_reference(path, spec)
    with pytest.raises(LramError):
        load_steps(path, spec)


CODES: dict[str, tuple[Callable[[dict[str, np.ndarray]], Any], str]] = {
    "a scale of NaN": (lambda t: t["head.scales"].__setitem__((0, 0), np.nan), "head.scales: expected finite"),
    "a negative scale": (lambda t: t["head.scales"].__setitem__((0, 0), -1), "head.scales: expected no negative"),
    "a code beyond the format": (
        lambda t: t["head.codes"].__setitem__((0, 0), -128),
        "head.codes: expected at least -127",
    ),
    "a matrix of another shape": (lambda t: t.update({"head.codes": t["head.codes"][1:]}), "head.codes: expected int8"),
    "no scales": (lambda t: t.pop("head.scales"), "head.scales: missing"),
    "a range of NaN": (
        lambda t: t.update({"head.activation": np.array([np.nan, np.nan], np.float32)}),
        "head.activation: expected finite",
    ),
    "a zero point that is no code": (
        lambda t: t.update({"head.activation": np.array([1, 300], np.float32)}),
        "head.activation: expected a positive scale and a zero point",
    ),
    "a tensor nobody reads": (lambda t: t.update({"tail.codes": t["head.codes"]}), "tail.codes: no matrix"),
}


@pytest.mark.parametrize("change", CODES)
def test_codes_that_are_none_are_refused(exported: ExportFunction, tmp_path: Path, change: str) -> None:
    edit, message = CODES[change]
    source = exported("state_m", targets=("onnxruntime",), options=[*REACH, "--precision", "int8"])
    entry = Bundle.open(source).manifest.quantization
    assert entry is not None
    file, altered = source / entry.file.path, tmp_path / QUANTIZED_FILE
    tensors = load_file(file)
    assert QuantizedFile(file, entry.matrices).load()
    edit(tensors)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, altered)
    with pytest.raises(BundleError, match=message):
        QuantizedFile(altered, entry.matrices).load()


def seal(bundle: Path) -> None:
    """Hashes and sizes of what lies beside the manifest as it is now."""
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    for entry in (document["reference"], (document["quantization"] or {}).get("file")):
        if entry is not None:
            file = bundle / entry["path"]
            entry.update(sha256=file_sha256(file), size=file.stat().st_size)
    path.write_text(json.dumps(document))


def test_fewer_recorded_steps_than_were_verified_are_noticed(bundle: Path) -> None:
    with np.load(bundle / "reference.npz") as file:
        arrays = dict(file)
    cut(arrays, 8)
    save(bundle / "reference.npz", arrays)
    seal(bundle)
    with pytest.raises(BundleError, match=r"reference.npz: steps .* the file says 8, the manifest 64"):
        verify_targets(Bundle.open(bundle), ["onnxruntime"], threads=1)


def test_codes_with_ranges_that_the_precision_does_not_have_are_noticed(
    exported: ExportFunction, tmp_path: Path
) -> None:
    source = exported("state_m", targets=("onnxruntime",), options=[*REACH, "--precision", "int8"])
    copy = Path(shutil.copytree(source, tmp_path / "copy.lram"))
    codes = copy / "onnxruntime" / QUANTIZED_FILE
    save_file({**load_file(codes), "head.activation": np.array([1, 0], np.float32)}, codes)
    seal(copy)
    with pytest.raises(BundleError, match=r"head.activation: the precision int8 has no activation ranges"):
        verify_targets(Bundle.open(copy), ["onnxruntime"], threads=1)


def test_limits_that_the_weights_do_not_have_are_noticed(bundle: Path) -> None:
    """The native artifact does not say them."""
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    document["specification"]["inputs"][0]["limit"] *= 2
    path.write_text(json.dumps(document))
    opened = Bundle.open(bundle)
    policy = lower(load_checkpoint(GOLDEN / "state_m" / "model.zip"), opened.manifest.task, name="policy")
    with pytest.raises(BundleError, match=r"limits.observation: the file says"):
        check_limits(opened, policy.spec)
