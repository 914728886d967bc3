"""Integer codes times a few tokens, by an instruction for byte dot products."""

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.dense.activations import PLANES
from lram_export.kernels.tvm.cpu.dense.tiles import QUAD, clear, first_of, tokens_at_once, turns
from lram_export.kernels.tvm.cpu.loops import AHEAD, LINE, STACK, fetch, jobs_loop
from lram_export.kernels.tvm.functions import typed, wide
from lram_export.spec.precision import GROUP, WIDE_GROUP
from lram_export.targets.layout import TILE, wide_groups


def _four_codes(codes: Any, row: Any, plane: Any, at: Any, lanes: int) -> Any:
    """Four neighbouring codes of a token in every lane."""
    word = T.reinterpret("int32", codes[row, plane, T.ramp(at, 1, 4)])
    return T.reinterpret(typed("int8", 4 * lanes), wide(word, lanes))


def _dot(intrinsic: str, unsigned: bool, lanes: int) -> Callable[[Any, Any, Any], Any]:
    """The instruction: total + weights * activations, four bytes to a lane; the unsigned side goes first."""
    number = T.llvm_lookup_intrinsic_id(intrinsic)

    def dot(total: Any, weights: Any, activations: Any) -> Any:
        first, second = (activations, weights) if unsigned else (weights, activations)
        return T.call_llvm_pure_intrin(typed("int32", lanes), number, total, first, second)

    return dot


def dense_int8_dot(
    rows: int, cols: int, tiles: int, *, intrinsic: str, unsigned: bool, outputs: int, lanes: int
) -> PrimFunc:
    """y = W x for int8 codes with byte dot products, ``outputs`` outputs of a tile at once.

    ``cols`` is a multiple of 4. Codes and scales of x from :func:`encode`; weights (tiles, cols / 4, 128). With
    unsigned activations every sum starts at -128 times the sum of its row's codes.
    """
    group, quads, vectors = tokens_at_once(rows), cols // 4, outputs // lanes
    size, ahead = tiles * TILE * cols, AHEAD // (4 * TILE)
    dot = _dot(intrinsic, unsigned, lanes)

    @T.prim_func(s_tir=True)
    def kernel(
        codes: T.Buffer((rows, PLANES, cols), "int8"),
        scales: T.Buffer((rows,), "float32"),
        weight: T.Buffer((tiles, quads, 4 * TILE), "int8"),
        weight_scales: T.Buffer((tiles, TILE), "float32"),
        starts: T.Buffer((tiles, TILE), "int32"),
        y: T.Buffer((rows, tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for tile in jobs_loop(tiles, size):
            for turn in T.serial(turns(rows, group)):
                first = T.meta_var(first_of(turn, rows, group))
                for part in T.serial(TILE // outputs):
                    total = T.alloc_buffer((group * PLANES, outputs), "int32", scope=STACK)
                    for p in T.unroll(group * PLANES):
                        for v in T.unroll(vectors):
                            if unsigned:
                                total[p, T.ramp(v * lanes, 1, lanes)] = starts[
                                    tile, T.ramp(part * outputs + v * lanes, 1, lanes)
                                ]
                            else:
                                total[p, T.ramp(v * lanes, 1, lanes)] = wide(T.int32(0), lanes)
                    for i in T.serial(quads):
                        for n in T.unroll(-(-4 * outputs // LINE)):
                            T.evaluate(fetch(weight, tile, i + ahead, 4 * part * outputs + n * LINE))
                        for p in T.unroll(group * PLANES):
                            for v in T.unroll(vectors):
                                at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                                total[p, at] = dot(
                                    total[p, at],
                                    weight[tile, i, T.ramp((part * outputs + v * lanes) * 4, 1, 4 * lanes)],
                                    _four_codes(codes, first + p // PLANES, p % PLANES, 4 * i, lanes),
                                )
                    for t in T.unroll(group):
                        for v in T.unroll(vectors):
                            at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                            output = T.meta_var(part * outputs + v * lanes)
                            high = T.meta_var(T.Cast(typed("float32", lanes), total[PLANES * t, at]))
                            low = T.meta_var(T.Cast(typed("float32", lanes), total[PLANES * t + 1, at]))
                            y[first + t, T.ramp(tile * TILE + output, 1, lanes)] = (
                                (high * 128.0 + low)
                                * wide(scales[first + t], lanes)
                                * weight_scales[tile, T.ramp(output, 1, lanes)]
                            )

    return kernel


def dense_int8g_dot(
    rows: int, cols: int, tiles: int, *, intrinsic: str, unsigned: bool, outputs: int, lanes: int
) -> PrimFunc:
    """y = W x for int8g codes with byte dot products; ``cols`` a multiple of 4.

    weights (tiles, cols / 4, 128) bytes, each code + 128: the unsigned side of an instruction that has one, undone by
    the sums of the groups' codes; else their signs are flipped. Codes of x are signed.
    """
    group, groups, quads, vectors = tokens_at_once(rows), wide_groups(cols), cols // QUAD, outputs // lanes
    of_group = WIDE_GROUP // QUAD
    size, ahead = tiles * TILE * cols, AHEAD // (QUAD * TILE)
    dot = _dot(intrinsic, False, lanes)  # weights first

    def as_multiplied(quad: Any) -> Any:
        return quad if unsigned else quad ^ T.broadcast(T.int8(-128), 4 * lanes)

    @T.inline
    def add_group(codes, sums, weight, weight_scales, total, tile, first, part, g, count):
        held = T.alloc_buffer((group * PLANES, outputs), "int32", scope=STACK)
        for p in T.unroll(group * PLANES):
            for v in T.unroll(vectors):
                start = T.meta_var(sums[first + p // PLANES, p % PLANES, g] if unsigned else T.int32(0))
                held[p, T.ramp(v * lanes, 1, lanes)] = wide(start, lanes)
        for i in T.serial(count):
            for n in T.unroll(-(-4 * outputs // LINE)):
                T.evaluate(fetch(weight, tile, g * of_group + i + ahead, 4 * part * outputs + n * LINE))
            for p in T.unroll(group * PLANES):
                for v in T.unroll(vectors):
                    at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                    place = T.meta_var(T.ramp((part * outputs + v * lanes) * 4, 1, 4 * lanes))
                    held[p, at] = dot(
                        held[p, at],
                        as_multiplied(weight[tile, g * of_group + i, place]),
                        _four_codes(codes, first + p // PLANES, p % PLANES, 4 * (g * of_group + i), lanes),
                    )
        for t in T.unroll(group):
            for v in T.unroll(vectors):
                at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                high = T.meta_var(T.Cast(typed("float32", lanes), held[PLANES * t, at]))
                low = T.meta_var(T.Cast(typed("float32", lanes), held[PLANES * t + 1, at]))
                scale = T.meta_var(weight_scales[tile, g, T.ramp(part * outputs + v * lanes, 1, lanes)])
                total[t, at] = total[t, at] + (high * 128.0 + low) * scale

    @T.inline
    def product(codes, scales, sums, weight, weight_scales, y):
        for tile in jobs_loop(tiles, size):
            for turn in T.serial(turns(rows, group)):
                first = T.meta_var(first_of(turn, rows, group))
                for part in T.serial(TILE // outputs):
                    total = T.alloc_buffer((group, outputs), "float32", scope=STACK)
                    clear(total, group, vectors, lanes)
                    for g in T.serial(quads // of_group):
                        add_group(codes, sums, weight, weight_scales, total, tile, first, part, g, of_group)
                    if quads % of_group != 0:
                        last = T.meta_var(groups - 1)
                        rest = T.meta_var(quads % of_group)
                        add_group(codes, sums, weight, weight_scales, total, tile, first, part, last, rest)
                    for t in T.unroll(group):
                        for v in T.unroll(vectors):
                            at = T.meta_var(T.ramp(tile * TILE + part * outputs + v * lanes, 1, lanes))
                            y[first + t, at] = total[t, T.ramp(v * lanes, 1, lanes)] * wide(scales[first + t], lanes)

    @T.prim_func(s_tir=True)
    def kernel(
        codes: T.Buffer((rows, PLANES, cols), "int8"),
        scales: T.Buffer((rows,), "float32"),
        weight: T.Buffer((tiles, quads, 4 * TILE), "int8"),
        weight_scales: T.Buffer((tiles, groups, TILE), "float32"),
        y: T.Buffer((rows, tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        product(codes, scales, codes, weight, weight_scales, y)

    @T.prim_func(s_tir=True)
    def kernel_with_sums(
        codes: T.Buffer((rows, PLANES, cols), "int8"),
        scales: T.Buffer((rows,), "float32"),
        sums: T.Buffer((rows, PLANES, groups), "int32"),
        weight: T.Buffer((tiles, quads, 4 * TILE), "int8"),
        weight_scales: T.Buffer((tiles, groups, TILE), "float32"),
        y: T.Buffer((rows, tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        product(codes, scales, sums, weight, weight_scales, y)

    return kernel_with_sums if unsigned else kernel


def dense_int4_dot(
    rows: int, cols: int, tiles: int, *, intrinsic: str, unsigned: bool, outputs: int, lanes: int
) -> PrimFunc:
    """y = W x for int4 codes with byte dot products; ``cols`` a multiple of 64.

    weights (tiles, groups, 8, 128) bytes: low halves belong to inputs 0 to 3 of eight, high halves to 4 to 7, each
    code + 8. Codes of x are signed here: the weights' are the unsigned side.
    """
    group, groups, vectors = tokens_at_once(rows), cols // GROUP, outputs // lanes
    size, ahead = tiles * TILE * cols // 2, AHEAD // (TILE * GROUP // 2)
    dot = _dot(intrinsic, False, lanes)  # weights first

    def halves(both: Any) -> tuple[Any, Any]:
        fifteen = T.broadcast(T.int8(15), 4 * lanes)
        return both & fifteen, (both >> T.broadcast(T.int8(4), 4 * lanes)) & fifteen

    @T.prim_func(s_tir=True)
    def kernel(
        codes: T.Buffer((rows, PLANES, cols), "int8"),
        scales: T.Buffer((rows,), "float32"),
        group_sums: T.Buffer((rows, PLANES, groups), "int32"),
        weight: T.Buffer((tiles, groups, GROUP // 8, 4 * TILE), "int8"),
        weight_scales: T.Buffer((tiles, groups, TILE), "float32"),
        y: T.Buffer((rows, tiles * TILE), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for tile in jobs_loop(tiles, size):
            for turn in T.serial(turns(rows, group)):
                first = T.meta_var(first_of(turn, rows, group))
                for part in T.serial(TILE // outputs):
                    total = T.alloc_buffer((group, outputs), "float32", scope=STACK)
                    clear(total, group, vectors, lanes)
                    for g in T.serial(groups):
                        of_group = T.alloc_buffer((group * PLANES, outputs), "int32", scope=STACK)
                        for p in T.unroll(group * PLANES):
                            for v in T.unroll(vectors):
                                start = T.meta_var(group_sums[first + p // PLANES, p % PLANES, g])
                                of_group[p, T.ramp(v * lanes, 1, lanes)] = wide(start, lanes)
                        for i in T.serial(GROUP // 8):
                            for n in T.unroll(-(-4 * outputs // LINE)):
                                T.evaluate(fetch(weight, tile, g + ahead, i, 4 * part * outputs + n * LINE))
                            for p in T.unroll(group * PLANES):
                                for v in T.unroll(vectors):
                                    at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                                    row = T.meta_var(first + p // PLANES)
                                    both = T.meta_var(
                                        weight[tile, g, i, T.ramp((part * outputs + v * lanes) * 4, 1, 4 * lanes)]
                                    )
                                    of_group[p, at] = dot(
                                        of_group[p, at],
                                        halves(both)[0],
                                        _four_codes(codes, row, p % PLANES, g * GROUP + 8 * i, lanes),
                                    )
                                    of_group[p, at] = dot(
                                        of_group[p, at],
                                        halves(both)[1],
                                        _four_codes(codes, row, p % PLANES, g * GROUP + 8 * i + 4, lanes),
                                    )
                        for t in T.unroll(group):
                            for v in T.unroll(vectors):
                                at = T.meta_var(T.ramp(v * lanes, 1, lanes))
                                high = T.meta_var(T.Cast(typed("float32", lanes), of_group[PLANES * t, at]))
                                low = T.meta_var(T.Cast(typed("float32", lanes), of_group[PLANES * t + 1, at]))
                                scale = T.meta_var(weight_scales[tile, g, T.ramp(part * outputs + v * lanes, 1, lanes)])
                                total[t, at] = total[t, at] + (high * 128.0 + low) * scale
                    for t in T.unroll(group):
                        for v in T.unroll(vectors):
                            at = T.meta_var(T.ramp(tile * TILE + part * outputs + v * lanes, 1, lanes))
                            y[first + t, at] = total[t, T.ramp(v * lanes, 1, lanes)] * wide(scales[first + t], lanes)

    return kernel
