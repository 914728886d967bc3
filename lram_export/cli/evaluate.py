"""`evaluate`: closed loop in simulation, every target beside the reference."""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, message, or_dash, print_json, print_table
from lram_export.cli.parameters import EPISODES, FINITE, PATH, POSITIVE, SEED, THREADS, Command, OutputFile
from lram_export.cli.report import check_packages
from lram_export.describe import counted
from lram_export.errors import UsageError
from lram_export.rollouts.environments import PATIENCE
from lram_export.system.files import atomic_file, check_output
from lram_export.system.machine import threads_beside_others

if TYPE_CHECKING:
    from lram_export.bundle.bundle import Bundle
    from lram_export.cluster.crew import RayCrew
    from lram_export.policy import Policy
    from lram_export.rollouts.evaluation import Evaluation, PolicyResult

COLUMNS = (
    "environment",
    "policy",
    "success",
    "return",
    "same\noutcome",
    "steps that\ndiffer",
    "largest\ntie",
    "first\nparting",
    "steps/s",
    "policy\nshare",
)


@click.command(cls=Command)
@options.bundle
@click.option("--env", "environments", multiple=True, metavar="FAMILY/TASK", help="May be repeated.")
@click.option(
    "--suite", metavar="NAME|FILE.yaml", help="All environments of a suite that can be played here, e.g. metaworld-45."
)
@click.option(
    "--env-command",
    "commands",
    multiple=True,
    metavar="[FAMILY=]COMMAND",
    help="Another process that makes the environments command/TASK, or those of a family; may be repeated.",
)
@click.option(
    "--env-timeout",
    "patience",
    type=POSITIVE,
    default=PATIENCE,
    show_default=True,
    help="Seconds that such a process may take for one answer.",
)
@click.option("--episodes", type=EPISODES, default=10, show_default=True, help="Per environment and policy.")
@options.targets
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the first episode.")
@click.option("--checkpoint", type=PATH, help="The reference; default: the bundle's pytorch artifact.")
@options.checkpoint_options
@options.other_checkpoint
@click.option("--no-reference", is_flag=True, help="Play without the PyTorch reference (needs no torch).")
@click.option("--no-reward", is_flag=True, help="Give the policy no rewards, like a robot that has none.")
@click.option("--target-return", type=FINITE, help="Return to aim at; default: the task table's for the environment.")
@click.option(
    "--video",
    type=OutputFile(".gif", ".mp4"),
    help="Write the first episodes as .gif or .mp4, played by the first target.",
)
@click.option("--report", type=OutputFile(".html"), help="Write a page with the scores per domain, and charts.")
@options.parallel
@options.ray
@click.option(
    "--results",
    type=OutputFile(".jsonl"),
    help="Write every episode here as it ends; what an earlier run has written here is not played again.",
)
@click.option("--threads", type=THREADS, help="Of each target; default: 1, all cores for large models.")
@options.force
@options.as_json
@options.quiet
def evaluate(
    bundle: Path,
    environments: tuple[str, ...],
    suite: str | None,
    commands: tuple[str, ...],
    patience: float,
    episodes: int,
    targets: tuple[str, ...],
    seed: int,
    checkpoint: Path | None,
    reading: options.CheckpointOptions,
    other_checkpoint: bool,
    no_reference: bool,
    no_reward: bool,
    target_return: float | None,
    video: Path | None,
    report: Path | None,
    parallel: int,
    ray: str | None,
    results: Path | None,
    threads: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Play episodes in simulation with each target and with the PyTorch reference, on the same seeds.

    Environments: metaworld/TASK, dm_control/TASK, dmcontrol/TASK, atari/GAME, gym/ID, procgen/GAME,
    robosuite/TASK, mimicgen/TASK, composuite/TASK, command/NAME.
    """
    from lram_export.bundle.bundle import Bundle
    from lram_export.rollouts import evaluation as library
    from lram_export.rollouts.suites import find_suite
    from lram_export.rollouts.workers import share
    from lram_export.verification.verify import installed_targets

    if checkpoint is None and (reading.given or other_checkpoint):
        raise UsageError(f"--other-checkpoint, {options.READING_OPTIONS}: only with --checkpoint")
    if no_reference and checkpoint is not None:
        raise UsageError("--no-reference: contradicts --checkpoint; leave one of them out")
    if not environments and suite is None:
        raise UsageError("--env, --suite: give one of them; --suite metaworld-45 plays a domain, --env one environment")
    made_by = read_commands(commands)
    wanted = () if suite is None else find_suite(suite).wanted
    names = tuple(dict.fromkeys([*environments, *(w.environment for w in wanted)]))
    if video is not None:
        from lram_export.rollouts.video import check_video

        check_video(video, names)
        check_output(video, force=force)
    if report is not None:
        check_packages()
        check_output(report, force=force)
    if results is not None:
        check_output(results, force=True)
    options.check_ray(ray, parallel)
    progress = ConsoleProgress(quiet)
    opened = Bundle.open(bundle)
    chosen = installed_targets(opened, targets)
    loaded = None if checkpoint is None else reading.load(checkpoint, progress)
    crew: RayCrew | None = None
    with ExitStack() as held:
        reference: Policy | library.ReferenceSource | None = None
        if (parallel > 1 or ray is not None) and not no_reference:  # each process makes its own
            made_of = None if checkpoint is None else reading.source(checkpoint)
            reference, loaded = library.ReferenceSource(made_of, other_checkpoint), None
        elif not no_reference:
            reference = library.reference_policy(opened, loaded, other_checkpoint=other_checkpoint)
            held.enter_context(reference)
        if reference is not None and checkpoint is None and not targets and set(chosen) > {"pytorch"}:
            chosen.remove("pytorch")  # it is the reference itself
        settings = library.EvaluationOptions(
            environments=names,
            targets=tuple(chosen),
            episodes=episodes,
            seed=seed,
            rewards=not no_reward,
            target_return=target_return,
            threads=threads or share(threads_beside_others(opened.manifest.parameters), parallel),
            parallel=parallel,
            wanted=wanted,
            optional=tuple(w.environment for w in wanted if w.environment not in environments),
            commands=made_by,
            patience=patience,
        )
        if ray is not None:
            from lram_export.cluster.crew import crew_at
            from lram_export.cluster.demand import demand

            asked = demand(opened, settings.targets, settings.threads, reference is not None)
            crew = held.enter_context(crew_at(ray, asked, progress, lambda line: message(line, quiet)))
        journal = None
        if results is not None:
            from lram_export.rollouts.journal import identity, open_journal

            source = None if checkpoint is None else reading.source(checkpoint)
            played_with = None if no_reference else library.ReferenceSource(source, other_checkpoint)
            made_with = identity(opened, settings, played_with)
            journal = held.enter_context(open_journal(results, made_with, force=force))
            if journal.kept:
                message(f"{results}: {counted(journal.kept, 'seed')} played before", quiet)
        result = library.evaluate(opened, settings, reference, progress, crew, journal)
    done = None if crew is None else crew.report
    if as_json:
        print_json({**to_json(result, opened), **({} if done is None else {"cluster": done.to_json()})})
    else:
        told = [*notes(result), *([] if done is None else [f"cluster: {done}"])]
        print_table(f"{bundle}: {counted(episodes, 'episode')} from seed {seed}", COLUMNS, rows(result), told)
        print_scores(result)
    if report is not None:
        write_report(result, opened, report, force=force)
        message(f"{report}: open it in a browser, or print it", quiet)
    if result.failures:
        for failure in result.failures.values():
            click.echo(f"error: {failure}; its results above are all there are", err=True)
        sys.exit(1)
    if video is not None:
        from lram_export.rollouts.video import record_video

        played = replace(settings, environments=tuple(name for name in names if name not in result.unplayable))
        record_video(opened, played, video, force=force, progress=progress)
        message(f"{video}: seed {seed}, played by {chosen[0]}", quiet)


def read_commands(given: tuple[str, ...]) -> dict[str, str]:
    """``[FAMILY=]COMMAND`` each -> command by family; raises UsageError for an unknown family, or one given twice."""
    from lram_export.rollouts.environments import COMMAND, check_family

    found: dict[str, str] = {}
    for text in given:
        named = re.match(r"([a-z][a-z0-9_]*)=(.+)", text, re.DOTALL)
        family, command = named.groups() if named else (COMMAND, text)
        check_family(f"{family}/TASK", "--env-command")
        if family in found:
            raise UsageError(f"--env-command: '{family}' has two commands; give one")
        found[family] = command
    return found


def rows(evaluation: Evaluation) -> list[list[str]]:
    """One row per environment and policy."""
    return [_row(evaluation, result) for result in evaluation.results if result.episodes]


def _row(evaluation: Evaluation, result: PolicyResult) -> list[str]:
    agreement, same = result.agreement, evaluation.same_outcome(result)
    parted = [e.parted_at for e in result.episodes if e.parted_at is not None]
    return [
        result.environment,
        result.policy,
        or_dash(result.success),
        or_dash(result.mean_return),
        "-" if same is None else f"{same} of {len(result.episodes)}",
        "-" if agreement is None else f"{agreement.steps_different} of {agreement.steps}",
        f"{agreement.largest_tie:.2g}" if agreement is not None and agreement.steps_different else "-",
        str(min(parted)) if parted else "-",
        f"{result.steps_per_second:.0f}",
        f"{100 * result.policy_share:.0f}%",
    ]


def notes(evaluation: Evaluation) -> list[str]:
    """What the table's numbers mean."""
    lines = [
        "success and return with 95% intervals (n/a: the return of one episode has none); a step differs if any action "
        "value does, fed the same history",
    ]
    results = [r for r in evaluation.results if r.agreement is not None]
    if any(r.agreement is not None and r.agreement.steps_different for r in results):
        lines.append("largest tie: how far apart the reference's logits of both choices were, at most")
    if all(r.success is None for r in evaluation.results):
        lines.append("no success: these environments do not tell")
    if evaluation.options.parallel > 1:
        lines.append(f"steps/s: of each of {evaluation.options.parallel} processes")
    if not evaluation.options.rewards:
        lines.append("no rewards were given to the policies: the return-to-go stays at its target")
    aims = dict.fromkeys(f"{r.environment} {r.target_return:g}" for r in evaluation.results)
    lines.append(f"return aimed at: {', '.join(aims)}")
    return [*lines, *(f"not played: {text}" for text in left_out(evaluation))]


def print_scores(evaluation: Evaluation) -> None:
    """The normalized scores per domain; nothing where no environment belongs to one."""
    from lram_export.rollouts.scores import scores

    found = scores(evaluation)
    if not found.domains:
        return
    lines = [
        [
            score.domain,
            score.policy,
            f"{len(score.tasks)} of {score.played}",
            or_dash(score.iqm),
            or_dash(score.mean),
            or_dash(None if score.success is None else f"{100 * score.success:.0f}%"),
        ]
        for score in found.domains
    ]
    told = [
        "0: a random policy; 1: a human in atari, elsewhere the authors' score of the training data; IQM: mean "
        "of the middle half of the tasks; 95% intervals over episodes",
    ]
    reasons: dict[str, list[str]] = {}
    for name, why in found.unscored.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        which = ", ".join(names) if len(names) <= 3 else counted(len(names), "task")
        told.append(f"no score: {which}: {why}")
    columns = ("domain", "policy", "tasks\nscored", "normalized\nIQM", "normalized\nmean", "success")
    print_table("normalized scores", columns, lines, told)


def write_report(evaluation: Evaluation, bundle: Bundle, file: Path, *, force: bool) -> None:
    """Write the page of an evaluation."""
    from lram_export.report.evaluation_page import render

    with atomic_file(file, force=force) as temporary:
        temporary.write_text(render(evaluation, bundle), encoding="utf-8")


def left_out(evaluation: Evaluation) -> list[str]:
    """Which environments could not be played, and why; those of a family that share a reason, together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, why in evaluation.unplayable.items():
        family = name.partition("/")[0]
        groups.setdefault((family, why.replace(name, f"{family}/TASK")), []).append(name)
    found = []
    for (family, why), names in groups.items():
        which = ", ".join(names) if len(names) <= 3 else f"{len(names)} of {family}"
        found.append(f"{which}: {why}")
    return found


def to_json(evaluation: Evaluation, bundle: Bundle) -> dict[str, Any]:
    """The whole evaluation as plain values; ``artifact`` is the digest of what played, None for the reference."""
    from lram_export.episodes.intervals import interval_json
    from lram_export.rollouts.scores import scores

    found = scores(evaluation)
    digests = {target: bundle.artifact_digest(target) for target in bundle.targets}
    return {
        "bundle": str(bundle.path),
        "options": evaluation.options,
        "failure": evaluation.failure,
        "failures": evaluation.failures,
        "unplayable": evaluation.unplayable,
        "scores": {
            "domains": [
                {
                    "domain": s.domain,
                    "kind": s.kind,
                    "policy": s.policy,
                    "played": s.played,
                    "iqm": interval_json(s.iqm),
                    "mean": interval_json(s.mean),
                    "success": s.success,
                    "tasks": {task.environment: task.value for task in s.tasks},
                }
                for s in found.domains
            ],
            "unscored": found.unscored,
            "sources": found.sources,
        },
        "results": [
            {
                "environment": r.environment,
                "policy": r.policy,
                "precision": r.precision,
                "artifact": digests.get(r.policy),
                "target_return": r.target_return,
                "success": interval_json(r.success),
                "return": interval_json(r.mean_return),
                "same_outcome": evaluation.same_outcome(r),
                "agreement": r.agreement,
                "steps": r.steps,
                "steps_per_second": r.steps_per_second,
                "policy_share": r.policy_share,
                "episodes": r.episodes,
            }
            for r in evaluation.results
        ],
    }
