"""The processes of a benchmark: each loads one thing, then answers requests until its pipe closes."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.checkpoints.loading import CheckpointSource
from lram_export.episodes.steps import random_steps
from lram_export.errors import LramError, UsageError
from lram_export.rates import may_spin
from lram_export.spec.parity import FLOAT32, ParityMeter, ParityResult
from lram_export.system.huge_pages import MemoryOfPolicy
from lram_export.system.machine import peak_memory, usable_cores
from lram_export.system.processes import end_with_parent
from lram_export.targets.native.options import STATE_FORMAT
from lram_export.verification.verify import load_bundle_reference, parity_meter, replay

if TYPE_CHECKING:
    from lram_export.policy import Observation, Policy

BASELINE = "original"
"""Name of the baseline: the original code's own step, token by token, in eager PyTorch."""

INPUT_STEPS = 64
"""Random inputs are drawn once and cycled through."""


@dataclass(frozen=True)
class ProbeJob:
    """Measure how fast the machine reads memory and multiplies."""

    threads: int
    name: str = "probe of the machine"


@dataclass(frozen=True)
class StepJob:
    """Time steps of one target, or of the baseline. ``state_format``: of the target `native`, "": as it is here."""

    name: str
    bundle: str
    threads: int
    rate: float | None
    source: CheckpointSource | None = None
    profile: bool = False
    state_format: str = ""


Job = ProbeJob | StepJob


@dataclass(frozen=True)
class Window:
    """Seconds of each timed step, to its action and until the target had nothing left to do; how many missed their
    deadline, the processor time of all threads, and how long the window was, pauses included."""

    seconds: NDArray[np.float64]
    until_free: NDArray[np.float64]
    missed: int
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0


@dataclass(frozen=True)
class WorkerReport:
    """What a step worker knows besides times. ``weights`` says whose weights ran; ``stages`` are the seconds of a step
    in each stage, the mean of the threads, where that was asked for and the target can tell. ``state_format`` is how
    the target keeps its state."""

    weights: str
    threads: int
    load_seconds: float
    first_step_seconds: float
    peak_memory: int | None
    parity: ParityResult | None
    leaves_work: bool
    stages: dict[str, float] | None
    memory: MemoryOfPolicy | None
    state_format: str


def serve(connection: Connection, job: Job) -> None:
    """Load, say so, then answer requests ``(method, *arguments)``; errors travel back as exceptions."""
    end_with_parent()
    try:
        worker: Any = _ProbeWorker(job) if isinstance(job, ProbeJob) else _StepWorker(job)
        connection.send((True, None))
        while True:
            method, *arguments = connection.recv()
            connection.send((True, getattr(worker, method)(*arguments)))
    except (EOFError, BrokenPipeError):
        return
    except LramError as error:
        connection.send((False, error))
    except Exception as error:  # anything else must reach the user, not a child's standard error
        connection.send((False, LramError(f"{job.name}: {type(error).__name__}: {error}")))


def _window(times: list[tuple[float, float]], missed: int) -> Window:
    """``times``: seconds to the action, and until free, of each step."""
    seconds, until_free = np.array(times).T
    return Window(seconds, until_free, missed)


class _ProbeWorker:
    def __init__(self, job: ProbeJob) -> None:
        from lram_export.benchmark.probes import ProductRate, ReadBandwidth

        self._bandwidth, self._products = ReadBandwidth(job.threads), ProductRate(job.threads)

    def bandwidth(self) -> float:
        return self._bandwidth.measure()

    def products(self) -> float:
        return self._products.measure()


class _StepWorker:
    def __init__(self, job: StepJob) -> None:
        self._rate = job.rate
        bundle = Bundle.open(job.bundle)
        start = time.perf_counter()
        self._policy, self._weights, comparable = _load(bundle, job)
        self._load_seconds = time.perf_counter() - start
        self._profiled_steps = 0
        self._leaves_work = getattr(self._policy.runtime, "leaves_work", False)
        self._inputs = _endless_inputs(self._policy)
        self._first_step_seconds, _ = self._timed_act()
        self._threads = job.threads
        if job.name == BASELINE:
            from lram_export.benchmark.baseline import better_threads

            self._threads = better_threads(lambda: self._timed_act()[0], {1, job.threads, usable_cores()})
        self._parity = None
        if comparable:
            runtime = self._policy.runtime
            reference = load_bundle_reference(bundle)
            baseline = job.name == BASELINE
            meter = ParityMeter(runtime.spec) if baseline else parity_meter(bundle, job.name, runtime, reference)
            replay(runtime, reference, meter)
            self._parity = meter.result()
            if not self._parity.passed:
                raise LramError(f"{job.name}: wrong outputs, not timed: {'; '.join(self._parity.failures())}")
            self._policy.reset()
        self._start_state = self._policy.runtime.state()
        self._profiled_steps = 0
        self._runtime_stages = None
        profiled: Any = self._policy.runtime
        if job.profile and hasattr(profiled, "stages"):
            profiled.profile()
            self._runtime_stages = profiled.stages

    def window(self, steps: int, seconds_limit: float | None) -> Window:
        for _ in range(3 if seconds_limit else max(3, steps // 20)):  # caches and threads, after others' turns
            self._timed_act()
        start, before = time.perf_counter(), time.process_time()
        window = self._timed_window(steps, seconds_limit)
        used, passed = time.process_time() - before, time.perf_counter() - start
        return dataclasses.replace(window, cpu_seconds=used, wall_seconds=passed)

    def _timed_window(self, steps: int, seconds_limit: float | None) -> Window:
        if self._rate is not None:
            return self._paced_window(steps, 1.0 / self._rate, seconds_limit)
        times: list[tuple[float, float]] = []
        start = time.perf_counter()
        while len(times) < steps:
            times.append(self._timed_act())
            if seconds_limit is not None and time.perf_counter() - start > seconds_limit:
                break
        return _window(times, 0)

    def _paced_window(self, steps: int, period: float, seconds_limit: float | None = None) -> Window:
        """One step per period, from tick to action; after an overrun the loop waits for the next whole tick."""
        times: list[tuple[float, float]] = []
        missed = 0
        tick = time.perf_counter() + period
        end = tick + (np.inf if seconds_limit is None else seconds_limit)
        while len(times) < steps and (not times or tick <= end):
            time.sleep(max(tick - time.perf_counter(), 0.0))
            acted, free = self._timed_act()
            until_free = time.perf_counter() - tick
            to_action = until_free - (free - acted)
            times.append((to_action, until_free))
            late = int(until_free // period)
            missed += late > 0
            tick += period * (1 + late)
        time.sleep(max(tick - time.perf_counter(), 0.0))  # threads that spin after the last step count, too
        return _window(times, missed)

    def _timed_act(self) -> tuple[float, float]:
        """Seconds to the action, and until nothing is left to do."""
        observation, reward = next(self._inputs)
        self._profiled_steps += 1
        start = time.perf_counter()
        self._policy.act(observation, reward)
        acted = time.perf_counter()
        if self._leaves_work:
            self._policy.settle()
        return acted - start, time.perf_counter() - start

    def finish(self) -> WorkerReport:
        state = self._policy.runtime.state()
        still = [n for n, before in self._start_state.items() if np.array_equal(before, state[n])]
        broken = [n for n, array in state.items() if not np.isfinite(array).all()]
        if still or broken:
            raise LramError(f"{(still + broken)[0]}: the state did not advance or is not finite; times are void")
        memory = getattr(self._policy.runtime, "memory", None)
        return WorkerReport(
            self._weights,
            self._threads,
            self._load_seconds,
            self._first_step_seconds,
            peak_memory(),
            self._parity,
            self._leaves_work,
            self._stages(),
            None if memory is None else memory(),
            getattr(self._policy.runtime, "state_format", FLOAT32),
        )

    def _stages(self) -> dict[str, float] | None:
        if self._runtime_stages is None:
            return None
        return {stage: seconds / self._profiled_steps for stage, seconds in self._runtime_stages().items()}


def _load(bundle: Bundle, job: StepJob) -> tuple[Policy, str, bool]:
    """The policy to time, whose weights it has, and whether they are the bundle's."""
    from lram_export.policy import Policy, load_policy

    if job.state_format:
        os.environ[STATE_FORMAT] = job.state_format  # of this process, which times nothing else
    if job.name != BASELINE:
        policy = load_policy(job.bundle, job.name, threads=job.threads, spin=may_spin(job.rate))
        return policy, "bundle", True
    task = bundle.manifest.task
    if task is None:
        raise UsageError(f"--baseline: {bundle.path} is of a module of one's own, which has no original package")
    from lram_export.runtimes import RUNTIMES
    from lram_export.targets.registry import load_target

    load_target(RUNTIMES, "pytorch")  # says what is missing
    import torch

    from lram_export.benchmark.baseline import OriginalRuntime
    from lram_export.checkpoints.random import random_checkpoint
    from lram_export.model.config import read_model
    from lram_export.model.reference import ReferenceModel
    from lram_export.runtimes.pytorch import artifact_checkpoint
    from lram_export.verification.oracle import check_architecture, in_context_of

    torch.set_num_threads(job.threads)
    manifest = bundle.manifest
    if job.source is not None:
        checkpoint, weights = in_context_of(bundle, job.source.load()), "checkpoint"
        check_architecture(bundle, checkpoint)
    elif "pytorch" in bundle.targets:
        checkpoint, weights = artifact_checkpoint(bundle.load_artifact("pytorch")), "bundle"
    else:  # speed does not depend on the values of the weights
        checkpoint, weights = random_checkpoint(read_model(manifest.model, bundle.path), bundle.path), "random"
    runtime = OriginalRuntime(ReferenceModel.from_weights(checkpoint.config, checkpoint.weights), manifest.spec, task)
    # a checkpoint's own weights are not those of a quantized bundle
    comparable = weights == "bundle" or (weights == "checkpoint" and manifest.quantization is None)
    return Policy(runtime, manifest.task), weights, comparable


def _endless_inputs(policy: Policy) -> Iterator[tuple[Observation, NDArray[np.float32]]]:
    """Random observations, and rewards that sum to 0, so that return-to-go stays where the task has it."""
    from lram_export.policy import observations_of

    steps = random_steps(policy.spec, policy.task, INPUT_STEPS, seed=2)
    rng = np.random.default_rng(3)
    rewards = rng.standard_normal((INPUT_STEPS, policy.spec.batch_size)).astype(np.float32)
    rewards -= rewards.mean(axis=0)
    names = [tensor.name for tensor in observations_of(policy.spec)]
    given: list[Observation] = [{name: steps[name][i] for name in names} for i in range(INPUT_STEPS)]
    if len(names) == 1:
        given = [*steps[names[0]]]
    return itertools.cycle(zip(given, rewards, strict=True))
