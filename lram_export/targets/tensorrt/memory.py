"""How much memory an engine needs, predicted from the model; none of it is measured on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from lram_export.spec.tensors import StepSpec
from lram_export.system.devices import DeviceProfile

LIBRARIES_BYTES = 500_000_000
"""CUDA's context and TensorRT's libraries in a process; an assumption, larger for some versions."""

BUILD_FACTOR = 4
"""A build holds the weights several times over, beside the libraries: 3 times seen for 206M at fp32 (2.9 GB in all)
and at int8 (1.15 GB), with TensorRT for RTX 1.7 on a machine without a GPU."""


@dataclass(frozen=True)
class Memory:
    """Bytes, on the GPU or, on a board, of the memory it shares."""

    running: int
    building: int

    @staticmethod
    def of(weight_bytes: int, spec: StepSpec) -> Memory:
        """For an engine with that many bytes of weights: two copies of the state, inputs and outputs are small."""
        return Memory.of_sizes(weight_bytes, 4 * sum(tensor.size for tensor in spec.states))

    @staticmethod
    def of_sizes(weight_bytes: int, state_bytes: int) -> Memory:
        """For that many bytes of weights, and of one copy of the state."""
        running = weight_bytes + 2 * state_bytes + LIBRARIES_BYTES
        return Memory(running, max(running, BUILD_FACTOR * weight_bytes + LIBRARIES_BYTES))

    @property
    def most(self) -> int:
        """Bytes to build and to run it."""
        return max(self.running, self.building)

    def fits(self, device: DeviceProfile) -> bool:
        """Whether a device can build and run it."""
        return self.most <= device.memory_for_programs


def workspace_limit(device: DeviceProfile) -> int:
    """Scratch memory a tactic may ask for: an eighth of the device's."""
    return device.memory // 8
