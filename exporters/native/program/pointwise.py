"""Operators that compute every element by itself."""

from __future__ import annotations

import math
from typing import Any

import torch

from lram_export.exporters.native.program.tape import Constant, Number, Tape, Unsupported, Value
from lram_export.targets.native.program import Function

Operand = Value | Constant | Number

FUNCTIONS = {
    "add": Function.ADD,
    "sub": Function.SUBTRACT,
    "mul": Function.MULTIPLY,
    "div": Function.DIVIDE,
    "pow": Function.POWER,
    "minimum": Function.MINIMUM,
    "maximum": Function.MAXIMUM,
    "remainder": Function.REMAINDER,
    "neg": Function.NEGATIVE,
    "abs": Function.ABSOLUTE,
    "sign": Function.SIGN,
    "floor": Function.FLOOR,
    "ceil": Function.CEILING,
    "round": Function.ROUND,
    "trunc": Function.TRUNCATE,
    "sqrt": Function.SQUARE_ROOT,
    "rsqrt": Function.RECIPROCAL_SQUARE_ROOT,
    "reciprocal": Function.RECIPROCAL,
    "exp": Function.EXPONENTIAL,
    "expm1": Function.EXPONENTIAL_LESS_ONE,
    "log": Function.LOGARITHM,
    "log1p": Function.LOGARITHM_OF_ONE_MORE,
    "atan": Function.ARCTANGENT,
    "atan2": Function.ARCTANGENT_OF_TWO,
    "sin": Function.SINE,
    "cos": Function.COSINE,
    "erf": Function.ERROR_FUNCTION,
    "tanh": Function.HYPERBOLIC_TANGENT,
    "sigmoid": Function.SIGMOID,
    "relu": Function.RECTIFY,
    "silu": Function.SILU,
}
"""Of floating-point numbers."""
COMPARISONS = {
    "eq": Function.EQUAL,
    "ne": Function.NOT_EQUAL,
    "lt": Function.LESS,
    "le": Function.LESS_EQUAL,
    "gt": Function.GREATER,
    "ge": Function.GREATER_EQUAL,
}
"""Of numbers of any kind."""
LOGIC = {
    "logical_and": Function.BOTH,
    "logical_or": Function.EITHER,
    "logical_xor": Function.NOT_EQUAL,
    "logical_not": Function.OPPOSITE,
    "bitwise_and": Function.BOTH,
    "bitwise_or": Function.EITHER,
    "bitwise_xor": Function.NOT_EQUAL,
    "bitwise_not": Function.OPPOSITE,
}
"""Of truth."""


def shown_type(dtype: torch.dtype) -> str:
    """A type as users write it."""
    return str(dtype).removeprefix("torch.")


def is_float(given: Any) -> bool:
    """Whether it is float32, or a number, which takes the type of what it is computed with."""
    if isinstance(given, Value):
        return given.dtype == torch.float32
    return not isinstance(given, Constant) or given.tensor.dtype == torch.float32


def is_truth(given: Any) -> bool:
    """Whether it is true or false."""
    if isinstance(given, Value):
        return given.dtype == torch.bool
    return given.tensor.dtype == torch.bool if isinstance(given, Constant) else isinstance(given, bool)


def function_of(
    tape: Tape, name: str, arguments: list[Any], keywords: dict[str, Any], dtype: torch.dtype = torch.float32
) -> Value:
    """An operator of :data:`FUNCTIONS`, whose result has a type.

    Raises:
        Unsupported: whole numbers, which may leave those that float32 holds.
    """
    if dtype != torch.float32:
        raise Unsupported(f"'{name}' of numbers of type {shown_type(dtype)}")
    odd = sorted(keywords.keys() - {"alpha", "rounding_mode"})
    if odd:
        raise Unsupported(f"'{name}' with {odd[0]}")
    if name in ("add", "sub") and keywords.get("alpha", 1) != 1:
        arguments = [arguments[0], tape.apply(Function.MULTIPLY, arguments[1], keywords["alpha"])]
    if name == "pow":
        return _power(tape, *arguments)
    found = tape.apply(FUNCTIONS[name], *arguments)
    mode = keywords.get("rounding_mode")
    if mode is None:
        return found
    return tape.apply({"floor": Function.FLOOR, "trunc": Function.TRUNCATE}[mode], found)


def _power(tape: Tape, base: Operand, exponent: Operand) -> Value:
    if exponent == 2:
        return tape.apply(Function.MULTIPLY, base, base)
    if exponent == 0.5:
        return tape.apply(Function.SQUARE_ROOT, base)
    return tape.apply(Function.POWER, base, exponent)


def logic_of(tape: Tape, name: str, arguments: list[Any]) -> Value:
    """An operator of :data:`LOGIC`; raises Unsupported for bits of whole numbers."""
    if name == "logical_xor":
        arguments = [a if is_truth(a) else tape.apply(Function.NOT_EQUAL, a, 0, dtype=torch.bool) for a in arguments]
    if name.startswith("bitwise") and not all(map(is_truth, arguments)):
        raise Unsupported(f"'{name}' of whole numbers")
    return tape.apply(LOGIC[name], *arguments, dtype=torch.bool)


def clamped(tape: Tape, given: Value, low: Operand | None = None, high: Operand | None = None) -> Value:
    """``clamp``; raises Unsupported for whole numbers."""
    if not all(is_float(part) for part in (given, low, high) if part is not None):
        raise Unsupported("'clamp' of whole numbers")
    if low is None or high is None:
        one, function = (high, Function.MINIMUM) if low is None else (low, Function.MAXIMUM)
        assert one is not None
        return tape.apply(function, given, one)
    return tape.apply(Function.CLAMP, given, low, high)


def converted(tape: Tape, given: Value, dtype: torch.dtype) -> Value:
    """The same in another type; raises Unsupported for one that the engine does not compute with."""
    if dtype == given.dtype:
        return given
    if dtype == torch.bool:
        return tape.apply(Function.NOT_EQUAL, given, 0, dtype=dtype)
    if dtype == torch.float32 or (dtype == torch.int64 and given.dtype in (torch.bool, torch.uint8, torch.int32)):
        return Value(given.place, given.shape, dtype)
    if dtype == torch.int64 and given.dtype == torch.float32:
        return tape.apply(Function.TRUNCATE, given, dtype=dtype)
    raise Unsupported(f"numbers of type {shown_type(dtype)}")


def gelu(tape: Tape, given: Value, approximate: str = "none") -> Value:
    """``gelu``, exact or by the hyperbolic tangent (arXiv 1606.08415)."""
    if approximate == "none":
        return tape.apply(Function.GELU, given)
    cube = tape.apply(Function.MULTIPLY, tape.apply(Function.MULTIPLY, given, given), given)
    inner = tape.apply(Function.MULTIPLY_ADD, cube, 0.044715, given)
    inner = tape.apply(Function.MULTIPLY, inner, math.sqrt(2 / math.pi))
    half = tape.apply(Function.MULTIPLY, given, 0.5)
    return tape.apply(Function.MULTIPLY_ADD, tape.apply(Function.HYPERBOLIC_TANGENT, inner), half, half)
