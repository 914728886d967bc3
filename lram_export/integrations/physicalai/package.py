"""The policy of a package by the names that physicalai sends. Needs no physicalai."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lram_export.integrations.robot_fields import RobotFields
from lram_export.integrations.robot_policy import RobotPolicy

PROGRAM = "physicalai"
STATE, IMAGES, ACTION = "state", "images", "action"


def image_keys(fields: RobotFields) -> dict[str, str]:
    """What physicalai calls an image -> its name: of one image ``images``, of several ``images.NAME``."""
    names = list(fields.images)
    return {IMAGES: names[0]} if len(names) == 1 else {f"{IMAGES}.{name}": name for name in names}


def inputs_of(fields: RobotFields) -> list[str]:
    """What has to be sent."""
    return [*([STATE] if fields.state else []), *image_keys(fields)]


class PackagePolicy:
    """One robot.

    Attributes:
        policy: the bundle that acts.
        inputs: names of what it takes.
    """

    def __init__(self, bundle: str | Path, target: str | None = None, threads: int | None = None) -> None:
        """Load the bundle of a package, see :class:`~lram_export.integrations.robot_policy.RobotPolicy`."""
        self.policy = RobotPolicy(bundle, PROGRAM, target, threads)
        self.inputs = inputs_of(self.policy.fields)
        self._images = image_keys(self.policy.fields)

    def step(self, inputs: Mapping[str, Any], *, first: bool) -> dict[str, NDArray[np.float32]]:
        """One step: ``state`` (1, n) and frames (1, H, W, 3) or (1, H, W) of uint8 in, ``action`` (1, n) out.

        Args:
            inputs: by the names of :attr:`inputs`.
            first: whether an episode starts.

        Raises:
            ValueError: naming what is wrong; nothing has changed then.
            StepError: as :meth:`~lram_export.policy.Policy.act`.
        """
        images = {name: self.policy.prepared(name, np.asarray(inputs[key])) for key, name in self._images.items()}
        return {ACTION: self.policy.step(inputs.get(STATE), images, first=first)}
