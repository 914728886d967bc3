"""Matrices that hold the same values, and matrices of zeros: products are told apart by name, and nothing divides by 0.

A trained policy may have them: tied layers, pruned ones, ones that were never trained.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from lram_export import Bundle
from lram_export.checkpoints.folder import save_checkpoint
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.checkpoints.random import random_checkpoint
from lram_export.episodes.batches import split_episodes
from lram_export.episodes.steps import random_steps
from lram_export.errors import LramError
from lram_export.exporters import EXPORTERS
from lram_export.exporters.onnx.codes import find_projections
from lram_export.exporters.onnx.graph import build_onnx
from lram_export.lowering import LoweredPolicy, lower
from lram_export.quantization.calibration import Calibration
from lram_export.quantization.quantize import QuantizationOptions, quantize
from lram_export.runtimes import RUNTIMES
from lram_export.spec.tasks import resolve_task
from tests.conftest import succeed
from tests.models import lram

TASK = ("--task", "metaworld/reach-v2")
CONFIG = lram(hidden_size=64, num_blocks=3, inner_size=128, num_heads=4, image_shape=None, state_dim=39)
BLOCK = "encoder.layers.blocks.{}.xlstm.{}.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tied up-projections, two down-projections of zeros."""
    folder = tmp_path_factory.mktemp("equal") / "checkpoint"
    made = random_checkpoint(CONFIG, folder)
    made.weights[BLOCK.format(1, "proj_up")] = made.weights[BLOCK.format(0, "proj_up")]
    for block in (1, 2):
        made.weights[BLOCK.format(block, "proj_down")] = torch.zeros(64, 128)
    save_checkpoint(made, folder)
    return folder


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> LoweredPolicy:
    return lower(load_checkpoint(checkpoint), resolve_task("metaworld/reach-v2"), name="policy")


def test_tied_weights_are_written_each_by_itself(checkpoint: Path) -> None:
    weights = load_checkpoint(checkpoint).weights
    assert torch.equal(weights[BLOCK.format(0, "proj_up")], weights[BLOCK.format(1, "proj_up")])
    assert not weights[BLOCK.format(1, "proj_down")].any()


def test_every_product_in_the_graph_has_the_name_of_its_matrix(policy: LoweredPolicy) -> None:
    quantized = quantize(policy, QuantizationOptions("int8"))
    assert quantized.quantization is not None
    matrices = quantized.quantization.matrices
    model = build_onnx(quantized)
    assert [p.matrix.name for p in find_projections(model.graph, matrices)] == list(policy.matrix_names())
    with pytest.raises(LramError, match=r"blocks\.0\.proj_down: the product in the ONNX graph has other values"):
        find_projections(model.graph, {**matrices, "blocks.0.proj_down": matrices["blocks.1.proj_down"]})


@pytest.mark.parametrize(
    ("precision", "without"),
    [
        pytest.param("int8", ("pytorch", "tvm"), id="int8"),
        *(
            pytest.param(p, (), id=f"{p}-all", marks=pytest.mark.precisions)
            for p in ("fp16", "bf16", "int8", "int8g", "int4")
        ),
    ],
)
def test_every_target_computes_with_each_of_them(
    precision: str, without: tuple[str, ...], checkpoint: Path, tmp_path: Path
) -> None:
    targets = [t for t in RUNTIMES if t not in without and precision in EXPORTERS[t].precisions]
    options = ["--precision", precision, "--reference-steps", "40", "--no-report"]
    options += ["--device", "agx-orin"] if "tensorrt" in targets else []
    path = tmp_path / "policy.lram"
    succeed("export", checkpoint, "-o", path, *TASK, *options, *(part for t in targets for part in ("--target", t)))
    # another one's matrix in place of its own changes these logits by 0.27 to 0.36 of their norm; bf16, which keeps 8
    # bits, by 0.004 to 0.009 over some draws of the weights
    bound = 1e-2 if precision == "bf16" else 5e-3
    for entry in Bundle.open(path).manifest.artifacts:
        assert entry.parity is not None and entry.parity.passed, entry.target
        assert entry.parity.relative_error is not None and entry.parity.relative_error < bound, entry.target


def test_they_are_calibrated_like_any_other(policy: LoweredPolicy) -> None:
    steps = random_steps(policy.spec, policy.task, 150, episode=10)
    episodes = Calibration(tuple(split_episodes([steps])))
    options = QuantizationOptions(calibration=[Path("unused")])
    for precision in ("int8", "int4"):
        quantized = quantize(policy, dataclasses.replace(options, precision=precision), episodes)
        assert quantized.quantization is not None
        for name, matrix in quantized.quantization.matrices.items():
            values = matrix.dequantize()
            assert np.isfinite(values).all() and np.isfinite(matrix.scales).all(), name
            assert values.any() == (name not in ("blocks.1.proj_down", "blocks.2.proj_down")), name
