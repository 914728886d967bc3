"""Builds an engine from typed ONNX and a recipe: the same code on a laptop without a GPU and on a Jetson."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lram_export.errors import LramError, UsageError
from lram_export.progress import SILENT, Progress
from lram_export.system.files import atomic_file
from lram_export.targets.tensorrt.recipe import BuildRecipe
from lram_export.targets.tensorrt.toolkit import Toolkit, capability_number


def build_engine(
    toolkit: Toolkit,
    onnx_path: Path,
    recipe: BuildRecipe,
    *,
    rows: int,
    compute_capabilities: Sequence[str] = (),
    timing_cache: Path | None = None,
    progress: Progress = SILENT,
) -> memoryview:
    """Parse and build.

    Args:
        toolkit: what builds.
        onnx_path: the typed step graph; its weights are read from beside it.
        recipe: flags and limits.
        rows: how many the engine computes in a step.
        compute_capabilities: GPUs to build for, only with TensorRT for RTX; default: the GPU that is here.
        timing_cache: file of timings to start from and to add to (full TensorRT only).
        progress: told about TensorRT's own phases.

    Returns:
        The serialized engine.

    Raises:
        UsageError: the toolkit does not build for a compute capability; the graph is for another number of rows.
        LramError: the parser refuses operators (each is named), or the build fails (with TensorRT's reason).
    """
    trt = toolkit.module
    logger = toolkit.logger
    logger.messages.clear()
    builder = trt.Builder(logger)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    if network is None:
        raise LramError(f"{toolkit.label}: cannot create a network: {logger.reason()}")
    parser = trt.OnnxParser(network, logger)
    with progress.stage("parsing for TensorRT"):
        parsed = parser.parse_from_file(str(onnx_path))
    if not parsed:
        raise LramError(f"{onnx_path}: {toolkit.label} refuses {refusals(parser)}")
    _fix_rows(network, rows, onnx_path)
    config = builder.create_builder_config()
    _configure(toolkit, config, recipe, compute_capabilities)
    cache = _start_timing_cache(toolkit, config, timing_cache)
    with progress.stage(f"building with {toolkit.label}", PARTS) as advance, _signals_noted() as noted:
        config.progress_monitor = _monitor(trt, advance, noted)
        plan = builder.build_serialized_network(network, config)
    for number in noted:  # what they would have done at once
        signal.raise_signal(number)
    if plan is None:
        raise LramError(f"{onnx_path}: {toolkit.label} cannot build an engine: {logger.reason()}")
    if cache is not None and timing_cache is not None:
        with contextlib.suppress(OSError), atomic_file(timing_cache, force=True) as temporary:
            temporary.write_bytes(memoryview(cache.serialize()))  # a shortcut: without it the next build measures again
    return memoryview(plan)


def _fix_rows(network: Any, rows: int, onnx_path: Path) -> None:
    """Give a graph that is for any number of rows this one, as if it had been written for it."""
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        given, *shape = tensor.shape
        if given == FREE:
            tensor.shape = (rows, *shape)
        elif given != rows:
            raise UsageError(
                f"{onnx_path}: {tensor.name}: the graph is for {given} rows only, got {rows}; "
                f"an engine for {given} serves any number, part after part"
            )


def refusals(parser: Any) -> str:
    """What the parser did not take, every operator with its node's name."""
    lines = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        node = error.node_name() if hasattr(error, "node_name") else ""
        operator = error.node_operator() if hasattr(error, "node_operator") else ""
        lines.append(f"{operator} '{node}': {' '.join(error.desc().split())}" if node else error.desc())
    return "; ".join(lines) or "the model, and gives no reason"


def check_capabilities(toolkit: Toolkit, capabilities: Sequence[str]) -> None:
    """Raise UsageError unless the toolkit builds for all of these compute capabilities."""
    if not toolkit.builds_without_gpu:
        raise UsageError(
            f"--compute-capability: {toolkit.label} builds for the GPU that is here only; "
            f"install tensorrt_rtx in an environment without tensorrt, or build on the device"
        )
    for capability in capabilities:
        number = capability_number(capability)
        if number == "75":
            raise UsageError(
                "--compute-capability: 7.5 takes products in float16 only, and the recurrent state is float32; "
                "8.0 and newer can run a policy"
            )
        if capability not in toolkit.capabilities:
            names = ", ".join(toolkit.capabilities)
            raise UsageError(f"--compute-capability: {toolkit.label} does not build for {capability}; it does: {names}")


def _configure(toolkit: Toolkit, config: Any, recipe: BuildRecipe, capabilities: Sequence[str]) -> None:
    trt = toolkit.module
    config.builder_optimization_level = recipe.optimization_level
    if recipe.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if recipe.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_bytes)
    if not capabilities and toolkit.builds_without_gpu:  # its own default leaves some generations out
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
    if capabilities:
        check_capabilities(toolkit, capabilities)
        config.num_compute_capabilities = len(capabilities)
        for i, capability in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability_number(capability)}"), i)


def _start_timing_cache(toolkit: Toolkit, config: Any, path: Path | None) -> Any:
    """Hand the builder what earlier builds timed, if it takes it; TensorRT for RTX times nothing."""
    if path is None or toolkit.builds_without_gpu or not hasattr(config, "create_timing_cache"):
        return None
    for content in (path.read_bytes() if path.is_file() else b"", b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            toolkit.logger.messages.clear()  # of a cache that was refused
            return cache
    return None


FREE = -1
"""How TensorRT writes an extent that is not fixed."""
PARTS = 100
"""Steps of the progress bar of a build: percent."""


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Signals that shall end a build are noted: an exception in one of TensorRT's callbacks would be lost."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda received, frame: noted.append(received)) for number in numbers]
    try:
        yield noted
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _monitor(trt: Any, advance: Callable[[int], None], noted: Sequence[int]) -> Any:
    """TensorRT's progress monitor, which ends the build when a signal was noted; the outermost phase tells the
    percentage."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._outer: str | None = None
            self._steps, self._shown = 1, 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._outer, self._steps = phase_name, max(num_steps, 1)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self._outer:
                self._show((step + 1) * PARTS // self._steps)
            return not noted

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self._outer:
                self._show(PARTS)

        def _show(self, percent: int) -> None:
            if percent > self._shown:
                advance(percent - self._shown)
                self._shown = percent

    return Monitor()
