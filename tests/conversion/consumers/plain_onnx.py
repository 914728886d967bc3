"""Plays a case in whatever ONNX Runtime is here; needs numpy and onnxruntime, of old versions too.

``python plain_onnx.py CASE MODEL``: observations and actions of one robot, as arrays. Two episodes; the second starts
from NaN.
"""

import json
import sys

import numpy as np
import onnxruntime


def fed_back(name, inputs):
    """The input that takes an output at the next step; None: it is no state."""
    others = (name.replace("next_state.", "state."), name.replace(".out", ".in"), name.replace("h_out", "h_in"))
    return next((other for other in others if other != name and other in inputs), None)


def main(case, model):
    recorded = np.load(case)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    inputs = {port.name: port for port in session.get_inputs()}
    outputs = [port.name for port in session.get_outputs()]
    states = {name: fed_back(name, inputs) for name in outputs if fed_back(name, inputs)}
    (observation,) = set(inputs) - set(states.values())
    (action,) = set(outputs) - set(states)
    different, largest = 0, 0.0
    for start in (0.0, np.nan):
        state = {name: np.full(inputs[name].shape, start, np.float32) for name in states.values()}
        for observed, expected in zip(recorded["observation"], recorded["action"], strict=True):
            found = dict(zip(outputs, session.run(outputs, {observation: observed, **state}), strict=True))
            state = {into: found[name] for name, into in states.items()}
            different += int((found[action] != expected).sum())
            largest = float(np.maximum(largest, np.abs(found[action] - expected).max()))
    actions = 2 * recorded["action"].size
    said = {"actions": actions, "different": different, "largest": largest}
    print(json.dumps({"version": onnxruntime.__version__, **said}))


if __name__ == "__main__":
    main(*sys.argv[1:])
