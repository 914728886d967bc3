"""A report as one self-contained HTML page: no script, no font, no file beside it."""

from __future__ import annotations

from pathlib import Path

from lram_export.describe import cost_line, counted, human_bytes, policy_facts, quantization_facts, three_digits
from lram_export.report.charts import all_charts
from lram_export.report.collect import Report, Row
from lram_export.report.flight_page import section, verdict
from lram_export.report.parts import OFTEN_MISSED, Cell, Line, Table
from lram_export.report.templates import template

NAMES = ("target", "precision")
RIGHT = ("error", "tolerance", "same action", "cost of the precision", "verified at export", "closed loop")
FAST = ("size", "peak memory", "p50 ms", "p99 ms", "p99.9 ms", "x floor")
MISSING = "-"


def render(report: Report) -> str:
    """The page as text."""
    manifest = report.bundle.manifest
    return template("report.html.j2").render(
        name=manifest.name,
        task=manifest.model["class"] if manifest.task is None else manifest.task.name,
        exported=manifest.created,
        generator=manifest.generator,
        created=report.created,
        verdict=_verdict(report),
        facts=_facts(report),
        flight=None if report.flight is None else section(*report.flight),
        tables=_tables(report),
        notes=_notes(report),
        charts=all_charts(report),
        origin=_origin(report),
    )


def _verdict(report: Report) -> list[Line]:
    """What somebody who reads nothing else has to know."""
    own = [row for row in report.rows if row.bundle == str(report.bundle.path)]
    seen = [row for row in own if row.compared_here]
    unverified = [row.label for row in own if row.entry.parity is None and row not in seen]
    failed = [row.label for row in own if row.entry.parity is not None and not row.entry.parity.passed]
    elsewhere = [f"{r.label} (on {r.entry.stand_in})" for r in own if _elsewhere(r) and r not in seen]
    lines = []
    beyond = [f"{row.label}: {'; '.join(row.failures)}" for row in report.rows if row.failures]
    if beyond:
        lines.append({"kind": "bad", "text": f"Wrong on this machine: {'; '.join(beyond)}."})
    if failed:
        lines.append({"kind": "bad", "text": f"Not what the reference model does: {', '.join(failed)}."})
    if unverified:
        lines.append({"kind": "open", "text": f"Never verified: {', '.join(unverified)}."})
    if elsewhere:
        text = f"Verified at export, but not where it will run: {', '.join(elsewhere)}. Run lram-export verify there."
        lines.append({"kind": "open", "text": text})
    wrong = {*failed, *unverified, *(row.label for row in own if row.failures)}
    lines += _deadlines(own, report.options.rate)
    flight = [] if report.flight is None else verdict(*report.flight)
    lines += [line for line in flight if line["kind"] in ("bad", "open")]
    # green is for a page on which nothing is wrong
    right = "plain" if any(line["kind"] == "bad" for line in lines) else "good"
    good = [row.label for row in own if row.label not in wrong and (row in seen or not _elsewhere(row))]
    if good:
        lines.append({"kind": right, "text": _good(report, good)})
    lines += [{"kind": right, "text": line["text"]} for line in flight if line["kind"] == "good"]
    if report.doubts:
        lines.append({"kind": "open", "text": f"Times here are not to be relied on: {'; '.join(report.doubts)}."})
    if all(row.timing is None for row in own):
        lines.append({"kind": "open", "text": "Never timed for this report, so it says nothing about speed."})
    return lines


def _deadlines(rows: list[Row], rate: float | None) -> list[Line]:
    """Whether the targets keep the rate that was asked for."""
    if rate is None:
        return []
    lines = []
    timed = [(row, row.missed) for row in rows if row.missed is not None]
    for kind, what, chosen in (
        ("bad", f"Too slow for {rate:g} Hz", [row for row, missed in timed if missed > OFTEN_MISSED]),
        ("open", f"Now and then late at {rate:g} Hz", [row for row, missed in timed if 0 < missed <= OFTEN_MISSED]),
    ):
        if chosen:
            late = [f"{row.label} missed {_missed(row)} deadlines" for row in chosen]
            lines.append({"kind": kind, "text": f"{what}: {', '.join(late)}."})
    return lines


def _missed(row: Row) -> str:
    return MISSING if row.missed is None or row.timing is None else f"{row.timing.missed} of {row.timing.steps}"


def _good(report: Report, labels: list[str]) -> str:
    quantization = report.bundle.manifest.quantization
    if quantization is None:
        return f"Does what the reference model does, within the tolerance of its precision: {', '.join(labels)}."
    text = f"Computes what the weights at its precision say, within the tolerance: {', '.join(labels)}. "
    if quantization.cost is None:
        return text + "What the precision itself costs against the float32 model was not measured."
    return text + f"What the precision itself costs: {cost_line(quantization.cost).removeprefix('quantization cost ')}."


def _elsewhere(row: Row) -> bool:
    return row.entry.parity is not None and row.entry.stand_in is not None


def _facts(report: Report) -> list[tuple[str, str]]:
    manifest = report.bundle.manifest
    return [*policy_facts(manifest, report.bundle.path), *quantization_facts(manifest.quantization)]


def _tables(report: Report) -> list[Table]:
    """What is right and what is fast, apart: one table of both is too wide for a screen."""
    paths = list(dict.fromkeys(row.bundle for row in report.rows))
    names = [Path(path).name for path in paths]
    called = dict(zip(paths, names if len(set(names)) == len(names) else paths, strict=True))
    bundle = ("bundle",) if len(paths) > 1 else ()
    paced = report.options.rate is not None
    missed = (f"missed at {report.options.rate:g} Hz", "cpu s/s") if paced else ()

    def named(row: Row) -> tuple[Cell, ...]:
        cells = (Cell(row.entry.target, "text"), Cell(row.entry.precision, "text"))
        return (*cells, Cell(called[row.bundle], "wrap")) if bundle else cells

    def late(row: Row) -> tuple[Cell, ...]:
        kind = "bad" if row.missed is not None and row.missed > OFTEN_MISSED else ""
        used = None if row.timing is None else row.timing.cpu_per_second
        return (Cell(_missed(row), kind), Cell(MISSING if used is None else f"{used:.3f}")) if paced else ()

    return [
        Table(
            "Is it right",
            (*NAMES, *bundle, *RIGHT),
            tuple((*named(row), *_right(row)) for row in report.rows),
        ),
        Table(
            "How fast, how large",
            (*NAMES, *bundle, *FAST, *missed),
            tuple((*named(row), *_fast(row), *late(row)) for row in report.rows),
        ),
    ]


def _right(row: Row) -> tuple[Cell, ...]:
    errors, parity, bound = row.errors, row.entry.parity, row.tolerance
    verified = "never" if parity is None else ("passed" if parity.passed else "failed")
    verified += f" on {row.entry.stand_in}" if _elsewhere(row) else ""
    error = None if errors is None else errors.relative if bound.relative else errors.largest
    relative = " relative" if bound.relative else ""
    return (
        Cell(MISSING if error is None else f"{error.max():.2g}{relative}", "bad" if row.failures else ""),
        Cell(f"{bound.logit:g}{relative}"),
        Cell(MISSING if errors is None or errors.agreement is None else f"{100 * errors.agreement:.2f}%"),
        Cell(_cost(row), "wrap"),
        Cell(verified, "good" if verified == "passed" else "bad" if verified.startswith("failed") else ""),
        Cell(row.closed_loop or "not measured", "wrap"),
    )


def _fast(row: Row) -> tuple[Cell, ...]:
    timing = row.timing
    if timing is None:
        return (Cell(human_bytes(row.size)), *(Cell(MISSING) for _ in FAST[1:]))
    times = (timing.p50_ms, timing.p99_ms, timing.p999_ms)
    return (
        Cell(human_bytes(row.size)),
        Cell(human_bytes(timing.peak_memory)),
        *(Cell(three_digits(ms)) for ms in times),
        Cell(f"{timing.floor_ratio:.2f} x"),
    )


def _cost(row: Row) -> str:
    if row.cost is None:
        return "none" if row.entry.precision == "fp32" else "not measured"
    beyond = 100 * row.cost["beyond_one_bin"] / max(row.cost["actions"], 1)
    return f"{row.cost['relative_error']:.2g}; {beyond:.2g}% of actions"


def _notes(report: Report) -> list[str]:
    notes = [
        f"Error and same action: {report.compared}, against the model with the weights of the row's precision; of the "
        "action logits where an action is chosen from them, else of all outputs.",
        "Cost of the precision: what these weights change against float32, as bundles of quantized weights had it "
        "measured when they were exported: relative error of the outputs, and actions more than one bin away.",
        "x floor is the time of a step against the time to read its bytes from memory; below 1 a cache holds a part.",
    ]
    if report.bandwidth is not None:
        notes.append(
            f"Times: {counted(report.options.steps, 'step')} per target in turns, "
            f"{counted(report.options.threads, 'thread')}, read "
            f"bandwidth {report.bandwidth / 1e9:.1f} GB/s. With fewer than 1,000 steps p99.9 is close to the largest."
        )
    if report.options.rate is not None:
        notes.append(
            f"Steps were paced: times run from the tick of {report.options.rate:g} Hz, the next is the deadline."
        )
    if report.options.measure:
        for row in report.rows:
            if row.why_not_run is not None:
                notes.append(f"{row.label} was not run: {row.why_not_run}.")
            if row.why_not_timed is not None:
                notes.append(f"{row.label} was not timed: {row.why_not_timed}.")
    others = sorted({row.bundle for row in report.rows} - {str(report.bundle.path)})
    if others:
        notes.append(f"Other bundles in the table: {', '.join(others)}.")
    return notes


def _origin(report: Report) -> list[tuple[str, str]]:
    manifest = report.bundle.manifest
    tools: dict[str, str] = {}
    for entry in manifest.artifacts:
        tools.update(entry.tools)
    return [
        ("bundle", str(report.bundle.path)),
        ("checkpoint", f"{manifest.source.get('file')}, sha256 {manifest.source.get('sha256') or 'not saved'}"),
        ("written with", ", ".join(f"{name} {version}" for name, version in sorted(tools.items()))),
        ("report made on", report.cpu),
        ("artifacts", "; ".join(f"{e.target}: sha256 {e.digest}" for e in manifest.artifacts)),
    ]
