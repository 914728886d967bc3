"""The original way to act, as a baseline for benchmarks: three calls of the `xlstm` package's step, eager PyTorch.

The state stays in the package's own form between steps, as in the original code, so that nothing of ours is
in the time. Only a step that starts an episode goes the way of the reference runtime.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lram_export.backbones.xlstm.reference import from_package, to_package
from lram_export.model.heads import decode_action, prune_logits
from lram_export.runtimes.protocol import State, StepOutput
from lram_export.runtimes.pytorch import PytorchRuntime
from lram_export.spec.tokens import TOKENS_PER_STEP

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

    _nested: dict[str, dict[str, Any]] | None = None

    def step(
        self,
        observation: NDArray[np.generic],
        return_to_go: NDArray[np.float32],
        reward: NDArray[np.float32],
        is_first: NDArray[np.float32],
    ) -> StepOutput:
        """See :class:`~lram_export.runtimes.protocol.Runtime`."""
        if is_first.any():
            self._flush()
            return super().step(observation, return_to_go, reward, is_first)
        self._inputs.fill(observation, return_to_go, reward, is_first)
        nested = to_package(self._config, self._state) if self._nested is None else self._nested
        with torch.no_grad():
            tensors = [torch.from_numpy(array) for array in self._inputs.arrays[:3]]
            tokens = self._model.embed(tensors[0], tensors[1], tensors[2])
            for position in range(TOKENS_PER_STEP):
                hidden, nested = self._model.stack.step(tokens[:, position : position + 1], nested)
            logits = prune_logits(self._model.action_net(hidden[:, 0]), self._config, self._task)
        self._nested = nested
        return StepOutput(decode_action(logits, self._config, self._task).numpy(), logits.numpy())

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
            self._state, self._nested = from_package(self._config, self._nested), None
