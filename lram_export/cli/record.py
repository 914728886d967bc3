"""`record`: what a policy sees, as calibration data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, message, print_json
from lram_export.cli.parameters import EPISODES, FINITE, INPUT_FILE, SEED, Command
from lram_export.describe import counted
from lram_export.errors import UsageError
from lram_export.system.files import atomic_file, check_output

if TYPE_CHECKING:
    from lram_export.episodes.steps import StepSequence
    from lram_export.rollouts.recorded_episodes import EpisodePlan

DEFAULT_SEED = 10_000
"""Away from the seeds of `evaluate`: what a policy was calibrated on should not judge it."""


@click.command(cls=Command)
@options.bundle
@click.option("--env", "environments", multiple=True, metavar="FAMILY/TASK", help="Play here; may be repeated.")
@click.option(
    "--observations",
    type=INPUT_FILE,
    help="Or step over an .npz with observations and, optionally, rewards and is_first.",
)
@click.option("--episodes", type=EPISODES, help="With --env: episodes per environment; default 10.")
@click.option("--seed", type=SEED, help="With --env: seed of the first episode; default 10000.")
@click.option("--no-reward", is_flag=True, help="With --env: give the policy no rewards.")
@click.option("--target-return", type=FINITE, help="With --env: return to aim at; default: the task table's.")
@options.output_file(".npz")
@options.target
@options.rows
@options.parallel
@options.ray
@options.threads
@options.force
@options.as_json
@options.quiet
def record(
    bundle: Path,
    environments: tuple[str, ...],
    observations: Path | None,
    episodes: int | None,
    seed: int | None,
    no_reward: bool,
    target_return: float | None,
    output: Path,
    target: str | None,
    batch: int | None,
    parallel: int,
    ray: str | None,
    threads: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Record the steps of whole episodes, to calibrate an export on and to verify with.

    The inputs of every step are written, from the first of each episode on, so that the recurrent state of
    every step can be computed again. Record with an fp32 bundle.
    """
    from lram_export.episodes.steps import save_steps
    from lram_export.policy import load_policy
    from lram_export.rollouts.observations import check_not_overwritten, read_recording
    from lram_export.rollouts.recorded_episodes import EpisodePlan, record_episodes, record_in_parallel
    from lram_export.rollouts.recording import record_observations

    if bool(environments) == (observations is not None):
        raise UsageError("--env, --observations: give one of them: where the steps to record come from")
    only_played = (
        episodes or seed is not None or no_reward or target_return is not None or parallel > 1 or ray is not None
    )
    if environments and batch is not None:
        raise UsageError("--batch: only with --observations; an episode has one row")
    if observations is not None and only_played:
        raise UsageError("--episodes, --seed, --no-reward, --target-return, --ray, --parallel: only with --env")
    if observations is not None:
        check_not_overwritten(observations, output)
    check_output(output, force=force)
    progress = ConsoleProgress(quiet)
    plan = EpisodePlan(
        tuple(dict.fromkeys(environments)),
        episodes or 10,
        DEFAULT_SEED if seed is None else seed,
        rewards=not no_reward,
        target_return=target_return,
    )
    options.check_ray(ray, parallel)
    if ray is not None:
        steps: StepSequence = _on_cluster(bundle, target, plan, ray, threads, output, force, progress)
    elif parallel > 1:
        steps = record_in_parallel(bundle, target, plan, parallel, threads=threads, progress=progress)
    else:
        with progress.stage("loading"):
            policy = load_policy(bundle, target, threads=threads, batch=1 if environments else batch)
        with policy:
            if observations is not None:
                recorded = read_recording(observations, policy.spec)
                with progress.stage("recording", len(recorded)) as advance:
                    steps = record_observations(policy, recorded, advance)
            else:
                steps = record_episodes(policy, plan, progress)
    with atomic_file(output, force=force) as temporary:
        save_steps(steps, temporary)
    count, starts = int(steps["is_first"].size), int(steps["is_first"].sum())
    if as_json:
        print_json({"output": str(output), "steps": count, "episodes": starts})
    else:
        message(f"{output}: {counted(count, 'step')} of {counted(starts, 'episode')}", quiet)


def _on_cluster(
    bundle: Path,
    target: str | None,
    plan: EpisodePlan,
    address: str,
    threads: int | None,
    output: Path,
    force: bool,
    progress: ConsoleProgress,
) -> StepSequence:
    """Record on the nodes of a cluster, and keep what was played beside the output until all is."""
    import dataclasses

    from lram_export.bundle.bundle import Bundle
    from lram_export.cluster.crew import crew_at
    from lram_export.cluster.demand import demand
    from lram_export.rollouts.episode_folder import open_episodes
    from lram_export.rollouts.recorded_episodes import RecordingJob, record_with_crew
    from lram_export.system.machine import suitable_threads
    from lram_export.verification.verify import installed_targets
    from lram_export.version import __version__

    opened = Bundle.open(bundle)
    chosen = target or installed_targets(opened, ())[0]
    count = threads or suitable_threads(opened.manifest.parameters, 1)
    made_with = {
        "bundle": opened.artifact_digest(chosen),
        "target": chosen,
        "threads": count,
        "plan": {k: v for k, v in dataclasses.asdict(plan).items() if k not in ("episodes", "seed", "environments")},
        "versions": {"lram-export": __version__, **RecordingJob(opened.path, chosen, count, plan, {}).versions()},
    }
    with open_episodes(output, made_with, force=force) as kept:
        if kept.kept:
            message(f"{kept.path}: {counted(kept.kept, 'episode')} played before", progress.quiet)
        asked = demand(opened, (chosen,), count, False)
        with crew_at(address, asked, progress, lambda line: message(line, progress.quiet)) as crew:
            steps = record_with_crew(opened, chosen, plan, count, crew, kept, progress)
            message(f"cluster: {crew.report}", progress.quiet)
    return steps
