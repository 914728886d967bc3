"""Runtime of the target `pytorch`: the reference model in eager float32; a module of one's own as it was traced."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from lram_export.bundle.artifact import LoadedArtifact
from lram_export.bundle.identity import IDENTITY_FILE, read_identity
from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.checkpoints.dequantized import dequantized_weights
from lram_export.checkpoints.folder import CONFIG_FILE, WEIGHTS_FILE, load_folder
from lram_export.model.config import ModelConfig, read_model
from lram_export.model.head_modules import chosen_actions, head_modules
from lram_export.model.reference import ReferenceModel, reference_model
from lram_export.runtimes.base import BaseRuntime
from lram_export.runtimes.guard import use_threads_of
from lram_export.runtimes.protocol import Runtime, State, StepOutput
from lram_export.runtimes.pytorch_program import load as load_program
from lram_export.spec.interface import Interface
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import StepSpec
from lram_export.system.machine import threads_beside_others


class PytorchRuntime(BaseRuntime):
    """The oracle behind the same protocol as every other target."""

    in_place = False

    def __init__(
        self, model: ReferenceModel, spec: StepSpec, task: TaskSpec, interface: Interface | None = None
    ) -> None:
        tensors = {name: tensor.numpy() for name, tensor in model.initial_tensors(task).items()}
        super().__init__(spec, tensors)
        self._model, self._task = model, task
        self._values = chosen_actions(model.config.head, task, Interface() if interface is None else interface)
        self._state = self._next = model.initial_state(spec.batch_size, task)

    @property
    def _config(self) -> ModelConfig:
        return self._model.config

    def _step(self) -> StepOutput:
        logits, self._next = self._model.step(self._tensors(), self._state)
        return self._decide(logits)

    def _tensors(self) -> dict[str, torch.Tensor]:
        """The inputs by name."""
        arrays = zip(self.spec.inputs, self._inputs.arrays, strict=True)
        return {tensor.name: torch.from_numpy(array) for tensor, array in arrays}

    def _decide(self, all_logits: torch.Tensor) -> StepOutput:
        """The action that is chosen from all logits of the head."""
        head = self._config.head
        modules = head_modules(head)
        logits = modules.select(all_logits, head, self._task)
        action = modules.decode(logits, head, self._task, self._values)
        return StepOutput(self.spec, (action.numpy(), logits.numpy()))

    def _commit(self) -> None:
        self._state = self._next

    def _save(self) -> State:
        return {name: tensor.numpy().copy() for name, tensor in self._state.items()}

    def _load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        self._state = {t.name: torch.from_numpy(state[t.name].copy()) for t in self.spec.states}

    def _restart(self, rows: list[int]) -> None:
        for tensor in self.spec.states:
            self._state[tensor.name] = self._state[tensor.name].clone()
            self._state[tensor.name][rows] = torch.tensor(self._initial[tensor.name][rows])

    def _free(self) -> None:
        self._state = self._next = {}


def load(artifact: LoadedArtifact, threads: int, spin: bool = True) -> Runtime:
    """Build the reference model from the artifact's checkpoint; ``threads`` is the most, for the whole process.

    Token by token, a small model is all hand-over between threads: where others want the same
    cores, two take five to twenty times as long as one. ``spin`` changes nothing: how long threads look for work is
    settled (``OMP_WAIT_POLICY``) when torch is imported.
    """
    use_threads_of("torch")
    if artifact.task is None:
        torch.set_num_threads(threads)
        return load_program(artifact)
    checkpoint = artifact_checkpoint(artifact)
    torch.set_num_threads(min(threads, threads_beside_others(checkpoint.parameters)))
    model = reference_model(checkpoint.config, checkpoint.weights, artifact.task, artifact.interface)
    return PytorchRuntime(model, artifact.spec, artifact.task, artifact.interface)


def artifact_checkpoint(artifact: LoadedArtifact) -> Checkpoint:
    """The artifact's weights, with the bundle's quantized matrices dequantized."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        artifact.file(name)
    if artifact.identity.complete:
        path = artifact.file(IDENTITY_FILE)
        artifact.identity.check(path, read_identity(path))
    if artifact.quantized is None:
        return load_folder(artifact.directory)
    config = read_model(artifact.model, artifact.directory.parent)
    return load_folder(artifact.directory, dequantized_weights(config, artifact.quantized.load()))
