"""What a closed step says of itself, where those look who read such files: its metadata properties."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import onnx
from onnx import helper

from lram_export.bundle.bundle import Bundle
from lram_export.conversion.closed.names import Ports
from lram_export.conversion.joints import joint_names
from lram_export.spec.interface import FieldInterface

EXPLOY_VERSION = "0.1.0"
"""Whose names of inputs, outputs and properties are used; exploy takes nothing without one."""

OF_THE_GRAPH = ("lram.limits", "lram.state_initial")
"""Properties of the step graph that are about inputs and states which a closed step has not, or under other names."""


def add_properties(model: onnx.ModelProto, bundle: Bundle, ports: Ports, scheme: str) -> None:
    """Add to the properties of the step graph that say what the bundle is, in place."""
    found = {"lram.format": "onnx-closed", "lram.names": scheme, "exploy_version": json.dumps(EXPLOY_VERSION)}
    rate = bundle.manifest.interface.rate
    if rate is not None:
        found["update_rate"] = json.dumps(int(rate) if rate.is_integer() else rate)
    found |= _of_joints(bundle.manifest.interface.observation, bundle.manifest.interface.action, ports)
    known = {entry.key: entry.value for entry in model.metadata_props if entry.key not in OF_THE_GRAPH}
    helper.set_model_props(model, {**known, **found})


def _of_joints(
    observation: Mapping[str, FieldInterface], action: Mapping[str, FieldInterface], ports: Ports
) -> dict[str, str]:
    """Lists with commas, as mjlab and legged_control2 read them, where the policy has one action and knows its names.

    Only what is true of this graph: it takes and gives the robot's numbers, so an action's scale is 1. How stiff joints
    are and where they stand by default a bundle does not know.
    """
    names = [name for name in ports.actions if name in action]
    found: dict[str, str] = {}
    if len(ports.actions) == 1 and names:
        joints = _listed(joint_names(action[names[0]]))
        if joints is not None:
            found |= {"joint_names": joints, "action_scale": ",".join(["1.000"] * (joints.count(",") + 1))}
    observed = [of.elements for name, of in observation.items() if name in ports.inputs]
    if len(observed) == 1 and len(ports.inputs) == 1:
        elements = _listed(observed[0])
        found |= {} if elements is None else {"observation_names": elements}
    return found


def _listed(names: Sequence[str] | None) -> str | None:
    """Names with commas between; None where there are none, or one has a comma in it."""
    return None if names is None or any("," in name for name in names) else ",".join(names)
