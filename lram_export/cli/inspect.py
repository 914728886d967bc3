"""`inspect`: what is in a checkpoint or a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, print_facts, print_json, print_table
from lram_export.cli.parameters import BUNDLE_OR_CHECKPOINT, POSITIVE, Command
from lram_export.cli.prediction import print_prediction
from lram_export.describe import (
    different_actions,
    human_bytes,
    interface_facts,
    model_facts,
    policy_facts,
    quantization_facts,
)
from lram_export.errors import UsageError
from lram_export.model.config import ModelConfig, read_model
from lram_export.model.encoders import StateEncoder

if TYPE_CHECKING:
    from lram_export.bundle.manifest import ArtifactEntry
    from lram_export.spec.tasks import TaskSpec


@click.command(cls=Command)
@click.argument("path", type=BUNDLE_OR_CHECKPOINT)
@options.checkpoint_options
@options.context
@click.option(
    "--device", metavar="NAME", help="Predict memory and latency on a device, or here: this machine, measured."
)
@click.option("--rate", type=POSITIVE, help="With --device: of the control loop, in Hz.")
@click.option("--task", metavar="DOMAIN/TASK", help="With --device, of a checkpoint: count what this task reads.")
@click.option("--measure", is_flag=True, help="With --device here: measure the targets, too, anew.")
@options.as_json
@options.quiet
def inspect(
    path: Path,
    reading: options.CheckpointOptions,
    context: str | None,
    device: str | None,
    rate: float | None,
    task: str | None,
    measure: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show what a checkpoint or a bundle holds, after checking all of it; or what it will need on a device."""
    from lram_export.bundle.manifest import MANIFEST_FILE

    if device is None and (rate is not None or task is not None or measure):
        raise UsageError("--rate, --task, --measure: only with --device")
    if device is not None:
        config, asked, batch = _model(path, task, reading, context, quiet)
        print_prediction(config, asked, batch, device, rate, measure, as_json, quiet)
        return
    if (path / MANIFEST_FILE).is_file():
        _check_no_reading(path, reading, context)
        _inspect_bundle(path, as_json, ConsoleProgress(quiet))
    else:
        checkpoint = reading.load(path, ConsoleProgress(quiet), context)
        _inspect_checkpoint(checkpoint, as_json)


def _model(
    path: Path, task: str | None, reading: options.CheckpointOptions, context: str | None, quiet: bool
) -> tuple[ModelConfig, TaskSpec | None, int]:
    """The architecture in a bundle or a checkpoint, what is asked of it, and the rows of a step."""
    from lram_export.bundle.bundle import Bundle
    from lram_export.bundle.manifest import MANIFEST_FILE

    if (path / MANIFEST_FILE).is_file():
        _check_no_reading(path, reading, context)
        if task is not None:
            raise UsageError(f"--task: {path} is a bundle, which has its task")
        manifest = Bundle.open(path).manifest
        if manifest.task is None:
            raise UsageError(f"--device: {path} is of a module of one's own, whose arithmetic is not known; bench it")
        return read_model(manifest.model, path), manifest.task, manifest.batch_size
    config = reading.load(path, ConsoleProgress(quiet), context).config
    return config, None if task is None else _task(task, config), 1


def _task(name: str, config: ModelConfig) -> TaskSpec:
    """A task of the table; what the table does not say of it is as large as the model allows."""
    from lram_export.spec.tasks import resolve_task, task_table

    row = task_table().get(name.split("/", maxsplit=1)[0], {})
    state, continuous = row.get("observation") == "state", row.get("action") == "continuous"
    encoder, head = config.encoder("state"), config.head
    widest = encoder.dim if isinstance(encoder, StateEncoder) else None
    return resolve_task(
        name,
        observation_dim=widest if state and row.get("observation_dim") is None else None,
        action_dim=head.act_dim if continuous and row.get("action_dim") is None else None,
        target_return=0.0,  # neither is part of a size
        reward_scale=1.0,
    )


def _check_no_reading(path: Path, reading: options.CheckpointOptions, context: str | None) -> None:
    if context is not None:
        raise UsageError(f"--context: {path} is a bundle, which acts in the context it was exported for")
    if reading.given:
        raise UsageError(f"{path} is a bundle: the options for weights without a config do not apply")


def _inspect_checkpoint(checkpoint: Any, as_json: bool) -> None:
    from lram_export.exporters import support

    targets = support(checkpoint.config)
    if as_json:
        print_json(
            {
                "kind": "checkpoint",
                "path": str(checkpoint.path),
                "sha256": checkpoint.sha256,
                "model": checkpoint.config.to_json(),
                "parameters": checkpoint.parameters,
                "skipped": checkpoint.skipped,
                "assumptions": checkpoint.assumptions,
                "targets": {name: vars(found) for name, found in targets.items()},
            }
        )
        return
    facts = model_facts(checkpoint.config, checkpoint.parameters)
    if checkpoint.skipped:
        facts.append(("not needed for acting", ", ".join(checkpoint.skipped)))
    facts += [("assumed", assumption) for assumption in checkpoint.assumptions]
    facts.append(("sha256", checkpoint.sha256))
    print_facts(f"checkpoint {checkpoint.path}", facts)
    what = {name: [", ".join(found.precisions), found.refusal] for name, found in targets.items()}
    print_facts("targets, and at which precisions", [(name, "; ".join(filter(None, what[name]))) for name in what])


def _inspect_bundle(path: Path, as_json: bool, progress: ConsoleProgress) -> None:
    from lram_export.bundle.bundle import Bundle

    bundle = Bundle.open(path)
    total = sum(f.size for f in bundle.files())
    with progress.stage("checking hashes", total) as advance:
        bundle.check_files(advance=advance)
    manifest = bundle.manifest
    if as_json:
        print_json({"kind": "bundle", "path": str(path), **manifest.to_json()})
        return
    print_facts(
        f"bundle {path}",
        [
            *([] if manifest.task is None else [("task", manifest.task.name)]),
            *policy_facts(manifest, path),
            (
                "source",
                f"{manifest.source.get('file')} (sha256 {manifest.source.get('sha256') or 'not saved'})",
            ),
            *interface_facts(manifest.interface, manifest.spec),
            *quantization_facts(manifest.quantization),
            ("written", f"{manifest.created} by {manifest.generator}"),
        ],
    )
    rows = []
    for entry in manifest.artifacts:
        parity = entry.parity
        rows.append(
            [
                entry.target,
                entry.precision,
                human_bytes(bundle.artifact_size(entry.target)),
                entry.platform,
                "not verified" if parity is None else f"{parity.max_logit_error:.2g}{_on(entry)}",
                "" if parity is None else different_actions(parity),
                ", ".join(f"{k} {v}" for k, v in entry.tools.items()),
            ]
        )
    columns = ["target", "precision", "size", "platform", "max error", "actions differ", "written with"]
    print_table("artifacts (all files match their hashes)", columns, rows)


def _on(entry: ArtifactEntry) -> str:
    """Where an artifact was verified, if not on its own runtime."""
    return "" if entry.stand_in is None else f" on {entry.stand_in}"
