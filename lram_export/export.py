"""The whole export: lower a checkpoint for a task, write every target, record the reference, verify, keep."""

from __future__ import annotations

import dataclasses
import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lram_export.bundle.bundle import Bundle
from lram_export.bundle.initial import write_initial
from lram_export.bundle.manifest import INITIAL_FILE, REPORT_FILE, QuantizationEntry
from lram_export.bundle.writer import BundleWriter, write_bundle
from lram_export.episodes.reference import REFERENCE_FILE, Reference, record_reference, save_reference
from lram_export.episodes.steps import DEFAULT_STEPS, StepSequence, random_steps
from lram_export.errors import LramError, ParityError, UsageError, describe
from lram_export.exporters import EXPORTERS, check_precision, export_target
from lram_export.lowering import LoweredPolicy, Source, lower, own_interface
from lram_export.progress import SILENT, Progress
from lram_export.quantization.calibration import Calibration, load_calibration
from lram_export.quantization.quantize import QuantizationOptions, check_options, cost_on_episodes, quantize
from lram_export.report import missing_packages
from lram_export.report.collect import Recorder, of_export
from lram_export.runtimes import Runtime, check_verifiable, load_verifier
from lram_export.spec.codes import save_quantized
from lram_export.spec.cost import QuantizationCost, quantization_cost
from lram_export.spec.interface import Interface
from lram_export.spec.parity import FLOAT32, STATE_FORMATS
from lram_export.spec.precision import activation_format
from lram_export.spec.tasks import TaskSpec
from lram_export.system.devices import Platform
from lram_export.system.machine import suitable_threads
from lram_export.targets.native.options import STATE_FORMAT, NativeOptions
from lram_export.targets.registry import load_target
from lram_export.targets.tvm.platforms import find_platform
from lram_export.verification.verify import verify_artifact


@dataclass(frozen=True)
class ExportOptions:
    """How to export, beyond what and for which task."""

    targets: Sequence[str] = ("onnxruntime",)
    batch_size: int = 1
    reference_steps: int = DEFAULT_STEPS
    seed: int = 0
    force: bool = False
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    platform: Platform = field(default_factory=Platform)
    state_format: str = FLOAT32
    report: bool = True
    interface: Interface = field(default_factory=Interface)


@dataclass(frozen=True)
class TargetFailure:
    """Why a target is not in a bundle; ``impossible`` if it cannot run this model at all."""

    reason: str
    impossible: bool = False


def export_bundle(
    source: Source,
    task: TaskSpec | None,
    path: str | Path,
    options: ExportOptions | None = None,
    progress: Progress = SILENT,
    failures: dict[str, TargetFailure] | None = None,
) -> Bundle:
    """Write a verified bundle, whole or not at all.

    Args:
        source: what to export, a checkpoint or a :class:`~lram_export.step_module.policy.StepPolicy`; its weights
            are freed by the time the targets are verified if the caller keeps no reference.
        task: what the policy is asked to do; None for a StepPolicy, which does one thing.
        path: the bundle's folder.
        options: targets, batch size, recorded steps, quantization, what to compile for, whether to write a report
            (it is left out, too, where the packages that draw charts are missing).
        progress: told about every stage.
        failures: if given, a target that fails is entered here and left out of the bundle, and the others go on.

    Raises:
        UsageError: the output exists, a target is unknown or not installed, task and model do not fit, or a module is
            not one step as a pure function.
        ParityError: a target does not do what the reference does; nothing is written.
        LramError: with ``failures``, no target is left; nothing is written.
    """
    options, path = options or ExportOptions(), Path(path)
    check_targets(options)
    with write_bundle(path, force=options.force) as writer:
        with progress.stage("lowering the model"):
            interface = interface_of(source, task, options.interface)
            policy: LoweredPolicy = lower(
                source, task, name=writer.name, batch_size=options.batch_size, interface=interface
            )
        calibration = _load_calibration(policy, options)
        inputs = _reference_inputs(policy, options, calibration)
        quantization = None
        if options.quantization.precision == "fp32":
            reference = _record(policy, inputs, progress)
        else:
            in_float32 = policy
            policy = quantize(in_float32, options.quantization, calibration, progress, targets=options.targets)
            reference = _record(policy, inputs, progress)
            # also where the cost is told over episodes: these steps are in the bundle, so it can be measured again
            recorded_cost, cost = cost_of(policy, _record(in_float32, inputs, progress), reference), None
            if calibration is not None:
                with progress.stage("measuring the cost"):
                    cost = cost_on_episodes(in_float32, policy, calibration)
            quantization = _save_quantized(writer, options.targets, policy, recorded_cost, cost)
            del in_float32
        save_reference(reference, writer.directory / REFERENCE_FILE)
        initial = _save_initial(writer, policy)
        policy = dataclasses.replace(policy, platform=options.platform, state_format=options.state_format)
        for target in options.targets:
            with progress.stage(f"exporting for {target}"), _attempt(writer, target, failures, refuses=True):
                _export(writer, target, policy, progress)
        _check_any(writer)
        about = {
            "model": policy.model,
            "parameters": policy.parameters,
            "task": policy.task,
            "spec": policy.spec,
            "reference": writer.directory / REFERENCE_FILE,
            "source": policy.source,
            "quantization": quantization,
            "initial": initial,
            "interface": policy.interface,
        }
        writer.finish(**about)  # type: ignore[arg-type]
        del policy, source
        gc.collect()  # the model's memory, before runtimes take theirs
        bundle = Bundle.open(writer.directory)
        wanted = options.report and not missing_packages()
        recorders = {target: Recorder(REPORT_STATE_EVERY) for target in bundle.targets if wanted}
        for target in bundle.targets:
            with _attempt(writer, target, failures):
                _verify(writer, bundle, target, recorders.get(target), progress)
        _check_any(writer)
        writer.finish(**about)  # type: ignore[arg-type]
        if wanted:
            # a bundle that was verified is worth more than its picture: what draws it is foreign code
            try:
                with progress.stage("writing the report"):
                    # made from the manifest without it, which then lists it: it cannot hold its own hash
                    writer.finish(**about, report=_write_report(writer, path, recorders))  # type: ignore[arg-type]
            except Exception as error:
                (writer.directory / REPORT_FILE).unlink(missing_ok=True)
                writer.finish(**about)  # type: ignore[arg-type]
                # without a handler of the program's own, logging says it on standard error
                logging.getLogger(__name__).warning("note: %s: without %s: %s", path, REPORT_FILE, describe(error))
    return Bundle.open(path)


REPORT_STATE_EVERY = 16
"""Steps between two looks at the state while a bundle is verified: for the largest models a look takes as long as
several steps."""


def _write_report(writer: BundleWriter, path: Path, recorders: dict[str, Recorder]) -> Path:
    from lram_export.report.page import render

    found = of_export(Bundle.open(writer.directory), recorders)
    named = dataclasses.replace(found, bundle=dataclasses.replace(found.bundle, path=path))
    rows = tuple(dataclasses.replace(row, bundle=str(path)) for row in named.rows)
    page = render(dataclasses.replace(named, rows=rows))
    written = writer.directory / REPORT_FILE
    written.write_text(page, encoding="utf-8")
    return written


def interface_of(source: Source, task: TaskSpec | None, said: Interface) -> Interface:
    """What a policy's own file and its user say of its robot; raises UsageError where they contradict each other."""
    try:
        return own_interface(source, task).and_also(said)
    except ValueError as error:
        raise UsageError(f"interface: {error}") from None


def check_targets(options: ExportOptions) -> None:
    """Raise UsageError unless every target is known, installed on both sides and can run the precision."""
    if len(set(options.targets)) != len(options.targets) or not options.targets:
        raise UsageError("--target: expected one or more different targets")
    for target in options.targets:  # exported and verified here: both sides must be installed
        load_target(EXPORTERS, target)
        check_verifiable(target)
        check_precision(target, options.quantization.result)
    check_options(options.quantization)
    check_platform(options.platform, options.targets)
    check_state_format(options.state_format, options.targets)


def check_platform(platform: Platform, targets: Sequence[str]) -> None:
    """Raise UsageError unless every wish about where to run belongs to one of the targets, and is known."""
    if (platform.device or platform.compute_capabilities) and "tensorrt" not in targets:
        raise UsageError("--device, --compute-capability: only with --target tensorrt")
    if platform.device is not None and platform.device.compute_capability is None:
        raise UsageError(
            f"--device {platform.device.name}: {platform.device.title} has no NVIDIA GPU; choose another target than "
            f"tensorrt, without --device (what fits on it: lram-export inspect ... --device {platform.device.name})"
        )
    if platform.processors and "tvm" not in targets:
        raise UsageError("--platform: only with --target tvm")
    for name in platform.processors:
        find_platform(name)


def check_state_format(state_format: str, targets: Sequence[str]) -> None:
    """Raise UsageError unless there is a target that keeps its state so, and will be verified so."""
    if state_format not in STATE_FORMATS:
        raise UsageError(f"state_format: expected {' or '.join(STATE_FORMATS)}, got '{state_format}'")
    if state_format == FLOAT32:
        return
    if "native" not in targets:
        raise UsageError(f"--state-format {state_format}: only with --target native")
    here = NativeOptions.from_environment().state_format
    if here not in ("", state_format):
        raise UsageError(f"{STATE_FORMAT}: {here} here, but --state-format is {state_format}; unset one of them")


def _load_calibration(policy: LoweredPolicy, options: ExportOptions) -> Calibration | None:
    files = options.quantization.calibration
    return load_calibration(files, policy.spec) if files else None


def _reference_inputs(policy: LoweredPolicy, options: ExportOptions, calibration: Calibration | None) -> StepSequence:
    """Random steps; recorded ones where activations have static ranges, which random steps would leave."""
    if calibration is not None and options.quantization.static_activations:
        return calibration.as_rows(options.reference_steps, options.batch_size)
    return random_steps(policy.spec, policy.task, options.reference_steps, options.seed)


def _record(policy: LoweredPolicy, inputs: StepSequence, progress: Progress) -> Reference:
    from lram_export.model.reference import oracle_threads

    stage = progress.stage("recording reference steps", len(inputs))
    with stage as advance, oracle_threads(policy.parameters):
        return record_reference(policy.reference(), inputs, advance)


def cost_of(policy: LoweredPolicy, in_float32: Reference, reference: Reference) -> QuantizationCost:
    """What quantization changed over the recorded steps."""
    return quantization_cost(policy.spec, policy.bin_width, in_float32.outputs, reference.outputs)


def _save_quantized(
    writer: BundleWriter,
    targets: Sequence[str],
    policy: LoweredPolicy,
    recorded: QuantizationCost,
    episodes: QuantizationCost | None,
) -> QuantizationEntry:
    """Write the codes and describe them, with their cost over the recorded steps and, if known, over episodes."""
    quantization = policy.quantization
    assert quantization is not None
    path = writer.quantized_file(targets)
    save_quantized(quantization.matrices, path)
    on_reference = {"measured_on": "reference", **recorded.to_json()}
    return QuantizationEntry(
        method=quantization.method,
        file=writer.entry(path),
        matrices=quantization.entries,
        calibration=quantization.calibration,
        cost=on_reference if episodes is None else {"measured_on": "episodes", **episodes.to_json()},
        reference_cost=None if episodes is None else on_reference,
        auto=None if quantization.choice is None else dict(quantization.choice),
    )


def _save_initial(writer: BundleWriter, policy: LoweredPolicy) -> Path | None:
    """Write the states that start as a tensor, if there are any."""
    if not policy.spec.starts_as_tensor:
        return None
    path = writer.directory / INITIAL_FILE
    write_initial(policy.initial_tensors, path)
    return path


def _export(writer: BundleWriter, target: str, policy: LoweredPolicy, progress: Progress) -> None:
    artifact = export_target(target, policy, writer.target_directory(target), progress)
    matrices = () if policy.quantization is None else policy.quantization.matrices.values()
    writer.add_artifact(
        target,
        artifact.files,
        precision=policy.precision,
        platform=artifact.platform,
        tools=artifact.tools,
        weight_bytes=artifact.weight_bytes,
        reads_codes=artifact.reads_codes,
        activations=activation_format(target, policy.precision, (matrix.format for matrix in matrices)),
    )


def _verify(writer: BundleWriter, bundle: Bundle, target: str, recorder: Recorder | None, progress: Progress) -> None:
    stood_for: dict[str, str] = {}

    def load(*arguments: Any) -> tuple[Runtime, str]:
        runtime, name = load_verifier(*arguments)
        platforms = getattr(runtime, "verified_for", "")
        stood_for.update({name: platforms} if platforms else {})
        return runtime, name

    result, runner = verify_artifact(
        bundle,
        target,
        load,
        threads=suitable_threads(bundle.manifest.parameters, bundle.manifest.batch_size),
        progress=progress,
        watch=None if recorder is None else recorder.add,
    )
    if not result.passed:
        raise ParityError(f"{target}: not what the reference model does: {'; '.join(result.failures())}")
    writer.add_parity(target, result, verified_by=runner, tools=stood_for)


@contextmanager
def _attempt(
    writer: BundleWriter, target: str, failures: dict[str, TargetFailure] | None, *, refuses: bool = False
) -> Iterator[None]:
    """Whatever goes wrong in the block costs the bundle this target only, if ``failures`` are wanted.

    With ``refuses`` a UsageError is the exporter's word that the target cannot run this model.
    """
    try:
        yield
    except Exception as error:  # toolkits are foreign code: whatever they raise is this target's failure
        if failures is None:
            raise
        failures[target] = TargetFailure(describe(error), refuses and isinstance(error, UsageError))
        writer.discard(target)


def _check_any(writer: BundleWriter) -> None:
    if not writer.targets:
        raise LramError("no target could be exported")
