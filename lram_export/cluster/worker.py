"""The node's side: a process that does a job's tasks, and what a node is asked before."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.cluster.nodes import NodeFacts, facts_here
from lram_export.cluster.parcels import Held, Parcel, cache_folder, remove_unused, unpack
from lram_export.errors import LramError
from lram_export.rollouts.workers import Job, attempt


@dataclass(frozen=True)
class Order:
    """A job and what travels for it: by path on the machine that gives it, each parcel with references to its pieces
    in the object store; and the variables that the job heeds."""

    job: Job[Any, Any]
    parcels: Mapping[Path, tuple[Parcel, Sequence[Any]]]
    variables: Mapping[str, str]


class Worker:
    """Does tasks of one job after the other; every answer is whether it succeeded, and a result or an LramError."""

    def __init__(self) -> None:
        self._opened = ExitStack()
        self._do: Callable[[Any], Any] | None = None
        self._names: dict[str, str] = {}

    def begin(self, order: Order) -> tuple[bool, Any]:
        """Make a job ready, in place of the one before."""

        def ready() -> None:
            self._close()
            os.environ.update(order.variables)
            job, self._names = arrived(order, self._opened)
            self._do = self._opened.enter_context(job.ready())

        return self._told(attempt(ready))

    def do(self, task: Any) -> tuple[bool, Any]:
        """Do a task."""
        do = self._do
        assert do is not None
        return self._told(attempt(lambda: do(task)))

    def end(self) -> tuple[bool, Any]:
        """Close what the job has opened."""
        return self._told(attempt(self._close))

    def _close(self) -> None:
        opened, self._opened, self._do = self._opened, ExitStack(), None
        opened.close()

    def _told(self, answer: tuple[bool, Any]) -> tuple[bool, Any]:
        """An error names files as they are called where the job is from."""
        done, found = answer
        if not done:
            text = str(found)
            for there, here in self._names.items():
                text = text.replace(there, here)
            found = type(found)(text)
        return done, found


def arrived(order: Order, opened: ExitStack) -> tuple[Job[Any, Any], dict[str, str]]:
    """The job with its files as they lie here while ``opened`` is; and for every path here the one that it is from."""
    import ray

    places: dict[Path, Path] = {}
    for path, (parcel, references) in order.parcels.items():

        def fetch(number: int, references: Sequence[Any] = references) -> NDArray[np.uint8]:
            piece: NDArray[np.uint8] = ray.get(references[number])
            return piece

        held: Held = unpack(parcel, fetch, cache_folder())
        opened.callback(held.release)
        places[path] = held.path
    return order.job.moved(places), {str(there): str(here) for here, there in places.items()}


def look(order: Order) -> NodeFacts:
    """What this node says of itself, and of the job."""
    os.environ.update(order.variables)
    with ExitStack() as opened:
        try:
            job, names = arrived(order, opened)
            unfit = job.unfit()
            for there, here in names.items():
                unfit = unfit if unfit is None else unfit.replace(there, here)
        except LramError as error:
            unfit = str(error)
        return facts_here(order.job.versions(), unfit)


def clear() -> None:
    """Remove what nobody uses any more from this node."""
    remove_unused(cache_folder())
