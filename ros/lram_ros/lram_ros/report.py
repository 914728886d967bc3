"""What diagnostics say of a session, once a second."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lram_export.describe import counted, held_back
from lram_ros.session import Session

OK, WARN, ERROR = 0, 1, 2
"""Levels of a DiagnosticStatus."""
LATEST = 1000
"""Steps whose times are looked at."""


@dataclass(frozen=True)
class Row:
    """A status: its level, what it is in a few words, and what belongs to it."""

    level: int
    message: str
    values: tuple[tuple[str, str], ...] = ()


class Reporter:
    """Says how a session goes; what is new since the last row makes it a warning."""

    def __init__(self) -> None:
        self._faults = self._missed = 0

    def row(self, session: Session | None, state: str) -> Row:
        """``state`` is the node's."""
        if session is None:
            return Row(OK, state)
        account, policy = session.account, session.policy
        kinds = dict(account.faults)  # the loop adds to them meanwhile
        faults = sum(kinds.values())
        new_faults, new_missed = faults - self._faults, account.missed - self._missed
        self._faults, self._missed = faults, account.missed
        level, message = OK, state
        if session.failure:
            level, message = ERROR, session.failure
        elif new_faults > 0 or new_missed > 0:
            parts = [
                counted(count, what)
                for count, what in ((new_faults, "fault"), (new_missed, "missed deadline"))
                if count > 0
            ]
            level, message = WARN, f"{state}: {', '.join(parts)} since the last report"
        if session.swap_failure and level < ERROR:
            level, message = WARN, f"{message}; {session.swap_failure}"
        origin, options = policy.origin, session.options
        values = [
            ("bundle", session.bundle),
            ("target", "" if origin is None else origin.target),
            ("digest", "" if origin is None else origin.digest),
            ("rate", f"{options.rate:g} Hz"),
            ("commands", f"{options.rate * options.between.ticks:g} Hz, {options.between.between}"),
            ("steps", str(account.steps)),
            ("episodes", str(account.episodes)),
            ("missed deadlines", str(account.missed)),
            ("bridged steps", str(account.bridged)),
            ("stale actions", str(account.stale)),
            *((f"fault: {kind}", str(count)) for kind, count in sorted(kinds.items())),
        ]
        times = account.latest(LATEST)
        if times:
            p50, p99 = np.percentile(1000 * np.array(times), (50, 99))
            values += [
                (f"step p50, last {len(times)}", f"{p50:.2f} ms"),
                (f"step p99, last {len(times)}", f"{p99:.2f} ms"),
                ("step largest", f"{1000 * account.largest:.2f} ms"),
            ]
        values += [("held back", line) for line in held_back(policy.counts(), policy.interface)]
        return Row(level, message, tuple(values))
