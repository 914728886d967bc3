"""What a sweep is of: everything that is read and checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.checkpoints.loading import CheckpointSource
from lram_export.episodes.batches import split_episodes
from lram_export.episodes.steps import StepSequence, random_steps
from lram_export.lowering import LoweredModel, lower
from lram_export.model.matrices import select_matrices
from lram_export.quantization.calibration import load_calibration
from lram_export.quantization.quantize import QuantizationOptions
from lram_export.spec.precision import calibrated
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import StepSpec
from lram_export.sweep.grid import SweepOptions
from lram_export.system.files import file_sha256
from lram_export.system.machine import suitable_threads


def quantization_options(precision: str, options: SweepOptions) -> QuantizationOptions:
    """How a precision is made; calibrated if recordings are given and its codes are integers."""
    return QuantizationOptions(precision, options.keep_fp32, options.calibration if calibrated(precision) else ())


@dataclass(frozen=True)
class SweepPlan:
    """What is swept. The checkpoint itself is loaded when it is needed, so that its memory is free in between.

    ``identity`` tells it from any other; ``episodes`` are the steps over which cells are compared with the float32
    reference, ``compared_over`` says which these are.
    """

    source: CheckpointSource
    task: TaskSpec
    options: SweepOptions
    identity: dict[str, Any]
    parameters: int
    episodes: tuple[StepSequence, ...]
    compared_over: list[str]
    calibration: list[str]
    assumptions: tuple[str, ...]

    @property
    def threads(self) -> int:
        """Of every runtime, where one steps at a time."""
        return self.options.threads or suitable_threads(self.parameters, self.options.batch_size)


def prepare(source: CheckpointSource, task: TaskSpec, options: SweepOptions) -> SweepPlan:
    """Read the checkpoint and the recordings, and check what can be checked before anything is written.

    Raises:
        UsageError: model, task, patterns or environments do not fit.
        LramError: a checkpoint or a recording that cannot be read.
    """
    checkpoint = source.load()
    policy = lower(checkpoint, task, name="sweep", batch_size=options.batch_size)
    select_matrices(policy.matrix_names(), options.keep_fp32)
    check_environments(options, policy.spec, task)
    episodes, compared_over = _compared_over(options, policy)
    return SweepPlan(
        source=source,
        task=task,
        options=options,
        identity=identity(checkpoint, task, options.batch_size),
        parameters=checkpoint.parameters,
        episodes=episodes,
        compared_over=compared_over,
        calibration=[file_sha256(Path(p)) for p in options.calibration],
        assumptions=checkpoint.assumptions,
    )


def _compared_over(options: SweepOptions, policy: LoweredModel) -> tuple[tuple[StepSequence, ...], list[str]]:
    """The episodes to compare actions over, and what tells them from others."""
    if options.recordings:
        recorded = load_calibration(options.recordings, policy.spec)
        return recorded.episodes, list(recorded.sha256)
    if options.calibration:
        recorded = load_calibration(options.calibration, policy.spec)
        return recorded.split()[1].episodes, ["held out of", *recorded.sha256]
    steps = random_steps(policy.spec, policy.task, options.reference_steps)
    return tuple(split_episodes([steps])), [f"{options.reference_steps} random steps"]


def identity(checkpoint: Checkpoint, task: TaskSpec, batch_size: int) -> dict[str, Any]:
    """What everything in a sweep's folder comes from."""
    return {
        "checkpoint": checkpoint.sha256,
        "model": checkpoint.config.to_json(),
        "task": task.to_json(),
        "batch_size": batch_size,
    }


def check_environments(options: SweepOptions, spec: StepSpec, task: TaskSpec) -> None:
    """Raise UsageError for an environment that does not exist, is not installed, or does not fit the policy."""
    if not options.environments:
        return
    from lram_export.rollouts.environments.fitting import FittedEnvironment

    for name in options.environments:
        FittedEnvironment.open(name, spec, task).close()
