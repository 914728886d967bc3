"""The steps of a sweep as jobs for a crew: an export per precision, a comparison per cell, a seed per cell and task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.bundle import BUNDLE_SUFFIX, Bundle
from lram_export.bundle.manifest import MANIFEST_FILE
from lram_export.checkpoints import travelling
from lram_export.checkpoints.loading import CheckpointSource
from lram_export.episodes.batches import Outputs, runtime_outputs
from lram_export.episodes.steps import StepSequence
from lram_export.errors import LramError, describe
from lram_export.export import ExportOptions, TargetFailure, export_bundle
from lram_export.exporters import EXPORTERS
from lram_export.model.config import bin_width
from lram_export.progress import SILENT, Advance, Progress
from lram_export.rollouts.playing import EvaluationJob, SeedOutcome, SeedTask
from lram_export.rollouts.workers import Job
from lram_export.runtimes import RUNTIMES, load_runtime, unavailable
from lram_export.spec.cost import QuantizationCost, quantization_cost
from lram_export.spec.tasks import TaskSpec
from lram_export.sweep.grid import Cell, SweepOptions
from lram_export.sweep.plan import quantization_options
from lram_export.system.files import scratch_directory

ExportTask = tuple[str, tuple[str, ...]]
"""A precision, and the targets of its bundle."""
PlayTask = tuple[Cell, SeedTask]


def export_precision(
    source: CheckpointSource,
    task: TaskSpec,
    options: SweepOptions,
    asked: ExportTask,
    path: Path,
    progress: Progress = SILENT,
) -> dict[str, TargetFailure]:
    """Write the bundle of a precision; what became of the targets that are not in it, which may be all."""
    precision, targets = asked
    failures: dict[str, TargetFailure] = {}
    chosen = ExportOptions(
        targets,
        options.batch_size,
        options.reference_steps,
        force=True,
        quantization=quantization_options(precision, options),
        report=False,
    )
    try:
        export_bundle(source.load(), task, path, chosen, progress, failures)
    except Exception as error:  # of the whole precision; the others go on
        return {t: failures.get(t, TargetFailure(describe(error))) for t in targets}
    return failures


@dataclass(frozen=True)
class Exported:
    """A bundle's files by name, none where there is no bundle; and the targets that are not in it."""

    files: Mapping[str, NDArray[np.uint8]]
    failures: Mapping[str, TargetFailure]


@dataclass(frozen=True)
class ExportJob(Job[ExportTask, Exported]):
    """:func:`export_precision` on another machine."""

    source: CheckpointSource
    task: TaskSpec
    options: SweepOptions

    @contextmanager
    def ready(self) -> Iterator[Callable[[ExportTask], Exported]]:
        """See :class:`~lram_export.rollouts.workers.Job`."""
        yield self._export

    def _export(self, asked: ExportTask) -> Exported:
        with scratch_directory() as folder:
            path = folder / f"{asked[0]}{BUNDLE_SUFFIX}"
            failures = export_precision(self.source, self.task, self.options, asked, path)
            if not path.is_dir():
                return Exported({}, failures)
            names = (MANIFEST_FILE, *(file.path for file in Bundle.open(path).files()))
            return Exported({name: np.fromfile(path / name, np.uint8) for name in names}, failures)

    def reads(self) -> dict[Path, tuple[str, ...]]:
        """The checkpoint and the recordings to calibrate on."""
        return {**travelling.files_of(self.source), **{Path(file): () for file in self.options.calibration}}

    def moved(self, places: Mapping[Path, Path]) -> ExportJob:
        """See :class:`~lram_export.rollouts.workers.Job`."""
        options = dataclasses.replace(self.options, calibration=[places[Path(f)] for f in self.options.calibration])
        return dataclasses.replace(self, source=travelling.moved(self.source, places), options=options)

    def versions(self) -> dict[str, str]:
        """Of everything that exports and verifies."""
        return _versions(self.options.targets)

    def unfit(self) -> str | None:
        """A target that cannot be exported or run here."""
        for target in self.options.targets:
            missing = EXPORTERS[target].missing()
            reason = f"the package '{missing}' is not installed" if missing is not None else unavailable(target)
            if reason is not None:
                return f"target '{target}': {reason}"
        return None

    def lost(self, task: ExportTask, error: LramError) -> Exported:
        """No bundle, and why."""
        return Exported({}, {target: TargetFailure(str(error)) for target in task[1]})


def disagreement(
    bundle: Bundle,
    target: str,
    threads: int,
    episodes: tuple[StepSequence, ...],
    expected: Outputs,
    advance: Advance = lambda amount: None,
) -> QuantizationCost:
    """How often a target of a bundle acts otherwise than expected."""
    runtime = load_runtime(target, bundle.load_artifact(target), threads)
    try:
        actual = runtime_outputs(runtime, episodes, advance)
    finally:
        runtime.close()
    manifest = bundle.manifest
    width = bin_width(manifest.model, manifest.task, manifest.interface, bundle.path)
    return quantization_cost(manifest.spec, width, expected, actual)


@dataclass(frozen=True)
class Compared:
    """What a comparison gave, or why it gave nothing."""

    cost: QuantizationCost | None
    failure: str | None = None


@dataclass(frozen=True)
class CompareJob(Job[Cell, Compared]):
    """:func:`disagreement` of cells on another machine."""

    bundles: Mapping[Cell, Path]
    episodes: tuple[StepSequence, ...]
    expected: Outputs
    threads: int

    @contextmanager
    def ready(self) -> Iterator[Callable[[Cell], Compared]]:
        """See :class:`~lram_export.rollouts.workers.Job`."""

        def compare(cell: Cell) -> Compared:
            bundle = Bundle.open(self.bundles[cell])
            return Compared(disagreement(bundle, cell.target, self.threads, self.episodes, self.expected))

        yield compare

    def reads(self) -> dict[Path, tuple[str, ...]]:
        """What of the bundles is run."""
        return _merged({path: Bundle.open(path).read_by(cell.target)} for cell, path in self.bundles.items())

    def moved(self, places: Mapping[Path, Path]) -> CompareJob:
        """See :class:`~lram_export.rollouts.workers.Job`."""
        return dataclasses.replace(self, bundles={cell: places[path] for cell, path in self.bundles.items()})

    def versions(self) -> dict[str, str]:
        """Of everything that runs."""
        return _versions({cell.target: None for cell in self.bundles})

    def lost(self, task: Cell, error: LramError) -> Compared:
        """Nothing, and why."""
        return Compared(None, str(error))


@dataclass(frozen=True)
class PlayJob(Job[PlayTask, SeedOutcome]):
    """Seeds of several cells; a process has one cell open at a time."""

    jobs: Mapping[Cell, EvaluationJob]

    @contextmanager
    def ready(self) -> Iterator[Callable[[PlayTask], SeedOutcome]]:
        """See :class:`~lram_export.rollouts.workers.Job`."""
        current: Cell | None = None
        do: Callable[[SeedTask], SeedOutcome] | None = None
        with ExitStack() as opened:

            def play(asked: PlayTask) -> SeedOutcome:
                nonlocal current, do
                cell, task = asked
                if current != cell or do is None:
                    current, do = None, None
                    opened.close()
                    current, do = cell, opened.enter_context(self.jobs[cell].ready())
                return do(task)

            yield play

    def group(self, task: PlayTask) -> Hashable:
        """A cell and an environment, which take time to open."""
        return task[0], task[1][0]

    def reads(self) -> dict[Path, tuple[str, ...]]:
        """What of the bundles is run."""
        return _merged(job.reads() for job in self.jobs.values())

    def moved(self, places: Mapping[Path, Path]) -> PlayJob:
        """See :class:`~lram_export.rollouts.workers.Job`."""
        return PlayJob({cell: job.moved(places) for cell, job in self.jobs.items()})

    def versions(self) -> dict[str, str]:
        """Of targets and environments."""
        return {name: found for job in self.jobs.values() for name, found in job.versions().items()}

    def unfit(self) -> str | None:
        """What the first cell that cannot be played here lacks."""
        return next((reason for job in self.jobs.values() if (reason := job.unfit()) is not None), None)

    def lost(self, task: PlayTask, error: LramError) -> SeedOutcome:
        """No episode, and why."""
        cell, seed = task
        return self.jobs[cell].lost(seed, error)


def _merged(found: Any) -> dict[Path, tuple[str, ...]]:
    """Names by folder, of several."""
    merged: dict[Path, tuple[str, ...]] = {}
    for files in found:
        for path, names in files.items():
            merged[path] = tuple(dict.fromkeys((*merged.get(path, ()), *names)))
    return merged


def _versions(targets: Any) -> dict[str, str]:
    found = {"numpy": np.__version__}
    for target in targets:
        found |= {**EXPORTERS[target].versions(), **RUNTIMES[target].versions()}
    return found
