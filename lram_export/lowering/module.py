"""From a policy of one's own to a lowered policy."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lram_export.bundle.manifest import STEP_MODULE
from lram_export.errors import UsageError, describe
from lram_export.lowering.policy import LoweredPolicy
from lram_export.spec.codes import QuantizedMatrix
from lram_export.spec.cost import Widths
from lram_export.spec.interface import Interface
from lram_export.step_module.checking import ModuleFacts, check_module, products_of
from lram_export.step_module.graph import ModuleGraph, sharing_copy
from lram_export.step_module.policy import StepPolicy
from lram_export.step_module.recurrent import with_linear_layers
from lram_export.step_module.runtime import ModuleRuntime
from lram_export.step_module.tracing import trace


@dataclass(frozen=True, kw_only=True)
class LoweredModule(LoweredPolicy):
    """A module that its user wrote, lowered.

    Attributes:
        own: the policy as its user wrote it, which is the reference.
        step_policy: what the graph computes: ``own``; where it is quantized, with linear layers in the place of
            recurrent ones (see :mod:`~lram_export.step_module.recurrent`).
        facts: what was found out about ``step_policy``.
        sha256: of the weights before any was quantized.
    """

    own: StepPolicy
    step_policy: StepPolicy
    facts: ModuleFacts
    sha256: str
    graph: ModuleGraph

    @property
    def model(self) -> dict[str, Any]:
        """See :class:`LoweredPolicy`."""
        layers = self.graph.layers()
        matrices = {name: list(layers[name].weight.shape) for name in self.facts.products}
        return {"kind": STEP_MODULE, "class": self.own.name, "matrices": matrices}

    @property
    def source(self) -> dict[str, str]:
        """See :class:`LoweredPolicy`."""
        return {"file": self.own.name, "sha256": self.sha256}

    @property
    def parameters(self) -> int:
        """See :class:`LoweredPolicy`."""
        return max(1, sum(parameter.numel() for parameter in self.graph.parameters()))

    @property
    def bin_width(self) -> Widths:
        """See :class:`LoweredPolicy`."""
        return 0.0

    def matrix_names(self) -> tuple[str, ...]:
        """See :class:`LoweredPolicy`."""
        return self.facts.products

    def quantizable(self) -> LoweredModule:
        """See :class:`LoweredPolicy`: float32 keeps torch's recurrent layers, which runtimes know as a whole."""
        if self.step_policy is not self.own or not self.facts.recurrent:
            return self
        step_policy = self._linear(self.own)
        graph = ModuleGraph(step_policy, self.spec.batch_size, self.interface)
        facts = dataclasses.replace(self.facts, products=products_of(graph, trace(graph)))
        return dataclasses.replace(self, step_policy=step_policy, graph=graph, facts=facts)

    def state_matrices(self) -> frozenset[str]:
        """See :class:`LoweredPolicy`: which drive a state is not known; what rounding does is measured."""
        return frozenset()

    def reference(self, batch_size: int | None = None) -> ModuleRuntime:
        """See :class:`LoweredPolicy`."""
        return ModuleRuntime(self.own, self.spec.batch_size if batch_size is None else batch_size, self.interface)

    def fresh_graph(self) -> ModuleGraph:
        """See :class:`LoweredPolicy`."""
        return ModuleGraph(self._as_here(self._copied({})), self.spec.batch_size, self.interface)

    def dequantized(self, matrices: Mapping[str, QuantizedMatrix]) -> LoweredModule:
        """See :class:`LoweredPolicy`: the reference is the user's module, with these weights wherever they are read."""
        layers, instead = self.graph.layers(), {}
        for name, matrix in matrices.items():
            values = torch.from_numpy(matrix.dequantize())
            instead[id(layers[name].weight)] = torch.nn.Parameter(values, requires_grad=False)
        own = self._copied(instead)
        step_policy = self._as_here(own)
        graph = ModuleGraph(step_policy, self.spec.batch_size, self.interface)
        return dataclasses.replace(self, own=own, step_policy=step_policy, graph=graph)

    def _as_here(self, own: StepPolicy) -> StepPolicy:
        """What the graph computes for other weights."""
        return own if self.step_policy is self.own else self._linear(own)

    def _linear(self, own: StepPolicy) -> StepPolicy:
        with self._copying():
            return with_linear_layers(own, self.facts.recurrent)

    def _copied(self, instead: Mapping[int, Any]) -> StepPolicy:
        with self._copying():
            return self.own.around(sharing_copy(self.own.module, instead))

    @contextmanager
    def _copying(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise UsageError(f"{self.own.name}: cannot be copied: {describe(error)}") from None


def lower_module(
    policy: StepPolicy, *, name: str, batch_size: int = 1, interface: Interface | None = None
) -> LoweredModule:
    """Check a module and make it a step graph; see :func:`~lram_export.step_module.checking.check_module`.

    Raises:
        UsageError: also where the interface does not fit the module.
    """
    interface = Interface() if interface is None else interface
    try:
        graph = ModuleGraph(policy, batch_size, interface)
    except ValueError as error:
        raise UsageError(f"interface: {error}") from None
    facts = check_module(policy)
    return LoweredModule(
        name=name,
        graph=graph,
        interface=interface,
        own=policy,
        step_policy=policy,
        facts=facts,
        sha256=weights_sha256(policy.module),
    )


def weights_sha256(module: torch.nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of all weights and buffers, in the order of the names."""
    digest = hashlib.sha256()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name in sorted(tensors):
        values = tensors[name].detach().contiguous().numpy()
        digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
