"""Recorded episodes side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.episodes.steps import StepSequence, joined
from lram_export.progress import Advance
from lram_export.runtimes.protocol import Runtime
from lram_export.spec.tensors import StepSpec

PARALLEL_EPISODES = 32


@dataclass(frozen=True)
class EpisodeBatch:
    """Some episodes side by side, (steps, episodes, ...), the shorter ones padded; ``active`` marks real steps."""

    steps: StepSequence
    active: NDArray[np.bool_]


Outputs = dict[str, NDArray[Any]]
"""The outputs of all steps by name, each (steps, ...): episode by episode, the shorter ones first. However many
episodes ran side by side, the order is the same."""


def split_episodes(recordings: Iterable[StepSequence]) -> list[StepSequence]:
    """Every episode by itself, (steps, ...) without a batch dimension, in order."""
    episodes = []
    for steps in recordings:
        for row in range(steps["is_first"].shape[1]):
            starts = np.flatnonzero(steps["is_first"][:, row])
            for begin, end in zip(starts, [*starts[1:], len(steps)], strict=True):
                episodes.append(steps.map(lambda values, begin=begin, end=end, row=row: values[begin:end, row]))  # type: ignore[misc]
    return episodes


def batch_episodes(episodes: Sequence[StepSequence], parallel: int = PARALLEL_EPISODES) -> list[EpisodeBatch]:
    """Episodes of similar length side by side; padding repeats an episode's last step."""
    ordered = sorted(episodes, key=len)
    batches = []
    for first in range(0, len(ordered), parallel):
        group = ordered[first : first + parallel]
        length = max(len(e) for e in group)
        index = [np.minimum(np.arange(length), len(e) - 1) for e in group]
        padded = [e.map(lambda values, i=i: values[i]) for e, i in zip(group, index, strict=True)]  # type: ignore[misc]
        active = np.stack([np.arange(length) < len(e) for e in group], axis=1)
        batches.append(EpisodeBatch(joined(padded, lambda inputs: np.stack(inputs, axis=1)), active))
    return batches


def runtime_outputs(
    runtime: Runtime, episodes: Sequence[StepSequence], advance: Advance = lambda amount: None
) -> Outputs:
    """What a runtime does in all steps of some episodes, as many at a time as it has rows."""
    rows = runtime.spec.batch_size
    batches = [_filled(batch, rows) for batch in batch_episodes(episodes, rows)]
    return all_of(runtime.spec, (episode_by_episode(batch, _run(runtime, batch, advance)) for batch in batches))


def _run(runtime: Runtime, batch: EpisodeBatch, advance: Advance) -> Iterator[Sequence[NDArray[Any]]]:
    runtime.reset()
    for arguments, active in zip(batch.steps, batch.active, strict=True):
        output = runtime.step(*map(np.ascontiguousarray, arguments))
        advance(int(active.sum()))
        yield [values.copy() for values in output]


def _filled(batch: EpisodeBatch, rows: int) -> EpisodeBatch:
    """The batch with as many rows as a runtime wants: the last one again, as padding."""
    missing = rows - batch.active.shape[1]
    if not missing:
        return batch
    steps = batch.steps.map(lambda values: np.concatenate([values, np.repeat(values[:, -1:], missing, axis=1)], axis=1))
    nothing = np.zeros((len(batch.active), missing), np.bool_)
    return EpisodeBatch(steps, np.concatenate([batch.active, nothing], axis=1))


def episode_by_episode(batch: EpisodeBatch, steps: Iterable[Sequence[NDArray[Any]]]) -> list[NDArray[Any]]:
    """From the outputs per step of a batch to those of its real steps, episode by episode."""
    return [np.stack(column, axis=1)[batch.active.T] for column in zip(*steps, strict=True)]


def all_of(spec: StepSpec, parts: Iterable[Sequence[NDArray[Any]]]) -> Outputs:
    """What several batches gave, one after the other, each the outputs in the order of the specification."""
    columns = zip(spec.outputs, zip(*parts, strict=True), strict=True)
    return {output.name: np.concatenate(column) for output, column in columns}
