"""What a step costs after a long episode: an LRAM beside a Decision Transformer of the same size.

    pip install transformers
    python benchmarks/context_length.py [--preset 206m] [--batch 1 --batch 16] [--json FILE] [--chart FILE.svg]

The claim of arXiv 2410.22391: a recurrent policy takes the same time and memory at every step, a transformer's
key-value cache grows with the context, the environment steps so far, of three tokens each. Contenders, all float32
with random weights, whose values change no time:

- the transformer: `transformers`' GPT-2 based Decision Transformer in the published sizes, embeddings and head as the
  LRAM's, a step's three tokens in one pass. Twice: with the package's `DynamicCache`, which copies all keys and values
  at every step, and with a cache that is written in place, the best that a transformer can have here. The cache is
  filled with random numbers up to the context, and put back to it after every step.
- the LRAM in PyTorch: the `xlstm` package's own step, token by token, as the original code acts.
- the LRAM exported to a target.
- a Mamba exported to it, and the Decision Transformer that the training code evaluates, which acts by the last 50 steps
  alone: with all of its window computed anew, and with a cache of it. Their context ends there, whatever the length.

The LRAM really takes `--history` steps before it is measured, the exported one for both: its state is then handed to
the other, and both must agree on the next. At every context length contenders take turns in windows. A cache that
would not fit beside what is loaded is not built; its row says so. Memory is computed from the tensors: weights (of the
position table, the rows in use), and cache or state.

The transformer is in `decision_transformer.py`, tables and chart are in `context_length_results.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from context_length_results import (
    IN_PYTORCH,
    OTHERS,
    Options,
    Point,
    draw,
    exported_name,
    other_name,
    results,
    show,
)
from decision_transformer import CACHES, TRANSFORMERS, DecisionTransformer, transformer_name
from numpy.typing import NDArray

from lram_export.backbones.xlstm.config import PRESETS
from lram_export.checkpoints.random import preset_config, random_checkpoint
from lram_export.cli.console import message
from lram_export.errors import LramError, UsageError
from lram_export.export import ExportOptions, check_targets, export_bundle
from lram_export.policy import Policy, load_policy
from lram_export.spec.parity import TOLERANCES
from lram_export.spec.tasks import resolve_task
from lram_export.spec.tokens import LRAM
from lram_export.system.files import atomic_file, check_output
from lram_export.system.machine import available_memory, cpu_model, physical_cores, total_memory

if TYPE_CHECKING:
    from lram_export.checkpoints.checkpoint import Checkpoint

TOKENS = len(LRAM)
TASK = "metaworld/reach-v2"
"""39 observed values, 4 actions."""

LENGTHS = [50, 200, 800, 3_200, 6_400, 12_800, 25_600]

GB = 1e9
RESERVE_BYTES = 2**30
"""Left free beside a cache: activations, temporary copies, the rest of the machine."""

REFERENCE_STEPS = 8


class Contender(Protocol):
    """What takes turns."""

    name: str

    def step(self) -> float:
        """Take one environment step of the whole batch; the seconds it took."""

    def point(self, length: int) -> Point:
        """A point with everything but times."""


class Stepped:
    """A policy behind the step API; ``bound``: the steps that it acts by, where it has not seen all of them."""

    def __init__(self, name: str, policy: Policy, weight_bytes: int, bound: int | None = None) -> None:
        self.name, self.policy, self.history, self.bound = name, policy, 0, bound
        self._weight_bytes = weight_bytes
        self._observations = observations(policy.spec.inputs[0].shape)

    def step(self) -> float:
        """See :class:`Contender`."""
        observation = next(self._observations)
        start = time.perf_counter()
        self.policy.act(observation)
        self.history += 1
        return time.perf_counter() - start

    def continue_from(self, other: Stepped) -> None:
        """Take over the other's state, take one step beside it, and raise LramError unless they agree."""
        self.policy.load_state(other.policy.state())
        self.history, self._observations = other.history, observations(self.policy.spec.inputs[0].shape)
        observation = next(self._observations)
        for stepped in (self, other):
            stepped.policy.act(observation)
            stepped.history += 1
        error = float(np.abs(self.policy.action_logits - other.policy.action_logits).max())
        if not error <= TOLERANCES["fp32"].logit:
            raise LramError(f"{self.name}: logits differ from those of {other.name} by {error:.2g}; times are void")

    def point(self, length: int) -> Point:
        """See :class:`Contender`."""
        spec = self.policy.spec
        sizes = (self._weight_bytes, spec.state_bytes)
        return Point(self.name, spec.batch_size, length, None, (), 0, *sizes, self.history, bound=self.bound)


class CachedTransformer:
    """The transformer with one kind of cache and batch size; it can step inside :meth:`context`."""

    def __init__(self, transformer: DecisionTransformer, kind: str, batch: int) -> None:
        self.name = transformer_name(kind)
        self._transformer, self._kind, self._batch = transformer, kind, batch
        self._observations = observations((batch, transformer.task.observation_dim or 0))
        self._return_to_go, self._reward = np.ones(batch, np.float32), np.zeros(batch, np.float32)
        self._cache: Any = None

    def lacking(self, length: int, reserve: int) -> str | None:
        """Why a context does not fit into the memory that is free now, less ``reserve`` bytes; None if it does."""
        available = available_memory()
        needed = self._transformer.cache_bytes(self._batch, length)
        block = self._transformer.cache_bytes(1, length) // (2 * self._transformer.config.n_layer)
        copies = block + 3 * block * self._batch  # what fills it; one layer as it was, and as it becomes
        if available is None or needed + copies + reserve <= available:
            return None
        free = max(available - reserve - copies, 0)
        return f"not enough memory: the cache needs {needed / GB:.1f} GB, {free / GB:.1f} GB are free for it"

    @contextmanager
    def context(self, length: int) -> Iterator[None]:
        """Have a context of ``length`` environment steps as long as the block lasts."""
        tokens = TOKENS * length
        self._cache = self._transformer.new_cache(self._kind, self._batch, tokens + TOKENS)
        self._transformer.fill(self._cache, self._batch, tokens)
        try:
            yield
            assert self._cache.get_seq_length() == tokens
        finally:
            self._cache = None
            gc.collect()

    def step(self) -> float:
        """See :class:`Contender`."""
        observation = next(self._observations)
        start = time.perf_counter()
        self._transformer.act(observation, self._return_to_go, self._reward, self._cache)
        elapsed = time.perf_counter() - start
        self._cache.crop(-TOKENS)  # a view; the next step has the same context
        return elapsed

    def point(self, length: int) -> Point:
        """See :class:`Contender`."""
        transformer = self._transformer
        sizes = (transformer.weight_bytes(length), transformer.cache_bytes(self._batch, length))
        return Point(self.name, self._batch, length, None, (), 0, *sizes, None)


class Turns:
    """Times of contenders that take turns, by their names."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.windows: dict[str, list[list[float]]] = {}

    def take(self, contenders: Sequence[Contender]) -> None:
        """All windows of some contenders."""
        import torch

        with torch.inference_mode():
            for _ in range(self._options.windows):
                for contender in contenders:
                    self.windows.setdefault(contender.name, []).append(self._window(contender))

    def _window(self, contender: Contender) -> list[float]:
        """Seconds of each step; the first steps, after others' turns, warm caches and threads and do not count."""
        start = time.perf_counter()
        for _ in range(3):
            contender.step()
            if time.perf_counter() - start > self._options.seconds / 4:
                break
        seconds: list[float] = []
        start = time.perf_counter()
        while len(seconds) < self._options.steps:
            seconds.append(contender.step())
            if time.perf_counter() - start > self._options.seconds:
                break
        return seconds

    def timed(self, point: Point) -> Point:
        """The point with what was measured."""
        windows = self.windows[point.contender]
        every = [s for window in windows for s in window]
        return dataclasses.replace(
            point,
            ms=1e3 * statistics.median(every),
            window_ms=tuple(1e3 * statistics.median(window) for window in windows),
            timed_steps=len(every),
        )


def observations(shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
    """Random observations without end, the same for everyone."""
    return itertools.cycle(np.random.default_rng(2).standard_normal((64, *shape), np.float32))


def measure(
    policies: Sequence[Stepped], transformers: Sequence[CachedTransformer], length: int, options: Options, reserve: int
) -> Iterator[Point]:
    """Every contender at one context length; those whose context ends before it, at the shortest one only. Caches of
    two transformers never exist at once."""
    turns, shortest = Turns(options), length == options.lengths[0]
    policies = [policy for policy in policies if policy.bound is None or length <= policy.bound or shortest]
    for transformer in transformers:
        point = transformer.point(length)
        lacking = transformer.lacking(length, reserve)
        if lacking is not None:
            yield dataclasses.replace(point, skipped=lacking)
            continue
        with transformer.context(length):
            turns.take([transformer, *policies])
        yield turns.timed(point)
    if not turns.windows:
        turns.take(policies)
    for policy in policies:
        yield turns.timed(policy.point(length))


def measure_batch(
    batch: int, checkpoint: Checkpoint, transformer: DecisionTransformer, options: Options, folder: Path
) -> Iterator[Point]:
    """All lengths at one batch size."""
    from lram_export.benchmark.baseline import OriginalRuntime
    from lram_export.model.reference import ReferenceModel

    path = folder / f"batch{batch}.lram"
    message(f"batch {batch}: exporting for {options.target}", False)
    settings = ExportOptions(targets=(options.target,), batch_size=batch, reference_steps=REFERENCE_STEPS, report=False)
    bundle = export_bundle(checkpoint, transformer.task, path, settings)
    entry, manifest = bundle.artifact(options.target), bundle.manifest
    runtime = OriginalRuntime(
        ReferenceModel.from_weights(checkpoint.config, checkpoint.weights), manifest.spec, manifest.task
    )
    with (
        load_policy(path, options.target, threads=options.threads) as policy,
        Policy(runtime, manifest.task) as in_pytorch,
        ExitStack() as opened,
    ):
        set_threads(options.threads)
        exported = Stepped(exported_name(options), policy, entry.weight_bytes)
        original = Stepped(IN_PYTORCH, in_pytorch, 4 * checkpoint.parameters)
        message(f"batch {batch}: {options.history} steps of the LRAM", False)
        for _ in range(options.history):
            exported.step()
        original.continue_from(exported)
        others = [opened.enter_context(exported_other(other, batch, options, folder)) for other in options.others]
        transformers = [CachedTransformer(transformer, kind, batch) for kind in options.caches]
        for length in options.lengths:
            message(f"batch {batch}: {length:,} steps of context", False)
            # a target may map its file: memory that counts as free, but is read at every step
            policies = [original, exported, *others]
            yield from measure(policies, transformers, length, options, RESERVE_BYTES + entry.size)


@contextmanager
def exported_other(other: str, batch: int, options: Options, folder: Path) -> Iterator[Stepped]:
    """One of :data:`OTHERS` on the target, with random weights."""
    message(f"batch {batch}: exporting {OTHERS[other].title} for {options.target}", False)
    backbone, context = OTHERS[other].backbone, OTHERS[other].context
    config = preset_config(options.preset, backbone).in_context(context)
    checkpoint = random_checkpoint(config, folder / f"{other}{batch}")
    settings = ExportOptions(targets=(options.target,), batch_size=batch, reference_steps=2, report=False)
    bundle = export_bundle(checkpoint, resolve_task(TASK), folder / f"{other}{batch}.lram", settings)
    del checkpoint
    bound = getattr(config.backbone, "context_length", None)
    with load_policy(bundle.path, options.target, threads=options.threads) as policy:
        stepped = Stepped(other_name(other, options), policy, bundle.artifact(options.target).weight_bytes, bound)
        for _ in range(options.history if bound is None else 1):  # a window is full from the first step, of padding
            stepped.step()
        yield stepped


def set_threads(threads: int) -> None:
    """Of PyTorch, for both of its contenders."""
    import torch

    torch.set_num_threads(threads)


def run(options: Options, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Measure everything; ``keep`` is told the document so far after every batch size and length."""
    set_threads(options.threads)
    task = resolve_task(TASK)
    points: list[Point] = []
    with tempfile.TemporaryDirectory(prefix="context_length.") as name:
        folder = Path(name)
        message(f"drawing the weights of the {options.preset} LRAM and transformer", False)
        checkpoint = random_checkpoint(preset_config(options.preset), folder)
        transformer = DecisionTransformer(options.preset, task, TOKENS * (max(options.lengths) + 1))
        for kind in options.caches:
            transformer.check(kind)
        document = describe(options, checkpoint, transformer)
        for batch in options.batches:
            for point in measure_batch(batch, checkpoint, transformer, options, folder):
                points.append(point)
                keep(document | results(points, options))
            gc.collect()  # the policies' memory, before the next batch size takes its own
    return document | results(points, options)


def describe(options: Options, checkpoint: Checkpoint, transformer: DecisionTransformer) -> dict[str, Any]:
    """Everything but results."""
    packages = ("torch", "transformers", "xlstm", "numpy", "lram-export")
    config = transformer.config
    return {
        "benchmark": "context_length",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "physical_cores": physical_cores(),
        "total_memory": total_memory(),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
        "options": dataclasses.asdict(options),
        "parameters": {"lram": checkpoint.parameters, "transformer": transformer.parameters},
        "transformer": {
            "layers": config.n_layer,
            "heads": config.n_head,
            "hidden_size": config.hidden_size,
            "attention": config._attn_implementation,
        },
    }


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=[name for name in PRESETS if name in TRANSFORMERS], default="206m")
    parser.add_argument("--batch", type=positive, action="append", help="may be repeated; default: 1 and 16")
    parser.add_argument("--lengths", type=positive, nargs="+", default=LENGTHS, help="environment steps of context")
    parser.add_argument("--threads", type=positive, default=physical_cores())
    parser.add_argument("--target", default="native", help="of the exported LRAM; default: native")
    parser.add_argument("--cache", choices=CACHES, action="append", help="may be repeated; default: both")
    parser.add_argument("--other", choices=OTHERS, action="append", help="may be repeated; default: all")
    parser.add_argument("--windows", type=positive, default=3, help="turns of each contender at a length")
    parser.add_argument("--steps", type=positive, default=10, help="timed steps of a window")
    parser.add_argument("--seconds", type=float, default=2.0, help="a window ends after this time")
    parser.add_argument("--history", type=positive, default=300, help="steps the LRAM takes before it is measured")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="draw latency and memory")
    return parser.parse_args()


def require(packages: Sequence[str]) -> None:
    """Raise UsageError naming the first package that is missing, or that one of them misses."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            missing = (error.name or package).partition(".")[0]
            raise UsageError(f"this benchmark needs the package '{missing}'; pip install {missing}") from None


def benchmark(arguments: argparse.Namespace) -> None:
    """Check what can be checked at once, measure, print, write."""
    require(["torch", "xlstm", "transformers", *(["matplotlib"] if arguments.chart else [])])
    for path in (arguments.json, arguments.chart):
        if path is not None:
            check_output(path, force=True)
    options = Options(
        preset=arguments.preset,
        batches=tuple(dict.fromkeys(arguments.batch or (1, 16))),
        lengths=tuple(sorted(set(arguments.lengths))),
        threads=arguments.threads,
        target=arguments.target,
        caches=tuple(c for c in CACHES if c in (arguments.cache or CACHES)),
        others=tuple(other for other in OTHERS if other in (arguments.other or OTHERS)),
        windows=arguments.windows,
        steps=arguments.steps,
        seconds=arguments.seconds,
        history=arguments.history,
    )

    check_targets(ExportOptions(targets=(options.target,)))

    def keep(document: dict[str, Any]) -> None:
        """A long run that dies late leaves what it had."""
        if arguments.json is not None:
            with atomic_file(arguments.json, force=True) as temporary:
                temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    document = run(options, keep)
    points = [Point(**point) for point in document["points"]]
    show(document, points, options)
    if arguments.chart is not None:
        draw(document, points, options, arguments.chart)
    for path in (arguments.json, arguments.chart):
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
