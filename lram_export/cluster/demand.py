"""What a worker asks of its node: threads and memory, from what the policy is known to need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lram_export.bundle.bundle import Bundle
from lram_export.prediction.predict import process_memory
from lram_export.system.machine import threads_beside_others

ENVIRONMENT_BYTES = 500_000_000
"""What an environment and its packages take beside a policy; an assumption, about what Meta-World takes."""
UNKNOWN_TARGET_BYTES = 1_000_000_000
"""What a process of a target takes beside its weights of which nothing was measured; an assumption."""


@dataclass(frozen=True)
class Demand:
    """Of one worker: CPUs, one per thread, and bytes of memory."""

    cpus: int
    memory: int


def demand(bundle: Bundle, targets: Sequence[str], threads: int, reference: bool) -> Demand:
    """Of a worker that plays with some targets of a bundle, and with the float32 reference beside them."""
    manifest = bundle.manifest
    state, memory, cpus = manifest.spec.with_batch(1).state_bytes, ENVIRONMENT_BYTES, threads
    for target in targets:
        entry = bundle.artifact(target)
        known = process_memory(target, entry.precision, entry.weight_bytes, state)
        memory += UNKNOWN_TARGET_BYTES + 2 * entry.weight_bytes if known is None else known
    if reference:
        weights = 4 * manifest.parameters
        memory += process_memory("pytorch", "fp32", weights, state) or UNKNOWN_TARGET_BYTES + 2 * weights
        cpus = max(cpus, threads_beside_others(manifest.parameters))
    return Demand(cpus, memory)


EXPORT_BYTES = 2_000_000_000
"""What an export takes beside the weights, PyTorch and the toolkits of all targets; an assumption."""
EXPORT_COPIES = 6
"""How often an export has the float32 weights in memory at once; an assumption."""


def export_demand(parameters: int, threads: int) -> Demand:
    """Of a worker that exports, compares and plays with a model of so many weights."""
    return Demand(max(threads, threads_beside_others(parameters)), EXPORT_BYTES + EXPORT_COPIES * 4 * parameters)
