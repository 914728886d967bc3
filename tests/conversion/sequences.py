"""What Triton does around an ONNX model that it serves by sequences, from `config.pbtxt` alone, and robots that ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lram_export import Policy
from tests.conversion.closed import Steps
from tests.conversion.pbtxt import read

TYPES = {"TYPE_FP32": np.float32, "TYPE_UINT8": np.uint8, "TYPE_INT64": np.int64}
Request = tuple[int, dict[str, NDArray[Any]], bool]
"""Sequence, inputs with a row, whether it starts."""


def session_of(path: Path) -> Any:
    """The model of a folder, as it is."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    file = path / "1" / "model.onnx"
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


class Server:
    """Every batch is what is asked at a time. A state is zero at the start if the configuration says so, else NaN;
    ``dirty``: it is what it was before."""

    def __init__(self, path: Path, *, dirty: bool = False) -> None:
        self.session, self.dirty = session_of(path), dirty
        self.config = read((path / "config.pbtxt").read_text())
        (batching,) = self.config["sequence_batching"]
        ((control,),) = [entry["control"] for entry in batching["control_input"]]
        assert control["kind"] == ["CONTROL_SEQUENCE_START"] and control["fp32_false_true"] == [0, 1]
        self.control = batching["control_input"][0]["name"][0]
        self.states = batching["state"]
        self.outputs = [port.name for port in self.session.get_outputs()]
        self.kept: dict[int, dict[str, NDArray[Any]]] = {}

    def infer(self, *requests: Request) -> list[dict[str, NDArray[Any]]]:
        """One batch."""
        assert len(requests) <= self.config["max_batch_size"][0]
        for sequence, _, start in requests:
            if start and not (self.dirty and sequence in self.kept):
                self.kept[sequence] = {state["input_name"][0]: _initial(state) for state in self.states}
        rows = [{**given, **self.kept[sequence]} for sequence, given, _ in requests]
        batch = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        batch[self.control] = np.array([[start] for *_, start in requests], np.float32)
        found = dict(zip(self.outputs, self.session.run(self.outputs, batch), strict=True))
        results = []
        for i, (sequence, *_) in enumerate(requests):
            row = {name: values[[i]] for name, values in found.items()}
            self.kept[sequence] = {s["input_name"][0]: row.pop(s["output_name"][0]) for s in self.states}
            results.append(row)
        return results


def _initial(state: dict[str, Any]) -> NDArray[Any]:
    shape = (1, *state["dims"])
    (initial,) = state.get("initial_state", [{}])
    if initial.get("zero_data") == [True]:
        assert initial["dims"] == state["dims"] and initial["data_type"] == state["data_type"]
        return np.zeros(shape, np.float32)
    return np.full(shape, np.nan, np.float32)


def interleaved(robots: list[Steps]) -> list[list[tuple[int, int, bool]]]:
    """Who asks when, in batches of (sequence, step, whether it starts): three robots that begin one after another; the
    first begins anew under its number in between, and the second pauses."""
    batches, steps = [], [0] * len(robots)
    for tick in range(2 * len(robots[0])):
        batch = []
        for robot, own in enumerate(robots):
            if tick < 2 * robot or (robot == 1 and tick % 3 == 0):
                continue
            step = steps[robot] % len(own)
            batch.append((robot, step, step == 0 or (robot == 0 and tick == 5)))
            steps[robot] += 1
        batches.append(batch)
    return batches


def assert_as_private_policies(server: Server, policies: list[Policy], robots: list[Steps]) -> None:
    """Not an action of the interleaved robots is another one than that of a policy which is the robot's alone."""
    count = 0
    for batch in interleaved(robots):
        found = server.infer(*[(robot + 1, robots[robot][step], start) for robot, step, start in batch])
        for (robot, step, start), row in zip(batch, found, strict=True):
            expected = policies[robot].step(robots[robot][step], first=start)
            for name, values in row.items():
                np.testing.assert_array_equal(values.reshape(expected[name].shape), expected[name], err_msg=name)
                count += values.size
    assert count >= 48
