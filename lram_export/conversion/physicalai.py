"""`physicalai`: a `policy_package` of Intel's physicalai around the bundle, which its adapter `lram` runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lram_export.bundle.bundle import Bundle
from lram_export.bundle.manifest import MANIFEST_FILE
from lram_export.conversion.around import MARKER, RobotPlayer, fields_of
from lram_export.conversion.copying import copy_bundle
from lram_export.conversion.formats import Options, Player
from lram_export.integrations.physicalai import BACKEND
from lram_export.integrations.physicalai.package import ACTION, PROGRAM, STATE, inputs_of
from lram_export.integrations.robot_fields import RobotFields
from lram_export.integrations.robot_policy import BUNDLE_FOLDER
from lram_export.version import __version__

OPTIONS = ()
PACKAGES = ()
VERSION = "1.0"
RUNNER = "lram_export.integrations.physicalai.plugin.LramRunner"
FEATURE = "physicalai.inference.data.features.InferenceFeature"
ROBOT = "main"
"""What the one robot is called."""
NUMBERS = "float32"


def marker(path: Path) -> str:
    """The bundle's own manifest: a ``manifest.json`` of the folder may be anybody's."""
    return MARKER


def write(bundle: Bundle, path: Path, options: Options) -> Callable[[], Player]:
    """See :class:`~lram_export.conversion.formats.Format`."""
    fields = fields_of(bundle, PROGRAM)
    copy = copy_bundle(bundle, path)
    document = _manifest(bundle.manifest.name, fields)
    (path / MANIFEST_FILE).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return lambda: RobotPlayer(copy, PROGRAM, inputs_of, (ACTION,))


def _manifest(name: str, fields: RobotFields) -> dict[str, Any]:
    state = _vector(fields.state_size, fields.state_names)
    action = _vector(fields.action_size, fields.action_names)
    return {
        "format": "policy_package",
        "version": VERSION,
        "policy": {"name": _policy_name(name)},
        "model": {
            "n_obs_steps": 1,
            "runner": {"class_path": RUNNER, "init_args": {}},
            "artifacts": {BACKEND: BUNDLE_FOLDER},
            # its features know no uint8, so an image is told below, as a camera
            "input_features": [_feature("STATE", STATE, fields.state_size)] if fields.state else [],
            "output_features": [_feature("ACTION", ACTION, fields.action_size)],
        },
        "hardware": {
            "robots": [{"name": ROBOT, **({"state": state} if fields.state else {}), "action": action}],
            "cameras": [
                {"name": name, "shape": [image.channels, image.height, image.width], "dtype": "uint8"}
                for name, image in fields.images.items()
            ],
        },
        "metadata": {"created_by": f"lram-export {__version__}"},
    }


def _policy_name(name: str) -> str:
    """A bundle's name with what physicalai takes: letters, digits, hyphens, underscores and dots."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-") or "policy"


def _vector(size: int, names: tuple[str, ...] | None) -> dict[str, Any]:
    return {"shape": [size], "dtype": NUMBERS, **({} if names is None else {"order": list(names)})}


def _feature(kind: str, name: str, size: int) -> dict[str, Any]:
    return {"class_path": FEATURE, "init_args": {"ftype": kind, "shape": [size], "name": name, "dtype": NUMBERS}}
