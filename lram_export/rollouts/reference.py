"""The float32 reference model as a player: from a checkpoint, or the bundle's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lram_export.bundle.bundle import Bundle
from lram_export.errors import UsageError
from lram_export.policy import Policy
from lram_export.rollouts.workers import share
from lram_export.runtimes import Runtime, load_runtime
from lram_export.system.machine import threads_beside_others

if TYPE_CHECKING:
    from lram_export.checkpoints.checkpoint import Checkpoint
    from lram_export.checkpoints.loading import CheckpointSource


@dataclass(frozen=True)
class ReferenceSource:
    """What the reference is made of, in whichever process: a checkpoint, or the bundle's `pytorch` artifact."""

    checkpoint: CheckpointSource | None = None
    other_checkpoint: bool = False

    def load(self, bundle: Bundle, processes: int = 1) -> Policy:
        """See :func:`reference_policy`."""
        loaded = None if self.checkpoint is None else self.checkpoint.load()
        return reference_policy(bundle, loaded, other_checkpoint=self.other_checkpoint, processes=processes)

    def found_here(self) -> ReferenceSource:
        """The same with its files named, for another machine."""
        if self.checkpoint is None:
            return self
        from lram_export.checkpoints.travelling import found_here

        return dataclasses.replace(self, checkpoint=found_here(self.checkpoint))

    def reads(self) -> dict[Path, tuple[str, ...]]:
        """Files and folders of the checkpoint, if it is one."""
        if self.checkpoint is None:
            return {}
        from lram_export.checkpoints.travelling import files_of

        return files_of(self.checkpoint)

    def moved(self, places: Mapping[Path, Path]) -> ReferenceSource:
        """The same where the files lie in other places."""
        if self.checkpoint is None:
            return self
        from lram_export.checkpoints.travelling import moved

        return dataclasses.replace(self, checkpoint=moved(self.checkpoint, places))


def reference_policy(
    bundle: Bundle, checkpoint: Checkpoint | None, *, other_checkpoint: bool = False, processes: int = 1
) -> Policy:
    """The float32 reference model behind the step API, of one row: from a checkpoint or the `pytorch` artifact.

    It sets the number of torch's threads for the whole process, to what suits the model where so many
    ``processes`` share the machine. With ``other_checkpoint`` the checkpoint may be another than the bundle's, whatever
    its weights.

    Raises:
        UsageError: neither is there, the bundle is quantized (its `pytorch` artifact, too), the checkpoint is of
            another architecture or another file, or torch is missing.
        ParityError: the bundle's codes are not the checkpoint's.
    """
    manifest = bundle.manifest
    if checkpoint is None and manifest.quantization is not None:
        raise UsageError(
            f"{bundle.path}: its weights are {manifest.precision}, so nothing in it is the float32 reference; add "
            f"--checkpoint CHECKPOINT, or --no-reference to play without a comparison"
        )
    if checkpoint is None and "pytorch" not in bundle.targets:
        raise UsageError(
            f"{bundle.path}: holds no artifact for 'pytorch' to compare with; add --checkpoint CHECKPOINT, or "
            f"--no-reference to play without a comparison"
        )
    if checkpoint is None:
        runtime: Runtime = load_runtime("pytorch", bundle.load_artifact("pytorch", 1), 1)
    else:
        from lram_export.verification.oracle import build_oracle

        oracle = build_oracle(bundle, checkpoint, other_checkpoint=other_checkpoint)
        if not other_checkpoint:
            oracle.require_codes()
        runtime = oracle.float32.reference(1)
    import torch

    torch.set_num_threads(share(threads_beside_others(manifest.parameters), processes))
    return Policy(runtime, manifest.task)
