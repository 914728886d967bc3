"""How the training code describes a Mamba, and how it names its weights.

Every option is on one of two lists: those that can change what the policy computes when it acts, with the values that
are supported (``SUPPORTED_...``); and those that cannot, with the reason (``INERT_...``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lram_export.backbones.mamba.config import MambaConfig, dt_rank_of
from lram_export.backbones.protocol import Weights
from lram_export.backbones.reading import FoundWeights
from lram_export.errors import CheckpointError
from lram_export.spec.sections import Options, Reasons, Section

KINDS = ("MDDMamba",)
"""What the training code calls agents with this backbone."""
# options of agent_params.huggingface that change the computation
SUPPORTED_HUGGINGFACE: Options = {
    "d_intermediate": (None, (0,)),
    "embed_rms_norm": (False, (False,)),
    "add_cross_attention": (False, (False,)),
    "rope": (None, (None, False)),
    "bias": (False, (False, True)),
    "conv_bias": (True, (True, False)),
    "rms_norm": (True, (True, False)),
}
SIZES_HUGGINGFACE = frozenset(("d_model", "n_layer", "d_state", "d_conv", "expand", "dt_rank", "norm_epsilon"))
INERT_HUGGINGFACE: Reasons = {
    "the transformer in whose place Mamba is put": (
        *("n_embd", "n_head", "hidden_size", "activation_function", "use_fast_attn", "n_positions", "n_inner"),
        *("vocab_size", "layer_norm_epsilon", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
        *("reorder_and_upcast_attn", "use_cache", "bos_token_id", "eos_token_id", "action_tanh", "output_attentions"),
    ),
    "the window of the form that is not recurrent, and its table of times": ("max_length", "max_ep_len"),
    "how the weights were trained": ("initializer_range", "resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "how it was computed: the same in float32": ("fused_add_norm", "residual_in_fp32", "dtype"),
}
# options of agent_params.model_kwargs that models with this backbone have beside those of all
SUPPORTED_MODEL: Options = {"ssm_cfg": (None, (None,))}
HINTS: tuple[str, ...] = ()
"""Sizes that the weights alone do not show."""
INERT_MODEL: Reasons = {"how the weights were trained": ("initializer_cfg",)}


def read(huggingface: Section, agent: Section) -> MambaConfig:
    """Read the sizes from the training config's section ``huggingface``.

    Raises:
        CheckpointError: a field missing or of the wrong type, or an option that is not supported.
        ValueError: sizes do not fit together.
    """
    huggingface.integer("d_intermediate")  # the training code has no default
    huggingface.require(SUPPORTED_HUGGINGFACE)
    huggingface.know(INERT_HUGGINGFACE, SUPPORTED_HUGGINGFACE, SIZES_HUGGINGFACE)
    hidden_size = huggingface.integer("d_model", 2560)
    automatic = huggingface.get("dt_rank", "auto") == "auto"
    return MambaConfig(
        hidden_size=hidden_size,
        num_blocks=huggingface.integer("n_layer", 64),
        inner_size=int(huggingface.number("expand", 2) * hidden_size),
        state_size=huggingface.integer("d_state", 16),
        dt_rank=dt_rank_of(hidden_size) if automatic else huggingface.integer("dt_rank"),
        conv_kernel_size=huggingface.integer("d_conv", 4),
        bias=huggingface.get("bias", False),
        conv_bias=huggingface.get("conv_bias", True),
        rms_norm=huggingface.get("rms_norm", True),
        norm_epsilon=huggingface.number("norm_epsilon", 1e-5),
    )


LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


def recognizes(names: Iterable[str]) -> bool:
    """Whether a checkpoint with weights of these names has a Mamba."""
    return any(LAYER.match(name) and ".mixer." in name for name in names)


def infer(weights: FoundWeights) -> MambaConfig:
    """Infer every size from the weights alone.

    Raises:
        CheckpointError: blocks are missing, or it is a Mamba2.
        ValueError: sizes do not fit together.
    """
    num_blocks = weights.block_count(LAYER)
    mixer = "encoder.layers.0.mixer"
    if f"{mixer}.dt_bias" in weights:
        raise CheckpointError(f"{weights.where}: {mixer}.dt_bias: these are weights of Mamba2, which is not supported")
    inner_size, state_size = weights.shape(f"{mixer}.A_log")
    weights.assumptions.append("norm epsilon 1e-5, as in the published models")
    return MambaConfig(
        hidden_size=weights.shape("embed_ln.weight")[0],
        num_blocks=num_blocks,
        inner_size=inner_size,
        state_size=state_size,
        dt_rank=weights.shape(f"{mixer}.dt_proj.weight")[-1],
        conv_kernel_size=weights.shape(f"{mixer}.conv1d.weight")[-1],
        bias=f"{mixer}.in_proj.bias" in weights,
        conv_bias=f"{mixer}.conv1d.bias" in weights,
        rms_norm="encoder.norm_f.bias" not in weights,
    )


def canonical(weights: Weights, config: MambaConfig) -> Weights:
    """There is one layout only."""
    return weights
