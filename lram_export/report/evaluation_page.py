"""An evaluation as one self-contained HTML page: scores per domain, environments, what was not played and why."""

from __future__ import annotations

import datetime

from lram_export.bundle.bundle import Bundle
from lram_export.describe import counted
from lram_export.report.evaluation_charts import evaluation_charts
from lram_export.report.parts import Cell, Line, Table, line
from lram_export.report.templates import template
from lram_export.rollouts.results import Evaluation, PolicyResult
from lram_export.rollouts.scores import Scores, scores

MISSING = "-"


def render(evaluation: Evaluation, bundle: Bundle) -> str:
    """The page as text."""
    found, manifest = scores(evaluation), bundle.manifest
    return template("evaluation.html.j2").render(
        name=manifest.name,
        task="" if manifest.task is None else manifest.task.name,
        exported=manifest.created,
        generator=manifest.generator,
        created=f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
        verdict=_verdict(evaluation),
        facts=_facts(evaluation, bundle),
        summary=[_summary(found)] if found.domains else [],
        notes=_notes(found),
        charts=evaluation_charts(found),
        tables=[table for table in (_environments(evaluation, found), _left_out(evaluation)) if table.rows],
        sources=list(found.sources.items()),
    )


def _verdict(evaluation: Evaluation) -> list[Line]:
    lines = [line("bad", f"Failed: {failure}.") for failure in evaluation.failures.values()]
    left, wanted = len(evaluation.unplayable), len(evaluation.options.environments)
    if left:
        lines.append(line("open", f"{left} of {counted(wanted, 'environment')} could not be played here; see below."))
    different = [r for r in evaluation.results if r.agreement is not None and r.agreement.steps_different]
    compared = [r for r in evaluation.results if r.agreement is not None and r.episodes]
    if different:
        steps = sum(r.agreement.steps_different for r in different if r.agreement is not None)
        of = sum(r.agreement.steps for r in compared if r.agreement is not None)
        lines.append(line("open", f"Another action than the reference's in {steps:,} of {counted(of, 'step')}."))
    elif compared:
        lines.append(line("good", "Every action is the reference's, in every environment that was played."))
    return lines


def _facts(evaluation: Evaluation, bundle: Bundle) -> list[tuple[str, str]]:
    options = evaluation.options
    played = [r for r in evaluation.results if r.episodes]
    environments = len({r.environment for r in played})
    return [
        ("bundle", str(bundle.path)),
        ("policies", ", ".join(dict.fromkeys(f"{r.policy} {r.precision}" for r in evaluation.results))),
        ("environments", f"{environments} played of {len(options.environments)}"),
        ("episodes", f"{sum(len(r.episodes) for r in played):,}, from seed {options.seed}"),
        ("steps", f"{sum(r.steps for r in played):,}"),
        ("rewards", "given to the policies" if options.rewards else "not given: the return-to-go stays at its target"),
    ]


def _summary(found: Scores) -> Table:
    rows = tuple(
        (
            Cell(score.domain, "text"),
            Cell(score.policy, "text"),
            Cell(f"{len(score.tasks)} of {score.played}"),
            Cell(MISSING if score.iqm is None else str(score.iqm)),
            Cell(MISSING if score.mean is None else str(score.mean)),
            Cell(MISSING if score.success is None else f"{100 * score.success:.0f}%"),
            Cell(score.kind, "text"),
        )
        for score in found.domains
    )
    columns = ("domain", "policy", "tasks scored", "interquartile mean", "mean", "success", "1 is")
    return Table("Per domain", columns, rows)


def _notes(found: Scores) -> list[str]:
    notes = [
        "A score is (return - random) / (expert - random), the mean over a task's episodes; the interquartile mean is "
        'that of the middle half of the tasks. Intervals hold 95%, by stratified bootstrap over episodes. "1 is": '
        "human, a person's score in the game; data, the authors' score of the training data."
    ]
    reasons: dict[str, list[str]] = {}
    for name, why in found.unscored.items():
        reasons.setdefault(why, []).append(name)
    return [*notes, *(f"No score for {', '.join(names)}: {why}." for why, names in reasons.items())]


def _environments(evaluation: Evaluation, found: Scores) -> Table:
    by_task = {(s.policy, task.environment): task.value for s in found.domains for task in s.tasks}
    rows = tuple(
        _row(evaluation, result, by_task.get((result.policy, result.environment))) for result in evaluation.results
    )
    columns = ("environment", "policy", "episodes", "success", "return", "normalized", "steps that differ")
    return Table("Played", columns, rows)


def _row(evaluation: Evaluation, result: PolicyResult, score: float | None) -> tuple[Cell, ...]:
    agreement = result.agreement
    failed = " bad" if result.environment in evaluation.failures else ""
    return (
        Cell(result.environment, f"text{failed}"),
        Cell(result.policy, "text"),
        Cell(str(len(result.episodes))),
        Cell(MISSING if result.success is None else str(result.success)),
        Cell(MISSING if result.mean_return is None else str(result.mean_return)),
        Cell(MISSING if score is None else f"{score:.2f}"),
        Cell(MISSING if agreement is None else f"{agreement.steps_different} of {agreement.steps}"),
    )


def _left_out(evaluation: Evaluation) -> Table:
    groups: dict[tuple[str, str], int] = {}
    for name, why in evaluation.unplayable.items():
        family = name.partition("/")[0]
        key = (family, why.replace(name, f"{family}/TASK"))
        groups[key] = groups.get(key, 0) + 1
    rows = tuple((Cell(family, "text"), Cell(str(count)), Cell(why, "wrap")) for (family, why), count in groups.items())
    return Table("Not played", ("family", "environments", "why"), rows)
