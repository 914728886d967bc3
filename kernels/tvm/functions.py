"""Functions of vectors as expressions. Errors are a few units in the last place of float32, absolute near 0.

TVM's own `exp` and `tanh` call the C library once per element, which is most of the time of a small kernel. Constants
of the exponential: Cephes, `expf`; of the error function: Abramowitz and Stegun 7.1.26.
"""

from collections.abc import Callable
from typing import Any

from tvm import DataType, tirx
from tvm.script import tirx as T

Expr = Any
"""A scalar or a vector of float32; TVM's expressions carry their type themselves."""


def lanes_of(x: Expr) -> int:
    """Elements of a vector; 1 for a scalar."""
    return int(DataType(x.ty.dtype).lanes)


def typed(kind: str, lanes: int) -> str:
    """Name of a vector's type, for example ``float32x16``; ``float32`` for one lane."""
    return kind if lanes == 1 else f"{kind}x{lanes}"


def wide(x: Expr, lanes: int) -> Expr:
    """A scalar in every lane."""
    return x if lanes == 1 else T.broadcast(x, lanes)


def span(start: Expr, lanes: int) -> Expr:
    """Index of ``lanes`` elements from ``start``; TVM has no vectors of one lane."""
    return start if lanes == 1 else T.ramp(start, 1, lanes)


def bind(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """``body(value)``, with the value computed once however often the body uses it."""
    name = tirx.Var("value", value.ty)
    return tirx.Let(name, value, body(name))


def lane_sum(x: Expr) -> Expr:
    """Sum over the lanes of a vector, by halves."""
    return _fold(x, lambda a, b: a + b)


def lane_max(x: Expr) -> Expr:
    """Largest lane of a vector."""
    return _fold(x, T.max)


def _fold(x: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    lanes = lanes_of(x)
    if lanes == 1:
        return x
    if lanes == 2:
        return bind(x, lambda v: combine(*(T.Shuffle([v], [T.int32(i)]) for i in range(2))))
    half = typed("float32", lanes // 2)
    return bind(x, lambda v: _fold(combine(T.vectorlow(half, v), T.vectorhigh(half, v)), combine))


def magnitude(x: Expr) -> Expr:
    """Absolute value."""
    return T.max(x, -x)


def exponential(x: Expr) -> Expr:
    """exp(x), for x beyond what float32 can hold the nearest it can."""
    lanes = lanes_of(x)
    limited = T.min(T.max(x, wide(T.float32(-87.3), lanes)), wide(T.float32(88.0), lanes))
    power = T.nearbyint(limited * 1.44269504088896341)

    def polynomial(r: Expr) -> Expr:
        p = r * 1.9875691500e-4 + 1.3981999507e-3
        for coefficient in (8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = p * r + coefficient
        return p * r * r + (r + 1.0)

    def scaled(n: Expr) -> Expr:
        exponent = T.Cast(typed("int32", lanes), n) + wide(T.int32(127), lanes)
        factor = T.reinterpret(typed("float32", lanes), exponent << wide(T.int32(23), lanes))
        return bind(limited + n * -0.693359375 + n * 2.12194440e-4, polynomial) * factor

    return bind(power, scaled)


def decay(x: Expr) -> Expr:
    """2^x for x <= 0, below -100 as much as there: half the instructions of an exponential.

    1 + r q(r) has the least relative error for r from -1/2 to 1/2, 1e-7; at 0 it is exact.
    """
    lanes = lanes_of(x)

    def polynomial(r: Expr) -> Expr:
        q = r * 1.326472731e-3 + 9.671512991e-3
        for coefficient in (5.550733581e-2, 2.402224243e-1, 6.931470037e-1):
            q = q * r + coefficient
        return q * r + 1.0

    def scaled(limited: Expr) -> Expr:
        def raised(n: Expr) -> Expr:
            exponent = T.Cast(typed("int32", lanes), n) << wide(T.int32(23), lanes)
            bits = T.reinterpret(typed("int32", lanes), polynomial_of(limited - n))
            return T.reinterpret(typed("float32", lanes), bits + exponent)

        return bind(T.nearbyint(limited), raised)

    def polynomial_of(r: Expr) -> Expr:
        return bind(r, polynomial)

    return bind(T.max(x, wide(T.float32(-100.0), lanes)), scaled)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + exp(-x))."""
    return 1.0 / (exponential(-x) + 1.0)


def silu(x: Expr) -> Expr:
    """x * sigmoid(x)."""
    return x / (exponential(-x) + 1.0)


def hyperbolic_tangent(x: Expr) -> Expr:
    """tanh(x)."""
    zero = wide(T.float32(0.0), lanes_of(x))
    return bind(
        exponential(magnitude(x) * -2.0),
        lambda e: bind((1.0 - e) / (e + 1.0), lambda y: T.Select(x < zero, -y, y)),
    )


def log_sigmoid(x: Expr) -> Expr:
    """log(sigmoid(x)) = min(x, 0) - log(1 + exp(-|x|)); the logarithm as a series in s = u / (2 + u) <= 1/3."""
    zero = wide(T.float32(0.0), lanes_of(x))

    def logarithm(s: Expr) -> Expr:
        def series(square: Expr) -> Expr:
            p = wide(T.float32(2.0 / 15), lanes_of(x))
            for odd in (13, 11, 9, 7, 5, 3, 1):
                p = p * square + 2.0 / odd
            return p

        return s * bind(s * s, series)

    return T.min(x, zero) - bind(exponential(-magnitude(x)), lambda u: bind(u / (u + 2.0), logarithm))


def softplus(x: Expr) -> Expr:
    """log(1 + exp(x))."""
    return bind(-x, lambda y: -log_sigmoid(y))


def error_function(x: Expr) -> Expr:
    """erf(x), absolute error 1.5e-7."""
    zero = wide(T.float32(0.0), lanes_of(x))

    def positive(a: Expr) -> Expr:
        def polynomial(t: Expr) -> Expr:
            p = wide(T.float32(1.061405429), lanes_of(x))
            for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
                p = p * t + coefficient
            return 1.0 - p * t * exponential(-(a * a))

        return bind(1.0 / (a * 0.3275911 + 1.0), polynomial)

    return bind(magnitude(x), lambda a: bind(positive(a), lambda y: T.Select(x < zero, -y, y)))


def relu(x: Expr) -> Expr:
    """max(x, 0)."""
    return T.max(x, wide(T.float32(0.0), lanes_of(x)))


def selu(x: Expr) -> Expr:
    """Scaled exponential linear unit, constants of arXiv 1706.02515."""
    zero = wide(T.float32(0.0), lanes_of(x))
    return T.Select(x < zero, (exponential(x) - 1.0) * 1.67326324, x) * 1.05070099


ACTIVATIONS: dict[str, Callable[[Expr], Expr]] = {
    "gelu": lambda x: x * 0.5 * (error_function(x * 0.70710678) + 1.0),
    "relu": relu,
    "relu^2": lambda x: bind(relu(x), lambda y: y * y),
    "sigmoid": sigmoid,
    "swish": silu,
    "selu": selu,
}
"""Activations of the feed-forward, by their names in the checkpoint's config."""
