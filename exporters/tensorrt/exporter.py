"""Exporter of the target `tensorrt`: typed ONNX, the recipe to build it, and engines where they can be built here.

Engines are tied to a GPU generation and to TensorRT's version. For a board (`--device`) none is written: `lram-export
compile` builds it there, from the same ONNX and recipe. Without a board TensorRT for RTX, if that is installed, builds
one engine for all GPUs asked for (`--compute-capability`), which needs no GPU.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lram_export.errors import UsageError
from lram_export.exporters import ExportedArtifact
from lram_export.exporters.onnx.graph import OPSET, save_onnx
from lram_export.exporters.onnx.typed import INT4_OPSET, build_typed_onnx
from lram_export.lowering import LoweredPolicy
from lram_export.progress import SILENT, Progress
from lram_export.system.devices import DeviceProfile
from lram_export.targets.tensorrt.builder import build_engine, check_capabilities
from lram_export.targets.tensorrt.memory import Memory, workspace_limit
from lram_export.targets.tensorrt.recipe import BuildRecipe, EngineEntry
from lram_export.targets.tensorrt.toolkit import PORTABLE, Toolkit, find_toolkit


def export(policy: LoweredPolicy, directory: Path, progress: Progress = SILENT) -> ExportedArtifact:
    """Write ``model.onnx``, ``model.onnx.data``, ``recipe.json`` and engines.

    Raises:
        UsageError: the model does not fit the device, or the toolkit does not build for a compute capability.
        LramError: TensorRT refuses the graph; operators are named.
    """
    device, capabilities = policy.platform.device, policy.platform.compute_capabilities
    if device is not None and capabilities:
        raise UsageError("--device and --compute-capability: the engine for a device is built on it; give one of them")
    toolkit = None if device is not None else _toolkit(capabilities)
    memory = Memory.of(policy.weight_bytes, policy.spec)
    if device is not None:
        _check_fits(policy, memory, device)
    model = build_typed_onnx(policy)
    opset = model.graph.opset_imports[""]
    onnx_files = save_onnx(model, directory, policy.spec)
    recipe = BuildRecipe(
        precision=policy.precision,
        device=device.name if device else None,
        compute_capability=device.compute_capability if device else None,
        workspace_bytes=workspace_limit(device) if device else None,
        memory_bytes=memory.running,
        identity=policy.metadata(),
    )
    engines: tuple[EngineEntry, ...] = ()
    if toolkit is not None and toolkit.builds_without_gpu:
        rows = policy.spec.batch_size
        engines = (_build(toolkit, onnx_files[0], recipe, rows, capabilities or PORTABLE, progress),)
    recipe_file = dataclasses.replace(recipe, engines=engines).write(directory)
    return ExportedArtifact(
        files=(*onnx_files, recipe_file, *(directory / entry.file for entry in engines)),
        tools=_tools(toolkit, opset),
        weight_bytes=policy.weight_bytes,
        platform=_platform(device, engines),
    )


def _toolkit(capabilities: tuple[str, ...]) -> Toolkit:
    """What builds here; raises UsageError if nothing does, or not for these compute capabilities."""
    toolkit = find_toolkit()
    if capabilities:
        check_capabilities(toolkit, capabilities)
    return toolkit


def _check_fits(policy: LoweredPolicy, memory: Memory, device: DeviceProfile) -> None:
    if not memory.fits(device):
        raise UsageError(
            f"--device {device.name}: {policy.precision} needs about {memory.running / 1e9:.1f} GB to run and "
            f"{memory.building / 1e9:.1f} GB to build, {device.title} leaves "
            f"{device.memory_for_programs / 1e9:.1f} GB; choose a smaller --precision"
        )


def _build(
    toolkit: Toolkit,
    onnx_path: Path,
    recipe: BuildRecipe,
    rows: int,
    capabilities: tuple[str, ...],
    progress: Progress,
) -> EngineEntry:
    plan = build_engine(toolkit, onnx_path, recipe, rows=rows, compute_capabilities=capabilities, progress=progress)
    numbers = "-".join(f"sm{c.replace('.', '')}" for c in capabilities)
    entry = EngineEntry(f"{toolkit.name}-{toolkit.version}-{numbers}.plan", toolkit.name, toolkit.version, capabilities)
    (onnx_path.parent / entry.file).write_bytes(plan)
    return entry


def _tools(toolkit: Toolkit | None, opset: int) -> dict[str, str]:
    import onnx
    import onnxscript
    import torch

    built = {toolkit.name: toolkit.version} if toolkit is not None and toolkit.builds_without_gpu else {}
    assert opset in (OPSET, INT4_OPSET)
    return {
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxscript": onnxscript.__version__,
        "opset": str(opset),
        **built,
    }


def _platform(device: DeviceProfile | None, engines: tuple[EngineEntry, ...]) -> str:
    if device is not None:
        return device.name
    capabilities = [c for entry in engines for c in entry.compute_capabilities]
    return f"compute capability {', '.join(capabilities)}" if capabilities else "any NVIDIA GPU"
