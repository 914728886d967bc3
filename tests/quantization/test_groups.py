"""`int8g`: one scale per 128 inputs of an output channel, the same codes on every target that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lram_export.bundle.bundle import Bundle
from lram_export.checkpoints.folder import save_checkpoint
from lram_export.checkpoints.random import random_checkpoint
from lram_export.exporters import EXPORTERS
from lram_export.exporters.native.matrices import column_slices, divisible, slice_width
from lram_export.quantization.nearest import round_to_nearest
from lram_export.spec.codes import QuantizedMatrix
from lram_export.spec.precision import WIDE_GROUP
from tests.conftest import SLOW, fail, succeed
from tests.models import lram

TASK = ("--task", "metaworld/reach-v2", "--no-report")
TARGETS = [name for name, exporter in EXPORTERS.items() if "int8g" in exporter.precisions]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of widths that end within a group, and slices of native's kernels that are some groups, or a part of one."""
    sizes = {"hidden_size": 160, "num_blocks": 2, "inner_size": 256, "num_heads": 4, "slstm_at": (1,), "ffn_size": 192}
    path = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(random_checkpoint(lram(image_shape=None, state_dim=39, **sizes), path), path / "policy")
    return path / "policy"


@pytest.mark.parametrize(
    "targets", [("onnxruntime", "openvino", "native"), pytest.param(TARGETS, marks=SLOW)], ids=["some", "all"]
)
def test_every_target_computes_the_one_set_of_codes(targets: Sequence[str], checkpoint: Path, tmp_path: Path) -> None:
    assert TARGETS == ["pytorch", "onnxruntime", "openvino", "native", "tvm"]
    options = [part for target in targets for part in ("--target", target)]
    path = tmp_path / "policy.lram"
    succeed("export", checkpoint, "-o", path, *TASK, "--precision", "int8g", "--reference-steps", "16", *options)
    bundle = Bundle.open(path)
    assert bundle.manifest.quantization is not None
    groups = {m.shape[1]: -(-m.shape[1] // WIDE_GROUP) for m in bundle.manifest.quantization.matrices}
    assert max(groups.values()) > 1 and any(columns % WIDE_GROUP for columns in groups)
    for entry in bundle.manifest.artifacts:
        assert entry.parity is not None and entry.parity.passed, entry.target
        assert entry.parity.relative_error is not None and entry.parity.relative_error < 2e-4, entry.target


def test_a_target_without_blocks_of_8_bit_codes_says_so(checkpoint: Path, tmp_path: Path) -> None:
    arguments = (*TASK, "--target", "tensorrt", "--precision", "int8g")
    code, line = fail("export", checkpoint, "-o", tmp_path / "policy.lram", *arguments)
    assert code == 2 and "target 'tensorrt' cannot run int8g" in line


class TestSlices:
    """Of the columns of a matrix, for threads of the target `native`."""

    @pytest.fixture
    def matrix(self) -> QuantizedMatrix:
        values = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
        values *= np.repeat(np.float32([1, 10, 100, 1000]), 128)  # another scale in every group
        return round_to_nearest("blocks.0.proj_down", values, "int8g")

    @pytest.mark.parametrize("width", [32, 64, 128, 256])
    def test_they_have_the_scales_of_their_groups(self, matrix: QuantizedMatrix, width: int) -> None:
        count = 512 // width
        parts = column_slices(matrix, width, count)
        assert all(isinstance(part, QuantizedMatrix) for part in parts)
        whole = np.concatenate([part.dequantize() for part in parts if isinstance(part, QuantizedMatrix)], axis=1)
        np.testing.assert_array_equal(whole, matrix.dequantize())

    @pytest.mark.parametrize("width", [48, 192])
    def test_those_that_would_part_groups_unevenly_are_float32(self, matrix: QuantizedMatrix, width: int) -> None:
        parts = column_slices(matrix, width, -(-512 // width))
        assert not any(isinstance(part, QuantizedMatrix) for part in parts)
        whole = np.concatenate([part for part in parts if not isinstance(part, QuantizedMatrix)], axis=1)
        np.testing.assert_array_equal(whole[:, :512], matrix.dequantize())

    @pytest.mark.parametrize(("columns", "width"), [(192, 64), (512, 128), (1728, 512), (1100, 384)])
    def test_a_feed_forward_is_divided_so_that_its_codes_stay(
        self, matrix: QuantizedMatrix, columns: int, width: int
    ) -> None:
        assert slice_width(columns, 4, [matrix]) == width and divisible(matrix, width)
        assert slice_width(columns, 4, [matrix.dequantize()]) == -(-columns // 256) * 64
