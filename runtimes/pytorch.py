"""Runtime of the target `pytorch`: the reference model, token by token, in eager float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from lram_export.checkpoint import Checkpoint, load_folder
from lram_export.config import ModelConfig
from lram_export.dequantization import dequantized_weights
from lram_export.model import ReferenceModel, decode_action, initial_state, prune_logits
from lram_export.runtimes.protocol import (
    LoadedArtifact,
    Runtime,
    State,
    StepInputs,
    StepOutput,
    check_rows,
    check_state,
)
from lram_export.specification import StepSpec
from lram_export.tasks import TaskSpec


class PytorchRuntime:
    """The oracle behind the same protocol as every other target."""

    def __init__(self, model: ReferenceModel, spec: StepSpec, task: TaskSpec) -> None:
        self.spec = spec
        self._model, self._task = model, task
        self._inputs = StepInputs(spec)
        self._state = initial_state(self._config, spec.batch_size)

    @property
    def _config(self) -> ModelConfig:
        return self._model.config

    def step(
        self,
        observation: NDArray[np.generic],
        return_to_go: NDArray[np.float32],
        reward: NDArray[np.float32],
        is_first: NDArray[np.float32],
    ) -> StepOutput:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        self._inputs.fill(observation, return_to_go, reward, is_first)
        tensors = [torch.from_numpy(array) for array in self._inputs.arrays]
        head, self._state = self._model.step(tensors[0], tensors[1], tensors[2], tensors[3], self._state)
        logits = prune_logits(head, self._config, self._task)
        return StepOutput(decode_action(logits, self._config, self._task).numpy(), logits.numpy())

    def state(self) -> State:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        return {name: tensor.numpy().copy() for name, tensor in self._state.items()}

    def load_state(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        check_state(self.spec, state)
        self._state = {t.name: torch.from_numpy(state[t.name].copy()) for t in self.spec.states}

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        chosen = check_rows(rows, self.spec.batch_size)
        for tensor in self.spec.states:
            assert tensor.initial is not None
            self._state[tensor.name] = self._state[tensor.name].clone()
            self._state[tensor.name][chosen] = tensor.initial

    def close(self) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        self._state = {}


def load(artifact: LoadedArtifact, threads: int) -> Runtime:
    """Build the reference model from the artifact's checkpoint; ``threads`` holds for the whole process."""
    torch.set_num_threads(threads)
    model = ReferenceModel.from_checkpoint(artifact_checkpoint(artifact))
    return PytorchRuntime(model, artifact.spec, artifact.task)


def artifact_checkpoint(artifact: LoadedArtifact) -> Checkpoint:
    """The artifact's weights, with the bundle's quantized matrices dequantized."""
    if artifact.quantized is None:
        return load_folder(artifact.directory)
    return load_folder(artifact.directory, dequantized_weights(artifact.config, artifact.quantized.load()))
