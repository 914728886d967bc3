"""One step as a Relax function: calls of the kernels in `kernels/tvm`, each compiled once however often it is called.

Weights and state are parameters, so that the library holds code alone. State and outputs are written in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import tvm
from tvm import relax

from lram_export.kernels.tvm import cpu, gpu
from lram_export.kernels.tvm.cpu import dense, mlstm
from lram_export.model.config import IMPALA_CHANNELS, ModelConfig
from lram_export.spec.precision import GROUP
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import StepSpec
from lram_export.targets.tvm.interface import STEP_FUNCTION, Interface, PackedMatrix, channel_parts, stored_shape
from lram_export.targets.tvm.platforms import TvmPlatform

Value = Any
"""A tensor in the Relax function."""

TOKENS = mlstm.TOKENS
STORED_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "uint16"}


def build_step(
    config: ModelConfig,
    task: TaskSpec,
    spec: StepSpec,
    interface: Interface,
    platform: TvmPlatform,
    kernels: ModuleType | None = None,
) -> tvm.IRModule:
    """The module with the function `step`, whose parameters are inputs, outputs, weights and states, in this order.

    ``kernels`` is `kernels/tvm/cpu` or `kernels/tvm/gpu`; by default what the platform has.
    """
    chosen = kernels or (gpu if platform.gpu is not None else cpu)
    return _StepBuilder(config, task, spec, interface, platform, chosen).build()


@dataclass(frozen=True)
class _Codes:
    """Activations of some tokens as integer codes."""

    codes: Value
    scales: Value
    sums: Value | None

    @property
    def values(self) -> list[Value]:
        return [self.codes, self.scales] + ([] if self.sums is None else [self.sums])


class _StepBuilder:
    def __init__(
        self,
        config: ModelConfig,
        task: TaskSpec,
        spec: StepSpec,
        interface: Interface,
        platform: TvmPlatform,
        kernels: Any,
    ) -> None:
        self._config, self._task, self._platform = config, task, platform
        self._matrices, self._epsilons = interface.matrices, interface.epsilons
        self._batch, self._rows, self._lanes = spec.batch_size, TOKENS * spec.batch_size, platform.lanes
        self._builder = relax.BlockBuilder()
        self._functions: dict[Any, Any] = {}
        self._kernels = kernels
        self._inputs = {t.name: _parameter(t.name, t.shape, t.dtype) for t in (*spec.inputs, *spec.outputs)}
        logits = spec.outputs[1]
        self._inputs[logits.name] = _parameter(
            logits.name, (logits.shape[0], logits.size // logits.shape[0]), "float32"
        )
        self._weights = {w.name: _parameter(w.name, w.shape, w.dtype) for w in interface.weights}
        self._states = {
            t.name: _parameter(t.name, stored_shape(t, platform.memory_columns), t.dtype) for t in spec.states
        }

    def build(self) -> tvm.IRModule:
        parameters = [*self._inputs.values(), *self._weights.values(), *self._states.values()]
        with self._builder.function(STEP_FUNCTION, parameters):
            with self._builder.dataflow():
                x = self._embed()
                for number in range(self._config.num_blocks):
                    x = (self._slstm if number in self._config.slstm_at else self._mlstm)(number, x)
                result = self._builder.emit_output(self._decide(x))
            self._builder.emit_func_output(result)
        return self._builder.finalize()

    # calls of kernels

    def _call(
        self,
        make: Callable[..., Any],
        sizes: Sequence[Any],
        arguments: Sequence[Value],
        outputs: Sequence[tuple[tuple[int, ...], str]],
        options: dict[str, Any] | None = None,
        in_place: int = 0,
    ) -> list[Value]:
        """Call the kernel ``make(*sizes, **options)``; its last ``in_place`` arguments are changed by it.

        Returns its outputs, then the arguments it changed.
        """
        options = options or {}
        key = (make, *sizes, *sorted(options.items()))
        if key not in self._functions:
            kernel = make(*sizes, **options).without_attr("global_symbol")
            self._functions[key] = self._builder.add_func(kernel, make.__name__)
        types = [relax.TensorType(shape, dtype) for shape, dtype in outputs]
        if not in_place:
            result = self._builder.emit(relax.op.call_tir(self._functions[key], arguments, types))
            return [result] if len(types) == 1 else self._items(result, len(types))
        changed = list(range(len(arguments) - in_place, len(arguments)))
        all_types = [arguments[i].ty for i in changed] + types
        places = changed + [-1] * len(types)
        if len(all_types) == 1:
            call = relax.op.call_tir_inplace(self._functions[key], arguments, places[0], all_types[0])
            return [self._builder.emit(call)]
        call = relax.op.call_tir_inplace(self._functions[key], arguments, places, all_types)
        items = self._items(self._builder.emit(call), len(all_types))
        return items[in_place:] + items[:in_place]

    def _items(self, result: Value, count: int) -> list[Value]:
        return [self._builder.emit(relax.TupleGetItem(result, i)) for i in range(count)]

    def _weight(self, name: str) -> Value:
        return self._weights[name]

    def _dense(self, name: str, x: Value, rows: int) -> Value:
        """y = W x for ``rows`` tokens: (rows, width of the matrix)."""
        matrix = self._matrices[name]
        arrays = [self._weight(array) for array in matrix.arrays]
        output = [((rows, matrix.width), "float32")]
        sizes: tuple[Any, ...]
        if matrix.format in STORED_TYPES:
            sizes = (rows, matrix.cols, matrix.tiles, matrix.parts, STORED_TYPES[matrix.format], self._lanes)
            return self._call(self._kernels.dense_float, sizes, [x, *arrays], output)[0]
        dot = self._platform.dot
        if dot is None:
            make = (
                self._kernels.dense_int8_dequantized
                if matrix.format == "int8"
                else self._kernels.dense_int4_dequantized
            )
            sizes = (rows, matrix.cols, matrix.tiles, self._lanes)
            return self._call(make, sizes, [x, *arrays[:2]], output)[0]
        encoded = self._encode(matrix, x, rows)
        options = {"intrinsic": dot.intrinsic, "unsigned": dot.unsigned, "lanes": self._lanes}
        if matrix.format == "int8":
            sizes = (rows, matrix.cols, matrix.tiles)
            options["outputs"] = dot.outputs
            return self._call(self._kernels.dense_int8_dot, sizes, [*encoded.values, *arrays], output, options)[0]
        sizes = (rows, -(-matrix.cols // GROUP) * GROUP, matrix.tiles)
        options["outputs"] = dot.int4_outputs
        return self._call(self._kernels.dense_int4_dot, sizes, [*encoded.values, *arrays], output, options)[0]

    def _encode(self, matrix: PackedMatrix, x: Value, rows: int) -> _Codes:
        dot = self._platform.dot
        assert dot is not None
        with_sums = matrix.format == "int4"
        padded = -(-matrix.cols // GROUP) * GROUP if with_sums else matrix.cols
        outputs = [((rows, dense.PLANES, padded), "int8"), ((rows,), "float32")]
        if with_sums:
            outputs.append(((rows, dense.PLANES, padded // GROUP), "int32"))
        sizes = (rows, matrix.cols, padded, dot.unsigned and not with_sums, with_sums, self._lanes)
        codes = self._call(dense.encode, sizes, [x], outputs)
        return _Codes(codes[0], codes[1], codes[2] if with_sums else None)

    def _norm(self, name: str, x: Value, rows: int, every: int = 1) -> Value:
        hidden = self._config.hidden_size
        sizes = (rows, hidden, self._epsilons.block, self._lanes, every)
        return self._call(self._kernels.layer_norm, sizes, [x, self._weight(name)], [((rows, hidden), "float32")])[0]

    def _add(self, addend: Value, width: int, x: Value) -> Value:
        hidden = self._config.hidden_size
        return self._call(self._kernels.add, (self._rows, hidden, width, self._lanes), [addend, x], [], in_place=1)[0]

    # the parts of a step

    def _embed(self) -> Value:
        config = self._config
        is_image = self._task.observation == "image"
        x = self._encode_image() if is_image else self._inputs["observation"]
        observed = self._dense("embed_observation", x, self._batch)
        width = self._matrices["embed_observation"].width
        names = (
            "embed_reward.weight",
            "embed_reward.bias",
            "embed_observation.bias",
            "embed_return.weight",
            "embed_return.bias",
            "embed_norm.weight",
            "embed_norm.bias",
        )
        arguments = [self._inputs["return_to_go"], self._inputs["reward"], observed, *map(self._weight, names)]
        sizes = (self._batch, config.hidden_size, width, is_image, self._epsilons.embed, self._lanes)
        return self._call(self._kernels.embed, sizes, arguments, [((self._rows, config.hidden_size), "float32")])[0]

    def _encode_image(self) -> Value:
        channels, height, width = self._config.image_shape or (0, 0, 0)
        batch, lanes = self._batch, self._lanes
        count = 0

        def bordered(outputs: int) -> list[tuple[tuple[int, ...], str]]:
            return [((batch, height + 2, width + 2, outputs), "float32")]

        def convolve(x: Value, inputs: int, outputs: int, rectify: bool, addend: Value | None = None) -> Value:
            nonlocal count
            names = [f"embed_observation.cnn.{count}.{part}" for part in ("weight", "bias")]
            count += 1
            arguments = [x, *map(self._weight, names)] + ([] if addend is None else [addend])
            options = {"rectify": rectify, "residual": addend is not None}
            sizes = (batch, height, width, inputs, outputs, lanes)
            return self._call(self._kernels.image_convolution, sizes, arguments, bordered(outputs), options)[0]

        observation = self._inputs["observation"]
        x = self._call(self._kernels.read_image, (batch, height, width, channels), [observation], bordered(channels))[0]
        for outputs in IMPALA_CHANNELS:
            full = convolve(x, channels, outputs, rectify=False)
            sizes = (batch, height, width, outputs, lanes)
            height, width, channels = (height + 1) // 2, (width + 1) // 2, outputs
            x = self._call(self._kernels.pool, sizes, [full], bordered(outputs))[0]
            for _ in range(2):
                between = convolve(x, outputs, outputs, rectify=True)
                x = convolve(between, outputs, outputs, rectify=True, addend=x)
        features = [((batch, height * width * channels), "float32")]
        return self._call(self._kernels.flatten, (batch, height, width, channels), [x], features)[0]

    def _mlstm(self, number: int, x: Value) -> Value:
        config, name = self._config, f"blocks.{number}"
        batch, rows, lanes = self._batch, self._rows, self._lanes
        heads, width, inner = config.num_heads, config.head_dim, config.inner_size
        parts, gates = channel_parts(inner), 2 * config.num_heads
        first = self._inputs["is_first"]
        up = self._dense(f"{name}.proj_up", self._norm(f"{name}.norm.weight", x, rows), rows)
        up_width = self._matrices[f"{name}.proj_up"].width

        flat = ((rows, inner), "float32")
        of_parts = ("conv.weight", "conv.bias", "query_key_value", "gates.weight")
        convolved, q, k, v, gate_sums, _ = self._call(
            self._kernels.mix,
            (batch, inner, up_width, config.conv_kernel_size, parts, heads, lanes),
            [up, first, *(self._weight(f"{name}.{part}") for part in of_parts), self._state(number, "conv")],
            [flat, flat, flat, flat, ((parts, batch, gates, TOKENS, lanes), "float32")],
            in_place=1,
        )
        bias = self._weight(f"{name}.gates.bias")
        weighted_keys, coefficients, *_ = self._call(
            self._kernels.chunk,
            (batch, heads, width, parts, lanes),
            [q, k, gate_sums, bias, first, self._state(number, "n"), self._state(number, "m")],
            [flat, ((batch, heads, mlstm.COEFFICIENTS), "float32")],
            in_place=2,
        )
        columns = self._states[f"state.{number}.C"].ty.shape[-1].value
        h, _ = self._call(
            self._kernels.memory,
            (batch, heads, width, columns, lanes),
            [q, weighted_keys, v, coefficients, first, self._state(number, "C")],
            [flat],
            in_place=1,
        )
        gated = self._call(
            self._kernels.gated_output,
            (rows, heads, width, up_width, self._epsilons.mlstm_heads, lanes),
            [h, convolved, up, self._weight(f"{name}.out_norm.weight"), self._weight(f"{name}.skip")],
            [flat],
        )[0]
        down = self._dense(f"{name}.proj_down", gated, rows)
        return self._add(down, self._matrices[f"{name}.proj_down"].width, x)

    def _slstm(self, number: int, x: Value) -> Value:
        config, name = self._config, f"blocks.{number}"
        batch, rows, lanes, hidden = self._batch, self._rows, self._lanes, config.hidden_size
        heads, first = config.slstm_num_heads, self._inputs["is_first"]
        flat = ((rows, hidden), "float32")
        normed = self._norm(f"{name}.norm.weight", x, rows)
        conv = [self._weight(f"{name}.conv.weight"), self._weight(f"{name}.conv.bias"), self._state(number, "conv")]
        convolved, _ = self._call(
            self._kernels.slstm_convolution,
            (batch, hidden, config.conv_kernel_size, lanes),
            [normed, first, *conv],
            [flat],
            in_place=1,
        )
        from_conv = self._dense(f"{name}.from_conv", convolved, rows)
        from_input = self._dense(f"{name}.from_input", normed, rows)
        cell = [self._weight(f"{name}.recurrent.weight"), self._weight(f"{name}.bias"), first]
        h, *_ = self._call(
            self._kernels.recurrence,
            (batch, heads, hidden // heads, lanes),
            [from_conv, from_input, *cell, *(self._state(number, part) for part in ("y", "c", "n", "m"))],
            [flat],
            in_place=4,
        )
        sizes: tuple[Any, ...] = (rows, heads, hidden // heads, self._epsilons.slstm_heads, lanes)
        h = self._call(self._kernels.head_norm, sizes, [h, self._weight(f"{name}.out_norm.weight")], [flat])[0]
        x = self._add(h, hidden, x)

        normed = self._norm(f"{name}.ffn_norm.weight", x, rows)
        up = self._dense(f"{name}.ffn_up", normed, rows)
        sizes = (rows, config.ffn_size, self._matrices[f"{name}.ffn_up"].width, config.ffn_activation, lanes)
        gated = self._call(self._kernels.gated, sizes, [up], [((rows, config.ffn_size), "float32")])[0]
        down = self._dense(f"{name}.ffn_down", gated, rows)
        return self._add(down, self._matrices[f"{name}.ffn_down"].width, x)

    def _decide(self, x: Value) -> Value:
        task, config = self._task, self._config
        normed = self._norm("post_norm.weight", x, self._batch, every=TOKENS)
        products = self._dense("head", normed, self._batch)
        discrete = task.action == "discrete"
        actions = 1 if discrete else task.action_dim
        tokens = config.discrete_actions if discrete else config.num_actions
        options = {
            "discrete": discrete,
            "discrete_actions": config.discrete_actions,
            "channels": config.action_channels,
        }
        outputs = [self._inputs["action"], self._inputs["action_logits"]]
        return self._call(
            self._kernels.choose,
            (self._batch, actions, tokens, self._matrices["head"].width),
            [products, self._weight("head.bias"), *outputs],
            [],
            options,
            in_place=2,
        )[0]

    def _state(self, number: int, part: str) -> Value:
        return self._states[f"state.{number}.{part}"]


def _parameter(name: str, shape: Sequence[int], dtype: str) -> relax.Var:
    return relax.Var(name.replace(".", "_"), relax.TensorType(tuple(shape), dtype))
