"""Reads the policy of a file that another trainer wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lram_export.checkpoints.containers import read_container
from lram_export.errors import UsageError
from lram_export.trainers.files import RSL_RL, STABLE_BASELINES3, trainer_of

if TYPE_CHECKING:
    from lram_export.step_module.policy import StepPolicy


@dataclass(frozen=True)
class TrainerOptions:
    """What a file does not say itself: the run's configuration, how layers are activated, running means."""

    config_file: str | Path | None = None
    activation: str | None = None
    normalization: str | Path | None = None


def load_trainer_policy(path: str | Path, options: TrainerOptions) -> tuple[StepPolicy, list[str]]:
    """The policy of a trainer's file, and what was assumed; see ``read`` of the trainer's module.

    Raises:
        UsageError: an option for another trainer; something must be said that the file does not say.
        CheckpointError: the file is damaged, or holds what is not supported.
    """
    from lram_export.trainers import rsl_rl, stable_baselines3

    path = Path(path)
    config, normalization = (None if p is None else Path(p) for p in (options.config_file, options.normalization))
    trainer = trainer_of(path)
    if trainer is None:
        raise UsageError(f"{path}: no policy of {RSL_RL} or {STABLE_BASELINES3} that can be read")
    if trainer == STABLE_BASELINES3:
        if config is not None or options.activation is not None:
            raise UsageError(f"--config, --activation: not for a policy of {STABLE_BASELINES3}, which says all itself")
        return stable_baselines3.read(path, normalization)
    if normalization is not None:
        raise UsageError(f"--normalization: not for a policy of {RSL_RL}, which holds its running means itself")
    return rsl_rl.read(read_container(path), config, options.activation)
