"""Does a bundle do what the reference model does? On the device, without torch; or against a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lram_export.bundle.bundle import Bundle
from lram_export.episodes.reference import Reference, load_reference, sample_state
from lram_export.episodes.steps import RecordedSteps, StepSequence, load_steps, random_steps
from lram_export.errors import UsageError
from lram_export.progress import SILENT, Advance, Progress
from lram_export.runtimes import RUNTIMES, LoadedArtifact, Runtime, StepOutput, load_runtime, unavailable
from lram_export.spec.parity import FLOAT32, ParityMeter, ParityResult
from lram_export.spec.precision import PRECISIONS
from lram_export.targets.registry import load_target
from lram_export.verification.consistency import check_codes_file, check_limits, check_model, check_steps

if TYPE_CHECKING:
    from lram_export.lowering import Source
    from lram_export.verification.oracle import Oracle, RecordedCheck

DEFAULT_STEPS = 500
STATE_EVERY = 64
"""Steps between two comparisons of whole states."""
TargetMeters = tuple[dict[str, ParityMeter], str | None]
"""What :func:`target_meters` gives."""
Watch = Callable[[Runtime, StepOutput], None]
"""Is shown a runtime and its output after every step."""


def verify_targets(
    bundle: Bundle, targets: Sequence[str], *, threads: int, progress: Progress = SILENT
) -> dict[str, ParityResult]:
    """Replay the bundle's recorded steps on every target, without torch; one target in memory at a time.

    Raises:
        BundleError: a damaged bundle.
        UsageError: a target the bundle does not have, or that is not installed.
    """

    def load(target: str, artifact: LoadedArtifact, threads: int) -> tuple[Runtime, str]:
        return load_runtime(target, artifact, threads), target

    check_model(bundle)
    check_codes_file(bundle)
    return {t: verify_artifact(bundle, t, load, threads=threads, progress=progress)[0] for t in targets}


def verify_artifact(
    bundle: Bundle,
    target: str,
    load: Callable[[str, LoadedArtifact, int], tuple[Runtime, str]],
    *,
    threads: int,
    progress: Progress = SILENT,
    watch: Watch | None = None,
) -> tuple[ParityResult, str]:
    """Replay the bundle's recorded steps on a target's artifact.

    Args:
        bundle: the bundle.
        target: one of its targets.
        load: takes target, artifact and threads; gives the runtime that runs the artifact, and its name.
        threads: for the runtime.
        progress: told about every step.
        watch: shown the runtime and its output after every step.

    Returns:
        What the comparison found, and the name of the runtime.

    Raises:
        BundleError: a damaged bundle.
        UsageError: a target the bundle does not have, or that cannot run here.
    """
    reference = load_bundle_reference(bundle)
    runtime, name = load(target, bundle.load_artifact(target, thorough=True), threads)
    on = "" if name == target else f" on {name}"
    try:
        with progress.stage(f"verifying {target}{on}", len(reference.inputs)) as advance:
            meter = parity_meter(bundle, target, runtime, reference)
            replay(runtime, reference, meter, advance, watch)
    finally:
        runtime.close()
    return meter.result(), name


def parity_meter(bundle: Bundle, target: str, runtime: Runtime, reference: Reference) -> ParityMeter:
    """An empty comparison with the tolerance that holds for a target of the bundle on this runtime; ``reference`` are
    the bundle's recorded steps."""
    entry = bundle.artifact(target)
    return ParityMeter(
        bundle.manifest.spec,
        entry.precision,
        entry.activations,
        getattr(runtime, "state_format", FLOAT32),
        reference.outputs,
    )


def replay(
    runtime: Runtime,
    reference: Reference,
    meter: ParityMeter,
    advance: Advance = lambda amount: None,
    watch: Watch | None = None,
) -> None:
    """Run the recorded steps from the initial state and compare outputs and the last state."""
    runtime.reset()
    for arguments, expected in zip(reference.inputs, reference, strict=True):
        output = runtime.step(*arguments)
        meter.add_step(expected, output)
        if watch is not None:
            watch(runtime, output)
        advance(1)
    meter.add_state(reference.state_samples, sample_state(runtime.state()))


@dataclass(frozen=True)
class Comparison:
    """A bundle against a checkpoint: three questions, three verdicts.

    Attributes:
        sha256: of the checkpoint.
        source_sha256: of the checkpoint that the bundle says it was exported from.
        oracle: the oracle the targets were compared with; it knows whether the codes are the checkpoint's.
        meters: every target against the oracle.
        recorded: the bundle's recorded steps against the oracle, and the cost of quantization over them.
        different_weight: one of the target `pytorch` that is not the checkpoint's to the bit, if any is.
    """

    sha256: str
    source_sha256: str | None
    oracle: Oracle
    meters: Mapping[str, ParityMeter]
    recorded: RecordedCheck
    different_weight: str | None = None

    @property
    def results(self) -> dict[str, ParityResult]:
        """What the comparison of every target found."""
        return {target: meter.result() for target, meter in self.meters.items()}

    @property
    def codes(self) -> bool | None:
        """Are codes x scales the checkpoint's matrices? None if there are none."""
        return None if self.oracle.codes is None else self.oracle.codes.passed

    @property
    def computation(self) -> bool:
        """Does every target, and did whoever recorded the bundle's steps, compute what the oracle does?"""
        targets = all(result.passed for result in self.results.values())
        return targets and self.recorded.parity.passed and self.different_weight is None

    @property
    def cost(self) -> bool | None:
        """Did quantization cost what the manifest states? None if it states nothing."""
        return None if self.recorded.cost is None else self.recorded.cost.passed

    @property
    def passed(self) -> bool:
        """Whether no verdict is negative."""
        return self.computation and self.codes is not False and self.cost is not False

    def to_json(self) -> dict[str, Any]:
        """Both digests and the verdicts as plain JSON values."""
        return {
            "checkpoint_sha256": self.sha256,
            "source_sha256": self.source_sha256,
            "codes": None if self.oracle.codes is None else self.oracle.codes.to_json(),
            "computation": {
                "passed": self.computation,
                "recorded_steps": self.recorded.parity.to_json(),
                "different_weight": self.different_weight,
            },
            "cost": None if self.recorded.cost is None else self.recorded.cost.to_json(),
        }


def verify_against_checkpoint(
    bundle: Bundle,
    checkpoint: Source,
    targets: Sequence[str],
    *,
    inputs: StepSequence,
    threads: int,
    other_checkpoint: bool = False,
    progress: Progress = SILENT,
    elsewhere: Callable[[], Mapping[str, TargetMeters]] | None = None,
) -> Comparison:
    """Compare a bundle with a checkpoint: its codes, its recorded steps, and every target on steps, side by side.

    Whole states are compared every 64 steps and after the last. The oracle of a quantized bundle is the
    checkpoint with the bundle's dequantized matrices. The target `pytorch` is that same model: if its weights are the
    oracle's to the bit, it runs once for both. Where the targets step ``elsewhere``, that gives
    :func:`target_meters` of each.

    Raises:
        UsageError: the checkpoint is of another architecture than the bundle's, or another file and that is not
            meant; or see :func:`verify_targets`.
        ParityError: codes x scales are not finite.
        BundleError: damaged, or the manifest does not follow from its model.
    """
    from lram_export.verification.oracle import build_oracle, check_recorded

    manifest = bundle.manifest
    check_model(bundle)
    oracle = build_oracle(bundle, checkpoint, other_checkpoint=other_checkpoint, progress=progress)
    if oracle.codes is not None and not math.isfinite(oracle.codes.largest_error):
        oracle.require_codes()  # nothing can be computed with them
    check_limits(bundle, oracle.float32.spec)
    recorded_steps = load_bundle_reference(bundle)
    recorded = check_recorded(oracle, recorded_steps, progress)
    if elsewhere is None:
        meters, different = target_meters(bundle, oracle, targets, inputs, threads, progress)
    else:
        found = elsewhere()
        meters = {target: found[target][0][target] for target in targets}
        different = next((other for _, other in found.values() if other is not None), None)
    source = manifest.source.get("sha256")
    return Comparison(oracle.dequantized().source["sha256"], source, oracle, meters, recorded, different)


def target_meters(
    bundle: Bundle,
    oracle: Oracle,
    targets: Sequence[str],
    inputs: StepSequence,
    threads: int,
    progress: Progress = SILENT,
) -> TargetMeters:
    """Step targets beside the oracle; a meter each, and a weight of `pytorch` that is not the oracle's, if any is."""
    from lram_export.lowering import LoweredModel
    from lram_export.model.reference import oracle_threads
    from lram_export.runtimes.pytorch import artifact_checkpoint
    from lram_export.verification.oracle import different_weight

    recorded_steps = load_bundle_reference(bundle)
    policy, different = oracle.dequantized(), None
    runtimes: dict[str, Runtime] = {}
    with ExitStack() as stack:
        reference = policy.reference()
        stack.callback(reference.close)
        for target in targets:
            artifact, is_reference = bundle.load_artifact(target, thorough=True), False
            if target == "pytorch" and isinstance(policy, LoweredModel):
                different = different_weight(policy.checkpoint, artifact_checkpoint(artifact))
                is_reference = different is None
            runtimes[target] = reference if is_reference else load_runtime(target, artifact, threads)
            stack.callback(runtimes[target].close)
        meters = {t: parity_meter(bundle, t, runtime, recorded_steps) for t, runtime in runtimes.items()}
        stage = progress.stage("verifying against the checkpoint", len(inputs))
        with stage as advance, oracle_threads(policy.parameters):
            for number, arguments in enumerate(inputs, start=1):
                expected = reference.step(*arguments)
                for target, runtime in runtimes.items():
                    output = expected if runtime is reference else runtime.step(*arguments)
                    meters[target].add_step(expected, output)
                if number % STATE_EVERY == 0 or number == len(inputs):
                    state = reference.state()
                    for target, runtime in runtimes.items():
                        meters[target].add_state(state, state if runtime is reference else runtime.state())
                advance(1)
    return meters, different


def checkpoint_steps(bundle: Bundle, recording: str | Path | None, steps: int | None, seed: int) -> StepSequence:
    """What to compare on: steps of a recording, or fresh random ones in which rows start an episode now and then.

    Raises:
        UsageError: a bundle whose static activation ranges random steps would leave.
        LramError: a recording that does not fit the bundle.
    """
    manifest = bundle.manifest
    if recording is None:
        if PRECISIONS.get(manifest.precision, PRECISIONS["fp32"]).quantized_activations:
            raise UsageError(
                f"{bundle.path}: {manifest.precision} has static activation ranges, which random steps leave; add "
                f"--recording FILE (of lram-export record)"
            )
        count = steps or DEFAULT_STEPS
        return random_steps(manifest.spec, manifest.task, count, seed, episode=max(count // 3, 500))
    recorded = load_steps(recording, manifest.spec)
    rows = recorded["is_first"].shape[1]
    if rows != manifest.batch_size:
        raise UsageError(f"{recording}: has rows of {rows}; the bundle steps {manifest.batch_size} at a time")
    cut = recorded.map(lambda values: values[:steps])
    if isinstance(recorded, RecordedSteps):
        return RecordedSteps(cut.inputs, recorded.environment[:steps], recorded.environments)
    return cut


def load_bundle_reference(bundle: Bundle) -> Reference:
    """Check and read the bundle's recorded steps; raises BundleError."""
    bundle.check_files([bundle.manifest.reference])
    reference = load_reference(bundle.path / bundle.manifest.reference.path, bundle.manifest.spec)
    check_steps(bundle, len(reference.inputs))
    return reference


def installed_targets(bundle: Bundle, requested: Sequence[str]) -> list[str]:
    """The requested targets, or all of the bundle's that are installed here.

    Raises:
        UsageError: a requested target is not in the bundle; or none was requested and none is installed.
    """
    if requested:
        for target in requested:
            load_target(RUNTIMES, target)
            bundle.artifact(target)
        return list(requested)
    usable = [t for t in bundle.targets if unavailable(t) is None]
    if not usable:
        load_target(RUNTIMES, bundle.targets[0])  # says which package is missing
        raise UsageError(f"target '{bundle.targets[0]}': {unavailable(bundle.targets[0])}")
    return usable
