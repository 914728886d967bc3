"""How the training code describes an xLSTM, and how it names and lays out its weights.

Every option is on one of two lists: those that can change what the policy computes when it acts, with the values that
are supported (``SUPPORTED_...``); and those that cannot, with the reason (``INERT_...``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lram_export.backbones.protocol import Weights
from lram_export.backbones.reading import FoundWeights
from lram_export.backbones.xlstm.config import XLSTMConfig, round_up
from lram_export.errors import CheckpointError
from lram_export.spec.sections import Options, Reasons, Section

KINDS = ("MDDXLSTM",)
"""What the training code calls agents with this backbone."""
# options of agent_params.huggingface that change the computation
SUPPORTED_HUGGINGFACE: Options = {
    "ln_bias": (False, (False,)),
    "rms_norm": (False, (False,)),
    "embed_rms_norm": (False, (False,)),
    "chunkwise_step": (False, (False,)),
    "add_cross_attention": (False, (False,)),
    "rope": (None, (None, False)),
}
INERT_HUGGINGFACE: Reasons = {
    "sizes that the weights show and xlstm_config says": ("hidden_size", "n_layer", "n_head"),
    "the transformer in whose place xLSTM is put": (
        *("activation_function", "use_fast_attn", "n_positions", "n_inner", "vocab_size", "layer_norm_epsilon"),
        *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "use_cache"),
        *("bos_token_id", "eos_token_id", "action_tanh"),
    ),
    "the window of the form that is not recurrent, and its table of times": ("max_length", "max_ep_len"),
    "how the weights were trained": ("initializer_range", "resid_pdrop", "embd_pdrop", "attn_pdrop"),
}
# options of agent_params.model_kwargs that models with this backbone have beside those of all
SUPPORTED_MODEL: Options = {}
HINTS: tuple[str, ...] = ()
"""Sizes that the weights alone do not show."""
INERT_MODEL: Reasons = {}
# fields of the xlstm package's configs; sizes are read where they are needed
SUPPORTED_STACK: Options = {
    "add_post_blocks_norm": (True, (True,)),
    "bias": (False, (False,)),
}
SIZES_STACK = frozenset(("num_blocks", "embedding_dim", "slstm_at", "mlstm_block", "slstm_block"))
_TRAINED, _OVERWRITTEN = "how the weights were trained", "overwritten or computed by the xlstm package"
_PARALLEL = "the mask of the form that is not recurrent"
INERT_STACK: Reasons = {_TRAINED: ("dropout",), _PARALLEL: ("context_length",), _OVERWRITTEN: ("_block_map",)}
INERT_BLOCK: Reasons = {_OVERWRITTEN: ("_num_blocks", "_block_idx")}
_WIDTH = ("proj_factor", "round_proj_up_to_multiple_of", "round_proj_up_dim_up")
SIZES_MLSTM = frozenset(("num_heads", "conv1d_kernel_size", "qkv_proj_blocksize", *_WIDTH))
INERT_MLSTM: Reasons = {
    _OVERWRITTEN: (
        *("embedding_dim", "bias", "dropout", "context_length", "_num_blocks", "_inner_embedding_dim", "_proj_up_dim"),
    ),
}
SUPPORTED_SLSTM: Options = {
    "function": ("slstm", ("slstm",)),
    "group_norm_weight": (True, (True,)),
    "num_states": (4, (4,)),
    "num_gates": (4, (4,)),
    "forward_clipval": (None, (None,)),
    "initial_val": (0.0, (0.0, 0)),
    "input_shape": ("BSGNH", ("BSGNH",)),
    "internal_input_shape": ("SBNGH", ("SBNGH",)),
    "output_shape": ("BNSH", ("BNSH",)),
    "constants": ({}, ({},)),
}
SIZES_SLSTM = frozenset(("num_heads", "conv1d_kernel_size"))
INERT_SLSTM: Reasons = {
    _TRAINED: ("bias_init", "recurrent_weight_init", "gradient_recurrent_cut", "gradient_recurrent_clipval"),
    _OVERWRITTEN: ("embedding_dim", "hidden_size", "dropout", "_block_idx", "_num_blocks"),
    "how the kernel computed: float32 here": (
        *("backend", "batch_size", "enable_automatic_mixed_precision", "dtype"),
        *("dtype_b", "dtype_r", "dtype_w", "dtype_g", "dtype_s", "dtype_a"),
    ),
}
SUPPORTED_FEEDFORWARD: Options = {
    "ff_type": ("ffn_gated", ("ffn_gated",)),
    "bias": (False, (False,)),
    "act_fn": ("gelu", ("gelu", "relu", "swish", "selu", "sigmoid", "relu^2")),
}
SIZES_FEEDFORWARD = frozenset(_WIDTH)
INERT_FEEDFORWARD: Reasons = {_TRAINED: ("dropout",), _OVERWRITTEN: ("embedding_dim", "_num_blocks", "_proj_up_dim")}


def read(huggingface: Section, agent: Section) -> XLSTMConfig:
    """Read the sizes from the training config's section ``huggingface``.

    Raises:
        CheckpointError: a field missing or of the wrong type, or an option that is not supported.
        ValueError: sizes do not fit together.
    """
    file = huggingface.file
    huggingface.require(SUPPORTED_HUGGINGFACE)
    huggingface.know(INERT_HUGGINGFACE, SUPPORTED_HUGGINGFACE, ["xlstm_config"])
    stack = huggingface.section("xlstm_config")
    stack.require(SUPPORTED_STACK)
    stack.know(INERT_STACK, SUPPORTED_STACK, SIZES_STACK)
    hidden_size, num_blocks = stack.integer("embedding_dim"), stack.integer("num_blocks")
    mlstm = stack.section("mlstm_block.mlstm")
    slstm = stack.section("slstm_block.slstm")
    feedforward = stack.section("slstm_block.feedforward")

    for block, layers in (("mlstm_block", ("mlstm",)), ("slstm_block", ("slstm", "feedforward"))):
        stack.section(block).know(INERT_BLOCK, layers)
    mlstm.know(INERT_MLSTM, SIZES_MLSTM)
    slstm.know(INERT_SLSTM, SIZES_SLSTM, SUPPORTED_SLSTM)
    feedforward.know(INERT_FEEDFORWARD, SIZES_FEEDFORWARD, SUPPORTED_FEEDFORWARD)
    slstm_at = stack.get("slstm_at", [])
    if slstm_at == "all":
        slstm_at = list(range(num_blocks))
    if not isinstance(slstm_at, list) or not all(isinstance(i, int) for i in slstm_at):
        raise CheckpointError(f"{file}: {stack.path}.slstm_at: expected a list of blocks, got {slstm_at!r}")
    conv_kernel_size = mlstm.integer("conv1d_kernel_size", 4)
    if slstm_at:
        if stack.get("slstm_block", None) is None or "feedforward" not in stack.get("slstm_block"):
            raise CheckpointError(f"{feedforward.path} is missing in {file}; sLSTM blocks without it are not supported")
        slstm.require({**SUPPORTED_SLSTM, "conv1d_kernel_size": (4, (conv_kernel_size,))})
        feedforward.require(SUPPORTED_FEEDFORWARD)
    return XLSTMConfig(
        hidden_size=hidden_size,
        num_blocks=num_blocks,
        num_heads=mlstm.integer("num_heads", 4),
        inner_size=_width(mlstm, hidden_size, 2.0),
        slstm_at=tuple(sorted(slstm_at)),
        slstm_num_heads=slstm.integer("num_heads", 4),
        ffn_size=_width(feedforward, hidden_size, 1.3) if slstm_at else 0,
        ffn_activation=feedforward.get("act_fn", "gelu") if slstm_at else "gelu",
        conv_kernel_size=conv_kernel_size,
        qkv_block_size=mlstm.integer("qkv_proj_blocksize", 4),
    )


def _width(section: Section, hidden_size: int, default_factor: float) -> int:
    """Width of a projection by the xlstm package's rule: factor * hidden size, rounded to a multiple."""
    multiple = section.integer("round_proj_up_to_multiple_of", 64)
    width = section.number("proj_factor", default_factor) * hidden_size
    if section.get("round_proj_up_dim_up", True):
        return round_up(width, multiple)
    return int(width // multiple * multiple)


BLOCKS = "encoder.layers.blocks."
BLOCK = re.compile(r"encoder\.layers\.blocks\.(\d+)\.")
KERNEL, BIAS = "slstm_cell._recurrent_kernel_", "slstm_cell._bias_"


def recognizes(names: Iterable[str]) -> bool:
    """Whether a checkpoint with weights of these names has an xLSTM."""
    return any(name.startswith(BLOCKS) and ".xlstm." in name for name in names)


def infer(weights: FoundWeights) -> XLSTMConfig:
    """Infer every size from the weights alone.

    Raises:
        CheckpointError: blocks are missing.
        ValueError: sizes do not fit together.
    """
    hidden = weights.shape("embed_ln.weight")[0]
    blocks = range(weights.block_count(BLOCK))
    slstm_at = tuple(i for i in blocks if f"{BLOCKS}{i}.xlstm.{KERNEL}" in weights)
    mlstm_at = [i for i in blocks if i not in slstm_at]
    sizes: dict[str, Any] = {"num_heads": 4, "inner_size": 2 * hidden}
    if mlstm_at:
        layer = f"{BLOCKS}{mlstm_at[0]}.xlstm"
        sizes = {
            "num_heads": weights.shape(f"{layer}.mlstm_cell.igate.weight")[0],
            "inner_size": weights.shape(f"{layer}.learnable_skip")[0],
            "qkv_block_size": weights.shape(f"{layer}.q_proj.weight")[-1],
        }
    if slstm_at:
        block = f"{BLOCKS}{slstm_at[0]}"
        sizes["slstm_num_heads"] = weights.shape(f"{block}.xlstm.{KERNEL}")[0]
        sizes["ffn_size"] = weights.shape(f"{block}.ffn.proj_down.weight")[-1]
        weights.assumptions.append("feed-forward activation gelu, as in the published models")
    sizes["conv_kernel_size"] = weights.shape(f"{BLOCKS}0.xlstm.conv1d.conv.weight")[-1]
    return XLSTMConfig(hidden_size=hidden, num_blocks=len(blocks), slstm_at=slstm_at, **sizes)


def canonical(weights: Weights, config: XLSTMConfig) -> Weights:
    """Convert sLSTM kernels of the `cuda` backend, which the kernel's shape gives away.

    `cuda`: kernel (heads, head_dim, 4 * head_dim), bias ordered (heads, 4, head_dim);
    `vanilla`: kernel (heads, 4 * head_dim, head_dim), bias (4, heads, head_dim).
    """
    converted = dict(weights)
    for key, kernel in weights.items():
        if not key.endswith(KERNEL) or kernel.dim() != 3 or kernel.shape[2] != 4 * kernel.shape[1]:
            continue
        heads, width, _ = kernel.shape
        bias_key = key.removesuffix(KERNEL) + BIAS
        kernel = kernel.reshape(heads, width, 4, width).permute(0, 2, 3, 1)
        converted[key] = kernel.reshape(heads, 4 * width, width)
        if bias_key in weights and weights[bias_key].numel() == 4 * heads * width:
            converted[bias_key] = weights[bias_key].reshape(heads, 4, width).transpose(0, 1).reshape(-1)
    return converted
