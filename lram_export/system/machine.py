"""Facts about the machine this runs on, from the standard library alone."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

from lram_export.system.cgroup import cpu_quota

_CPU_FEATURES = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16",
    "amx_tile", "amx_int8",
)  # fmt: skip
_ARM_FEATURES = {
    "asimd": (16, 1), "asimdhp": (16, 10), "asimddp": (16, 20), "sve": (16, 22), "i8mm": (26, 13), "bf16": (26, 14),
}  # fmt: skip
"""Instruction sets of aarch64: entry of the auxiliary vector (AT_HWCAP, AT_HWCAP2) and bit, from Linux's hwcap.h."""


WEIGHTS_PER_THREAD = 6_000_000
"""Least weights, times rows of a step, that make one more thread worth its risk; docs/command-line.md has the numbers
that it is from. SINGLE_THREAD_WEIGHTS is the same where runtimes take turns in one process."""
SINGLE_THREAD_WEIGHTS = 100_000_000


def available_cpus() -> set[int]:
    """Logical CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def physical_cores() -> int:
    """Physical cores among the available CPUs; logical CPUs where the system does not tell siblings apart."""
    cores = set()
    for cpu in available_cpus():
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text(encoding="ascii").strip())
        except OSError:
            cores.add(str(cpu))
    return max(len(cores), 1)


def usable_cores() -> int:
    """Threads that can compute at the same time: physical cores, as far as affinity and control group allow them."""
    quota = cpu_quota()
    cores = physical_cores()
    return cores if quota is None else max(1, min(cores, int(quota)))


def suitable_threads(weights: int, rows: int = 1) -> int:
    """How many threads a step of that many rows of a model of that many weights takes, unless it is told.

    Small models get one: two would save a fraction of a millisecond, and cost tens of them as soon as another program
    wants a core. Large ones get all :func:`usable_cores`.
    """
    return max(1, min(usable_cores(), weights * rows // WEIGHTS_PER_THREAD))


def threads_beside_others(weights: int) -> int:
    """How many threads each of several runtimes gets that step in turns in one process, the reference among them.

    Threads of one that wait for work keep the cores from the next, so that only large models gain from more than one.
    """
    return 1 if weights < SINGLE_THREAD_WEIGHTS else usable_cores()


def cpu_model() -> str:
    """Name of the processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """Instruction sets that matter for inference, of those this processor has."""
    if platform.machine() == "aarch64":  # not /proc/cpuinfo: an emulated process sees its host's
        return tuple(name for name, (entry, bit) in _ARM_FEATURES.items() if _auxiliary(entry) >> bit & 1)
    flags = set((_cpuinfo("flags") or "").split())
    return tuple(f for f in _CPU_FEATURES if f in flags)


def total_memory() -> int | None:
    """Physical memory in bytes, or None where it cannot be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def available_memory() -> int | None:
    """Memory in bytes that programs can still get, file caches included, or None where it cannot be told."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def peak_memory() -> int | None:
    """Largest resident memory of this process so far in bytes, or None where it cannot be told.

    From ``VmHWM``: ``ru_maxrss`` would count the parent's memory in a freshly started process.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _auxiliary(entry: int) -> int:
    """A value that the kernel hands to every process; 0 where there is none."""
    try:
        getauxval = ctypes.CDLL(None).getauxval
    except (OSError, AttributeError):
        return 0
    getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    return int(getauxval(entry))


def _cpuinfo(key: str) -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    except OSError:
        pass
    return None
