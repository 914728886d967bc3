"""Layers that step graphs share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NEVER = -1e30
"""Log of a weight that shall be 0; finite, so that no runtime meets infinity minus infinity."""


class LayerNorm(nn.Module):
    """Layer norm whose stored weight is the difference to 1."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(1.0 + norm.weight)
        self.eps: float = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return F.layer_norm(x, self.weight.shape, self.weight, None, self.eps)


class RMSNorm(nn.Module):
    """RMS norm in plain arithmetic, which every runtime has."""

    def __init__(self, norm: nn.RMSNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps: float = norm.eps  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps) * self.weight


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
        tokens = x.shape[1]
        y = self.bias
        for tap, weight in enumerate(self.taps):
            term = inputs[:, tap : tap + tokens] * weight
            y = term if y is None else y + term
        return F.silu(y), inputs[:, tokens:]


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


def log_sigmoid(x: Tensor) -> Tensor:
    """log(sigmoid(x)) as softplus, which is one ONNX operator; log after sigmoid would underflow below -88."""
    return -F.softplus(-x)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with a weight (out, in) and a bias (out,)."""
    layer = nn.Linear(1, 1)
    layer.weight, layer.bias = nn.Parameter(weight.contiguous()), nn.Parameter(bias.contiguous())
    return layer
