"""Plays a case with efferent's own PolicySession: ``python efferent_session.py CASE MODEL``."""

import json
import sys

import efferent
import numpy as np
import onnxruntime
from efferent.runtime.policy import PolicySession
from efferent.spec.manifest import PolicyManifest


def main(case, model):
    recorded = np.load(case)
    ports = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()
    states = [port for port in ports if port.name.startswith(("state.", "h_in"))]
    (observation,) = (port.name for port in ports if port not in states)
    packed = [port.name for port in states] == ["h_in"]
    handed_back = {
        "state_input": "h_in" if packed else [port.name for port in states],
        "state_output": "h_out" if packed else [f"next_{port.name}" for port in states],
        "state_init": states[0].shape if packed else [port.shape for port in states],
    }
    manifest = PolicyManifest(
        joints=[{"name": f"joint{i}"} for i in range(recorded["action"].shape[-1])],
        observation=[{"term": "custom.everything"}],
        policy={
            "input": observation,
            "output": "actions" if observation == "obs" else "action",
            **(handed_back if states else {}),
        },
    )
    session, different, largest = PolicySession(manifest, model), 0, 0.0
    for _ in range(2):
        session.reset()
        for observed, expected in zip(recorded["observation"], recorded["action"], strict=True):
            found = session.step(observed)
            different += int((found != expected[0]).sum())
            largest = float(np.maximum(largest, np.abs(found - expected[0]).max()))
    version = getattr(efferent, "__version__", "?")
    said = {"actions": 2 * recorded["action"].size, "different": different, "largest": largest}
    print(json.dumps({"version": version, **said}))


if __name__ == "__main__":
    main(*sys.argv[1:])
