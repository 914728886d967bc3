"""Gradients of one batch from several processes: each computes some of its parts, with one thread.

The step-by-step sLSTM leaves two threads of one process little to share; two processes share a batch well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch
from torch import Tensor, multiprocessing
from torch.nn import Module, Parameter

from lram_export.system.processes import end_with_parent, interrupts_held

BuildModel = Callable[[], Module]
LossOfPart = Callable[[Module, int, int], Tensor]
"""(model, number of the batch, number of the part) -> mean loss of the part, ready for `backward()`."""


class Gradients:
    """Mean gradient over the equally large parts of a batch.

    Parts are added in their order whoever computed them, so the result does not depend on the number of
    processes. A context manager: leaving it ends the processes.

    Args:
        model: its parameters move to memory that the processes share; change them in place only.
        build: makes a model of the same shape; picklable, as models need not be.
        part_loss: a function at the top of a module, or a picklable object.
        parts: into how many parts a batch is cut.
        processes: this one included; at most one per part is used.
    """

    def __init__(self, model: Module, build: BuildModel, part_loss: LossOfPart, parts: int, processes: int) -> None:
        self._model, self._part_loss, self._parts = model, part_loss, parts
        self._workers: list[tuple[Connection, BaseProcess, list[list[Tensor]]]] = []
        count = min(processes, parts)
        self._shares = [range(worker, parts, count) for worker in range(count)]
        if count > 1:
            model.share_memory()
            spawn = multiprocessing.get_context("spawn")  # a fork would inherit locks of torch's threads
            for share in self._shares[1:]:
                found = [[torch.zeros_like(p).share_memory_() for p in model.parameters()] for _ in share]
                ours, theirs = spawn.Pipe()
                arguments = (theirs, build, list(model.parameters()), part_loss, share, found)
                process = spawn.Process(target=_work, args=arguments, daemon=True)
                with interrupts_held():
                    process.start()
                theirs.close()
                self._workers.append((ours, process, found))

    def __enter__(self) -> Gradients:
        return self

    def __exit__(self, *_: object) -> None:
        for connection, process, _ in self._workers:
            connection.close()
            process.join(timeout=10)
            process.kill()

    def compute(self, batch: int) -> float:
        """Put the gradient of a batch into the parameters' ``grad``; returns the batch's mean loss."""
        for connection, *_ in self._workers:
            connection.send(batch)
        found: dict[int, list[Tensor]] = {}
        losses: dict[int, float] = {}
        for part in self._shares[0]:
            losses[part], found[part] = _gradient(self._model, self._part_loss, batch, part)
        for (connection, _, theirs), share in zip(self._workers, self._shares[1:], strict=True):
            losses |= zip(share, connection.recv(), strict=True)
            found |= zip(share, theirs, strict=True)
        for i, parameter in enumerate(self._model.parameters()):
            parameter.grad = torch.stack([found[part][i] for part in range(self._parts)]).mean(0)
        return sum(losses[part] for part in range(self._parts)) / self._parts


def _gradient(model: Module, part_loss: LossOfPart, batch: int, part: int) -> tuple[float, list[Tensor]]:
    loss = part_loss(model, batch, part)
    return loss.item(), list(torch.autograd.grad(loss, list(model.parameters())))


def _work(
    connection: Connection,
    build: BuildModel,
    parameters: list[Parameter],
    part_loss: LossOfPart,
    share: Iterable[int],
    found: list[list[Tensor]],
) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    model = build()
    for parameter, shared in zip(model.parameters(), parameters, strict=True):
        parameter.data = shared.data
    while True:
        try:
            batch = connection.recv()
        except EOFError:
            return
        losses = []
        for part, kept in zip(share, found, strict=True):
            loss, gradients = _gradient(model, part_loss, batch, part)
            for shared, gradient in zip(kept, gradients, strict=True):
                shared.copy_(gradient)
            losses.append(loss)
        connection.send(losses)
