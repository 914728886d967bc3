"""From a policy of one's own to a lowered policy."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lram_export.bundle.manifest import STEP_MODULE
from lram_export.errors import UsageError, describe
from lram_export.lowering.policy import LoweredPolicy
from lram_export.spec.codes import QuantizedMatrix
from lram_export.step_module.checking import ModuleFacts, check_module
from lram_export.step_module.graph import ModuleGraph, sharing_copy
from lram_export.step_module.policy import StepPolicy
from lram_export.step_module.runtime import ModuleRuntime


@dataclass(frozen=True, kw_only=True)
class LoweredModule(LoweredPolicy):
    """A module that its user wrote, lowered."""

    step_policy: StepPolicy
    facts: ModuleFacts
    sha256: str
    graph: ModuleGraph

    @property
    def model(self) -> dict[str, Any]:
        """See :class:`LoweredPolicy`."""
        layers = self.graph.layers()
        matrices = {name: list(layers[name].weight.shape) for name in self.facts.products}
        return {"kind": STEP_MODULE, "class": self.step_policy.name, "matrices": matrices}

    @property
    def source(self) -> dict[str, str]:
        """See :class:`LoweredPolicy`."""
        return {"file": self.step_policy.name, "sha256": self.sha256}

    @property
    def parameters(self) -> int:
        """See :class:`LoweredPolicy`."""
        return max(1, sum(parameter.numel() for parameter in self.graph.parameters()))

    @property
    def bin_width(self) -> float:
        """See :class:`LoweredPolicy`."""
        return 0.0

    def matrix_names(self) -> tuple[str, ...]:
        """See :class:`LoweredPolicy`."""
        return self.facts.products

    def state_matrices(self) -> frozenset[str]:
        """See :class:`LoweredPolicy`: which drive a state is not known; what rounding does is measured."""
        return frozenset()

    def reference(self) -> ModuleRuntime:
        """See :class:`LoweredPolicy`."""
        return ModuleRuntime(self.step_policy, self.spec.batch_size)

    def fresh_graph(self) -> ModuleGraph:
        """See :class:`LoweredPolicy`."""
        return ModuleGraph(self._copied(), self.spec.batch_size)

    def dequantized(self, matrices: Mapping[str, QuantizedMatrix]) -> LoweredModule:
        """See :class:`LoweredPolicy`."""
        policy = self._copied()
        graph = ModuleGraph(policy, self.spec.batch_size)
        layers = graph.layers()
        for name, matrix in matrices.items():
            layers[name].weight = torch.nn.Parameter(torch.from_numpy(matrix.dequantize()), requires_grad=False)
        return dataclasses.replace(self, step_policy=policy, graph=graph)

    def _copied(self) -> StepPolicy:
        try:
            module = sharing_copy(self.step_policy.module)
        except Exception as error:
            raise UsageError(f"{self.step_policy.name}: cannot be copied: {describe(error)}") from None
        return self.step_policy.around(module)


def lower_module(policy: StepPolicy, *, name: str, batch_size: int = 1) -> LoweredModule:
    """Check a module and make it a step graph; see :func:`~lram_export.step_module.checking.check_module`."""
    facts = check_module(policy)
    graph = ModuleGraph(policy, batch_size)
    return LoweredModule(name=name, graph=graph, step_policy=policy, facts=facts, sha256=weights_sha256(policy.module))


def weights_sha256(module: torch.nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of all weights and buffers, in the order of the names."""
    digest = hashlib.sha256()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name in sorted(tensors):
        values = tensors[name].detach().contiguous().numpy()
        digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
