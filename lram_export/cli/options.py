"""Options that mean the same in every command."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)

output = click.option("-o", "--output", required=True, type=PATH, help="Where to write.")
force = click.option("--force", is_flag=True, help="Replace the output if it exists.")
targets = click.option("--target", "targets", multiple=True, metavar="TARGET", help="Target to use; may be repeated.")
target = click.option("--target", metavar="TARGET", help="Target to use; default: the first installed.")
threads = click.option("--threads", type=click.IntRange(1), help="Threads of the runtime; default: physical cores.")
quiet = click.option("-q", "--quiet", is_flag=True, help="No progress and no messages, only results and errors.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
config = click.option(
    "--config",
    "config_file",
    type=PATH,
    help="Training config of a model.zip; default: .hydra/config.yaml beside it.",
)
checkpoint = click.argument("checkpoint", type=PATH)
bundle = click.argument("bundle", type=PATH)
