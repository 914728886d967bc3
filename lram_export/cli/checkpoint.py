"""`convert` and `new`: checkpoints in our own format, and bundles in those of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lram_export.backbones.registry import BACKBONES
from lram_export.bundle.manifest import MANIFEST_FILE
from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, message, print_json
from lram_export.cli.parameters import BATCH, BUNDLE_OR_CHECKPOINT, SEED, TARGET, Command, Number
from lram_export.conversion.formats import BACKENDS, FORMATS, MOST_SEQUENCES, NAMES, Options
from lram_export.describe import counted, human_bytes
from lram_export.errors import UsageError
from lram_export.system.files import check_output

if TYPE_CHECKING:
    from lram_export.checkpoints.checkpoint import Checkpoint


@click.command(cls=Command)
@click.argument("source", metavar="CHECKPOINT|BUNDLE", type=BUNDLE_OR_CHECKPOINT)
@click.option("--to", type=click.Choice(list(FORMATS)), help="A bundle: the format to write it in.")
@options.output
@click.option("--names", type=click.Choice(NAMES), help="--to onnx-closed: how inputs and outputs are called.")
@click.option(
    "--reward-input", is_flag=True, help="A bundle: let the reward of the step before be an input, not always 0."
)
@click.option("--backend", type=click.Choice(BACKENDS), help="--to triton: what the server runs; default: onnx.")
@click.option("--target", type=TARGET, help="--backend python: the target to run; default: the first installed there.")
@click.option("--max-batch", type=BATCH, help="--to triton: most rows of a batch; default: 32.")
@click.option(
    "--sequences",
    type=click.IntRange(1, MOST_SEQUENCES),
    help="--to triton, ovms: robots at a time; default: 64, or 500 of ovms.",
)
@click.option(
    "--idle", type=Number(0, 1e6, min_open=True), help="--to triton: seconds until a robot is forgotten; default: 60."
)
@click.option("--stateless", is_flag=True, help="--to ovms: the state goes to the server and back with every step.")
@options.checkpoint_options
@options.context
@options.force
@options.as_json
@options.quiet
def convert(
    source: Path,
    to: str | None,
    output: Path,
    names: str | None,
    reward_input: bool,
    backend: str | None,
    target: str | None,
    max_batch: int | None,
    sequences: int | None,
    idle: float | None,
    stateless: bool,
    reading: options.CheckpointOptions,
    context: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn a bundle into what other programs run (--to FORMAT), or a checkpoint into a folder in our own format.

    A bundle needs no torch; what was written is replayed beside the policy before it gets its name. A checkpoint is
    what training left: model.zip, .pt, .ckpt, .safetensors, hf://...
    """
    progress = ConsoleProgress(quiet)
    asked = Options(names, reward_input, backend, target, max_batch, sequences, idle, stateless)
    if to is not None:
        if reading.given or context is not None:
            raise UsageError(f"{options.READING_OPTIONS}, --context: only for checkpoints; --to takes a bundle")
        _convert_bundle(source, to, output, asked, force, as_json, progress)
        return
    if asked.given:
        raise UsageError(f"{', '.join(asked.given)}: only with --to, which takes a bundle")
    if (source / MANIFEST_FILE).is_file():
        raise UsageError(f"--to: missing; {source} is a bundle, which becomes one of: {', '.join(FORMATS)}")
    from lram_export.checkpoints.folder import CONFIG_FILE

    check_output(output, force=force, marker=CONFIG_FILE)
    _save(reading.load(source, progress, context), output, force, as_json, progress)


def _convert_bundle(
    bundle: Path, to: str, output: Path, asked: Options, force: bool, as_json: bool, progress: ConsoleProgress
) -> None:
    from lram_export.conversion.convert import convert_bundle

    found = convert_bundle(bundle, to, output, asked, force=force, progress=progress)
    if as_json:
        print_json(found.to_json())
        return
    given = ", ".join(found.inputs)
    state = f" and {counted(len(found.states), 'state')}" if found.states else ""
    message(
        f"{output}: {to}, {human_bytes(found.size)}: {given}{state} in, {', '.join(found.outputs)} out; "
        f"{found.replayed.actions_different} of {counted(found.replayed.actions, 'action')} differ over "
        f"{counted(found.replayed.steps, 'step')}",
        progress.quiet,
    )


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
