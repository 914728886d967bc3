"""The oracle: what a bundle is compared with. Built from a checkpoint in this one place.

Three questions stay apart. Are the codes those of the checkpoint (:mod:`~lram_export.verification.codes`)? Does a
target compute what it holds (against the model with the dequantized weights)? What did quantization cost (that model
against the float32 one)? Only the first and the last look at the weights that were quantized; only the second at the
target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from lram_export.bundle.bundle import Bundle
from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.episodes.reference import Reference, record_reference
from lram_export.errors import ParityError, UsageError
from lram_export.lowering import LoweredPolicy, Source, lower
from lram_export.model.config import read_model
from lram_export.model.reference import oracle_threads
from lram_export.progress import SILENT, Progress
from lram_export.spec.codes import QuantizedFile, QuantizedMatrix
from lram_export.spec.cost import quantization_cost
from lram_export.spec.parity import ParityMeter, ParityResult
from lram_export.step_module.policy import StepPolicy
from lram_export.verification.codes import CodesCheck, check_codes
from lram_export.verification.difference import CostCheck


@dataclass(frozen=True)
class Oracle:
    """A checkpoint as the oracle of a bundle.

    Attributes:
        bundle: what is compared with it.
        float32: the policy as it is in the checkpoint, lowered as the bundle was.
        matrices: the bundle's quantized matrices by name; none at `fp32`.
        codes: whether they are the checkpoint's; None at `fp32`.
    """

    bundle: Bundle
    float32: LoweredPolicy
    matrices: Mapping[str, QuantizedMatrix]
    codes: CodesCheck | None

    def dequantized(self) -> LoweredPolicy:
        """The policy with what the bundle's codes stand for in place of its own matrices."""
        return self.float32.dequantized(self.matrices) if self.matrices else self.float32

    def require_codes(self) -> None:
        """Raise ParityError, naming a matrix, unless the bundle's codes are the checkpoint's."""
        if self.codes is not None and not self.codes.passed:
            source, failure = self.float32.source["file"], self.codes.failures()[0]
            raise ParityError(f"{self.bundle.path}: its codes are not those of {source}: {failure}")


def build_oracle(
    bundle: Bundle, checkpoint: Source, *, other_checkpoint: bool = False, progress: Progress = SILENT
) -> Oracle:
    """Check that a checkpoint is the bundle's, and compare the bundle's codes with its matrices.

    Args:
        bundle: the bundle; the hash of its codes is checked.
        checkpoint: what it was exported from.
        other_checkpoint: another file than the one it was exported from is meant.
        progress: told about the stage.

    Raises:
        UsageError: another architecture; or another file, without ``other_checkpoint``.
        BundleError: damaged codes.
    """
    manifest = bundle.manifest
    if isinstance(checkpoint, StepPolicy) == (manifest.task is not None):
        theirs = "of a model of ours" if manifest.task is not None else f"of a module, {manifest.model['class']}"
        raise UsageError(f"{bundle.path}: the bundle is {theirs}, what it is compared with is not")
    if not isinstance(checkpoint, StepPolicy):
        checkpoint = in_context_of(bundle, checkpoint)
        check_architecture(bundle, checkpoint)
    policy = lower(
        checkpoint,
        manifest.task,
        name=manifest.name,
        batch_size=manifest.batch_size,
        interface=manifest.interface,
    )
    check_source(bundle, policy, other_checkpoint=other_checkpoint)
    if manifest.quantization is None:
        return Oracle(bundle, policy, {}, None)
    with progress.stage("comparing the codes with the checkpoint"):
        codes = manifest.quantization
        bundle.check_files([codes.file])
        matrices = QuantizedFile(bundle.path / codes.file.path, codes.matrices).load()
        policy = policy.quantizable()
        return Oracle(bundle, policy, matrices, check_codes(manifest.quantization.method, matrices, policy))


def check_source(bundle: Bundle, policy: LoweredPolicy, *, other_checkpoint: bool) -> None:
    """Raise UsageError unless the bundle was exported from what was lowered, or another of its kind is meant."""
    source, manifest = policy.source, bundle.manifest
    if manifest.task is None and policy.spec != manifest.spec:
        ours, theirs = policy.spec.to_json(), manifest.spec.to_json()
        name = next(name for name in ours if ours[name] != theirs[name])
        raise UsageError(f"{source['file']}: {name}: {ours[name]}, the bundle's: {theirs[name]}")
    if source["sha256"] != manifest.source.get("sha256") and not other_checkpoint:
        raise UsageError(
            f"{source['file']}: not the file this bundle was exported from (SHA-256 {source['sha256']}, the manifest "
            f"names {manifest.source.get('sha256')}), or read with other options; add --other-checkpoint if it is "
            f"meant, as for a converted checkpoint"
        )


def in_context_of(bundle: Bundle, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint acting as the bundle does, where its model can act in several ways: no file says which."""
    context = read_model(bundle.manifest.model, bundle.path).context
    if context not in checkpoint.config.contexts:
        return checkpoint
    return dataclasses.replace(checkpoint, config=checkpoint.config.in_context(context))


def check_architecture(bundle: Bundle, checkpoint: Checkpoint) -> None:
    """Raise UsageError, naming what differs, unless a checkpoint is of the bundle's architecture."""
    ours, theirs = _sizes(checkpoint.config.to_json()), _sizes(read_model(bundle.manifest.model, bundle.path).to_json())
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if names:
        told = ", ".join(
            f"{n} is {ours.get(n, 'not there')} (the bundle's: {theirs.get(n, 'not there')})" for n in names
        )
        raise UsageError(f"{checkpoint.path}: not the architecture this bundle was exported from: {told}")


def _sizes(value: Any, place: str = "") -> dict[str, Any]:
    """Every number of a config by its place: ``backbone.hidden_size``."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        items = [(entry.get("name", entry.get("kind", i)), entry) for i, entry in enumerate(value)]
    else:
        return {place: value}
    found: dict[str, Any] = {}
    for name, entry in items:
        found |= _sizes(entry, f"{place}.{name}" if place else str(name))
    return found


def different_weight(one: Checkpoint, other: Checkpoint) -> str | None:
    """The first weight in which two checkpoints of one architecture differ, to the bit; None if none does."""
    return next((name for name, w in one.weights.items() if not torch.equal(w, other.weights[name])), None)


@dataclass(frozen=True)
class RecordedCheck:
    """A bundle's recorded steps, run again.

    ``parity`` has the recorded answers as the target; ``cost`` is None at `fp32`.
    """

    parity: ParityResult
    cost: CostCheck | None


def check_recorded(oracle: Oracle, reference: Reference, progress: Progress = SILENT) -> RecordedCheck:
    """Run a bundle's recorded steps again: are its answers the oracle's, and is the cost what the manifest states?"""
    manifest, inputs = oracle.bundle.manifest, reference.inputs
    models = [oracle.dequantized()] + ([] if manifest.quantization is None else [oracle.float32])
    stage = progress.stage("running the recorded steps again", len(models) * len(inputs))
    with stage as advance, oracle_threads(oracle.float32.parameters):
        answers = []
        for model in models:
            with closing(model.reference()) as runtime:
                answers.append(record_reference(runtime, inputs, advance))
    meter = ParityMeter(manifest.spec, manifest.precision, recorded=reference.outputs)
    for expected_step, recorded_step in zip(answers[0], reference, strict=True):
        meter.add_step(expected_step, recorded_step)
    meter.add_state(answers[0].state_samples, reference.state_samples)
    if manifest.quantization is None:
        return RecordedCheck(meter.result(), None)
    actual, expected = (side.outputs for side in answers)
    cost = quantization_cost(manifest.spec, oracle.float32.bin_width, expected, actual)
    return RecordedCheck(meter.result(), CostCheck(cost, manifest.quantization.recorded_cost))
