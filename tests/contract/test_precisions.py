"""Every target at every precision computes the quantized model right, for 1,000 steps (10,000 at float32), without a
growing error.

`make test-precisions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lram_export import Bundle
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.exporters import EXPORTERS
from lram_export.runtimes import RUNTIMES
from lram_export.verification.oracle import in_context_of
from lram_export.verification.verify import checkpoint_steps, verify_against_checkpoint
from tests import simulated_gpu
from tests.conftest import load_golden, succeed

pytestmark = pytest.mark.precisions
STEPS = 1000
RANDOM = {
    "xlstm": ("state_ms", ()),  # sLSTM and mLSTM, slowly forgetting heads
    "mamba": ("mamba_state", ()),
    "transformer over its window": ("dt_state", ()),
    "transformer with a cache": ("dt_state", ("--context", "cache")),
}
CHECKPOINTS = Path(__file__).parent.parent.parent / "examples" / "metaworld" / "checkpoints"
TRAINED = CHECKPOINTS / "xlstm" / "model.zip"
METAWORLD = ("--task", "metaworld/reach-v2")


@pytest.mark.parametrize("model", RANDOM)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int8g", "int4"])
def test_targets_stay_with_the_dequantized_oracle(
    precision: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, context = RANDOM[model]
    golden = load_golden(name)
    options = (*golden.task_options, *context, "--precision", precision)
    # bf16 keeps 8 bits: of that slowly forgetting random weights make 8%, 50 random steps beside one another 4%
    without = ("tensorrt",) if precision == "bf16" and model in ("xlstm", "transformer over its window") else ()
    check(golden.checkpoint, precision, options, tmp_path, monkeypatch, without=without)


@pytest.mark.parametrize("model", RANDOM)
def test_at_float32_no_error_grows_over_10000_steps(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, context = RANDOM[model]
    golden = load_golden(name)
    options = (*golden.task_options, *context)
    check(golden.checkpoint, "fp32", options, tmp_path, monkeypatch, without=("tensorrt",), steps=10_000)


@pytest.mark.parametrize("backbone", ["xlstm", "mamba", "decision_transformer"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_trained_policies_stay_with_it_at_16_bit_products(
    precision: str, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*METAWORLD, "--precision", precision)
    check(CHECKPOINTS / backbone / "model.zip", precision, options, tmp_path, monkeypatch)


def test_targets_stay_with_it_at_8_bit_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Static ranges are for inputs that belong together: random weights have no matrix that bears them."""
    fp32, recording = tmp_path / "fp32.lram", tmp_path / "steps.npz"
    succeed("export", TRAINED, "-o", fp32, *METAWORLD, "--target", "onnxruntime")
    succeed("record", fp32, "--env", "metaworld/drawer-close-v3", "--episodes", "5", "-o", recording)
    options = (*METAWORLD, "--precision", "w8a8", "--calibration", str(recording))
    check(TRAINED, "w8a8", options, tmp_path, monkeypatch, recording)


def check(
    checkpoint: Path,
    precision: str,
    options: Sequence[str],
    folder: Path,
    patch: pytest.MonkeyPatch,
    recording: Path | None = None,
    without: Sequence[str] = (),
    steps: int = STEPS,
) -> None:
    """Export for every target that runs a precision, and compare each with the oracle over many steps."""
    targets = [t for t in RUNTIMES if t not in ("pytorch", *without) and precision in EXPORTERS[t].precisions]
    chosen = [argument for target in targets for argument in ("--target", target)]
    if "tensorrt" in targets:
        chosen += ["--device", "agx-orin"]
    succeed("export", checkpoint, "-o", folder / "policy.lram", *options, *chosen)
    if "tensorrt" in targets:
        simulated_gpu.install(patch)
        succeed("compile", folder / "policy.lram")
    bundle = Bundle.open(folder / "policy.lram")
    assert bundle.manifest.precision == precision
    inputs = checkpoint_steps(bundle, recording, steps, seed=1)
    oracle = in_context_of(bundle, load_checkpoint(checkpoint))
    compared = verify_against_checkpoint(bundle, oracle, targets, inputs=inputs, threads=1)
    assert compared.codes is not False and compared.cost is not False, (compared.oracle.codes, compared.recorded)
    for target, meter in compared.meters.items():
        result = meter.result()
        assert result.steps == steps and result.passed, (target, result.failures())
        bound = 3e-2 if bundle.artifact(target).activations != "float32" else 2e-3
        assert result.relative_error is not None and result.relative_error <= bound, target
        first, *_, last = meter.typical(10)
        assert last <= 2 * first, (target, first, last)
