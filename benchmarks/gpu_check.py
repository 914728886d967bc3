"""What the targets `tensorrt` and `tvm` do on this machine's GPU: `python benchmarks/gpu_check.py -o gpu.json`.

Per model, precision and batch size, in one run: exports for this GPU, verifies against the recorded reference, and
times whole steps beside PyTorch eager, torch.compile with CUDA graphs and, where it is installed, ONNX Runtime on CUDA.
The floor is the bytes a step moves (weights once, state once in and once out) over the bandwidth that copies on this
GPU reach. A part that fails is noted with its reason, and the others go on. Needs the packages of
lram-export[export,onnxruntime,tvm,tensorrt-rtx] (or TensorRT itself; a target that is not installed is noted), nvcc for
`tvm`, and a CUDA build of torch for the comparison.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lram_export.backbones.registry import BACKBONES, backbone_module
from lram_export.backbones.xlstm.config import PRESETS
from lram_export.bundle.bundle import Bundle
from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.checkpoints.random import preset_config, random_checkpoint
from lram_export.errors import LramError, UsageError, describe
from lram_export.export import ExportOptions, export_bundle
from lram_export.lowering import LoweredPolicy, lower
from lram_export.quantization.quantize import QuantizationOptions
from lram_export.runtimes import Runtime
from lram_export.spec.rows import ROWS
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
TARGETS = ("tensorrt", "tvm")
FLOAT_PRECISIONS = ("fp32", "fp16", "bf16")
"""What PyTorch is compared at; codes it would not keep as codes."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a step; ``floor_ratio`` is the median over the floor."""

    p50_ms: float
    p99_ms: float
    floor_ratio: float


@dataclass(frozen=True)
class Case:
    """What is measured: a preset (see :func:`load_model`) or a checkpoint's path, a precision, a batch size, and how a
    transformer acts."""

    model: str
    precision: str
    batch: int
    context: str | None = None


def main(arguments: list[str] | None = None) -> int:
    """Measure all cases and write one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = f"{', '.join(PRESETS)}, with a backbone before it such as mamba-16m, or a checkpoint; default: 16m, 206m"
    parser.add_argument("--model", action="append", help=sizes)
    parser.add_argument("--precision", action="append", help="default: fp32, fp16")
    parser.add_argument("--batch", action="append", type=int, help="default: 1, 64")
    parser.add_argument("--context", help="how transformers act: window (their default) or cache")
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: both")
    parser.add_argument("--no-torch", action="store_true", help="times the targets alone")
    parser.add_argument("--steps", type=int, default=500, help="timed steps (500)")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu_check.json"))
    chosen = parser.parse_args(arguments)
    reason = cuda.unavailable()
    if reason is not None:
        print(f"error: {reason}; this check needs an NVIDIA GPU", file=sys.stderr)
        return 2
    cases = [
        Case(model, precision, batch, chosen.context if model.startswith("decision_transformer") else None)
        for model in chosen.model or ("16m", "206m")
        for precision in chosen.precision or ("fp32", "fp16")
        for batch in chosen.batch or (1, 64)
    ]
    targets = tuple(chosen.target or TARGETS)
    document: dict[str, Any] = {"machine": describe_machine(), "cases": []}
    for case in cases:  # written after each, so that a run that is cut off leaves what it has
        document["cases"].append(measure_case(case, chosen.steps, targets, with_torch=not chosen.no_torch))
        print(summary(document["cases"][-1]), flush=True)
        chosen.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"{chosen.output}: {len(cases)} cases")
    return 0


def summary(result: dict[str, Any]) -> str:
    """A case in one line: milliseconds of the median step for every way, or why there is none."""
    model = " ".join(filter(None, (result["model"], result["context"])))
    head = f"{model} {result['precision']} batch {result['batch']}:"
    ways = (
        f"{name} {way['error'].splitlines()[0][:150] if 'error' in way else format(way['p50_ms'], '.3f') + ' ms'}"
        for name, way in result["ways"].items()
    )
    return f"{head} {'; '.join(ways)}"


def describe_machine() -> dict[str, Any]:
    """GPU, driver, versions, and the bandwidth of copies on the GPU in bytes per second."""
    versions = {}
    for package in ("tensorrt", "tensorrt_rtx", "apache-tvm", "torch", "onnxruntime-gpu"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        **dataclasses.asdict(cuda.current_gpu()),
        "packages": versions,
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


def measure_case(case: Case, steps: int, targets: Sequence[str], *, with_torch: bool) -> dict[str, Any]:
    """All ways to run one case; a way that fails has the reason in its place."""
    try:
        checkpoint = load_model(case)
    except (LramError, ValueError) as error:
        return {**dataclasses.asdict(case), "ways": {"checkpoint": {"error": describe(error)}}}
    bandwidth = copy_bandwidth()
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        target: functools.partial(time_target, target, checkpoint, case, steps, bandwidth) for target in targets
    }
    if with_torch and case.precision in FLOAT_PRECISIONS:
        for name, compiled in (("torch_eager", False), ("torch_compile", True)):
            ways[name] = functools.partial(time_torch, checkpoint, case, steps, bandwidth, compiled=compiled)
    if with_torch:
        ways["onnxruntime_cuda"] = functools.partial(time_onnxruntime, checkpoint, case, steps, bandwidth)
    results: dict[str, Any] = {}
    for name, way in ways.items():
        try:
            results[name] = way()
        except Exception as error:  # foreign toolkits: whatever they raise is this way's result
            results[name] = {"error": describe(error)}
    return {**dataclasses.asdict(case), "bandwidth": bandwidth, "ways": results}


def load_model(case: Case) -> Checkpoint:
    """A random checkpoint of a preset, ``16m`` or ``mamba-16m``, or one from a file."""
    backbone, _, preset = case.model.rpartition("-")
    backbone = backbone or "xlstm"
    if backbone in BACKBONES and preset in backbone_module(backbone, "config").PRESETS:
        checkpoint = random_checkpoint(preset_config(preset, backbone), Path(case.model))
    else:
        checkpoint = load_checkpoint(Path(case.model))
    return dataclasses.replace(checkpoint, config=checkpoint.config.in_context(case.context))


def export_case(target: str, checkpoint: Checkpoint, case: Case, path: Path) -> Bundle:
    """A bundle for this machine's GPU; TensorRT for RTX builds its engine right away, where it names the GPU."""
    capability = cuda.current_gpu().compute_capability
    platform_ = Platform()
    if target == "tvm":
        platform_ = Platform(processors=(f"cuda-sm{capability.replace('.', '')}",))
    elif find_toolkit().builds_without_gpu:
        with contextlib.suppress(UsageError):  # not named: `compile` then asks for the GPU that is here
            check_capabilities(find_toolkit(), [capability])
            platform_ = Platform(compute_capabilities=(capability,))
    options = ExportOptions(
        (target,), case.batch, 16, quantization=QuantizationOptions(case.precision), platform=platform_, report=False
    )
    return export_bundle(checkpoint, resolve_task(TASK), path, options)


def floor_ms(weight_bytes: int, spec: StepSpec, bandwidth: float) -> float:
    """Milliseconds for reading the weights once and the state once in and once out."""
    state = 4 * sum(tensor.size for tensor in spec.states)
    return 1000 * (weight_bytes + 2 * state) / bandwidth


def time_target(target: str, checkpoint: Checkpoint, case: Case, steps: int, bandwidth: float) -> dict[str, Any]:
    """Export, verify on this GPU and time; TensorRT compiles its engine first if the export built none for it."""
    from lram_export.runtimes import load_runtime, unavailable
    from lram_export.verification.verify import load_bundle_reference, parity_meter, replay

    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        bundle = export_case(target, checkpoint, case, Path(folder) / "policy.lram")
        artifact = bundle.load_artifact(target)
        if target == "tensorrt" and unavailable(target, artifact) is not None:
            from lram_export.deploy.compile import compile_engine

            compile_engine(bundle)
        built = time.perf_counter()
        runtime = load_runtime(target, artifact, threads=1)
        loaded = time.perf_counter()
        try:
            reference = load_bundle_reference(bundle)
            meter = parity_meter(bundle, target, runtime, reference)
            replay(runtime, reference, meter)
            weight_bytes = bundle.artifact(target).weight_bytes
            floor = floor_ms(weight_bytes, bundle.manifest.spec, bandwidth)
            timing = time_steps(runtime_step(runtime), steps, floor)
            parity = meter.result().to_json()
        finally:
            runtime.close()
    seconds = {"export_seconds": built - started, "load_seconds": loaded - built}
    return {**dataclasses.asdict(timing), "weight_bytes": weight_bytes, **seconds, "parity": parity}


def runtime_step(runtime: Runtime) -> Callable[[], Any]:
    """One step of a runtime on the same random input."""
    inputs = [np.zeros(t.shape, t.dtype) for t in runtime.spec.inputs]
    inputs[0] = np.random.default_rng(0).standard_normal(inputs[0].shape).astype(inputs[0].dtype)
    return lambda: runtime.step(*inputs)


def time_torch(checkpoint: Checkpoint, case: Case, steps: int, bandwidth: float, *, compiled: bool) -> dict[str, Any]:
    """The same step graph in PyTorch on the GPU, state kept there; float32, or products in bfloat16 under autocast.

    So for `fp16`, too: what closes a gate, -1e30, is no number in float16.
    """
    policy = lower(checkpoint, resolve_task(TASK), name="policy", batch_size=case.batch)
    weight_bytes = 4 * sum(parameter.numel() for parameter in policy.graph.parameters())
    step = torch_step(policy, case, "cuda", compiled=compiled)
    return dataclasses.asdict(time_steps(step, steps, floor_ms(weight_bytes, policy.spec, bandwidth)))


def torch_step(policy: LoweredPolicy, case: Case, device: str, *, compiled: bool = False) -> Callable[[], Any]:
    """A function that runs one step and returns the action on the host."""
    import torch

    graph: Any = policy.graph.to(device)
    if compiled:
        graph = torch.compile(graph, mode="reduce-overhead")  # CUDA graphs
    inputs, state = (
        [
            torch.full(t.shape, getattr(t, "initial", 0.0) or 0.0, dtype=getattr(torch, t.dtype), device=device)
            for t in tensors
        ]
        for tensors in (policy.spec.inputs, policy.spec.states)
    )

    def step() -> Any:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=case.precision != "fp32"):
            action, _, *after = graph(*inputs, *state)
        for old, new in zip(state, after, strict=True):
            old.copy_(new)  # compiled graphs overwrite what they return
        return action.cpu()

    return step


def time_onnxruntime(checkpoint: Checkpoint, case: Case, steps: int, bandwidth: float) -> dict[str, Any]:
    """The ONNX of the target `tensorrt` on ONNX Runtime's CUDA provider, state kept on the GPU."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return {"error": "ONNX Runtime has no CUDA provider here (package onnxruntime-gpu)"}
    with TemporaryDirectory() as folder:
        bundle = export_case("tensorrt", checkpoint, case, Path(folder) / "policy.lram")
        options = onnxruntime.SessionOptions()
        options.add_free_dimension_override_by_name(ROWS, case.batch)
        session = onnxruntime.InferenceSession(
            str(bundle.path / "tensorrt" / "model.onnx"), options, providers=["CUDAExecutionProvider"]
        )
    spec = bundle.manifest.spec
    floor = floor_ms(bundle.artifact("tensorrt").weight_bytes, spec, bandwidth)
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
