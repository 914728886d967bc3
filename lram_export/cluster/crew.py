"""A crew whose workers are actors of a Ray cluster.

Every node gets as many workers as it has room for. A worker stays with a group of tasks, for which it has opened what
they need, as long as there are any; then it takes the group that nobody works on, or helps with the largest. A worker
that dies is replaced while its node is there; its task is done again elsewhere, at most :data:`TRIES` times.
"""

from __future__ import annotations

import os
import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from lram_export.cluster.connection import LOCAL, Connection, connected
from lram_export.cluster.demand import Demand
from lram_export.cluster.nodes import NodeFacts, facts_here, objection, other_processor
from lram_export.cluster.parcels import FOLDER, pack, pieces
from lram_export.cluster.worker import Order, Worker, clear, look
from lram_export.describe import counted, human_bytes
from lram_export.errors import LramError, UsageError, describe
from lram_export.progress import SILENT, Advance, Progress
from lram_export.rollouts.workers import Job, Known, WorkerDied
from lram_export.system.cache import FOLDER_VARIABLE
from lram_export.version import __version__

Task = TypeVar("Task")
Result = TypeVar("Result")
TRIES = 3
"""How often a task is begun whose workers die, and a worker of a node that do not even start."""
SECONDS_TO_LOOK, SECONDS_TO_END, SECONDS_BETWEEN_LINES, SECONDS_TO_WATCH = 120.0, 5.0, 60.0, 1.0
_NOT_SENT = (FOLDER, FOLDER_VARIABLE)
"""Variables that name places of this machine."""
_GONE = {
    "ActorDiedError": "its process or the node ended",
    "ActorUnavailableError": "it or its node was not reached",
    "ActorUnschedulableError": "its node is gone",
    "ActorPlacementGroupRemoved": "its node is gone",
    "OutOfMemoryError": "the node was out of memory",
    "NodeDiedError": "the node ended",
}
"""Ray's errors, whose texts are pages -> in a few words."""
Tell = Callable[[str], None]


@dataclass
class Node:
    """A node, and the workers it has room for; ``barren`` of them in a row died before they did anything."""

    id: str
    address: str
    room: int
    done: int = 0
    barren: int = 0


@dataclass(eq=False)
class _Slot:
    """A worker on a node, what it does, and what it has opened."""

    node: Node
    actor: Any
    begun: bool = False
    number: int | None = None
    group: Hashable = None
    reference: Any = None


@dataclass
class CrewReport:
    """What became of the work: tasks done by node, how often a task was done again, where and why a worker was lost."""

    nodes: dict[str, int] = field(default_factory=dict)
    retried: int = 0
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line."""
        done = ", ".join(f"node {address} did {counted(count, 'task')}" for address, count in self.nodes.items())
        again = f"; {counted(self.retried, 'task')} done again: {'; '.join(self.lost)}" if self.lost else ""
        return (done or "nothing was left to do") + again

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"done": self.nodes, "tasks_done_again": self.retried, "workers_lost": self.lost}


@contextmanager
def crew_at(
    address: str, demand: Demand, progress: Progress = SILENT, tell: Tell = lambda line: None
) -> Iterator[RayCrew]:
    """The crew of a cluster (:func:`~lram_export.cluster.connection.connected`), whose workers ask for so much each."""
    with connected(address or LOCAL) as connection, RayCrew(connection, demand, progress, tell) as crew:
        yield crew


class RayCrew:
    """A :class:`~lram_export.rollouts.workers.Crew` on the nodes of a cluster.

    Args:
        connection: to the cluster.
        demand: what each worker asks for.
        progress: told about every task, of the whole and of each node.
        tell: given a line for people now and then.
    """

    def __init__(
        self, connection: Connection, demand: Demand, progress: Progress = SILENT, tell: Tell = lambda line: None
    ) -> None:
        self.report = CrewReport()
        self._connection, self._ray, self._variables = connection, connection.ray, connection.variables
        self._demand, self._progress, self._tell = demand, progress, tell
        self._sent: dict[str, list[Any]] = {}
        self._slots: list[_Slot] = []
        self._told: set[str] = set()

    def results(
        self, job: Job[Task, Result], tasks: Sequence[Task], known: Known = lambda number, result: None
    ) -> Generator[Result, None, None]:
        """Do all tasks; yields their results in the order of the tasks.

        Raises:
            UsageError: before anything is done: a node that cannot do this job, or has other versions.
            LramError: what a task raised where the job has nothing to stand for it; or no node is left.
        """
        if not tasks:
            return
        try:
            order = self._order(job)
            nodes = self._nodes()
            self._check(order, nodes)
            yield from _Run(self, order, nodes, tasks, known).results()
            ends = self._all([slot.actor.end.remote() for slot in self._slots], SECONDS_TO_END)
            for answer in ends:
                if isinstance(answer, tuple) and not answer[0]:
                    raise answer[1]
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End the workers at once."""
        for slot in () if self._connection.lost else self._slots:
            with suppress(Exception):
                self._ray.kill(slot.actor)
        self._slots = []

    def __enter__(self) -> RayCrew:
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers, and remove from the nodes what they were sent."""
        self.kill()
        if self._connection.lost:
            return
        with suppress(Exception):
            nodes = [node["NodeID"] for node in self._ray.nodes() if node["Alive"]]
            self._all([self._on(node, clear).remote() for node in nodes] if self._sent else [], SECONDS_TO_END)

    # what travels

    def _order(self, job: Job[Any, Any]) -> Order:
        parcels = {}
        for path, names in job.reads().items():
            parcel = pack(path, names)
            if parcel.digest not in self._sent:
                with self._progress.stage(f"sending {path.name}", parcel.size) as advance:
                    self._sent[parcel.digest] = list(self._put(pieces(path, parcel), advance))
            parcels[path] = parcel, self._sent[parcel.digest]
        own = {k: v for k, v in os.environ.items() if k.startswith("LRAM_") and k not in _NOT_SENT}
        return Order(job, parcels, {**own, **self._variables})

    def _put(self, content: Iterator[Any], advance: Advance) -> Iterator[Any]:
        for piece in content:
            yield self._ray.put(piece)
            advance(piece.nbytes)

    # the nodes

    def _nodes(self) -> list[Node]:
        """Those with room for a worker."""
        found, asked = [], self._demand
        alive = [node for node in self._ray.nodes() if node["Alive"]]
        for node in alive:
            has = node["Resources"]
            room = min(int(has.get("CPU", 0) // asked.cpus), int(has.get("memory", 0) // asked.memory))
            if room:
                found.append(Node(node["NodeID"], node["NodeManagerAddress"], room))
        if not found:
            has = [f"{n['NodeManagerAddress']} has {_offers(n['Resources'])}" for n in alive]
            raise UsageError(
                f"--ray: no node has room for a worker, which needs {counted(asked.cpus, 'CPU')} and "
                f"{human_bytes(asked.memory)}: {'; '.join(has)}"
            )
        return found

    def _check(self, order: Order, nodes: Sequence[Node]) -> None:
        """Raise UsageError, naming the node, unless all of them can do the job as this machine would."""
        here = facts_here(order.job.versions())
        probe, given = _probe(__version__), self._ray.put(order)
        asked = [self._on(node.id, probe).remote([given]) for node in nodes]
        reasons = []
        for node, answer in zip(nodes, self._all(asked, SECONDS_TO_LOOK), strict=True):
            if isinstance(answer, NodeFacts):
                reason, note = objection(here, answer), other_processor(here, answer)
                if reason is None and note is not None:
                    self._tell_once(f"note: node {node.address}: {note}")
            elif isinstance(answer, str):
                reason = answer
            else:
                reason = "does not answer" if answer is None else f"could not be asked: {_cause(answer)}"
            if reason is not None:
                reasons.append(f"node {node.address}: {reason}")
        if reasons:
            raise UsageError(f"--ray: {'; '.join(dict.fromkeys(reasons))}")

    def _tell_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._tell(line)

    def _on(self, node: str, function: Callable[..., Any], **options: Any) -> Any:
        """A function or class that runs on a node, and nowhere else."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        strategy = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        return self._ray.remote(num_cpus=0).__call__(function).options(scheduling_strategy=strategy, **options)

    def _worker(self, node: Node) -> _Slot:
        asked = {"num_cpus": self._demand.cpus, "memory": self._demand.memory, "max_restarts": 0}
        slot = _Slot(node, self._on(node.id, Worker, **asked).remote())
        self._slots.append(slot)
        return slot

    def _all(self, references: Sequence[Any], seconds: float) -> list[Any]:
        """Values in their order: an exception for what raised, None for what took too long.

        Not with `ray.get`, which makes nothing of a signal's exception.
        """
        arrived: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        for number, reference in enumerate(references):
            _when_known(reference, partial(_numbered, arrived, number))
        values: list[Any] = [None] * len(references)
        deadline = time.monotonic() + seconds
        with suppress(queue.Empty):
            for _ in references:
                number, value = arrived.get(timeout=max(0.0, deadline - time.monotonic()))
                values[number] = value
        return values


class _Run:
    """One job's tasks, until all are done."""

    def __init__(self, crew: RayCrew, order: Order, nodes: Sequence[Node], tasks: Sequence[Any], known: Known) -> None:
        self._crew, self._order, self._nodes, self._tasks, self._known = crew, order, nodes, tasks, known
        self._given = crew._ray.put(order)
        self._events: queue.SimpleQueue[tuple[_Slot, Any]] = queue.SimpleQueue()
        self._tries = [0] * len(tasks)
        self._waiting: dict[Hashable, deque[int]] = {}
        for number, task in enumerate(tasks):
            self._waiting.setdefault(order.job.group(task), deque()).append(number)
        self._answers: dict[int, tuple[bool, Any]] = {}
        self._spoken = time.monotonic()
        self._advance: list[Callable[[Node], None]] = []

    def results(self) -> Iterator[Any]:
        """See :meth:`RayCrew.results`."""
        with self._shown():
            self._staff()
            for number in range(len(self._tasks)):
                while number not in self._answers:
                    self._handle()
                done, answer = self._answers.pop(number)
                if not done:
                    raise answer
                yield answer

    def _staff(self) -> None:
        """As many workers on every node as it has room for, but no more than there are tasks."""
        crew, nodes = self._crew, {node.id: node for node in self._nodes}
        kept = [slot for slot in crew._slots if slot.node.id in nodes]
        for slot in crew._slots:
            if slot not in kept:
                crew._ray.kill(slot.actor)
        crew._slots = kept
        for slot in kept:
            slot.node, slot.begun, slot.number, slot.group = nodes[slot.node.id], False, None, None
        counts = {node.id: sum(slot.node is node for slot in kept) for node in self._nodes}
        while len(crew._slots) < len(self._tasks):
            free = [node for node in self._nodes if counts[node.id] < node.room]
            if not free:
                break
            node = max(free, key=lambda node: node.room - counts[node.id])
            counts[node.id] += 1
            crew._worker(node)
        for slot in crew._slots:
            self._send(slot, slot.actor.begin, self._given)

    def _send(self, slot: _Slot, method: Any, argument: Any) -> None:
        slot.reference = method.remote(argument)
        _when_known(slot.reference, lambda value: self._events.put((slot, value)))

    def _next(self) -> tuple[_Slot, Any] | None:
        """The next event; None where there was none for a while. Raises LramError: the cluster is lost."""
        deadline = time.monotonic() + SECONDS_BETWEEN_LINES
        while time.monotonic() < deadline:
            self._crew._connection.check()
            with suppress(queue.Empty):
                return self._events.get(timeout=SECONDS_TO_WATCH)
        return None

    def _handle(self) -> None:
        """What comes next: a worker that is ready, a result, a death."""
        event = self._next()
        if event is None:
            if not any(slot.begun for slot in self._crew._slots):
                asked = self._crew._demand
                self._crew._tell(
                    f"waiting for room on the cluster: a worker needs {counted(asked.cpus, 'CPU')} and "
                    f"{human_bytes(asked.memory)}"
                )
            return
        slot, value = event
        if slot not in self._crew._slots:
            return
        if not isinstance(value, tuple):
            self._died(slot, value)
        elif not slot.begun:
            done, error = value
            if not done:
                raise type(error)(f"node {slot.node.address}: {error}")
            slot.begun, slot.node.barren = True, 0
            self._give(slot)
        else:
            number, slot.number = slot.number, None
            assert number is not None
            self._answered(number, value, slot.node)
            self._give(slot)

    def _answered(self, number: int, answer: tuple[bool, Any], node: Node) -> None:
        done, found = answer
        if not done:
            try:
                found = self._order.job.lost(self._tasks[number], found)
            except LramError as error:  # what comes behind it is not wanted any more
                self._answers[number] = False, error
                for numbers in self._waiting.values():
                    for other in [other for other in numbers if other > number]:
                        numbers.remove(other)
                return
        self._answers[number] = True, found
        self._known(number, found)
        node.done += 1
        report = self._crew.report
        report.nodes[node.address] = report.nodes.get(node.address, 0) + 1
        for advance in self._advance:
            advance(node)

    def _give(self, slot: _Slot) -> None:
        """The next task of the worker's group; else of one that nobody works on, or of the largest."""
        for group in [group for group, numbers in self._waiting.items() if not numbers]:
            del self._waiting[group]
        if not self._waiting:
            return
        if slot.group not in self._waiting or (slot.number is None and not self._waiting.get(slot.group)):
            taken = {other.group for other in self._crew._slots if other.number is not None}
            slot.group = max(self._waiting, key=lambda group: (group not in taken, len(self._waiting[group])))
        slot.number = self._waiting[slot.group].popleft()
        self._send(slot, slot.actor.do, self._tasks[slot.number])

    def _died(self, slot: _Slot, error: BaseException) -> None:
        """Have its task done again, and another worker in its place while the node is there."""
        crew, node, why = self._crew, slot.node, _cause(error)
        crew._slots.remove(slot)
        with suppress(Exception):
            crew._ray.kill(slot.actor)
        node.barren += not slot.begun
        number = slot.number
        if number is not None:
            crew.report.lost.append(f"node {node.address}: {why}")
            self._tries[number] += 1
            if self._tries[number] >= TRIES:
                died = WorkerDied(f"its worker died {TRIES} times, last on node {node.address} ({why})")
                self._answered(number, (False, died), node)
            else:
                crew.report.retried += 1
                self._waiting.setdefault(slot.group, deque()).appendleft(number)
        alive = {found["NodeID"] for found in crew._ray.nodes() if found["Alive"]}
        if node.id in alive and node.barren < TRIES:
            fresh = crew._worker(node)
            self._send(fresh, fresh.actor.begin, self._given)
        elif crew._slots and not any(other.node is node for other in crew._slots):
            crew._tell(f"note: node {node.address} is gone ({why}); the others go on")
        if not crew._slots:
            raise LramError(f"--ray: no worker is left: node {node.address}: {why}")
        for other in crew._slots:  # one that had nothing left to do
            if other.begun and other.number is None:
                self._give(other)

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """How far the whole is, and each node."""
        crew = self._crew
        with ExitStack() as stages:
            count = counted(len(self._nodes), "node")
            whole = stages.enter_context(crew._progress.stage(f"all, on {count}", len(self._tasks)))
            own = {n.id: stages.enter_context(crew._progress.stage(f"node {n.address}")) for n in self._nodes}

            def advance(node: Node) -> None:
                whole(1)
                own[node.id](1)
                now = time.monotonic()
                if now - self._spoken >= SECONDS_BETWEEN_LINES:
                    self._spoken = now
                    done = ", ".join(f"node {n.address}: {n.done}" for n in self._nodes)
                    crew._tell(f"{sum(n.done for n in self._nodes)} of {len(self._tasks)} done; {done}")

            self._advance.append(advance)
            try:
                yield
            finally:
                self._advance.clear()


def _probe(version: str) -> Callable[[list[Any]], Any]:
    """What is asked of a node: :func:`look` where the package is the same, else a line that says what differs.

    A function within a function travels as it is; all others are imported there, where they may be missing.
    """

    def probe(given: list[Any]) -> Any:
        try:
            from lram_export.version import __version__ as found
        except ModuleNotFoundError:
            return f"lram-export is not installed there; {version} is here"
        if found != version:
            return f"lram-export is {found} there and {version} here; install the same"
        import ray

        from lram_export.cluster.worker import look

        return look(ray.get(given[0]))

    return probe


def _when_known(reference: Any, then: Callable[[Any], None]) -> None:
    """Call with the value of a reference, or the exception it raised, from Ray's thread."""
    future = reference.future()
    future.add_done_callback(lambda future: then(future.exception() or future.result()))


def _numbered(arrived: queue.SimpleQueue[tuple[int, Any]], number: int, value: Any) -> None:
    arrived.put((number, value))


def _cause(error: object) -> str:
    """A few words about what Ray says, without its traceback and its ids."""
    kind = type(error).__name__
    if kind in _GONE:
        return _GONE[kind]
    cause = getattr(error, "cause", None)
    return (
        describe(cause if isinstance(cause, BaseException) else error)[:200] if isinstance(error, BaseException) else ""
    )


def _offers(resources: dict[str, float]) -> str:
    return f"{counted(int(resources.get('CPU', 0)), 'CPU')} and {human_bytes(int(resources.get('memory', 0)))}"


__all__ = ["CrewReport", "RayCrew", "crew_at", "look"]
