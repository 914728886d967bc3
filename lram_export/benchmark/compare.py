"""Two bundles on the same inputs: how large, how fast, how often and how far their actions differ. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.benchmark.bench import BenchOptions, Contender, bench_together
from lram_export.bundle.bundle import Bundle
from lram_export.episodes.reference import stacked
from lram_export.episodes.steps import StepSequence, load_steps
from lram_export.errors import LramError, UsageError
from lram_export.model.config import bin_width, read_model
from lram_export.policy import default_target
from lram_export.progress import SILENT, Progress
from lram_export.runtimes import Runtime, load_runtime
from lram_export.spec.cost import QuantizationCost, quantization_cost
from lram_export.verification.verify import load_bundle_reference

TIMED_STEPS = 200


@dataclass(frozen=True)
class Side:
    """One of the two bundles. ``size`` is that of the artifact's files in bytes, shared codes included; ``p50_ms`` the
    median time of a step, None where ``not_timed`` says why; ``tools`` what the artifact was written with."""

    bundle: str
    target: str
    precision: str
    activations: str
    size: int
    weight_bytes: int
    checkpoint: str
    written: str
    generator: str
    tools: dict[str, str]
    p50_ms: float | None
    not_timed: str | None


@dataclass(frozen=True)
class Comparison:
    """What the two did. ``largest_difference`` is that of an action value; for discrete actions 1 if any differs."""

    first: Side
    second: Side
    difference: QuantizationCost
    largest_difference: float
    first_different_step: int | None


def compare_bundles(
    first: Bundle,
    second: Bundle,
    *,
    targets: tuple[str | None, str | None] = (None, None),
    recording: str | Path | None = None,
    threads: int,
    progress: Progress = SILENT,
) -> Comparison:
    """Step both side by side over the first one's recorded steps, or over those of a recording; then time them.

    Args:
        first, second: the bundles; each keeps its own state, from its initial values.
        targets: which artifact of each to run; default: the first that runs here.
        recording: steps of `lram-export record` to use instead.
        threads: for each runtime.
        progress: told about every step.

    Raises:
        UsageError: the bundles take other inputs or give other actions, or a target is missing.
        BundleError: a damaged bundle.
    """
    check_comparable(first, second)
    chosen = tuple(t or default_target(b) for t, b in zip(targets, (first, second), strict=True))
    inputs = load_bundle_reference(first).inputs if recording is None else _recorded(first, second, recording)
    runtimes: list[Runtime] = []
    try:
        for bundle, target in zip((first, second), chosen, strict=True):
            bundle.artifact(target)
            runtimes.append(load_runtime(target, bundle.load_artifact(target), threads))
        with progress.stage("comparing", len(inputs)) as advance:
            outputs = _step_all(runtimes, inputs, advance)
    finally:
        for runtime in runtimes:
            runtime.close()
    sides = _sides([(first, chosen[0]), (second, chosen[1])], threads, progress)
    manifest = first.manifest
    action = manifest.spec.outputs[0].name
    distance = np.abs(outputs[0][action].astype(np.float64) - outputs[1][action].astype(np.float64))
    steps = np.flatnonzero(distance.reshape(len(inputs), -1).any(axis=1))
    largest = float(distance.max())
    return Comparison(
        sides[0],
        sides[1],
        quantization_cost(
            manifest.spec, bin_width(manifest.model, manifest.task, manifest.interface, first.path), *outputs
        ),
        min(largest, 1.0) if manifest.spec.outputs[0].dtype == "int64" else largest,
        int(steps[0]) if steps.size else None,
    )


def check_comparable(first: Bundle, second: Bundle) -> None:
    """Raise UsageError, naming both sides, unless both take the same inputs and give the same kind of action."""
    for what, values in (
        ("inputs", [b.manifest.spec.inputs for b in (first, second)]),
        ("outputs", [b.manifest.spec.outputs for b in (first, second)]),
    ):
        if len(values[0]) != len(values[1]):
            ours, theirs = (", ".join(tensor.name for tensor in tensors) for tensors in values)
            raise UsageError(f"{what} differ: {first.path} has {ours}; {second.path} has {theirs}")
        for one, two in zip(*values, strict=True):
            if replace(one, limit=None) != replace(two, limit=None):  # limits come from the weights
                raise UsageError(
                    f"{what} differ: {first.path} has {one.name} {one.dtype} of shape {one.shape}, "
                    f"{second.path} has {two.name} {two.dtype} of shape {two.shape}"
                )
    if first.manifest.task is None or second.manifest.task is None:
        return
    heads = [read_model(b.manifest.model, b.path).head for b in (first, second)]
    if heads[0] != heads[1]:
        raise UsageError(f"heads differ: {first.path} has {heads[0].fact()}, {second.path} has {heads[1].fact()}")


def _recorded(first: Bundle, second: Bundle, recording: str | Path) -> StepSequence:
    """The steps of a recording; raises LramError unless both bundles can take them."""
    for bundle in (first, second):
        steps = load_steps(recording, bundle.manifest.spec)
    rows = steps["is_first"].shape[1]
    if rows != first.manifest.batch_size:
        raise UsageError(f"{recording}: has rows of {rows}; the bundles step {first.manifest.batch_size} at a time")
    return steps


def _step_all(runtimes: list[Runtime], inputs: StepSequence, advance: Any) -> list[dict[str, NDArray[Any]]]:
    """The outputs of every step of each runtime, by name."""
    steps: list[list[list[NDArray[Any]]]] = [[] for _ in runtimes]
    for runtime in runtimes:
        runtime.reset()
    for arguments in inputs:
        for runtime, answers in zip(runtimes, steps, strict=True):
            answers.append([values.copy() for values in runtime.step(*arguments)])
        advance(1)
    return [stacked(runtime.spec, answers) for runtime, answers in zip(runtimes, steps, strict=True)]


def _sides(pairs: list[tuple[Bundle, str]], threads: int, progress: Progress) -> list[Side]:
    """Both sides, timed in processes of their own: in one process their threads and caches would be in each other's
    way."""
    contenders = [Contender(f"{bundle.path.name} {target}", bundle, target) for bundle, target in pairs]
    reasons: dict[int, str] = {}

    def failed(contender: Contender, error: LramError) -> None:
        reasons[next(i for i, each in enumerate(contenders) if each is contender)] = str(error)

    report = bench_together(contenders, BenchOptions((), threads, steps=TIMED_STEPS), progress, failed)
    times = iter(result.p50_ms for result in report.results)
    return [
        _side(bundle, target, None if i in reasons else next(times), reasons.get(i))
        for i, (bundle, target) in enumerate(pairs)
    ]


def _side(bundle: Bundle, target: str, p50_ms: float | None, not_timed: str | None) -> Side:
    manifest, entry = bundle.manifest, bundle.artifact(target)
    return Side(
        bundle=str(bundle.path),
        target=target,
        precision=entry.precision,
        activations=entry.activations,
        size=bundle.artifact_size(target),
        weight_bytes=entry.weight_bytes,
        checkpoint=f"{manifest.source.get('file')} ({(manifest.source.get('sha256') or 'not saved')[:12]})",
        written=manifest.created,
        generator=manifest.generator,
        tools=dict(entry.tools),
        p50_ms=p50_ms,
        not_timed=not_timed,
    )
