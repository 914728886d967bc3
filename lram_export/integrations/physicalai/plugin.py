"""What physicalai loads: the adapter, which runs a bundle, and the runner, whose reset starts an episode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from physicalai.inference.adapters.base import RuntimeAdapter
from physicalai.inference.adapters.registry import adapter_registry
from physicalai.inference.runners.base import InferenceRunner

from lram_export.errors import UsageError
from lram_export.integrations.physicalai import BACKEND, EXTENSION
from lram_export.integrations.physicalai.package import ACTION, PackagePolicy

DEVICE = "cpu"
"""What physicalai calls the place of numpy arrays, which is where a step's inputs and outputs are for every target."""


@adapter_registry.register(BACKEND, extensions=(EXTENSION,))
class LramAdapter(RuntimeAdapter):  # type: ignore[misc]  # physicalai is not in every environment
    """Runs a bundle; it keeps the recurrent state, which :class:`LramRunner` resets."""

    def __init__(self, device: str = DEVICE, target: str | None = None, threads: int | None = None) -> None:
        """Say how to run it; `InferenceModel(..., target="native")` hands this on.

        Args:
            device: `cpu`; another place follows from the target.
            target: of the bundle; default: its first whose runtime is installed.
            threads: of the runtime; default: by the size of the model.

        Raises:
            UsageError: another device.
        """
        if str(device).lower() != DEVICE:
            raise UsageError(
                f"device: expected '{DEVICE}', got '{device}'; what a bundle runs on is its target: target="
            )
        super().__init__(device)
        self._target, self._threads = target, threads
        self._policy: PackagePolicy | None = None

    def load(self, model_path: Path) -> None:
        """Load a bundle; see :class:`~lram_export.integrations.robot_policy.RobotPolicy`."""
        self._policy = PackagePolicy(model_path, self._target, self._threads)

    def predict(self, inputs: dict[str, Any], *, first: bool = False) -> dict[str, NDArray[np.float32]]:
        """One step; ``first``: an episode starts."""
        if self._policy is None:
            raise RuntimeError("no bundle is loaded; call load() first")
        return self._policy.step(inputs, first=first)

    @property
    def input_names(self) -> list[str]:
        """What the policy takes."""
        return [] if self._policy is None else list(self._policy.inputs)

    @property
    def output_names(self) -> list[str]:
        """What it gives."""
        return [ACTION]


class LramRunner(InferenceRunner):  # type: ignore[misc]
    """One step for each observation. The first after :meth:`reset` starts an episode."""

    def __init__(self) -> None:
        self._first = True

    def run(self, adapter: RuntimeAdapter, inputs: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
        """Take a step; what is refused changes nothing."""
        if not isinstance(adapter, LramAdapter):
            raise TypeError(
                f"this runner runs bundles of lram-export: expected LramAdapter, got {type(adapter).__name__}"
            )
        found = adapter.predict(inputs, first=self._first)
        self._first = False
        return found

    def reset(self) -> None:
        """Start an episode with the next observation."""
        self._first = True
