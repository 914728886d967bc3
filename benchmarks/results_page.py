"""What `docs/results.md` says of measurements: tables as lines of Markdown, and the page they are put into."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lram_export.checkpoints.random import preset_config
from lram_export.describe import three_digits
from lram_export.episodes.intervals import mean, success_rate
from lram_export.model.config import ModelConfig
from lram_export.prediction.machine_speed import this_device
from lram_export.prediction.predict import MachineSpeed, predict
from lram_export.prediction.sizes import computes, products, state_bytes

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
ORIGINAL, OPENVINO, NATIVE = "original", "openvino", "native"
ALLOWED = 0.3
"""How far a step of this machine may be from its prediction."""

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Way:
    """A backbone, acting in one way: in the context it has, where it has several."""

    title: str
    backbone: str
    context: str | None = None


WAYS = (
    Way("xLSTM (LRAM)", "xlstm"),
    Way("Mamba", "mamba"),
    Way("Transformer, window", "decision_transformer", "window"),
    Way("Transformer, cache", "decision_transformer", "cache"),
)
"""The action models of arXiv 2410.22391."""


@dataclass(frozen=True)
class Case:
    """What a row of the backbones' table is of."""

    size: str
    way: Way
    precision: str
    batch: int

    @property
    def name(self) -> str:
        """For files."""
        context = "" if self.way.context is None else f"-{self.way.context}"
        return f"{self.size}-{self.way.backbone}{context}-{self.precision}-{self.batch}"

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        return preset_config(self.size, backbone=self.way.backbone).in_context(self.way.context)


def cases(size: str, way: Way, batches: Sequence[int], most_products: float, most_state: float) -> list[Case]:
    """A policy at both precisions and every number of rows, but where a step multiplies more often or all rows have
    more bytes of state than that."""
    found = [Case(size, way, precision, batch) for precision in ("fp32", "int8") for batch in batches]
    return [
        case
        for case in found
        if case.batch * products(case.config) <= most_products and case.batch * state_bytes(case.config) <= most_state
    ]


def replace_section(text: str, name: str, lines: Sequence[str]) -> str:
    """The page with what stands between the marks of a section replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"error: {PAGE}: no marks '<!-- {name} -->' and '<!-- end of {name} -->'")
    return pattern.sub(lambda match: match[1] + "\n".join(lines) + "\n" + match[2], text)


def where(documents: Iterable[Document], command: str) -> list[str]:
    """The machine, the days and the versions of some measurements, which are those of one machine."""
    found = [document["where"] for document in documents]
    days = sorted({place["date"] for place in found})
    dates = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    versions = ", ".join(f"{name} {number}" for name, number in found[0]["versions"].items())
    return [
        f"Machine: {found[0]['machine']}.",
        f"Date: {dates}. Versions: {versions}.",
        f"Command: `{command}`.",
        "",
    ]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table of Markdown."""
    return [
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def speed_table(measured: Mapping[tuple[str, str], Document]) -> list[str]:
    """Milliseconds per step and what they are against the original, OpenVINO and the floor; keys: size, precision."""
    rows = []
    for (size, precision), document in measured.items():
        results = {r["target"]: r for r in document["bench"]["results"]}
        original, openvino = results[ORIGINAL]["p50_ms"], results.get(OPENVINO, {}).get("p50_ms")
        for target, r in results.items():
            rows.append(
                [
                    size + _doubted(document),
                    f"`fp32`, beside `{precision}`" if target == ORIGINAL else f"`{precision}`",
                    target,
                    three_digits(r["p50_ms"]),
                    three_digits(r["p99_ms"]),
                    f"{original / r['p50_ms']:.1f}",
                    "-" if openvino is None else f"{openvino / r['p50_ms']:.2f}",
                    f"{r['floor_ratio']:.2f}",
                    "-" if r["peak_memory"] is None else f"{r['peak_memory'] / 1e6:.0f} MB",
                ]
            )
    columns = ["size", "precision", "target", "p50 ms", "p99", "against the original", "against openvino", "x floor"]
    return [*table([*columns, "memory"], rows), *_doubts(measured.values())]


def _doubted(document: Document) -> str:
    """A mark where `bench` said why its numbers are not to be relied on."""
    return "*" if document["bench"]["warnings"] else ""


def _doubts(documents: Iterable[Document]) -> list[str]:
    """What the mark means, where there is one."""
    marked = any(map(_doubted, documents))
    said = (
        "\\* `bench` doubted this run, whose ratios are not to be relied on: others or the host disturbed it each time."
    )
    return ["", said] if marked else []


def backbone_table(measured: Mapping[Case, Document]) -> list[str]:
    """Milliseconds of every target beside the original's, and what the native engine takes and keeps."""
    targets = list(dict.fromkeys(r["target"] for d in measured.values() for r in d["bench"]["results"]))
    targets = [*(target for target in targets if target != ORIGINAL), ORIGINAL]
    rows = []
    for case, document in measured.items():
        results = {r["target"]: r for r in document["bench"]["results"]}
        state, native = state_bytes(case.config) * case.batch, results[NATIVE]
        rows.append(
            [
                case.size + _doubted(document),
                case.way.title,
                f"`{case.precision}`",
                str(case.batch),
                *(three_digits(results[target]["p50_ms"]) if target in results else "-" for target in targets),
                f"{native['floor_ratio']:.2f}",
                _product_share(case, native["p50_ms"] / 1e3, document["bench"]["products"]),
                "-" if native["peak_memory"] is None else f"{native['peak_memory'] / 1e6:.0f} MB",
                f"{three_digits(state / 1e6)} MB",
            ]
        )
    columns = ["size", "policy", "precision", "rows", *targets, f"{NATIVE}: x floor", "of products", "memory", "state"]
    return [*table(columns, rows), *_doubts(measured.values())]


def _product_share(case: Case, seconds: float, rate: float) -> str:
    """What share of the machine's multiplications per second a step reaches, where they limit it."""
    return f"{case.batch * products(case.config) / seconds / rate:.0%}" if computes(case.config) else "-"


def prediction_table(
    measured: Mapping[tuple[str, str], Document], here: Mapping[tuple[str, str], Document]
) -> list[str]:
    """What `inspect --device here` knew before, beside what `bench` measured, and how many were near.

    Twice: with the memory as fast as it was then, and as `bench` found it.
    """
    rows, near, near_now = [], 0, 0
    for (size, precision), document in measured.items():
        speed, bandwidth = MachineSpeed.from_json(here[size, precision]["measured"]), document["bench"]["bandwidth"]
        change = bandwidth / speed.bandwidth[max(speed.bandwidth)]
        now = speed.with_bandwidth({of: change * value for of, value in speed.bandwidth.items()})
        before, during = (_predicted(size, precision, s) for s in (speed, now))
        for r in document["bench"]["results"]:
            target, p50 = r["target"], r["p50_ms"]
            if target not in before:
                continue
            ratio, ratio_now = before[target] / p50, during[target] / p50
            near, near_now = near + (abs(ratio - 1) <= ALLOWED), near_now + (abs(ratio_now - 1) <= ALLOWED)
            numbers = (
                three_digits(before[target]),
                three_digits(p50),
                f"{ratio:.2f}",
                f"{change:.2f}",
                f"{ratio_now:.2f}",
            )
            rows.append([size, f"`{precision}`", target, *numbers])
    columns = ["size", "precision", "target", "predicted ms", "measured ms", "predicted / measured"]
    said = (
        f"{near} of {len(rows)} predictions are within {ALLOWED:.0%} of the measurement; with the bandwidth that the "
        f"measurement itself found, {near_now}."
    )
    return [said, "", *table([*columns, "bandwidth, then to now", "with that of now"], rows)]


def _predicted(size: str, precision: str, speed: MachineSpeed) -> dict[str, float]:
    """Milliseconds by target on the measured machine."""
    found = predict(preset_config(size), this_device(speed), speed, None, here=True)
    return {p.target: 1e3 * p.seconds for p in found if p.precision == precision and p.seconds is not None}


def parity_table(measured: Mapping[tuple[str, str], Document]) -> list[str]:
    """What verification found over the recorded steps."""
    rows = []
    for (size, precision), document in measured.items():
        sizes = {r["target"]: r["size"] for r in document["bench"]["results"]}
        for entry in document["artifacts"]:
            parity = entry["parity"]
            rows.append(
                [
                    size,
                    f"`{precision}`",
                    entry["target"],
                    f"{sizes[entry['target']] / 1e6:.1f} MB",
                    f"{parity['max_logit_error']:.2g}",
                    f"{parity['relative_error']:.2g}",
                    f"{parity['actions_different']} of {parity['actions']}",
                ]
            )
    columns = ["size", "precision", "target", "size on disk", "largest logit error", "relative"]
    return table([*columns, "actions that differ"], rows)


def loop_table(measured: Mapping[str, Document]) -> list[str]:
    """What `evaluate` found, all environments together; keys: precisions. The float32 reference is shown once."""
    rows, shown = [], set()
    for precision, document in measured.items():
        results: dict[str, list[Document]] = {}
        for result in document["evaluation"]["results"]:
            results.setdefault(result["policy"], []).append(result)
        for policy, own in results.items():
            if policy == "reference" and policy in shown:
                continue
            shown.add(policy)
            rows.append([policy, "`fp32`" if policy == "reference" else f"`{precision}`", *_loop_cells(own)])
    columns = ["policy", "precision", "episodes", "success", "return", "same outcome as the reference"]
    return table([*columns, "steps that differ", "largest logit error"], rows)


def _loop_cells(results: Sequence[Document]) -> list[str]:
    episodes = [episode for result in results for episode in result["episodes"]]
    success = success_rate(sum(bool(episode["success"]) for episode in episodes), len(episodes))
    gained = mean([episode["episode_return"] for episode in episodes])
    agreements = [result["agreement"] for result in results if result["agreement"] is not None]
    cells = [
        str(len(episodes)),
        f"{success.value:.0%} ({100 * success.low:.0f} to {100 * success.high:.0f})",
        str(gained),
    ]
    if not agreements:
        return [*cells, "-", "-", "-"]
    same, differ = sum(r["same_outcome"] for r in results), sum(a["steps_different"] for a in agreements)
    steps, error = sum(a["steps"] for a in agreements), max(a["max_logit_error"] for a in agreements)
    return [*cells, f"{same} of {len(episodes)}", f"{differ:,} of {steps:,}", f"{error:.2g}"]


def context_lines(document: Document) -> list[str]:
    """Headlines and a table per batch size, from the JSON of benchmarks/context_length.py."""
    options, counts = document["options"], document["parameters"]
    said = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [
        f"Machine: {document['cpu']}, {document['physical_cores']} cores, {document['total_memory'] / 1e9:.0f} GB, "
        f"{options['threads']} threads.",
        f"Date: {document['date'][:10]}. Versions: {said}.",
        f"Command: `python benchmarks/context_length.py`. Parameters: LRAM {counts['lram']:,}, transformer "
        f"{counts['transformer']:,} without its table of positions.",
        "",
    ]
    lines += [_crossing(crossing) for crossing in document["crossings"]]
    lines += _flat(document["points"])
    for batch in options["batches"]:
        points = [p for p in document["points"] if p["batch"] == batch]
        names = list(dict.fromkeys(p["contender"] for p in points))
        at = {(p["length"], p["contender"]): p for p in points}
        lines += ["", f"Batch {batch}, milliseconds per environment step (weights and cache or state in MB):", ""]
        rows = [
            [f"{length:,}", *(_context_cell(at.get((length, name))) for name in names)]
            for length in options["lengths"]
            if any((length, name) in at for name in names)
        ]
        lines += table(["steps so far", *names], rows)
        lines += _no_memory([p for p in points if p["ms"] is None])
    return lines


def _crossing(crossing: Document) -> str:
    """Where a transformer becomes slower than an LRAM, the headline."""
    transformer = crossing["transformer"].replace(", ", " with the ")
    last = f"{crossing['last']:,} steps"
    if crossing["steps"] is None:
        where = f"at no length up to {last}"
    elif crossing["steps"] == crossing["first"]:
        where = f"at every length, from {crossing['first']:,} steps on"
    else:
        where = f"**from {crossing['steps']:,.0f} steps on**"
    ratio = f"{crossing['last_ratio']:.3g}"
    return (
        f"- batch {crossing['batch']}: the {transformer} is slower than {crossing['lram']} {where}; at {last} it takes "
        f"{ratio} times as long"
    )


def _flat(points: Sequence[Document]) -> list[str]:
    """What a policy behind the step API takes at any length."""
    lines = []
    for batch, name in dict.fromkeys((p["batch"], p["contender"]) for p in points if p["history"] is not None):
        own = [p for p in points if (p["batch"], p["contender"]) == (batch, name) and p["ms"] is not None]
        if own[0]["bound"] is not None:
            lines.append(
                f"- batch {batch}: {name} takes {own[0]['ms']:.3g} ms at any length, as it acts by the last "
                f"{own[0]['bound']} steps"
            )
            continue
        low, high = min(p["ms"] for p in own), max(p["ms"] for p in own)
        lengths = f"{own[0]['length']:,} to {own[-1]['length']:,} steps"
        lines.append(f"- batch {batch}: {name} takes {low:.3g} to {high:.3g} ms, whether after {lengths}")
    return lines


def _context_cell(point: Document | None) -> str:
    if point is None:
        return "-"
    memory = f"{(point['weight_bytes'] + point['context_bytes']) / 1e6:,.0f}"
    return f"no memory ({memory})" if point["ms"] is None else f"{point['ms']:.3g} ({memory})"


def _no_memory(points: Sequence[Document]) -> list[str]:
    """Where memory stops, for each transformer."""
    lines = []
    for name in dict.fromkeys(p["contender"] for p in points):
        first = min((p for p in points if p["contender"] == name), key=lambda p: p["length"])
        lines.append(f"- {name}: stops at {first['length']:,} steps; {first['skipped']}")
    return ["", *lines] if lines else []
