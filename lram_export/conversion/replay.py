"""Does what was written act as the policy? The bundle's recorded observations through both, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.conversion.formats import Player
from lram_export.errors import ParityError
from lram_export.policy import load_policy, observations_of
from lram_export.progress import SILENT, Progress
from lram_export.spec.interface import actions_of
from lram_export.spec.parity import Tolerance, relative_error, tolerance
from lram_export.system.machine import suitable_threads
from lram_export.verification.verify import load_bundle_reference

EPISODES = 2
REWARD = "reward"
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Replayed:
    """What a replay found: every action of some steps, the largest relative error of those that are computed."""

    steps: int
    actions: int
    actions_different: int
    largest_error: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


def replay(bundle: Bundle, player: Player, progress: Progress = SILENT) -> Replayed:
    """Play the recorded observations of one robot, twice, through the policy and through what was written of it.

    The second episode runs backwards, so that it is another one, and begins as users of the format begin one. Then what
    a state of NaN starts with is compared with that.

    Raises:
        ParityError: an action that is chosen differs (but for a tie, where the player is not exact), one that is
            computed is beyond the tolerance of the bundle's precision, or a NaN in the state survives a start.
    """
    manifest = bundle.manifest
    recorded = list(_recorded(bundle, REWARD in player.inputs))
    judge = _Judge(bundle, player)
    threads = suitable_threads(manifest.parameters, 1)
    with (
        load_policy(bundle.path, player.target, threads=threads, batch=1) as policy,
        progress.stage("replaying", EPISODES * len(recorded)) as advance,
    ):
        for episode in range(EPISODES):
            policy.reset()
            player.start()
            for step, given in enumerate(recorded[:: -1 if episode else 1]):
                observed = {name: values for name, values in given.items() if name != REWARD}
                expected = policy.step(observed, given.get(REWARD))
                found = player.step(given)
                compared = [name for name in judge.actions if name in found]
                if not compared:
                    raise ParityError(f"{bundle.path}: what was written gives none of: {', '.join(judge.actions)}")
                for name in compared:
                    if not judge.accepts(name, expected, found[name]):
                        one, other = expected[name], found[name]
                        raise ParityError(
                            f"{bundle.path}: what was written acts otherwise than the policy: episode {episode}, step "
                            f"{step}, {name}: expected {one.ravel()[:8].tolist()}, got {other.ravel()[:8].tolist()}"
                        )
                advance(1)
    _check_start(bundle, player, recorded[:2])
    return Replayed(EPISODES * len(recorded), judge.count, judge.different, judge.largest)


class _Judge:
    """Compares actions with the policy's, and sums up."""

    def __init__(self, bundle: Bundle, player: Player) -> None:
        entry, spec = bundle.artifact(player.target), bundle.manifest.spec
        self.actions = actions_of(spec)
        self._bound = tolerance(entry.precision, entry.activations)
        self._computed = [name for name, tensor in self.actions.items() if tensor in _computed(bundle)]
        self._scores = {name: spec.scores_of(tensor) for name, tensor in self.actions.items() if not player.exact}
        self.count = self.different = 0
        self.largest = 0.0

    def accepts(self, name: str, expected: Mapping[str, NDArray[Any]], found: NDArray[Any]) -> bool:
        """Whether an action is what it may be, given all outputs of the policy."""
        different = np.not_equal(expected[name], found)
        self.count, self.different = self.count + found.size, self.different + int(different.sum())
        if name in self._computed:
            error = relative_error(expected[name], found)
            self.largest = max(self.largest, error)
            return error <= self._bound.logit
        scores = self._scores.get(name)
        if not different.any():
            return True
        return scores is not None and _were_tied(expected[scores.name], different, self._bound)


def _were_tied(scores: NDArray[Any], different: NDArray[np.bool_], bound: Tolerance) -> bool:
    """Whether every action that differs, (1, ...), was chosen from scores, (1, ..., choices), of which the best two are
    so close that an error within the tolerance may decide."""
    best = np.sort(scores.astype(np.float64).reshape(different.size, -1), axis=1)[:, -2:]
    margins = (best[:, -1] - best[:, 0])[different.ravel()]
    return bool(margins.max() <= bound.tie * (np.linalg.norm(scores) if bound.relative else 1.0))


def _check_start(bundle: Bundle, player: Player, steps: list[Arrays]) -> None:
    """Whatever the state holds, an episode starts the same; raises ParityError."""
    played = []
    for state in (None, np.nan):
        player.start(state)
        played.append([player.step(given) for given in steps])
    for step, (one, other) in enumerate(zip(*played, strict=True)):
        for name, values in one.items():
            if not np.array_equal(values, other[name]):
                raise ParityError(
                    f"{bundle.path}: a NaN in the state survives the start of an episode ({name} of step {step}); its "
                    f"graph is of an earlier version: export the bundle again"
                )


def _recorded(bundle: Bundle, with_reward: bool) -> Iterator[Arrays]:
    """What one robot observed at every recorded step, with a row; and rewards in the environment's units, up to 1 when
    they are scaled."""
    manifest, rng = bundle.manifest, np.random.default_rng(0)
    inputs = load_bundle_reference(bundle).inputs
    names = [tensor.name for tensor in observations_of(manifest.spec)]
    for step in range(len(inputs)):
        given: Arrays = {name: np.ascontiguousarray(inputs[name][step, :1]) for name in names}
        if with_reward and manifest.task is not None:
            given[REWARD] = np.float32(manifest.task.reward_scale) * rng.uniform(-1, 1, 1).astype(np.float32)
        yield given


def _computed(bundle: Bundle) -> list[Any]:
    spec = bundle.manifest.spec
    return [spec.outputs[place] for place in spec.computed]
