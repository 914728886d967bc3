"""What does a step lose if it reads the matrices C of an mLSTM in fewer bits?

A step of the target `native` with a lazy state reads halves. The first line compares a run of it with one of float32
states.

With `--rewritten`: a state tensor of 16 bits in the graph of another target would be rounded at every step, and each
rounding is carried on. Those lines are runs in which C is rounded after every step.

With `--codes`: codes of 8 bits would halve the bytes again. Those lines take every step from the same state, as it is
and with C rounded as it would be read. Only the exact step's state is kept, so that no error adds up over time: it is
the least that such codes could cost, with what they leave out kept elsewhere and added at the next rewrite.

    python benchmarks/state_codes.py policy.lram --steps 10000 --rewritten
"""

from __future__ import annotations

import os
from collections.abc import Callable

import click
import numpy as np
from numpy.typing import NDArray

from lram_export.episodes.steps import random_steps
from lram_export.policy import load_policy
from lram_export.runtimes.protocol import Runtime
from lram_export.spec.parity import TOLERANCES
from lram_export.targets.native.options import STATE_FORMAT, STATE_FORMATS

Floats = NDArray[np.float32]
TILE = 64
"""Columns that share scales, as the kernels for AVX-512 lay C out."""


def in_tiles(C: Floats) -> Floats:
    """(..., width, tiles, columns)."""
    columns = min(TILE, C.shape[-1])
    return C.reshape(*C.shape[:-1], C.shape[-1] // columns, columns)


def as_halves(C: Floats) -> Floats:
    """Half precision, with a power of two as scale for every tile of columns."""
    tiles = in_tiles(C)
    _, exponent = np.frexp(np.abs(tiles).max(axis=(-3, -1), keepdims=True))
    return np.ldexp(np.ldexp(tiles, 15 - exponent).astype(np.float16).astype(np.float32), exponent - 15).reshape(
        C.shape
    )


def as_codes(C: Floats, bits: int, per_row: bool) -> Floats:
    """Signed codes, with a scale for every tile of columns, or for every row of one."""
    tiles = in_tiles(C)
    largest = np.abs(tiles).max(axis=(-1,) if per_row else (-3, -1), keepdims=True)
    scale = np.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1)
    return (np.rint(tiles / scale) * scale).astype(np.float32).reshape(C.shape)


FORMATS: dict[str, Callable[[Floats], Floats]] = {
    "half precision": as_halves,
    "8 bits, a scale per tile": lambda C: as_codes(C, 8, per_row=False),
    "8 bits, a scale per row of a tile": lambda C: as_codes(C, 8, per_row=True),
    "10 bits, a scale per row of a tile": lambda C: as_codes(C, 10, per_row=True),
}


def as_bfloat16(C: Floats) -> Floats:
    """The upper halves of the numbers, rounded to nearest."""
    bits = C.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


REWRITTEN: dict[str, Callable[[Floats], Floats]] = {
    "float16, rounded at every step": lambda C: C.astype(np.float16).astype(np.float32),
    "float16 with scales, at every step": as_halves,
    "bfloat16, rounded at every step": as_bfloat16,
}


def matrices(runtime: Runtime, bundle: str) -> list[str]:
    """Names of the matrices C; raises UsageError where there are none."""
    names = [tensor.name for tensor in runtime.spec.states if tensor.name.endswith(".C")]
    if not names:
        raise click.UsageError(f"{bundle}: expected an xLSTM, got a policy without matrices C")
    return names


def run(
    bundle: str, state_format: str, steps: int, rounded: Callable[[Floats], Floats] | None = None
) -> tuple[NDArray[np.generic], Floats]:
    """Actions and logits of a run, (steps, values); C is ``rounded`` after every step."""
    os.environ[STATE_FORMAT] = state_format
    with load_policy(bundle, "native", threads=1) as policy:
        names = [] if rounded is None else matrices(policy.runtime, bundle)
        drawn = random_steps(policy.spec, policy.task, steps, seed=2)
        inputs = [drawn[tensor.name] for tensor in policy.spec.inputs]
        actions, logits = [], []
        for step in range(steps):
            output = policy.runtime.step(*[values[step] for values in inputs])
            actions.append(output.action.reshape(-1).copy())
            logits.append(output.action_logits.reshape(-1).copy())
            if rounded is not None:
                state = policy.runtime.state()
                policy.runtime.load_state({**state, **{name: rounded(state[name]) for name in names}})
    return np.array(actions), np.array(logits)


def told(name: str, errors: NDArray[np.floating], differ: int, actions: int) -> None:
    """Print a line."""
    beyond = np.count_nonzero(errors > TOLERANCES["quantized"].logit)
    found = f"largest {errors.max():.2e}  mean {errors.mean():.2e}"
    print(f"{name:36s} {found}  beyond the tolerance {beyond} of {len(errors)}  actions differ {differ} of {actions}")


@click.command()
@click.argument("bundle")
@click.option("--steps", default=1000, show_default=True, type=click.IntRange(1, 100_000))
@click.option("--rewritten", is_flag=True, help="Also what 16 bits cost that are rounded at every step.")
@click.option("--codes", is_flag=True, help="Also what codes would cost.")
def main(bundle: str, steps: int, rewritten: bool, codes: bool) -> None:
    """Step random observations; print the relative error of the logits, and how many actions differ."""
    (actions, logits), (lazy_actions, lazy_logits) = (run(bundle, name, steps) for name in STATE_FORMATS)
    norms = np.linalg.norm(logits, axis=1)
    errors = np.linalg.norm(lazy_logits - logits, axis=1) / norms
    told("lazy-fp16, over the run", errors, np.count_nonzero(lazy_actions != actions), actions.size)
    for name, rounded in REWRITTEN.items() if rewritten else ():
        other_actions, other_logits = run(bundle, "float32", steps, rounded)
        errors = np.linalg.norm(other_logits - logits, axis=1) / norms
        told(name, errors, np.count_nonzero(other_actions != actions), actions.size)
    if not codes:
        return
    os.environ[STATE_FORMAT] = "float32"
    with load_policy(bundle, "native", threads=1) as policy:
        runtime = policy.runtime
        names = matrices(runtime, bundle)
        drawn = random_steps(policy.spec, policy.task, steps, seed=2)
        inputs = [drawn[tensor.name] for tensor in policy.spec.inputs]
        of_format: dict[str, list[float]] = {name: [] for name in FORMATS}
        differ = dict.fromkeys(FORMATS, 0)
        for step in range(steps):
            given = [values[step] for values in inputs]
            before = runtime.state()
            found = {}
            for name, rounded in FORMATS.items():
                runtime.load_state({**before, **{matrix: rounded(before[matrix]) for matrix in names}})
                output = runtime.step(*given)
                found[name] = output.action_logits.copy(), output.action.copy()
            runtime.load_state(before)
            exact = runtime.step(*given)
            for name, (values, action) in found.items():
                of_format[name].append(float(np.linalg.norm(values - exact.action_logits) / norms[step]))
                differ[name] += int(np.count_nonzero(action != exact.action))
    for name, found_errors in of_format.items():
        told(name, np.array(found_errors), differ[name], actions.size)


if __name__ == "__main__":
    main()
