"""Does what was written act as the policy? The bundle's recorded observations through both, side by side."""

from __future__ import annotations

from collections.abc import Iterator
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
from lram_export.spec.parity import relative_error, tolerance
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
        ParityError: an action that is chosen differs, one that is computed is beyond the tolerance of the bundle's
            precision, or a NaN in the state survives a start.
    """
    manifest = bundle.manifest
    entry = bundle.artifact(player.target)
    bound = tolerance(entry.precision, entry.activations).logit
    recorded = list(_recorded(bundle, REWARD in player.inputs))
    chosen = {name for name, tensor in actions_of(manifest.spec).items() if tensor not in _computed(bundle)}
    count = different = 0
    largest = 0.0
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
                for name, other in found.items():
                    one = expected[name]
                    unequal = int(np.not_equal(one, other).sum())
                    count, different = count + one.size, different + unequal
                    error = relative_error(one, other)
                    largest = max(largest, error)
                    if (unequal and name in chosen) or not error <= bound:
                        raise ParityError(
                            f"{bundle.path}: what was written acts otherwise than the policy: episode {episode}, step "
                            f"{step}, {name}: expected {one.ravel()[:8].tolist()}, got {other.ravel()[:8].tolist()}"
                        )
                advance(1)
    _check_start(bundle, player, recorded[:2])
    return Replayed(EPISODES * len(recorded), count, different, largest)


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
