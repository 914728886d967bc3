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

The LRAM really takes `--history` steps before it is measured, the exported one for both: its state is then handed to
the other, and both must agree on the next. At every context length contenders take turns in windows. A cache that
would not fit beside what is loaded is not built; its row says so. Memory is computed from the tensors: weights (of the
position table, the rows in use), and cache or state.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib
import inspect
import itertools
import json
import math
import platform
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lram_export.atomic import atomic_file, check_output
from lram_export.cli.console import message, print_table
from lram_export.config import TOKENS_PER_STEP
from lram_export.errors import LramError, UsageError
from lram_export.export import ExportOptions, check_targets, export_bundle
from lram_export.machine import available_memory, cpu_model, physical_cores, total_memory
from lram_export.parity import TOLERANCES
from lram_export.policy import Policy, load_policy
from lram_export.presets import PRESETS, preset_config, random_checkpoint
from lram_export.tasks import TaskSpec, resolve_task

if TYPE_CHECKING:
    from lram_export.checkpoint import Checkpoint

TASK = "metaworld/reach-v2"
"""39 observed values, 4 actions."""

TRANSFORMERS = {"16m": (4, 8), "48m": (6, 12), "110m": (8, 16), "206m": (10, 20)}
"""Layers and heads of the published counterparts (github.com/ml-jku/LRAM: dt_medium_64, dt_mediumplus_64,
dt_largeplus_64, dt_huge); the hidden size is the LRAM's."""

LENGTHS = [50 * 2**i for i in range(10)]
CACHES = ("dynamic", "in-place")
"""The package's `DynamicCache`; one that is written in place."""

IN_PYTORCH = "LRAM, PyTorch"
RESERVE_BYTES = 2**30
"""Left free beside a cache: activations, temporary copies, the rest of the machine."""

REFERENCE_STEPS = 8
MB, GB = 1e6, 1e9


@dataclass(frozen=True)
class Options:
    """What to measure; ``seconds`` ends a window early, ``history`` counts steps of the LRAM."""

    preset: str
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    threads: int
    target: str
    caches: tuple[str, ...]
    windows: int
    steps: int
    seconds: float
    history: int


@dataclass(frozen=True)
class Point:
    """One contender at one context length, in environment steps of the whole batch.

    ``ms`` is the median of all timed steps, ``window_ms`` that of each window; None and empty where ``skipped`` says
    why nothing was measured. ``context_bytes`` are the key-value cache or the recurrent state. ``history`` is the
    number of steps an LRAM had really taken by the end of its turns, None for a transformer.
    """

    contender: str
    batch: int
    length: int
    ms: float | None
    window_ms: tuple[float, ...]
    timed_steps: int
    weight_bytes: int
    context_bytes: int
    history: int | None
    skipped: str | None = None

    @property
    def memory(self) -> int:
        """Bytes."""
        return self.weight_bytes + self.context_bytes


@dataclass(frozen=True)
class Crossing:
    """Where the transformer becomes slower than an LRAM for good: ``steps``, None if nowhere up to ``last``."""

    transformer: str
    lram: str
    batch: int
    steps: float | None
    first: int
    last: int
    last_ratio: float

    def __str__(self) -> str:
        if self.steps is None:
            where = f"not up to {self.last:,} steps"
        elif self.steps == self.first:
            where = f"from the first length on ({self.first:,} steps)"
        else:
            where = f"from {self.steps:,.0f} steps on"
        ratio = f"at {self.last:,} steps {self.last_ratio:.2f} times its time"
        return f"batch {self.batch}: {self.transformer} slower than {self.lram} {where}; {ratio}"


class Contender(Protocol):
    """What takes turns."""

    name: str

    def step(self) -> float:
        """Take one environment step of the whole batch; the seconds it took."""

    def point(self, length: int) -> Point:
        """A point with everything but times."""


class Lram:
    """An LRAM behind the step API."""

    def __init__(self, name: str, policy: Policy, weight_bytes: int) -> None:
        self.name, self.policy, self.history = name, policy, 0
        self._weight_bytes = weight_bytes
        self._observations = observations(policy.spec.inputs[0].shape)

    def step(self) -> float:
        """See :class:`Contender`."""
        observation = next(self._observations)
        start = time.perf_counter()
        self.policy.act(observation)
        self.history += 1
        return time.perf_counter() - start

    def continue_from(self, other: Lram) -> None:
        """Take over the other's state, take one step beside it, and raise LramError unless they agree."""
        self.policy.load_state(other.policy.state())
        self.history, self._observations = other.history, observations(self.policy.spec.inputs[0].shape)
        observation = next(self._observations)
        for lram in (self, other):
            lram.policy.act(observation)
            lram.history += 1
        error = float(np.abs(self.policy.action_logits - other.policy.action_logits).max())
        if not error <= TOLERANCES["fp32"].logit:
            raise LramError(f"{self.name}: logits differ from those of {other.name} by {error:.2g}; times are void")

    def point(self, length: int) -> Point:
        """See :class:`Contender`."""
        spec = self.policy.spec
        return Point(
            self.name, spec.batch_size, length, None, (), 0, self._weight_bytes, spec.state_bytes, self.history
        )


class DecisionTransformer:
    """The weights of a Decision Transformer, and its step. ``positions`` is the longest context in tokens."""

    def __init__(self, preset: str, task: TaskSpec, positions: int) -> None:
        import torch
        from transformers import DecisionTransformerConfig, DecisionTransformerGPT2Model

        self.model, self.task = preset_config(preset), task
        hidden, (layers, heads) = self.model.hidden_size, TRANSFORMERS[preset]
        self.config = DecisionTransformerConfig(
            hidden_size=hidden, n_layer=layers, n_head=heads, n_positions=positions,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        self.backbone = DecisionTransformerGPT2Model(self.config).eval().requires_grad_(False)
        parameters = inspect.signature(self.backbone.forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"  # renamed in transformers 5
        layer = torch.nn.Linear
        self.outer = torch.nn.ModuleDict(
            {
                "reward": layer(1, hidden),
                "observation": layer(task.observation_dim or 0, hidden),
                "return_to_go": layer(1, hidden),
                "norm": torch.nn.LayerNorm(hidden),
                "head": layer(hidden, task.action_dim * self.model.num_actions),
            }
        ).requires_grad_(False)

    @property
    def parameters(self) -> int:
        """Weights without the position table, whose size is that of the context."""
        table = self.backbone.wpe.weight.numel()
        return sum(p.numel() for m in (self.backbone, self.outer) for p in m.parameters()) - table

    def cache_bytes(self, batch: int, length: int) -> int:
        """Keys and values of a context of ``length`` environment steps."""
        return 4 * 2 * self.config.n_layer * batch * self.config.hidden_size * TOKENS_PER_STEP * length

    def weight_bytes(self, length: int) -> int:
        """The weights that steps of such an episode read."""
        return 4 * (self.parameters + self.config.hidden_size * TOKENS_PER_STEP * length)

    def embed(self, observation: NDArray[np.float32], return_to_go: NDArray[np.float32], reward: Any) -> Any:
        """(B, n), (B,), (B,) float32 arrays -> (B, 3, hidden): the tokens of one environment step."""
        import torch

        tokens = [
            self.outer["reward"](torch.from_numpy(reward)[:, None]),
            self.outer["observation"](torch.from_numpy(observation)),
            self.outer["return_to_go"](torch.from_numpy(return_to_go)[:, None]),
        ]
        return self.outer["norm"](torch.stack(tokens, dim=1))

    def hidden(self, tokens: Any, cache: Any) -> Any:
        """(B, T, hidden) after the T tokens that follow what is in the cache (None: nothing is, nor will be)."""
        caching = {self._cache_argument: cache, "use_cache": True} if cache is not None else {"use_cache": False}
        return self.backbone(inputs_embeds=tokens, **caching).last_hidden_state

    def act(
        self,
        observation: NDArray[np.float32],
        return_to_go: NDArray[np.float32],
        reward: NDArray[np.float32],
        cache: Any,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Actions (B, action_dim) and logits (B, action_dim, 274) as numpy arrays, as an LRAM gives them."""
        from lram_export.model import decode_action

        last = self.hidden(self.embed(observation, return_to_go, reward), cache)[:, -1]
        logits = self.outer["head"](last).view(len(last), self.task.action_dim, self.model.num_actions)
        return decode_action(logits, self.model, self.task).numpy(), logits.numpy()

    def check(self, kind: str) -> None:
        """Raise LramError unless steps with a cache give what one pass over the whole sequence gives."""
        import torch

        steps = 4
        tokens = torch.randn(2, steps * TOKENS_PER_STEP, self.config.hidden_size)
        cache = self.new_cache(kind, 2, steps * TOKENS_PER_STEP)
        parts = [self.hidden(part, cache) for part in tokens.split(TOKENS_PER_STEP, dim=1)]
        error = float((torch.cat(parts, dim=1) - self.hidden(tokens, None)).abs().max())
        if not error <= TOLERANCES["fp32"].logit:
            raise LramError(f"{transformer_name(kind)}: off by {error:.2g} from a pass without cache; not timed")

    def new_cache(self, kind: str, batch: int, capacity: int) -> Any:
        """An empty cache; one that is written in place has room for ``capacity`` tokens."""
        import torch
        from transformers.cache_utils import Cache, DynamicCache

        if kind == "dynamic":
            return DynamicCache(config=self.config)
        heads = self.config.n_head
        shape = (batch, heads, capacity, self.config.hidden_size // heads)
        layer = in_place_layer()
        return Cache(layers=[layer(torch.zeros(shape), torch.zeros(shape)) for _ in range(self.config.n_layer)])

    def fill(self, cache: Any, batch: int, tokens: int) -> None:
        """Put random keys and values into an empty cache; the same block everywhere, drawing is slow."""
        import torch

        heads = self.config.n_head
        block = torch.randn(1, heads, tokens, self.config.hidden_size // heads).expand(batch, -1, -1, -1)
        for layer in range(self.config.n_layer):
            # clones: an empty layer may keep what it is given
            cache.update(block.clone(), block.clone(), layer)


def in_place_layer() -> Any:
    """The class of one layer of a cache that never copies what it holds."""
    from transformers.cache_utils import DynamicLayer

    class InPlaceLayer(DynamicLayer):  # type: ignore[misc]
        """Keys and values are views of two buffers, (batch, heads, capacity, width)."""

        def __init__(self, keys: Any, values: Any) -> None:
            super().__init__()
            self._buffers = (keys, values)
            self.keys, self.values = keys[:, :, :0], values[:, :, :0]
            self.is_initialized = True

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            """Append; all keys and values so far."""
            start = self.keys.shape[-2]
            stop = start + key_states.shape[-2]
            for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
                buffer[:, :, start:stop] = new
            self.keys, self.values = (buffer[:, :, :stop] for buffer in self._buffers)
            return self.keys, self.values

    return InPlaceLayer


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
        tokens = TOKENS_PER_STEP * length
        self._cache = self._transformer.new_cache(self._kind, self._batch, tokens + TOKENS_PER_STEP)
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
        self._cache.crop(-TOKENS_PER_STEP)  # a view; the next step has the same context
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
    lrams: Sequence[Lram], transformers: Sequence[CachedTransformer], length: int, options: Options, reserve: int
) -> Iterator[Point]:
    """Every contender at one context length. Caches of two transformers never exist at once."""
    turns = Turns(options)
    for transformer in transformers:
        point = transformer.point(length)
        lacking = transformer.lacking(length, reserve)
        if lacking is not None:
            yield dataclasses.replace(point, skipped=lacking)
            continue
        with transformer.context(length):
            turns.take([transformer, *lrams])
        yield turns.timed(point)
    if not turns.windows:
        turns.take(lrams)
    for lram in lrams:
        yield turns.timed(lram.point(length))


def measure_batch(
    batch: int, checkpoint: Checkpoint, transformer: DecisionTransformer, options: Options, folder: Path
) -> Iterator[Point]:
    """All lengths at one batch size."""
    from lram_export.baseline import OriginalRuntime
    from lram_export.model import ReferenceModel

    path = folder / f"batch{batch}.lram"
    message(f"batch {batch}: exporting for {options.target}", False)
    settings = ExportOptions(targets=(options.target,), batch_size=batch, reference_steps=REFERENCE_STEPS)
    bundle = export_bundle(checkpoint, transformer.task, path, settings)
    entry, manifest = bundle.artifact(options.target), bundle.manifest
    runtime = OriginalRuntime(ReferenceModel.from_checkpoint(checkpoint), manifest.spec, manifest.task)
    with (
        load_policy(path, options.target, threads=options.threads) as policy,
        Policy(runtime, manifest.task) as in_pytorch,
    ):
        set_threads(options.threads)
        exported = Lram(exported_name(options), policy, entry.weight_bytes)
        original = Lram(IN_PYTORCH, in_pytorch, 4 * checkpoint.parameters)
        message(f"batch {batch}: {options.history} steps of the LRAM", False)
        for _ in range(options.history):
            exported.step()
        original.continue_from(exported)
        transformers = [CachedTransformer(transformer, kind, batch) for kind in options.caches]
        for length in options.lengths:
            message(f"batch {batch}: {length:,} steps of context", False)
            # a target may map its file: memory that counts as free, but is read at every step
            yield from measure([original, exported], transformers, length, options, RESERVE_BYTES + entry.size)


def transformer_name(kind: str) -> str:
    """The contender's name."""
    return f"transformer, {kind} cache"


def exported_name(options: Options) -> str:
    """The contender's name."""
    return f"LRAM, {options.target}"


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
        transformer = DecisionTransformer(options.preset, task, TOKENS_PER_STEP * (max(options.lengths) + 1))
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


def results(points: Sequence[Point], options: Options) -> dict[str, Any]:
    """Points and headlines as plain JSON values."""
    found = [dataclasses.asdict(crossing) for crossing in crossings(points, options)]
    return {"points": [dataclasses.asdict(point) for point in points], "crossings": found}


def crossings(points: Sequence[Point], options: Options) -> Iterator[Crossing]:
    """Every transformer against every LRAM at every batch size."""
    times = {(p.contender, p.batch, p.length): p.ms for p in points if p.ms is not None}
    names = [transformer_name(kind) for kind in options.caches]
    for batch, transformer, lram in itertools.product(options.batches, names, (IN_PYTORCH, exported_name(options))):
        ratios = {
            length: times[transformer, batch, length] / times[lram, batch, length]
            for length in options.lengths
            if (transformer, batch, length) in times and (lram, batch, length) in times
        }
        if ratios:
            lengths = list(ratios)
            last = lengths[-1]
            yield Crossing(transformer, lram, batch, crossing_of(ratios), lengths[0], last, ratios[last])


def crossing_of(ratios: dict[int, float]) -> float | None:
    """The context length from which on all ratios are above 1, interpolated between logarithms; None if nowhere."""
    points = list(ratios.items())
    slower = len(list(itertools.takewhile(lambda point: point[1] > 1, reversed(points))))
    if slower == 0:
        return None
    if slower == len(points):
        return float(points[0][0])
    (x0, y0), (x1, y1) = points[-slower - 1], points[-slower]
    part = -math.log(y0) / (math.log(y1) - math.log(y0))
    return math.exp(math.log(x0) + part * (math.log(x1) - math.log(x0)))


def show(document: dict[str, Any], points: Sequence[Point], options: Options) -> None:
    """Tables on standard output, one per batch size, and the headlines."""
    for batch in options.batches:
        show_batch([point for point in points if point.batch == batch], batch, options)
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    lram, transformer = (document["parameters"][name] for name in ("lram", "transformer"))
    print(f"{document['cpu']}, {options.threads} threads; {versions}")
    print(
        f"parameters: LRAM {lram:,}, transformer {transformer:,} ({transformer / lram - 1:+.1%}, without its table of "
        f"positions)"
    )
    for crossing in crossings(points, options):
        print(crossing)


def show_batch(points: Sequence[Point], batch: int, options: Options) -> None:
    """One table: rows are context lengths."""
    names = list(dict.fromkeys(p.contender for p in points))
    at = {(p.contender, p.length): p for p in points}
    exported, transformer = exported_name(options), names[0]
    rows = []
    for length in options.lengths:
        cells = ["no memory" if (ms := at[name, length].ms) is None else f"{ms:,.2f}" for name in names]
        memory = [f"{at[name, length].memory / MB:,.0f}" for name in (transformer, exported)]
        rows.append([f"{length:,}", *cells, *memory])
    columns = ["context (steps)", *(f"{name} (ms)" for name in names), "transformer (MB)", "LRAM (MB)"]
    notes = [f"{p.length:,} steps, {p.contender}: {p.skipped}" for p in points if p.skipped]
    title = f"{options.preset}, batch {batch}: milliseconds per environment step, weights and cache or state"
    print_table(title, columns, rows, notes)


def draw(document: dict[str, Any], points: Sequence[Point], options: Options, path: Path) -> None:
    """The chart: latency and memory against the context, one line per contender and batch size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import matplotlib.ticker

    names = list(dict.fromkeys(p.contender for p in points))
    palette = [*("#d55e00", "#e69f00")[: len(options.caches)], "#0072b2", "#009e73"]
    colours = dict(zip(names, palette, strict=True))
    figure, (latency, memory) = plt.subplots(1, 2, figsize=(12, 6.4), layout="constrained")
    for batch, line in zip(options.batches, itertools.cycle(("-", "--", ":", "-."))):
        style = {"linestyle": line, "marker": "o", "markersize": 4}
        for name in names:
            own = [p for p in points if p.contender == name and p.batch == batch]
            timed = [p for p in own if p.ms is not None]
            label = f"{name}, batch {batch}"
            latency.plot([p.length for p in timed], [p.ms for p in timed], color=colours[name], label=label, **style)
        for name, label in ((names[0], "transformer"), (exported_name(options), "LRAM")):
            own = [p for p in points if p.contender == name and p.batch == batch]
            sizes = [p.memory / MB for p in own]
            label = f"{label}, batch {batch}"
            memory.plot([p.length for p in own], sizes, color=colours[name], label=label, **style)
    if document["total_memory"]:
        memory.axhline(document["total_memory"] / MB, color="0.5", linewidth=1, label="memory of this machine")
    for axes, what in ((latency, "milliseconds per environment step"), (memory, "MB: weights and cache or state")):
        axes.set(xscale="log", yscale="log", xlabel="context (environment steps)", ylabel=what)
        axes.set_xticks(options.lengths, [f"{length:,}" for length in options.lengths], rotation=45)
        axes.set_xticks([], minor=True)
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter(matplotlib.ticker.LogFormatter(minor_thresholds=(2, 1)))
        axes.grid(True, which="major", color="0.9")
        axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.24))
    figure.suptitle(textwrap.fill(title(points, options), 110))
    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
    figure.supxlabel(f"{options.preset}, float32, {document['cpu']}, {threads}", fontsize=8, color="0.4")
    with atomic_file(path, force=True) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    plt.close(figure)


def title(points: Sequence[Point], options: Options) -> str:
    """The sentence above the chart, from what was measured: the transformer at its best against both LRAMs."""
    found = [c for c in crossings(points, options) if c.batch == options.batches[0]]
    if not found:
        return "The transformer's cache did not fit into this machine's memory at any context length"
    last = max(c.last for c in found)
    ratios = {c.lram: min(o.last_ratio for o in found if (o.lram, o.last) == (c.lram, last)) for c in found}
    in_pytorch, exported = (f"{ratios[name]:.2g}" for name in (IN_PYTORCH, exported_name(options)))
    return (
        f"After {last:,} steps the transformer takes {in_pytorch} times as long per step as the LRAM in PyTorch and "
        f"{exported} times as long as the exported one (batch {options.batches[0]})"
    )


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
    parser.add_argument("--windows", type=positive, default=5, help="turns of each contender at a length")
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
