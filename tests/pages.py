"""Blocks of a page of the documentation, and running them (`tests/test_docs.py`). Imports nothing that takes long."""

from __future__ import annotations

import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Block:
    """One fenced block: language, the rest of the fence's line, the line its code begins at, the code."""

    language: str
    argument: str
    line: int
    code: str


def read_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    blocks: list[Block] = []
    fence, start, lines = None, 0, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("```"):
            lines.append(line)
        elif fence is None:
            fence, start, lines = line[3:].strip(), number + 1, []
        else:
            language, _, argument = fence.partition(" ")
            blocks.append(Block(language, argument, start, "\n".join(lines) + "\n"))
            fence = None
    assert fence is None, f"{page}:{start - 1}: this block does not end"
    return blocks


def run_page(page: Path) -> None:
    """Execute a page's blocks in the current folder; ends the process with 1 at the first that fails."""
    namespace: dict[str, Any] = {"__name__": "__page__"}
    sys.path.insert(0, "")
    for block in read_blocks(page):
        # empty lines in front: bash and Python then report the page's own line numbers
        before = "\n" * (block.line - 2)
        if block.language == "sh":
            script = f"trap 'echo \"{page}:$LINENO: exit code $?\" >&2' ERR{before}\n{block.code}"
            if subprocess.run(["bash", "-eu", "-o", "pipefail", "-c", script], check=False).returncode != 0:
                sys.exit(1)
        elif block.language == "python" and block.argument.startswith("file="):
            Path(block.argument.removeprefix("file=")).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            try:
                exec(compile(f"{before}\n{block.code}", str(page), "exec"), namespace)
            except Exception:
                traceback.print_exc()
                sys.exit(1)


if __name__ == "__main__":
    run_page(Path(sys.argv[1]).resolve())
