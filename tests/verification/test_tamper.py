"""A sample of the mutation campaign (`make test-tamper`): what is altered is noticed, or cannot matter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.conftest import SLOW

ROOT = Path(__file__).parent.parent.parent
SAMPLE = 24


@SLOW
def test_alterations_with_valid_hashes_are_noticed(tmp_path: Path) -> None:
    """In a process of its own: it forks for every mutant, which one with threads must not."""
    program = [sys.executable, "-m", "tests.tamper.campaign", tmp_path, "--precision", "int8", "--sample", str(SAMPLE)]
    result = subprocess.run(
        [*program, "--target", "native", "--target", "onnxruntime"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    verdicts = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    outcomes = Counter(outcome for _, outcome, *_ in verdicts)
    assert len(verdicts) == SAMPLE and outcomes["verify"] > SAMPLE / 2, outcomes
