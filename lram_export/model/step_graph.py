"""The step graph: one environment step as a pure function of named tensors, three tokens as one chunk.

Where ``is_first`` is 1, a row starts an episode inside the graph: every state begins with its initial value, and the
reward token is skipped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lram_export.backbones.layers import LayerNorm
from lram_export.backbones.xlstm.step import MLSTMBlock, SLSTMBlock
from lram_export.model.encoders import ImageEncoder, pruned_state_encoder
from lram_export.model.heads import decode_action, pruned_head
from lram_export.model.limits import input_limits
from lram_export.model.reference import ReferenceModel
from lram_export.model.specification import step_spec
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import StepSpec
from lram_export.spec.tokens import TOKENS_PER_STEP


class StepGraph(nn.Module):
    """The pure function (observation, return_to_go, reward, is_first, state) -> (action, logits, next state).

    Only what the task needs is kept: one encoder, the columns of ``embed_state`` that its observation fills,
    and the rows of the head that its actions read.
    """

    def __init__(self, model: ReferenceModel, task: TaskSpec, batch_size: int = 1) -> None:
        """Lower a model for a task; weights are shared with the model where they are used whole.

        Raises:
            ValueError: model and task do not fit (see :func:`~lram_export.model.specification.step_spec`), or the
                encoders leave float32 with ordinary inputs (:func:`~lram_export.model.limits.input_limits`).
        """
        super().__init__()
        self.config, self.task = model.config, task
        limits = input_limits(dict(model.named_parameters()), task)
        self.spec: StepSpec = step_spec(model.config, task, batch_size).with_limits(limits)
        self.embed_reward, self.embed_return = model.embed_rewards, model.embed_return
        if task.observation == "image":
            self.embed_observation: nn.Module = ImageEncoder(model)
        else:
            self.embed_observation = pruned_state_encoder(model, task)
        self.embed_norm = model.embed_ln
        self.blocks = nn.ModuleList(
            SLSTMBlock(block, model.config) if i in model.config.slstm_at else MLSTMBlock(block, model.config)
            for i, block in enumerate(model.stack.blocks)
        )
        self.post_norm = LayerNorm(model.stack.post_blocks_norm)
        self.head = pruned_head(model, task)
        self.eval().requires_grad_(False)

    def forward(
        self, observation: Tensor, return_to_go: Tensor, reward: Tensor, is_first: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """Tensors in the order of ``spec.input_names``, out in the order of ``spec.output_names``."""
        x = self.embed(observation, return_to_go, reward)
        first, present = episode_masks(is_first)
        next_state: list[Tensor] = []
        remaining = list(state)
        for block in self.blocks:
            count = int(block.parts)  # type: ignore[arg-type]
            x, *parts = block(x, first, present, *remaining[:count])
            next_state += parts
            remaining = remaining[count:]
        return (*self.decide(x), *next_state)

    def embed(self, observation: Tensor, return_to_go: Tensor, reward: Tensor) -> Tensor:
        """The three tokens of a step, normalized: (B, 3, hidden)."""
        tokens = torch.stack(
            [
                self.embed_reward(reward[:, None]),
                self.embed_observation(observation),
                self.embed_return(return_to_go[:, None]),
            ],
            dim=1,
        )
        normalized: Tensor = self.embed_norm(tokens)
        return normalized

    def decide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Action and action logits from what the last block left, (B, 3, hidden)."""
        logits = self.head(self.post_norm(x[:, -1]))
        if self.task.action == "continuous":
            logits = logits.view(-1, self.task.action_dim, self.config.num_actions)
        return decode_action(logits, self.config, self.task), logits


def episode_masks(is_first: Tensor) -> tuple[Tensor, Tensor]:
    """What blocks take of ``is_first`` (B,): rows that start an episode, (B,) bool, and ``present`` (B, 3): 0 for
    the reward token of such a row, else 1."""
    present = F.pad((1.0 - is_first)[:, None], (0, TOKENS_PER_STEP - 1), value=1.0)
    return is_first > 0, present
