"""What kernels for tiles of weights share: how tokens are grouped, and where sums begin."""

from typing import Any

from tvm.script import tirx as T

from lram_export.kernels.tvm.functions import typed, wide

QUAD = 4
"""Codes that a byte dot product takes at a time."""
SUMS = 12
"""Vectors of sums that take as long to start as one takes to end."""


def tokens_at_once(rows: int, most: int = 3) -> int:
    """How many tokens are multiplied with a weight while it is in a register: up to ``most``, in as few turns."""
    return -(-rows // -(-rows // most))


def turns(rows: int, group: int) -> int:
    """How many groups of tokens there are."""
    return -(-rows // group)


def first_of(turn: Any, rows: int, group: int) -> Any:
    """The first token of a group; the last group may begin before the one before it ends."""
    return turn * group if rows % group == 0 else T.min(turn * group, rows - group)


@T.inline
def clear(total, count, vectors, lanes):
    """Zeros into the sums of ``count`` tokens."""
    for t in T.unroll(count):
        for v in T.unroll(vectors):
            total[t, T.ramp(v * lanes, 1, lanes)] = wide(T.float32(0), lanes)


def widen(weight: Any, stored: str, lanes: int) -> Any:
    """Weights of type ``stored`` as float32."""
    if stored == "uint16":
        bits = T.Cast(typed("uint32", lanes), weight) << wide(T.uint32(16), lanes)
        return T.reinterpret(typed("float32", lanes), bits)
    return weight if stored == "float32" else T.Cast(typed("float32", lanes), weight)
