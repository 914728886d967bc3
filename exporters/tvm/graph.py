"""One step as a Relax function: calls of the kernels in `kernels/tvm`, each compiled once however often it is called.

Weights and state are parameters, so that the library holds code alone. State and outputs are written in place. This is
what every policy has, tokens and head; what lies between them is the backbone's (`exporters/tvm/<backbone>.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import tvm
from tvm import relax

from lram_export.exporters.tvm.backbone import backbone_kernels
from lram_export.kernels.tvm import cpu, gpu
from lram_export.kernels.tvm.cpu.dense import MANY, dense_many, encode
from lram_export.kernels.tvm.cpu.dense.activations import PLANES
from lram_export.kernels.tvm.cpu.dense.tiles import QUAD
from lram_export.model.config import ModelConfig
from lram_export.model.encoders import IMPALA_CHANNELS, ImageEncoder
from lram_export.spec.precision import GROUP, WIDE_GROUP
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import StepSpec, state_name
from lram_export.spec.tokens import TokenLayout
from lram_export.targets.tvm.interface import STEP_FUNCTION, Interface, PackedMatrix, stored_shape
from lram_export.targets.tvm.platforms import TvmPlatform

Value = Any
"""A tensor in the Relax function."""

ATTRIBUTES = {"num_input": 0}
"""Of the step: none of its parameters ever lies elsewhere, so a graph of CUDA may hold all their addresses."""

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
    step = StepBuilder(spec, config.tokens, interface, platform, chosen)
    with step.function():
        x = _embed(step, config, task)
        read = backbone_kernels(config).emit(step, config.backbone, x)
        _decide(step, config, task, read)
    return step.module()


@dataclass(frozen=True)
class _Codes:
    """Activations of some tokens as integer codes."""

    codes: Value
    scales: Value
    sums: Value | None

    @property
    def values(self) -> list[Value]:
        return [self.codes, self.scales] + ([] if self.sums is None else [self.sums])


class StepBuilder:
    """A step under construction.

    Attributes:
        batch, tokens, rows: rows of the step, tokens of each, and their product: x is (rows, hidden).
        skipped: how many tokens, the first ones, do not exist where an episode starts.
        lanes: float32 numbers in a vector of the platform.
        inputs, weights: the step's parameters by name, outputs among the inputs.
        matrices: how large matrices are stored.
        epsilons: small numbers in the norms' denominators, by names that packer and emitter agree on.
        kernels: `kernels/tvm/cpu` or `kernels/tvm/gpu`.
    """

    def __init__(
        self, spec: StepSpec, layout: TokenLayout, interface: Interface, platform: TvmPlatform, kernels: Any
    ) -> None:
        self.batch, self.tokens, self.skipped = spec.batch_size, len(layout), layout.skipped
        self.read = layout.read_position
        self.rows, self.lanes = self.tokens * self.batch, platform.lanes
        self.matrices, self.epsilons, self.kernels = interface.matrices, interface.epsilons, kernels
        self._dot = platform.dot
        self._builder = relax.BlockBuilder()
        self._functions: dict[Any, Any] = {}
        self.inputs = {t.name: _parameter(t.name, t.shape, t.dtype) for t in (*spec.inputs, *spec.outputs)}
        logits = spec.outputs[1]
        self.inputs[logits.name] = _parameter(logits.name, (logits.shape[0], logits.size // logits.shape[0]), "float32")
        self.weights = {w.name: _parameter(w.name, w.shape, w.dtype) for w in interface.weights}
        self._states = {
            t.name: _parameter(t.name, stored_shape(t, platform.memory_columns), t.dtype) for t in spec.states
        }

    @contextmanager
    def function(self) -> Iterator[None]:
        """Calls made inside are the step; what it finds lies in its parameters then."""
        parameters = [*self.inputs.values(), *self.weights.values(), *self._states.values()]
        with self._builder.function(STEP_FUNCTION, parameters, attrs=ATTRIBUTES):
            with self._builder.dataflow():
                yield
            self._builder.emit_func_output(relax.Tuple([]))

    def module(self) -> tvm.IRModule:
        """The step with all kernels that it calls."""
        return self._builder.finalize()

    def state(self, block: int, part: str) -> Value:
        """A state tensor, as the kernels keep it."""
        return self._states[state_name(block, part)]

    def call(
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
            self._functions[key] = self._builder.add_func(make_kernel(make, tuple(sizes), options), make.__name__)
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

    def norm(
        self, name: str, x: Value, epsilon: float, *, read: bool = False, kernel: Callable[..., Any] | None = None
    ) -> Value:
        """Norm of all tokens (rows, width), or (batch, width) only of those whose action is ``read``.

        ``kernel`` is by default the layer norm without a bias.
        """
        count, width = (extent.value for extent in x.ty.shape)
        rows, every, place = (self.batch, self.tokens, self.read) if read else (count, 1, 0)
        sizes = (rows, width, epsilon, self.lanes, every, place)
        make = kernel or self.kernels.layer_norm
        return self.call(make, sizes, [x, self.weights[name]], [((rows, width), "float32")])[0]

    def bias(self, name: str, x: Value) -> Value:
        """x (rows, width of the bias or more) += bias, in place."""
        bias, (rows, x_width) = self.weights[name], (extent.value for extent in x.ty.shape)
        sizes = (rows, bias.ty.shape[0].value, x_width, self.lanes)
        return self.call(self.kernels.add_bias, sizes, [bias, x], [], in_place=1)[0]

    def narrow(self, x: Value, columns: int) -> Value:
        """The first columns of x (rows, width)."""
        rows, width = (extent.value for extent in x.ty.shape)
        sizes = (rows, width, columns, self.lanes)
        return self.call(self.kernels.narrow, sizes, [x], [((rows, columns), "float32")])[0]

    def pick(self, x: Value, tokens: int, place: int) -> Value:
        """Of the ``tokens`` of every row the one at ``place``: (batch * tokens, width) -> (batch, width)."""
        width = x.ty.shape[-1].value
        sizes = (self.batch, tokens, place, width, self.lanes)
        return self.call(self.kernels.pick, sizes, [x], [((self.batch, width), "float32")])[0]

    def add(self, name: str, x: Value, residual: Value) -> Value:
        """residual += W x, in place."""
        return self.residual(self.dense(name, x, self.rows), self.matrices[name].width, residual)

    def residual(self, addend: Value, addend_width: int, x: Value) -> Value:
        """x += addend (rows, addend_width or fewer), in place."""
        sizes = (self.rows, x.ty.shape[-1].value, addend_width, self.lanes)
        return self.call(self.kernels.add, sizes, [addend, x], [], in_place=1)[0]

    def dense(self, name: str, x: Value, rows: int) -> Value:
        """y = W x for ``rows`` tokens: (rows, width of the matrix)."""
        matrix = self.matrices[name]
        arrays = [self.weights[array] for array in matrix.arrays]
        output = [((rows, matrix.width), "float32")]
        sizes: tuple[Any, ...]
        if rows >= MANY and self.kernels is cpu:
            stored = STORED_TYPES.get(matrix.format, matrix.format)
            sizes = (rows, matrix.cols, matrix.tiles, matrix.parts, stored, self.lanes)
            return self.call(dense_many, sizes, [x, *arrays[:2]], output)[0]
        if matrix.format in STORED_TYPES:
            sizes = (rows, matrix.cols, matrix.tiles, matrix.parts, STORED_TYPES[matrix.format], self.lanes)
            return self.call(self.kernels.dense_float, sizes, [x, *arrays], output)[0]
        dot = self._dot
        if dot is None:
            make = getattr(self.kernels, f"dense_{matrix.format}_dequantized")
            sizes = (rows, matrix.cols, matrix.tiles, self.lanes)
            return self.call(make, sizes, [x, *arrays[:2]], output)[0]
        encoded = self._encode(matrix, x, rows)
        options = {"intrinsic": dot.intrinsic, "unsigned": dot.unsigned, "lanes": self.lanes}
        sizes = (rows, _encoded_columns(matrix), matrix.tiles)
        options["outputs"] = dot.outputs if matrix.format == "int8" else dot.grouped_outputs
        make = getattr(self.kernels, f"dense_{matrix.format}_dot")
        return self.call(make, sizes, [*encoded.values, *arrays], output, options)[0]

    def _encode(self, matrix: PackedMatrix, x: Value, rows: int) -> _Codes:
        dot = self._dot
        assert dot is not None
        # weights are the unsigned side where they have groups
        group = {"int4": GROUP, "int8g": WIDE_GROUP if dot.unsigned else 0}.get(matrix.format, 0)
        padded = _encoded_columns(matrix)
        outputs = [((rows, PLANES, padded), "int8"), ((rows,), "float32")]
        if group:
            outputs.append(((rows, PLANES, -(-padded // group)), "int32"))
        sizes = (rows, matrix.cols, padded, dot.unsigned and matrix.format == "int8", group, self.lanes)
        codes = self.call(encode, sizes, [x], outputs)
        return _Codes(codes[0], codes[1], codes[2] if group else None)


def make_kernel(make: Callable[..., Any], sizes: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The function ``make(*sizes, **options)``, without a name of its own; writing it takes a tenth of a second."""
    return make(*sizes, **options).without_attr("global_symbol")


def _encoded_columns(matrix: PackedMatrix) -> int:
    """Columns of a matrix of codes, filled up to what one step of its product takes."""
    multiple = GROUP if matrix.format == "int4" else QUAD
    return -(-matrix.cols // multiple) * multiple


def _embed(step: StepBuilder, config: ModelConfig, task: TaskSpec) -> Value:
    """The tokens of a step, normalized, (rows, hidden)."""
    norm = [step.weights["embed_norm.weight"], step.weights["embed_norm.bias"]]
    epsilon, hidden = step.epsilons["embed"], config.backbone.hidden_size
    x: Value = None
    for place, token in enumerate(config.tokens.tokens):
        name, source = f"embed_{token.name}", token.input
        sizes: tuple[Any, ...] = (step.batch, step.tokens, place, hidden)
        if source == "observation":
            is_image = task.observation == "image"
            encoded = _encode_image(step, config) if is_image else _normalized(step, step.inputs[source])
            product = step.dense(name, encoded, step.batch)
            make, sizes = step.kernels.embed_vector, (*sizes, step.matrices[name].width, is_image, epsilon)
            arguments = [product, step.weights[f"{name}.bias"], *norm]
        elif token.zero:
            make, arguments = step.kernels.embed_constant, [step.weights[f"{name}.token"]]
        else:
            make, sizes = step.kernels.embed_number, (*sizes, epsilon)
            arguments = [step.inputs[source], step.weights[f"{name}.weight"], step.weights[f"{name}.bias"], *norm]
        sizes = (*sizes, step.lanes)
        if x is None:  # the first makes the tokens, the others add theirs to it
            x = step.call(make, sizes, arguments, [((step.rows, hidden), "float32")])[0]
        else:
            x = step.call(make, sizes, [*arguments, x], [], in_place=1)[0]
    return x


def _normalized(step: StepBuilder, observation: Value) -> Value:
    """The observation as the network takes it, (batch, size)."""
    if "observation.mean" not in step.weights:
        return observation
    arguments = [observation, *(step.weights[f"observation.{part}"] for part in ("mean", "deviation", "clip"))]
    shape = tuple(extent.value for extent in observation.ty.shape)
    return step.call(step.kernels.normalize_observation, shape, arguments, [(shape, "float32")])[0]


def _encode_image(step: StepBuilder, config: ModelConfig) -> Value:
    encoder = config.encoder("image")
    assert isinstance(encoder, ImageEncoder)
    channels, height, width = encoder.shape
    batch, lanes = step.batch, step.lanes
    count = 0

    def bordered(outputs: int) -> list[tuple[tuple[int, ...], str]]:
        return [((batch, height + 2, width + 2, outputs), "float32")]

    def convolve(x: Value, inputs: int, outputs: int, rectify: bool, addend: Value | None = None) -> Value:
        nonlocal count
        names = [f"embed_observation.cnn.{count}.{part}" for part in ("weight", "bias")]
        count += 1
        arguments = [x, *(step.weights[name] for name in names)] + ([] if addend is None else [addend])
        options = {"rectify": rectify, "residual": addend is not None}
        sizes = (batch, height, width, inputs, outputs, lanes)
        return step.call(step.kernels.image_convolution, sizes, arguments, bordered(outputs), options)[0]

    observation = step.inputs["observation"]
    x = step.call(step.kernels.read_image, (batch, height, width, channels), [observation], bordered(channels))[0]
    for outputs in IMPALA_CHANNELS:
        full = convolve(x, channels, outputs, rectify=False)
        sizes = (batch, height, width, outputs, lanes)
        height, width, channels = (height + 1) // 2, (width + 1) // 2, outputs
        x = step.call(step.kernels.pool, sizes, [full], bordered(outputs))[0]
        for _ in range(2):
            between = convolve(x, outputs, outputs, rectify=True)
            x = convolve(between, outputs, outputs, rectify=True, addend=x)
    features = [((batch, height * width * channels), "float32")]
    return step.call(step.kernels.flatten, (batch, height, width, channels), [x], features)[0]


def _decide(step: StepBuilder, config: ModelConfig, task: TaskSpec, read: Value) -> None:
    """Action and action logits from what the backbone left, (batch, hidden)."""
    products = step.dense("head", read, step.batch)
    head: Any = config.head
    discrete = task.action == "discrete"
    actions = 1 if discrete else task.action_dim
    tokens = head.discrete_actions if discrete else head.num_actions
    options = {
        "discrete": discrete,
        "discrete_actions": head.discrete_actions,
        "channels": head.action_channels,
    }
    action, logits = step.inputs["action"], step.inputs["action_logits"]
    sizes, scores = (step.batch, actions, tokens, step.matrices["head"].width), [products, step.weights["head.bias"]]
    if "action.values" not in step.weights:
        step.call(step.kernels.choose, sizes, [*scores, logits, action], [], options, in_place=2)
        return
    options, places = {**options, "discrete": True}, [((step.batch, actions), "int64")]
    chosen, _ = step.call(step.kernels.choose, sizes, [*scores, logits], places, options, in_place=1)
    arguments = [chosen, step.weights["action.values"], action]
    step.call(step.kernels.look_up, (step.batch, actions, tokens), arguments, [], in_place=1)


def _parameter(name: str, shape: Sequence[int], dtype: str) -> relax.Var:
    return relax.Var(name.replace(".", "_"), relax.TensorType(tuple(shape), dtype))
