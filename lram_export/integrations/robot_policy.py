"""A bundle as programs for robots call a policy: the robot's state and frames in, an action out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lram_export.camera import prepare
from lram_export.integrations.robot_fields import RobotFields, robot_fields
from lram_export.policy import load_policy

BUNDLE_FOLDER = "bundle.lram"
"""The bundle in a folder that such a program reads."""
Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


class RobotPolicy:
    """One or more robots at a time; the state is kept here.

    Attributes:
        fields: what goes in and comes out.
        rows: robots.
        target: which target of the bundle runs.
    """

    def __init__(
        self,
        bundle: str | Path,
        program: str,
        target: str | None = None,
        threads: int | None = None,
        rows: int = 1,
    ) -> None:
        """Load a bundle, see :func:`~lram_export.policy.load_policy`.

        Args:
            bundle: its folder.
            program: who runs it, for errors.
            target: default: the bundle's first whose runtime is installed.
            threads: of the runtime; default: by the size of the model.
            rows: robots to act for.

        Raises:
            UsageError: the program cannot run this policy, or as ``load_policy``.
            BundleError: the bundle is damaged.
        """
        self._policy = load_policy(bundle, target, threads=threads, batch=rows)
        try:
            policy = self._policy
            self.fields: RobotFields = robot_fields(policy.spec, policy.task, policy.interface, bundle, program)
        except BaseException:
            self._policy.close()
            raise
        self.rows = rows
        self.target = "" if policy.origin is None else policy.origin.target

    def prepared(self, name: str, frames: Pixels, layout: str | None = None) -> Pixels:
        """Frames of a camera as the policy takes them, (rows, ...); see :func:`lram_export.camera.prepare`.

        Raises:
            ValueError: naming the image, what was expected and what came.
        """
        image = self.fields.images[name]
        try:
            found = prepare(frames, image, layout=layout)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if found.size != self.rows * math.prod(image.shape):
            raise ValueError(f"{name}: expected a frame for each of {self.rows} rows, got {len(found)}")
        return found.reshape(self.rows, *image.shape)

    def step(self, state: ArrayLike | None, images: Mapping[str, Pixels], *, first: bool) -> Floats:
        """One step.

        Args:
            state: (rows, n), or (n,) for one row: the robot's state; None for a policy that sees images alone.
            images: by name, as :meth:`prepared` gives them.
            first: whether an episode starts, in all rows.

        Returns:
            (rows, n): what to do, a new array.

        Raises:
            ValueError: naming what is wrong; nothing has changed then.
            StepError: as :meth:`~lram_export.policy.Policy.act`.
        """
        observed: dict[str, Any] = {**self._parts(state), **images}
        found = self._policy.step(observed, first=first)[self.fields.action.name]
        return np.asarray(found, np.float32).reshape(self.rows, -1)

    def close(self) -> None:
        """Free what the runtime holds."""
        self._policy.close()

    def _parts(self, state: ArrayLike | None) -> dict[str, NDArray[Any]]:
        """The observations of which the state is made."""
        size = self.fields.state_size
        if not size:
            return {}
        whole = np.asarray(state)
        if whole.shape != (self.rows, size) and (self.rows, whole.shape) != (1, (size,)):
            raise ValueError(f"state: expected shape ({self.rows}, {size}), got {whole.shape}")
        whole = whole.reshape(self.rows, size)
        ends = np.cumsum([math.prod(tensor.shape[1:]) for tensor in self.fields.state])[:-1]
        return {
            tensor.name: part.reshape(self.rows, *tensor.shape[1:])
            for tensor, part in zip(self.fields.state, np.split(whole, ends, axis=1), strict=True)
        }
