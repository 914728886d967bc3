"""When rows are stepped: what robots want within a window is one step of the engine."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from lram_export.errors import BundleError, LramError, describe
from lram_export.serving.measures import Measures
from lram_export.serving.rows import Arrays, Outcome, Rows

LOG = logging.getLogger("lram_export.serving")
Result = TypeVar("Result")


class Wish(Protocol):
    """A step that somebody wants; the thread of the batcher asks it, and tells it."""

    row: int
    since: float
    """When it came, by :func:`time.perf_counter`."""

    def inputs(self) -> Arrays | None:
        """Of the step, which stay as they are until it is made; None: there is none to make."""

    def finish(self, outcome: Outcome) -> None:
        """What came of it."""


@dataclass(eq=False)
class _Awaited:
    """A step that a thread waits for."""

    row: int
    given: Arrays
    since: float = field(default_factory=time.perf_counter)
    outcome: Future[Arrays] = field(default_factory=Future)

    def inputs(self) -> Arrays:
        return self.given

    def finish(self, outcome: Outcome) -> None:
        if isinstance(outcome, Exception):
            self.outcome.set_exception(outcome)
        else:
            self.outcome.set_result(outcome)


class Batcher:
    """A thread that steps rows together, and does with them whatever else has to be done, one after the other.

    It takes what is waiting, at the latest ``window`` seconds after the first of it came, earlier when every seat that
    is taken (:attr:`taken`) waits. So it never holds more than one step of each row.
    """

    def __init__(self, rows: Rows, window: float = 0.0, measures: Measures | None = None) -> None:
        self.rows, self.window = rows, window if rows.together else 0.0
        self.measures = Measures() if measures is None else measures
        self.taken = 0
        """Seats that robots sit on, as the sessions say."""
        self._wishes: list[Wish] = []
        self._errands: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._changed, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="lram-export steps", daemon=True)
        self._thread.start()

    def step(self, row: int, inputs: Arrays) -> Arrays:
        """One step of a row: its outputs. Blocks until it is made; ``inputs`` must stay as they are until then.

        Raises:
            ValueError, LramError: as :meth:`lram_export.runtimes.protocol.Runtime.step`.
        """
        wish = _Awaited(row, inputs)
        self.want(wish)
        return wish.outcome.result()

    def want(self, wish: Wish) -> None:
        """Have a step made, of which the wish is told."""
        with self._changed:
            self._check()
            self._wishes.append(wish)
            self._changed.notify()

    def do(self, errand: Callable[[], Result]) -> Result:
        """Do something with the rows between two steps: what it returns; raises what it raises."""
        if threading.current_thread() is self._thread:
            return errand()
        done: Future[Result] = Future()
        with self._changed:
            self._check()
            self._errands.append((errand, done))
            self._changed.notify()
        return done.result()

    def close(self) -> None:
        """Finish what is waiting, and end; the rows stay open. Safe to call twice."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _check(self) -> None:
        if self._closing:
            raise LramError("the server is being stopped")

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._wishes or self._errands or self._closing):
                    self._changed.wait()
                errands, self._errands = self._errands, []
                wishes = [] if errands else self._collected()
                if self._closing and not errands and not wishes:
                    return
            for errand, done in errands:
                _settle(done, errand)
            try:
                self._step(wishes)
            except Exception:  # a defect, of which one robot hears nothing; without this thread none would
                LOG.exception("a step of seats %s", [wish.row for wish in wishes])

    def _collected(self) -> list[Wish]:
        """What is stepped next, when its time has come; nothing where an errand came first."""
        while self._wishes and not self._closing:
            left = self._wishes[0].since + self.window - time.perf_counter()
            if left <= 0 or len(self._wishes) >= self.taken:
                break
            self._changed.wait(left)
            if self._errands:
                return []
        most = len(self._wishes) if self.rows.together else 1  # else the first would wait for the last
        wishes, self._wishes = self._wishes[:most], self._wishes[most:]
        return wishes

    def _step(self, wishes: list[Wish]) -> None:
        steps = [(wish, inputs) for wish in wishes if (inputs := wish.inputs()) is not None]
        if steps:
            began = time.perf_counter()
            outcomes = self._outcomes([wish.row for wish, _ in steps], [inputs for _, inputs in steps])
            self.measures.batches[len(steps)] += 1
            self.measures.computed.append(time.perf_counter() - began)
            for (wish, _), outcome in zip(steps, outcomes, strict=True):
                self.measures.waited.append(began - wish.since)
                wish.finish(outcome)
        if steps and not self._wishes:
            self.rows.settle()

    def _outcomes(self, rows: list[int], inputs: list[Arrays]) -> list[Outcome]:
        try:
            return self.rows.step(rows, inputs)
        except Exception as error:  # rows tell their errors one by one: this is a defect, and no robot may hang
            failed = BundleError(f"the step failed: {describe(error)}")
            return [failed for _ in rows]


def _settle(done: Future[Any], errand: Callable[[], Any]) -> None:
    try:
        done.set_result(errand())
    except Exception as error:
        done.set_exception(error)
