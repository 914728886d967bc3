"""Jobs for workers, which import nothing else."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lram_export.errors import LramError
from lram_export.rollouts.workers import Job


@dataclass(frozen=True)
class Words(Job[int, str]):
    """Says a word of a file, its number, and of the process that read it.

    -1 is an error; -2 kills its process whenever it is tried, -3 the first time; -4 takes a second.
    """

    file: Path
    folder: Path
    made_with: str = "1"
    why_unfit: str | None = None
    stands_in: bool = False

    @contextmanager
    def ready(self) -> Iterator[Callable[[int], str]]:
        words = self.file.read_text().split()
        with (self.folder / "opened").open("a") as opened:
            opened.write(f"{os.getpid()} {self.file}\n")

        def say(number: int) -> str:
            if number == -1:
                raise LramError(f"{self.file}: says nothing")
            if number == -2 or (number == -3 and not (self.folder / "died").exists()):
                (self.folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if number == -4:
                time.sleep(1)
            return f"{words[number % len(words)]} {os.environ.get('LRAM_TEST_WORD', '')}".strip()

        yield say
        with (self.folder / "closed").open("a") as closed:
            closed.write(f"{os.getpid()}\n")

    def group(self, task: int) -> int:
        return task // 100

    def reads(self) -> Mapping[Path, Sequence[str]]:
        return {self.file: ()}

    def moved(self, places: Mapping[Path, Path]) -> Words:
        return replace(self, file=places[self.file])

    def versions(self) -> dict[str, str]:
        return {"words": os.environ.get("LRAM_CLUSTER_TEST_VERSION", self.made_with)}

    def unfit(self) -> str | None:
        return self.why_unfit

    def lost(self, task: int, error: LramError) -> str:
        if self.stands_in:
            return f"lost: {error}"
        raise error
