"""A policy behind Triton's Python backend: one for every sequence, on any target of the bundle beside this file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from lram_export import Policy, load_policy

BUNDLE = "bundle.lram"


class TritonPythonModel:
    """What Triton makes of this file, once for every instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        self.bundle = Path(args["model_repository"]) / args["model_version"] / BUNDLE
        self.target = parameters.get("target") or None
        self.inputs = [port["name"] for port in config["input"]]
        self.outputs = [port["name"] for port in config["output"]]
        self.most = config["sequence_batching"]["oldest"]["max_candidate_sequences"]
        self.running: dict[int, Policy] = {}  # sequence -> policy; the one that has waited longest comes first
        self.free = [self.load()]  # a bundle that does not load is noticed here

    def load(self) -> Policy:
        return load_policy(self.bundle, self.target, batch=1)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.respond(request) for request in requests]

    def respond(self, request: Any) -> Any:
        try:
            return pb_utils.InferenceResponse(self.step(request))
        except Exception as error:  # whatever it is, the other sequences go on
            return pb_utils.InferenceResponse([], pb_utils.TritonError(f"{type(error).__name__}: {error}"))

    def step(self, request: Any) -> list[Any]:
        start, end, sequence = (value_of(request, name).item() for name in ("START", "END", "CORRID"))
        policy = self.running[sequence] = self.begun(sequence) if start else self.running.pop(sequence)
        try:
            given = {name: value_of(request, name) for name in self.inputs}
            reward = given.pop("reward", None)
            shapes = {tensor.name: tensor.shape for tensor in policy.spec.inputs}
            observation = {name: values.reshape(shapes[name]) for name, values in given.items()}
            found = policy.step(observation, None if reward is None else reward.reshape(1))
        finally:
            if end:
                self.free.append(self.running.pop(sequence))
        return [tensor_of(name, found[name]) for name in self.outputs]

    def begun(self, sequence: int) -> Policy:
        """A policy at the start of an episode.

        Triton says nothing of a sequence that ended because it was idle, and keeps to the most sequences at a time. So
        where there are as many policies, the one that has waited longest is nobody's.
        """
        if sequence in self.running:
            policy = self.running.pop(sequence)
        elif self.free:
            policy = self.free.pop()
        elif len(self.running) < self.most:
            policy = self.load()
        else:
            policy = self.running.pop(next(iter(self.running)))
        policy.reset()
        return policy

    def finalize(self) -> None:
        for policy in (*self.running.values(), *self.free):
            policy.close()


# Not `as_numpy` and `Tensor(name, array)`: up to Triton 24.10 they read arrays of numpy 2 as if they were numpy 1's,
# and take a tensor for empty without a word.


def value_of(request: Any, name: str) -> Any:
    return np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name))


def tensor_of(name: str, values: Any) -> Any:
    """With a row, and at least one size behind it."""
    return pb_utils.Tensor.from_dlpack(name, np.ascontiguousarray(values.reshape(1, *(values.shape[1:] or (1,)))))
