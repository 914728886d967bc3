"""`--precision auto`: the smallest mixed precision whose actions stay with float32.

1. Matrices are taken in groups. Each group is quantized by itself, in every format of the ladder, and the
   error of the action logits is measured on episodes that were held out from calibration.
2. Starting with the smallest format everywhere, groups step up the ladder one at a time, first where a byte
   buys the most squared error: errors of different matrices are nearly independent, so their squares add.
3. The shortest row of such steps that keeps to the bound is found by bisection. Every candidate is calibrated
   as a whole and judged by the actions it takes, so nothing rests on the estimates but the order.

The bound holds for the upper end of the 95% interval over episodes. Nothing is random: the same checkpoint
and recordings give the same choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lram_export import intervals
from lram_export.blockwise import calibrated_matrix, quantize_blockwise
from lram_export.calibration import Calibration, InputStatistics, input_statistics
from lram_export.cost import QuantizationCost, quantization_cost
from lram_export.dequantization import with_quantization
from lram_export.errors import LramError
from lram_export.intervals import Estimate
from lram_export.lowering import LoweredPolicy
from lram_export.precision import FORMATS, GROUP, MIXED
from lram_export.progress import Progress
from lram_export.quantized import Quantization, QuantizedMatrix
from lram_export.rollouts import RolloutOutputs, batch_episodes, outputs
from lram_export.rounding import matrix_values

DEFAULT_DISAGREEMENT = 0.005
LADDER = ("int4", "int8", "fp16")
"""Formats from small to exact. The last one is taken for exact when the order of steps is estimated."""
RANGES_PER_KIND = 4
"""Depth ranges a kind of matrix is divided into where a model has more blocks than that twice."""
SMALLEST_EPISODES = 15
SEARCH_STEPS = 4096
"""Steps a candidate is calibrated on, of those recorded."""


@dataclass(frozen=True)
class Group:
    """Matrices that share a format, and what each format of the ladder costs: bytes and error by itself."""

    name: str
    matrices: tuple[str, ...]
    bytes: Mapping[str, int]
    costs: Mapping[str, QuantizationCost]

    def squared_error(self, weight_format: str) -> float:
        """Squared relative error of the logits where only this group is quantized."""
        return self.costs[weight_format].relative_error ** 2 if weight_format in self.costs else 0.0


@dataclass(frozen=True)
class Candidate:
    """One assignment of formats to groups, calibrated, and what it does on held-out episodes."""

    formats: Mapping[str, str]
    size: int
    disagreement: Estimate
    relative_error: float
    matrices: Mapping[str, QuantizedMatrix]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the codes."""
        return {
            "bytes": self.size,
            "disagreement": self.disagreement.value,
            "disagreement_high": self.disagreement.high,
            "relative_error": self.relative_error,
            "formats": dict(self.formats),
        }


@dataclass(frozen=True)
class Choice:
    """What `auto` chose, and everything it measured on the way."""

    bound: float
    chosen: Candidate
    groups: tuple[Group, ...]
    tried: tuple[Candidate, ...]

    @property
    def matrices(self) -> Mapping[str, QuantizedMatrix]:
        """Codes of all matrices."""
        return self.chosen.matrices

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as the manifest holds them."""
        return {
            "max_disagreement": self.bound,
            "chosen": self.chosen.to_json(),
            "groups": [
                {
                    "name": group.name,
                    "matrices": list(group.matrices),
                    "format": self.chosen.formats[group.name],
                    "alone": {
                        f: {"relative_error": c.relative_error, "disagreement": c.disagreement, "bytes": group.bytes[f]}
                        for f, c in group.costs.items()
                    },
                }
                for group in self.groups
            ],
            "tried": [candidate.to_json() for candidate in self.tried],
        }


def choose_formats(
    policy: LoweredPolicy,
    names: Sequence[str],
    calibration: Calibration,
    held_out: Calibration,
    bound: float,
    progress: Progress,
) -> Choice:
    """The smallest candidate that keeps to a bound of disagreement (see the module's text).

    Raises:
        LramError: too few episodes; or no candidate keeps to the bound, with the best that was reached.
    """
    if calibration is held_out or len(calibration.episodes) + len(held_out.episodes) < SMALLEST_EPISODES:
        raise LramError(
            f"--calibration: {len(calibration.episodes)} episodes recorded, at least {SMALLEST_EPISODES} are needed: "
            f"a third of them is held out to judge the bound"
        )
    judge = _Judge(policy, held_out)
    groups = _groups(policy, names, calibration, judge, progress)
    steps = list(_steps_up(groups))
    tried: dict[int, Candidate] = {}

    def candidate(count: int) -> Candidate:
        if count not in tried:
            formats = dict.fromkeys((g.name for g in groups), LADDER[0]) | dict(steps[:count])
            with progress.stage(f"candidate {len(tried) + 1}", len(names)) as advance:
                matrices = quantize_blockwise(
                    policy,
                    {name: formats[group.name] for group in groups for name in group.matrices},
                    calibration.at_most(SEARCH_STEPS),
                    advance=advance,
                )
                cost, disagreement = judge.judge(matrices)
            size = sum(matrix.stored_bytes for matrix in matrices.values())
            tried[count] = Candidate(formats, size, disagreement, cost.relative_error, matrices)
        return tried[count]

    low, high = 0, len(steps)
    if candidate(low).disagreement.high > bound:
        best = candidate(high)
        if best.disagreement.high > bound:
            raise LramError(
                f"--max-disagreement: {100 * bound:g}% cannot be kept to: with every matrix in {LADDER[-1]}, "
                f"{100 * best.disagreement.value:.3g}% of the action values differ by more than one bin (95% bound "
                f"{100 * best.disagreement.high:.3g}%); allow more, or use --keep-fp32 or fp32"
            )
        while high - low > 1:  # low does not keep to the bound, high does
            middle = (low + high) // 2
            low, high = (low, middle) if candidate(middle).disagreement.high <= bound else (middle, high)
        low = high
    return Choice(bound, candidate(low), groups, tuple(tried[count] for count in sorted(tried)))


class _Judge:
    """Compares quantized policies with the float32 one on held-out episodes."""

    def __init__(self, policy: LoweredPolicy, held_out: Calibration) -> None:
        self._policy = policy
        self._together = batch_episodes(held_out.episodes)
        self._expected = outputs(policy.graph, self._together)

    def judge(self, matrices: Mapping[str, QuantizedMatrix]) -> tuple[QuantizationCost, Estimate]:
        """Cost over all steps, and the disagreement with its interval over episodes."""
        quantized = with_quantization(self._policy, Quantization(MIXED, "", matrices))
        actual = outputs(quantized.graph, self._together)
        cost = self._cost(self._expected, actual)
        rates = [self._cost(_of(self._expected, rows), _of(actual, rows)).disagreement for rows in self._episodes()]
        return cost, intervals.mean(rates)

    def _episodes(self) -> Iterator[slice]:
        """Places of each episode's steps among the outputs."""
        start = 0
        for batch in self._together:
            for steps in batch.active.sum(axis=0).tolist():
                yield slice(start, start + steps)
                start += steps

    def _cost(self, expected: RolloutOutputs, actual: RolloutOutputs) -> QuantizationCost:
        return quantization_cost(
            self._policy.checkpoint.config,
            self._policy.task,
            (expected.action, expected.action_logits),
            (actual.action, actual.action_logits),
        )


def _of(result: RolloutOutputs, steps: slice) -> RolloutOutputs:
    return RolloutOutputs(result.action[steps], result.action_logits[steps])


def _groups(
    policy: LoweredPolicy, names: Sequence[str], calibration: Calibration, judge: _Judge, progress: Progress
) -> tuple[Group, ...]:
    """All groups, each measured by itself."""
    with progress.stage("measuring inputs"):
        statistics = input_statistics(policy.graph, names, calibration.at_most(SEARCH_STEPS))
    members = group_matrices(names, policy.checkpoint.config.num_blocks)
    groups = []
    with progress.stage("measuring sensitivity", len(members) * (len(LADDER) - 1)) as advance:
        for name, matrices in members.items():
            costs = {}
            for weight_format in LADDER[:-1]:
                quantized = _alone(policy, matrices, statistics, weight_format)
                costs[weight_format], _ = judge.judge(quantized)
                advance(1)
            sizes = {f: sum(stored_bytes(matrix_values(policy, m).shape, f) for m in matrices) for f in LADDER}
            groups.append(Group(name, matrices, sizes, costs))
    return tuple(groups)


def _alone(
    policy: LoweredPolicy, names: Sequence[str], statistics: Mapping[str, InputStatistics], weight_format: str
) -> dict[str, QuantizedMatrix]:
    return {n: calibrated_matrix(n, matrix_values(policy, n), statistics[n], weight_format) for n in names}


def group_matrices(names: Sequence[str], num_blocks: int) -> dict[str, tuple[str, ...]]:
    """Matrices by group: each its own in a small model, neighbours of a kind together in a deep one."""
    if num_blocks <= 2 * RANGES_PER_KIND:
        return {name: (name,) for name in names}
    groups: dict[str, list[str]] = {}
    for name in names:
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if match is None:
            groups[name] = [name]
            continue
        part = int(match[1]) * RANGES_PER_KIND // num_blocks
        inside = [b for b in range(num_blocks) if b * RANGES_PER_KIND // num_blocks == part]
        groups.setdefault(f"blocks.{inside[0]}-{inside[-1]}.{match[2]}", []).append(name)
    return {group: tuple(members) for group, members in groups.items()}


def stored_bytes(shape: Sequence[int], weight_format: str) -> int:
    """Bytes of codes and scales of a matrix (out, in) in the bundle."""
    rows, columns = shape
    description = FORMATS[weight_format]
    groups = -(-columns // GROUP) if description.grouped else 1
    stored_columns = groups * GROUP if description.grouped else columns
    return rows * (stored_columns * description.bits // 8 + (4 * groups if description.largest else 0))


def _steps_up(groups: Sequence[Group]) -> Iterator[tuple[str, str]]:
    """Steps (group, next format), the one that buys the most squared error per byte first."""
    at = {group.name: 0 for group in groups}

    def gain(group: Group) -> float:
        here, above = LADDER[at[group.name]], LADDER[at[group.name] + 1]
        return (group.squared_error(here) - group.squared_error(above)) / (group.bytes[above] - group.bytes[here])

    while waiting := [g for g in groups if at[g.name] + 1 < len(LADDER)]:
        best = max(waiting, key=gain)  # the first of equals: the order of the graph
        at[best.name] += 1
        yield best.name, LADDER[at[best.name]]
