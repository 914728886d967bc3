"""What `small_policies.py` measured: results, the targets they are held to, tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from results_page import table

from lram_export.cli.console import print_table
from lram_export.describe import three_digits

NATIVE_C, NATIVE_ACT = "native, from C", "native, act"
NATIVE_C_2, NATIVE_ACT_2 = "native, from C, 2 threads", "native, act, 2 threads"
SESSION, TORCH_SESSION = "onnxruntime, session", "onnxruntime, session of torch's graph"
EAGER, COMPILED = "PyTorch, eager", "PyTorch, torch.compile"

MOST_US = {NATIVE_C: 10.0, NATIVE_ACT: 25.0}
"""Microseconds below which the median of a step of one row has to be."""

MOST_ABOVE_C_US = 15.0
"""Microseconds that `act` may take longer than C, with as many threads."""

LEAST_RATIO = 3.0
"""How many times as fast as a session of ONNX Runtime a step of one row has to be from C."""


@dataclass(frozen=True)
class Options:
    """What to measure. ``steps`` are the timed steps of a window of one row, ``fleet_steps`` of many; ``seconds`` ends
    a window early; ``threads`` are those of every contender with many rows."""

    policies: tuple[str, ...]
    precisions: tuple[str, ...]
    batches: tuple[int, ...]
    targets: tuple[str, ...]
    threads: int
    compile: bool
    windows: int
    steps: int
    fleet_steps: int
    seconds: float

    def threads_of(self, batch: int) -> int:
        """Threads of every contender: one row has one."""
        return 1 if batch == 1 else self.threads

    def steps_of(self, batch: int) -> int:
        """Timed steps of a window."""
        return self.steps if batch == 1 else self.fleet_steps


@dataclass(frozen=True)
class Result:
    """One contender on one policy.

    Times are microseconds of a step of all rows: of all timed steps, and the median of each window. They are None and
    empty where ``skipped`` says why nothing was measured.
    """

    policy: str
    precision: str
    batch: int
    threads: int
    contender: str
    median_us: float | None = None
    p99_us: float | None = None
    window_us: tuple[float, ...] = ()
    timed_steps: int = 0
    skipped: str | None = None

    @property
    def case(self) -> str:
        """Of which policy at which precision, the head of a column."""
        return f"{self.policy} {self.precision}"


@dataclass(frozen=True)
class Claim:
    """A target and what was measured: microseconds, or with a ``ratio`` how many times as fast."""

    case: str
    what: str
    value: float
    limit: float
    ratio: bool = False

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.value >= self.limit if self.ratio else self.value < self.limit

    def __str__(self) -> str:
        value = f"{three_digits(self.value)} {'times as fast' if self.ratio else 'us'}"
        limit = f"at least {self.limit:g} times" if self.ratio else f"below {self.limit:g} us"
        return f"{self.case}: {self.what}: {value}; target {limit}: {'met' if self.met else 'NOT MET'}"


def claims(results: Sequence[Result]) -> Iterator[Claim]:
    """Every target that was measured, by policies and precisions."""
    found = {(r.case, r.contender): r.median_us for r in results if r.batch == 1 and r.median_us is not None}
    for case in dict.fromkeys(case for case, _ in found):
        for contender, limit in MOST_US.items():
            if (case, contender) in found:
                yield Claim(case, contender, found[case, contender], limit)
        for act, c in ((NATIVE_ACT, NATIVE_C), (NATIVE_ACT_2, NATIVE_C_2)):
            if (case, act) in found and (case, c) in found:
                yield Claim(case, f"{act}, above {c}", found[case, act] - found[case, c], MOST_ABOVE_C_US)
        sessions = {name: found[case, name] for name in (SESSION, TORCH_SESSION) if (case, name) in found}
        if sessions and (case, NATIVE_C) in found:
            fastest = min(sessions, key=lambda name: sessions[name])
            ratio = sessions[fastest] / found[case, NATIVE_C]
            yield Claim(case, f"{NATIVE_C} beside {fastest}", ratio, LEAST_RATIO, ratio=True)


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """Results and targets as plain JSON values."""
    return {
        "results": [
            {**dataclasses.asdict(r), "rows_per_second": None if r.median_us is None else 1e6 * r.batch / r.median_us}
            for r in results
        ],
        "claims": [{**dataclasses.asdict(claim), "met": claim.met} for claim in claims(results)],
    }


def show(document: dict[str, Any], results: Sequence[Result]) -> None:
    """Tables on standard output, two per batch size, then targets and the machine."""
    for batch in dict.fromkeys(r.batch for r in results):
        own = [r for r in results if r.batch == batch]
        notes = [f"{r.case}, {r.contender}: {r.skipped}" for r in own if r.skipped]
        print_table(title(own), *matrix(own, times), notes)
        columns, rows = matrix(own, beside_first(own))
        if len(rows) > 1:
            print_table(f"batch {batch:,}: medians in times of the first row's, of the same policy", columns, rows)
    for line in headlines(results):
        print(line)
    for line in facts(document):
        print(line)


def headlines(results: Sequence[Result]) -> list[str]:
    """A line for every target; or why there are none."""
    found = list(map(str, claims(results)))
    return found or [f"targets of '{NATIVE_C}' and '{NATIVE_ACT}': not measured"]


def facts(document: dict[str, Any]) -> list[str]:
    """The machine, versions, what a precision made of the policies, and what speaks against the numbers."""
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    kernels = f", kernels {document['kernels']}" if document["kernels"] else ""
    return [f"{document['cpu']}{kernels}; {versions}", *document["weights"], *document["warnings"]]


def markdown(document: dict[str, Any], results: Sequence[Result]) -> str:
    """The tables of medians for a page of Markdown, with what was measured and how."""
    lines = []
    for batch in dict.fromkeys(r.batch for r in results):
        own = [r for r in results if r.batch == batch]
        lines += [f"{title(own)}:", "", *table(*matrix(own, times)), ""]
    said = [*headlines(results), *facts(document), f"Date: {document['date']}. Command: `{document['command']}`."]
    return "\n".join([*lines, *(f"- {line}" for line in said)]) + "\n"


def title(results: Sequence[Result]) -> str:
    """Of the results of one batch size."""
    batch, threads = results[0].batch, results[0].threads
    unit = "microseconds" if batch == 1 else "milliseconds"
    return f"batch {batch:,}, {threads} thread{'s' if threads > 1 else ''}: {unit} of a step, median (99th percentile)"


Cell = Callable[[Result], str]


def matrix(results: Sequence[Result], cell: Cell) -> tuple[list[str], list[list[str]]]:
    """Heads of columns, and a row per contender: a column per policy and precision."""
    at = {(r.contender, r.case): cell(r) for r in results}
    cases = _unique(r.case for r in results)
    rows = [[name, *(at.get((name, case), "-") for case in cases)] for name in _unique(r.contender for r in results)]
    return ["contender", *cases], rows


def times(result: Result) -> str:
    """Median and 99th percentile."""
    if result.median_us is None or result.p99_us is None:
        return "-"
    unit = 1.0 if result.batch == 1 else 1e3
    return f"{three_digits(result.median_us / unit)} ({three_digits(result.p99_us / unit)})"


def beside_first(results: Sequence[Result]) -> Cell:
    """Makes a cell of how a median is to that of the first contender of the same policy and precision."""
    first = results[0].contender
    base = {r.case: r.median_us for r in results if r.contender == first}

    def cell(result: Result) -> str:
        own, other = result.median_us, base.get(result.case)
        return "-" if own is None or other is None else f"{own / other:.2f}"

    return cell


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
