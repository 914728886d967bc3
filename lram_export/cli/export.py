"""`export`: a checkpoint becomes a verified bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lram_export.bundle.bundle import BUNDLE_SUFFIX
from lram_export.bundle.manifest import MANIFEST_FILE, REPORT_FILE
from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, message, print_json
from lram_export.cli.parameters import INPUT_FILE, Command
from lram_export.cli.precision import SHARE, print_choice
from lram_export.describe import cost_line, counted, human_bytes, other_contexts
from lram_export.errors import UsageError
from lram_export.spec.parity import FLOAT32, STATE_FORMATS
from lram_export.spec.precision import AUTO, PRECISIONS
from lram_export.system.files import check_output
from lram_export.targets.tensorrt.recipe import read_recipe

if TYPE_CHECKING:
    from lram_export.bundle.manifest import ArtifactEntry
    from lram_export.spec.parity import ParityResult
    from lram_export.system.devices import Platform


@click.command(cls=Command)
@options.checkpoint
@options.output
@options.targets
@options.task_options
@options.batch
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice([*PRECISIONS, AUTO]),
    help="Format of the large matrices; auto: the smallest mixture within --max-disagreement.",
)
@options.calibration
@click.option(
    "--max-disagreement",
    type=SHARE,
    metavar="PERCENT",
    help="auto: share of action values that may differ by more than one bin; default 0.5%.",
)
@options.keep_fp32
@options.reference_steps
@click.option("--interface", "interface_file", type=INPUT_FILE, help="YAML of what the policy says of its robot.")
@options.platform_options
@click.option(
    "--state-format",
    default=FLOAT32,
    show_default=True,
    type=click.Choice(STATE_FORMATS),
    help="native: how the matrices of the state are kept where it runs, unless the environment says.",
)
@click.option("--no-report", is_flag=True, help="Do not write report.html into the bundle.")
@options.source_options
@options.context
@options.force
@options.as_json
@options.quiet
def export(
    checkpoint: Path,
    output: Path,
    targets: tuple[str, ...],
    asked: options.TaskOptions,
    batch: int,
    precision: str,
    calibration: tuple[Path, ...],
    max_disagreement: float | None,
    keep_fp32: tuple[str, ...],
    reference_steps: int,
    interface_file: Path | None,
    platform: Platform,
    state_format: str,
    no_report: bool,
    reading: options.CheckpointOptions,
    context: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn a checkpoint into a bundle for one or more targets (default: onnxruntime), and verify it.

    The task comes from the table (--task), from options, or from both: options win. In place of a checkpoint a
    policy of rsl_rl or stable-baselines3, or a Python file and what makes a lram_export.StepPolicy in it,
    policy.py:make: those have no task.
    """
    from lram_export.trainers.files import says_its_task

    own = says_its_task(checkpoint)
    if own and asked.given:
        raise UsageError(f"{', '.join(asked.given)}: {checkpoint} does one thing only, which it says itself")
    try:
        task = None if own else asked.resolve()
    except UsageError:
        reading.load(checkpoint, ConsoleProgress(quiet=True), context)  # what is wrong with it is said first
        raise
    if output.suffix != BUNDLE_SUFFIX:
        raise UsageError(f"--output: a bundle's name ends with {BUNDLE_SUFFIX}, got '{output.name}'")
    check_output(output, force=force, marker=MANIFEST_FILE)
    progress = ConsoleProgress(quiet)
    from lram_export.checkpoints.checkpoint import Checkpoint
    from lram_export.export import ExportOptions, check_targets, export_bundle
    from lram_export.interface_file import read_interface_file
    from lram_export.quantization.quantize import QuantizationOptions
    from lram_export.spec.interface import Interface

    said = Interface() if interface_file is None else read_interface_file(interface_file)
    quantization = QuantizationOptions(precision, keep_fp32, calibration, max_disagreement)
    chosen = ExportOptions(
        targets or ("onnxruntime",),
        batch,
        reference_steps,
        force=force,
        quantization=quantization,
        platform=platform,
        state_format=state_format,
        report=not no_report,
        interface=said,
    )
    check_targets(chosen)
    loaded = reading.load_source(checkpoint, progress, context)
    if context is None and isinstance(loaded, Checkpoint):
        for line in other_contexts(loaded.config):
            message(f"note: {line}", quiet)
    bundle = export_bundle(
        loaded,
        task,
        output,
        chosen,
        progress,
    )
    if as_json:
        print_json({"output": str(output), **bundle.manifest.to_json()})
        return
    quantized = bundle.manifest.quantization
    if quantized is not None and quantized.auto is not None:
        print_choice(quantized.auto)
    for entry in bundle.manifest.artifacts:
        assert entry.parity is not None
        by = "" if entry.stand_in is None else f" on {entry.stand_in} (not where it will run)"
        message(
            f"{output}: {entry.target} {entry.precision}, {human_bytes(bundle.artifact_size(entry.target))}, "
            f"verified{by} over {counted(entry.parity.steps, 'step')}: "
            f"{_parity_line(entry.parity, own)}",
            quiet,
        )
    if quantized is not None and quantized.cost is not None:
        message(f"{output}: {cost_line(quantized.cost)}", quiet)
    if "tensorrt" in bundle.targets:
        _say_what_tensorrt_needs(output, bundle.artifact("tensorrt"), platform, quiet)
    if not no_report and not (output / REPORT_FILE).exists():
        message(f"note: no {REPORT_FILE} in it; lram-export report {output} -o {REPORT_FILE} says why", quiet)
    if precision == "int4" and not calibration:
        message("note: int4 without --calibration rounds to nearest; a recording makes it far more exact", quiet)


def _parity_line(parity: ParityResult, own: bool) -> str:
    """How far an artifact is from its oracle; of a module of one's own not every output is a logit."""
    line = f"largest {'' if own else 'logit '}error {parity.max_logit_error:.2g}"
    return f"{line}, {parity.actions_different} of {parity.actions} actions differ" if parity.actions else line


def _say_what_tensorrt_needs(output: Path, entry: ArtifactEntry, platform: Platform, quiet: bool) -> None:
    if not any(file.path.endswith(".plan") for file in entry.files):
        message(
            f"{output}: no engine in it; on {entry.platform}: lram-export compile {output} --target tensorrt", quiet
        )
    if platform.device is not None:
        recipe = read_recipe(output / entry.target)
        message(
            f"{output}: {platform.device.title} will need about {human_bytes(recipe.memory_bytes)} to run it", quiet
        )
