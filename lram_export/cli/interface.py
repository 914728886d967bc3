"""`interface`: what a bundle, or what LeRobot wrote, says of a robot."""

from __future__ import annotations

from pathlib import Path

import click

from lram_export.cli import options
from lram_export.cli.console import message, print_json, print_table
from lram_export.cli.parameters import PATH, Command, OutputFile
from lram_export.describe import interface_rows
from lram_export.errors import UsageError
from lram_export.trainers.lerobot.statistics import MODES


@click.command(cls=Command)
@options.bundle
@click.option("-o", "--output", type=OutputFile(".yaml", ".yml"), help="Write it as YAML, to start from.")
@click.option("--mode", type=click.Choice(MODES), help="LeRobot's dataset: how the policy normalizes.")
@click.option("--dataset", type=PATH, help="LeRobot's policy: folder of its dataset, for names and rate.")
@click.option("--observation", metavar="NAME", help="LeRobot: what the policy calls observation.state.")
@click.option("--action", metavar="NAME", help="LeRobot: what the policy calls action.")
@options.force
@options.as_json
@options.quiet
def interface(
    bundle: Path,
    output: Path | None,
    mode: str | None,
    dataset: Path | None,
    observation: str | None,
    action: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show what a bundle says of its robot: names, units, limits, normalization, rate; or write it as YAML.

    What is not known can be filled in there; export --interface FILE takes it. In place of a bundle a policy or a
    dataset of LeRobot, whose statistics are then the interface.
    """
    from lram_export.bundle.bundle import Bundle
    from lram_export.interface_file import write_yaml
    from lram_export.system.files import atomic_file, check_output
    from lram_export.trainers.lerobot import interface_of, is_lerobot, step_of

    if is_lerobot(bundle):
        found, notes = interface_of(
            bundle, observation or "observation", action or "action", mode=mode, dataset=dataset
        )
        spec = step_of(found)
    elif (mode, dataset, observation, action) != (None,) * 4:
        raise UsageError(f"--mode, --dataset, --observation, --action: only for what LeRobot writes; {bundle} is not")
    else:
        manifest = Bundle.open(bundle).manifest
        found, spec, notes = manifest.interface, manifest.spec, []
    for note in notes:
        message(f"note: {note}", quiet)
    if output is not None:
        check_output(output, force=force)
        with atomic_file(output, force=force) as temporary:
            temporary.write_text(write_yaml(found, spec), encoding="utf-8")
        message(f"{output}: written", quiet)
        return
    if as_json:
        print_json(found.to_json())
        return
    rate = "rate unknown" if found.rate is None else f"{found.rate:g} Hz"
    columns = ["field", "element", "unit", "low", "high", "in the graph", "tick by tick"]
    print_table(f"{bundle}: {rate}", columns, interface_rows(found, spec))
