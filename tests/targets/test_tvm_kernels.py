"""Kernels of the target `tvm` for processors, one by one, against numpy and torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm.script import tirx as T

from lram_export.kernels.tvm import cpu, functions, gpu
from lram_export.kernels.tvm.cpu import dense, norms
from lram_export.kernels.tvm.cpu.dense import dot as dense_dot
from lram_export.kernels.tvm.cpu.dense.activations import LARGEST
from lram_export.kernels.tvm.cpu.dense.tiles import QUAD
from lram_export.kernels.tvm.cpu.xlstm import mlstm
from lram_export.spec.codes import QuantizedMatrix
from lram_export.spec.precision import FORMATS, GROUP
from lram_export.targets.layout import (
    TILE,
    input_major,
    int4_octets,
    int8_offsets,
    int8_quads,
    int8g_quads,
    pad_columns,
    tiles,
)
from lram_export.targets.tvm.platforms import PLATFORMS, Dot, TvmPlatform, host_platform, unmet
from tests.conftest import SLOW

HERE = [name for name, platform in PLATFORMS.items() if platform.gpu is None and unmet(platform) is None]
Floats = NDArray[np.float32]


def compiled(function: Any, platform: TvmPlatform | None = None) -> Any:
    """A kernel by itself, on this processor."""
    module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
    return tvm.compile(module, target=tvm.target.Target(dict((platform or host_platform()).target())))["kernel"]


def run(function: Any, *inputs: NDArray[Any], outputs: list[tuple[tuple[int, ...], str]], platform: Any = None) -> Any:
    """Compile a kernel and call it; returns its outputs."""
    results = [tvm.runtime.tensor(np.zeros(shape, dtype)) for shape, dtype in outputs]
    compiled(function, platform)(*(tvm.runtime.tensor(np.ascontiguousarray(x)) for x in inputs), *results)
    found = [result.numpy() for result in results]
    return found[0] if len(found) == 1 else found


CODES = ("int8", "int8g", "int4")


def dequantized(format: str, codes: NDArray[np.int8], scales: Floats) -> NDArray[np.float64]:
    """What codes and scales stand for."""
    exact: NDArray[np.float64] = QuantizedMatrix("", format, codes, scales).dequantize().astype(np.float64)
    return exact


class TestFunctions:
    @pytest.mark.parametrize("lanes", [1, 4, 16])
    @pytest.mark.parametrize(
        ("function", "expected"),
        [
            (functions.exponential, torch.exp),
            (functions.sigmoid, torch.sigmoid),
            (functions.silu, torch.nn.functional.silu),
            (functions.hyperbolic_tangent, torch.tanh),
            (functions.log_sigmoid, torch.nn.functional.logsigmoid),
            (functions.softplus, torch.nn.functional.softplus),
            (lambda x: functions.decay(-functions.magnitude(x)), lambda x: torch.exp2(-x.abs())),
            (functions.error_function, torch.erf),
            (functions.ACTIVATIONS["gelu"], torch.nn.functional.gelu),
            (functions.ACTIVATIONS["selu"], torch.nn.functional.selu),
            (functions.ACTIVATIONS["relu^2"], lambda x: torch.relu(x) ** 2),
        ],
        ids=["exp", "sigmoid", "silu", "tanh", "log_sigmoid", "softplus", "decay", "erf", "gelu", "selu", "relu2"],
    )
    def test_a_function_is_right_to_a_few_units_in_the_last_place(
        self, function: Callable[[Any], Any], expected: Callable[[torch.Tensor], torch.Tensor], lanes: int
    ) -> None:
        x = np.concatenate([np.linspace(-20, 20, 4080), [-87, -1e-6, 0, 1e-6] * 4]).astype(np.float32)
        size = len(x)

        @T.prim_func(s_tir=True)
        def kernel(x: T.Buffer((size,), "float32"), y: T.Buffer((size,), "float32")):
            T.func_attr({"tirx.noalias": True})
            for i in T.serial(size // lanes):
                at = T.meta_var(T.ramp(i * lanes, 1, lanes) if lanes > 1 else i)
                y[at] = function(x[at])

        right = expected(torch.from_numpy(x).double()).numpy()
        error = np.abs(run(kernel, x, outputs=[((size,), "float32")]) - right)
        assert (error <= 5e-7 + 5e-7 * np.abs(right)).all(), float(error.max())

    @pytest.mark.parametrize("lanes", [2, 4, 8, 16])
    def test_sums_and_maxima_run_over_all_lanes(self, lanes: int) -> None:
        @T.prim_func(s_tir=True)
        def kernel(x: T.Buffer((lanes,), "float32"), y: T.Buffer((2,), "float32")):
            T.func_attr({"tirx.noalias": True})
            y[0] = functions.lane_sum(x[T.ramp(0, 1, lanes)])
            y[1] = functions.lane_max(x[T.ramp(0, 1, lanes)])

        x = np.arange(lanes, dtype=np.float32)[::-1] - 3
        found = run(kernel, x, outputs=[((2,), "float32")])
        assert found.tolist() == [x.sum(), x.max()]


SIZES = {
    "rows": st.integers(1, 7) | st.sampled_from([13, 23]),
    "outputs": st.integers(1, 100),
    "inputs": st.integers(1, 12).map(lambda n: 16 * n) | st.integers(1, 200),
}


def plain_dot(intrinsic: str, unsigned: bool, lanes: int) -> Callable[[Any, Any, Any], Any]:
    """A byte dot product in plain arithmetic, where no processor has the instruction; ``mixed``: of unlike signs."""

    def word(x: Any) -> Any:
        return T.reinterpret(functions.typed("int32", lanes), x)

    def shift(count: int) -> Any:
        return functions.wide(T.int32(count), lanes)

    def dot(total: Any, weights: Any, activations: Any) -> Any:
        for byte in range(4):
            low = shift(24 - 8 * byte)
            right = (word(activations) << low) >> shift(24)
            right = right & shift(255) if unsigned else right
            left = (word(weights) << low) >> shift(24)
            left = left & shift(255) if intrinsic == "mixed" and not unsigned else left
            total = total + left * right
        return total

    return dot


class TestDense:
    """Products with weights of every kind, on every platform that runs here, against numpy."""

    @given(**SIZES, stored=st.sampled_from(["float32", "float16", "uint16"]), name=st.sampled_from(HERE))
    @settings(max_examples=25, deadline=None)
    def test_floating_point_weights(self, rows: int, outputs: int, inputs: int, stored: str, name: str) -> None:
        rng = np.random.default_rng(rows + outputs)
        weight = rng.standard_normal((outputs, inputs)).astype(np.float32)
        codes = (weight.view(np.uint32) >> 16).astype(np.uint16) if stored == "uint16" else weight.astype(stored)
        exact = (codes.astype(np.uint32) << 16).view(np.float32) if stored == "uint16" else codes.astype(np.float32)
        x = rng.standard_normal((rows, inputs)).astype(np.float32)
        count = math.ceil(outputs / TILE)
        kernel = dense.dense_float(rows, inputs, count, 1, stored, PLATFORMS[name].lanes)
        y = run(kernel, x, input_major(codes), outputs=[((rows, count * TILE), "float32")], platform=PLATFORMS[name])
        np.testing.assert_allclose(y[:, :outputs], x.astype(np.float64) @ exact.T, rtol=0, atol=2e-4)
        assert not y[:, outputs:].any()

    @given(**SIZES, format=st.sampled_from(CODES), name=st.sampled_from(HERE))
    @settings(max_examples=20, deadline=None)
    def test_integer_codes(self, rows: int, outputs: int, inputs: int, format: str, name: str) -> None:
        platform, rng = PLATFORMS[name], np.random.default_rng(rows + outputs)
        largest = FORMATS[format].largest
        codes = rng.integers(-largest, largest + 1, (outputs, inputs)).astype(np.int8)
        codes[0] = largest  # the largest sum there is
        scales = rng.uniform(0.5, 1.5, (outputs, FORMATS[format].groups(inputs))).astype(np.float32)
        exact = dequantized(format, codes, scales)
        x = rng.standard_normal((rows, inputs)).astype(np.float32)
        x[0] = np.abs(x[0]).max()
        y = self.product(platform, format, x, codes, scales)
        # two planes of codes: an input is off by half a unit of 1 / 16256 of its token's largest
        bound = np.abs(exact).sum(axis=1) * np.abs(x).max(axis=1, keepdims=True) / LARGEST + 1e-3
        assert (np.abs(y[:, :outputs] - x.astype(np.float64) @ exact.T) <= bound).all()

    @given(**SIZES, format=st.sampled_from(CODES), unsigned=st.booleans())
    @settings(max_examples=10, deadline=None)
    def test_codes_for_byte_dot_products_may_have_any_width(
        self, rows: int, outputs: int, inputs: int, format: str, unsigned: bool
    ) -> None:
        dot = Dot("mixed" if unsigned else "plain", unsigned=unsigned, outputs=16, grouped_outputs=16)
        platform, rng = replace(host_platform(), dot=dot), np.random.default_rng(rows + outputs)
        largest = FORMATS[format].largest
        codes = rng.integers(-largest, largest + 1, (outputs, inputs)).astype(np.int8)
        scales = np.ones((outputs, FORMATS[format].groups(inputs)), np.float32)
        x = rng.standard_normal((rows, inputs)).astype(np.float32)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dense_dot, "_dot", plain_dot)
            y = self.product(platform, format, x, codes, scales)
        bound = np.abs(codes.astype(float)).sum(axis=1) * np.abs(x).max(axis=1, keepdims=True) / LARGEST + 1e-3
        assert (np.abs(y[:, :outputs] - x.astype(np.float64) @ codes.T) <= bound).all()

    @given(
        rows=st.integers(1, 13),
        outputs=st.integers(1, 100),
        inputs=st.integers(1, 300),
        stored=st.sampled_from(["float32", "float16", "uint16", *CODES]),
        lanes=st.sampled_from([4, 8, 16]),
    )
    @settings(max_examples=25, deadline=None)
    def test_products_with_many_tokens(self, rows: int, outputs: int, inputs: int, stored: str, lanes: int) -> None:
        rng = np.random.default_rng(rows + outputs)
        weight = rng.standard_normal((outputs, inputs)).astype(np.float32)
        x = rng.standard_normal((rows, inputs)).astype(np.float32)
        if stored in CODES:
            largest, groups = FORMATS[stored].largest, FORMATS[stored].groups(inputs)
            codes = rng.integers(-largest, largest + 1, weight.shape).astype(np.int8)
            scales = rng.uniform(0.5, 1.5, (outputs, groups)).astype(np.float32) / largest
            exact = dequantized(stored, codes, scales)
            arguments = self.packed(stored, codes, scales)
        elif stored == "uint16":
            arguments = [input_major((weight.view(np.uint32) >> 16).astype(np.uint16))]
            exact = (weight.view(np.uint32) >> 16 << 16).view(np.float32)
        else:
            arguments, exact = [input_major(weight.astype(stored))], weight.astype(stored).astype(np.float32)
        count = math.ceil(outputs / TILE)
        kernel = dense.dense_many(rows, inputs, count, 1, stored, lanes)
        y = run(kernel, x, *arguments, outputs=[((rows, count * TILE), "float32")])
        np.testing.assert_allclose(y[:, :outputs], x.astype(np.float64) @ exact.T, rtol=0, atol=2e-4)
        assert not y[:, outputs:].any()

    def packed(self, format: str, codes: NDArray[np.int8], scales: Floats) -> list[NDArray[Any]]:
        """Codes and scales in the kernels' layout."""
        if format == "int8":
            quads = int8_quads(codes)
            return [quads.reshape(*quads.shape[:2], -1), tiles(scales)[..., 0]]
        if format == "int8g":
            quads = int8g_quads(codes)
            return [quads.reshape(*quads.shape[:2], -1).view(np.int8), tiles(scales).transpose(0, 2, 1)]
        octets = int4_octets(codes)
        return [octets.reshape(*octets.shape[:3], -1).view(np.int8), tiles(scales).transpose(0, 2, 1)]

    def product(self, platform: TvmPlatform, format: str, x: Floats, codes: NDArray[np.int8], scales: Floats) -> Floats:
        rows, inputs = x.shape
        count = math.ceil(len(codes) / TILE)
        output = [((rows, count * TILE), "float32")]
        weight, per_tile = self.packed(format, codes, scales)
        dot = platform.dot
        if dot is None:
            kernel = getattr(dense, f"dense_{format}_dequantized")(rows, inputs, count, platform.lanes)
            return run(kernel, x, weight, per_tile, outputs=output, platform=platform)  # type: ignore[no-any-return]
        multiple = GROUP if format == "int4" else QUAD
        padded = math.ceil(inputs / multiple) * multiple
        group = FORMATS[format].group if format == "int4" or dot.unsigned else 0
        encode = dense.encode(rows, inputs, padded, dot.unsigned and format == "int8", group, platform.lanes)
        shapes = [((rows, 2, padded), "int8"), ((rows,), "float32")]
        if group:
            shapes.append(((rows, 2, math.ceil(padded / group)), "int32"))
        encoded = run(encode, x, outputs=shapes, platform=platform)
        options: dict[str, Any] = {"intrinsic": dot.intrinsic, "unsigned": dot.unsigned, "lanes": platform.lanes}
        if format == "int8":
            kernel = dense.dense_int8_dot(rows, padded, count, outputs=dot.outputs, **options)
            arguments = [*encoded, weight, per_tile, int8_offsets(codes)]
        else:
            make = getattr(dense, f"dense_{format}_dot")
            kernel = make(rows, padded, count, outputs=dot.grouped_outputs, **options)
            arguments = [*encoded, weight, per_tile]
        return run(kernel, *arguments, outputs=output, platform=platform)  # type: ignore[no-any-return]

    def test_a_token_of_zeros_gives_zeros(self) -> None:
        codes, scales = np.full((32, 64), 127, np.int8), np.ones((32, 1), np.float32)
        y = self.product(host_platform(), "int8", np.zeros((3, 64), np.float32), codes, scales)
        assert not y.any()


class TestNorms:
    @given(
        rows=st.integers(1, 5),
        width=st.integers(1, 20).map(lambda n: 16 * n) | st.integers(2, 100),
        name=st.sampled_from(HERE),
    )
    @settings(max_examples=15, deadline=None)
    def test_norms_of_tokens_are_torchs(self, rows: int, width: int, name: str) -> None:
        rng, functional = np.random.default_rng(width), torch.nn.functional
        x = (3 * rng.standard_normal((rows, width)) + 5).astype(np.float32)
        weight = rng.standard_normal(width).astype(np.float32)
        values, factors = torch.from_numpy(x), torch.from_numpy(weight)
        for make, expected in (
            (norms.layer_norm, functional.layer_norm(values, (width,), factors, None, 1e-5)),
            (norms.rms_norm, functional.rms_norm(values, (width,), factors, 1e-5)),
        ):
            kernel = make(rows, width, 1e-5, PLATFORMS[name].lanes)
            y = run(kernel, x, weight, outputs=[((rows, width), "float32")], platform=PLATFORMS[name])
            np.testing.assert_allclose(y, expected.numpy(), atol=2e-5, rtol=0)

    @pytest.mark.parametrize("width", [5, 20, 24, 48, 300])
    @pytest.mark.parametrize("name", HERE)
    def test_the_norm_of_heads_is_torchs_whatever_their_width(self, name: str, width: int) -> None:
        rng = np.random.default_rng(width)
        x = (3 * rng.standard_normal((2, 4 * width)) + 5).astype(np.float32)
        weight = rng.standard_normal(4 * width).astype(np.float32)
        kernel = cpu.xlstm.head_norm(2, 4, width, 1e-5, PLATFORMS[name].lanes)
        y = run(kernel, x, weight, outputs=[(x.shape, "float32")], platform=PLATFORMS[name])
        expected = torch.nn.functional.group_norm(torch.from_numpy(x), 4, torch.from_numpy(weight), None, 1e-5)
        np.testing.assert_allclose(y, expected.numpy(), atol=2e-5, rtol=0)


class TestRecurrence:
    """Heads of the sLSTM cell of any width, for processors and for a GPU whose threads run one after the other."""

    BATCH, HEADS = 2, 4

    @pytest.mark.parametrize("width", [5, *(pytest.param(width, marks=SLOW) for width in (20, 24, 48)), 300])
    @pytest.mark.parametrize("name", [*HERE, "gpu"])
    def test_heads_of_any_width_are_the_formula(self, name: str, width: int) -> None:
        rng, hidden = np.random.default_rng(width), self.HEADS * width
        scale = 0.3 * min(1, 7 / width**0.5)  # sums of a wide head are no larger
        weight = (scale * rng.standard_normal((self.HEADS, 4 * width, width))).astype(np.float32)
        gates, bias = rng.standard_normal((2, 6, self.HEADS, 2 * width)), rng.standard_normal((self.HEADS, 4 * width))
        state = [rng.standard_normal((self.BATCH, hidden)).astype(np.float32) for _ in "ycnm"]
        state[2] = np.abs(state[2]) + 1
        is_first = np.array([0, 1], np.float32)
        h, after = self.formula(weight, gates, bias, is_first, state)

        platform = PLATFORMS[HERE[0] if name == "gpu" else name]
        with gpu.emulate():
            kernel = (gpu if name == "gpu" else cpu).xlstm.recurrence(
                self.BATCH, 3, 1, self.HEADS, width, platform.lanes
            )
        products = [pad_columns(part.reshape(-1, 2 * width), TILE).reshape(6, -1) for part in gates]
        recurrent = np.concatenate([input_major(part) for part in weight])
        arguments = [*products, recurrent, pad_columns(bias, TILE), is_first, *state]
        tensors = [tvm.runtime.tensor(np.ascontiguousarray(a, np.float32)) for a in (*arguments, np.zeros_like(h))]
        compiled(kernel, platform)(*tensors)
        for found, expected in zip(tensors[-5:], (*after, h), strict=True):
            np.testing.assert_allclose(found.numpy(), expected, atol=2e-6, rtol=2e-5)

    def formula(
        self, weight: Floats, gates: Any, bias: Any, is_first: Floats, state: list[Floats]
    ) -> tuple[Any, list[Any]]:
        """Hidden states of all tokens and the state after them, in float64; gates are (2, tokens, heads, 2 * width)."""
        initial = [0.0, 0.0, 0.0, -1e30]
        h = np.zeros((6, state[0].shape[1]))
        after = [
            np.where(is_first[:, None] > 0, start, s.astype(np.float64))
            for s, start in zip(state, initial, strict=True)
        ]
        for row in range(self.BATCH):
            y, c, n, m = (s[row].reshape(self.HEADS, -1) for s in after)
            for t in range(3):
                if t > 0 or not is_first[row]:
                    fed = np.concatenate(gates[:, 3 * row + t], axis=-1) + bias
                    i, f, z, o = np.split(fed + np.einsum("hoi,hi->ho", weight, y), 4, axis=-1)
                    decayed = m - np.log1p(np.exp(-f))
                    m[:] = np.maximum(i, decayed)
                    entering, kept = np.exp(i - m), np.exp(decayed - m)
                    # where an episode starts, m was -1e30 and nothing of the state is kept
                    c[:], n[:] = kept * c + entering * np.tanh(z), kept * n + entering
                    y[:] = c / n / (1 + np.exp(-o))
                h[3 * row + t] = y.reshape(-1)
        return h, after


class TestScan:
    """The state space of Mamba, for processors and for a GPU whose threads run one after the other."""

    BATCH, RANK = 2, 3

    @pytest.mark.parametrize(("inner", "size", "tokens", "skipped"), [(32, 16, 3, 1), (20, 5, 1, 0), (33, 9, 4, 2)])
    @pytest.mark.parametrize("name", [*HERE, "gpu"])
    def test_any_number_of_channels_and_tokens_is_the_formula(
        self, name: str, inner: int, size: int, tokens: int, skipped: int
    ) -> None:
        rng, rows = np.random.default_rng(inner), self.BATCH * tokens
        shapes = [(rows, inner), (rows, 2 * inner + 7), (rows, self.RANK + 2 * size + 5), (rows, inner + 3)]
        shapes += [(inner,), (size, inner), (inner,), (self.BATCH, size, inner)]
        u, up, selected, steps, bias, A, D, h = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
        A, steps[0, :4] = -np.exp(A), [-90, -20, 20, 90]  # as small and as large as step sizes can be
        is_first = np.array([0, 1], np.float32)
        after, expected = np.where(is_first[:, None, None] > 0, 0, h.astype(np.float64)), np.zeros(u.shape)
        for token in range(rows):
            row, t = divmod(token, tokens)
            B, C = selected[token, self.RANK :][: 2 * size].reshape(2, size, 1).astype(np.float64)
            if t >= skipped or not is_first[row]:
                dt = np.logaddexp(0, steps[token, :inner].astype(np.float64) + bias)
                after[row] = np.exp(dt * A) * after[row] + dt * u[token] * B
            gate = up[token, inner : 2 * inner].astype(np.float64)
            expected[token] = ((C * after[row]).sum(axis=0) + D * u[token]) * gate / (1 + np.exp(-gate))
        h[1, 0, 0] = np.nan  # left by the last episode

        platform = PLATFORMS[HERE[0] if name == "gpu" else name]
        sizes = (self.BATCH, tokens, skipped, inner, size, self.RANK)
        with gpu.emulate():
            kernel = (gpu if name == "gpu" else cpu).mamba.selective_scan(
                *sizes, up.shape[1], selected.shape[1], steps.shape[1], platform.lanes
            )
        arguments = (u, up, selected, steps, bias, A / np.float32(np.log(2)), D, is_first, h, np.zeros_like(u))
        tensors = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arguments]
        compiled(kernel, platform)(*tensors)
        np.testing.assert_allclose(tensors[-2].numpy(), after, atol=2e-6, rtol=2e-5)
        np.testing.assert_allclose(tensors[-1].numpy(), expected, atol=2e-5, rtol=2e-5)


class TestAttention:
    """Blocks of a Decision Transformer, for processors and for a GPU whose threads run one after the other."""

    BATCH, HEADS, TOKENS = 3, 2, 3

    @pytest.mark.parametrize(("width", "past"), [(64, 147), (20, 9), (5, 3)])
    @pytest.mark.parametrize("name", [*HERE, "gpu"])
    def test_a_step_sees_the_ring_and_takes_the_place_of_its_oldest(self, name: str, width: int, past: int) -> None:
        rng, hidden, steps = np.random.default_rng(width), self.HEADS * width, past // self.TOKENS
        projected = rng.standard_normal((self.BATCH * self.TOKENS, 3 * hidden + 7)).astype(np.float32)
        initial = rng.standard_normal((2, self.HEADS, past, width)).astype(np.float32)
        ring = rng.standard_normal((2, self.BATCH, self.HEADS, past, width)).astype(np.float32)
        is_first, index = np.array([0, 1, 0], np.float32), np.array([1 % steps, np.nan, steps - 1], np.float32)
        ring[:, 1] = np.nan  # left by the last episode

        query, *new = self.heads(projected, hidden)
        before = np.where(is_first[:, None, None, None] > 0, initial[:, None], ring)
        later = np.triu(np.full((self.TOKENS, past + self.TOKENS), -np.inf), past + 1)
        keys, values = (np.concatenate(both, axis=2) for both in zip(before, new, strict=True))
        expected = self.seen(query, keys, values, np.where(is_first[:, None, None, None] > 0, later, 0))
        oldest = [1 % steps, 0, steps - 1]
        for row, step in enumerate(oldest):
            for part in range(2):
                before[part][row, :, self.TOKENS * step : self.TOKENS * (step + 1)] = new[part][row]

        kernels, platform = self.kernels(name)
        with gpu.emulate():
            kernel = kernels.cached_attention(
                self.BATCH, self.TOKENS, self.HEADS, width, past, projected.shape[1], platform.lanes
            )
        state = [*ring, index, np.zeros((len(projected), hidden), np.float32)]
        *_, keys, values, index, seen = self.call(kernel, platform, projected, *initial, is_first, *state)
        np.testing.assert_allclose(seen, expected, atol=2e-6, rtol=2e-5)
        np.testing.assert_array_equal([keys, values], before.astype(np.float32))
        np.testing.assert_array_equal(index, [(step + 1) % steps for step in oldest])

    @pytest.mark.parametrize("only_last", [False, True])
    @pytest.mark.parametrize(("width", "tokens"), [(64, 47), (20, 5), (5, 9)])
    @pytest.mark.parametrize("name", [*HERE, "gpu"])
    def test_a_token_of_a_window_sees_itself_and_those_before_it(
        self, name: str, width: int, tokens: int, only_last: bool
    ) -> None:
        rng, hidden = np.random.default_rng(width), self.HEADS * width
        projected = rng.standard_normal((self.BATCH * tokens, 3 * hidden + 7)).astype(np.float32)
        expected = self.seen(*self.heads(projected, hidden), np.triu(np.full((tokens, tokens), -np.inf), 1))
        expected = expected.reshape(self.BATCH, tokens, hidden)[:, -1 if only_last else 0 :].reshape(-1, hidden)
        kernels, platform = self.kernels(name)
        sizes = (self.BATCH, tokens, self.HEADS, width, projected.shape[1], only_last, platform.lanes)
        with gpu.emulate():
            kernel = kernels.window_attention(*sizes)
        *_, seen = self.call(kernel, platform, projected, np.zeros(expected.shape, np.float32))
        np.testing.assert_allclose(seen, expected, atol=2e-6, rtol=2e-5)

    @pytest.mark.parametrize("steps", [2, 5])
    @pytest.mark.parametrize("name", [HERE[0], "gpu"])
    def test_a_window_slides_by_a_step_and_an_episode_starts_with_padding(self, name: str, steps: int) -> None:
        rng, hidden, window = np.random.default_rng(steps), 24, 3 * steps - 1
        shapes = [(self.BATCH * 3, hidden), (window, hidden), (window - 3, hidden), (1, hidden)]
        x, positions, start, padding = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
        former = rng.standard_normal((self.BATCH, window - 3, hidden)).astype(np.float32)
        is_first = np.array([0, 1, 0], np.float32)
        newest = x.reshape(self.BATCH, 3, hidden).copy()
        newest[1, 0] = padding
        expected = np.concatenate([np.where(is_first[:, None, None] > 0, start, former), newest], axis=1)
        former[1] = np.nan
        kernels, platform = self.kernels(name)
        with gpu.emulate():
            kernel = kernels.slide(self.BATCH, 3, 1, window, hidden, platform.lanes)
        y = np.zeros((self.BATCH * window, hidden), np.float32)
        *_, former, y = self.call(kernel, platform, x, is_first, positions, start, padding, former, y)
        np.testing.assert_array_equal(former, expected[:, 3:])
        np.testing.assert_array_equal(y.reshape(expected.shape), expected + positions)

    def kernels(self, name: str) -> tuple[Any, TvmPlatform]:
        return (gpu if name == "gpu" else cpu).decision_transformer, PLATFORMS[HERE[0] if name == "gpu" else name]

    def call(self, kernel: Any, platform: TvmPlatform, *arguments: Floats) -> list[Floats]:
        """All arguments after a call."""
        tensors = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arguments]
        compiled(kernel, platform)(*tensors)
        return [tensor.numpy() for tensor in tensors]

    def heads(self, projected: Floats, hidden: int) -> Any:
        """Queries, keys and values, (batch, heads, tokens, width) each, in float64."""
        parts = projected[:, : 3 * hidden].reshape(self.BATCH, -1, 3, self.HEADS, hidden // self.HEADS)
        return parts.transpose(2, 0, 3, 1, 4).astype(np.float64)

    def seen(self, query: Any, keys: Any, values: Any, later: Any) -> Any:
        scores = query @ keys.swapaxes(2, 3) / math.sqrt(query.shape[-1]) + later
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        seen = weights / weights.sum(axis=-1, keepdims=True) @ values
        return seen.transpose(0, 2, 1, 3).reshape(-1, seen.shape[1] * seen.shape[3])


class TestTokens:
    """The number of tokens is the caller's: those of a step together are the same as each in a step of its own."""

    BATCH, HEADS, TAPS, COLUMNS = 2, 2, 4, 16

    @pytest.mark.parametrize("name", [HERE[0], "gpu"])
    @pytest.mark.parametrize(("width", "size"), [pytest.param(10, 4, marks=SLOW), (9, 3)])
    def test_an_mlstm_cell_takes_any_number_of_them(self, name: str, width: int, size: int) -> None:
        rng, inner = np.random.default_rng(width), self.HEADS * width
        shapes = [(self.TAPS, inner), (inner,), (-(-inner // 16), 3, size, 16), (1, 2 * self.HEADS, 2, inner)]
        weights = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        bias = rng.standard_normal(2 * self.HEADS).astype(np.float32)
        up = rng.standard_normal((self.BATCH, 3, 2 * inner)).astype(np.float32)
        first, later = np.array([0, 1], np.float32), np.zeros(2, np.float32)

        def start() -> dict[str, Floats]:
            state = np.random.default_rng(0)
            shapes = {
                "window": (self.BATCH, self.TAPS - 1, inner),
                "n": (self.BATCH, self.HEADS, width),
                "m": (self.BATCH, self.HEADS),
                "C": (self.BATCH, self.HEADS, 1, width, self.COLUMNS),
            }
            return {key: state.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}

        together = start()
        h = self.step(name, up, first, weights, bias, size, together)
        alone = start()
        for t in range(3):
            found = self.step(name, up[:, t : t + 1], later if t else first, weights, bias, size, alone)
            np.testing.assert_allclose(found[:, 0], h[:, t], atol=2e-5, rtol=2e-4)
        for key, value in together.items():
            columns = slice(width) if key == "C" else slice(None)
            np.testing.assert_allclose(value[..., columns], alone[key][..., columns], atol=2e-5, rtol=2e-4)

    def step(
        self,
        name: str,
        up: Floats,
        first: Floats,
        weights: list[Floats],
        bias: Floats,
        size: int,
        state: dict[str, Floats],
    ) -> Floats:
        """Hidden states (batch, tokens, inner) of a step, of which no token is skipped; ``state`` moves on."""
        platform, kernels = PLATFORMS[HERE[0]], (gpu if name == "gpu" else cpu).xlstm
        lanes = 1 if name == "gpu" else platform.lanes
        batch, tokens, inner = up.shape[0], up.shape[1], up.shape[2] // 2
        width, rows = inner // self.HEADS, batch * tokens
        sum_lanes = mlstm.mix_lanes(inner, size, lanes)
        with gpu.emulate():
            mix = kernels.mix(batch, tokens, 0, inner, 2 * inner, self.TAPS, 1, self.HEADS, size, lanes)
            chunk = kernels.chunk(batch, tokens, 0, self.HEADS, width, 1, sum_lanes, lanes)
            memory = kernels.memory(batch, tokens, self.HEADS, width, self.COLUMNS, lanes)
        flat = np.zeros((rows, inner), np.float32)
        sums = np.zeros((1, batch, 2 * self.HEADS, tokens, sum_lanes), np.float32)
        *_, window, _, q, k, v, sums = self.call(
            mix, up.reshape(rows, -1), first, *weights, state["window"], flat, flat, flat, flat, sums
        )
        coefficients = np.zeros((batch, self.HEADS, mlstm.coefficient_count(tokens)), np.float32)
        *_, n, m, keys, coefficients = self.call(
            chunk, q, k, sums, bias, first, state["n"], state["m"], flat, coefficients
        )
        *_, C, h = self.call(memory, q, keys, v, coefficients, first, state["C"], flat)
        state.update(window=window, n=n, m=m, C=C)
        return np.asarray(h).reshape(batch, tokens, inner)

    def call(self, kernel: Any, *arguments: Floats) -> list[Floats]:
        """All arguments after a call."""
        tensors = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arguments]
        compiled(kernel)(*tensors)
        return [tensor.numpy() for tensor in tensors]
