"""The policies that are trained, one of each backbone, of about the same size."""

from __future__ import annotations

from dataclasses import dataclass

from lram_export.backbones.decision_transformer.config import DecisionTransformerConfig
from lram_export.backbones.mamba.config import MambaConfig, dt_rank_of
from lram_export.backbones.protocol import BackboneConfig
from lram_export.backbones.xlstm.config import XLSTMConfig
from lram_export.model.config import ModelConfig, lram_encoders
from lram_export.model.heads import ActionBins

CONTEXT = 50
"""Environment steps of a sequence, as the published models are trained."""
HIDDEN = 128


@dataclass(frozen=True)
class Trained:
    """What is trained, and on which sequences.

    Attributes:
        backbone: its sizes.
        padded: sequences may begin before their episode does, with steps of zeros: a policy that acts by the last steps
            sees such ones in the first steps of an episode.
    """

    backbone: BackboneConfig
    padded: bool = False

    @property
    def config(self) -> ModelConfig:
        """Of the whole policy, for Meta-World."""
        return ModelConfig(self.backbone, ActionBins(act_dim=4), lram_encoders(state_dim=39, image_shape=None))


POLICIES = {
    "xlstm": Trained(
        XLSTMConfig(hidden_size=HIDDEN, num_blocks=4, num_heads=4, inner_size=256, slstm_at=(1,), ffn_size=192)
    ),
    "mamba": Trained(
        MambaConfig(hidden_size=HIDDEN, num_blocks=4, inner_size=256, state_size=16, dt_rank=dt_rank_of(HIDDEN))
    ),
    "decision_transformer": Trained(
        DecisionTransformerConfig(hidden_size=HIDDEN, num_blocks=2, num_heads=4, ffn_size=512, context_length=CONTEXT),
        padded=True,
    ),
}
