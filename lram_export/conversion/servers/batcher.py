"""Runs an ONNX model as Triton does: a state for each sequence, whose rows make a batch with those of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.conversion.closed.names import Ports
from lram_export.conversion.closed.source import TARGET
from lram_export.conversion.formats import Arrays


@dataclass(frozen=True)
class Request:
    """One row of a sequence.

    Attributes:
        sequence: which.
        given: inputs of the model, with a row.
        start: whether the sequence begins; ``initial``: with what everywhere in its state.
    """

    sequence: int
    given: Arrays
    start: bool = False
    initial: float = 0.0


class SequenceBatcher:
    """The strategy `oldest` of Triton's sequence batcher with implicit state, as its sources have it.

    A sequence that starts has its initial state and 1 in the control; states are joined along the rows, taken apart
    again, and kept.
    """

    def __init__(self, path: Path, ports: Ports, control: str | None, threads: int) -> None:
        """Open a model; ``control`` is the input that is 1 where a sequence starts, if there is one."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._ports, self._control = ports, control
        self._actions = [tensor.name for tensor in ports.actions.values()]
        self._outputs = [*self._actions, *(state.output for state in ports.states)]
        self._states: dict[int, dict[str, NDArray[Any]]] = {}

    def execute(self, requests: Sequence[Request]) -> list[dict[str, NDArray[Any]]]:
        """Take one step of each of some sequences, all in one batch; returns their outputs, with a row each."""
        for request in requests:
            if request.start:
                self._states[request.sequence] = {
                    state.input: np.full((1, *state.shape[1:]), request.initial, np.float32)
                    for state in self._ports.states
                }
        rows = [{**request.given, **self._states.get(request.sequence, {})} for request in requests]
        batch = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        if self._control is not None:
            batch[self._control] = np.array([[request.start] for request in requests], np.float32)
        found = dict(zip(self._outputs, self._session.run(self._outputs, batch), strict=True))
        for i, request in enumerate(requests):
            self._states[request.sequence] = {s.input: found[s.output][i : i + 1] for s in self._ports.states}
        return [{name: found[name][i : i + 1] for name in self._actions} for i in range(len(requests))]


class BatchPlayer:
    """One robot between two others in every batch; see :class:`~lram_export.conversion.formats.Player`.

    One of the others goes on for ever and observes what the robot did a step ago; the other begins an episode at every
    step, out of a state of NaN.
    """

    target = TARGET
    exact = False  # sums of several rows are in another order

    def __init__(self, path: Path, ports: Ports, control: str | None, threads: int) -> None:
        self._batcher = SequenceBatcher(path, ports, control, threads)
        self._ports = ports
        self.inputs = tuple(tensor.name for tensor in ports.inputs.values())
        self.outputs = tuple(tensor.name for tensor in ports.actions.values())
        self.states = tuple(state.input for state in ports.states)
        self._start: float | None = 0.0
        self._before: Arrays | None = None

    def start(self, state: float | None = None) -> None:
        """See :class:`~lram_export.conversion.formats.Player`."""
        self._start, self._before = state or 0.0, None

    def step(self, given: Arrays) -> dict[str, NDArray[Any]]:
        """See :class:`~lram_export.conversion.formats.Player`."""
        named = {tensor.name: given[field].reshape(tensor.shape) for field, tensor in self._ports.inputs.items()}
        start, beside = self._start is not None, self._before
        requests = [
            Request(1, named if beside is None else beside, start),
            Request(2, named, start, self._start or 0.0),
            Request(3, named, True, np.nan),
        ]
        found = self._batcher.execute(requests)[1]
        self._start, self._before = None, named
        return {field: found[tensor.name] for field, tensor in self._ports.actions.items()}
