"""`verify --checkpoint` on a cluster: every target beside an oracle of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lram_export.bundle.bundle import Bundle
from lram_export.checkpoints import travelling
from lram_export.checkpoints.loading import CheckpointSource
from lram_export.episodes.steps import StepSequence
from lram_export.rollouts.workers import Job
from lram_export.runtimes import RUNTIMES, unavailable
from lram_export.verification.oracle import build_oracle
from lram_export.verification.verify import TargetMeters, target_meters


@dataclass(frozen=True)
class VerifyJob(Job[str, TargetMeters]):
    """:func:`~lram_export.verification.verify.target_meters` of one target, on another machine."""

    bundle: Path
    targets: tuple[str, ...]
    source: CheckpointSource
    other_checkpoint: bool
    inputs: StepSequence
    threads: int

    @contextmanager
    def ready(self) -> Iterator[Callable[[str], TargetMeters]]:
        """See :class:`~lram_export.rollouts.workers.Job`."""
        bundle = Bundle.open(self.bundle)
        oracle = build_oracle(bundle, self.source.load(), other_checkpoint=self.other_checkpoint)
        yield lambda target: target_meters(bundle, oracle, [target], self.inputs, self.threads)

    def reads(self) -> dict[Path, tuple[str, ...]]:
        """What the targets are run from, the recorded steps, the codes, and the checkpoint."""
        bundle = Bundle.open(self.bundle)
        names = [name for target in self.targets for name in bundle.read_by(target)]
        names.append(bundle.manifest.reference.path)
        if bundle.manifest.quantization is not None:
            names.append(bundle.manifest.quantization.file.path)
        return {self.bundle: tuple(dict.fromkeys(names)), **travelling.files_of(self.source)}

    def moved(self, places: Mapping[Path, Path]) -> VerifyJob:
        """See :class:`~lram_export.rollouts.workers.Job`."""
        source = travelling.moved(self.source, places)
        return dataclasses.replace(self, bundle=places[self.bundle], source=source)

    def versions(self) -> dict[str, str]:
        """Of the targets' packages, PyTorch and numpy."""
        found = {"numpy": np.__version__}
        for target in ("pytorch", *self.targets):
            found |= RUNTIMES[target].versions()
        return found

    def unfit(self) -> str | None:
        """A target that does not run here."""
        bundle = Bundle.open(self.bundle)
        for target in self.targets:
            reason = unavailable(target) or unavailable(target, bundle.load_artifact(target))
            if reason is not None:
                return f"target '{target}': {reason}"
        return None
