"""How the training code describes a Decision Transformer, and how it names and lays out its weights.

Every option is on one of two lists: those that can change what the policy computes when it acts, with the values that
are supported (``SUPPORTED_...``); and those that cannot, with the reason (``INERT_...``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lram_export.backbones.decision_transformer.config import (
    POSITIONS,
    PUBLISHED_CONTEXT_LENGTH,
    PUBLISHED_HEAD_WIDTH,
    STEP_TOKENS,
    DecisionTransformerConfig,
)
from lram_export.backbones.protocol import Weights
from lram_export.backbones.reading import FoundWeights
from lram_export.errors import CheckpointError, UsageError
from lram_export.spec.sections import Options, Reasons, Section

KINDS = ("MDDT",)
"""What the training code calls agents with this backbone."""
# options of agent_params.huggingface that change the computation; what is absent is as the transformers package has it
SUPPORTED_HUGGINGFACE: Options = {
    # without it padding is masked
    "use_fast_attn": (False, (True,)),
    "activation_function": ("relu", ("gelu",)),
    # fast attention drops out when the policy acts, too
    "attn_pdrop": (0.1, (0,)),
    "scale_attn_weights": (True, (True,)),
    "scale_attn_by_inverse_layer_idx": (False, (False,)),
    "reorder_and_upcast_attn": (False, (False,)),
    "add_cross_attention": (False, (False,)),
    "rms_norm": (False, (False,)),
    "embed_rms_norm": (False, (False,)),
    "rope": (None, (None, False)),
}
SIZES_HUGGINGFACE = frozenset(("hidden_size", "n_layer", "n_head", "n_inner", "n_positions", "layer_norm_epsilon"))
INERT_HUGGINGFACE: Reasons = {
    "of embeddings and outputs that this model does not have": (
        *("n_embd", "vocab_size", "bos_token_id", "eos_token_id", "action_tanh", "max_ep_len"),
    ),
    "the window of training; the one of acting is agent_params.eval_context_len": ("max_length",),
    "what is returned beside": ("use_cache", "output_attentions"),
    "how the weights were trained": ("initializer_range", "resid_pdrop", "embd_pdrop"),
}
# options of agent_params.model_kwargs that differ from those of all, or that only this backbone has
SUPPORTED_MODEL: Options = {"global_pos_embds": (False, (True,))}
INERT_MODEL: Reasons = {}
HINTS = ("num_heads", "context_length")
"""Sizes that the weights alone do not show."""


def read(huggingface: Section, agent: Section) -> DecisionTransformerConfig:
    """Read the sizes from the training config's section ``huggingface``, and the window from ``agent_params``.

    Raises:
        CheckpointError: a field missing or of the wrong type, or an option that is not supported.
        ValueError: sizes do not fit together.
    """
    huggingface.require(SUPPORTED_HUGGINGFACE)
    huggingface.know(INERT_HUGGINGFACE, SUPPORTED_HUGGINGFACE, SIZES_HUGGINGFACE)
    hidden_size = huggingface.integer("hidden_size", 128)
    context_length = agent.integer("eval_context_len", 5)
    positions = huggingface.integer("n_positions", 1024)
    if positions < STEP_TOKENS * context_length:
        raise CheckpointError(
            f"{huggingface.file}: {huggingface.path}.n_positions: expected at least {STEP_TOKENS * context_length}, "
            f"{STEP_TOKENS} for each of the {context_length} steps of {agent.path}.eval_context_len, got {positions}"
        )
    inner = huggingface.get("n_inner", None)
    return DecisionTransformerConfig(
        hidden_size=hidden_size,
        num_blocks=huggingface.integer("n_layer", 3),
        num_heads=huggingface.integer("n_head", 1),
        ffn_size=4 * hidden_size if inner is None else huggingface.integer("n_inner"),
        context_length=context_length,
        norm_epsilon=huggingface.number("layer_norm_epsilon", 1e-5),
    )


LAYER = re.compile(r"encoder\.h\.(\d+)\.")
MATRIX = re.compile(r"encoder\.h\.\d+\.(attn|mlp)\.\w+\.weight")
UNUSED = "encoder.wte."
"""The table of words of GPT-2, which no token here looks up."""


def recognizes(names: Iterable[str]) -> bool:
    """Whether a checkpoint with weights of these names has a Decision Transformer."""
    return any(LAYER.match(name) and ".attn." in name for name in names)


def infer(weights: FoundWeights) -> DecisionTransformerConfig:
    """Infer sizes from the weights and what the user says of the others.

    Raises:
        CheckpointError: blocks are missing.
        UsageError: a size that must be said and is not.
        ValueError: sizes do not fit together.
    """
    num_blocks = weights.block_count(LAYER)
    hidden_size = weights.shape("embed_ln.weight")[0]
    rows = weights.shape(POSITIONS)[0]
    published = {
        "num_heads": f"heads of width {PUBLISHED_HEAD_WIDTH}",
        "context_length": f"{PUBLISHED_CONTEXT_LENGTH}",
    }
    for name in HINTS:
        if name not in weights.given:
            raise UsageError(
                f"--{name.replace('_', '-')}: the weights do not show it ({published[name]} in the published models); "
                f"add it, or --config"
            )
    if rows < STEP_TOKENS * weights.given["context_length"]:
        raise UsageError(
            f"--context-length: expected at most {rows // STEP_TOKENS}, as {POSITIONS} has {rows} positions, "
            f"{STEP_TOKENS} for each step; got {weights.given['context_length']}"
        )
    weights.assumptions.extend(
        (
            "fast attention, which attends to padding, and gelu, as in the published models",
            "norm epsilon 1e-5, as in the published models",
        )
    )
    return DecisionTransformerConfig(
        hidden_size=hidden_size,
        num_blocks=num_blocks,
        num_heads=weights.given["num_heads"],
        ffn_size=weights.shape("encoder.h.0.mlp.c_fc.weight")[-1],
        context_length=weights.given["context_length"],
    )


def canonical(weights: Weights, config: DecisionTransformerConfig) -> Weights:
    """Matrices as (out, in), where GPT-2 has (in, out); the positions of the window alone."""
    kept = {name: weight for name, weight in weights.items() if not name.startswith(UNUSED)}
    for name, weight in kept.items():
        if MATRIX.fullmatch(name) and weight.dim() == 2:
            kept[name] = weight.t()
        elif name == POSITIONS and weight.dim() == 2:
            kept[name] = weight[: STEP_TOKENS * config.context_length]
    return kept
