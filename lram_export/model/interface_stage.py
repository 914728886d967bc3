"""What an interface has a step graph do around its network, on every target: normalize, scale, clamp."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lram_export.spec.interface import FieldInterface, Interface, Normalization, Numbers, clamped, elementwise, scaled
from lram_export.spec.tensors import StepSpec, TensorSpec


class Normalize(nn.Module):
    """``(value - mean) / deviation``, clipped: one observation with rows."""

    def __init__(self, normalization: Normalization, tensor: TensorSpec) -> None:
        super().__init__()
        self.clip = normalization.clip
        self.register_buffer("mean", _of_row(normalization.mean, tensor), persistent=False)
        self.register_buffer("deviation", _of_row(normalization.deviation, tensor), persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        """Same shape in and out, float32."""
        found = (value - self.get_buffer("mean")) / self.get_buffer("deviation")
        return found if self.clip is None else found.clamp(-self.clip, self.clip)


class Scale(nn.Module):
    """``value * scale + offset``, clamped to limits: one action with rows."""

    def __init__(self, of: FieldInterface, tensor: TensorSpec) -> None:
        super().__init__()
        self.scaled, self.clamped = of.scaling is not None, of.limits is not None
        for name, part in (("scale", of.scaling), ("offset", of.scaling), ("low", of.limits), ("high", of.limits)):
            if part is not None:
                self.register_buffer(name, _of_row(getattr(part, name), tensor), persistent=False)

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """(what it is, what it was before it was clamped), both of the shape of ``value``."""
        if self.scaled:
            value = value * self.get_buffer("scale") + self.get_buffer("offset")
        if not self.clamped:
            return value, value
        return torch.minimum(torch.maximum(value, self.get_buffer("low")), self.get_buffer("high")), value


class InterfaceStage(nn.Module):
    """The operations of an interface, each element by element in float32."""

    def __init__(self, interface: Interface, network: StepSpec) -> None:
        """``network`` is the specification of the step without it; raises ValueError where the two do not fit."""
        super().__init__()
        interface.check(network)
        self.spec = interface.of(network)
        self._normalize = nn.ModuleDict(
            {
                t.name: Normalize(interface.normalizations[t.name], t)
                for t in network.inputs
                if t.name in interface.normalizations
            }
        )
        # what is chosen from scores is looked up instead, see chosen_values
        computed = [t for t in network.outputs if t.name in interface.scalings and network.scores_of(t) is None]
        self._scale = nn.ModuleDict({t.name: Scale(interface.scalings[t.name], t) for t in computed})
        self._inputs, self._outputs = ([t.name for t in side] for side in (network.inputs, network.outputs))

    def normalization(self, name: str) -> dict[str, NDArray[np.float32]]:
        """What an observation is normalized by: ``mean``, ``deviation``, ``clip``, each (n,); {} if it is not."""
        if name not in self._normalize:
            return {}
        stage = self._normalize[name]
        found = {part: stage.get_buffer(part).numpy().reshape(-1) for part in ("mean", "deviation")}
        return found if stage.clip is None else {**found, "clip": np.array([stage.clip], np.float32)}

    def before(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The network's inputs, from those of the step in the order of its specification."""
        pairs = zip(self._inputs, inputs, strict=False)  # `is_first`, the last one, may be left out
        return tuple(self._normalize[name](value) if name in self._normalize else value for name, value in pairs)

    def after(self, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs of the step, from the network's."""
        found, unclamped = [], []
        for name, value in zip(self._outputs, outputs, strict=True):
            if name in self._scale:
                value, before = self._scale[name](value)
                if self._scale[name].clamped:
                    unclamped.append(before)
            found.append(value)
        return (*found, *unclamped)


def chosen_values(interface: Interface, tensor: TensorSpec, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What an output (B, elements) that is chosen from ``values`` (n,) can be: (elements, n), scaled and clamped.

    A step looks its action up there, so that every target gives the same bits whatever its arithmetic.
    """
    of = interface.scalings[tensor.name]
    every = np.repeat(values[:, None], tensor.shape[1], axis=1)  # rows of elements, one for each choice
    return np.ascontiguousarray(clamped(scaled(every, tensor, of), tensor, of).T)


def _of_row(numbers: Numbers, tensor: TensorSpec) -> Tensor:
    """Numbers as a tensor that fits a field's rows: (1, ...)."""
    return torch.from_numpy(np.broadcast_to(elementwise(numbers, tensor), tensor.shape[1:])[None].copy())
