"""What a step of a small policy costs, where overhead is everything: `native` beside ONNX Runtime and PyTorch.

    python benchmarks/small_policies.py [--policy lstm --policy mlp] [--targets native onnxruntime] [--batch 1]
        [--json FILE] [--markdown FILE]

The policies are 256 wide, 48 observed values, 12 actions, random weights: an LSTM, a perceptron of three layers behind
a normalized observation, and if asked for a GRU, and the LSTM as two linear layers, as policies of trainers are read
(`int8` rounds linear layers, and leaves what `nn.LSTM` and `nn.GRU` hold in float32). And, one row only, the tiny xLSTM
of `tests/golden/state_ms`, which aims at a return and is told rewards. Contenders of a policy, at all precisions, take
turns in windows of one run.

One row, as on a robot, one thread each:

- `native` from C: `step_time.c`, compiled here against `kernels/native`, calls `lram_step_fields`; and `Policy.act`.
  Both also with two threads, of which a step as small as these uses one.
- `onnxruntime`: the session alone, `run_with_iobinding`, everything bound once to arrays that stay where they are, with
  two sets of states that swap. Of the bundle's graph, and of the one that `torch.onnx.export` makes of the module,
  which is told of no episodes. And `Policy.act`.
- PyTorch: the module itself, eager, in inference mode; with `--compile` also by `torch.compile`, its weights frozen.

Many rows, as in a simulator: `Runtime.step` of `native`, which copies and checks inputs, and the others as above.

Only the step is timed: not how an observation gets into the array that a session is bound to, nor into a tensor.
Before the first window all contenders take the same steps and have to agree. Targets, of medians with one row: `native`
below 10 microseconds from C, 25 from Python and 15 above C, and from C at least 3 times as fast as the faster session.

Policies and contenders are in `small_policies_contenders.py`, tables in `small_policies_results.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from small_policies_contenders import (
    NETWORK,
    NETWORK_CHECKPOINT,
    NETWORK_TASK,
    POLICIES,
    Acting,
    Contender,
    FromC,
    InTorch,
    RuntimeStep,
    Session,
    Window,
    build_step_time,
    compiled,
    in_inference_mode,
    make_policy,
    observations,
    open_session,
    set_threads,
    state_tensors,
    torch_graph,
)
from small_policies_results import (
    COMPILED,
    EAGER,
    NATIVE_ACT_2,
    NATIVE_C,
    NATIVE_C_2,
    SESSION,
    TORCH_SESSION,
    Options,
    Result,
    as_json,
    markdown,
    show,
)

from lram_export.benchmark.bench import SPARE_CPUS, STEAL_LIMIT
from lram_export.bundle.bundle import Bundle
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.cli.console import message
from lram_export.errors import LramError, describe
from lram_export.export import ExportOptions, check_targets, export_bundle
from lram_export.policy import load_policy
from lram_export.quantization.quantize import QuantizationOptions
from lram_export.spec.parity import TOLERANCES
from lram_export.step_module.policy import StepPolicy
from lram_export.system.files import atomic_file, check_output, scratch_directory
from lram_export.system.load import LoadWatch, MachineLoad
from lram_export.system.machine import cpu_model, physical_cores, total_memory

DEFAULT_POLICIES, NAMES = ("lstm", "mlp", NETWORK), (*POLICIES, NETWORK)
PRECISIONS, TARGETS, BATCHES = ("fp32", "int8"), ("native", "onnxruntime", "openvino"), (1, 4096)
REFERENCE_STEPS, FLEET_REFERENCE_STEPS = 64, 4
"""Recorded in a bundle of one row, and of many."""
CHECKED_STEPS, CHECK_SECONDS = 8, 600.0


@dataclass(frozen=True)
class Case:
    """A policy with so many rows, and where its files go."""

    name: str
    batch: int
    options: Options
    folder: Path
    program: Path | None

    @property
    def threads(self) -> int:
        """Of every contender."""
        return self.options.threads_of(self.batch)

    def bundle(self, policy: StepPolicy | None, precision: str) -> Bundle:
        """Exported for all targets."""
        message(f"{self.name} {precision}, batch {self.batch:,}: exporting", False)
        settings = ExportOptions(
            targets=self.options.targets,
            batch_size=self.batch,
            reference_steps=REFERENCE_STEPS if self.batch == 1 else FLEET_REFERENCE_STEPS,
            quantization=QuantizationOptions(precision),
            report=False,
        )
        path = self.folder / f"{self.name}-{precision}-{self.batch}.lram"
        if policy is None:
            return export_bundle(load_checkpoint(NETWORK_CHECKPOINT), NETWORK_TASK, path, settings)
        return export_bundle(policy, None, path, settings)


class Contenders:
    """The contenders of a case, in the order of the tables, and why others are none."""

    def __init__(self, case: Case, stack: ExitStack) -> None:
        self._case, self._stack, self._observations = case, stack, observations(case.name, case.batch)
        self.found: list[Contender] = []
        self.skipped: list[Result] = []
        self.bundles: dict[str, Bundle] = {}
        policy, options = None if case.name == NETWORK else make_policy(case.name), case.options
        for precision in options.precisions:
            self.bundles[precision] = case.bundle(policy, precision)
        for target in options.targets:
            for precision, bundle in self.bundles.items():
                self._add_target(target, precision, bundle)
            if policy is not None and target == "onnxruntime" and "fp32" in options.precisions:
                self._add_torch_graph(policy)
        if policy is not None:
            self._add_torch(policy)
        names = list(dict.fromkeys(contender.name for contender in self.found))
        self.found.sort(key=lambda contender: names.index(contender.name))

    def _add_target(self, target: str, precision: str, bundle: Bundle) -> None:
        case, given = self._case, self._observations
        if target == "native" and case.program is not None and case.batch == 1:
            raw = case.folder / f"{case.name}-{precision}.raw"
            given.tofile(raw)
            model = bundle.path / target / "model.lrn"
            for name, threads in ((NATIVE_C, 1), (NATIVE_C_2, 2)):
                from_c = FromC(name, precision, [case.program, model, str(threads), raw])
                self._stack.callback(from_c.close)
                self.found.append(from_c)
        if target == "onnxruntime":
            session = open_session(bundle.path / target / "model.onnx", case.threads, case.batch)
            self.found.append(Session(SESSION, precision, given, session))
        if target != "onnxruntime" or case.batch == 1:
            policy = self._stack.enter_context(load_policy(bundle.path, target, threads=case.threads))
            if case.batch == 1:
                self.found.append(Acting(f"{target}, act", precision, given, policy))
                if target == "native":
                    two = self._stack.enter_context(load_policy(bundle.path, target, threads=2))
                    self.found.append(Acting(NATIVE_ACT_2, precision, given, two))
            else:
                self.found.append(RuntimeStep(f"{target}, runtime.step", precision, given, policy))

    def _add_torch_graph(self, policy: StepPolicy) -> None:
        case = self._case
        path = case.folder / f"{case.name}-{case.batch}.onnx"
        try:
            torch_graph(policy, case.batch, path)
            session = open_session(path, case.threads)
        except Exception as error:  # torch's exporter and ONNX Runtime raise whatever they like
            self._skip(TORCH_SESSION, describe(error)[:200])
        else:
            self.found.append(Session(TORCH_SESSION, "fp32", self._observations, session))

    def _add_torch(self, policy: StepPolicy) -> None:
        case, given, state = self._case, self._observations, state_tensors(policy, self._case.batch)
        self.found.append(InTorch(EAGER, given, policy.module, state))
        if case.batch == 1 and not case.options.compile:
            return
        message(f"{case.name}, batch {case.batch:,}: torch.compile", False)
        try:
            self.found.append(InTorch(COMPILED, given, compiled(policy, case.batch), state))
        except LramError as error:
            self._skip(COMPILED, str(error))

    def _skip(self, name: str, reason: str) -> None:
        case = self._case
        self.skipped.append(Result(case.name, "fp32", case.batch, case.threads, name, skipped=reason))


@contextmanager
def contenders_of(case: Case) -> Iterator[Contenders]:
    """Ready to take turns as long as the block lasts."""
    set_threads(case.threads)
    with ExitStack() as stack:
        yield Contenders(case, stack)


def check_agreement(contenders: Sequence[Contender]) -> None:
    """Have all take the same first steps; raises LramError unless those of a precision agree on the last action.

    Every export was verified: two targets may lie on either side of their reference.
    """
    first: dict[str, Contender] = {}
    for contender in contenders:
        contender.window(Window(0, CHECKED_STEPS, CHECK_SECONDS))
        other = first.setdefault(contender.precision, contender)
        allowed = 2 * TOLERANCES["fp32" if contender.precision == "fp32" else "quantized"].logit
        error = float(np.linalg.norm(contender.action - other.action) / np.linalg.norm(other.action))
        if not error <= allowed:
            raise LramError(
                f"{contender.name}, {contender.precision}: actions differ from those of {other.name} by {error:.2g} of "
                f"their norm, allowed {allowed:.2g}; times are void"
            )


def take_turns(contenders: Sequence[Contender], window: Window, windows: int) -> list[list[list[int]]]:
    """Nanoseconds of every step of every window of every contender."""
    found: list[list[list[int]]] = [[] for _ in contenders]
    for _ in range(windows):
        for own, contender in zip(found, contenders, strict=True):
            own.append(contender.window(window))
    return found


def result(case: Case, contender: Contender, windows: Sequence[Sequence[int]]) -> Result:
    """What a contender's windows say."""
    median, p99 = np.percentile(np.concatenate(windows), [50, 99]) / 1e3
    return Result(
        policy=case.name,
        precision=contender.precision,
        batch=case.batch,
        threads=case.threads,
        contender=contender.name,
        median_us=float(median),
        p99_us=float(p99),
        window_us=tuple(float(np.median(window)) / 1e3 for window in windows),
        timed_steps=sum(map(len, windows)),
    )


def measure(case: Case) -> tuple[list[Result], list[str], list[str]]:
    """All contenders of a case: results, what its precisions made of the weights, what speaks against the numbers."""
    options, steps = case.options, case.options.steps_of(case.batch)
    window = Window(max(3, steps // 10), steps, options.seconds)
    with contenders_of(case) as contenders, in_inference_mode():
        watch = LoadWatch()
        check_agreement(contenders.found)
        message(f"{case.name}, batch {case.batch:,}: {len(contenders.found)} contenders take turns", False)
        found = take_turns(contenders.found, window, options.windows)
        results = [result(case, c, w) for c, w in zip(contenders.found, found, strict=True)]
        weights = [codes_share(case.name, bundle) for name, bundle in contenders.bundles.items() if name != "fp32"]
    return [*results, *contenders.skipped], weights, doubts(case, watch.stop())


def codes_share(name: str, bundle: Bundle) -> str:
    """How much of a policy is quantized."""
    manifest = bundle.manifest
    matrices = () if manifest.quantization is None else manifest.quantization.matrices
    share = sum(matrix.shape[0] * matrix.shape[1] for matrix in matrices) / manifest.parameters
    names = ", ".join(matrix.name for matrix in matrices)
    return f"{name} {manifest.precision}: {share:.0%} of {manifest.parameters:,} weights are codes ({names})"


def doubts(case: Case, load: MachineLoad) -> list[str]:
    """Why numbers are not to be relied on, a line each."""
    where, found = f"{case.name}, batch {case.batch:,}", []
    if load.others is not None and load.others > load.cpus - case.threads + SPARE_CPUS:
        found.append(f"{where}: others used {load.others:.1f} of {load.cpus} CPUs: its times are worthless")
    if load.steal is not None and load.steal > STEAL_LIMIT * load.cpus:
        found.append(f"{where}: the host gave {load.steal:.1f} of {load.cpus} CPUs to other machines")
    return found


def run(options: Options, keep: Callable[[dict[str, Any]], None]) -> tuple[dict[str, Any], list[Result]]:
    """Measure everything; ``keep`` is told the document so far after every case."""
    program, from_c = None, "native" in options.targets and 1 in options.batches
    if from_c:
        message("compiling the engine", False)
        program = build_step_time()
    document, results = describe_run(options), list[Result]()
    with scratch_directory() as folder:
        for batch in options.batches:
            for name in (name for name in options.policies if name != NETWORK or batch == 1):
                measured, weights, warned = measure(Case(name, batch, options, folder, program))
                results += measured
                document["weights"] = list(dict.fromkeys([*document["weights"], *weights]))
                document["warnings"] += warned
                keep(document | as_json(results))
    return document, results


def describe_run(options: Options) -> dict[str, Any]:
    """Everything but what is measured."""
    packages = ("torch", "onnx", "onnxruntime", "openvino", "numpy", "lram-export")
    used = [name for name in packages if name not in TARGETS or name in options.targets]
    kernels = None
    if "native" in options.targets:
        from lram_export import _native

        kernels = _native.chosen_instruction_set()
    return {
        "benchmark": "small_policies",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/small_policies.py", *sys.argv[1:]]),
        "cpu": cpu_model(),
        "kernels": kernels,
        "physical_cores": physical_cores(),
        "total_memory": total_memory(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in used}},
        "options": dataclasses.asdict(options),
        "weights": [],
        "warnings": [],
    }


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def seconds(text: str) -> float:
    """A time above 0."""
    number = float(text)
    if not (number > 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return number


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=NAMES, action="append", help="may be repeated; default: those three")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="may be repeated; default: both")
    parser.add_argument("--targets", choices=TARGETS, nargs="+", default=["native", "onnxruntime"], help="of bundles")
    parser.add_argument("--batch", type=positive, action="append", help="may be repeated; default: 1 and 4096")
    parser.add_argument("--threads", type=positive, default=1, help="with many rows; one row always has one")
    parser.add_argument("--compile", action="store_true", help="torch.compile also with one row")
    parser.add_argument("--windows", type=positive, default=10, help="turns of each contender")
    parser.add_argument("--steps", type=positive, default=2000, help="timed steps of a window with one row")
    parser.add_argument("--fleet-steps", type=positive, default=10, help="timed steps of a window with many")
    parser.add_argument("--seconds", type=seconds, default=5.0, help="a window ends after this time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the tables for a page of the documentation"
    )
    return parser.parse_args()


def options_of(arguments: argparse.Namespace) -> Options:
    """What was asked for, each thing once and in our order."""
    return Options(
        policies=tuple(name for name in NAMES if name in (arguments.policy or DEFAULT_POLICIES)),
        precisions=tuple(name for name in PRECISIONS if name in (arguments.precision or PRECISIONS)),
        batches=tuple(sorted(set(arguments.batch or BATCHES))),
        targets=tuple(name for name in TARGETS if name in arguments.targets),
        threads=arguments.threads,
        compile=arguments.compile,
        windows=arguments.windows,
        steps=arguments.steps,
        fleet_steps=arguments.fleet_steps,
        seconds=arguments.seconds,
    )


def write(path: Path | None, text: str) -> None:
    """A file that is wanted."""
    if path is not None:
        with atomic_file(path, force=True) as temporary:
            temporary.write_text(text, encoding="utf-8")


def benchmark(arguments: argparse.Namespace) -> None:
    """Check what can be checked at once, measure, print, write."""
    for path in (arguments.json, arguments.markdown):
        if path is not None:
            check_output(path, force=True)
    options = options_of(arguments)
    for precision in options.precisions:
        check_targets(ExportOptions(targets=options.targets, quantization=QuantizationOptions(precision)))
    document, results = run(options, lambda found: write(arguments.json, json.dumps(found, indent=2) + "\n"))
    show(document, results)
    write(arguments.markdown, markdown(document, results))
    for path in (arguments.json, arguments.markdown):
        if path is not None:
            message(f"wrote {path}", False)


def main() -> None:
    """Run; whatever a user can cause ends in one line."""
    try:
        benchmark(parse())
    except LramError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
