"""`lram-export sweep`: one checkpoint over a grid of targets and precisions, each cell exported, checked and timed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from lram_export.checkpoints.loading import CheckpointSource
from lram_export.progress import SILENT, Progress
from lram_export.rollouts.workers import Crew
from lram_export.spec.tasks import TaskSpec
from lram_export.sweep.folder import check_sweep, open_sweep
from lram_export.sweep.grid import CellResult, SweepOptions, check_options
from lram_export.sweep.plan import SweepPlan, prepare
from lram_export.sweep.steps import SweepSteps


@dataclass(frozen=True)
class SweepReport:
    """All cells, how many steps of an earlier run were kept and how many done now, what the checkpoint left open."""

    cells: tuple[CellResult, ...]
    kept: int
    done: int
    assumptions: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[CellResult, ...]:
        """Cells in which a step failed."""
        return tuple(c for c in self.cells if c.failures)


def sweep(
    source: CheckpointSource,
    task: TaskSpec,
    path: str | Path,
    options: SweepOptions,
    *,
    force: bool = False,
    progress: Progress = SILENT,
    crew_for: Callable[[SweepPlan], AbstractContextManager[Crew]] | None = None,
) -> SweepReport:
    """Export, verify, compare, time and play every cell of the grid, except for what is already done in ``path``.

    A cell that fails is reported, and the rest goes on; the next sweep tries it again. A crew, made ``crew_for`` what
    is swept, exports, compares and plays; the times are this machine's.

    Raises:
        UsageError: wrong options, or a folder that is not a sweep of this checkpoint and task.
        LramError: the checkpoint or a recording cannot be read.
    """
    path = Path(path)
    check_options(options)
    check_sweep(path, force=force)
    with progress.stage("reading the checkpoint"):
        plan = prepare(source, task, options)
    with ExitStack() as held:
        folder = held.enter_context(open_sweep(path, plan.identity, force=force))
        crew = None if crew_for is None else held.enter_context(crew_for(plan))
        steps = SweepSteps(plan, folder, progress, crew)
        steps.export()
        steps.compare()
        steps.bench()
        steps.play()
        results = tuple(steps.result(cell) for cell in options.cells)
    return SweepReport(results, steps.kept, steps.done, plan.assumptions)
