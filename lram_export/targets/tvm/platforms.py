"""The processors that TVM compiles for: instruction sets, and the tile sizes that were measured on them. Free of tvm.

`benchmarks/tvm_tiles.py` measures the tile sizes; docs/tvm.md says how to add a processor.
"""

from __future__ import annotations

import ctypes
import dataclasses
import platform as host
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from lram_export.errors import UsageError
from lram_export.system.machine import cpu_features

HOST = "host"
"""What a user asks for to compile for the best platform that this machine can run."""


@dataclass(frozen=True)
class Dot:
    """An instruction that multiplies four bytes of each lane with four others and adds them to the lane.

    Attributes:
        intrinsic: LLVM's name of it.
        unsigned: whether one side is unsigned; activations are then stored as code + 128.
        outputs: outputs of int8 matrices computed at once; each holds two sums for each of three tokens in a register.
        grouped_outputs: the same for int4 and int8g matrices, which keep a float32 total beside the sums.
    """

    intrinsic: str
    unsigned: bool
    outputs: int
    grouped_outputs: int


@dataclass(frozen=True)
class TvmPlatform:
    """A kind of processor.

    Attributes:
        name: what `--platform` calls it.
        title: which processors it is.
        machine: `platform.machine()` of such a computer.
        triple, cpu, attributes: LLVM's words for it.
        features: names of instruction sets, as the kernel of Linux lists them, without which the library must not run.
        lanes: float32 numbers in a vector register.
        memory_columns: columns of C that are updated at once; C is stored in tiles so wide.
        dot: how integer codes are multiplied; None: they are dequantized in registers.
        compilers: programs that can link a library for it, the first found is taken.
        package: Debian's package with such a program, for a machine of another kind.
        gpu: architecture of the GPU that runs the kernels, as CUDA calls it; the processor then only starts them.
    """

    name: str
    title: str
    machine: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    lanes: int
    memory_columns: int
    dot: Dot | None
    compilers: tuple[str, ...]
    package: str
    attributes: tuple[str, ...] = ()
    gpu: str | None = None

    def target(self) -> Mapping[str, Any]:
        """The processor as TVM takes it."""
        described = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu, "num-cores": 4}
        return described | ({"mattr": list(self.attributes)} if self.attributes else {})


_X86: dict[str, Any] = {
    "machine": "x86_64",
    "triple": "x86_64-linux-gnu",
    "compilers": ("x86_64-linux-gnu-g++", "g++", "clang++"),
    "package": "g++-x86-64-linux-gnu",
}
_AVX2 = ("avx2", "fma", "f16c")

_PROCESSORS = {
    platform.name: platform
    for platform in (
        TvmPlatform(
            name="x86_64-v4",
            title="AVX-512 with byte dot products: Intel Ice Lake and AMD Zen 4 or newer",
            cpu="x86-64-v4",
            attributes=("+avx512vnni",),
            features=("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
            lanes=16,
            memory_columns=64,
            dot=Dot("llvm.x86.avx512.vpdpbusd.512", unsigned=True, outputs=32, grouped_outputs=32),
            **_X86,
        ),
        TvmPlatform(
            name="x86_64-v3-vnni",
            title="AVX2 with byte dot products: Intel N-series, Alder Lake and newer",
            cpu="x86-64-v3",
            attributes=("+avxvnni",),
            features=(*_AVX2, "avx_vnni"),
            lanes=8,
            memory_columns=64,
            dot=Dot("llvm.x86.avx512.vpdpbusd.256", unsigned=True, outputs=32, grouped_outputs=16),
            **_X86,
        ),
        TvmPlatform(
            name="x86_64-v3",
            title="AVX2: Intel Haswell, AMD Zen and newer",
            cpu="x86-64-v3",
            features=_AVX2,
            lanes=8,
            memory_columns=64,
            dot=None,
            **_X86,
        ),
        TvmPlatform(
            name="aarch64",
            title="ARMv8.2 with byte dot products: Cortex-A76 (Raspberry Pi 5), A78 (Jetson Orin), Neoverse and newer",
            machine="aarch64",
            triple="aarch64-linux-gnu",
            cpu="cortex-a76",
            attributes=("+neon", "+dotprod"),
            features=("asimd", "asimddp"),
            lanes=4,
            memory_columns=16,  # sizes of this row by the number of registers: no board was at hand
            dot=Dot("llvm.aarch64.neon.sdot.v4i32.v16i8", unsigned=False, outputs=16, grouped_outputs=8),
            compilers=("aarch64-linux-gnu-g++",),
            package="g++-aarch64-linux-gnu",
        ),
    )
}
"""From the most to the least demanding of each kind of machine."""


def _gpu(capability: str, title: str, machine: str) -> TvmPlatform:
    """A GPU of a compute capability, in a computer with processors of a kind, of which little is asked."""
    beside = _PROCESSORS[{"x86_64": "x86_64-v3", "aarch64": "aarch64"}[machine]]
    return dataclasses.replace(
        beside,
        name=f"cuda-sm{capability.replace('.', '')}",
        title=f"NVIDIA GPU of compute capability {capability}: {title}",
        lanes=1,
        memory_columns=8,  # a sector of memory
        dot=None,
        gpu=f"sm_{capability.replace('.', '')}",
    )


_GPUS = {
    platform.name: platform
    for platform in (
        _gpu("8.6", "RTX 30, RTX A", "x86_64"),
        _gpu("8.7", "Jetson Orin", "aarch64"),
        _gpu("8.9", "RTX 40, L4", "x86_64"),
        _gpu("9.0", "H100, H200", "x86_64"),
        _gpu("11.0", "Jetson Thor", "aarch64"),
        _gpu("12.0", "RTX 50", "x86_64"),
    )
}

PLATFORMS = _GPUS | _PROCESSORS
"""All that a library can be compiled for; where several of a bundle fit, the first runs."""


def compute_capability() -> str | None:
    """Of the first NVIDIA GPU, for example `8.7`, as its driver says; None without a GPU or a driver."""
    major_attribute, minor_attribute = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, found = ctypes.c_int(), []
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for attribute in (major_attribute, minor_attribute):
        value = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        found.append(str(value.value))
    return ".".join(found)


def unmet(platform: TvmPlatform) -> str | None:
    """Why libraries for a platform cannot run here, in a few words; None if they can."""
    if host.machine() != platform.machine:
        return f"this machine is {host.machine()}"
    missing = [feature for feature in platform.features if feature not in cpu_features()]
    if missing:
        return f"this processor has no {', '.join(missing)}"
    if platform.gpu is not None:
        if find_spec("cuda") is None:
            return "TVM compiles its kernels with cuda-bindings, which is not installed: pip install cuda-bindings"
        found = compute_capability()
        if found is None:
            return "there is no NVIDIA GPU with a driver"
        if f"sm_{found.replace('.', '')}" != platform.gpu:
            return f"this GPU has compute capability {found}"
    return None


def host_platform() -> TvmPlatform:
    """The most demanding processor whose libraries run here; raises UsageError if there is none."""
    for platform in _PROCESSORS.values():
        if unmet(platform) is None:
            return platform
    reasons = "; ".join(f"{p.name}: {unmet(p)}" for p in _PROCESSORS.values())
    raise UsageError(f"--platform {HOST}: no platform of target tvm runs here ({reasons}); name one to compile for")


def find_platform(name: str) -> TvmPlatform:
    """A platform by name, or :data:`HOST`; raises UsageError with the list."""
    if name == HOST:
        return host_platform()
    if name not in PLATFORMS:
        raise UsageError(f"--platform: unknown platform '{name}'; known: {HOST}, {', '.join(PLATFORMS)}")
    return PLATFORMS[name]
