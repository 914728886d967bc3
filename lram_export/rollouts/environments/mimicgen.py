"""Mimicgen's tasks as in the training data: ``mimicgen/coffee_d0``, or with the arms that the authors of the published
models added: ``mimicgen/coffee_D0_robot_IIWA_gripper_Robotiq85Gripper``.

What a policy sees, the controller, the horizons and the reward are those of ml-jku/LRAM
(``src/envs/mimicgen_utils.py``): success ends the episode, and is its only reward.
"""

from __future__ import annotations

import re
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lram_export.errors import UsageError
from lram_export.rollouts.environments.robosuite import ARM, RobosuiteEnv, Rules, settings

KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object-state")
LONGER = {
    "CoffeePreparation": 800, "HammerCleanup": 800, "Kitchen": 800, "MugCleanup": 500, "NutAssembly": 500,
    "PickPlace": 1000, "ThreePieceAssembly": 500,
}  # fmt: skip
"""Steps of an episode, where they are more than 400."""
STEPS = 400
SAWYERS = ("NutAssembly", "PickPlace")
"""Tasks whose demonstrations are a Sawyer's."""
CONTROLLER = {
    "type": "OSC_POSE", "input_max": 1, "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5], "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150, "damping": 1, "impedance_mode": "fixed", "kp_limits": [0, 300], "damping_limits": [0, 10],
    "position_limits": None, "orientation_limits": None, "uncouple_pos_ori": True, "control_delta": True,
    "interpolation": None, "ramp_ratio": 0.2,
}  # fmt: skip
OTHER_ARMS = (
    "robot_IIWA_gripper_Robotiq85Gripper", "robot_Sawyer_gripper_RethinkGripper", "robot_UR5e_gripper_Robotiq85Gripper",
)  # fmt: skip
_NAME = re.compile(r"(?P<task>[a-z_]+)_[dD](?P<layout>\d)(_robot_(?P<arm>\w+?)_gripper_(?P<gripper>\w+))?")
"""A task as the table writes it."""
_REGISTERED = re.compile(r"(?P<task>[A-Za-z]+)_D(?P<layout>\d)")

_found = find_spec("mimicgen")  # imports nothing: whose code another package of the name has, nobody knows
if _found is None or not any((Path(place) / "envs").is_dir() for place in _found.submodule_search_locations or ()):
    raise UsageError(
        "--env: the installed 'mimicgen' is not the simulator, which is not on PyPI; "
        "pip uninstall mimicgen && pip install git+https://github.com/NVlabs/mimicgen"
    )
with redirect_stdout(sys.stderr):  # it prints what it could not import
    import mimicgen  # noqa: F401  registers the tasks
    import robosuite


def names() -> list[str]:
    """All tasks of the installed package, with the arm of their demonstrations and with the others."""
    plain = sorted(_table_name(name) for name in robosuite.ALL_ENVIRONMENTS if _REGISTERED.fullmatch(name))
    return [*plain, *(f"{name}_{arms}" for name in plain for arms in OTHER_ARMS)]


def canonical(task: str) -> str:
    """The name of a task for :func:`names`, also for the simulator's ``Coffee_D0``, and however the table writes D."""
    if _REGISTERED.fullmatch(task):
        return _table_name(task)
    return re.sub(r"_D(\d)", r"_d\1", task, count=1)


def _table_name(registered: str) -> str:
    """``ThreePieceAssembly_D0`` -> ``three_piece_assembly_d0``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", registered).lower()


def make(task: str, render_mode: str | None = None) -> gymnasium.Env[NDArray[np.float32], NDArray[np.float64]]:
    """The task, with the gripper that its name says."""
    parts = _NAME.fullmatch(task)
    if parts is None:
        raise UsageError(f"--env mimicgen/{task}: expected a task such as coffee_d0")
    name = "".join(word.capitalize() for word in parts["task"].split("_"))
    arm = parts["arm"] or ("Sawyer" if name in SAWYERS else ARM)

    def simulator() -> Any:
        return robosuite.make(
            f"{name}_D{parts['layout']}",
            robots=arm,
            gripper_types=parts["gripper"] or "default",
            controller_configs=CONTROLLER,
            reward_shaping=False,
            **settings(render_mode),
        )

    steps = LONGER.get(name, STEPS)
    return RobosuiteEnv(simulator, lambda simulator: Rules(KEYS, steps, until_success=True), render_mode)
