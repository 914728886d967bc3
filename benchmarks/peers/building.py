"""What a process does that builds: it draws the model, and writes what contenders load."""

from __future__ import annotations

from pathlib import Path

import torch

from lram_export.checkpoints.random import preset_config, random_checkpoint
from lram_export.episodes.reference import record_reference, save_reference
from lram_export.episodes.steps import random_steps
from lram_export.exporters.onnx.graph import build_onnx, save_onnx
from lram_export.lowering.model import lower_model
from lram_export.spec.tasks import resolve_task
from peers import ours, peer
from peers.protocol import Source

TASK = "metaworld/reach-v2"
CHECKED_STEPS = 16
"""Recorded of the float32 reference; half way an episode starts."""


class Builder:
    """A model of a published size with random weights, the same in every process."""

    def __init__(self, size: str, threads: int) -> None:
        torch.set_num_threads(threads)
        task = resolve_task(TASK)
        self._threads = threads
        self._policy = lower_model(random_checkpoint(preset_config(size), size), task, name=f"peers-{size}")

    def reference(self, path: Path, onnx: Path) -> None:
        """Record what the reference model does, and write the step graph as ONNX into a folder."""
        policy = self._policy
        steps = random_steps(policy.spec, policy.task, CHECKED_STEPS)
        save_reference(record_reference(policy.reference(), steps), path)
        onnx.mkdir()
        save_onnx(build_onnx(policy), onnx, policy.spec)

    def peer(self, name: str, precision: str, folder: Path, onnx: Path) -> None:
        """Build what a peer loads."""
        folder.mkdir()
        peer(name).build(Source(self._policy, onnx / "model.onnx", self._threads), precision, folder)

    def ours(self, targets: tuple[str, ...], precision: str, bundle: Path) -> dict[str, str]:
        """Export a bundle; returns why targets are not in it."""
        return ours.build(self._policy, precision, targets, bundle)
