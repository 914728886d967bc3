"""Gymnasium's vector environments: which rows begin an episode with what they show, and whose the rewards are.

A row whose episode has ended is reset by the environment itself, at once or with the next step, or by the caller
(``envs.metadata["autoreset_mode"]``). A policy with as many rows has to be told in which of them the observation is an
episode's first::

    episodes = VectorEpisodes.of(envs)
    observations, _ = envs.reset(seed=0)
    policy.reset()
    rewards = None
    while ...:
        actions = policy.act(observations, rewards)
        observations, rewards, terminations, truncations, _ = envs.step(actions)
        step = episodes.step(terminations, truncations)
        if step.to_reset.any():  # only where the environment does not reset by itself
            observations, _ = envs.reset(options={"reset_mask": step.to_reset})
        policy.reset(rows=step.first)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Mask = NDArray[np.bool_]
NEXT_STEP, SAME_STEP, DISABLED = "NextStep", "SameStep", "Disabled"
MODES = (NEXT_STEP, SAME_STEP, DISABLED)
"""Values of ``gymnasium.vector.AutoresetMode``."""


class VectorEnvironment(Protocol):
    """What is asked of a ``gymnasium.vector.VectorEnv``."""

    @property
    def num_envs(self) -> int:
        """Rows."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Its ``autoreset_mode`` among other things."""


@dataclass(frozen=True)
class VectorStep:
    """What a step of N environments was to each of them: masks, (N,) bool.

    Attributes:
        first: the observation that the policy sees next begins an episode; reset these rows of the policy. It ignores
            their rewards then.
        acted: the environment took the action, and the reward is what it brought, in the episode in which it was
            taken. Elsewhere the step was a reset, the action was ignored, and the reward is none.
        last: the action was its episode's last.
        idle: the next action will be ignored, since the environment resets then. The policy's row steps all the same:
            where a last observation may be one that it refuses (NaN, say), ``observations[step.idle] = 0``.
        to_reset: rows that the caller has to reset now, in place of the environment, before the policy acts.
    """

    first: Mask
    acted: Mask
    last: Mask
    idle: Mask
    to_reset: Mask


class VectorEpisodes:
    """Follows the episodes of N environments that step together.

    Args:
        rows: N.
        mode: when a row is reset whose episode has ended: a ``gymnasium.vector.AutoresetMode`` or its value.

    Raises:
        ValueError: another mode, or no row.
    """

    def __init__(self, rows: int, mode: object) -> None:
        self.mode = str(getattr(mode, "value", mode))
        if self.mode not in MODES:
            raise ValueError(f"autoreset_mode: expected one of {', '.join(MODES)}, got {mode!r}")
        if rows < 1:
            raise ValueError(f"rows: expected 1 or more, got {rows}")
        self._rows = rows
        self._ended = np.zeros(rows, np.bool_)

    @classmethod
    def of(cls, envs: VectorEnvironment) -> VectorEpisodes:
        """The episodes of an environment that was just reset.

        Raises:
            ValueError: its metadata do not say when it resets; name the mode yourself then.
        """
        return cls(envs.num_envs, envs.metadata.get("autoreset_mode"))

    def step(self, terminations: ArrayLike, truncations: ArrayLike) -> VectorStep:
        """What ``envs.step`` has just done, from what it returned, (N,) bool each.

        Raises:
            ValueError: naming the array, if it is of another shape or type; nothing has changed then.
        """
        ended = self._mask("terminations", terminations) | self._mask("truncations", truncations)
        nothing = np.zeros(self._rows, np.bool_)
        if self.mode != NEXT_STEP:
            to_reset = ended.copy() if self.mode == DISABLED else nothing
            return VectorStep(first=ended.copy(), acted=~nothing, last=ended, idle=nothing, to_reset=to_reset)
        was_reset, self._ended = self._ended, ended
        last = ended & ~was_reset
        return VectorStep(first=was_reset, acted=~was_reset, last=last, idle=ended.copy(), to_reset=nothing)

    def restart(self, rows: ArrayLike | None = None) -> None:
        """The caller has reset the environments by itself: all, or those of a mask, (N,) bool; reset the policy, too.

        Raises:
            ValueError: a mask of another shape or type.
        """
        self._ended = self._ended & ~(np.ones(self._rows, np.bool_) if rows is None else self._mask("rows", rows))

    def _mask(self, name: str, values: ArrayLike) -> Mask:
        array = np.asarray(values)
        if array.shape != (self._rows,) or array.dtype != np.bool_:
            raise ValueError(
                f"{name}: expected bool of shape ({self._rows},), got {array.dtype} of shape {array.shape}"
            )
        return array.astype(np.bool_)
