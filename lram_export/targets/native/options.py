"""How the target `native` uses the machine: environment variables, since the machine is no business of the control
loop's code. They are the fields of `lram_options` in `lram.h`. Free of torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from lram_export.errors import UsageError
from lram_export.spec.parity import STATE_FORMATS

IN_HUGE_PAGES = ("0", "state", "all")
STATE_FORMAT = "LRAM_NATIVE_STATE_FORMAT"
CPUS = "LRAM_NATIVE_CPUS"
SPIN_MICROSECONDS = "LRAM_NATIVE_SPIN_MICROSECONDS"
LOCK_MEMORY = "LRAM_NATIVE_LOCK_MEMORY"
HUGE_PAGES = "LRAM_NATIVE_HUGE_PAGES"
VARIABLES = (STATE_FORMAT, CPUS, SPIN_MICROSECONDS, LOCK_MEMORY, HUGE_PAGES)


@dataclass(frozen=True)
class NativeOptions:
    """What `lram_open` is told.

    Attributes:
        state_format: how the large state matrices are kept: one of
            :data:`~lram_export.spec.parity.STATE_FORMATS`; "": as the artifact says.
        cpus: where the threads after the caller's are pinned, in turn; empty: they are not.
        spin_microseconds: how long a thread waits for work before it sleeps.
        lock_memory: keep weights and states in memory.
        huge_pages: what is asked to lie in huge pages: one of :data:`IN_HUGE_PAGES`.
    """

    state_format: str = ""
    cpus: tuple[int, ...] = ()
    spin_microseconds: int = 200
    lock_memory: bool = False
    huge_pages: str = "state"

    @staticmethod
    def from_environment(environment: Mapping[str, str] | None = None, spin: bool = True) -> NativeOptions:
        """Read the variables (empty is as good as unset); raises UsageError naming the one that is wrong.

        ``spin``: False: threads sleep at once after a step, unless a variable says how long they wait.
        """
        given = os.environ if environment is None else environment
        for name in given:
            if name.startswith("LRAM_NATIVE_") and name not in VARIABLES:
                raise UsageError(f"{name}: unknown; the target `native` knows: {', '.join(VARIABLES)}")
        default = NativeOptions() if spin else NativeOptions(spin_microseconds=0)
        state_format = given.get(STATE_FORMAT) or default.state_format
        if state_format and state_format not in STATE_FORMATS:
            raise UsageError(f"{STATE_FORMAT}: expected {' or '.join(STATE_FORMATS)}, got '{state_format}'")
        wait = given.get(SPIN_MICROSECONDS) or str(default.spin_microseconds)
        if not re.fullmatch(r"[0-9]{1,7}", wait) or int(wait) > 1_000_000:
            raise UsageError(f"{SPIN_MICROSECONDS}: expected a number from 0 to 1000000, got '{wait}'")
        lock = given.get(LOCK_MEMORY) or "0"
        if lock not in ("0", "1"):
            raise UsageError(f"{LOCK_MEMORY}: expected 0 or 1, got '{lock}'")
        huge = given.get(HUGE_PAGES) or default.huge_pages
        if huge not in IN_HUGE_PAGES:
            raise UsageError(
                f"{HUGE_PAGES}: expected {', '.join(IN_HUGE_PAGES[:-1])} or {IN_HUGE_PAGES[-1]}, got '{huge}'"
            )
        return NativeOptions(state_format, _cpus(given.get(CPUS) or ""), int(wait), lock == "1", huge)


def _cpus(text: str) -> tuple[int, ...]:
    """Numbers and ranges, as in `taskset --cpu-list`: `2,4-6`."""
    cpus: list[int] = []
    for part in text.split(",") if text else []:
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        first, last = (0, -1) if match is None else (int(match[1]), int(match[2] or match[1]))
        if last < first:
            raise UsageError(f"{CPUS}: expected numbers of CPUs such as 2,3 or 2-3, got '{text}'")
        cpus += range(first, last + 1)
    return tuple(cpus)
