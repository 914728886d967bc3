"""Measures what `docs/results.md` shows, and writes it: `make results`.

    python benchmarks/results.py [--sections speed backbones context loop] [--sizes 16m 110m 206m]
        [--precisions fp32 int8 int4]

- `speed`: every size at every precision is exported for all targets, verified, and timed beside
  the original in one run, after `inspect --device here` has predicted the time.
- `backbones`: every backbone of the paper, in each of its contexts, at float32 and int8, one row and many.
- `context`: `benchmarks/context_length.py` (needs the package `transformers`), which also draws the chart.
- `loop`: the example policy at every precision in closed loop beside the reference.

Numbers are kept in a folder, and `--resume` goes on after a run that ended early. `benchmarks/results_page.py` makes
the tables of them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import results_page as page

from lram_export.backbones.xlstm.config import PRESETS
from lram_export.exporters import EXPORTERS
from lram_export.spec.precision import PRECISIONS
from lram_export.system.files import atomic_file
from lram_export.system.machine import cpu_features, cpu_model, physical_cores, total_memory

BENCHMARKS = Path(__file__).parent
ROOT = BENCHMARKS.parent
PROGRAM = [sys.executable, "-c", "from lram_export.cli import main; main()"]
COMMAND = "python benchmarks/results.py"
TARGETS = ("onnxruntime", "openvino", "native", "tvm")
PACKAGES = ("torch", "xlstm", "onnxruntime", "openvino", "apache-tvm", "numpy", "lram-export")
EXAMPLE = ROOT / "examples" / "metaworld" / "checkpoints" / "xlstm" / "model.zip"
ENVIRONMENTS = tuple(
    f"metaworld/{task}-v3"
    for task in (
        "reach", "push", "hammer", "door-open", "drawer-open",
        "drawer-close", "button-press-topdown", "window-open", "window-close", "faucet-open",
    )
)  # fmt: skip
MOST_PRODUCTS = 5e10
"""Multiplications of a step from which on a case of the backbones is left out: many seconds per step on two cores."""

MOST_STATE = 1.5e9
"""Bytes of state of all rows from which on it is: five contenders keep it at once, some of them twice."""

MOST_RUNS = 3
"""Of a benchmark that others on the machine or its host disturb."""

Document = dict[str, Any]


def run(*command: str | Path) -> str:
    """Run what must succeed; returns its standard output. What went wrong it says itself, on standard error."""
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"error: {' '.join(map(str, command[-12:]))}: failed; --resume goes on from here")
    return done.stdout


def lram_export(*arguments: str | Path) -> str:
    """Run a command of the program; returns its standard output."""
    return run(*PROGRAM, *arguments)


def place() -> Document:
    """Where and with what it is measured."""
    memory = (total_memory() or 0) / 1e9
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "no commit"
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {
        "machine": f"{cpu_model()}, {physical_cores()} cores, {memory:.0f} GB ({', '.join(cpu_features())})",
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version(), **versions, "commit": commit},
    }


def kept(path: Path, measure: Callable[[], Document], **options: object) -> Document:
    """The file's numbers, which must be of this machine, these versions and options; measured if there is no file."""
    here = {**place(), "options": options}
    if path.exists():
        document: Document = json.loads(path.read_text(encoding="utf-8"))
        for what in ("machine", "versions", "options"):
            if document["where"][what] != here[what]:
                raise SystemExit(f"error: {path}: measured with other {what}; without --resume all is measured anew")
        return document
    document = {"where": here, **measure()}
    path.write_text(json.dumps(document), encoding="utf-8")
    return document


def export(checkpoint: Path, bundle: Path, precision: str, *more: str) -> None:
    """Export for all targets that have the precision, which verifies."""
    say(f"{bundle.stem}: exporting")
    able = [target for target in TARGETS if precision in EXPORTERS[target].precisions]
    targets = [part for target in able for part in ("--target", target)]
    options = ["--task", "metaworld/reach-v2", "--precision", precision, "--force", "--no-report", "--quiet"]
    lram_export("export", checkpoint, "-o", bundle, *targets, *options, *more)


def predict(checkpoint: Path, again: bool) -> Document:
    """What is known of this machine now; ``again`` measures the targets anew, else only the memory."""
    say(f"{checkpoint.name}: predicting")
    anew = ["--measure"] if again else []
    inspected = lram_export("inspect", checkpoint, "--device", "here", *anew, "--json", "--quiet")
    return {"measured": json.loads(inspected)["measured"]}


def bench(bundle: Path, steps: int) -> Document:
    """What verification found when it was exported, and times: of a few runs the first that nothing disturbed, else
    the one with the fewest reasons to doubt it, which the tables mark."""
    runs: list[Document] = []
    while len(runs) < MOST_RUNS and all(run["warnings"] for run in runs):
        say(f"{bundle.stem}: timing")
        runs.append(json.loads(lram_export("bench", bundle, "--steps", str(steps), "--baseline", "--json", "--quiet")))
    manifest = json.loads(lram_export("inspect", bundle, "--json", "--quiet"))
    return {"artifacts": manifest["artifacts"], "bench": min(runs, key=lambda run: len(run["warnings"]))}


def evaluate(bundle: Path, episodes: int) -> Document:
    """Ten tasks in closed loop, beside the float32 checkpoint."""
    say(f"{bundle.stem}: {episodes} episodes in each of {len(ENVIRONMENTS)} tasks")
    environments = [part for name in ENVIRONMENTS for part in ("--env", name)]
    settings = ["--episodes", str(episodes), "--checkpoint", EXAMPLE, "--json", "--quiet"]
    found = lram_export("evaluate", bundle, *environments, *settings)
    return {"evaluation": json.loads(found)}


def measure_size(size: str, options: argparse.Namespace) -> Iterator[tuple[str, Document, Document]]:
    """Precision, measurement and prediction, which is made in the seconds before it; all bundles are made first."""
    folder: Path = options.folder
    bundles = {precision: folder / f"speed-{size}-{precision}.lram" for precision in options.precisions}
    checkpoint = folder / size
    if not checkpoint.exists():
        lram_export("new", "--preset", size, "-o", checkpoint, "--quiet")
    for precision, bundle in bundles.items():
        finished = options.resume and bundle.exists()
        if not bundle.with_suffix(".json").exists() and not finished:
            export(checkpoint, bundle, precision)
    for precision, bundle in bundles.items():
        first = not any(folder.glob("speed-*-here.json"))
        here = kept(folder / f"speed-{size}-{precision}-here.json", partial(predict, checkpoint, first))
        timed = partial(bench, bundle, options.steps)
        yield precision, kept(bundle.with_suffix(".json"), timed, steps=options.steps), here
        shutil.rmtree(bundle, ignore_errors=True)  # gigabytes


def speed_sections(options: argparse.Namespace) -> dict[str, list[str]]:
    """Speed, prediction and parity."""
    measured, here = {}, {}
    for size in options.sizes:
        for precision, document, before in measure_size(size, options):
            measured[size, precision], here[size, precision] = document, before
    chosen = f"--sizes {' '.join(options.sizes)} --precisions {' '.join(options.precisions)} --steps {options.steps}"
    said = page.where([*measured.values(), *here.values()], f"{COMMAND} --sections speed {chosen}")
    return {
        "speed": [*said, *page.speed_table(measured)],
        "prediction": [*said, *page.prediction_table(measured, here)],
        "parity": [*said, *page.parity_table(measured)],
    }


def backbone_sections(options: argparse.Namespace) -> dict[str, list[str]]:
    """The backbones of the paper beside one another."""
    measured = {}
    for size in options.sizes:
        for way in page.WAYS:
            checkpoint: Path = options.folder / f"{size}-{way.backbone}"
            if not checkpoint.exists():
                lram_export("new", "--backbone", way.backbone, "--preset", size, "-o", checkpoint, "--quiet")
            for case in page.cases(size, way, options.batches, MOST_PRODUCTS, MOST_STATE):
                measured[case] = measure_case(case, checkpoint, options)
    batches = " ".join(map(str, options.batches))
    chosen = f"--sizes {' '.join(options.sizes)} --batches {batches} --steps {options.steps}"
    said = page.where(measured.values(), f"{COMMAND} --sections backbones {chosen}")
    return {"backbones": [*said, *page.backbone_table(measured)]}


def measure_case(case: page.Case, checkpoint: Path, options: argparse.Namespace) -> Document:
    """Export and time one policy."""
    bundle: Path = options.folder / f"backbones-{case.name}.lram"
    steps = max(options.steps // fewer(case), 10)

    def measure() -> Document:
        context = [] if case.way.context is None else ["--context", case.way.context]
        recorded = ["--reference-steps", "8"]  # the original's own steps would take most of the time
        export(checkpoint, bundle, case.precision, *context, *recorded, "--batch", str(case.batch))
        return bench(bundle, steps)

    document = kept(bundle.with_suffix(".json"), measure, steps=steps)
    shutil.rmtree(bundle, ignore_errors=True)  # gigabytes
    return document


def fewer(case: page.Case) -> int:
    """By how much fewer steps are enough, where one takes long: over a window, and of many rows of a large model."""
    if case.way.context == "window":
        return 10
    millions = int(case.size.removesuffix("m"))
    return 4 if millions * case.batch > 1000 else 1


def context_sections(options: argparse.Namespace) -> dict[str, list[str]]:
    """The context length; its chart goes beside the page."""
    path = options.folder / "context.json"
    if not path.exists():
        say("context length")
        unfinished = path.with_suffix(".unfinished")
        outputs = ["--json", unfinished, "--chart", page.PAGE.parent / "context-length.svg"]
        run(sys.executable, BENCHMARKS / "context_length.py", *outputs)
        unfinished.rename(path)
    return {"context": page.context_lines(json.loads(path.read_text(encoding="utf-8")))}


def loop_sections(options: argparse.Namespace) -> dict[str, list[str]]:
    """The example policy in closed loop."""
    measured = {}
    for precision in options.precisions:
        path, bundle = options.folder / f"loop-{precision}.json", options.folder / f"example-{precision}.lram"
        if not path.exists():
            export(EXAMPLE, bundle, precision)
        measured[precision] = kept(path, partial(evaluate, bundle, options.episodes), episodes=options.episodes)
        shutil.rmtree(bundle, ignore_errors=True)
    chosen = f"--precisions {' '.join(options.precisions)} --episodes {options.episodes}"
    said = page.where(measured.values(), f"{COMMAND} --sections loop {chosen}")
    return {"loop": [*said, *page.loop_table(measured)]}


MEASURED_FOR = {
    "speed": "speed-*.json",
    "backbones": "backbones-*.json",
    "context": "context.json",
    "loop": "loop-*.json",
}
"""Which files of the folder hold a section's numbers."""
SECTIONS = {
    "speed": speed_sections,
    "backbones": backbone_sections,
    "context": context_sections,
    "loop": loop_sections,
}


def say(text: str) -> None:
    """Where a long run is."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--sizes", nargs="+", choices=PRESETS, default=["16m", "110m", "206m"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32", "int8", "int4"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16], help="rows of a step, of the backbones")
    parser.add_argument("--steps", type=int, default=200, help="timed steps of each target")
    parser.add_argument("--episodes", type=int, default=3, help="in each of the ten tasks")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "results", help="numbers stay there")
    parser.add_argument("--resume", action="store_true", help="go on: keep what was measured by a run that ended early")
    options = parser.parse_args()
    if "context" in options.sections and find_spec("transformers") is None:
        raise SystemExit("error: the section context needs the package 'transformers': pip install transformers")
    if "loop" in options.sections and find_spec("metaworld") is None:
        raise SystemExit("error: the section loop needs the package 'metaworld': pip install 'lram-export[evaluate]'")
    options.folder.mkdir(parents=True, exist_ok=True)
    for section in options.sections:
        for path in [] if options.resume else options.folder.glob(MEASURED_FOR[section]):
            path.unlink()
        lines = SECTIONS[section](options)
        text = page.PAGE.read_text(encoding="utf-8")  # after hours: somebody may have edited it
        for name in lines:
            text = page.replace_section(text, name, lines[name])
        with atomic_file(page.PAGE, force=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
        say(f"{page.PAGE}: {section} written")


if __name__ == "__main__":
    main()
