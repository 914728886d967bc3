"""One policy with a row for each of Gymnasium's vector environments does what a policy alone does in each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from lram_export.policy import Policy, load_policy
from lram_export.rollouts.vector import MODES, VectorEpisodes
from tests.conftest import ExportFunction
from tests.rollouts.line import OPTIONS

STEPS = 40
MODE = pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.value)
FEEDBACK = pytest.mark.parametrize("feedback", ["none", "observed"])


class LengthsEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Episodes of 1 to 9 steps, ended or cut off, whose rewards depend on all actions; its last observation is of no
    use to anybody."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, nan_at_end: bool = False) -> None:
        self.nan_at_end = nan_at_end

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.shown = self.np_random.normal(size=3).astype(np.float32)
        self.left, self.cut_off = int(self.np_random.integers(1, 10)), bool(self.np_random.integers(2))
        return self.shown.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.left -= 1
        done = self.left == 0
        self.shown[:2] += np.asarray(action, np.float32)
        shown = np.full(3, np.nan, np.float32) if done and self.nan_at_end else self.shown.copy()
        return shown, float(self.shown.sum()) + 0.25, done and not self.cut_off, done and self.cut_off, {}


@dataclass
class Episode:
    """What a policy did in an episode, and what it got for it."""

    actions: list[np.ndarray] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    returns_to_go: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


def play_alone(policy: Policy, seed: int, steps: int) -> list[Episode]:
    """Whole episodes, at least so many steps, in an ordinary loop."""
    environment, episodes, taken = LengthsEnv(), list[Episode](), 0
    observation, _ = environment.reset(seed=seed)
    while taken < steps:
        episode, done, reward = Episode(), False, None
        policy.reset()
        while not done:
            action = policy.act(observation, reward)
            episode.actions.append(action)
            episode.logits.append(policy.action_logits[0])
            episode.returns_to_go.append(float(policy.return_to_go[0]))
            observation, reward, terminated, truncated, _ = environment.step(action)
            episode.rewards.append(reward)
            done, taken = terminated or truncated, taken + 1
        episodes.append(episode)
        observation, _ = environment.reset()
    return episodes


def play_together(policy: Policy, envs: VectorEnv, blank_idle: bool = False) -> list[list[Episode]]:
    """Per row the episodes that came to an end."""
    episodes = VectorEpisodes.of(envs)
    running, done = [Episode() for _ in range(envs.num_envs)], [list[Episode]() for _ in range(envs.num_envs)]
    observations, _ = envs.reset(seed=7)
    policy.reset()
    rewards = None
    for _ in range(STEPS):
        actions = policy.act(observations, rewards)
        logits, returns_to_go = policy.action_logits, policy.return_to_go
        observations, rewards, terminations, truncations, _ = envs.step(actions)
        step = episodes.step(terminations, truncations)
        for row in np.flatnonzero(step.acted):
            episode = running[row]
            episode.actions.append(actions[row])
            episode.logits.append(logits[row])
            episode.returns_to_go.append(float(returns_to_go[row]))
            episode.rewards.append(float(rewards[row]))
        for row in np.flatnonzero(step.last):
            done[row].append(running[row])
            running[row] = Episode()
        if step.to_reset.any():
            observations, _ = envs.reset(options={"reset_mask": step.to_reset})
        if blank_idle:
            observations[step.idle] = 0
        policy.reset(rows=step.first)
    return done


def check_same(alone: Callable[[int], list[Episode]], together: list[list[Episode]], *, to_the_bit: bool) -> None:
    for row, found in enumerate(together):
        expected = alone(7 + row)
        assert len(found) >= 3 and len({len(episode.actions) for episode in found}) > 1
        for one, other in zip(expected, found, strict=False):
            assert np.array_equal(one.actions, other.actions)
            assert one.rewards == other.rewards
            assert one.returns_to_go == other.returns_to_go
            if to_the_bit:
                assert np.array_equal(one.logits, other.logits)
            else:
                np.testing.assert_allclose(np.stack(one.logits), np.stack(other.logits), atol=1e-4)


def policies(exported: ExportFunction, target: str, feedback: str, rows: int) -> tuple[Policy, Policy]:
    """With one row, and with several."""
    bundle = exported("state_m", feedback=feedback, targets=(target,), options=OPTIONS)
    return load_policy(bundle, target, threads=1), load_policy(bundle, target, threads=1, batch=rows)


@MODE
@FEEDBACK
@pytest.mark.parametrize("target", ["native", "onnxruntime"])
def test_four_in_this_process(target: str, feedback: str, mode: AutoresetMode, exported: ExportFunction) -> None:
    alone, together = policies(exported, target, feedback, 4)
    with alone, together:
        envs = SyncVectorEnv([LengthsEnv] * 4, autoreset_mode=mode)
        found = play_together(together, envs)
        check_same(lambda seed: play_alone(alone, seed, STEPS), found, to_the_bit=target == "native")
        envs.close()


@MODE
@FEEDBACK
def test_eight_in_their_own(feedback: str, mode: AutoresetMode, exported: ExportFunction) -> None:
    alone, together = policies(exported, "native", feedback, 8)
    with alone, together:
        envs = AsyncVectorEnv([LengthsEnv] * 8, autoreset_mode=mode)
        try:
            found = play_together(together, envs)
        finally:
            envs.close()
        check_same(lambda seed: play_alone(alone, seed, STEPS), found, to_the_bit=True)


@MODE
def test_a_last_observation_that_no_policy_takes_does_not_matter(mode: AutoresetMode, exported: ExportFunction) -> None:
    """Only where the environment resets with the next step does the policy see it at all."""
    alone, together = policies(exported, "native", "observed", 4)
    with alone, together:
        envs = SyncVectorEnv([partial(LengthsEnv, nan_at_end=True)] * 4, autoreset_mode=mode)
        if mode == AutoresetMode.NEXT_STEP:
            with pytest.raises(ValueError, match="observation: expected finite values, got nan"):
                play_together(together, envs)
        found = play_together(together, envs, blank_idle=True)
        check_same(lambda seed: play_alone(alone, seed, STEPS), found, to_the_bit=True)


class TestMasks:
    """Rows 0 to 3: goes on, ended, cut off, and ended again right after a reset."""

    ENDED, CUT_OFF = np.array([False, True, False, True]), np.array([False, False, True, False])
    NOTHING, DONE = np.zeros(4, bool), np.array([False, True, True, True])

    def step(self, episodes: VectorEpisodes, *ended: np.ndarray) -> dict[str, list[bool]]:
        return {name: mask.tolist() for name, mask in vars(episodes.step(*ended)).items()}

    def test_reset_with_the_next_step(self) -> None:
        episodes = VectorEpisodes(4, AutoresetMode.NEXT_STEP)
        first, nothing, done = (m.tolist() for m in (self.NOTHING, self.NOTHING, self.DONE))
        step = self.step(episodes, self.ENDED, self.CUT_OFF)
        assert step == {"first": first, "acted": [True] * 4, "last": done, "idle": done, "to_reset": nothing}
        step = self.step(episodes, self.NOTHING, self.NOTHING)
        acted = [True, False, False, False]
        assert step == {"first": done, "acted": acted, "last": nothing, "idle": nothing, "to_reset": nothing}
        step = self.step(episodes, np.array([False, False, False, True]), self.NOTHING)
        last = [False, False, False, True]
        assert step == {"first": nothing, "acted": [True] * 4, "last": last, "idle": last, "to_reset": nothing}

    def test_reset_with_the_same_step(self) -> None:
        episodes = VectorEpisodes(4, AutoresetMode.SAME_STEP)
        nothing, done = self.NOTHING.tolist(), self.DONE.tolist()
        step = self.step(episodes, self.ENDED, self.CUT_OFF)
        assert step == {"first": done, "acted": [True] * 4, "last": done, "idle": nothing, "to_reset": nothing}
        assert not any(self.step(episodes, self.NOTHING, self.NOTHING)["first"])

    def test_reset_by_the_caller(self) -> None:
        episodes = VectorEpisodes(4, "Disabled")
        nothing, done = self.NOTHING.tolist(), self.DONE.tolist()
        step = self.step(episodes, self.ENDED, self.CUT_OFF)
        assert step == {"first": done, "acted": [True] * 4, "last": done, "idle": nothing, "to_reset": done}

    @pytest.mark.parametrize(("rows", "first"), [(None, []), ([False, True, False, False], [2, 3])])
    def test_who_resets_out_of_turn_says_so(self, rows: list[bool] | None, first: list[int]) -> None:
        episodes = VectorEpisodes(4, AutoresetMode.NEXT_STEP)
        episodes.step(self.ENDED, self.CUT_OFF)
        episodes.restart(rows)
        assert np.flatnonzero(episodes.step(self.NOTHING, self.NOTHING).first).tolist() == first

    def test_the_modes_are_gymnasiums(self) -> None:
        assert set(MODES) == {mode.value for mode in AutoresetMode}

    def test_what_does_not_fit_is_refused_and_changes_nothing(self) -> None:
        episodes = VectorEpisodes(4, AutoresetMode.NEXT_STEP)
        episodes.step(self.ENDED, self.CUT_OFF)
        for given, words in (
            (
                (np.zeros(3, bool), self.NOTHING),
                r"terminations: expected bool of shape \(4,\), got bool of shape \(3,\)",
            ),
            ((self.NOTHING, np.zeros(4)), "truncations: expected bool of shape .*, got float64"),
        ):
            with pytest.raises(ValueError, match=words):
                episodes.step(*given)
        assert episodes.step(self.NOTHING, self.NOTHING).first.tolist() == self.DONE.tolist()
        with pytest.raises(ValueError, match="rows: expected bool"):
            episodes.restart([1])
        with pytest.raises(ValueError, match="autoreset_mode: expected one of NextStep, SameStep, Disabled, got None"):
            VectorEpisodes(4, None)
        with pytest.raises(ValueError, match="rows: expected 1 or more, got 0"):
            VectorEpisodes(0, "NextStep")


def test_the_example_runs(exported: ExportFunction) -> None:
    sizes = ["--observation-dim", "3", "--action-dim", "1", "--target-return", "-200", "--reward-scale", "200"]
    bundle = exported("state_m", targets=("native",), options=sizes)
    example = Path(__file__).parent.parent.parent / "examples" / "make_vec.py"
    done = subprocess.run(
        [sys.executable, example, bundle, "Pendulum-v1"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "8 episodes in 4 rows" in done.stdout
