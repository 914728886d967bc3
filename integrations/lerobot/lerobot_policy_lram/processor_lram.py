"""What LeRobot does before and after a policy of type `lram`: devices alone, since the bundle normalizes itself."""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
)
from lerobot.processor.factory import make_policy_processor_pipelines

from lerobot_policy_lram.configuration_lram import LramConfig


def make_lram_pre_post_processors(
    config: LramConfig, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """The pipelines of a policy's folder, made anew; statistics are not needed: what they say is in the bundle."""
    device = str(config.device)
    return make_policy_processor_pipelines(
        [
            RenameObservationsProcessorStep(rename_map={}),
            AddBatchDimensionProcessorStep(),
            DeviceProcessorStep(device=device),
        ],
        [DeviceProcessorStep(device="cpu")],
    )
