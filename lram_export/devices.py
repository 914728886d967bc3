"""Device profiles: what a board has, for predicting what fits on it and how fast it is."""

from __future__ import annotations

from dataclasses import dataclass

from lram_export.errors import UsageError


@dataclass(frozen=True)
class DeviceProfile:
    """A board.

    Attributes:
        name: what `--device` calls it.
        title: its maker's name for it.
        memory: bytes, shared by processor and GPU on a Jetson.
        bandwidth: of that memory, bytes per second, as its maker states it.
        compute_capability: of the GPU, or None without one.
        source: where the figures are from.
    """

    name: str
    title: str
    memory: int
    bandwidth: float
    compute_capability: str | None
    source: str


_ORIN = "NVIDIA, Jetson modules comparison; compute capability 8.7: NVIDIA, CUDA GPUs"

DEVICES = {
    profile.name: profile
    for profile in (
        DeviceProfile("jetson-orin-nano", "Jetson Orin Nano 8GB", 8_000_000_000, 102e9, "8.7", _ORIN),
        DeviceProfile("orin-nx", "Jetson Orin NX 16GB", 16_000_000_000, 102.4e9, "8.7", _ORIN),
        DeviceProfile("agx-orin", "Jetson AGX Orin 64GB", 64_000_000_000, 204.8e9, "8.7", _ORIN),
        DeviceProfile(
            "thor",
            "Jetson AGX Thor 128GB",
            128_000_000_000,
            273e9,
            "11.0",
            "NVIDIA, Jetson Thor; compute capability 11.0: NVIDIA, CUDA GPUs",
        ),
    )
}


@dataclass(frozen=True)
class Platform:
    """What an exporter compiles for, beyond its target; empty: what it can do by itself.

    ``device`` is a board that the artifact is made for and on which it is compiled; ``compute_capabilities``
    are those of GPUs to compile for here and now, e.g. ``8.6``; ``processors`` are those of target `tvm`, by their
    names in :data:`~lram_export.tvm.platforms.PLATFORMS`.
    """

    device: DeviceProfile | None = None
    compute_capabilities: tuple[str, ...] = ()
    processors: tuple[str, ...] = ()


def find_device(name: str) -> DeviceProfile:
    """The profile of that name; raises UsageError with the list."""
    if name not in DEVICES:
        raise UsageError(f"--device: unknown device '{name}'; known: {', '.join(DEVICES)}")
    return DEVICES[name]
