"""The quantization pass: codes stand for the matrices they should, once in the bundle, and are held to an oracle."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lram_export import Bundle
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.errors import UsageError
from lram_export.lowering import LoweredPolicy, lower, matrix_values
from lram_export.model.matrices import select_matrices
from lram_export.quantization.nearest import round_to_nearest
from lram_export.quantization.quantize import QuantizationOptions, quantize
from lram_export.spec.codes import QUANTIZED_FILE, QuantizedFile, QuantizedMatrix, save_quantized, unpack_int4
from lram_export.spec.precision import FORMATS, GROUP, WIDE_GROUP
from lram_export.spec.tasks import resolve_task
from tests.conftest import GOLDEN, SLOW, ExportFunction, fail, succeed

STATE_MS = GOLDEN / "state_ms" / "model.zip"
TASK = ("--task", "metaworld/reach-v2")


@pytest.fixture(scope="module")
def policy() -> LoweredPolicy:
    return lower(load_checkpoint(STATE_MS), resolve_task("metaworld/reach-v2"), name="policy")


def random_matrix(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


class TestFormats:
    @pytest.mark.parametrize(("weight_format", "worst"), [("fp16", 2**-11), ("bf16", 2**-8)])
    def test_16_bits_keep_the_relative_precision_of_the_format(self, weight_format: str, worst: float) -> None:
        values = random_matrix(5, 70)
        back = round_to_nearest("head", values, weight_format).dequantize()
        assert (np.abs(back - values) <= worst * np.abs(values)).all() and not np.array_equal(back, values)

    @pytest.mark.parametrize("columns", [64, 70, 128, 200])
    @pytest.mark.parametrize("weight_format", ["int8", "int8g", "int4"])
    def test_integers_are_off_by_half_a_step_at_most(self, weight_format: str, columns: int) -> None:
        values = random_matrix(5, columns)
        matrix = round_to_nearest("head", values, weight_format)
        largest = FORMATS[weight_format].largest
        groups = {"int8": 1, "int8g": -(-columns // WIDE_GROUP), "int4": -(-columns // GROUP)}[weight_format]
        assert matrix.codes.dtype == np.int8 and np.abs(matrix.codes).max() == largest
        assert matrix.scales.shape == (5, groups) and matrix.scales.dtype == np.float32
        step = np.repeat(matrix.scales, matrix.group, axis=1)[:, :columns]
        assert (np.abs(matrix.dequantize() - values) <= 0.5001 * step).all()

    def test_rows_and_groups_of_zeros_are_zeros(self) -> None:
        values = random_matrix(3, 128)
        values[1], values[2, 64:] = 0.0, 0.0
        for weight_format in FORMATS:
            back = round_to_nearest("head", values, weight_format).dequantize()
            assert np.isfinite(back).all() and not back[1].any() and not back[2, 64:].any(), weight_format

    def test_int4_is_packed_two_to_a_byte_with_the_even_input_low(self) -> None:
        codes = np.array([[-7, 7, 0, 3, 1]], np.int8)
        stored = QuantizedMatrix("head", "int4", codes, np.ones((1, 1), np.float32)).stored_codes()
        assert stored.shape == (1, 32) and stored.dtype == np.uint8
        assert stored[0, :3].tolist() == [1 | 15 << 4, 8 | 11 << 4, 9 | 8 << 4]
        np.testing.assert_array_equal(unpack_int4(stored, 5), codes)

    def test_int8g_is_a_byte_without_a_sign_filled_up_to_whole_groups(self) -> None:
        codes = np.full((1, 130), 127, np.int8)
        codes[0, :3] = [-127, 0, 1]
        stored = QuantizedMatrix("head", "int8g", codes, np.ones((1, 2), np.float32)).stored_codes()
        assert stored.shape == (1, 256) and stored.dtype == np.uint8
        assert stored[0, :4].tolist() == [1, 128, 129, 255] and (stored[0, 130:] == 128).all()

    @pytest.mark.parametrize("columns", [70, 200])
    @pytest.mark.parametrize("weight_format", FORMATS)
    def test_the_file_gives_back_what_was_saved(self, weight_format: str, columns: int, tmp_path: Path) -> None:
        matrix = round_to_nearest("head", random_matrix(5, columns), weight_format)
        save_quantized({"head": matrix}, tmp_path / QUANTIZED_FILE)
        entries = quantized_entries(matrix)
        back = QuantizedFile(tmp_path / QUANTIZED_FILE, entries).load()["head"]
        np.testing.assert_array_equal(back.codes, matrix.codes)
        np.testing.assert_array_equal(back.dequantize(), matrix.dequantize())


def quantized_entries(matrix: QuantizedMatrix):  # type: ignore[no-untyped-def]
    from lram_export.lowering import Quantization

    return Quantization("int8", "round-to-nearest", {matrix.name: matrix}).entries


class TestPass:
    def test_large_matrices_only(self, policy: LoweredPolicy) -> None:
        assert policy.matrix_names() == (
            *("blocks.0.proj_up", "blocks.0.proj_down", "blocks.1.ffn_up", "blocks.1.ffn_down"),
            *("blocks.2.proj_up", "blocks.2.proj_down", "blocks.3.proj_up", "blocks.3.proj_down", "head"),
        )

    def test_patterns_keep_matrices_in_float32(self, policy: LoweredPolicy) -> None:
        quantized = quantize(policy, QuantizationOptions("int8", ("head", "blocks.*.proj_down")))
        assert quantized.quantization is not None
        assert set(quantized.quantization.matrices) == {
            *("blocks.0.proj_up", "blocks.1.ffn_up", "blocks.1.ffn_down", "blocks.2.proj_up", "blocks.3.proj_up"),
        }
        np.testing.assert_array_equal(matrix_values(quantized, "head"), matrix_values(policy, "head"))

    def test_a_pattern_that_fits_nothing_is_told_what_there_is(self, policy: LoweredPolicy) -> None:
        with pytest.raises(UsageError, match=r"--keep-fp32: 'gates' fits no matrix; this model has: blocks.0.proj_up"):
            select_matrices(policy.matrix_names(), ["gates"])

    @pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int8g", "int4"])
    def test_model_and_graph_compute_with_the_dequantized_values(self, policy: LoweredPolicy, precision: str) -> None:
        quantized = quantize(policy, QuantizationOptions(precision))
        assert quantized.quantization is not None
        for name, matrix in quantized.quantization.matrices.items():
            np.testing.assert_array_equal(matrix_values(quantized, name), matrix.dequantize())
            assert not np.array_equal(matrix_values(quantized, name), matrix_values(policy, name))
        head = quantized.quantization.matrices["head"]
        np.testing.assert_array_equal(
            quantized.reference_model.action_net[0].weight[: head.shape[0]].numpy(), matrix_values(quantized, "head")
        )
        stored = sum(m.stored_bytes - 4 * m.codes.size for m in quantized.quantization.matrices.values())
        assert quantized.weight_bytes == policy.weight_bytes + stored < policy.weight_bytes


class TestBundle:
    @pytest.mark.parametrize("precision", ["int8", "int4", *(pytest.param(p, marks=SLOW) for p in ("fp16", "bf16"))])
    def test_export_and_verify(self, precision: str, tmp_path: Path) -> None:
        path = tmp_path / "policy.lram"
        succeed("export", STATE_MS, "-o", path, *TASK, "--precision", precision, "--target", "pytorch", "--no-report")
        manifest = Bundle.open(path).manifest
        assert manifest.precision == precision and manifest.quantization is not None
        assert manifest.quantization.cost is not None and manifest.quantization.cost["relative_error"] > 1e-5
        (entry,) = manifest.artifacts
        assert entry.parity is not None and entry.parity.passed and entry.parity.relative_error <= 2e-3
        succeed("verify", path, "--checkpoint", STATE_MS, "--steps", "20")

    def test_a_damaged_code_is_found(self, exported: ExportFunction, tmp_path: Path) -> None:
        exact = exported("state_ms", targets=("native",), options=(*TASK, "--precision", "int8"))
        path = Path(shutil.copytree(exact, tmp_path / "policy.lram"))
        content = bytearray((path / QUANTIZED_FILE).read_bytes())
        content[-1] ^= 1
        (path / QUANTIZED_FILE).write_bytes(content)
        code, line = fail("verify", path)
        assert code == 1 and f"{QUANTIZED_FILE}: content differs" in line


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int8g", "int4"])
def test_a_matrix_that_lies_transposed_has_codes_that_lie_row_by_row(precision: str) -> None:
    """OpenVINO took the memory of such codes for the matrix."""
    values = np.random.default_rng(0).normal(size=(8, 70)).astype(np.float32)
    expected, found = (round_to_nearest("x", laid, precision) for laid in (values, np.asfortranarray(values)))
    assert found.codes.flags.c_contiguous
    np.testing.assert_array_equal(found.codes, expected.codes)
