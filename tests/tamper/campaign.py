"""`python -m tests.tamper.campaign FOLDER`: alters bundles of every target and precision, counts what is noticed."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from lram_export.runtimes import RUNTIMES, STAND_INS
from tests.tamper.bundles import PRECISIONS, Subject, write_subjects
from tests.tamper.judge import Verdict, judge
from tests.tamper.mutations import Mutant, mutants

OUTCOMES = ("verify", "verify --checkpoint", "accepted", "unnoticed", "traceback", "crash", "hang", "memory")


def baselines(subjects: Sequence[Subject]) -> dict[Path, int]:
    """Memory that it takes to verify each bundle unaltered; raises AssertionError if one does not pass."""
    unaltered = [Mutant(s, "", "", "", lambda bundle: None) for s in subjects]
    found = {}
    for verdict in judge(unaltered, 1, {}):
        assert verdict.outcome == "accepted", (verdict.mutant.name, verdict.outcome, verdict.note)
        found[verdict.mutant.subject.path] = verdict.memory
    return found


def report(verdicts: Sequence[Verdict], seconds: float) -> str:
    """Counts per bundle and outcome, reasons of what is accepted, and everything that must not be."""
    lines = [f"{len(verdicts)} mutants in {seconds / 60:.1f} minutes", "", "| bundle | " + " | ".join(OUTCOMES) + " |"]
    lines.append("|---" * (len(OUTCOMES) + 1) + "|")
    counts = Counter((f"{v.mutant.subject.target} {v.mutant.subject.precision}", v.outcome) for v in verdicts)
    for bundle in dict.fromkeys(name for name, _ in counts):
        lines.append(f"| {bundle} | " + " | ".join(str(counts[bundle, outcome]) for outcome in OUTCOMES) + " |")
    total = Counter(v.outcome for v in verdicts)
    lines += ["| all | " + " | ".join(str(total[outcome]) for outcome in OUTCOMES) + " |", "", "accepted, and why:", ""]
    reasons = Counter(v.note for v in verdicts if v.outcome == "accepted")
    lines += [f"- {count}: {reason}" for reason, count in reasons.most_common()]
    bad = [v for v in verdicts if not v.good]
    lines += ["", f"must not be: {len(bad)}", ""]
    lines += [f"- {v.outcome}: {v.mutant.name}: {v.note}" for v in bad]
    return "\n".join(lines) + "\n"


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; the number of mutants that went wrong, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the report goes")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--thoroughness", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", action="append", choices=PRECISIONS)
    parser.add_argument("--target", action="append", default=[])
    parser.add_argument("--sample", type=int, help="only so many, drawn from all")
    parser.add_argument("--match", default="", help="only mutants whose name has this in it")
    chosen = parser.parse_args(arguments)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    start, verdicts = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        subjects = export_elsewhere(Path(folder), tuple(chosen.precision or PRECISIONS), tuple(chosen.target))
        import_everything({subject.target for subject in subjects})
        memory = baselines(subjects)
        planned = [m for s in subjects for m in mutants(s, chosen.thoroughness, chosen.seed) if chosen.match in m.name]
        if chosen.sample is not None and chosen.sample < len(planned):
            planned = random.Random(chosen.seed).sample(planned, chosen.sample)
        print(f"{len(planned)} mutants of {len(subjects)} bundles", flush=True)
        with (chosen.folder / "verdicts.jsonl").open("w") as log:
            for number, verdict in enumerate(judge(planned, chosen.jobs, memory), start=1):
                verdicts.append(verdict)
                entry = [
                    verdict.mutant.name,
                    verdict.outcome,
                    verdict.note,
                    verdict.memory >> 20,
                    round(verdict.seconds, 2),
                ]
                log.write(json.dumps(entry) + "\n")
                log.flush()
                if not verdict.good:
                    print(f"{verdict.outcome}: {verdict.mutant.name}: {verdict.note}", flush=True)
                if number % 250 == 0:
                    print(f"{number} of {len(planned)} after {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    text = report(verdicts, time.monotonic() - start)
    (chosen.folder / "report.md").write_text(text)
    print(text)
    return int(any(not v.good for v in verdicts))


def export_elsewhere(folder: Path, precisions: tuple[str, ...], targets: tuple[str, ...]) -> list[Subject]:
    """Export in a process of its own: the one that forks may have no threads."""
    from multiprocessing import get_context

    with get_context("spawn").Pool(1) as pool:
        return pool.apply(write_subjects, (folder, precisions, targets))


def import_everything(targets: Collection[str]) -> None:
    """What every mutant of some targets needs, once; no thread may be started."""
    from importlib import import_module

    import torch

    torch.set_num_threads(1)
    stand_ins = [STAND_INS[target][1].module for target in targets if target in STAND_INS]
    others = [f"lram_export.{name}" for name in ("checkpoints.dequantized", "model.reference", "cli.verify")]
    for name in (*(RUNTIMES[target].module for target in targets), *stand_ins, *others):
        import_module(name)


if __name__ == "__main__":
    sys.exit(run())
