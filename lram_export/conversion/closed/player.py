"""Runs a closed step in ONNX Runtime, as its users do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.conversion.closed.names import Ports
from lram_export.conversion.closed.source import TARGET
from lram_export.conversion.formats import Arrays


class OnnxPlayer:
    """One robot; see :class:`~lram_export.conversion.formats.Player`."""

    target = TARGET
    exact = True

    def __init__(
        self, path: Path, ports: Ports, threads: int, initial: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        """Open a file.

        Args:
            path: of the model.
            ports: what it has to have.
            threads: of the session.
            initial: what states start with that do not start at zero, by the name of their input.
        """
        import onnxruntime

        from lram_export.runtimes.onnxruntime import session_options

        self._ports, self._initial = ports, dict(initial or {})
        self._session = onnxruntime.InferenceSession(
            str(path), session_options(threads, rows=1), providers=["CPUExecutionProvider"]
        )
        self.inputs = tuple(tensor.name for tensor in ports.inputs.values())
        self.outputs = tuple(tensor.name for tensor in ports.actions.values())
        self.states = tuple(state.input for state in ports.states)
        self._outputs = [*self.outputs, *(state.output for state in ports.states)]
        self._state: dict[str, NDArray[Any]] = {}
        self.start()

    def start(self, state: float | None = None) -> None:
        """See :class:`~lram_export.conversion.formats.Player`."""
        value = 0.0 if state is None else state
        self._state = {port.input: np.full(port.shape, value, np.float32) for port in self._ports.states}
        if state is None:
            self._state |= self._initial

    def step(self, given: Arrays) -> dict[str, NDArray[Any]]:
        """See :class:`~lram_export.conversion.formats.Player`."""
        named = {tensor.name: given[field] for field, tensor in self._ports.inputs.items()}
        found = dict(zip(self._outputs, self._session.run(self._outputs, {**named, **self._state}), strict=True))
        self._state = {port.input: found[port.output] for port in self._ports.states}
        return {field: np.asarray(found[tensor.name]) for field, tensor in self._ports.actions.items()}
