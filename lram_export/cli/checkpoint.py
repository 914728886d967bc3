"""`convert` and `new`: checkpoints in our own format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lram_export.backbones.registry import BACKBONES
from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, message, print_json
from lram_export.cli.parameters import SEED, Command
from lram_export.describe import human_bytes
from lram_export.errors import UsageError
from lram_export.system.files import check_output

if TYPE_CHECKING:
    from lram_export.checkpoints.checkpoint import Checkpoint


@click.command(cls=Command)
@options.checkpoint
@options.output
@options.checkpoint_options
@options.context
@options.force
@options.as_json
@options.quiet
def convert(
    checkpoint: Path,
    output: Path,
    reading: options.CheckpointOptions,
    context: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn what training left (model.zip, .pt, .ckpt, .safetensors, hf://...) into a folder in our own format."""
    from lram_export.checkpoints.folder import CONFIG_FILE

    check_output(output, force=force, marker=CONFIG_FILE)
    progress = ConsoleProgress(quiet)
    _save(reading.load(checkpoint, progress, context), output, force, as_json, progress)


@click.command(cls=Command)
@click.option(
    "--preset",
    required=True,
    type=click.Choice(["16m", "48m", "110m", "206m", "408m"]),
    help="Published size.",
)
@click.option(
    "--backbone", default="xlstm", show_default=True, type=click.Choice(list(BACKBONES)), help="Backbone of the model."
)
@options.output
@click.option("--slstm-at", default="", metavar="1,3", help="Blocks of an xLSTM that are sLSTM blocks; default: none.")
@click.option("--image", is_flag=True, help="Add the image encoder.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the random weights.")
@options.force
@options.as_json
@options.quiet
def new(
    preset: str,
    backbone: str,
    output: Path,
    slstm_at: str,
    image: bool,
    seed: int,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write a random checkpoint of a published size, for benchmarks."""
    from lram_export.checkpoints.folder import CONFIG_FILE
    from lram_export.checkpoints.random import preset_config, random_checkpoint

    check_output(output, force=force, marker=CONFIG_FILE)
    if slstm_at and backbone != "xlstm":
        raise UsageError(f"--slstm-at: only for --backbone xlstm, a model of '{backbone}' has no such blocks")
    choices = {"slstm_at": options.parse_integers(slstm_at, "--slstm-at")} if slstm_at else {}
    try:
        config = preset_config(preset, backbone, image=image, **choices)
    except ValueError as error:
        raise UsageError(f"--slstm-at: {str(error).removeprefix('slstm_at: ')}") from None
    progress = ConsoleProgress(quiet)
    with progress.stage("drawing weights", len(config.weights())) as advance:
        checkpoint = random_checkpoint(config, output, seed, advance=lambda _: advance(1))
    _save(checkpoint, output, force, as_json, progress)


def _save(checkpoint: Checkpoint, output: Path, force: bool, as_json: bool, progress: ConsoleProgress) -> None:
    from lram_export.checkpoints.folder import save_checkpoint

    with progress.stage("writing"):
        save_checkpoint(checkpoint, output, force=force)
    size = 4 * checkpoint.parameters
    if as_json:
        print_json(
            {
                "output": str(output),
                "parameters": checkpoint.parameters,
                "bytes": size,
                "model": checkpoint.config.to_json(),
                "skipped": checkpoint.skipped,
                "assumptions": checkpoint.assumptions,
            }
        )
    else:
        message(f"{output}: {checkpoint.parameters:,} weights, {human_bytes(size)}", progress.quiet)
