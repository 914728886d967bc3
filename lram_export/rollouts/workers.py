"""The same work in several processes: whoever is free takes the next task, results come in the order of the tasks.

A :class:`Job` says what is to be done, a :class:`Crew` does it: :class:`Workers`, processes of this machine, or a
cluster (:mod:`lram_export.cluster`). Processes are started with `spawn`, never forked: the threads of a runtime that
was loaded before would not be there.
"""

from __future__ import annotations

import multiprocessing
import signal
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

from lram_export.errors import LramError, UsageError, describe
from lram_export.system.processes import end_with_parent, interrupts_held

Task = TypeVar("Task")
Result = TypeVar("Result")
SECONDS_TO_END = 5
"""What a process gets to close what it has opened, before it is killed."""
Known = Callable[[int, Any], None]
"""Is told the number of a task and its result as soon as that is known, in whatever order."""


class Job(ABC, Generic[Task, Result]):
    """What a process makes ready once and then does tasks with. Job, tasks and results travel between processes.

    What follows :meth:`ready` is asked where the processes are on other machines.
    """

    @abstractmethod
    def ready(self) -> AbstractContextManager[Callable[[Task], Result]]:
        """Open what the tasks need; gives the function that does one."""

    def group(self, task: Task) -> Hashable:
        """Tasks of a group share what is opened for them, so that they had better be done by the same process."""
        return None

    def reads(self) -> Mapping[Path, Sequence[str]]:
        """Files and folders that the tasks read: a file with nothing, a folder with the names in it that are read."""
        return {}

    def moved(self, places: Mapping[Path, Path]) -> Job[Task, Result]:
        """The same job where what it :meth:`reads` lies in other places."""
        return self

    def versions(self) -> dict[str, str]:
        """Versions here, by name, of whatever a result depends on."""
        return {}

    def unfit(self) -> str | None:
        """Why this machine cannot do it, in one line; None if it can. The files are here."""
        return None

    def lost(self, task: Task, error: LramError) -> Result:
        """What stands for the result of a task that failed or whose processes died; raises the error where there is
        nothing."""
        raise error


class Crew(Protocol):
    """Whoever does the tasks of a job."""

    def results(
        self, job: Job[Task, Result], tasks: Sequence[Task], known: Known = lambda number, result: None
    ) -> Generator[Result, None, None]:
        """Do all tasks; yields their results in the order of the tasks."""


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

    def results(
        self, job: Job[Task, Result], tasks: Sequence[Task], known: Known = lambda number, result: None
    ) -> Generator[Result, None, None]:
        """Do all tasks; yields their results in the order of the tasks, as soon as it is known.

        What goes wrong is raised where the result would have come, so that it does not depend on who was faster: all
        earlier results have been yielded then. Whoever does not take all results ends the processes.

        Raises:
            LramError: what a task raised, foreign errors in words; WorkerDied for a process that ended.
        """
        try:
            self._start(min(self._count, len(tasks)))
            yield from _ordered(self._running, job, tasks, known)
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


def attempt(work: Callable[[], Result]) -> tuple[bool, Result | LramError]:
    """Whether work succeeded, and its result or what went wrong; foreign errors in words, for another process."""
    try:
        return True, work()
    except LramError as error:
        return False, error
    except Exception as error:  # anything else must reach the user, not a child's standard error
        return False, LramError(describe(error))


def _ordered(
    workers: Sequence[_Worker], job: Job[Task, Result], tasks: Sequence[Task], known: Known
) -> Iterator[Result]:
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
                    known(answered, answers[answered])
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
    do: Callable[[Any], Any] | None = None
    with ExitStack() as opened, suppress(EOFError, BrokenPipeError, ConnectionResetError):  # nobody is there any more

        def answer(message: tuple[Job[Any, Any], Any]) -> Any:
            nonlocal do
            job, task = message
            do = do or opened.enter_context(job.ready())
            return do(task)

        connection.send(None)
        while True:
            message = connection.recv()
            if message is None:
                do = None
                connection.send(attempt(opened.close))
            else:
                connection.send(attempt(partial(answer, message)))
