"""The original way to act, as a baseline for benchmarks: the backbone's own step, eager PyTorch.

The state stays in the original's own form between steps, as in the original code, so that nothing of ours is
in the time. Only a step that starts an episode goes the way of the reference runtime.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lram_export.runtimes.protocol import State, StepOutput
from lram_export.runtimes.pytorch import PytorchRuntime

TRIAL_SECONDS = 2.0


def better_threads(step: Callable[[], float], candidates: Iterable[int]) -> int:
    """The number of threads with which a step (which returns its seconds) is shortest, tried in turns; torch is left
    with it. A baseline that threads slow down would flatter what is compared with it."""
    seconds: dict[int, list[float]] = {threads: [] for threads in sorted(candidates)}
    start = time.perf_counter()
    while min(map(len, seconds.values())) < 2 or time.perf_counter() - start < TRIAL_SECONDS:
        for threads, found in seconds.items():
            torch.set_num_threads(threads)
            step()  # starts the threads
            found.append(step())
    best = min(seconds, key=lambda threads: float(np.median(seconds[threads])))
    torch.set_num_threads(best)
    return best


class OriginalRuntime(PytorchRuntime):
    """The reference runtime without what it adds to the original code's steps."""

    _nested: Any = None

    def step(self, *inputs: NDArray[np.generic]) -> StepOutput:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        if inputs[-1].any():
            self._flush()
            return super().step(*inputs)
        self._inputs.fill(*inputs)
        model, layout = self._model, self._config.tokens
        backbone = model.backbone
        nested = backbone.nest(self._state) if self._nested is None else self._nested
        with torch.no_grad():
            named = self._tensors()
            read, nested = backbone.step(model.embed(named), named["is_first"] > 0, layout, nested)
            output = self._decide(model.action_net(read))
        self._nested = nested
        return output

    def state(self) -> State:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        self._flush()
        return super().state()

    def load_state(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        super().load_state(state)
        self._nested = None

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        self._flush()
        super().reset(rows)

    def _flush(self) -> None:
        if self._nested is not None:
            self._state, self._nested = self._model.backbone.flatten(self._nested), None
