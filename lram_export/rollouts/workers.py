"""The same work in several processes: whoever is free takes the next task, results come in the order of the tasks.

Processes are started with `spawn`, never forked: the threads of a runtime that was loaded before would not be there.
"""

from __future__ import annotations

import multiprocessing
import signal
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from typing import Any, Generic, TypeVar, cast

from lram_export.errors import LramError, UsageError, describe
from lram_export.system.processes import end_with_parent, interrupts_held

Task = TypeVar("Task")
Result = TypeVar("Result")
SECONDS_TO_END = 5
"""What a process gets to close what it has opened, before it is killed."""


class Job(ABC, Generic[Task, Result]):
    """What a process makes ready once and then does tasks with. Job, tasks and results travel between processes."""

    @abstractmethod
    def ready(self) -> AbstractContextManager[Callable[[Task], Result]]:
        """Open what the tasks need; gives the function that does one."""


class WorkerDied(LramError):
    """A process ended in the middle of a task; says how."""


class Workers:
    """Up to ``count`` processes, which are started when there is something to do and stay for the next job.

    A context manager: leaving it ends them; they also end with this process, however it ends. An interrupt is this
    process's to handle.

    Raises:
        UsageError: fewer than one.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise UsageError(f"--parallel: expected 1 process or more, got {count}")
        self._count = count
        self._running: list[_Worker] = []

    def results(self, job: Job[Task, Result], tasks: Sequence[Task]) -> Generator[Result, None, None]:
        """Do all tasks; yields their results in the order of the tasks, as soon as it is known.

        What goes wrong is raised where the result would have come, so that it does not depend on who was faster: all
        earlier results have been yielded then. Whoever does not take all results ends the processes.

        Raises:
            LramError: what a task raised, foreign errors in words; WorkerDied for a process that ended.
        """
        try:
            self._start(min(self._count, len(tasks)))
            yield from _ordered(self._running, job, tasks)
            for worker in self._running:
                worker.finish()
        except BaseException:
            self.kill()
            raise

    def _start(self, count: int) -> None:
        fresh = [_Worker() for _ in range(count - len(self._running))]
        self._running += fresh  # before they run: whatever comes in between, they are ended
        for worker in fresh:
            worker.start()
        for worker in fresh:
            worker.await_start()

    def kill(self) -> None:
        """End the processes at once; what they were doing is of no interest any more."""
        for worker in self._running:
            worker.end(at_once=True)
        self._running = []

    def close(self) -> None:
        """End the processes."""
        for worker in self._running:
            worker.end(at_once=False)
        self._running = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()


def share(threads: int, processes: int) -> int:
    """Threads for each of several processes, of those that one alone would take; at least one."""
    return max(1, threads // processes)


def _ordered(workers: Sequence[_Worker], job: Job[Task, Result], tasks: Sequence[Task]) -> Iterator[Result]:
    waiting = deque(enumerate(tasks))
    busy: dict[Connection, tuple[_Worker, int]] = {}
    answers: dict[int, Result | LramError] = {}

    def give(worker: _Worker) -> None:
        if waiting:
            number, task = waiting.popleft()
            worker.send((job, task))
            busy[worker.connection] = worker, number

    for worker in workers:
        give(worker)
    for number in range(len(tasks)):
        while number not in answers:
            for connection in wait(list(busy)):
                worker, answered = busy.pop(cast("Connection", connection))
                try:
                    answers[answered] = worker.answer()
                except LramError as error:
                    answers[answered] = error
                    waiting.clear()  # what comes before it is being done already
                give(worker)
        answer = answers.pop(number)
        if isinstance(answer, LramError):
            raise answer
        yield answer


class _Worker:
    """The parent's side of a process."""

    def __init__(self) -> None:
        context: SpawnContext = multiprocessing.get_context("spawn")
        self.connection, self._theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._theirs,))

    def start(self) -> None:
        with interrupts_held():
            self._process.start()
        self._theirs.close()

    def await_start(self) -> None:
        """Wait until the process is there; raises UsageError if it cannot be."""
        try:
            self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise UsageError(
                f"--parallel: a process could not be started ({self._end()}). In a script of your own, everything that "
                f"is to happen once belongs below: if __name__ == '__main__':"
            ) from None

    def send(self, message: object) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died: the answer will tell
            self.connection.send(message)

    def answer(self) -> Any:
        try:
            done, answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise WorkerDied(f"its process died ({self._end()})") from None
        if not done:
            raise answer
        return answer

    def finish(self) -> None:
        """Close what the job had opened."""
        self.send(None)
        self.answer()

    def end(self, *, at_once: bool) -> None:
        self.connection.close()  # ends the process's loop
        if self._process.pid is None:
            return
        if not at_once:
            self._process.join(SECONDS_TO_END)
        self._process.kill()
        self._process.join()

    def _end(self) -> str:
        self._process.join(SECONDS_TO_END)
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}"
        return signal.Signals(-code).name + ("; out of memory?" if -code == signal.SIGKILL else "")


def _serve(connection: Connection) -> None:
    """The process's side: say that it is there, then answer ``(job, task)``, and None with nothing left open."""
    end_with_parent()
    with ExitStack() as opened, suppress(EOFError, BrokenPipeError, ConnectionResetError):  # nobody is there any more
        connection.send(None)
        do: Callable[[Any], Any] | None = None
        while True:
            message = connection.recv()
            try:
                if message is None:
                    do = None
                    opened.close()
                    answer: tuple[bool, Any] = True, None
                else:
                    job, task = message
                    do = do or opened.enter_context(job.ready())
                    answer = True, do(task)
            except LramError as error:
                answer = False, error
            except Exception as error:  # anything else must reach the user, not a child's standard error
                answer = False, LramError(describe(error))
            connection.send(answer)
