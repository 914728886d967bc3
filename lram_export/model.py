"""The reference model: an LRAM built from the `xlstm` package's own blocks, float32, token by token.

It is the oracle of every check, so it stays as close to the original code as it can: each token of an
environment step goes through ``xLSTMBlockStack.step``. Only what the original leaves to its caller is
added: rows of a batch may start an episode independently (``is_first``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from xlstm import (
    FeedForwardConfig,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMBlockStack,
    xLSTMBlockStackConfig,
)

from lram_export.config import IMPALA_CHANNELS, TOKENS_PER_STEP, ModelConfig, image_features, weight_count
from lram_export.machine import threads_beside_others
from lram_export.specification import state_name, state_specs

if TYPE_CHECKING:
    from lram_export.checkpoint import Checkpoint
    from lram_export.tasks import TaskSpec

State = dict[str, Tensor]


class ImpalaCNN(nn.Module):
    """Image encoder of arXiv 1802.01561 as the original names it: three blocks, then one linear layer."""

    def __init__(self, image_shape: tuple[int, int, int], features: int) -> None:
        super().__init__()
        channels = (image_shape[0], *IMPALA_CHANNELS)
        self.cnn = nn.ModuleList(ImpalaBlock(i, o) for i, o in pairwise(channels))
        self.linear = nn.Sequential(nn.Linear(image_features(image_shape), features))

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) float32 in [0, 1] -> (B, features)."""
        for block in self.cnn:
            image = block(image)
        return F.relu(self.linear(F.relu(image).flatten(1)))


class ImpalaBlock(nn.Module):
    """Convolution, 3x3 max pooling with stride 2, two residual units."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.residual_0 = ImpalaResidual(channels)
        self.residual_1 = ImpalaResidual(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels, ceil(H / 2), ceil(W / 2))."""
        x = F.max_pool2d(self.conv(x), 3, stride=2, padding=1)
        return self.residual_1(self.residual_0(x))  # type: ignore[no-any-return]


class ImpalaResidual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        return x + self.conv_1(F.relu(self.conv_0(F.relu(x))))  # type: ignore[no-any-return]


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
        self.encoder = nn.ModuleDict({"layers": xLSTMBlockStack(_stack_config(config, context_length))})
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
            state: named tensors as :func:`~lram_export.specification.state_specs` lists them.

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


def prune_logits(logits: Tensor, config: ModelConfig, task: TaskSpec) -> Tensor:
    """The logits an action is chosen from.

    Args:
        logits: (B, act_dim * num_actions), the whole head.
        config: the model.
        task: says how many of them count.

    Returns:
        (B, action_dim, num_actions), or (B, discrete_actions) for a discrete task.
    """
    if task.action == "discrete":
        return logits[:, : config.discrete_actions]
    return logits.view(-1, config.act_dim, config.num_actions)[:, : task.action_dim]


def decode_action(action_logits: Tensor, config: ModelConfig, task: TaskSpec) -> Tensor:
    """Choose the action: arg max; for continuous actions the left edge of the chosen bin of [-1, 1].

    Returns:
        (B, action_dim) float32, or (B, 1) int64 for a discrete task.
    """
    token = action_logits.argmax(dim=-1)
    if task.action == "discrete":
        return token[:, None]
    bins = (token - config.discrete_actions).clamp(min=0).to(torch.float32)
    return bins * (2.0 / config.action_channels) - 1.0


def _stack_config(config: ModelConfig, context_length: int) -> xLSTMBlockStackConfig:
    # The package derives widths from factors; half a unit more, rounded down, gives exactly ours.
    def width(size: int) -> dict[str, float | int | bool]:
        factor = (size + 0.5) / config.hidden_size
        return {"proj_factor": factor, "round_proj_up_dim_up": False, "round_proj_up_to_multiple_of": 1}

    slstm_block = None
    if config.slstm_at:
        slstm_block = sLSTMBlockConfig(
            slstm=sLSTMLayerConfig(
                backend="vanilla",
                num_heads=config.slstm_num_heads,
                conv1d_kernel_size=config.conv_kernel_size,
                dtype="float32",
            ),
            feedforward=FeedForwardConfig(act_fn=config.ffn_activation, **width(config.ffn_size)),
        )
    return xLSTMBlockStackConfig(
        mlstm_block=mLSTMBlockConfig(
            mlstm=mLSTMLayerConfig(
                conv1d_kernel_size=config.conv_kernel_size,
                qkv_proj_blocksize=config.qkv_block_size,
                num_heads=config.num_heads,
                **width(config.inner_size),
            )
        ),
        slstm_block=slstm_block,
        context_length=context_length,
        num_blocks=config.num_blocks,
        embedding_dim=config.hidden_size,
        slstm_at=list(config.slstm_at),
    )


def to_package(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Our named state in the package's nesting; copies what the package changes in place."""
    nested: dict[str, dict[str, Any]] = {}
    for block in range(config.num_blocks):
        part = {p: state[state_name(block, p)] for p in _parts(config, block)}
        # the package keeps one input more than the convolution reads; the oldest is shifted out first
        window = F.pad(part["conv"], (0, 0, 1, 0))
        if block in config.slstm_at:
            cell = torch.stack([part["y"], part["c"], part["n"], part["m"]])
            nested[f"block_{block}"] = {"conv_state": (window,), "slstm_state": cell}
        else:
            matrices = (part["C"], part["n"][..., None], part["m"][..., None, None])
            nested[f"block_{block}"] = {"conv_state": (window,), "mlstm_state": matrices}
    return nested


def from_package(config: ModelConfig, nested: Mapping[str, Mapping[str, Any]]) -> State:
    """The inverse of :func:`to_package`."""
    state: State = {}
    for block in range(config.num_blocks):
        inner = nested[f"block_{block}"]
        (window,) = inner["conv_state"]
        values = [window[:, 1:].clone()]
        if block in config.slstm_at:
            values += list(inner["slstm_state"])
        else:
            C, n, m = inner["mlstm_state"]
            values += [C, n[..., 0], m[..., 0, 0]]
        for part, value in zip(_parts(config, block), values, strict=True):
            state[state_name(block, part)] = value
    return state


def _parts(config: ModelConfig, block: int) -> tuple[str, ...]:
    return ("conv", "y", "c", "n", "m") if block in config.slstm_at else ("conv", "C", "n", "m")
