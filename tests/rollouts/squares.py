"""A job for processes, which import nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lram_export.rollouts.workers import Job


@dataclass(frozen=True)
class Squares(Job[int, int]):
    """Squares numbers, the first ones last; 13 is an error, -1 ends the process, what is opened is written down."""

    journal: Path

    @contextmanager
    def ready(self) -> Iterator[Callable[[int], int]]:
        with self.journal.open("a") as file:
            file.write(f"open {os.getpid()}\n")
        yield self._square
        with self.journal.open("a") as file:
            file.write(f"close {os.getpid()}\n")

    def _square(self, number: int) -> int:
        time.sleep(0.2 / (1 + abs(number)))
        if number == 13:
            raise ZeroDivisionError("unlucky\nnumber")
        if number == -1:
            os._exit(7)
        return number * number
