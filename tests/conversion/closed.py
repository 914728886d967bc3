"""Plays a closed file as a stranger does: onnxruntime, the file's own names, states from zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lram_export import Bundle, Policy
from lram_export.policy import observations_of

STEPS = 48
Steps = list[dict[str, NDArray[Any]]]


class Stranger:
    """Knows the file, and what comes out under which name goes in again under which."""

    def __init__(self, path: Path, scheme: str = "state") -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {port.name: port for port in self.session.get_inputs()}
        self.outputs = [port.name for port in self.session.get_outputs()]
        self.feedback = {name: into for name in self.outputs if (into := fed_back(name, scheme)) in self.inputs}
        self.state: dict[str, NDArray[Any]] = {}
        self.start()

    def start(self, value: float = 0.0) -> None:
        self.state = {n: np.full(self.inputs[n].shape, value, np.float32) for n in self.feedback.values()}

    def step(self, given: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        found = dict(zip(self.outputs, self.session.run(self.outputs, {**given, **self.state}), strict=True))
        self.state = {into: found.pop(out) for out, into in self.feedback.items()}
        return found


def fed_back(output: str, scheme: str) -> str:
    """The input that takes an output at the next step."""
    if scheme == "packed":
        return output.replace("h_out", "h_in")
    if scheme == "memory":
        return output.removesuffix(".out") + ".in"
    return output.removeprefix("next_")


def observed(bundle: Path, seed: int = 5, steps: int = STEPS) -> Steps:
    """Observations of one robot, with a row."""
    rng = np.random.default_rng(seed)
    tensors = observations_of(Bundle.open(bundle).manifest.spec.with_batch(1))
    return [
        {
            t.name: rng.integers(0, 256, t.shape, np.uint8)
            if t.dtype == "uint8"
            else rng.standard_normal(t.shape, np.float32)
            for t in tensors
        }
        for _ in range(steps)
    ]


def assert_same_actions(policy: Policy, file: Stranger, steps: Steps, names: dict[str, str] | None = None) -> None:
    """Two episodes: not an action differs. ``names``: our name -> the file's, where they are others."""
    given, count = names or {}, 0
    for episode in range(2):
        policy.reset()
        file.start()
        for step in steps[:: -1 if episode else 1]:
            expected = policy.step(step)
            found = file.step({given.get(name, name): values for name, values in step.items()})
            for name, values in found.items():
                own = next((ours for ours, theirs in given.items() if theirs == name), name)
                np.testing.assert_array_equal(values, expected[own], err_msg=name)
                count += values.size
    assert count >= 2 * len(steps)
