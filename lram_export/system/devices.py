"""Device profiles: what a board has, for predicting what fits on it and how fast it is."""

from __future__ import annotations

from dataclasses import dataclass

from lram_export.errors import UsageError

SYSTEM_BYTES = 1_500_000_000
"""What an operating system and its services keep for themselves; an assumption, the same for every device."""


@dataclass(frozen=True)
class DeviceProfile:
    """A board or a computer.

    Attributes:
        name: what `--device` calls it.
        title: its maker's name for it.
        memory: bytes, shared by processor and GPU on a Jetson.
        bandwidth: of that memory, bytes per second, as its maker states it.
        cores: of the processor; those of all kinds where it has several.
        instruction_sets: that matter for a step, by the names of :func:`~lram_export.system.machine.cpu_features`.
        compute_capability: of the GPU, or None without one.
        source: where the figures are from.
    """

    name: str
    title: str
    memory: int
    bandwidth: float
    cores: int
    instruction_sets: tuple[str, ...]
    compute_capability: str | None
    source: str

    @property
    def memory_for_programs(self) -> int:
        """Bytes that the system leaves; everything that asks whether a model fits asks this."""
        return max(self.memory - SYSTEM_BYTES, 0)

    @property
    def machine(self) -> str:
        """`aarch64` or `x86_64`."""
        return "aarch64" if "asimd" in self.instruction_sets else "x86_64"


_ARMV82 = ("asimd", "asimdhp", "asimddp")
"""Armv8.2-A with half precision and dot products: Cortex-A76 and A78AE have them."""
_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni")
_ORIN = (
    "memory, bandwidth, cores: NVIDIA, Jetson modules (developer.nvidia.com/embedded/jetson-modules); instruction "
    "sets: Arm, Cortex-A78AE; compute capability: NVIDIA, CUDA GPUs (developer.nvidia.com/cuda-gpus)"
)
_ORIN_NANO = _ORIN + "; bandwidth with the power modes that JetPack 6.2 brought (Super), 68 GB/s before"

DEVICES = {
    profile.name: profile
    for profile in (
        DeviceProfile("jetson-orin-nano", "Jetson Orin Nano 8GB", 8_000_000_000, 102e9, 6, _ARMV82, "8.7", _ORIN_NANO),
        DeviceProfile("orin-nx", "Jetson Orin NX 16GB", 16_000_000_000, 102.4e9, 8, _ARMV82, "8.7", _ORIN),
        DeviceProfile("agx-orin", "Jetson AGX Orin 64GB", 64_000_000_000, 204.8e9, 12, _ARMV82, "8.7", _ORIN),
        DeviceProfile(
            "thor",
            "Jetson AGX Thor 128GB",
            128_000_000_000,
            273e9,
            14,
            (*_ARMV82, "i8mm", "bf16", "sve"),
            "11.0",
            "memory, bandwidth, cores: NVIDIA, Jetson AGX Thor developer kit; instruction sets: Arm, Neoverse V3AE; "
            "compute capability: NVIDIA, CUDA GPUs (developer.nvidia.com/cuda-gpus)",
        ),
        DeviceProfile(
            "raspberry-pi-5",
            "Raspberry Pi 5 8GB",
            8_000_000_000,
            17.1e9,
            4,
            _ARMV82,
            None,
            "memory, cores: Raspberry Pi 5 product brief; bandwidth: its LPDDR4X-4267, 32 bits wide (4 bytes x "
            "4267e6); instruction sets: Arm, Cortex-A76",
        ),
        DeviceProfile(
            "n100",
            "Board with Intel N100, 16GB",
            16_000_000_000,
            38.4e9,
            4,
            (*_AVX2, "avx_vnni"),
            None,
            "cores, bandwidth: Intel, processor N100, one channel of DDR5-4800 (8 bytes x 4800e6); memory: the most "
            "that is specified; instruction sets: Intel, Gracemont",
        ),
        DeviceProfile(
            "core-ultra",
            "Laptop with Intel Core Ultra 7 155H, 32GB",
            32_000_000_000,
            119.5e9,
            16,
            (*_AVX2, "avx_vnni"),
            None,
            "cores (6 + 8 + 2), bandwidth: Intel, Core Ultra 7 155H, LPDDR5x-7467, 128 bits wide (16 bytes x 7467e6); "
            "memory: assumed; instruction sets: Intel, Redwood Cove and Crestmont",
        ),
        DeviceProfile(
            "x86-64-v3",
            "Any x86-64 computer with AVX2: four cores, two channels of DDR4-3200, 16GB",
            16_000_000_000,
            51.2e9,
            4,
            _AVX2,
            None,
            "all assumed; bandwidth 2 x 8 bytes x 3200e6; instruction sets: x86-64 psABI, level v3",
        ),
        DeviceProfile(
            "x86-64-v4",
            "Any x86-64 computer with AVX-512 and VNNI: eight cores, two channels of DDR5-4800, 32GB",
            32_000_000_000,
            76.8e9,
            8,
            _AVX512,
            None,
            "all assumed; bandwidth 2 x 8 bytes x 4800e6; instruction sets: x86-64 psABI, level v4, and VNNI",
        ),
    )
}

HERE = "here"
"""What `--device` calls the machine it runs on, which is measured."""


@dataclass(frozen=True)
class Platform:
    """What an exporter compiles for, beyond its target; empty: what it can do by itself.

    ``device`` is a board that the artifact is made for and on which it is compiled; ``compute_capabilities``
    are those of GPUs to compile for here and now, e.g. ``8.6``; ``processors`` are those of target `tvm`, by their
    names in :data:`~lram_export.targets.tvm.platforms.PLATFORMS`.
    """

    device: DeviceProfile | None = None
    compute_capabilities: tuple[str, ...] = ()
    processors: tuple[str, ...] = ()


def find_device(name: str) -> DeviceProfile:
    """The profile of that name; raises UsageError with the list, and where to add one."""
    if name not in DEVICES:
        raise UsageError(
            f"--device: unknown device '{name}'; known: {', '.join(DEVICES)}. Another one is an entry in "
            f"lram_export/system/devices.py: memory, bandwidth, cores, instruction sets"
        )
    return DEVICES[name]
