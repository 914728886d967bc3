"""A folder around a bundle, for programs that run it as it is: what plays the copy in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.bundle.bundle import Bundle
from lram_export.bundle.manifest import MANIFEST_FILE
from lram_export.conversion.formats import Arrays
from lram_export.integrations.robot_fields import RobotFields, robot_fields
from lram_export.integrations.robot_policy import BUNDLE_FOLDER, RobotPolicy

MARKER = f"{BUNDLE_FOLDER}/{MANIFEST_FILE}"
"""By this file such a folder is known."""


def fields_of(bundle: Bundle, program: str) -> RobotFields:
    """What the policy of a bundle takes and gives there; raises UsageError where that program cannot run it."""
    manifest = bundle.manifest
    return robot_fields(manifest.spec, manifest.task, manifest.interface, bundle.path, program)


class RobotPlayer:
    """One robot, by a copy of the bundle; see :class:`~lram_export.conversion.formats.Player`.

    The images of a replay are those that the policy was given, as no frame has to become one again.
    """

    states: tuple[str, ...] = ()
    exact = True

    def __init__(
        self, bundle: Path, program: str, inputs: Callable[[RobotFields], list[str]], outputs: tuple[str, ...]
    ) -> None:
        """Load the copy.

        Args:
            bundle: the copy.
            program: who will run it.
            inputs: what that program calls what the policy takes.
            outputs: what it calls what the policy gives.
        """
        self._policy = RobotPolicy(bundle, program)
        self._first = True
        self.target = self._policy.target
        self.inputs, self.outputs = tuple(inputs(self._policy.fields)), outputs

    def start(self, state: float | None = None) -> None:
        """See :class:`~lram_export.conversion.formats.Player`. The state is the policy's own; nobody sets it."""
        self._first = True

    def step(self, given: Arrays) -> dict[str, NDArray[Any]]:
        """See :class:`~lram_export.conversion.formats.Player`."""
        fields = self._policy.fields
        state = [given[tensor.name].reshape(1, -1) for tensor in fields.state]
        images = {name: given[name] for name in fields.images}
        found = self._policy.step(np.concatenate(state, 1) if state else None, images, first=self._first)
        self._first = False
        return {fields.action.name: found.reshape(fields.action.shape)}
