"""Reads the original training config (`.hydra/config.yaml`) into a :class:`ModelConfig`.

Every option of the original's agent and model is on one of two lists: those that can change what the policy
computes when it acts, with the values that are supported (``SUPPORTED_...``); and those that cannot, with the reason
(``INERT_...``). Everything else is refused by name and value. Where an option is absent, the original constructors'
default holds, which may itself be unsupported.
"""

from __future__ import annotations

from pathlib import Path

from lram_export.backbones.xlstm.config import round_up
from lram_export.errors import CheckpointError, describe
from lram_export.model.config import ModelConfig
from lram_export.spec.sections import Options, Reasons, Section

SUPPORTED_KINDS = ("MDDXLSTM",)
# options of agent_params that change what the agent feeds its model or does with what comes out
SUPPORTED_AGENT: Options = {
    "kind": ("", SUPPORTED_KINDS),
    "stochastic_policy": (False, (False,)),
    "s_proj_dim": (None, (None,)),
    "a_proj_dim": (None, (None,)),
    "s_proj_raw": (False, (False,)),
    "target_reward": (None, (None,)),
    "a_sample_kwargs": (None, (None,)),
    "reset_inf_cache_freq": (None, (None,)),
    "persist_context": (False, (False,)),
    "augment_params": (None, (None,)),
    "target_return_type": ("fixed", ("fixed", "predefined", "predefined_noisy", "max", "mean_topk", "quantile")),
    "target_return_mult": (1, (1,)),
}
READ_AGENT = frozenset(("huggingface", "model_kwargs", "replay_buffer_kwargs"))
"""Sections that are read by themselves; of the replay buffer's only ``max_act_dim`` reaches the model."""
INERT_AGENT: Reasons = {
    "how the weights were trained": (
        *("learning_rate", "learning_starts", "batch_size", "gamma", "train_freq", "gradient_steps", "max_grad_norm"),
        *("weight_decay", "ent_coef", "lr_entropy", "ent_tuning_start", "target_entropy", "offline_steps"),
        *("warmup_steps", "accumulation_steps", "label_smoothing", "loss_fn", "loss_fn_kwargs", "optimizer_kind"),
        *("last_seq_only", "max_grad_steps", "steps_per_task", "lr_sched_kwargs", "frozen", "freeze_kwargs"),
        *("set_frozen_eval", "rtg_loss_weight", "use_bc_loss", "policy_ent", "policy_delay", "detach_policy_dt"),
        *("target_return_loss_fn_type", "target_reward_loss_fn_type", "target_state_loss_fn_type"),
    ),
    "networks beside the policy, which never act": (
        *("use_critic", "critic_reward_scale", "critic_lr", "critic_gamma", "critic_optim_kind", "critic_kwargs"),
        *("critic_as_dt_head", "critic_share_extractor", "critic_on_features", "critic_grad_norm"),
        *("critic_last_seq_only", "update_with_critic", "tau", "target_update_interval", "target_step_kind"),
        *("target_policy_noise", "use_policy_target", "policy_target_as_dt_head"),
    ),
    "which data was trained on": (
        *("data_paths", "buffer_size", "buffer_weight_by", "buffer_max_len_type", "buffer_topk"),
        "buffer_target_return",
    ),
    "noise while data is collected": (
        *("action_noise_std", "ou_noise", "action_noise_prob", "eval_deterministic_prob", "exploration_sched"),
        *("exploration_fraction", "exploration_initial_eps", "exploration_final_eps"),
    ),
    "what training started from; the checkpoint holds what came out": ("load_path", "load_kwargs"),
    "how it was computed: float32 and without compilation here": ("compile", "use_amp", "bfloat16"),
    "the window of the form that is not recurrent; exported policies act in the recurrent one": (
        *("use_inference_cache", "eval_context_len"),
    ),
    "settings of options that are refused": ("rtg_sample_kwargs", "n_proj_mat"),
    "logging and checks": ("verbose", "debug", "log_attn_maps", "create_eval_env", "supported_action_spaces"),
}
# option of agent_params.model_kwargs -> (default in the original constructors, values that are supported)
SUPPORTED_OPTIONS: Options = {
    "num_task_heads": (1, (1,)),
    "n_layer_head": (1, (1,)),
    "use_time_embds": (True, (False,)),
    "relative_pos_embds": (False, (False,)),
    "global_pos_embds": (False, (False,)),
    "both_time_embds": (False, (False,)),
    "rtg_condition": (True, (True,)),
    "reward_condition": (False, (True,)),
    "action_condition": (True, (False,)),
    "stochastic_policy": (False, (False,)),
    "symlog_transform": (False, (False,)),
    "separate_ln": (False, (False,)),
    "img_is_encoded": (False, (False,)),
    "encoder_kwargs": (None, (None, {}, {"kind": "impala"})),
    "orig_act_dim": (None, (None,)),
    "tokenize_a": (True, (True,)),
    "tokenize_rtg": (False, (False,)),
    "tokenize_r": (False, (False,)),
    "tokenize_s": (False, (False,)),
    "a_pos_embds": (False, (False,)),
    "tok_a_target_only": (False, (False,)),
    "shared_a_head": (False, (True,)),
    "a_tok_kwargs": (None, (None, {}, {"kind": "minmax"}, {"kind": "minmax", "min_val": -1, "max_val": 1})),
    "patch_size": (None, (None,)),
    "num_learned_s_tok": (None, (None,)),
    "embed_bias_init": ("normal", ("normal",)),
}
INERT_OPTIONS: Reasons = {
    "masks of training": ("p_mask", "p_token_drop"),
    "cross-attention, which xLSTM does not have": ("use_crossattn_mask",),
    "padding of past actions, which the policy is not shown": ("use_action_pad",),
    "repeats a row; one is kept": ("inf_dummy_batch_size",),
    "read by heads that this model does not have": ("max_act_dim",),
    "settings of options that are refused": (
        *("tok_rtg_target_only", "rtg_tok_kwargs", "r_tok_kwargs", "s_tok_kwargs"),
    ),
}
SIZE_OPTIONS = frozenset(("action_channels", "discrete_actions", "state_dim", "image_shape"))
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
# what the wrappers of env_params do to observations and rewards before the policy is given them
SUPPORTED_ENVIRONMENT: Options = {
    # running statistics that no checkpoint holds
    "norm_obs": (False, (False,)),
    "norm_reward": (False, (False,)),
    "frame_stack": (None, (None, 1)),
    "add_task_ids": (False, (False,)),
}


def read_hydra_config(file: Path, head_rows: int) -> ModelConfig:
    """Read the model's sizes from a training config.

    Args:
        file: the YAML file.
        head_rows: rows of the checkpoint's head, which decide ``act_dim`` where the config has no
            ``replay_buffer_kwargs.max_act_dim`` (the original takes it from the environment then).

    Raises:
        CheckpointError: not YAML, a field missing or of the wrong type, or an option that is not supported.
    """
    from omegaconf import OmegaConf

    try:
        config = OmegaConf.load(file)
    except Exception as error:  # OmegaConf and PyYAML raise many types, all meaning: not a readable config
        raise CheckpointError(f"{file}: not a readable YAML config: {describe(error)}") from None
    if not OmegaConf.is_dict(config) or "agent_params" not in config:
        raise CheckpointError(f"{file}: agent_params: missing; expected the .hydra/config.yaml of a training run")
    agent = Section(config, "agent_params", file)
    model = Section(config, "agent_params.model_kwargs", file)
    huggingface = Section(config, "agent_params.huggingface", file)
    stack = Section(config, "agent_params.huggingface.xlstm_config", file)

    _check_options(agent, model, huggingface, stack)
    Section(config, "env_params", file).require(SUPPORTED_ENVIRONMENT)
    hidden_size, num_blocks = stack.integer("embedding_dim"), stack.integer("num_blocks")
    mlstm = Section(config, f"{stack.path}.mlstm_block.mlstm", file)
    slstm = Section(config, f"{stack.path}.slstm_block.slstm", file)
    feedforward = Section(config, f"{stack.path}.slstm_block.feedforward", file)

    for block, layers in (("mlstm_block", ("mlstm",)), ("slstm_block", ("slstm", "feedforward"))):
        Section(config, f"{stack.path}.{block}", file).know(INERT_BLOCK, layers)
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
    action_channels = model.integer("action_channels", 256)
    discrete_actions = model.integer("discrete_actions", 18)
    act_dim = Section(config, "agent_params.replay_buffer_kwargs", file).get("max_act_dim", None)
    image_shape = model.get("image_shape", [1, 84, 84])
    try:
        return ModelConfig(
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
            state_dim=None if model.get("state_dim", 39) is None else model.integer("state_dim", 39),
            image_shape=None if image_shape is None else tuple(image_shape),
            act_dim=act_dim or head_rows // max(action_channels + discrete_actions, 1),
            action_channels=action_channels,
            discrete_actions=discrete_actions,
        )
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: {error}") from None


def _check_options(agent: Section, model: Section, huggingface: Section, stack: Section) -> None:
    agent.require(SUPPORTED_AGENT)
    agent.know(INERT_AGENT, SUPPORTED_AGENT, READ_AGENT)
    model.know(INERT_OPTIONS, SUPPORTED_OPTIONS, SIZE_OPTIONS)
    model.require(SUPPORTED_OPTIONS)
    huggingface.require(SUPPORTED_HUGGINGFACE)
    huggingface.know(INERT_HUGGINGFACE, SUPPORTED_HUGGINGFACE, ["xlstm_config"])
    stack.require(SUPPORTED_STACK)
    stack.know(INERT_STACK, SUPPORTED_STACK, SIZES_STACK)


def _width(section: Section, hidden_size: int, default_factor: float) -> int:
    """Width of a projection by the xlstm package's rule: factor * hidden size, rounded to a multiple."""
    multiple = section.integer("round_proj_up_to_multiple_of", 64)
    width = section.number("proj_factor", default_factor) * hidden_size
    if section.get("round_proj_up_dim_up", True):
        return round_up(width, multiple)
    return int(width // multiple * multiple)
