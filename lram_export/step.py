"""The step graph: one environment step as a pure function of named tensors, three tokens as one chunk.

The mathematics is that of the recurrent form, rearranged so that every weight and every state matrix is
read once per step instead of three times. Per head, with lf = logsigmoid(forget pre-activation), i = input
pre-activation, previous state (C, n, m) and keys k scaled by 1 / sqrt(head width), for tokens t = 1..3:

    m_t  = max(lf_t + m_(t-1), i_t)
    a_t  = exp(lf_1 + ... + lf_t + m - m_t)                     decay of the old state as token t sees it
    D_tj = exp(lf_(j+1) + ... + lf_t + i_j - m_t)  for j <= t   weight of token j as token t sees it
    num  = a_t q_t C + sum_j D_tj (q_t . k_j) v_j
    den  = max(|a_t q_t . n + sum_j D_tj (q_t . k_j)|, exp(-m_t)) + 1e-6
    C'   = a_3 C + sum_j D_3j k_j v_j^T,    n' likewise,    m' = m_3

It differs from three single steps of the `xlstm` package only in the order of float32 sums.

Where ``is_first`` is 1, a row starts an episode inside the graph: C and n get decay 0, everything else its
initial value, and the reward token is skipped: input gate off, forget gate 1, convolution input 0, sLSTM
state passed through.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lram_export.config import TOKENS_PER_STEP, ModelConfig
from lram_export.limits import input_limits
from lram_export.model import ReferenceModel, decode_action
from lram_export.specification import SLSTM_INITIAL_M, StepSpec, step_spec
from lram_export.tasks import TaskSpec

NEVER = -1e30
"""Log of a weight that shall be 0; finite, so that no runtime meets infinity minus infinity."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "relu^2": lambda x: torch.square(F.relu(x)),
    "sigmoid": torch.sigmoid,
    "swish": F.silu,
    "selu": F.selu,
}


class StepGraph(nn.Module):
    """The pure function (observation, return_to_go, reward, is_first, state) -> (action, logits, next state).

    Only what the task needs is kept: one encoder, the columns of ``embed_state`` that its observation fills,
    and the rows of the head that its actions read.
    """

    def __init__(self, model: ReferenceModel, task: TaskSpec, batch_size: int = 1) -> None:
        """Lower a model for a task; weights are shared with the model where they are used whole.

        Raises:
            ValueError: model and task do not fit (see :func:`~lram_export.specification.step_spec`), or the
                encoders leave float32 with ordinary inputs (:func:`~lram_export.limits.input_limits`).
        """
        super().__init__()
        self.config, self.task = model.config, task
        limits = input_limits(dict(model.named_parameters()), task)
        self.spec: StepSpec = step_spec(model.config, task, batch_size).with_limits(limits)
        self.embed_reward, self.embed_return = model.embed_rewards, model.embed_return
        if task.observation == "image":
            self.embed_observation: nn.Module = _ImageEncoder(model)
        else:
            self.embed_observation = _pruned_state_encoder(model, task)
        self.embed_norm = model.embed_ln
        self.blocks = nn.ModuleList(
            SLSTMBlock(block, model.config) if i in model.config.slstm_at else MLSTMBlock(block, model.config)
            for i, block in enumerate(model.stack.blocks)
        )
        self.post_norm = LayerNorm(model.stack.post_blocks_norm)
        self.head = _pruned_head(model, task)
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


class LayerNorm(nn.Module):
    """Layer norm whose stored weight is the difference to 1."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(1.0 + norm.weight)
        self.eps: float = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return F.layer_norm(x, self.weight.shape, self.weight, None, self.eps)


class HeadNorm(nn.Module):
    """Group norm with one group per head, whose stored weight is the difference to 1."""

    def __init__(self, norm: Any, num_heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1.0 + norm.weight)
        self.eps: float = norm.eps
        self.width = self.weight.numel() // num_heads

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, heads, width) -> (B, T, heads * width)."""
        return F.layer_norm(x, (self.width,), None, None, self.eps).flatten(2) * self.weight


class Convolution(nn.Module):
    """Causal depthwise convolution over the window of past inputs and the tokens of the step."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        # one (features,) vector per tap, oldest input first
        self.taps = nn.ParameterList(conv.weight[:, 0, tap].contiguous() for tap in range(conv.weight.shape[2]))
        self.bias: Any = conv.bias

    def forward(self, x: Tensor, window: Tensor, first: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve (B, T, F) after a window (B, kernel - 1, F); return (B, T, F) after SiLU and the next window."""
        window = torch.where(first[:, None, None], 0.0, window)
        inputs = torch.cat([window, x * present[..., None]], dim=1)
        y: Tensor = self.bias
        for tap, weight in enumerate(self.taps):
            y = y + inputs[:, tap : tap + TOKENS_PER_STEP] * weight
        return F.silu(y), inputs[:, TOKENS_PER_STEP:]


PACKED_BLOCK = 16
"""Width to which small diagonal blocks are packed: 4x4 products cost a runtime more in calls than in sums."""


class BlockDiagonal(nn.Module):
    """Block-diagonal projection with square blocks."""

    def __init__(self, projection: Any) -> None:
        super().__init__()
        # (blocks, in, out), so that a token is multiplied from the left
        self.weight = nn.Parameter(pack_blocks(projection.weight.transpose(1, 2)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, F) -> (B, T, F)."""
        blocks, size, _ = self.weight.shape
        y = x.view(-1, blocks, size).transpose(0, 1) @ self.weight
        return y.transpose(0, 1).reshape(x.shape)


def pack_blocks(weight: Tensor) -> Tensor:
    """Pack neighbouring diagonal blocks (n, size, size) into larger ones, zero off the diagonal.

    The result has blocks of up to :data:`PACKED_BLOCK`, as many to one as divide n. It is the same matrix.
    """
    count, size, _ = weight.shape
    group = max(g for g in range(1, max(PACKED_BLOCK // size, 1) + 1) if count % g == 0)
    packed = weight.new_zeros(count // group, group * size, group * size)
    for i in range(group):
        inside = slice(i * size, (i + 1) * size)
        packed[:, inside, inside] = weight[i::group]
    return packed


class MLSTMBlock(nn.Module):
    """Norm, up-projection, mLSTM chunk, gated down-projection, residual."""

    parts = 4  # conv, C, n, m

    def __init__(self, block: Any, config: ModelConfig) -> None:
        super().__init__()
        layer = block.xlstm
        self.num_heads, self.width, self.inner = config.num_heads, config.head_dim, config.inner_size
        self.norm = LayerNorm(block.xlstm_norm)
        self.proj_up, self.proj_down = layer.proj_up, layer.proj_down
        self.conv = Convolution(layer.conv1d.conv)
        self.q_proj = BlockDiagonal(layer.q_proj)
        self.k_proj = BlockDiagonal(layer.k_proj)
        self.v_proj = BlockDiagonal(layer.v_proj)
        cell = layer.mlstm_cell
        gates = (cell.igate, cell.fgate)
        self.gates = nn.Linear(3 * config.inner_size, 2 * config.num_heads)
        self.gates.weight = nn.Parameter(torch.cat([gate.weight for gate in gates]))
        self.gates.bias = nn.Parameter(torch.cat([gate.bias for gate in gates]))
        self.out_norm = HeadNorm(cell.outnorm, config.num_heads)
        self.skip = layer.learnable_skip

    def forward(
        self, x: Tensor, first: Tensor, present: Tensor, conv: Tensor, C: Tensor, n: Tensor, m: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Three tokens (B, 3, hidden) and the block's state in; the same out."""
        up, gate = self.proj_up(self.norm(x)).split(self.inner, dim=-1)
        convolved, next_conv = self.conv(up, conv, first, present)
        q, k, v = self.q_proj(convolved), self.k_proj(convolved), self.v_proj(up)
        i, f = self.gates(torch.cat([q, k, v], dim=-1)).transpose(1, 2).split(self.num_heads, dim=1)

        def heads(projected: Tensor) -> Tensor:
            per_head: Tensor = projected.unflatten(2, (self.num_heads, self.width))
            return per_head.transpose(1, 2)

        h, *memory = mlstm_chunk(heads(q), heads(k), heads(v), i, f, first, present, C, n, m)
        h = self.out_norm(h.transpose(1, 2)) + self.skip * convolved
        return x + self.proj_down(h * F.silu(gate)), next_conv, *memory


def mlstm_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    first: Tensor,
    present: Tensor,
    C: Tensor,
    n: Tensor,
    m: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mLSTM cell for the tokens of one step (see the module's formula).

    Args:
        q, k, v: (B, heads, T, width); k not yet scaled.
        i, f: input and forget gate pre-activations (B, heads, T).
        first: (B,) bool, rows that start an episode.
        present: (B, T), 0 where a token is skipped.
        C: (B, heads, width, width). n: (B, heads, width). m: (B, heads).

    Returns:
        Hidden state (B, heads, T, width) before the norm, then C, n and m after the last token.
    """
    k = k * (1.0 / math.sqrt(k.shape[-1]))
    here = present[:, None, :]
    log_f = log_sigmoid(f) * here
    i = torch.where(here > 0, i, NEVER)
    m = torch.where(first[:, None], 0.0, m)
    n = torch.where(first[:, None, None], 0.0, n)

    tokens = log_f.shape[-1]
    spans, future = _spans(tokens)
    # sums of log_f over (0, t] and, for every pair, over (j, t]: exact partial sums, no differences
    sums = log_f @ spans.to(log_f.dtype)
    log_a = sums[..., :tokens] + m[..., None]
    log_D = sums[..., tokens:].unflatten(-1, (tokens, tokens)) + i[..., None, :] + future
    m_t = torch.maximum(log_a, log_D.amax(dim=-1))
    a = torch.exp(log_a - m_t)[..., None]
    D = torch.exp(log_D - m_t[..., None])

    weights = (q @ k.transpose(-1, -2)) * D
    # a row that starts an episode forgets C whatever it holds: 0 times NaN would be NaN
    forgets = first[:, None, None, None]
    numerator = torch.where(forgets, 0.0, a * (q @ C)) + weights @ v
    normalizer = a * (q @ n[..., None]) + weights.sum(dim=-1, keepdim=True)
    h = numerator / (torch.maximum(normalizer.abs(), torch.exp(-m_t)[..., None]) + 1e-6)

    decay = a[..., -1, :]
    weighted_k = k * D[..., -1, :, None]
    next_C = torch.where(forgets, 0.0, decay[..., None] * C) + weighted_k.transpose(-1, -2) @ v
    next_n = decay * n + weighted_k.sum(dim=-2)
    return h, next_C, next_n, m_t[..., -1]


def log_sigmoid(x: Tensor) -> Tensor:
    """log(sigmoid(x)) as softplus, which is one ONNX operator; log after sigmoid would underflow below -88."""
    return -F.softplus(-x)


def _spans(tokens: int) -> tuple[Tensor, Tensor]:
    """Constants of a chunk.

    Returns:
        A 0/1 matrix (T, T + T*T) by which log forget gates are multiplied to get their sums over (0, t] for
        every t and over (j, t] for every pair (t, j); and the mask (T, T) that is NEVER where j > t.
    """
    t = torch.arange(tokens)
    since_start = (t[:, None] <= t[None, :]).float()  # [s, t]
    between = (t[:, None, None] > t[None, None, :]) & (t[:, None, None] <= t[None, :, None])  # [s, t, j]
    future = torch.where(t[None, :] > t[:, None], NEVER, 0.0)
    return torch.cat([since_start, between.float().flatten(1)], dim=1), future


class SLSTMBlock(nn.Module):
    """Norm, sLSTM with input projections for all tokens at once, residual, gated feed-forward, residual."""

    parts = 5  # conv, y, c, n, m

    def __init__(self, block: Any, config: ModelConfig) -> None:
        super().__init__()
        layer, cell = block.xlstm, block.xlstm.slstm_cell
        self.num_heads, self.hidden = config.slstm_num_heads, config.hidden_size
        self.norm = LayerNorm(block.xlstm_norm)
        self.conv = Convolution(layer.conv1d.conv)
        # The package hands `fgate` to the cell as input gate and `igate` as forget gate: follow the data.
        gates = (layer.fgate, layer.igate, layer.zgate, layer.ogate)
        weights = [gate.weight.transpose(1, 2) for gate in gates]
        self.from_conv = nn.Parameter(torch.cat(weights[:2], dim=2))  # (heads, width, 2 * width)
        self.from_input = nn.Parameter(torch.cat(weights[2:], dim=2))
        self.recurrent = nn.Parameter(cell._recurrent_kernel_.transpose(1, 2).contiguous())
        # (4, heads, width) in the package; per head here
        bias = cell._bias_.view(4, self.num_heads, -1).transpose(0, 1)
        self.bias = nn.Parameter(bias.reshape(self.num_heads, -1).contiguous())
        self.out_norm = HeadNorm(layer.group_norm, self.num_heads)
        self.ffn_norm = LayerNorm(block.ffn_norm)
        self.ffn_up, self.ffn_down = block.ffn.proj_up, block.ffn.proj_down
        self.ffn_size, self.activation = config.ffn_size, ACTIVATIONS[config.ffn_activation]

    def forward(
        self,
        x: Tensor,
        first: Tensor,
        present: Tensor,
        conv: Tensor,
        y: Tensor,
        c: Tensor,
        n: Tensor,
        m: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Three tokens (B, 3, hidden) and the block's state in; the same out."""
        normed = self.norm(x)
        convolved, next_conv = self.conv(normed, conv, first, present)

        def heads(features: Tensor) -> Tensor:  # (B, T, hidden) -> (heads, B * T, width)
            return features.view(-1, self.num_heads, self.hidden // self.num_heads).transpose(0, 1)

        projected = torch.cat([heads(convolved) @ self.from_conv, heads(normed) @ self.from_input], dim=2)
        projected = (projected + self.bias[:, None]).unflatten(1, (-1, TOKENS_PER_STEP))

        rows = first[:, None]
        initial = (0.0, 0.0, 0.0, SLSTM_INITIAL_M)
        state = [torch.where(rows, value, part) for value, part in zip(initial, (y, c, n, m), strict=True)]
        outputs = []
        for token in range(TOKENS_PER_STEP):
            after = self.cell(projected[:, :, token], *state)
            if token == 0:  # the reward token, skipped where an episode starts
                after = [torch.where(rows, old, new) for old, new in zip(state, after, strict=True)]
            state = after
            outputs.append(state[0])
        h = torch.stack(outputs, dim=1).unflatten(2, (self.num_heads, -1))
        x = x + self.out_norm(h)
        gate, up = self.ffn_up(self.ffn_norm(x)).split(self.ffn_size, dim=-1)
        return x + self.ffn_down(self.activation(gate) * up), next_conv, *state

    def cell(self, projected: Tensor, y: Tensor, c: Tensor, n: Tensor, m: Tensor) -> list[Tensor]:
        """One token of the sLSTM cell (arXiv 2405.04517, stabilized form).

        Args:
            projected: input projections plus bias (heads, B, 4 * width), gates i, f, z, o.
            y, c, n, m: state (B, hidden).
        """
        per_head = y.unflatten(1, (self.num_heads, -1)).transpose(0, 1)
        raw = (projected + per_head @ self.recurrent).transpose(0, 1).unflatten(2, (4, -1))
        i, f, z, o = raw.transpose(1, 2).flatten(2).unbind(dim=1)
        log_f = log_sigmoid(f) + m
        m = torch.maximum(i, log_f)
        input_gate, forget_gate = torch.exp(i - m), torch.exp(log_f - m)
        c = forget_gate * c + input_gate * torch.tanh(z)
        n = forget_gate * n + input_gate
        return [torch.sigmoid(o) * c / n, c, n, m]


class _ImageEncoder(nn.Module):
    def __init__(self, model: ReferenceModel) -> None:
        super().__init__()
        assert model.embed_image is not None
        self.cnn = model.embed_image

    def forward(self, image: Tensor) -> Tensor:
        embedded: Tensor = self.cnn(image.to(torch.float32) / 255.0)
        return embedded


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(1, 1)
    layer.weight, layer.bias = nn.Parameter(weight.contiguous()), nn.Parameter(bias.contiguous())
    return layer


def _pruned_state_encoder(model: ReferenceModel, task: TaskSpec) -> nn.Linear:
    """Without the columns that only padding zeros meet."""
    assert model.embed_state is not None
    return _linear(model.embed_state.weight[:, : task.observation_dim], model.embed_state.bias)


def _pruned_head(model: ReferenceModel, task: TaskSpec) -> nn.Linear:
    """Without the rows that no action of the task reads."""
    config = model.config
    head: Any = model.action_net[0]
    rows = config.discrete_actions if task.action == "discrete" else task.action_dim * config.num_actions
    return _linear(head.weight[:rows], head.bias[:rows])
