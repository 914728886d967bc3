"""Measures what `docs/results.md` shows, and writes it: `make results`.

    python benchmarks/results.py [--sizes 16m 110m 206m] [--precisions fp32 int8 int4] [--steps 200]

Every size at every precision is exported for all targets that are installed here, verified and timed beside the
original in one run. What was measured by other commands (context length, closed loop) is taken from their files, if
they are given, and otherwise stays as the page has it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from lram_export.machine import cpu_features, cpu_model, physical_cores, total_memory

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
PROGRAM = [sys.executable, "-c", "from lram_export.cli import main; main()"]
TARGETS = ("onnxruntime", "openvino", "native", "tvm")
PACKAGES = ("torch", "xlstm", "onnxruntime", "openvino", "apache-tvm", "numpy", "lram-export")


def lram_export(*arguments: str) -> str:
    """Run a command that must succeed; returns its standard output."""
    done = subprocess.run([*PROGRAM, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def measure(size: str, precision: str, folder: Path, steps: int) -> dict[str, Any]:
    """Export, verify and time one size at one precision; kept in the folder, so that a run can go on."""
    kept = folder / f"{size}-{precision}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    checkpoint, bundle = folder / size, folder / f"{size}-{precision}.lram"
    if not checkpoint.exists():
        lram_export("new", "--preset", size, "-o", str(checkpoint), "--quiet")
    targets = [part for target in TARGETS for part in ("--target", target)]
    options = ["--task", "metaworld/reach-v2", "--precision", precision, "--force", "--json", "--no-report"]
    exported = json.loads(lram_export("export", str(checkpoint), "-o", str(bundle), *targets, *options))
    timed = json.loads(lram_export("bench", str(bundle), "--steps", str(steps), "--baseline", "--json"))
    found = {"artifacts": exported["artifacts"], "bench": timed}
    kept.write_text(json.dumps(found))
    return found


def speed_table(measured: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """Milliseconds per step and what they are against the original, OpenVINO and the floor."""
    lines = [
        "| size | precision | target | p50 ms | p99 | against the original | against openvino | x floor | memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (size, precision), found in measured.items():
        results = {r["target"]: r for r in found["bench"]["results"]}
        original, openvino = results["original"]["p50_ms"], results.get("openvino", {}).get("p50_ms")
        for target, r in results.items():
            against = "" if openvino is None else f"{openvino / r['p50_ms']:.2f}"
            memory = "-" if r["peak_memory"] is None else f"{r['peak_memory'] / 1e6:.0f} MB"
            shown = r["precision"] if target == "original" else precision
            numbers = (f"{r['p50_ms']:.3g}", f"{r['p99_ms']:.3g}", f"{original / r['p50_ms']:.1f}", against)
            cells = [size, f"`{shown}`", target, *numbers, f"{r['floor_ratio']:.2f}", memory]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def parity_table(measured: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """What verification found over the recorded steps."""
    lines = ["| size | precision | target | size on disk | largest logit error | relative | actions that differ |"]
    lines.append("|---|---|---|---|---|---|---|")
    for (size, precision), found in measured.items():
        for entry in found["artifacts"]:
            parity = entry["parity"]
            bytes_on_disk = sum(file["size"] for file in entry["files"])
            lines.append(
                f"| {size} | `{precision}` | {entry['target']} | {bytes_on_disk / 1e6:.1f} MB | "
                f"{parity['max_logit_error']:.2g} | {parity['relative_error']:.2g} | "
                f"{parity['actions_different']} of {parity['actions']} |"
            )
    return lines


def context_lines(document: dict[str, Any]) -> list[str]:
    """Headlines and a table per batch size, from the JSON of benchmarks/context_length.py."""
    options, versions = document["options"], document["versions"]
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    counts = document["parameters"]
    lines = [
        f"Machine: {document['cpu']}, {document['physical_cores']} cores, {options['threads']} threads. "
        f"Date: {document['date'][:10]}. Versions: {said}.",
        f"Command: `python benchmarks/context_length.py --preset {options['preset']}`. Parameters: LRAM "
        f"{counts['lram']:,}, transformer {counts['transformer']:,} without its table of positions.",
        "",
    ]
    for crossing in document["crossings"]:
        where = "up to no length measured" if crossing["steps"] is None else f"from {crossing['steps']:,.0f} steps on"
        lines.append(
            f"- batch {crossing['batch']}: the transformer ({crossing['transformer']}) is slower than "
            f"{crossing['lram']} {where}; at {crossing['last']:,} steps it takes {crossing['last_ratio']:.2f} times as "
            f"long"
        )
    for batch in options["batches"]:
        points = [p for p in document["points"] if p["batch"] == batch]
        names = list(dict.fromkeys(p["contender"] for p in points))
        lines += ["", f"Batch {batch}, milliseconds per environment step (weights and cache or state in MB):", ""]
        lines.append(f"| steps so far | {' | '.join(names)} |")
        lines.append("|---" * (len(names) + 1) + "|")
        for length in options["lengths"]:
            row = {p["contender"]: p for p in points if p["length"] == length}
            if row:
                lines.append(f"| {length:,} | {' | '.join(_context_cell(row.get(name)) for name in names)} |")
    return lines


def _context_cell(point: dict[str, Any] | None) -> str:
    if point is None or point["ms"] is None:
        return "no memory" if point is not None else "-"
    return f"{point['ms']:.3g} ({(point['weight_bytes'] + point['context_bytes']) / 1e6:.0f})"


def machine_lines() -> list[str]:
    """Where and with what it was measured."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    memory = (total_memory() or 0) / 1e9
    return [
        f"Machine: {cpu_model()}, {physical_cores()} cores, {memory:.0f} GB ({', '.join(cpu_features())}).",
        f"Date: {datetime.date.today().isoformat()}. Versions: {versions}.",
    ]


def replace_section(text: str, name: str, lines: list[str]) -> str:
    """The page with what stands between the marks of a section replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"error: {PAGE}: no marks '<!-- {name} -->' and '<!-- end of {name} -->'")
    return pattern.sub(lambda match: match[1] + "\n".join(lines) + "\n" + match[2], text)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["16m", "110m", "206m"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8", "int4"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("build/results"), help="bundles and numbers stay there")
    parser.add_argument("--context", type=Path, nargs="+", help="JSON of runs of benchmarks/context_length.py")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    measured = {}
    for size in options.sizes:
        for precision in options.precisions:
            print(f"{size} {precision}", flush=True)
            measured[size, precision] = measure(size, precision, options.folder, options.steps)
    command = (
        f"python benchmarks/results.py --sizes {' '.join(options.sizes)} --precisions {' '.join(options.precisions)}"
    )
    said = [*machine_lines(), f"Command: `{command}`.", ""]
    text = PAGE.read_text(encoding="utf-8")
    text = replace_section(text, "speed", [*said, *speed_table(measured)])
    text = replace_section(text, "parity", [*said, *parity_table(measured)])
    if options.context is not None:
        runs = [context_lines(json.loads(path.read_text())) for path in options.context]
        text = replace_section(text, "context", [line for run in runs for line in [*run, ""]][:-1])
    PAGE.write_text(text, encoding="utf-8")
    print(f"{PAGE}: written")


if __name__ == "__main__":
    main()
