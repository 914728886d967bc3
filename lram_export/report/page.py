"""A report as one self-contained HTML page: no script, no font, no file beside it."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from lram_export.cli.console import human_bytes
from lram_export.cli.inspect import model_facts, quantization_facts
from lram_export.cli.precision import cost_line
from lram_export.report.charts import all_charts
from lram_export.report.collect import Report, Row

COLUMNS = (
    "target", "precision", "size", "peak memory", "p50 ms", "p99", "p99.9", "x floor", "logit error", "same action",
    "cost of the precision", "verified at export", "closed loop",
)  # fmt: skip
MISSING = "-"


def render(report: Report) -> str:
    """The page as text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("lram_export") / "data" / "report.html.j2").read_text(encoding="utf-8"))
    manifest = report.bundle.manifest
    return template.render(
        name=manifest.name,
        task=manifest.task.name,
        exported=manifest.created,
        generator=manifest.generator,
        created=report.created,
        verdict=_verdict(report),
        facts=_facts(report),
        columns=COLUMNS,
        rows=[_cells(row) for row in report.rows],
        notes=_notes(report),
        charts=all_charts(report),
        origin=_origin(report),
    )


def _verdict(report: Report) -> list[dict[str, str]]:
    """What somebody who reads nothing else has to know."""
    own = [row for row in report.rows if row.bundle == str(report.bundle.path)]
    seen = [row for row in own if row.compared_here]
    unverified = [row.label for row in own if row.entry.parity is None and row not in seen]
    failed = [row.label for row in own if row.entry.parity is not None and not row.entry.parity.passed]
    elsewhere = [f"{r.label} (on {r.entry.verified_by})" for r in own if _elsewhere(r) and r not in seen]
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
    good = [row.label for row in own if row.label not in wrong and (row in seen or not _elsewhere(row))]
    if good:
        lines.append({"kind": "good", "text": _good(report, good)})
    if all(row.timing is None for row in own):
        lines.append({"kind": "open", "text": "Never timed for this report, so it says nothing about speed."})
    return lines


def _good(report: Report, labels: list[str]) -> str:
    quantization = report.bundle.manifest.quantization
    if quantization is None:
        return f"Does what the reference model does, within the tolerance of its precision: {', '.join(labels)}."
    text = f"Computes what the weights at its precision say, within the tolerance: {', '.join(labels)}. "
    if quantization.cost is None:
        return text + "What the precision itself costs against the float32 model was not measured."
    return text + f"What the precision itself costs: {cost_line(quantization.cost).removeprefix('quantization cost ')}."


def _elsewhere(row: Row) -> bool:
    return row.entry.parity is not None and row.entry.verified_by not in (None, row.entry.target)


def _facts(report: Report) -> list[tuple[str, str]]:
    manifest = report.bundle.manifest
    task = manifest.task
    observation = manifest.spec.inputs[0]
    action = "one of the discrete actions" if task.action == "discrete" else f"{task.action_dim} continuous values"
    return [
        ("observation", f"{'x'.join(map(str, observation.shape[1:]))} {observation.dtype}"),
        ("action", action),
        ("target return", f"{task.target_return:g}, divided by {task.reward_scale:g}"),
        ("reward feedback", task.reward_feedback),
        ("batch", str(manifest.batch_size)),
        *model_facts(manifest.model, manifest.parameters),
        *quantization_facts(manifest.quantization),
    ]


def _cells(row: Row) -> list[dict[str, str]]:
    entry, timing, errors, parity = row.entry, row.timing, row.errors, row.entry.parity

    def number(value: float | None) -> str:
        return MISSING if value is None else f"{value:.3g}"

    verified = "never" if parity is None else ("passed" if parity.passed else "failed")
    verified += f" on {entry.verified_by}" if _elsewhere(row) else ""
    texts = [
        entry.target,
        entry.precision,
        human_bytes(row.size),
        MISSING if timing is None else human_bytes(timing.peak_memory),
        *(number(None if timing is None else value(timing)) for value in _TIMES),
        MISSING if timing is None else f"{timing.floor_ratio:.2f}",
        MISSING if errors is None else f"{errors.largest.max():.2g}",
        MISSING if errors is None else f"{100 * errors.agreement:.2f}%",
        _cost(row),
        verified,
        row.closed_loop or "not measured",
    ]
    kinds = [""] * len(texts)
    kinds[0] = kinds[1] = "text"
    kinds[-2] = "good" if verified == "passed" else "bad" if verified.startswith("failed") else ""
    kinds[-1] = "wrap"
    return [{"text": text, "kind": kind} for text, kind in zip(texts, kinds, strict=True)]


def _cost(row: Row) -> str:
    if row.cost is None:
        return "none" if row.entry.precision == "fp32" else "not measured"
    beyond = 100 * row.cost["beyond_one_bin"] / max(row.cost["actions"], 1)
    return f"{row.cost['relative_error']:.2g}; {beyond:.2g}% of actions"


_TIMES: Any = (lambda t: t.p50_ms, lambda t: t.p99_ms, lambda t: t.p999_ms)


def _notes(report: Report) -> list[str]:
    notes = [
        f"Logit error and same action: {report.compared}, against the model with the weights of the row's precision.",
        "Cost of the precision: what these weights change against float32, as bundles of quantized weights had it "
        "measured when they were exported: relative error of the logits, and actions more than one bin away.",
        "x floor is the time of a step against the time to read its bytes from memory; below 1 a cache holds a part.",
    ]
    if report.bandwidth is not None:
        notes.append(
            f"Times: {report.options.steps} steps per target in turns, {report.options.threads} threads, read "
            f"bandwidth {report.bandwidth / 1e9:.1f} GB/s. With fewer than 1,000 steps p99.9 is close to the largest."
        )
    if report.options.rate is not None:
        missed = [f"{r.label} {r.timing.missed} of {r.timing.steps}" for r in report.rows if r.timing is not None]
        if missed:
            times = f"times run from the tick of {report.options.rate:g} Hz; deadlines missed: {', '.join(missed)}."
            notes.append(f"Steps were paced: {times}")
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
