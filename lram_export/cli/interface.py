"""`interface`: what a bundle says of its robot."""

from __future__ import annotations

from pathlib import Path

import click

from lram_export.cli import options
from lram_export.cli.console import message, print_json, print_table
from lram_export.cli.parameters import Command, OutputFile
from lram_export.describe import interface_rows


@click.command(cls=Command)
@options.bundle
@click.option("-o", "--output", type=OutputFile(".yaml", ".yml"), help="Write it as YAML, to start from.")
@options.force
@options.as_json
@options.quiet
def interface(bundle: Path, output: Path | None, force: bool, as_json: bool, quiet: bool) -> None:
    """Show what a bundle says of its robot: names, units, limits, normalization, rate; or write it as YAML.

    What is not known can be filled in there; export --interface FILE takes it.
    """
    from lram_export.bundle.bundle import Bundle
    from lram_export.interface_file import write_yaml
    from lram_export.system.files import atomic_file, check_output

    manifest = Bundle.open(bundle).manifest
    if output is not None:
        check_output(output, force=force)
        with atomic_file(output, force=force) as temporary:
            temporary.write_text(write_yaml(manifest.interface, manifest.spec), encoding="utf-8")
        message(f"{output}: written", quiet)
        return
    if as_json:
        print_json(manifest.interface.to_json())
        return
    rate = "rate unknown" if manifest.interface.rate is None else f"{manifest.interface.rate:g} Hz"
    columns = ["field", "element", "unit", "low", "high", "in the graph"]
    print_table(f"{bundle}: {rate}", columns, interface_rows(manifest.interface, manifest.spec))
