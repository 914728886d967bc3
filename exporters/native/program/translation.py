"""From a traced step to a program: its operators one after the other, each as the engine's operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from lram_export.errors import UsageError, describe
from lram_export.exporters.native.program import pointwise, reductions, windows
from lram_export.exporters.native.program.movement import MOVES, moved
from lram_export.exporters.native.program.planning import planned
from lram_export.exporters.native.program.products import Codes, linear, product, with_bias
from lram_export.exporters.native.program.tape import Constant, Tape, Unsupported, Value
from lram_export.exporters.native.program.tracing import traced
from lram_export.lowering import LoweredModule
from lram_export.spec.tensors import StateSpec, array
from lram_export.targets.native.program import FieldEntry, Function, Program

MOST_CONSTANT = 1 << 22
"""Elements of a tensor that is made of constants alone, and so becomes one."""
LIKE = frozenset("full_like zeros_like ones_like empty_like new_zeros new_ones new_full new_empty".split())
"""Operators that look at no value of their argument."""
CONVERSIONS = frozenset("_to_copy to convert_element_type".split())


def translate(policy: LoweredModule) -> Program:
    """The program of a module's step.

    Raises:
        UsageError: an operator that the engine has no kernel for, with the line of the module.
    """
    return Translation(policy).program()


class Translation:
    """Goes through a traced step."""

    def __init__(self, policy: LoweredModule) -> None:
        self.policy, self.spec = policy, policy.spec
        quantization = policy.quantization
        matrices = {} if quantization is None else dict(quantization.matrices)
        self.one_plane = quantization is not None and quantization.quantized_activations
        self.codes = Codes(matrices, self.one_plane)
        self.tape = Tape()
        self.values: dict[str, Any] = {}

    def program(self) -> Program:
        """Everything of it."""
        graph, constants, names = traced(self.policy)
        self.values.update(constants)
        inputs = [self._input(t.shape[1:], t.dtype) for t in self.spec.inputs]
        states = [self.tape.state(i, t.shape[1:]) for i, t in enumerate(self.spec.states)]
        for name, value in zip(names, (*inputs, *states), strict=True):
            self.values[name] = value.reshaped(1, *value.shape)
        results: list[Value] = []
        for node in graph.nodes:
            if node.op == "output":
                results = [self.tape.value(self.values[result.name]) for result in node.args[0]]
            elif node.op == "call_function" and (node.users or node.target is not torch.ops.aten._assert_scalar):
                if node.users:
                    self.values[node.name] = self._node(node)
        return self._finished(graph, names, inputs, results)

    def _input(self, shape: tuple[int, ...], dtype: str) -> Value:
        return self.tape.new(shape, getattr(torch, dtype))

    def _finished(self, graph: fx.Graph, names: tuple[str, ...], inputs: list[Value], results: list[Value]) -> Program:
        used = {node.name for node in graph.nodes if node.op == "placeholder" and node.users}
        count = len(self.spec.outputs)
        given = [
            FieldEntry(tensor, value.place, read=name in used)
            for tensor, value, name in zip(self.spec.inputs, inputs, names, strict=False)
        ]
        outputs = [FieldEntry(t, v.place) for t, v in zip(self.spec.outputs, results[:count], strict=True)]
        states = [
            FieldEntry(t, v.place, self._initial(t)) for t, v in zip(self.spec.states, results[count:], strict=True)
        ]
        kept = [value.place.buffer for value in results]
        buffers, arena = planned(self.tape, [value.place.buffer for value in inputs], kept)
        tensors = tuple(self.tape.tensors)
        planes = 1 if self.one_plane else 2
        return Program(
            tuple(given), tuple(outputs), tuple(states), buffers, tuple(self.tape.instructions), tensors, arena, planes
        )

    def _initial(self, state: StateSpec) -> int:
        if state.initial is not None:
            return 0
        place = self.tape.floats(array(self.policy.graph.initial_tensors()[state.name]).reshape(-1))
        return 1 + self.tape.buffers[place.buffer].number

    def _node(self, node: fx.Node) -> Any:
        try:
            return self._result(node)
        except Unsupported as error:
            raise UsageError(
                f"target 'native' has no kernel for {error}{_line_of(node)}; the module runs on pytorch, onnxruntime, "
                f"openvino"
            ) from None

    def _result(self, node: fx.Node) -> Any:
        arguments = [self._resolved(a) for a in node.args]
        keywords = {name: self._resolved(a) for name, a in node.kwargs.items()}
        target: Any = node.target
        name = getattr(target, "__name__", str(target)).split(".")[0]
        if name == "getitem":
            return arguments[0][arguments[1]]
        known = _folded(target, name, arguments, keywords)
        if known is not None:
            return known
        found = node.meta.get("val")
        dtype = found.dtype if isinstance(found, torch.Tensor) else torch.float32
        return self._computed(name, target, arguments, keywords, dtype)

    def _computed(self, name: str, target: Any, arguments: list[Any], keywords: dict[str, Any], dtype: Any) -> Any:
        tape = self.tape
        if name in MOVES:
            return moved(tape, name, target, arguments, keywords)
        if name in CONVERSIONS:
            wanted = keywords.get("dtype", arguments[1] if len(arguments) > 1 else None)
            return pointwise.converted(tape, arguments[0], wanted or arguments[0].dtype)
        if name in pointwise.COMPARISONS:
            return tape.apply(pointwise.COMPARISONS[name], *arguments, dtype=torch.bool)
        if name in pointwise.LOGIC:
            return pointwise.logic_of(tape, name, arguments)
        if name in reductions.REDUCTIONS and not _of_two(name, arguments):
            return reductions.reduction_of(tape, name, arguments, keywords)
        if name in OPERATORS:
            return OPERATORS[name](self, target, arguments, keywords, dtype)
        if name in pointwise.FUNCTIONS:
            return pointwise.function_of(tape, name, arguments, keywords, dtype)
        raise Unsupported(f"the operator '{name}'")

    def _resolved(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.values[argument.name]
        if isinstance(argument, list | tuple):
            return [self._resolved(part) for part in argument]
        return float(argument) if isinstance(argument, str) and argument in ("inf", "-inf") else argument

    # -- operators with a form of their own

    def linear(self, given: Any, weight: Any, bias: Any = None, *, transposed: bool = False) -> Value:
        """A product with weights, or of two tensors that a step computes."""
        if not isinstance(weight, Constant) or weight.tensor.dim() != 2:
            turned = weight if transposed else moved(self.tape, "t", torch.t, [weight], {})
            return with_bias(self.tape, product(self.tape, self.tape.value(given), self.tape.value(turned)), bias)
        if transposed:
            weight = Constant(weight.tensor.T, weight.matrix, not weight.transposed)
        fixed = bias if isinstance(bias, Constant) and bias.tensor.shape == weight.tensor.shape[:1] else None
        found = linear(self.tape, self.codes, self.tape.value(given), weight, fixed)
        return found if fixed is not None else with_bias(self.tape, found, bias)


def _folded(target: Any, name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """The result where no value of a step is needed for it: a constant, or some; else None."""
    given = list(_tensors([arguments, list(keywords.values())]))
    if name in LIKE and given and isinstance(given[0], Value):
        arguments = [Constant(torch.zeros(given[0].shape, dtype=given[0].dtype)), *arguments[1:]]
        given = list(_tensors([arguments, list(keywords.values())]))
    if any(isinstance(part, Value) for part in given):
        return None
    if name in ("t", "permute", "transpose", "detach", "alias", "lift_fresh_copy") and len(given) == 1:
        turned = _turned(name, target, arguments)
        if turned is not None:
            return turned
    found = target(*_plain(arguments), **_plain(keywords))
    if isinstance(found, list | tuple):
        return [Constant(part) for part in found]
    return Constant(found)


def _turned(name: str, target: Any, arguments: list[Any]) -> Constant | None:
    """A large matrix seen from the other side, or as it is: still that matrix."""
    given = arguments[0]
    if given.matrix is None or given.tensor.dim() != 2:
        return None
    if name in ("detach", "alias", "lift_fresh_copy"):
        return Constant(given.tensor, given.matrix, given.transposed)
    if name == "permute" and list(arguments[1]) != [1, 0]:
        return None
    return Constant(target(given.tensor, *arguments[1:]), given.matrix, not given.transposed)


def _tensors(given: Any) -> Any:
    if isinstance(given, list):
        for part in given:
            yield from _tensors(part)
    elif isinstance(given, Value | Constant):
        yield given


def _plain(given: Any) -> Any:
    if isinstance(given, list):
        return [_plain(part) for part in given]
    if isinstance(given, dict):
        return {name: _plain(part) for name, part in given.items()}
    return given.tensor if isinstance(given, Constant) else given


def _of_two(name: str, arguments: list[Any]) -> bool:
    """Whether a `max` or `min` is of two tensors, element by element."""
    return name in ("max", "min") and len(arguments) == 2 and isinstance(arguments[1], Value | Constant)


def _line_of(node: fx.Node) -> str:
    """Where in the user's module it is, as far as the trace tells."""
    trace = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    files = [line for line in trace if line.startswith("File ")]
    own = [line for line in files if "site-packages" not in line and "lram_export" not in line]
    if not own:
        return ""
    parts = own[-1].split('"')
    number = own[-1].partition("line ")[2].partition(",")[0]
    return f" ({parts[1].rpartition('/')[2]}, line {number})"


Operator = Callable[[Translation, Any, list[Any], dict[str, Any], Any], Any]


def _addmm(to: Translation, _: Any, a: list[Any], k: dict[str, Any], dtype: Any) -> Value:
    if k.get("alpha", 1) != 1 or k.get("beta", 1) != 1:
        scaled = to.tape.apply(Function.MULTIPLY, to.linear(a[1], a[2], transposed=True), k.get("alpha", 1))
        return with_bias(to.tape, scaled, a[0], k.get("beta", 1))
    return to.linear(a[1], a[2], a[0], transposed=True)


def _matrix_product(to: Translation, _: Any, a: list[Any], k: dict[str, Any], dtype: Any) -> Value:
    return product(to.tape, to.tape.value(a[0]), to.tape.value(a[1]))


def _layer_norm(to: Translation, _: Any, a: list[Any], k: dict[str, Any], dtype: Any) -> list[Any]:
    given, extents, weight, bias, epsilon = a
    tape = to.tape
    axes = list(range(len(given.shape) - len(extents), len(given.shape)))
    spread, mean = reductions.variance(tape, given, axes, 0, True)
    inverse = tape.apply(Function.RECIPROCAL_SQUARE_ROOT, tape.apply(Function.ADD, spread, epsilon))
    found = tape.apply(Function.MULTIPLY, tape.apply(Function.SUBTRACT, given, mean), inverse)
    if weight is not None and bias is not None:
        return [tape.apply(Function.MULTIPLY_ADD, found, weight, bias), mean, inverse]
    if weight is not None:
        found = tape.apply(Function.MULTIPLY, found, weight)
    return [found if bias is None else tape.apply(Function.ADD, found, bias), mean, inverse]


def _group_norm(to: Translation, _: Any, a: list[Any], k: dict[str, Any], dtype: Any) -> list[Any]:
    given, weight, bias, _rows, channels, positions, groups, epsilon = a
    parts = given.reshaped(groups, channels // groups * positions)
    found, mean, inverse = _layer_norm(to, _, [parts, parts.shape[1:], None, None, epsilon], {}, dtype)
    found = found.reshaped(channels, positions)
    for function, part in ((Function.MULTIPLY, weight), (Function.ADD, bias)):
        if part is not None:
            found = to.tape.apply(function, found, to.tape.value(part).reshaped(channels, 1))
    return [found.reshaped(*given.shape), mean, inverse]


def _prelu(to: Translation, _: Any, a: list[Any], k: dict[str, Any], dtype: Any) -> Value:
    below = to.tape.apply(Function.MULTIPLY, a[0], a[1])
    return to.tape.apply(Function.CHOOSE, to.tape.apply(Function.GREATER, a[0], 0, dtype=torch.bool), a[0], below)


def _batch_norm(to: Translation, _: Any, a: list[Any], k: dict[str, Any], dtype: Any) -> list[Any]:
    given, weight, bias, mean, spread, *rest = a
    epsilon = rest[-1]
    known = (weight, bias, mean, spread)
    if any(isinstance(part, Value) for part in known):
        raise Unsupported("a batch norm whose statistics are computed")
    scale = (spread.tensor + epsilon).rsqrt() * (1 if weight is None else weight.tensor)
    shift = (0 if bias is None else bias.tensor) - mean.tensor * scale
    shape = [-1] + [1] * (len(given.shape) - 2)
    found = to.tape.apply(
        Function.MULTIPLY_ADD, given, Constant(scale.reshape(shape)), Constant(torch.as_tensor(shift).reshape(shape))
    )
    return [found, None, None]


def _variance(to: Translation, _: Any, a: list[Any], k: dict[str, Any], dtype: Any) -> Value:
    axes = k.get("dim", a[1] if len(a) > 1 else None)
    keep = bool(k.get("keepdim", a[3] if len(a) > 3 else False))
    correction = k.get("correction", 1)
    if len(a) > 2:  # var.dim: unbiased
        correction = 1 if a[2] else 0
    return reductions.variance(to.tape, a[0], axes or [], 1 if correction is None else correction, keep)[0]


def _scaled(to: Translation, function: Function, given: Any, factor: float) -> Value:
    return to.tape.apply(Function.MULTIPLY, to.tape.apply(function, given), factor)


OPERATORS: dict[str, Operator] = {
    "addmm": _addmm,
    "mm": lambda to, _, a, k, dtype: to.linear(a[0], a[1], transposed=True),
    "linear": lambda to, _, a, k, dtype: to.linear(*a),
    "bmm": _matrix_product,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_prelu_kernel": _prelu,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "native_batch_norm": _batch_norm,
    "var": _variance,
    "clamp": lambda to, _, a, k, dtype: pointwise.clamped(to.tape, *a, **{_BOUNDS[name]: b for name, b in k.items()}),
    "clamp_min": lambda to, _, a, k, dtype: pointwise.clamped(to.tape, *a),
    "clamp_max": lambda to, _, a, k, dtype: pointwise.clamped(to.tape, a[0], None, a[1]),
    "where": lambda to, _, a, k, dtype: pointwise.chosen(to.tape, *a, dtype=dtype),
    "gelu": lambda to, _, a, k, dtype: pointwise.gelu(to.tape, *a, **k),
    "exp2": lambda to, _, a, k, dtype: to.tape.apply(
        Function.EXPONENTIAL, to.tape.apply(Function.MULTIPLY, a[0], math.log(2))
    ),
    "log2": lambda to, _, a, k, dtype: _scaled(to, Function.LOGARITHM, a[0], 1 / math.log(2)),
    "log10": lambda to, _, a, k, dtype: _scaled(to, Function.LOGARITHM, a[0], 1 / math.log(10)),
    "isnan": lambda to, _, a, k, dtype: to.tape.apply(Function.NOT_EQUAL, a[0], a[0], dtype=torch.bool),
    "max": lambda to, _, a, k, dtype: pointwise.function_of(to.tape, "maximum", a, k, dtype),
    "min": lambda to, _, a, k, dtype: pointwise.function_of(to.tape, "minimum", a, k, dtype),
    "convolution": lambda to, _, a, k, dtype: windows.convolution(to.tape, *a),
    "max_pool2d_with_indices": lambda to, _, a, k, dtype: [windows.largest_pooled(to.tape, *a, **k), None],
    "avg_pool2d": lambda to, target, a, k, dtype: windows.mean_pooled(to.tape, target, a[0], a[1:], k),
    "_adaptive_avg_pool2d": lambda to, target, a, k, dtype: windows.mean_pooled(to.tape, target, a[0], a[1:], k),
}
_BOUNDS = {"min": "low", "max": "high"}
