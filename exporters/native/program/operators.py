"""How each of PyTorch's operators is made of the engine's operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lram_export.exporters.native.program import pointwise, reductions, windows
from lram_export.exporters.native.program.movement import MOVES, moved
from lram_export.exporters.native.program.products import Codes, linear, product, with_bias
from lram_export.exporters.native.program.tape import Constant, Tape, Unsupported, Value
from lram_export.targets.native.program import Function

CONVERSIONS = frozenset(("_to_copy", "to", "convert_element_type"))
"""Operators that change the type of their argument, and nothing else."""

TYPES = frozenset((torch.float32, torch.bool, torch.int64, torch.int32, torch.uint8))
"""Of what a step computes: numbers that float32 holds, or that are not computed with."""


@dataclass(frozen=True)
class Call:
    """An operator of a traced step, what it is called with, and the type of its result; arguments are numbers, values
    of a step and constants."""

    name: str
    operator: Callable[..., Any]
    arguments: list[Any]
    keywords: dict[str, Any]
    dtype: torch.dtype

    def argument(self, place: int, name: str, otherwise: Any) -> Any:
        """One that is given by its place or by its name."""
        return self.arguments[place] if len(self.arguments) > place else self.keywords.get(name, otherwise)


@dataclass(frozen=True)
class Context:
    """What a program is written to, and the codes of its matrices."""

    tape: Tape
    codes: Codes

    def apply(self, function: Function, *given: Any, dtype: torch.dtype = torch.float32) -> Value:
        """A function of numbers."""
        return self.tape.apply(function, *given, dtype=dtype)


def computed(to: Context, call: Call) -> Any:
    """The result of an operator, or the list of its results.

    Raises:
        Unsupported: the engine has no kernel for it.
    """
    tape, name = to.tape, call.name
    if call.dtype not in TYPES:
        raise Unsupported(f"numbers of type {pointwise.shown_type(call.dtype)}")
    if name in MOVES:
        return moved(tape, name, call.operator, call.arguments, call.keywords, call.dtype)
    if name in CONVERSIONS:
        return pointwise.converted(tape, call.arguments[0], call.argument(1, "dtype", None) or call.arguments[0].dtype)
    if name in pointwise.COMPARISONS:
        return to.apply(pointwise.COMPARISONS[name], *call.arguments, dtype=torch.bool)
    if name in pointwise.LOGIC:
        return pointwise.logic_of(tape, name, call.arguments)
    if name in reductions.REDUCTIONS and not _of_two(call):
        return reductions.reduction_of(tape, name, call.arguments, call.keywords)
    if name in pointwise.FUNCTIONS:
        return pointwise.function_of(tape, name, call.arguments, call.keywords, call.dtype)
    if name in OPERATORS:
        return OPERATORS[name](to, call)
    raise Unsupported(f"the operator '{name}'")


def _of_two(call: Call) -> bool:
    """Whether a `max` or `min` is of two tensors, element by element."""
    return len(call.arguments) == 2 and isinstance(call.arguments[1], Value | Constant)


# -- products


def _product_of(to: Context, given: Any, weight: Any, bias: Any, *, transposed: bool) -> Value:
    """With weights (outputs, inputs), ``transposed`` or not, or of two tensors that a step computes."""
    if not isinstance(weight, Constant) or weight.tensor.dim() != 2:
        turned = weight if transposed else moved(to.tape, "t", _turned, [weight], {}, torch.float32)
        return with_bias(to.tape, product(to.tape, to.tape.value(given), to.tape.value(turned)), bias)
    if transposed:
        weight = Constant(weight.tensor.T, weight.matrix, not weight.transposed)
    fixed = bias if isinstance(bias, Constant) and bias.tensor.shape == weight.tensor.shape[:1] else None
    found = linear(to.tape, to.codes, to.tape.value(given), weight, fixed)
    return found if fixed is not None else with_bias(to.tape, found, bias)


def _turned(matrices: torch.Tensor) -> torch.Tensor:
    return matrices.transpose(-2, -1)


def _linear(to: Context, call: Call) -> Value:
    given, weight, *_ = call.arguments
    return _product_of(to, given, weight, call.argument(2, "bias", None), transposed=False)


def _mm(to: Context, call: Call) -> Value:
    given, weight = call.arguments
    return _product_of(to, given, weight, None, transposed=True)


def _addmm(to: Context, call: Call) -> Value:
    bias, given, weight = call.arguments
    alpha, beta = call.keywords.get("alpha", 1), call.keywords.get("beta", 1)
    if (alpha, beta) == (1, 1):
        return _product_of(to, given, weight, bias, transposed=True)
    found = to.apply(Function.MULTIPLY, _product_of(to, given, weight, None, transposed=True), alpha)
    return with_bias(to.tape, found, to.apply(Function.MULTIPLY, bias, beta))


def _bmm(to: Context, call: Call) -> Value:
    return product(to.tape, *map(to.tape.value, call.arguments))


# -- norms


def _layer_norm(to: Context, call: Call) -> list[Value]:
    given, extents, weight, bias, epsilon = call.arguments
    axes = list(range(len(given.shape) - len(extents), len(given.shape)))
    return _normalized(to, given, axes, weight, bias, epsilon)


def _normalized(to: Context, given: Value, axes: list[int], weight: Any, bias: Any, epsilon: float) -> list[Value]:
    spread, mean = reductions.variance(to.tape, given, axes, 0, True)
    inverse = to.apply(Function.RECIPROCAL_SQUARE_ROOT, to.apply(Function.ADD, spread, epsilon))
    found = to.apply(Function.MULTIPLY, to.apply(Function.SUBTRACT, given, mean), inverse)
    for function, part in ((Function.MULTIPLY, weight), (Function.ADD, bias)):
        found = found if part is None else to.apply(function, found, part)
    return [found, mean, inverse]


def _group_norm(to: Context, call: Call) -> list[Value]:
    given, weight, bias, _rows, channels, positions, groups, epsilon = call.arguments
    parts = given.reshaped(groups, channels // groups * positions)
    found, mean, inverse = _normalized(to, parts, [1], None, None, epsilon)
    found = found.reshaped(channels, positions)
    for function, part in ((Function.MULTIPLY, weight), (Function.ADD, bias)):
        if part is not None:
            found = to.apply(function, found, to.tape.value(part).reshaped(channels, 1))
    return [found.reshaped(*given.shape), mean, inverse]


def _batch_norm(to: Context, call: Call) -> list[Any]:
    given, weight, bias, mean, spread, *_, epsilon = call.arguments
    if any(isinstance(part, Value) for part in (weight, bias, mean, spread)):
        raise Unsupported("a batch norm whose statistics are computed")
    scale = (spread.tensor + epsilon).rsqrt() * (1 if weight is None else weight.tensor)
    shift = (0 if bias is None else bias.tensor) - mean.tensor * scale
    shape = [-1] + [1] * (len(given.shape) - 2)
    parts = Constant(scale.reshape(shape)), Constant(shift.reshape(shape))
    return [to.apply(Function.MULTIPLY_ADD, given, *parts), None, None]


def _variance(to: Context, call: Call) -> Value:
    axes, correction = call.argument(1, "dim", None), call.argument(2, "unbiased", True)
    if isinstance(axes, bool):  # of all elements
        axes, correction = None, axes
    correction = call.keywords.get("correction", correction)
    correction = 1.0 if correction is None else float(correction)
    keep = bool(call.argument(3, "keepdim", False))
    return reductions.variance(to.tape, call.arguments[0], axes or [], correction, keep)[0]


# -- elements


def _clamp(to: Context, call: Call) -> Value:
    return pointwise.clamped(to.tape, call.arguments[0], call.argument(1, "min", None), call.argument(2, "max", None))


def _clamp_max(to: Context, call: Call) -> Value:
    return pointwise.clamped(to.tape, call.arguments[0], None, call.arguments[1])


def _where(to: Context, call: Call) -> Value:
    return to.apply(Function.CHOOSE, *call.arguments, dtype=call.dtype)


def _prelu(to: Context, call: Call) -> Value:
    given, slope = call.arguments
    positive = to.apply(Function.GREATER, given, 0, dtype=torch.bool)
    return to.apply(Function.CHOOSE, positive, given, to.apply(Function.MULTIPLY, given, slope))


def _gelu(to: Context, call: Call) -> Value:
    return pointwise.gelu(to.tape, call.arguments[0], call.keywords.get("approximate", "none"))


def _exp2(to: Context, call: Call) -> Value:
    return to.apply(Function.EXPONENTIAL, to.apply(Function.MULTIPLY, call.arguments[0], math.log(2)))


def _logarithm(base: float) -> Operator:
    def of(to: Context, call: Call) -> Value:
        return to.apply(Function.MULTIPLY, to.apply(Function.LOGARITHM, call.arguments[0]), 1 / math.log(base))

    return of


def _isnan(to: Context, call: Call) -> Value:
    return to.apply(Function.NOT_EQUAL, call.arguments[0], call.arguments[0], dtype=torch.bool)


def _extreme(name: str) -> Operator:
    def of(to: Context, call: Call) -> Value:
        return pointwise.function_of(to.tape, name, call.arguments, {}, call.dtype)

    return of


# -- windows


def _convolution(to: Context, call: Call) -> Value:
    return windows.convolution(to.tape, *call.arguments)


def _max_pool(to: Context, call: Call) -> list[Any]:
    return [windows.largest_pooled(to.tape, *call.arguments, **call.keywords), None]


def _mean_pool(to: Context, call: Call) -> Value:
    return windows.mean_pooled(to.tape, call.operator, call.arguments[0], call.arguments[1:], call.keywords)


Operator = Callable[[Context, Call], Any]
OPERATORS: dict[str, Operator] = {
    "linear": _linear,
    "mm": _mm,
    "addmm": _addmm,
    "bmm": _bmm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "var": _variance,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp_max,
    "where": _where,
    "_prelu_kernel": _prelu,
    "gelu": _gelu,
    "exp2": _exp2,
    "log2": _logarithm(2),
    "log10": _logarithm(10),
    "isnan": _isnan,
    "max": _extreme("maximum"),
    "min": _extreme("minimum"),
    "convolution": _convolution,
    "max_pool2d_with_indices": _max_pool,
    "avg_pool2d": _mean_pool,
    "_adaptive_avg_pool2d": _mean_pool,
}
"""Operators of a form of their own, of any overload."""
