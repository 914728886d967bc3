"""The oracle: codes of another checkpoint, altered scales and weights, and a cost that is not so are noticed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from lram_export import Bundle
from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.checkpoints.dequantized import dequantized_checkpoint
from lram_export.checkpoints.folder import save_checkpoint
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.episodes.reference import record_reference
from lram_export.episodes.steps import random_steps
from lram_export.errors import BundleError, ParityError, UsageError
from lram_export.lowering import LoweredPolicy, lower
from lram_export.model.matrices import checkpoint_keys
from lram_export.model.reference import oracle_threads
from lram_export.quantization.quantize import QuantizationOptions, quantize
from lram_export.rollouts.evaluation import reference_policy
from lram_export.runtimes import load_runtime
from lram_export.runtimes.pytorch import PytorchRuntime
from lram_export.spec.codes import GPTQ, NEAREST
from lram_export.verification.codes import check_codes
from lram_export.verification.oracle import build_oracle
from lram_export.verification.verify import (
    Comparison,
    checkpoint_steps,
    load_bundle_reference,
    parity_meter,
    replay,
    verify_against_checkpoint,
)
from tests.conftest import GOLDEN, ExportFunction, fail, load_golden, succeed
from tests.models import reference_model

STATE_MS = GOLDEN / "state_ms" / "model.zip"


@pytest.fixture
def int8(exported: ExportFunction) -> Path:
    options = [*load_golden("state_ms").task_options, "--precision", "int8"]
    return exported("state_ms", targets=("native", "pytorch"), options=options)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(STATE_MS)


@pytest.fixture
def policy(int8: Path, checkpoint: Checkpoint) -> LoweredPolicy:
    return lower(checkpoint, Bundle.open(int8).manifest.task, name="policy")


def compare(bundle: Path, checkpoint: Checkpoint, steps: int = 8, **options: Any) -> Comparison:
    opened = Bundle.open(bundle)
    inputs = checkpoint_steps(opened, None, steps, seed=1)
    return verify_against_checkpoint(opened, checkpoint, opened.targets, inputs=inputs, threads=1, **options)


def retrained(checkpoint: Checkpoint, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Checkpoint:
    """The checkpoint with one weight changed; its digest stays, as if it had been forged."""
    return dataclasses.replace(checkpoint, weights={**checkpoint.weights, name: change(checkpoint.weights[name])})


def altered(
    bundle: Path,
    folder: Path,
    codes: Callable[[dict[str, np.ndarray]], None] = lambda tensors: None,
    manifest: Callable[[dict[str, Any]], None] = lambda document: None,
) -> Path:
    """A copy of a bundle with other codes or another manifest, and all hashes right."""
    copy = folder / "altered.lram"
    shutil.copytree(bundle, copy)
    document = json.loads((copy / "manifest.json").read_text())
    file = copy / document["quantization"]["file"]["path"]
    tensors = load_file(file)
    codes(tensors)
    save_file(tensors, file)
    document["quantization"]["file"] |= described(file)
    manifest(document)
    (copy / "manifest.json").write_text(json.dumps(document))
    return copy


def described(path: Path) -> dict[str, Any]:
    """What the manifest says of a file's content."""
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}


def rewrite(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change arrays of an .npz file in place."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    change(arrays)
    np.savez_compressed(path, **arrays)


class TestRightCodes:
    def test_an_export_passes_all_three_verdicts(self, int8: Path, checkpoint: Checkpoint) -> None:
        result = compare(int8, checkpoint)
        assert result.passed and (result.codes, result.computation, result.cost) == (True, True, True)

    @pytest.mark.parametrize("precision", ["int8", "int4", "fp16", "bf16"])
    def test_the_nearest_codes_pass_and_those_next_to_them_do_not(
        self, precision: str, checkpoint: Checkpoint, policy: LoweredPolicy
    ) -> None:
        found = quantize(policy, QuantizationOptions(precision)).quantization
        assert found is not None
        assert check_codes(found.method, found.matrices, policy).passed
        head = found.matrices["head"]
        codes = head.codes.copy()
        one = np.array(1, codes.dtype) if precision != "fp16" else np.spacing(codes[2, 3])
        codes[2, 3] -= np.sign(head.dequantize()[2, 3]).astype(codes.dtype) * one if precision != "bf16" else one
        changed = {**found.matrices, "head": dataclasses.replace(head, codes=codes)}
        (line,) = check_codes(found.method, changed, policy).failures()
        assert line.startswith("head: weight [2, 3]: ")

    def test_one_changed_weight_of_a_quantized_matrix_is_noticed(self, int8: Path, checkpoint: Checkpoint) -> None:
        name = checkpoint_keys(checkpoint.config)["blocks.0.proj_up"]

        def change(weight: torch.Tensor) -> torch.Tensor:
            weight = weight.clone()
            weight[3, 5] += 0.6 * weight[3].abs().max() / 127
            return weight

        result = compare(int8, retrained(checkpoint, name, change))
        assert result.codes is False and result.computation and not result.passed
        (line,) = result.oracle.codes.failures()  # type: ignore[union-attr]
        assert line.startswith("blocks.0.proj_up: weight [3, 5]: ") and "further than half a scale" in line

    @pytest.mark.parametrize("method", [NEAREST, GPTQ])
    def test_scales_of_zero_are_noticed(self, method: str, int8: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
        def zero(tensors: dict[str, np.ndarray]) -> None:
            for name in tensors:
                if name.endswith(".scales"):
                    tensors[name][:] = 0

        def said(document: dict[str, Any]) -> None:
            document["quantization"] |= {"method": method, "calibration": ["0" * 64] * (method == GPTQ)}

        codes = build_oracle(Bundle.open(altered(int8, tmp_path, zero, said)), checkpoint).codes
        assert codes is not None and len(codes.failures()) == len(codes.matrices)

    @pytest.mark.parametrize("value", [1.0, 3e38])
    def test_a_scale_that_is_no_scale_is_noticed(
        self, value: float, int8: Path, checkpoint: Checkpoint, tmp_path: Path
    ) -> None:
        def spoil(tensors: dict[str, np.ndarray]) -> None:
            tensors["head.scales"][7] = value

        bundle = altered(int8, tmp_path, spoil)
        codes = build_oracle(Bundle.open(bundle), checkpoint).codes
        assert codes is not None
        assert [line.split(": ")[:2] for line in codes.failures()] == [["head", "scale [7, 0]"]]
        if value > 1:  # times the code it is infinite
            with pytest.raises(ParityError, match=r"its codes are not those of .*: head: scale"):
                compare(bundle, checkpoint)


class TestTheFile:
    """A bundle says which file it was exported from."""

    def test_another_file_is_refused_with_both_digests(self, int8: Path, checkpoint: Checkpoint) -> None:
        other = dataclasses.replace(checkpoint, sha256="0" * 64)
        with pytest.raises(UsageError, match=f"{'0' * 64}.*{checkpoint.sha256}.*--other-checkpoint"):
            compare(int8, other)
        with pytest.raises(UsageError, match="--other-checkpoint"):
            reference_policy(Bundle.open(int8), other)

    def test_the_same_weights_in_another_file_pass_if_they_are_meant(
        self, int8: Path, checkpoint: Checkpoint, tmp_path: Path
    ) -> None:
        save_checkpoint(checkpoint, tmp_path / "own")
        arguments = ("verify", int8, "--checkpoint", tmp_path / "own", "--steps", "4", "--json", "-q")
        code, line = fail(*arguments)
        assert code == 2 and "not the file this bundle was exported from" in line
        document = json.loads(succeed(*arguments, "--other-checkpoint").stdout)
        assert document["passed"] and document["checkpoint_sha256"] != document["source_sha256"]
        assert [document[verdict]["passed"] for verdict in ("codes", "computation", "cost")] == [True] * 3

    def test_another_architecture_is_refused_with_both_sizes(self, int8: Path) -> None:
        line = fail("verify", int8, "--checkpoint", GOLDEN / "state_m" / "model.zip", "--other-checkpoint")[1]
        assert "not the architecture" in line and "ffn_size is 0 (the bundle's: 128)" in line


class TestRightComputation:
    def test_recorded_steps_that_the_oracle_does_not_answer_are_noticed(
        self, int8: Path, checkpoint: Checkpoint, tmp_path: Path
    ) -> None:
        def forget(document: dict[str, Any]) -> None:
            rewrite(copy / "reference.npz", lambda arrays: arrays["action_logits"].__imul__(np.float32(1.01)))
            document["reference"] |= described(copy / "reference.npz")

        copy = tmp_path / "altered.lram"
        result = compare(altered(int8, tmp_path, manifest=forget), checkpoint)
        assert (result.codes, result.computation, result.cost) == (True, False, True)
        assert all(found.passed for found in result.results.values()) and not result.recorded.parity.passed

    def test_a_float32_weight_of_the_pytorch_artifact_is_compared_to_the_bit(
        self, int8: Path, checkpoint: Checkpoint, tmp_path: Path
    ) -> None:
        name = "encoder.layers.blocks.1.ffn_norm.weight"

        def nudge(document: dict[str, Any]) -> None:
            path = copy / "pytorch" / "model.safetensors"
            tensors = load_file(path)
            tensors[name][0] = np.nextafter(tensors[name][0], np.float32(1))
            save_file(tensors, path)
            (entry,) = (a for a in document["artifacts"] if a["target"] == "pytorch")
            (file,) = (f for f in entry["files"] if f["path"].endswith("model.safetensors"))
            file |= described(path)

        copy = tmp_path / "altered.lram"
        result = compare(altered(int8, tmp_path, manifest=nudge), checkpoint)
        assert result.different_weight == name and not result.computation
        assert compare(int8, checkpoint).results["pytorch"].max_logit_error == 0

    def test_every_float32_weight_that_acts_is_noticed_where_it_differs(
        self, int8: Path, checkpoint: Checkpoint
    ) -> None:
        """An oracle with one other weight stands in for an artifact with one: the difference is the same."""
        bundle = Bundle.open(int8)
        oracle = build_oracle(bundle, checkpoint)
        model = reference_model(dequantized_checkpoint(checkpoint, oracle.matrices))
        reference = PytorchRuntime(model, bundle.manifest.spec, bundle.manifest.task)
        drawn = random_steps(bundle.manifest.spec, bundle.manifest.task, 38, episode=34)  # from step 32 on with rewards
        inputs = drawn.map(lambda values: values[34:])
        runtime = load_runtime("native", bundle.load_artifact("native"), 1)
        keys = checkpoint_keys(checkpoint.config)
        quantized, unnoticed = {keys[name] for name in oracle.matrices}, []
        with oracle_threads(checkpoint.parameters):
            for name in [n for n in checkpoint.weights if n not in quantized]:
                weight = model.get_parameter(name)
                before = weight.clone()
                weight.mul_(1.1).add_(0.1)
                meter = parity_meter(bundle, "native", runtime, load_bundle_reference(bundle))
                replay(runtime, record_reference(reference, inputs), meter)
                weight.copy_(before)
                unnoticed += [name] * meter.result().passed
        runtime.close()
        assert all(name.startswith("embed_image.") for name in unnoticed), unnoticed  # the task shows no images


class TestCost:
    def test_a_cost_that_is_not_so_is_noticed(self, int8: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
        def double(document: dict[str, Any]) -> None:
            document["quantization"]["cost"]["relative_error"] *= 2

        result = compare(altered(int8, tmp_path, manifest=double), checkpoint)
        assert (result.codes, result.computation, result.cost) == (True, True, False)
        (line,) = result.recorded.cost.failures()  # type: ignore[union-attr]
        assert line.startswith("relative_error is ") and "the manifest states" in line

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"cost": None}, r"quantization\.cost: expected the cost over the recorded steps, got none"),
            ({"measured_on": "episodes"}, r"quantization\.reference_cost: expected the cost over the recorded steps"),
            ({"reference_cost": "cost"}, r"quantization\.cost: expected a cost over episodes beside reference_cost"),
        ],
    )
    def test_a_cost_that_nobody_could_measure_again_is_refused(
        self, int8: Path, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        def alter(document: dict[str, Any]) -> None:
            entry = document["quantization"]
            if "measured_on" in change:
                entry["cost"]["measured_on"] = change["measured_on"]
            else:
                entry.update({name: value and dict(entry[value]) for name, value in change.items()})

        with pytest.raises(BundleError, match=message):
            Bundle.open(altered(int8, tmp_path, manifest=alter))
