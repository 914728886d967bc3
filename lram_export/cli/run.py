"""`run`: act on a recorded observation file."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, message, print_json
from lram_export.cli.parameters import INPUT_FILE, Command
from lram_export.describe import counted, held_back
from lram_export.system.files import atomic_file, check_output


@click.command(cls=Command)
@options.bundle
@click.option(
    "--observations",
    required=True,
    type=INPUT_FILE,
    help="An .npz with observations and, optionally, rewards and is_first; time comes first.",
)
@options.output_file(".npz")
@options.target
@options.rows
@options.threads
@options.force
@options.as_json
@options.quiet
def run(
    bundle: Path,
    observations: Path,
    output: Path,
    target: str | None,
    batch: int | None,
    threads: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Step a policy over recorded observations and write actions, all other outputs and return_to_go as .npz.

    The reward of each step is given to the next step, as a control loop would.
    """
    from lram_export.policy import load_policy
    from lram_export.rollouts.observations import check_not_overwritten, read_recording, run_recording
    from lram_export.system.npz import save_npz

    check_not_overwritten(observations, output)
    check_output(output, force=force)
    progress = ConsoleProgress(quiet)
    with progress.stage("loading"):
        policy = load_policy(bundle, target, threads=threads, batch=batch)
    with policy:
        recording = read_recording(observations, policy.spec)
        with progress.stage("running", len(recording)) as advance:
            result = run_recording(policy, recording, advance)
    with atomic_file(output, force=force) as temporary, temporary.open("wb") as file:
        told = {} if policy.task is None else {"return_to_go": result.return_to_go}
        save_npz(file, {"actions": result.actions, **result.others, **told})
    median, counts = float(np.median(result.seconds)) * 1e3, policy.counts()
    if as_json:
        held = {name: of.to_json() for name, of in counts.items()}
        print_json({"output": str(output), "steps": len(result.actions), "p50_ms": median, "counts": held})
    else:
        message(f"{output}: {counted(len(result.actions), 'step')}, {median:.3g} ms per step (median)", quiet)
        for line in held_back(counts, policy.interface):
            message(line, quiet)
