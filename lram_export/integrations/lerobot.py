"""The words of LeRobot that a policy's folder and its plugin, `lerobot_policy_lram`, share."""

from __future__ import annotations

from lram_export.integrations.robot_fields import RobotFields

PROGRAM = "LeRobot"
POLICY = "lram"
"""The type of the policy."""
STATE, IMAGES, ACTION = "observation.state", "observation.images", "action"
CONFIG_FILE = "config.json"
PREPROCESSOR_FILE, POSTPROCESSOR_FILE = "policy_preprocessor.json", "policy_postprocessor.json"


def image_keys(fields: RobotFields) -> dict[str, str]:
    """What LeRobot calls an image -> its name."""
    return {f"{IMAGES}.{name}": name for name in fields.images}


def inputs_of(fields: RobotFields) -> list[str]:
    """What has to be given."""
    return [*([STATE] if fields.state else []), *image_keys(fields)]
