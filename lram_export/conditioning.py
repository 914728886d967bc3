"""What a policy is told beside its observation: the return it shall reach and the rewards on the way, or nothing.

Everything here is scaled as the step graph takes it, float32, one number per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lram_export.arrays import numbers, to_numpy
from lram_export.runtimes.protocol import check_magnitude, check_tensor, short
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import MAX_FLOAT32, StepSpec, TensorSpec

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
_NUMBERS = frozenset({float, np.float32, np.float64})
"""Types of a reward that is a number and nothing else."""


class Conditioning(Protocol):
    """Keeps what a policy is told, row by row."""

    def check_target(self, rows: Sequence[int], target_return: ArrayLike | None) -> Floats:
        """What rows would aim at from now on, checked; None: what they aimed at before. Changes nothing.

        Raises:
            ValueError: not a finite number, too large, of the wrong shape, or of no use to this policy.
        """

    def start(self, rows: Sequence[int], target: Floats) -> None:
        """Rows start an episode with what :meth:`check_target` returned."""

    def inputs(self, reward: ArrayLike | None, is_first: Floats, starting: Mask | None = None) -> dict[str, Floats]:
        """The inputs of a step by name. Changes nothing.

        Args:
            reward: of the previous step; rows at the first step of an episode ignore theirs.
            is_first: 1 for those rows, else 0.
            starting: those of them that start with this step what they aim at, True; None: no row does.

        Raises:
            ValueError: a reward that is missing, not finite, too large or of the wrong shape.
        """

    def commit(self, inputs: Mapping[str, Floats]) -> None:
        """The step with these inputs was taken."""

    @property
    def return_to_go(self) -> Floats:
        """(B,) of the step that was taken last; zeros where there is no such thing."""

    def state(self) -> dict[str, Floats]:
        """What a run needs to go on elsewhere, by name; copies."""

    def restarted(self) -> dict[str, Floats]:
        """What :meth:`state` would be if all rows started an episode."""

    def check_state(self, state: Mapping[str, Floats]) -> None:
        """Raise ValueError, naming the entry, unless a saved state has what :meth:`state` gives."""

    def load_state(self, state: Mapping[str, Floats]) -> None:
        """Continue from a state that was checked."""


def conditioning(spec: StepSpec, task: TaskSpec | None) -> Conditioning:
    """What the inputs of a step ask for."""
    if task is None or spec.input("return_to_go") is None:
        return Unconditioned(spec)
    return ReturnConditioning(spec, task)


class Unconditioned:
    """Nothing but the observation."""

    def __init__(self, spec: StepSpec) -> None:
        self._nothing = np.zeros(spec.batch_size, np.float32)

    @property
    def return_to_go(self) -> Floats:
        """See :class:`Conditioning`."""
        return self._nothing.copy()

    def check_target(self, rows: Sequence[int], target_return: ArrayLike | None) -> Floats:
        """See :class:`Conditioning`."""
        if target_return is not None:
            raise ValueError("target_return: this policy aims at no return; leave it out")
        return self._nothing[list(rows)]

    def start(self, rows: Sequence[int], target: Floats) -> None:
        """See :class:`Conditioning`."""

    def inputs(self, reward: ArrayLike | None, is_first: Floats, starting: Mask | None = None) -> dict[str, Floats]:
        """See :class:`Conditioning`: rewards are checked and not used."""
        if reward is not None:
            numbers("reward", reward, missing=True)
        return {}

    def commit(self, inputs: Mapping[str, Floats]) -> None:
        """See :class:`Conditioning`."""

    def state(self) -> dict[str, Floats]:
        """See :class:`Conditioning`."""
        return {}

    def restarted(self) -> dict[str, Floats]:
        """See :class:`Conditioning`."""
        return {}

    def check_state(self, state: Mapping[str, Floats]) -> None:
        """See :class:`Conditioning`."""

    def load_state(self, state: Mapping[str, Floats]) -> None:
        """See :class:`Conditioning`."""


class ReturnConditioning:
    """A return to reach, which every reward lowers; the reward itself, too, where the task feeds it back."""

    def __init__(self, spec: StepSpec, task: TaskSpec) -> None:
        self._task, self._batch = task, spec.batch_size
        self._limits = spec.limits
        self._target = np.zeros(self._batch, np.float32)
        self._return_to_go = np.zeros(self._batch, np.float32)
        self._no_reward = np.zeros(self._batch, np.float32)
        self._has_reward = spec.input("reward") is not None
        self._scale = np.float32(task.reward_scale)
        self._most_reward = self._most(self._limits.get("reward"))

    @property
    def return_to_go(self) -> Floats:
        """See :class:`Conditioning`."""
        return self._return_to_go.copy()

    def check_target(self, rows: Sequence[int], target_return: ArrayLike | None) -> Floats:
        """See :class:`Conditioning`."""
        if target_return is None:
            return self._target[list(rows)]
        found = numbers("target_return", target_return)
        given = self._scaled("target_return", found, self._limits.get("return_to_go"))
        if given.shape not in ((), (len(rows),)):
            raise ValueError(f"target_return: expected one number or shape ({len(rows)},), got shape {given.shape}")
        return given

    def start(self, rows: Sequence[int], target: Floats) -> None:
        """See :class:`Conditioning`."""
        chosen = list(rows)
        self._target[chosen] = target
        self._return_to_go[chosen] = self._target[chosen]

    def inputs(self, reward: ArrayLike | None, is_first: Floats, starting: Mask | None = None) -> dict[str, Floats]:
        """See :class:`Conditioning`."""
        rewards = self._one_reward(reward, is_first) if self._batch == 1 else None
        if rewards is None:
            rewards = self._checked_reward(reward, is_first)
        return_to_go, token = self._return_to_go, self._no_reward
        if starting is not None:
            return_to_go = np.where(starting, self._target, return_to_go)
        if rewards is not None:
            return_to_go = return_to_go - rewards
            if self._task.reward_feedback == "observed":
                token = rewards
        found = {"return_to_go": return_to_go}
        return {**found, "reward": token} if self._has_reward else found

    def commit(self, inputs: Mapping[str, Floats]) -> None:
        """See :class:`Conditioning`."""
        self._return_to_go = inputs["return_to_go"]

    def state(self) -> dict[str, Floats]:
        """See :class:`Conditioning`."""
        return {"return_to_go": self._return_to_go.copy(), "target_return": self._target.copy()}

    def restarted(self) -> dict[str, Floats]:
        """See :class:`Conditioning`."""
        return {"return_to_go": self._target.copy(), "target_return": self._target.copy()}

    def check_state(self, state: Mapping[str, Floats]) -> None:
        """See :class:`Conditioning`."""
        for name in ("return_to_go", "target_return"):
            check_saved(TensorSpec(name, (self._batch,), "float32", self._limits.get("return_to_go")), state)

    def load_state(self, state: Mapping[str, Floats]) -> None:
        """See :class:`Conditioning`."""
        self._return_to_go = np.array(state["return_to_go"], np.float32)
        self._target = np.array(state["target_return"], np.float32)

    def _one_reward(self, reward: ArrayLike | None, is_first: Floats) -> Floats | None:
        """What :meth:`_checked_reward` makes of a number that nothing is to be said of; None for all else."""
        if type(reward) not in _NUMBERS:
            return None
        value = float(reward)  # type: ignore[arg-type]
        if is_first[0] > 0:
            value = 0.0
        if not -self._most_reward <= value <= self._most_reward:
            return None
        scaled = np.empty(1, np.float32)
        scaled[0] = value
        scaled /= self._scale
        return scaled

    def _checked_reward(self, reward: ArrayLike | None, is_first: Floats) -> Floats | None:
        """Scaled; 0 for rows at the first step of an episode."""
        if reward is None:
            if self._task.reward_feedback == "observed" and np.count_nonzero(is_first) < len(is_first):
                raise ValueError(
                    "reward: required after the first step of an episode: this bundle was exported with "
                    "reward feedback 'observed'"
                )
            return None
        rewards = numbers("reward", reward, missing=True)
        if rewards.shape == () and self._batch == 1:
            rewards = rewards.reshape(1)
        if rewards.shape != (self._batch,):
            raise ValueError(f"reward: expected shape ({self._batch},), got shape {rewards.shape}")
        if is_first.any():  # what came before an episode is no reward of it, whatever it is
            rewards[is_first > 0] = 0.0
        try:
            return self._scaled("reward", rewards, self._limits.get("reward"))
        except ValueError:
            missing = np.flatnonzero(np.isnan(rewards))
            if not missing.size:
                raise
        raise ValueError(
            f"reward: expected finite values, got nan in row {missing[0]}, which is past the first step of its episode"
        )

    def _scaled(self, name: str, values: NDArray[np.float64], limit: float | None) -> Floats:
        """What came in the environment's units, divided by the reward scale as the original does: in float32."""
        check_magnitude(name, values, self._most(limit))
        return values.astype(np.float32) / self._scale

    def _most(self, limit: float | None) -> float:
        """Of a limit of what is scaled, in the environment's units."""
        return min((MAX_FLOAT32 if limit is None else limit) * self._task.reward_scale, MAX_FLOAT32)


def check_saved(tensor: TensorSpec, state: Mapping[str, Floats]) -> None:
    """Raise ValueError, naming the entry, unless a saved state has a tensor of this name, shape and magnitude."""
    if tensor.name not in state:
        raise ValueError(f"{tensor.name}: missing from the state; is it what state() of a policy returned?")
    check_tensor(tensor, state[tensor.name])


def check_first(first: ArrayLike | None, batch_size: int) -> Mask | None:
    """Which rows start an episode, (B,); None: no row does.

    Raises:
        ValueError: neither a boolean nor a mask with one per row, or 0 and 1 in place of them; a number alone could be
            a row's.
    """
    if first is None or first is False:
        return None
    mask = to_numpy("first", first)
    if mask.dtype.kind in "iuf" and (mask.shape != () or batch_size == 1) and np.isin(mask, (0, 1)).all():
        mask = mask != 0
    if mask.dtype.kind != "b" or mask.shape not in ((), (batch_size,)):
        raise ValueError(f"first: expected a boolean, or a mask of {batch_size} booleans, got {short(first)}")
    if not mask.any():
        return None
    return mask if mask.shape else np.full(batch_size, True)
