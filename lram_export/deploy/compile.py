"""Compiling on the machine that will run: build the engine, check it against the recorded steps, keep it."""

from __future__ import annotations

import dataclasses
import datetime
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lram_export.bundle.bundle import Bundle
from lram_export.episodes.reference import Reference, sample_state
from lram_export.errors import ParityError, UsageError
from lram_export.progress import SILENT, Advance, Progress
from lram_export.runtimes import Runtime
from lram_export.runtimes import tensorrt as runtime
from lram_export.spec.parity import ParityMeter, ParityResult
from lram_export.spec.tensors import StepSpec
from lram_export.targets.tensorrt import cuda
from lram_export.targets.tensorrt.builder import build_engine
from lram_export.targets.tensorrt.engines import EngineStore
from lram_export.targets.tensorrt.memory import Memory
from lram_export.targets.tensorrt.recipe import artifact_recipe
from lram_export.targets.tensorrt.toolkit import find_toolkit, refusal
from lram_export.verification.verify import load_bundle_reference, parity_meter

TARGET = "tensorrt"


@dataclass(frozen=True)
class Compiled:
    """A kept engine: its file, how long the build took (None: it was there already), what verifying it found."""

    path: Path
    seconds: float | None
    parity: ParityResult


def compile_engine(
    bundle: Bundle, *, batch: int | None = None, force: bool = False, progress: Progress = SILENT
) -> Compiled:
    """Build, verify and keep the engine for this GPU; one that is there is only verified, unless ``force``.

    Args:
        bundle: the bundle.
        batch: rows of a step; default: as many as the bundle was exported for.
        force: build again what was built before.
        progress: told about building and verifying.

    Raises:
        UsageError: no artifact for tensorrt in the bundle, no TensorRT, no driver or GPU, one that it does not run on,
            too little memory; a graph that is not for this number of rows.
        ParityError: the engine does not do what the reference does; it is not kept.
        LramError: the build failed; nothing is kept.
    """
    artifact = bundle.load_artifact(TARGET, batch)
    rows = artifact.spec.batch_size
    reference = load_bundle_reference(bundle)
    toolkit = find_toolkit()
    reason = cuda.unavailable()
    if reason is not None:
        raise UsageError(f"target '{TARGET}': {reason}; compile on the machine that will run the bundle")
    gpu, recipe = cuda.current_gpu(), artifact_recipe(artifact)
    refused = refusal(toolkit, gpu)
    if refused is not None:
        raise UsageError(f"target '{TARGET}': {refused}")
    store, key = EngineStore.of(bundle.path), runtime.engine_key(toolkit, gpu, recipe, artifact)
    path, seconds = None if force else store.find(key), None
    if path is None:
        _check_memory(bundle, gpu, artifact.spec)
        store.create()
        started = time.monotonic()
        plan = build_engine(
            toolkit,
            artifact.file("model.onnx"),
            recipe,
            rows=rows,
            timing_cache=store.folder / f"{key.machine}.{recipe.timing_cache}",
            progress=progress,
        )
        seconds = time.monotonic() - started
    else:
        plan = memoryview(path.read_bytes())
    # an engine for fewer rows than were recorded computes these part after part
    tried = dataclasses.replace(artifact, spec=artifact.spec.with_batch(max(rows, artifact.exported_batch)))
    engine = runtime.load_engine(toolkit, gpu, plan, store.path(key), tried, rows)
    try:
        with progress.stage(f"verifying on {gpu.name}", len(reference.inputs)) as advance:
            meter = parity_meter(bundle, TARGET, engine, reference)
            _replay(engine, reference, artifact.exported_batch, meter, advance)
    finally:
        engine.close()
    parity = meter.result()
    if not parity.passed:
        store.discard(key)
        raise ParityError(f"{store.path(key)}: not what the reference model does: {'; '.join(parity.failures())}")
    if seconds is not None:  # only now: what lies there is verified
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        path = store.keep(key, plan, {"gpu": gpu.name, "built": now.isoformat(), "seconds": round(seconds, 1)})
    assert path is not None
    return Compiled(path, seconds, parity)


def _replay(engine: Runtime, reference: Reference, recorded: int, meter: ParityMeter, advance: Advance) -> None:
    """Run the recorded steps in all rows, over and over where an engine has more of them than were recorded."""
    rows = np.arange(engine.spec.batch_size) % recorded
    engine.reset()
    for arguments, expected in zip(reference.inputs, reference, strict=True):
        output = engine.step(*(values[rows] for values in arguments))
        meter.add_step([values[rows] for values in expected], output)
        advance(1)
    state = {name: values[:recorded] for name, values in engine.state().items()}
    meter.add_state(reference.state_samples, sample_state(state))


def _check_memory(bundle: Bundle, gpu: cuda.Gpu, spec: StepSpec) -> None:
    needed = Memory.of(bundle.artifact(TARGET).weight_bytes, spec).building
    if needed > gpu.free_memory:
        raise UsageError(
            f"{bundle.path}: building needs about {needed / 1e9:.1f} GB, {gpu.name} has {gpu.free_memory / 1e9:.1f} GB "
            f"free; close other programs, or export a smaller --precision"
        )
