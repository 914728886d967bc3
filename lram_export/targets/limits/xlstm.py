"""What kernels for xLSTM cannot do: rows of the table beside this module."""

from __future__ import annotations

from lram_export.backbones.xlstm.fused import channel_parts, fused_block_size
from lram_export.targets.limits import TVM_GPU, UNROLLED_TOKENS, Asked, Limit

SHARED_FLOATS = 48 * 1024 // 4
"""Memory that the threads of a GPU's block share."""
GATE_FLOATS = 32 * 32
"""Of it for the sums of gates that a block computes at once, one per thread of a warp."""
SLSTM_WIDTH = SHARED_FLOATS // 5 // 8 * 8
"""Five numbers per channel, which begin at multiples of 32 bytes."""
PROCESSOR = "compile for a processor"


def _pairs(asked: Asked) -> dict[str, int]:
    return {"tokens": len(asked.config.tokens)} if _mlstm(asked) else {}


def _channels(asked: Asked) -> dict[str, int]:
    """Channels whose q, k and v the threads of a GPU's block compute, of all tokens."""
    inner = asked.config.backbone.inner_size
    size = fused_block_size(asked.config.backbone.qkv_block_size, inner)
    return {"inner_size": len(asked.config.tokens) * (inner // channel_parts(inner, size))} if _mlstm(asked) else {}


def _slstm_heads(asked: Asked) -> dict[str, int]:
    backbone = asked.config.backbone
    return {"slstm_num_heads": backbone.hidden_size // backbone.slstm_num_heads} if backbone.slstm_at else {}


def _mlstm(asked: Asked) -> bool:
    backbone = asked.config.backbone
    return bool(len(backbone.slstm_at) < backbone.num_blocks)


LIMITS = (
    UNROLLED_TOKENS,
    # of every pair of tokens, and of every token, a number per thread
    Limit((TVM_GPU,), _pairs, 8, "{value} tokens per step, at most {limit}", PROCESSOR),
    Limit(
        (TVM_GPU,),
        _channels,
        (SHARED_FLOATS - GATE_FLOATS) // 2,
        "q, k and v of {value} channels at once (`qkv_block_size` does not divide `inner_size` into smaller parts), at "
        "most {limit}",
        PROCESSOR,
    ),
    Limit((TVM_GPU,), _slstm_heads, SLSTM_WIDTH, "sLSTM heads {value} wide, at most {limit}", PROCESSOR),
)
