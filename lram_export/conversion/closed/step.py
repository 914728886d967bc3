"""What goes into a closed step and comes out of it, by the names that it has in there."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lram_export.bundle.bundle import Bundle
from lram_export.bundle.manifest import Manifest
from lram_export.errors import UsageError
from lram_export.policy import observations_of
from lram_export.spec.interface import actions_of
from lram_export.spec.tensors import TensorSpec

RUNNING = "state.running"
"""0 where the next step starts an episode, 1 within one."""
RETURN_TO_GO = "state.return_to_go"
SAFETY = "state.safety"
REWARD = "reward"


@dataclass(frozen=True)
class ClosedStep:
    """The interface of a closed step, for one row.

    Attributes:
        observations: what the robot observes.
        reward: the reward of the step before, in the environment's units; None: none is asked for.
        actions: what the robot does.
        states: what comes out as ``next_`` and goes in again; all zero: a new episode. The first is :data:`RUNNING`,
            unless there are none.
    """

    observations: tuple[TensorSpec, ...]
    reward: TensorSpec | None
    actions: tuple[TensorSpec, ...]
    states: tuple[TensorSpec, ...]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a user gives with every step."""
        return self.observations if self.reward is None else (*self.observations, self.reward)


def closed_step(bundle: Bundle, reward_input: bool, starts: bool) -> ClosedStep:
    """What the closed step of a bundle has.

    Args:
        bundle: the bundle.
        reward_input: whether the reward is an input.
        starts: whether the graph asks if an episode starts.

    Raises:
        UsageError: a reward that is needed and not asked for, or the other way round; a state of the policy's own
            with a name that is needed.
    """
    manifest = bundle.manifest
    spec = manifest.spec.with_batch(1)
    check_reward(bundle, reward_input)
    more = [*_safety_states(manifest)]
    if reward_input:
        more.append(TensorSpec(RETURN_TO_GO, (1,), "float32"))
    own = [TensorSpec(state.name, state.shape, state.dtype) for state in spec.states]
    states = [*own, *more]
    if states or starts:
        states.insert(0, TensorSpec(RUNNING, (1,), "float32"))
    names = [state.name for state in states]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"{bundle.path}: {twice[0]}: the policy has a state of that name, which this format needs; rename it"
        )
    return ClosedStep(
        observations=tuple(dataclasses.replace(t, limit=None) for t in observations_of(spec)),
        reward=TensorSpec(REWARD, (1,), "float32") if reward_input else None,
        actions=tuple(actions_of(spec).values()),
        states=tuple(states),
    )


def check_reward(bundle: Bundle, reward_input: bool) -> None:
    """Raise UsageError for a reward that is needed and not asked for, or the other way round."""
    task, spec = bundle.manifest.task, bundle.manifest.spec
    if reward_input and (task is None or spec.input("return_to_go") is None):
        raise UsageError(f"--reward-input: {bundle.path}: this policy aims at no return; leave it out")
    if not reward_input and task is not None and task.reward_feedback == "observed":
        raise UsageError(
            f"{bundle.path}: the policy is told every reward (reward feedback 'observed'): add --reward-input, which "
            f"makes it an input, or export with --reward-feedback none"
        )


def _safety_states(manifest: Manifest) -> list[TensorSpec]:
    """What a safety has to remember of each action."""
    found = []
    actions = actions_of(manifest.spec.with_batch(1))
    for name, of in manifest.interface.action.items():
        if of.safety is None or name not in actions:
            continue
        if of.safety.most_change is not None:
            found.append(TensorSpec(f"{SAFETY}.{name}.held", (1, actions[name].size), "float32"))
        if of.safety.most_clamps is not None:
            found += [TensorSpec(f"{SAFETY}.{name}.{part}", (1, 1), "float32") for part in ("clamps", "stopped")]
    return found
