"""The backbone of a policy on the target `tvm`: ``<backbone>.py`` beside this module.

Such a module has ``pack`` (weights into the kernels' layout), ``epsilons`` (those of its norms) and ``emit`` (the calls
of its kernels, from the tokens to what the head reads).
"""

from __future__ import annotations

from typing import Any

from lram_export.model.config import ModelConfig
from lram_export.targets.backbones import kernels_of

TARGET = "tvm"


def backbone_kernels(config: ModelConfig) -> Any:
    """The module of a model's backbone; raises UsageError where there is none."""
    return kernels_of(TARGET, config.backbone.kind)
