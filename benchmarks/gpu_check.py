"""What the target `tensorrt` does on this machine's GPU: `python benchmarks/gpu_check.py -o gpu.json`.

Per model, precision and batch size, in one run: builds the engine (or loads it), verifies it against the recorded
reference, and times whole steps beside PyTorch eager, torch.compile with CUDA graphs and, where it is installed, ONNX
Runtime on CUDA. The floor is the bytes a step moves (weights once, state once in and once out) over the bandwidth that
copies on this GPU reach. A part that fails is noted with its reason, and the others go on. Needs the packages of
lram-export[export,onnxruntime,tensorrt-rtx] (or TensorRT itself) and a CUDA build of torch for the comparison.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lram_export.backbones.xlstm.config import PRESETS
from lram_export.bundle.bundle import Bundle
from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.checkpoints.random import preset_config, random_checkpoint
from lram_export.errors import LramError, UsageError, describe
from lram_export.export import ExportOptions, export_bundle
from lram_export.lowering import lower
from lram_export.quantization.quantize import QuantizationOptions
from lram_export.runtimes import Runtime
from lram_export.spec.tasks import resolve_task
from lram_export.spec.tensors import StepSpec
from lram_export.system.devices import Platform
from lram_export.targets.tensorrt import cuda
from lram_export.targets.tensorrt.builder import check_capabilities
from lram_export.targets.tensorrt.cuda import DeviceArray, call
from lram_export.targets.tensorrt.toolkit import find_toolkit

TASK = "metaworld/reach-v2"
WARM_UP = 20
COPY_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a step; ``floor_ratio`` is the median over the floor."""

    p50_ms: float
    p99_ms: float
    floor_ratio: float


@dataclass(frozen=True)
class Case:
    """What is measured: a preset or a checkpoint's path, a precision, a batch size."""

    model: str
    precision: str
    batch: int


def main(arguments: list[str] | None = None) -> int:
    """Measure all cases and write one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help=f"{', '.join(PRESETS)} or a checkpoint; default: 16m, 206m")
    parser.add_argument("--precision", action="append", help="default: fp32, fp16")
    parser.add_argument("--batch", action="append", type=int, help="default: 1, 64")
    parser.add_argument("--steps", type=int, default=500, help="timed steps (500)")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu_check.json"))
    chosen = parser.parse_args(arguments)
    reason = cuda.unavailable()
    if reason is not None:
        print(f"error: {reason}; this check needs an NVIDIA GPU", file=sys.stderr)
        return 2
    cases = [
        Case(model, precision, batch)
        for model in chosen.model or ("16m", "206m")
        for precision in chosen.precision or ("fp32", "fp16")
        for batch in chosen.batch or (1, 64)
    ]
    document = {"machine": describe_machine(), "cases": [measure_case(case, chosen.steps) for case in cases]}
    chosen.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"{chosen.output}: {len(cases)} cases")
    return 0


def describe_machine() -> dict[str, Any]:
    """GPU, driver, TensorRT and the bandwidth of copies on the GPU, bytes per second."""
    gpu, toolkit = cuda.current_gpu(), find_toolkit()
    return {
        **dataclasses.asdict(gpu),
        "toolkit": toolkit.name,
        "toolkit_version": toolkit.version,
        "python": platform.python_version(),
        "bandwidth": copy_bandwidth(),
    }


def copy_bandwidth(repeats: int = 20) -> float:
    """Bytes per second, read plus written, of the best of several copies within the GPU."""
    size = min(COPY_BYTES, cuda.current_gpu().free_memory // 8)
    one, two = DeviceArray((size,), "uint8"), DeviceArray((size,), "uint8")
    runtime, best = cuda.runtime(), float("inf")
    kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    for _ in range(repeats):
        started = time.perf_counter()
        call(runtime.cudaMemcpy(two.address, one.address, size, kind))
        call(runtime.cudaDeviceSynchronize())
        best = min(best, time.perf_counter() - started)
    one.free()
    two.free()
    return 2 * size / best


def measure_case(case: Case, steps: int) -> dict[str, Any]:
    """All ways to run one case; a way that fails has the reason in its place."""
    result: dict[str, Any] = dataclasses.asdict(case)
    with TemporaryDirectory() as folder:
        try:
            checkpoint = load_model(case.model)
            bundle = export_case(checkpoint, case, Path(folder) / "policy.lram")
        except (LramError, ValueError) as error:
            return {**result, "error": describe(error)}
        spec, weight_bytes = bundle.manifest.spec, bundle.artifact("tensorrt").weight_bytes
        bandwidth = copy_bandwidth()
        floor = floor_ms(weight_bytes, spec, bandwidth)
        result |= {"weight_bytes": weight_bytes, "bandwidth": bandwidth, "floor_ms": floor}
        ways: dict[str, Callable[[], dict[str, Any]]] = {
            "tensorrt": lambda: time_tensorrt(bundle, steps, floor),
            "torch_eager": lambda: time_torch(checkpoint, case, steps, floor, compiled=False),
            "torch_compile": lambda: time_torch(checkpoint, case, steps, floor, compiled=True),
            "onnxruntime_cuda": lambda: time_onnxruntime(bundle, steps, floor),
        }
        for name, way in ways.items():
            try:
                result[name] = way()
            except Exception as error:  # foreign toolkits: whatever they raise is this way's result
                result[name] = {"error": describe(error)}
    return result


def load_model(model: str) -> Checkpoint:
    """A random checkpoint of a preset, or one from a file."""
    if model in PRESETS:
        return random_checkpoint(preset_config(model), Path(model))
    return load_checkpoint(Path(model))


def export_case(checkpoint: Checkpoint, case: Case, path: Path) -> Bundle:
    """A bundle for this machine's GPU; TensorRT for RTX builds its engine right away, where it names the GPU."""
    toolkit, capability = find_toolkit(), cuda.current_gpu().compute_capability
    platform_ = Platform()
    if toolkit.builds_without_gpu:
        with contextlib.suppress(UsageError):  # not named: `compile` then asks for the GPU that is here
            check_capabilities(toolkit, [capability])
            platform_ = Platform(compute_capabilities=(capability,))
    options = ExportOptions(
        ("tensorrt",), case.batch, 16, quantization=QuantizationOptions(case.precision), platform=platform_
    )
    return export_bundle(checkpoint, resolve_task(TASK), path, options)


def floor_ms(weight_bytes: int, spec: StepSpec, bandwidth: float) -> float:
    """Milliseconds for reading the weights once and the state once in and once out."""
    state = 4 * sum(tensor.size for tensor in spec.states)
    return 1000 * (weight_bytes + 2 * state) / bandwidth


def time_tensorrt(bundle: Bundle, steps: int, floor: float) -> dict[str, Any]:
    """Verify and time the engine; compile it first if the bundle has none for this GPU."""
    from lram_export.runtimes import load_runtime, unavailable
    from lram_export.verification.verify import load_bundle_reference, parity_meter, replay

    artifact = bundle.load_artifact("tensorrt")
    seconds = None
    if unavailable("tensorrt", artifact) is not None:
        from lram_export.deploy.compile import compile_engine

        seconds = compile_engine(bundle).seconds
    runtime = load_runtime("tensorrt", artifact, threads=1)
    try:
        meter = parity_meter(bundle, "tensorrt", runtime)
        replay(runtime, load_bundle_reference(bundle), meter)
        timing = time_steps(runtime_step(runtime), steps, floor)
        return {**dataclasses.asdict(timing), "build_seconds": seconds, "parity": meter.result().to_json()}
    finally:
        runtime.close()


def runtime_step(runtime: Runtime) -> Callable[[], Any]:
    """One step of a runtime on the same random input."""
    inputs = [np.zeros(t.shape, t.dtype) for t in runtime.spec.inputs]
    inputs[0] = np.random.default_rng(0).standard_normal(inputs[0].shape).astype(inputs[0].dtype)
    return lambda: runtime.step(*inputs)


def time_torch(checkpoint: Checkpoint, case: Case, steps: int, floor: float, *, compiled: bool) -> dict[str, Any]:
    """The same step graph in PyTorch on the GPU, state kept there; float32, or 16-bit products under autocast."""
    step = torch_step(checkpoint, case, "cuda", compiled=compiled)
    return dataclasses.asdict(time_steps(step, steps, floor))


def torch_step(checkpoint: Checkpoint, case: Case, device: str, *, compiled: bool = False) -> Callable[[], Any]:
    """A function that runs one step and returns the action on the host."""
    import torch

    policy = lower(checkpoint, resolve_task(TASK), name="policy", batch_size=case.batch)
    graph: Any = policy.graph.to(device)
    if compiled:
        graph = torch.compile(graph, mode="reduce-overhead")  # CUDA graphs
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(case.precision)
    inputs, state = (
        [
            torch.full(t.shape, getattr(t, "initial", 0.0) or 0.0, dtype=getattr(torch, t.dtype), device=device)
            for t in tensors
        ]
        for tensors in (policy.spec.inputs, policy.spec.states)
    )

    def step() -> Any:
        with torch.inference_mode(), torch.autocast(device, half, enabled=half is not None):
            action, _, *after = graph(*inputs, *state)
        for old, new in zip(state, after, strict=True):
            old.copy_(new)  # compiled graphs overwrite what they return
        return action.cpu()

    return step


def time_onnxruntime(bundle: Bundle, steps: int, floor: float) -> dict[str, Any]:
    """The artifact's ONNX on ONNX Runtime's CUDA provider, state kept on the GPU."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return {"error": "ONNX Runtime has no CUDA provider here (package onnxruntime-gpu)"}
    session = onnxruntime.InferenceSession(
        str(bundle.path / "tensorrt" / "model.onnx"), providers=["CUDAExecutionProvider"]
    )
    spec = bundle.manifest.spec
    values = {
        t.name: onnxruntime.OrtValue.ortvalue_from_numpy(
            np.full(t.shape, getattr(t, "initial", 0) or 0, t.dtype), "cuda", 0
        )
        for t in (*spec.inputs, *spec.states)
    }

    def step() -> Any:
        binding = session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in spec.output_names:
            binding.bind_output(name, "cuda")
        session.run_with_iobinding(binding)
        action, _, *after = binding.get_outputs()
        values.update({t.name: value for t, value in zip(spec.states, after, strict=True)})
        return action.numpy()

    return dataclasses.asdict(time_steps(step, steps, floor))


def time_steps(step: Callable[[], Any], steps: int, floor: float) -> Timing:
    """Run a step many times, after a warm-up that does not count."""
    for _ in range(WARM_UP):
        step()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    p50, p99 = (1000 * float(value) for value in np.percentile(seconds, (50, 99)))
    return Timing(p50, p99, p50 / floor)


if __name__ == "__main__":
    sys.exit(main())
