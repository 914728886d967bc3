"""Reads the original training config (`.hydra/config.yaml`) into a :class:`ModelConfig`.

Every option of the original's agent and model is on one of two lists: those that can change what the policy
computes when it acts, with the values that are supported (``SUPPORTED_...``); and those that cannot, with the reason
(``INERT_...``). Everything else is refused by name and value. Where an option is absent, the original constructors'
default holds, which may itself be unsupported.
"""

from __future__ import annotations

from pathlib import Path

from lram_export.backbones.registry import BACKBONES, backbone_module
from lram_export.errors import CheckpointError, describe
from lram_export.model.config import ModelConfig, lram_encoders
from lram_export.model.heads import ActionBins
from lram_export.spec.sections import Options, Reasons, Section

# options of agent_params that change what the agent feeds its model or does with what comes out
SUPPORTED_AGENT: Options = {
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
    "cross-attention, which no backbone here has": ("use_crossattn_mask",),
    "padding of past actions, which the policy is not shown": ("use_action_pad",),
    "repeats a row; one is kept": ("inf_dummy_batch_size",),
    "read by heads that this model does not have": ("max_act_dim",),
    "settings of options that are refused": (
        *("tok_rtg_target_only", "rtg_tok_kwargs", "r_tok_kwargs", "s_tok_kwargs"),
    ),
}
SIZE_OPTIONS = frozenset(("action_channels", "discrete_actions", "state_dim", "image_shape"))
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
    agent.require(SUPPORTED_AGENT)
    original = backbone_module(_backbone_kind(agent), "original")
    agent.know(INERT_AGENT, SUPPORTED_AGENT, READ_AGENT, ["kind"])
    model.know(INERT_OPTIONS, SUPPORTED_OPTIONS, SIZE_OPTIONS, original.SUPPORTED_MODEL, *original.INERT_MODEL.values())
    model.require({**SUPPORTED_OPTIONS, **original.SUPPORTED_MODEL})
    Section(config, "env_params", file).require(SUPPORTED_ENVIRONMENT)
    action_channels = model.integer("action_channels", 256)
    discrete_actions = model.integer("discrete_actions", 18)
    act_dim = Section(config, "agent_params.replay_buffer_kwargs", file).get("max_act_dim", None)
    image_shape = model.get("image_shape", [1, 84, 84])
    state_dim = None if model.get("state_dim", 39) is None else model.integer("state_dim", 39)
    try:
        backbone = original.read(agent.section("huggingface"), agent)
        head = ActionBins(
            act_dim or head_rows // max(action_channels + discrete_actions, 1), action_channels, discrete_actions
        )
        encoders = lram_encoders(state_dim, None if image_shape is None else tuple(image_shape))
        return ModelConfig(backbone, head, encoders)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: {error}") from None


def _backbone_kind(agent: Section) -> str:
    """The backbone whose training code calls it so; raises CheckpointError."""
    named = {name: kind for kind in BACKBONES for name in backbone_module(kind, "original").KINDS}
    agent.require({"kind": ("", tuple(named))})
    return named[agent.get("kind")]
