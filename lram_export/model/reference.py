"""The reference model: an LRAM built from the `xlstm` package's own blocks, float32, token by token.

It is the oracle of every check, so it stays as close to the original code as it can: each token of an
environment step goes through ``xLSTMBlockStack.step``. Only what the original leaves to its caller is
added: rows of a batch may start an episode independently (``is_first``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from xlstm import xLSTMBlockStack

from lram_export.backbones.protocol import State
from lram_export.backbones.xlstm.config import state_specs
from lram_export.backbones.xlstm.reference import from_package, stack_config, to_package
from lram_export.model.config import ModelConfig, weight_count
from lram_export.model.encoders import ImpalaCNN
from lram_export.spec.tokens import TOKENS_PER_STEP
from lram_export.system.machine import threads_beside_others

if TYPE_CHECKING:
    from lram_export.checkpoints.checkpoint import Checkpoint


class ReferenceModel(nn.Module):
    """The whole policy network. Parameter names are those of the original checkpoint.

    ``context_length`` is the longest sequence, in tokens, that ``stack`` takes in parallel; training needs it,
    :meth:`step` does not.
    """

    def __init__(self, config: ModelConfig, context_length: int = 1) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.embed_return = nn.Linear(1, hidden)
        self.embed_rewards = nn.Linear(1, hidden)
        self.embed_state = None if config.state_dim is None else nn.Linear(config.state_dim, hidden)
        self.embed_image = None if config.image_shape is None else ImpalaCNN(config.image_shape, hidden)
        self.embed_ln = nn.LayerNorm(hidden)
        self.encoder = nn.ModuleDict({"layers": xLSTMBlockStack(stack_config(config, context_length))})
        self.action_net = nn.Sequential(nn.Linear(hidden, config.act_dim * config.num_actions))

    @staticmethod
    def from_checkpoint(checkpoint: Checkpoint) -> ReferenceModel:
        """Build the model around a checkpoint's weights; they are shared, not copied."""
        with torch.device("meta"):
            model = ReferenceModel(checkpoint.config)
        model.load_state_dict(checkpoint.weights, strict=True, assign=True)
        for module in model.modules():
            if "causal_mask" in module._buffers:  # not a weight; only the parallel form reads it
                module.causal_mask = torch.ones(1, 1, dtype=torch.bool)
        return model.eval().requires_grad_(False)

    @property
    def stack(self) -> xLSTMBlockStack:
        """The `xlstm` package's block stack."""
        return self.encoder["layers"]

    def embed(self, observation: Tensor, return_to_go: Tensor, reward: Tensor) -> Tensor:
        """Embed the three tokens of an environment step.

        Args:
            observation: (B, n) float32 with n <= state_dim (zero-padded as in training), or
                (B, C, H, W) uint8.
            return_to_go: (B,) float32, scaled.
            reward: (B,) float32, scaled; of the previous step.

        Returns:
            (B, 3, hidden_size): reward, observation, return-to-go, after ``embed_ln``.
        """
        if observation.dim() == 4:
            assert self.embed_image is not None
            observed = self.embed_image(observation.to(torch.float32) / 255.0)
        else:
            assert self.embed_state is not None and self.config.state_dim is not None
            padding = self.config.state_dim - observation.shape[-1]
            observed = self.embed_state(F.pad(observation, (0, padding)))
        tokens = (self.embed_rewards(reward[:, None]), observed, self.embed_return(return_to_go[:, None]))
        embedded: Tensor = self.embed_ln(torch.stack(tokens, dim=1))
        return embedded

    @torch.no_grad()
    def step(
        self, observation: Tensor, return_to_go: Tensor, reward: Tensor, is_first: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """One environment step: three tokens through the `xlstm` package's own ``step``.

        Args:
            observation: see :meth:`embed`.
            return_to_go: (B,) float32, scaled.
            reward: (B,) float32, scaled.
            is_first: (B,) float32; 1 where a row starts an episode: its state is initial, its reward
                token is skipped.
            state: named tensors as :func:`~lram_export.backbones.xlstm.config.state_specs` lists them.

        Returns:
            All head logits (B, act_dim * num_actions) and the next state; ``state`` is not changed.
        """
        tokens = self.embed(observation, return_to_go, reward)
        first = is_first > 0
        if first.any():
            state = select_rows(first, initial_state(self.config, len(first)), state)
        package_state = to_package(self.config, state)
        hidden = tokens
        for position in range(TOKENS_PER_STEP):
            skip = first if position == 0 else None
            before = from_package(self.config, package_state) if skip is not None and skip.any() else None
            hidden, package_state = self.stack.step(tokens[:, position : position + 1], package_state)
            if before is not None and skip is not None:
                after = from_package(self.config, package_state)
                package_state = to_package(self.config, select_rows(skip, before, after))
        return self.action_net(hidden[:, 0]), from_package(self.config, package_state)


@contextmanager
def oracle_threads(config: ModelConfig) -> Iterator[None]:
    """Give torch the threads that suit the reference model, as long as the block lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads_beside_others(weight_count(config)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def initial_state(config: ModelConfig, batch_size: int) -> State:
    """The state at the start of an episode."""
    return {spec.name: torch.full(spec.shape, spec.initial or 0.0) for spec in state_specs(config, batch_size)}


def select_rows(rows: Tensor, where_true: State, where_false: State) -> State:
    """Per batch row: the first state where ``rows`` (B,) is true, the second elsewhere."""
    return {
        name: torch.where(rows.view(-1, *[1] * (tensor.dim() - 1)), where_true[name], tensor)
        for name, tensor in where_false.items()
    }
