"""robosuite's tasks (MuJoCo on the CPU): ``robosuite/Lift``, or with other arms ``robosuite/Lift-Sawyer``.

Of its version 1.4, which Mimicgen and Composuite are made for: arms by ``OSC_POSE`` at 20 Hz, episodes of 500 steps,
shaped rewards, as in the package's published benchmark (robosuite.ai, "Benchmarking").
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lram_export.errors import UsageError

VERSION = "1.4"
EPISODE_STEPS = 500
ARM = "Panda"
CONTROLLER = "OSC_POSE"
CAMERA = "agentview"
PICTURE = 480
"""Height and width of a picture."""


with redirect_stdout(sys.stderr):  # it talks, and a command's standard output is its result
    import robosuite as package

    if not package.__version__.startswith(VERSION + "."):  # it moves arms and draws layouts in other ways
        raise UsageError(
            f"--env: expected robosuite {VERSION}, got {package.__version__}; pip install 'robosuite=={VERSION}.1', or "
            f"let another Python have yours: --env-command robosuite=COMMAND (docs/suites.md)"
        )
    from robosuite.controllers import load_controller_config

    ARMS = tuple(sorted(set(package.ALL_ROBOTS) - {"Baxter"}))
    """Baxter has two."""
    TASKS = tuple(sorted(package.ALL_ENVIRONMENTS))
    """Others may register theirs later."""


@dataclass(frozen=True)
class Rules:
    """How a simulator's task is played.

    Attributes:
        keys: the observations that a policy sees, one after the other.
        steps: after which an episode is cut off.
        until_success: whether success ends an episode, and is its only reward: 1.
    """

    keys: Sequence[str]
    steps: int
    until_success: bool = False


class Randomness:
    """The state of numpy's and Python's global random numbers, which these simulators draw from, of one environment."""

    def __init__(self, seed: int = 0) -> None:
        self._states: tuple[Any, Any] = np.random.RandomState(seed).get_state(), random.Random(seed).getstate()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within, the global random numbers are these; those of others go on afterwards. What is printed goes to
        standard error."""
        others = np.random.get_state(), random.getstate()
        np.random.set_state(self._states[0])
        random.setstate(self._states[1])
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            self._states = np.random.get_state(), random.getstate()
            np.random.set_state(others[0])
            random.setstate(others[1])


class RobosuiteEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float64]]):
    """A simulator of robosuite whose episode is a function of the reset's seed alone.

    Its model is loaded anew for every episode (``hard_reset``); what it draws comes from the seed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  as gymnasium declares it

    def __init__(self, make: Callable[[], Any], rules: Callable[[Any], Rules], render_mode: str | None) -> None:
        self._random = Randomness()
        with self._random.in_use():
            self._simulator = make()
            self._rules = rules(self._simulator)
            seen = self._flat(self._simulator.observation_spec())
        self._count = 0
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, seen.shape, np.float32)
        self.action_space = gymnasium.spaces.Box(*self._simulator.action_spec, dtype=np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """A new layout, drawn with ``seed``; without one, from the environment's own random numbers."""
        super().reset(seed=seed)
        self._random = Randomness(int(self.np_random.integers(2**32)) if seed is None else seed)
        self._count = 0
        with self._random.in_use():
            return self._flat(self._simulator.reset()), {}

    def step(self, action: NDArray[np.float64]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One control step (0.05 s of simulated time)."""
        with self._random.in_use():
            observation, reward, done, _ = self._simulator.step(np.asarray(action, np.float64))
            success = bool(self._simulator._check_success())
        self._count += 1
        if self._rules.until_success:
            reward, done = float(success), success
        truncated = self._count >= self._rules.steps
        return self._flat(observation), float(reward), bool(done) and not truncated, truncated, {"success": success}

    def render(self) -> NDArray[np.uint8]:
        """(480, 480, 3)."""
        drawn: NDArray[np.uint8] = self._simulator.sim.render(PICTURE, PICTURE, camera_name=CAMERA)
        return drawn[::-1]

    def close(self) -> None:
        """Free the simulator."""
        self._simulator.close()

    def _flat(self, observation: dict[str, Any]) -> NDArray[np.float32]:
        return np.concatenate([np.ravel(observation[key]) for key in self._rules.keys]).astype(np.float32)


def settings(render_mode: str | None) -> dict[str, Any]:
    """What all simulators are made with: no windows, no pictures among the observations."""
    return {
        "has_renderer": False,
        "has_offscreen_renderer": render_mode is not None,
        "use_camera_obs": False,
        "ignore_done": True,  # the end is counted here
        "hard_reset": True,
    }


def arms_of(task: str) -> tuple[str, str]:
    """``Lift-Sawyer`` -> ``Lift``, ``Sawyer``; without a name, the Panda."""
    name, _, arm = task.partition("-")
    return name, arm or ARM


def names() -> list[str]:
    """All tasks, with every arm."""
    return [*TASKS, *(f"{task}-{arm}" for task in TASKS for arm in ARMS)]


def make(task: str, render_mode: str | None = None) -> gymnasium.Env[NDArray[np.float32], NDArray[np.float64]]:
    """The task; one for two arms gets two of the same."""
    name, arm = arms_of(task)
    arms = [arm, arm] if name.startswith("TwoArm") else [arm]

    def simulator() -> Any:
        controllers = [load_controller_config(default_controller=CONTROLLER) for _ in arms]
        return package.make(
            name, robots=arms, controller_configs=controllers, reward_shaping=True, **settings(render_mode)
        )

    def rules(simulator: Any) -> Rules:
        arms = (f"robot{place}_proprio-state" for place in range(len(simulator.robots)))
        return Rules(("object-state", *arms), EPISODE_STEPS)

    return RobosuiteEnv(simulator, rules, render_mode)
