"""`lerobot`: the folder of a policy of LeRobot around the bundle, which the distribution `lerobot_policy_lram` runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lram_export.bundle.bundle import Bundle
from lram_export.conversion.around import MARKER, RobotPlayer, fields_of
from lram_export.conversion.copying import copy_bundle
from lram_export.conversion.formats import Options, Player
from lram_export.integrations.lerobot import (
    ACTION,
    CONFIG_FILE,
    IMAGES,
    POLICY,
    POSTPROCESSOR_FILE,
    PREPROCESSOR_FILE,
    PROGRAM,
    STATE,
    inputs_of,
)
from lram_export.integrations.robot_fields import RobotFields

OPTIONS = ()
PACKAGES = ()
DEVICE = "cpu"
"""Of the tensors that LeRobot gives and takes; what the bundle runs on is its target."""
TO_DEVICE: dict[str, Any] = {"registry_name": "device_processor", "config": {"device": DEVICE, "float_dtype": None}}
BEFORE = [
    {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
    {"registry_name": "to_batch_processor", "config": {}},
    TO_DEVICE,
]
"""Steps of the preprocessor; the first and the last are those that lerobot-eval and lerobot-rollout override."""
AFTER = [TO_DEVICE]


def marker(path: Path) -> str:
    """The bundle's manifest: a ``config.json`` may be anybody's."""
    return MARKER


def write(bundle: Bundle, path: Path, options: Options) -> Callable[[], Player]:
    """See :class:`~lram_export.conversion.formats.Format`."""
    fields = fields_of(bundle, PROGRAM)
    copy = copy_bundle(bundle, path)
    for name, document in (
        (CONFIG_FILE, _config(fields)),
        (PREPROCESSOR_FILE, {"name": Path(PREPROCESSOR_FILE).stem, "steps": BEFORE}),
        (POSTPROCESSOR_FILE, {"name": Path(POSTPROCESSOR_FILE).stem, "steps": AFTER}),
    ):
        (path / name).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return lambda: RobotPlayer(copy, PROGRAM, inputs_of, (ACTION,))


def _config(fields: RobotFields) -> dict[str, Any]:
    """What LeRobot reads into the plugin's ``LramConfig``; what is not said has the value that it has there."""
    inputs = {STATE: {"type": "STATE", "shape": [fields.state_size]}} if fields.state else {}
    for name, image in fields.images.items():
        inputs[f"{IMAGES}.{name}"] = {"type": "VISUAL", "shape": [image.channels, image.height, image.width]}
    return {
        "type": POLICY,
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": {ACTION: {"type": "ACTION", "shape": [fields.action_size]}},
        "device": DEVICE,
        "action_feature_names": None if fields.action_names is None else list(fields.action_names),
    }
