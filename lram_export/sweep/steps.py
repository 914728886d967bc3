"""The steps of a sweep: export, compare with the float32 reference, time, play. Each does only what is missing.

Targets share a bundle per precision (quantize once, compile many), and all cells are timed in one run, because only
then ratios mean something: if one cell's time is missing, all are measured again.
"""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

from lram_export.benchmark.bench import BenchOptions, Contender, bench_together
from lram_export.bundle.bundle import Bundle
from lram_export.bundle.manifest import MANIFEST_FILE
from lram_export.checkpoints.travelling import found_here
from lram_export.episodes.batches import Outputs, batch_episodes
from lram_export.errors import LramError, describe
from lram_export.export import TargetFailure
from lram_export.exporters import EXPORTERS
from lram_export.lowering import lower
from lram_export.model.reference import oracle_threads
from lram_export.progress import Advance, Progress
from lram_export.quantization.episode_runs import outputs
from lram_export.rollouts.environments import registered_here
from lram_export.rollouts.evaluation import EpisodeResult, EvaluationOptions, evaluate
from lram_export.rollouts.journal import Journal, identity, open_journal
from lram_export.rollouts.playing import EvaluationJob, SeedOutcome
from lram_export.rollouts.workers import Crew, Workers, share
from lram_export.runtimes import RUNTIMES
from lram_export.spec.cost import QuantizationCost
from lram_export.spec.precision import calibrated
from lram_export.sweep.folder import Outcome, SweepFolder
from lram_export.sweep.grid import Cell, CellResult, impossible
from lram_export.sweep.jobs import (
    Compared,
    CompareJob,
    ExportJob,
    ExportTask,
    PlayJob,
    PlayTask,
    disagreement,
    export_precision,
)
from lram_export.sweep.plan import SweepPlan
from lram_export.system.files import atomic_directory
from lram_export.system.machine import available_cpus, cpu_model, threads_beside_others
from lram_export.version import __version__

EXPORT, COMPARE, BENCH, PLAY = "export", "compare", "bench", "evaluate "
"""Names of the steps; to the last one the environment's is added."""
ARTIFACT, IMPOSSIBLE = "artifact", "impossible"
"""What an export gives: the identity of an artifact, or why the target cannot run this model."""


class SweepSteps:
    """Does the steps, one after the other; ``kept`` and ``done`` count the results of before and of now."""

    def __init__(self, plan: SweepPlan, folder: SweepFolder, progress: Progress, crew: Crew | None = None) -> None:
        self.kept = self.done = 0
        self._crew = crew
        self._plan, self._options, self._folder, self._progress = plan, plan.options, folder, progress
        self._bundles: dict[str, Bundle] = {}
        self._outcomes: dict[tuple[Cell, str], Outcome] = {}

    def export(self) -> None:
        """One verified bundle per precision, with all targets that can run it."""
        wanted: list[ExportTask] = []
        for precision in self._options.precisions:
            cells = [c for c in self._options.cells if c.precision == precision and not impossible(c, self._options)]
            if not cells:
                continue
            held = self._held(precision)
            made_with = {c: self._export_made_with(c) for c in cells}
            missing = self._missing(EXPORT, made_with, lost={c for c in cells if c.target not in held})
            if missing:
                # a bundle is written as a whole: also with what a sweep of other targets has put there
                wanted.append((precision, tuple(dict.fromkeys([*(c.target for c in cells), *held]))))
        for asked, failures in self._exports(wanted):
            self._keep_export(asked, failures)
        for precision in self._options.precisions:
            with suppress(LramError):
                self._bundles[precision] = Bundle.open(self._folder.bundle(precision))

    def compare(self) -> None:
        """How often every cell acts otherwise than the float32 reference."""
        made_with = {c: self._made_with(c, steps=self._plan.compared_over) for c in self._exported()}
        missing = self._missing(COMPARE, made_with)
        if not missing:
            return
        expected = self._float32_outputs()
        if self._crew is not None:
            bundles = {cell: self._bundles[cell.precision].path for cell in missing}
            job = CompareJob(bundles, self._plan.episodes, expected, self._plan.threads)
            for _ in self._crew.results(
                job, missing, lambda number, found: self._keep_compared(missing[number], made_with, found)
            ):
                pass
            return
        for cell in missing:
            with self._attempt(cell, COMPARE, made_with[cell]) as keep:
                keep(self._disagreement(cell, expected).to_json())

    def bench(self) -> None:
        """Time all cells in turns, in one run."""
        cells = self._exported()
        options = BenchOptions((), self._plan.threads, self._options.bench_steps)
        run = {
            "cells": [[c.precision, c.target, self._identity(c)] for c in cells],
            "steps": options.steps,
            "threads": options.threads,
            "cpu": cpu_model(),
            "cpus": len(available_cpus()),
        }
        made_with = {c: self._made_with(c, **run) for c in cells}
        if not self._missing(BENCH, made_with, together=True):
            return
        contenders = [Contender(str(c), self._bundles[c.precision], c.target) for c in cells]
        failures: dict[str, str] = {}
        try:
            report = bench_together(
                contenders, options, self._progress, lambda c, error: failures.update({c.name: describe(error)})
            )
        except LramError as error:  # the bandwidth probe
            failures = {str(c): describe(error) for c in cells}
        for cell in cells:
            if str(cell) in failures:
                self._keep(cell, BENCH, Outcome(made_with[cell], failure=failures[str(cell)]))
        timed = [c for c in cells if str(c) not in failures]
        for cell, result in zip(timed, report.results if timed else (), strict=True):
            speed = {**dataclasses.asdict(dataclasses.replace(result, parity=None)), "bandwidth": report.bandwidth}
            self._keep(cell, BENCH, Outcome(made_with[cell], speed))

    def play(self) -> None:
        """Closed loop, the same seeds for every cell."""
        options = self._options
        threads = options.threads or share(threads_beside_others(self._plan.parameters), options.parallel)
        if self._crew is not None:
            self._play_with(self._crew, threads)
            return
        with Workers(options.parallel) as processes:  # which start with the first episode that is missing
            workers = processes if options.parallel > 1 else None
            for name in options.environments:
                made_with = {
                    c: self._made_with(c, episodes=options.episodes, seed=options.seed, threads=threads)
                    for c in self._exported()
                }
                for cell in self._missing(PLAY + name, made_with):
                    with self._attempt(cell, PLAY + name, made_with[cell]) as keep:
                        asked = EvaluationOptions(
                            (name,),
                            (cell.target,),
                            options.episodes,
                            options.seed,
                            threads=threads,
                            parallel=options.parallel,
                        )
                        keep(self._episodes(cell, asked, workers))

    def result(self, cell: Cell) -> CellResult:
        """What the steps gave for a cell."""
        reason = impossible(cell, self._options)
        if reason is not None:
            return CellResult(cell, reason)
        export = self._outcomes[cell, EXPORT]
        if export.failure is not None or IMPOSSIBLE in (export.result or {}):
            reason = (export.result or {}).get(IMPOSSIBLE)
            return CellResult(cell, reason, {} if reason else {EXPORT: str(export.failure)})
        bundle = self._bundles[cell.precision]
        entry = bundle.artifact(cell.target)
        own = {step: outcome for (c, step), outcome in self._outcomes.items() if c == cell}
        found = {step: outcome.result for step, outcome in own.items() if outcome.result is not None}
        return CellResult(
            cell,
            failures={step: outcome.failure for step, outcome in own.items() if outcome.failure is not None},
            size=bundle.artifact_size(cell.target),
            parity=entry.parity,
            disagreement=QuantizationCost(**found[COMPARE]) if COMPARE in found else None,
            speed=found.get(BENCH),
            episodes={
                step.removeprefix(PLAY): [EpisodeResult(**e) for e in result["episodes"]]
                for step, result in found.items()
                if step.startswith(PLAY)
            },
        )

    # what is there already

    def _export_made_with(self, cell: Cell) -> dict[str, Any]:
        made_with: dict[str, Any] = {**_tools(cell.target), "reference_steps": self._options.reference_steps}
        if cell.precision != "fp32":
            made_with["keep_fp32"] = list(self._options.keep_fp32)
        if calibrated(cell.precision):
            made_with["calibration"] = self._plan.calibration
        return made_with

    def _made_with(self, cell: Cell, **others: Any) -> dict[str, Any]:
        return {"artifact": self._identity(cell), **_tools(cell.target), **others}

    def _identity(self, cell: Cell) -> str:
        return self._bundles[cell.precision].artifact_digest(cell.target)

    def _held(self, precision: str) -> list[str]:
        """Targets of the bundle that is there which need not be exported again."""
        try:
            bundle = Bundle.open(self._folder.bundle(precision))
            with self._progress.stage(f"checking {bundle.path.name}"):
                bundle.check_files()
        except LramError:  # not there, or damaged
            return []
        cells = [Cell(precision, t) for t in bundle.targets if t in EXPORTERS]
        done = {c: self._folder.done(c, EXPORT, self._export_made_with(c)) for c in cells}
        return [c.target for c in cells if done[c] == {ARTIFACT: bundle.artifact_digest(c.target)}]

    def _exported(self) -> list[Cell]:
        return [
            c
            for c in self._options.cells
            if (c, EXPORT) in self._outcomes and ARTIFACT in (self._outcomes[c, EXPORT].result or {})
        ]

    def _missing(
        self,
        step: str,
        made_with: Mapping[Cell, dict[str, Any]],
        *,
        lost: Collection[Cell] = (),
        together: bool = False,
    ) -> list[Cell]:
        """Cells for which a step has to be done; all or none of them if only ``together`` they mean something.

        What a step once gave for cells that are ``lost`` is no longer there; that a target refused is still true.
        """
        found = {c: self._folder.done(c, step, made_with[c]) for c in made_with}
        missing = [c for c, result in found.items() if result is None or (c in lost and IMPOSSIBLE not in result)]
        if missing and together:
            missing = list(made_with)
        self._outcomes |= {(c, step): Outcome(made_with[c], found[c]) for c in made_with if c not in missing}
        self.kept += len(made_with) - len(missing)
        self.done += len(missing)
        return missing

    def _keep(self, cell: Cell, step: str, outcome: Outcome) -> None:
        self._folder.keep(cell, step, outcome)
        self._outcomes[cell, step] = outcome

    @contextmanager
    def _attempt(self, cell: Cell, step: str, made_with: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
        """The block hands its result to what is yielded; whatever it raises is this cell's failure and no other's."""
        try:
            yield lambda result: self._keep(cell, step, Outcome(made_with, result))
        except Exception as error:  # runtimes and environments are foreign code
            self._keep(cell, step, Outcome(made_with, failure=describe(error)))

    # how it is done

    def _exports(self, wanted: Sequence[ExportTask]) -> Iterator[tuple[ExportTask, Mapping[str, TargetFailure]]]:
        """Write the bundles, here or by the crew; the targets that each has not."""
        plan = self._plan
        if self._crew is None or not wanted:
            for asked in wanted:
                path, progress = self._folder.bundle(asked[0]), _Labelled(self._progress, f"{asked[0]}: ")
                yield asked, export_precision(plan.source, plan.task, self._options, asked, path, progress)
                gc.collect()
            return
        job = ExportJob(found_here(plan.source), plan.task, self._options)
        for asked, exported in zip(wanted, self._crew.results(job, wanted), strict=True):
            if exported.files:
                with atomic_directory(self._folder.bundle(asked[0]), marker=MANIFEST_FILE, force=True) as folder:
                    for name, content in exported.files.items():
                        (folder / name).parent.mkdir(parents=True, exist_ok=True)
                        content.tofile(folder / name)
            yield asked, exported.failures

    def _keep_export(self, asked: ExportTask, failures: Mapping[str, TargetFailure]) -> None:
        precision, targets = asked
        results: dict[str, dict[str, Any]] = {}
        with suppress(LramError):
            bundle = Bundle.open(self._folder.bundle(precision))
            results = {t: {ARTIFACT: bundle.artifact_digest(t)} for t in bundle.targets if t not in failures}
        for target in targets:
            cell = Cell(precision, target)
            outcome = Outcome(self._export_made_with(cell), results.get(target))
            if target in failures and failures[target].impossible:
                outcome = dataclasses.replace(outcome, result={IMPOSSIBLE: failures[target].reason})
            elif target in failures:
                outcome = dataclasses.replace(outcome, failure=failures[target].reason)
            self._keep(cell, EXPORT, outcome)

    def _keep_compared(self, cell: Cell, made_with: Mapping[Cell, dict[str, Any]], found: Compared) -> None:
        result = None if found.cost is None else found.cost.to_json()
        self._keep(cell, COMPARE, Outcome(made_with[cell], result, found.failure))

    def _play_with(self, crew: Crew, threads: int) -> None:
        """All cells and environments at once; what a seed gave is written as it comes, and read again by the next."""
        options = self._options
        with ExitStack() as held:
            jobs: dict[Cell, EvaluationJob] = {}
            journals: dict[tuple[Cell, str], Journal] = {}
            made_with: dict[tuple[Cell, str], dict[str, Any]] = {}
            for name in options.environments:
                own = {
                    c: self._made_with(c, episodes=options.episodes, seed=options.seed, threads=threads)
                    for c in self._exported()
                }
                for cell in self._missing(PLAY + name, own):
                    bundle = self._bundles[cell.precision]
                    asked = EvaluationOptions(
                        tuple(options.environments), (cell.target,), options.episodes, options.seed, threads=threads
                    )
                    registered = registered_here(options.environments)
                    jobs[cell] = EvaluationJob(bundle.path, asked, None, registered)
                    one = dataclasses.replace(asked, environments=(name,))
                    made_of = identity(bundle, one, None)
                    path = self._folder.journal(cell, name)
                    journals[cell, name] = held.enter_context(open_journal(path, made_of, replace=True))
                    made_with[cell, name] = own[cell]
            seeds = range(options.seed, options.seed + options.episodes)
            tasks: list[PlayTask] = [
                (cell, (name, seed))
                for (cell, name), journal in journals.items()
                for seed in seeds
                if journal.outcome((name, seed)) is None
            ]
            failed: dict[tuple[Cell, str], str] = {}

            def known(number: int, outcome: SeedOutcome) -> None:
                cell, task = tasks[number]
                journals[cell, task[0]].keep(task, outcome)

            for (cell, (name, _)), outcome in zip(tasks, crew.results(PlayJob(jobs), tasks, known), strict=True):
                if outcome.failure is not None:
                    failed.setdefault((cell, name), str(outcome.failure))
            for (cell, name), journal in journals.items():
                outcomes = [journal.outcome((name, seed)) for seed in seeds]
                episodes = [dataclasses.asdict(o.played[0].episode) for o in outcomes if o is not None]
                failure = failed.get((cell, name))
                result = {"episodes": episodes} if failure is None else None
                self._keep(cell, PLAY + name, Outcome(made_with[cell, name], result, failure))
                if failure is None:
                    journal.path.unlink()

    def _float32_outputs(self) -> Outputs:
        plan, episodes = self._plan, self._plan.episodes
        with self._progress.stage("running the float32 reference"):
            policy = lower(plan.source.load(), plan.task, name="float32")
            with oracle_threads(policy.parameters):
                return outputs(policy.graph, batch_episodes(episodes))

    def _disagreement(self, cell: Cell, expected: Outputs) -> QuantizationCost:
        episodes = self._plan.episodes
        with self._progress.stage(f"{cell}: comparing", sum(len(e) for e in episodes)) as advance:
            bundle = self._bundles[cell.precision]
            return disagreement(bundle, cell.target, self._plan.threads, episodes, expected, advance)

    def _episodes(self, cell: Cell, options: EvaluationOptions, workers: Crew | None) -> dict[str, Any]:
        progress = _Labelled(self._progress, f"{cell}: ")
        evaluation = evaluate(self._bundles[cell.precision], options, None, progress, workers)
        if evaluation.failure is not None:
            raise LramError(evaluation.failure)
        (result,) = evaluation.results
        return {"episodes": [dataclasses.asdict(e) for e in result.episodes]}


def _tools(target: str) -> dict[str, str]:
    """Versions of what makes and runs a target, and the settings in the environment that it heeds."""
    settings = {name: value for name, value in os.environ.items() if name.startswith(f"LRAM_{target.upper()}_")}
    return {"lram-export": __version__, **EXPORTERS[target].versions(), **RUNTIMES[target].versions(), **settings}


class _Labelled:
    """Progress whose stages say to which part of the grid they belong."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress, self._label = progress, label

    def stage(self, description: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """See :class:`~lram_export.progress.Progress`."""
        return self._progress.stage(self._label + description, total)
