"""`--precision auto`: the smallest mixed precision whose actions stay with float32.

A third of the recorded episodes is calibrated on, a third is chosen by, and a third judges the choice.

1. Matrices are taken in groups. A group's ladder has the formats, from small to exact, that all targets store: what a
   target has no kernels for takes it as many bytes as float32. Each group is quantized by itself, in every format of
   its ladder, and the error of the action logits is measured on the episodes to choose by.
2. Starting with the smallest format everywhere, groups step up their ladders one at a time, first where a byte
   buys the most squared error: errors of different matrices are nearly independent, so their squares add.
3. The shortest row of such steps that keeps to the bound is found by bisection. Every candidate is calibrated
   as a whole and judged by the actions it takes, so nothing rests on the estimates but the order.
4. What was found is held to the bound on the third part. If it does not keep to it there, a larger one is: those
   that were tried, one half way to the most exact, and that.

The bound holds for the upper end of the 95% interval (:func:`~lram_export.episodes.intervals.share`). Nothing is
random: the same checkpoint, recordings and targets give the same choice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lram_export.episodes import intervals
from lram_export.episodes.batches import Outputs, batch_episodes
from lram_export.episodes.intervals import Estimate
from lram_export.errors import LramError
from lram_export.exporters import stored_bytes
from lram_export.lowering import LoweredPolicy, Quantization, matrix_values, with_quantization
from lram_export.progress import Progress
from lram_export.quantization.calibrated import calibrated_matrix, quantize_blockwise
from lram_export.quantization.calibration import Calibration, InputStatistics, check_enough, input_statistics
from lram_export.quantization.episode_runs import outputs
from lram_export.quantization.nearest import round_to_nearest
from lram_export.spec.codes import QuantizedMatrix
from lram_export.spec.cost import QuantizationCost, quantization_cost
from lram_export.spec.precision import MIXED

DEFAULT_DISAGREEMENT = 0.005
FP32 = "fp32"
LADDER = ("int4", "int8", "int8g", "fp16", FP32)
"""Formats from small to exact; float32 only where a target has no 16 bits. The last one of a group is taken for exact
when the order of steps is estimated."""
RANGES_PER_KIND = 4
"""Depth ranges a kind of matrix is divided into where a model has more blocks than that twice."""
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
"""Name of a matrix of a block."""
SMALLEST_EPISODES = 15
SEARCH_STEPS = 4096
"""Steps a candidate is calibrated on, of those recorded."""


@dataclass(frozen=True)
class Group:
    """Matrices that share a format, and what each format of their ladder costs: bytes, in the target that needs most,
    and error by itself. ``bytes`` goes from small to exact."""

    name: str
    matrices: tuple[str, ...]
    bytes: Mapping[str, int]
    costs: Mapping[str, QuantizationCost]

    def squared_error(self, weight_format: str) -> float:
        """Squared relative error of the logits where only this group is quantized."""
        return self.costs[weight_format].relative_error ** 2 if weight_format in self.costs else 0.0


@dataclass(frozen=True)
class Judgement:
    """What a candidate does over some episodes."""

    cost: QuantizationCost
    disagreement: Estimate
    episodes: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "disagreement": self.disagreement.value,
            "disagreement_high": self.disagreement.high,
            "relative_error": self.cost.relative_error,
            "episodes": self.episodes,
            "steps": self.cost.steps,
        }


@dataclass(frozen=True)
class Candidate:
    """One assignment of formats to groups, calibrated, and what it does on the episodes to choose by."""

    formats: Mapping[str, str]
    size: int
    chosen_by: Judgement
    matrices: Mapping[str, QuantizedMatrix]

    def to_json(self, judgement: Judgement | None = None) -> dict[str, Any]:
        """Plain JSON values, without the codes."""
        return {"bytes": self.size, **(judgement or self.chosen_by).to_json(), "formats": dict(self.formats)}


@dataclass(frozen=True)
class Choice:
    """What `auto` chose, and everything it measured on the way.

    ``judged`` are candidates with what they did on the held-out episodes; the last one is the choice.
    """

    bound: float
    judged: tuple[tuple[Candidate, Judgement], ...]
    groups: tuple[Group, ...]
    tried: tuple[Candidate, ...]

    @property
    def matrices(self) -> Mapping[str, QuantizedMatrix]:
        """Codes of all matrices that are not left in float32."""
        return self.judged[-1][0].matrices

    @property
    def cost(self) -> QuantizationCost:
        """What the choice changed on the held-out episodes."""
        return self.judged[-1][1].cost

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as the manifest holds them."""
        chosen, judgement = self.judged[-1]
        return {
            "max_disagreement": self.bound,
            "chosen": chosen.to_json(judgement),
            "groups": [
                {
                    "name": group.name,
                    "matrices": list(group.matrices),
                    "format": chosen.formats[group.name],
                    "alone": {
                        f: {"relative_error": c.relative_error, "disagreement": c.disagreement, "bytes": group.bytes[f]}
                        for f, c in group.costs.items()
                    },
                }
                for group in self.groups
            ],
            "tried": [candidate.to_json() for candidate in self.tried],
            "failed": [candidate.to_json(judgement) for candidate, judgement in self.judged[:-1]],
        }


def choose_formats(
    policy: LoweredPolicy,
    names: Sequence[str],
    recorded: Calibration,
    bound: float,
    targets: Sequence[str],
    progress: Progress,
) -> Choice:
    """The smallest candidate that keeps to a bound of disagreement (see the module's text).

    Raises:
        LramError: too few episodes or steps; or no candidate keeps to the bound, with the best that was reached.
    """
    _check_enough_to_judge(recorded, bound)
    calibration, to_choose_by, held_out = recorded.thirds()
    check_enough(calibration, policy.graph, names)
    judge = _Judge(policy, to_choose_by)
    groups = _groups(policy, names, calibration, judge, targets, progress)
    steps = list(_steps_up(groups))
    tried: dict[int, Candidate] = {}

    def candidate(count: int) -> Candidate:
        if count not in tried:
            formats = {g.name: next(iter(g.bytes)) for g in groups} | dict(steps[:count])
            quantized = {m: formats[g.name] for g in groups for m in g.matrices if formats[g.name] != FP32}
            with progress.stage(f"candidate {len(tried) + 1}", len(quantized)) as advance:
                matrices = quantize_blockwise(policy, quantized, calibration.at_most(SEARCH_STEPS), advance=advance)
                judgement = judge.judge(matrices)
            size = sum(group.bytes[formats[group.name]] for group in groups)
            tried[count] = Candidate(formats, size, judgement, matrices)
        return tried[count]

    def keeps(count: int) -> bool:
        return candidate(count).chosen_by.disagreement.high <= bound

    low, high = 0, len(steps)
    if not keeps(low):
        if not keeps(high):
            raise _cannot_be_kept(bound, candidate(high).chosen_by)
        while high - low > 1:  # low does not keep to the bound, high does
            middle = (low + high) // 2
            low, high = (low, middle) if keeps(middle) else (middle, high)
        low = high
    larger = sorted({low, *(count for count in tried if count > low), (low + len(steps) + 1) // 2, len(steps)})
    judged = judge_held_out(policy, held_out, bound, map(candidate, larger), progress)
    return Choice(bound, judged, groups, tuple(tried[count] for count in sorted(tried)))


def _check_enough_to_judge(recorded: Calibration, bound: float) -> None:
    if bound <= 0:
        raise LramError("--max-disagreement: 0% cannot be shown by any number of steps; allow more, or use fp32")
    if len(recorded.episodes) < SMALLEST_EPISODES:
        raise LramError(
            f"--calibration: {len(recorded.episodes)} episodes recorded, at least {SMALLEST_EPISODES} are needed: "
            f"a third of them is chosen by, and a third judges the choice"
        )
    fewest, needed = min(part.steps for part in recorded.thirds()[1:]), intervals.steps_needed(bound)
    if fewest < needed:
        episodes = math.ceil(len(recorded.episodes) * needed / fewest)
        raise LramError(
            f"--calibration: a third of the {len(recorded.episodes)} recorded episodes has {fewest} steps; to show a "
            f"disagreement of at most {100 * bound:g}% it takes {needed}: record about {episodes} such episodes, or "
            f"allow more with --max-disagreement"
        )


def judge_held_out(
    policy: LoweredPolicy, held_out: Calibration, bound: float, candidates: Iterable[Candidate], progress: Progress
) -> tuple[tuple[Candidate, Judgement], ...]:
    """Candidates up to the first that keeps to the bound on the held-out episodes, with what they did there.

    Raises:
        LramError: none of them does, or only one that leaves everything in float32.
    """
    judge = _Judge(policy, held_out)
    judged: list[tuple[Candidate, Judgement]] = []
    for candidate in candidates:
        with progress.stage("judging the choice"):
            judged.append((candidate, judge.judge(candidate.matrices)))
        if judged[-1][1].disagreement.high <= bound:
            break
    else:
        raise _cannot_be_kept(bound, judged[-1][1])
    if not judged[-1][0].matrices:
        raise LramError(
            f"--max-disagreement: {100 * bound:g}% is kept to by nothing smaller than float32; allow more, or use fp32"
        )
    return tuple(judged)


def _cannot_be_kept(bound: float, best: Judgement) -> LramError:
    return LramError(
        f"--max-disagreement: {100 * bound:g}% cannot be kept to: with the most exact formats that were tried, "
        f"{100 * best.disagreement.value:.3g}% of the action values differ by more than one bin over {best.cost.steps} "
        f"steps (95% bound {100 * best.disagreement.high:.3g}%); allow more, record more, or use --keep-fp32 or fp32"
    )


class _Judge:
    """Compares quantized policies with the float32 one, which runs once."""

    def __init__(self, policy: LoweredPolicy, episodes: Calibration) -> None:
        self._policy = policy
        self._together = batch_episodes(episodes.episodes)
        self._expected = outputs(policy.graph, self._together)

    def judge(self, matrices: Mapping[str, QuantizedMatrix]) -> Judgement:
        """Cost over all steps, and the disagreement with its interval."""
        quantized = with_quantization(self._policy, Quantization(MIXED, "", matrices))
        actual = outputs(quantized.graph, self._together)
        cost = self._cost(self._expected, actual)
        single = [self._cost(_of(self._expected, rows), _of(actual, rows)) for rows in self._episodes()]
        found = intervals.share([c.beyond_one_bin for c in single], [c.actions for c in single], cost.steps)
        return Judgement(cost, found, len(single))

    def _episodes(self) -> Iterator[slice]:
        """Places of each episode's steps among the outputs."""
        start = 0
        for batch in self._together:
            for steps in batch.active.sum(axis=0).tolist():
                yield slice(start, start + steps)
                start += steps

    def _cost(self, expected: Outputs, actual: Outputs) -> QuantizationCost:
        return quantization_cost(self._policy.spec, self._policy.bin_width, expected, actual)


def _of(result: Outputs, steps: slice) -> Outputs:
    return {name: values[steps] for name, values in result.items()}


def _groups(
    policy: LoweredPolicy,
    names: Sequence[str],
    calibration: Calibration,
    judge: _Judge,
    targets: Sequence[str],
    progress: Progress,
) -> tuple[Group, ...]:
    """All groups, each measured by itself."""
    with progress.stage("measuring inputs"):
        statistics = input_statistics(policy.graph, names, calibration.at_most(SEARCH_STEPS))
    members = group_matrices(names)
    sizes = sizes_by_format(policy, names, targets)
    ladders = {
        name: ladder({f: sum(sizes[f][m] for m in matrices) for f in LADDER}) for name, matrices in members.items()
    }
    groups = []
    with progress.stage("measuring sensitivity", sum(len(rungs) - 1 for rungs in ladders.values())) as advance:
        for name, matrices in members.items():
            costs = {}
            for weight_format in list(ladders[name])[:-1]:
                costs[weight_format] = judge.judge(_alone(policy, matrices, statistics, weight_format)).cost
                advance(1)
            groups.append(Group(name, matrices, ladders[name], costs))
    return tuple(groups)


def sizes_by_format(policy: LoweredPolicy, names: Sequence[str], targets: Sequence[str]) -> dict[str, dict[str, int]]:
    """Bytes of every matrix in every format of the ladder, in the target that needs the most for it."""
    sizes = {}
    for weight_format in LADDER:
        stored = policy
        if weight_format != FP32:
            codes = {name: round_to_nearest(name, matrix_values(policy, name), weight_format) for name in names}
            stored = with_quantization(policy, Quantization(MIXED, "", codes))
        counted = [stored_bytes(target, stored) for target in targets]
        sizes[weight_format] = {name: max(count[name] for count in counted) for name in names}
    return sizes


def ladder(sizes: Mapping[str, int]) -> dict[str, int]:
    """The formats, from small to exact, that are smaller than all more exact ones; float32 only in place of fp16.

    What a target stores as float32 is as large as float32, so it drops out.
    """
    rungs: dict[str, int] = {}
    for weight_format in reversed(LADDER):
        if not rungs or sizes[weight_format] < min(rungs.values()):
            rungs[weight_format] = sizes[weight_format]
    if "fp16" in rungs:
        del rungs[FP32]
    return dict(reversed(rungs.items()))


def _alone(
    policy: LoweredPolicy, names: Sequence[str], statistics: Mapping[str, InputStatistics], weight_format: str
) -> dict[str, QuantizedMatrix]:
    return {n: calibrated_matrix(n, matrix_values(policy, n), statistics[n], weight_format) for n in names}


def group_matrices(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Matrices by group: each its own in a small model, neighbours of a kind together in a deep one."""
    num_blocks = 1 + max((int(match[1]) for name in names if (match := BLOCK.fullmatch(name))), default=-1)
    if num_blocks <= 2 * RANGES_PER_KIND:
        return {name: (name,) for name in names}
    groups: dict[str, list[str]] = {}
    for name in names:
        match = BLOCK.fullmatch(name)
        if match is None:
            groups[name] = [name]
            continue
        part = int(match[1]) * RANGES_PER_KIND // num_blocks
        inside = [b for b in range(num_blocks) if b * RANGES_PER_KIND // num_blocks == part]
        groups.setdefault(f"blocks.{inside[0]}-{inside[-1]}.{match[2]}", []).append(name)
    return {group: tuple(members) for group, members in groups.items()}


def _steps_up(groups: Sequence[Group]) -> Iterator[tuple[str, str]]:
    """Steps (group, next format), the one that buys the most squared error per byte first."""
    at = {group.name: 0 for group in groups}
    rungs = {group.name: tuple(group.bytes) for group in groups}

    def gain(group: Group) -> float:
        here, above = rungs[group.name][at[group.name] : at[group.name] + 2]
        return (group.squared_error(here) - group.squared_error(above)) / (group.bytes[above] - group.bytes[here])

    while waiting := [g for g in groups if at[g.name] + 1 < len(rungs[g.name])]:
        best = max(waiting, key=gain)  # the first of equals: the order of the graph
        at[best.name] += 1
        yield best.name, rungs[best.name][at[best.name]]
