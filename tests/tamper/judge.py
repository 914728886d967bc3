"""Whether an altered bundle is noticed: by `verify`, then by `verify --checkpoint`, each as a user runs it.

Every one has a process of its own, whose memory and time are bounded.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from lram_export import Bundle
from lram_export.cli import main
from lram_export.episodes.reference import record_reference
from lram_export.episodes.steps import random_steps
from lram_export.runtimes import load_verifier
from lram_export.spec.parity import ParityMeter, tolerance
from lram_export.system.cache import FOLDER_VARIABLE
from lram_export.verification import verify as library
from tests.tamper.mutants_accepted import reason_of
from tests.tamper.mutations import Mutant

CHECKPOINT_STEPS, OTHER_STEPS = 32, 64
TIME_LIMIT = 120.0
MORE_ADDRESSES = 3 << 30
"""Bytes of addresses, not of memory, beyond those of the process that imported everything."""
SLACK = 64 << 20
"""What two runs of one unaltered bundle may differ by in memory, in bytes."""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    ``outcome``: `verify` or `verify --checkpoint` (which of them noticed it), `accepted`, or what must not be:
    `unnoticed`, `traceback`, `crash`, `hang`, `memory`. ``note`` is the message, or the reason.
    """

    mutant: Mutant
    outcome: str
    note: str
    memory: int
    seconds: float

    @property
    def good(self) -> bool:
        """Whether it was noticed, or cannot matter."""
        return self.outcome in ("verify", "verify --checkpoint", "accepted")


def judge(mutants: Iterable[Mutant], jobs: int, baselines: dict[Path, int]) -> Iterator[Verdict]:
    """Judge mutants, so many at a time; ``baselines`` is the memory that verifying the unaltered bundles takes."""
    waiting, running = iter(mutants), {}
    while True:
        while len(running) < jobs and (mutant := next(waiting, None)) is not None:
            folder = Path(tempfile.mkdtemp(prefix="tamper-"))
            pid = os.fork()
            if pid == 0:
                _child(mutant, folder)
            running[pid] = (mutant, folder, time.monotonic())
        if not running:
            return
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if pid == 0:
            for late in [p for p, (_, _, start) in running.items() if time.monotonic() - start > TIME_LIMIT]:
                os.kill(late, signal.SIGKILL)
            time.sleep(0.005)
            continue
        mutant, folder, start = running.pop(pid)
        seconds, memory = time.monotonic() - start, usage.ru_maxrss * 1024
        try:
            outcome, note = json.loads((folder / "verdict.json").read_text())
        except (OSError, ValueError):
            hang = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and seconds > TIME_LIMIT
            outcome, note = ("hang", f"{seconds:.0f} s") if hang else ("crash", f"status {status}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        bundle = sum(p.stat().st_size for p in mutant.subject.path.rglob("*") if p.is_file())
        most = baselines.get(mutant.subject.path)
        if (
            most is not None
            and memory > most + 2 * bundle + SLACK
            and outcome in ("verify", "verify --checkpoint", "accepted")
        ):
            outcome, note = "memory", f"{memory >> 20} MiB, unaltered {most >> 20} MiB; {note}"
        yield Verdict(mutant, outcome, note, memory, seconds)


def _child(mutant: Mutant, folder: Path) -> None:
    """Alter a copy, verify it, write what came of it; never returns."""
    try:
        sys.stderr.flush()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)  # what foreign libraries print
        os.environ[FOLDER_VARIABLE] = str(folder / "cache")
        bundle = folder / mutant.subject.path.name
        shutil.copytree(mutant.subject.path, bundle)
        mutant.apply(bundle)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + MORE_ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        outcome, note = _outcome(mutant, bundle)
        (folder / "verdict.json").write_text(json.dumps([outcome, note[:400]]))
    except BaseException:
        (folder / "verdict.json").write_text(json.dumps(["traceback", "judge: " + traceback.format_exc()[-400:]]))
    finally:
        os._exit(0)


def _outcome(mutant: Mutant, bundle: Path) -> tuple[str, str]:
    subject = mutant.subject
    if subject.target == "tensorrt":  # no GPU is needed where its stand-in runs the graph
        _use_stand_ins()
    arguments = ["--target", subject.target, "--threads", "1", "--json", "--quiet"]
    against = ["--checkpoint", str(subject.checkpoint)]
    against += (
        ["--steps", str(CHECKPOINT_STEPS)] if subject.recording is None else ["--recording", str(subject.recording)]
    )
    for name, more in (("verify", []), ("verify --checkpoint", against)):
        result = CliRunner().invoke(main, ["verify", str(bundle), *arguments, *more])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            lines = traceback.format_exception(result.exception)
            return "traceback", f"{name}: {result.exception!r} {lines[-2].strip() if len(lines) > 1 else ''}"
        lines = result.stderr.strip().splitlines()
        if result.exit_code in (1, 2):
            if lines and lines[-1].lower().startswith("error: ") and len(lines) == 1:
                return name, lines[-1]
            if result.exit_code == 1 and result.stdout.lstrip().startswith("{"):
                return name, "beyond the tolerance"
        if result.exit_code != 0:
            return "traceback", f"{name}: exit code {result.exit_code}: {lines}"
    return _accepted(mutant, bundle)


def _accepted(mutant: Mutant, bundle: Path) -> tuple[str, str]:
    reason = reason_of(mutant)
    if reason is not None:
        return "accepted", reason
    difference, bound = difference_on_other_steps(mutant.subject.path, bundle)
    if difference <= bound:
        return "accepted", "changes no logit beyond the tolerance, on other steps"
    return "unnoticed", f"logits {difference:.3g} apart on other steps, twice the tolerance is {bound:.3g}"


def difference_on_other_steps(original: Path, altered: Path) -> tuple[float, float]:
    """The largest difference of logits of two bundles on steps that no verification sees; and twice the tolerance."""
    manifest = Bundle.open(original).manifest
    entry = manifest.artifacts[0]
    inputs = random_steps(manifest.spec, manifest.task, OTHER_STEPS, seed=987)
    answers = []
    for path in (original, altered):
        runtime, _ = load_verifier(entry.target, Bundle.open(path).load_artifact(entry.target), 1)
        answers.append(record_reference(runtime, inputs))
    meter = ParityMeter(manifest.spec, entry.precision, entry.activations, recorded=answers[0].outputs)
    for one, other in zip(*answers, strict=True):
        meter.add_step(one, other)
    result, allowed = meter.result(), tolerance(entry.precision, entry.activations)
    found = result.relative_error if allowed.relative else result.max_logit_error
    return float(np.inf if found is None else found), 2 * allowed.logit


def _use_stand_ins() -> None:
    library.load_runtime = lambda target, artifact, threads: load_verifier(target, artifact, threads)[0]  # type: ignore[attr-defined]
    library.unavailable = lambda *arguments: None  # type: ignore[attr-defined]
