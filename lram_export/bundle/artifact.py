"""What a runtime is given of a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lram_export.bundle.identity import Identity
from lram_export.errors import BundleError
from lram_export.spec.codes import QuantizedFile
from lram_export.spec.interface import Interface
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import InitialTensors, StepSpec


@dataclass(frozen=True)
class LoadedArtifact:
    """One target's folder in a bundle (hashes already checked), with what the manifest says about it.

    ``spec`` is the step of as many rows as are asked for, ``exported_batch`` how many the artifact was exported for.
    ``model`` is the architecture as the manifest's JSON values, ``task`` None for a module of one's own.
    ``digest`` tells the content of its files from that
    of any others; ``activations`` is the format to compute in, ``platforms`` what its files were compiled for,
    ``identity`` what they have to say about themselves, ``files`` the names of those that the manifest lists,
    ``initial`` the states that start as a tensor, ``interface`` what the policy says of its robot, ``state_format`` how
    the state was kept when it was verified, "" where it never was.
    ``quantized`` gives the bundle's quantized matrices to targets that do not hold them in files of their own.
    """

    directory: Path
    spec: StepSpec
    model: Mapping[str, Any]
    task: TaskSpec | None
    digest: str
    activations: str
    quantized: QuantizedFile | None = None
    platforms: tuple[str, ...] = ()
    identity: Identity = field(default_factory=Identity)
    files: frozenset[str] = frozenset()
    initial: InitialTensors = field(default_factory=dict)
    interface: Interface = field(default_factory=Interface)
    exported_batch: int = 0
    state_format: str = ""

    def __post_init__(self) -> None:
        """Where nobody says otherwise, as many rows as it was exported for."""
        if self.exported_batch == 0:
            object.__setattr__(self, "exported_batch", self.spec.batch_size)

    def as_exported(self) -> LoadedArtifact:
        """The same, of as many rows as it was exported for."""
        return dataclasses.replace(self, spec=self.spec.with_batch(self.exported_batch))

    @property
    def required_task(self) -> TaskSpec:
        """The task, for a target that has kernels for models of ours only; raises BundleError where there is none."""
        if self.task is None:
            raise BundleError(f"{self.directory}: this target runs no module of one's own; export the bundle again")
        return self.task

    def file(self, name: str) -> Path:
        """Where a file of the artifact is; raises BundleError unless the manifest lists it, and so vouches for it."""
        if name not in self.files:
            raise BundleError(f"{self.directory / name}: not listed in the manifest; export the bundle again")
        return self.directory / name
