"""`convert` and `new`: checkpoints in our own format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lram_export.atomic import check_output
from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, human_bytes, message
from lram_export.errors import UsageError

if TYPE_CHECKING:
    from lram_export.checkpoint import Checkpoint

Command = TypeVar("Command", bound=Callable[..., Any])


def parse_integers(text: str, option: str) -> tuple[int, ...]:
    """``1,3`` -> (1, 3); raises UsageError naming the option."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"{option}: expected numbers separated by commas, got '{text}'") from None


def load(
    path: Path,
    config_file: Path | None,
    progress: ConsoleProgress,
    act_dim: int | None = None,
    discrete_actions: int | None = None,
    image_shape: str | None = None,
) -> Checkpoint:
    """Load a checkpoint as every command does."""
    from lram_export.checkpoint import Hints, load_checkpoint

    shape = None
    if image_shape is not None:
        shape = parse_integers(image_shape, "--image-shape")
        if len(shape) != 3:
            raise UsageError(f"--image-shape: expected CHANNELS,HEIGHT,WIDTH, got '{image_shape}'")
    hints = Hints(act_dim, discrete_actions, shape)  # type: ignore[arg-type]
    with progress.stage("reading the checkpoint"):
        return load_checkpoint(path, config_file, hints)


hint_options = [
    click.option("--act-dim", type=click.IntRange(1), help="Zip without config: action dimensions of the head."),
    click.option(
        "--discrete-actions", type=click.IntRange(0), help="Zip without config: discrete actions of the head."
    ),
    click.option("--image-shape", metavar="C,H,W", help="Zip without config: shape of the images."),
]


def with_hints(command: Command) -> Command:
    """Add the options that say what a zip without a config cannot."""
    for option in reversed(hint_options):
        command = option(command)
    return command


@click.command()
@options.checkpoint
@options.output
@options.config
@with_hints
@options.force
@options.quiet
def convert(
    checkpoint: Path,
    output: Path,
    config_file: Path | None,
    act_dim: int | None,
    discrete_actions: int | None,
    image_shape: str | None,
    force: bool,
    quiet: bool,
) -> None:
    """Turn a training checkpoint (model.zip) into a folder with config.json and model.safetensors."""
    from lram_export.checkpoint import CONFIG_FILE, save_checkpoint

    check_output(output, force=force, marker=CONFIG_FILE)
    progress = ConsoleProgress(quiet)
    loaded = load(checkpoint, config_file, progress, act_dim, discrete_actions, image_shape)
    with progress.stage("writing"):
        save_checkpoint(loaded, output, force=force)
    for assumption in loaded.assumptions:
        message(f"assumed: {assumption}", quiet)
    message(f"{output}: {loaded.parameters:,} weights, {human_bytes(4 * loaded.parameters)}", quiet)


@click.command()
@click.option(
    "--preset",
    required=True,
    type=click.Choice(["16m", "48m", "110m", "206m", "408m"]),
    help="Published size.",
)
@options.output
@click.option("--slstm-at", default="", metavar="1,3", help="Blocks that are sLSTM blocks; default: none.")
@click.option("--image", is_flag=True, help="Add the image encoder.")
@click.option("--seed", default=0, show_default=True, help="Seed of the random weights.")
@options.force
@options.quiet
def new(preset: str, output: Path, slstm_at: str, image: bool, seed: int, force: bool, quiet: bool) -> None:
    """Write a random checkpoint of a published size, for benchmarks."""
    from lram_export.checkpoint import CONFIG_FILE, save_checkpoint
    from lram_export.config import expected_shapes
    from lram_export.presets import preset_config, random_checkpoint

    check_output(output, force=force, marker=CONFIG_FILE)
    try:
        config = preset_config(preset, parse_integers(slstm_at, "--slstm-at"), image)
    except ValueError as error:
        raise UsageError(f"--slstm-at: {error}") from None
    progress = ConsoleProgress(quiet)
    with progress.stage("drawing weights", len(expected_shapes(config))) as advance:
        checkpoint = random_checkpoint(config, output, seed, advance=lambda _: advance(1))
    with progress.stage("writing"):
        save_checkpoint(checkpoint, output, force=force)
    message(f"{output}: {checkpoint.parameters:,} weights, {human_bytes(4 * checkpoint.parameters)}", quiet)
