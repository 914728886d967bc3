"""Reads the original training config (`.hydra/config.yaml`) into a :class:`ModelConfig`.

Every option of the original model that changes what it computes is looked at: supported values are
listed in :data:`SUPPORTED_OPTIONS`, everything else is refused by name and value. Where an option is
absent, the original constructors' default holds, which may itself be unsupported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lram_export.config import ModelConfig, round_up
from lram_export.errors import CheckpointError

SUPPORTED_KINDS = ("MDDXLSTM",)
_ABSENT = object()

# options of agent_params that change what the agent feeds its model or does with what comes out
SUPPORTED_AGENT: dict[str, tuple[object, tuple[object, ...]]] = {
    "kind": ("", SUPPORTED_KINDS),
    "stochastic_policy": (False, (False,)),
    "s_proj_dim": (None, (None,)),
    "a_proj_dim": (None, (None,)),
    "s_proj_raw": (False, (False,)),
    "target_reward": (None, (None,)),
    "a_sample_kwargs": (None, (None,)),
}
# option of agent_params.model_kwargs -> (default in the original constructors, values that are supported)
SUPPORTED_OPTIONS: dict[str, tuple[object, tuple[object, ...]]] = {
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
# options of model_kwargs without influence on what the policy computes when it acts
IGNORED_OPTIONS = frozenset(
    [
        "use_crossattn_mask",
        "max_act_dim",
        "inf_dummy_batch_size",
        "p_mask",
        "p_token_drop",
        "use_action_pad",
        "tok_rtg_target_only",
        "rtg_tok_kwargs",
        "r_tok_kwargs",
        "s_tok_kwargs",
    ]
)
SIZE_OPTIONS = frozenset(("action_channels", "discrete_actions", "state_dim", "image_shape"))
# options of agent_params.huggingface that change the computation
SUPPORTED_HUGGINGFACE: dict[str, tuple[object, tuple[object, ...]]] = {
    "ln_bias": (False, (False,)),
    "rms_norm": (False, (False,)),
    "embed_rms_norm": (False, (False,)),
    "chunkwise_step": (False, (False,)),
    "add_cross_attention": (False, (False,)),
    "rope": (None, (None, False)),
}
# fields of the xlstm package's configs that are read as sizes, must have one value, or do not matter
SUPPORTED_STACK: dict[str, tuple[object, tuple[object, ...]]] = {
    "add_post_blocks_norm": (True, (True,)),
    "bias": (False, (False,)),
}
SUPPORTED_SLSTM: dict[str, tuple[object, tuple[object, ...]]] = {
    "function": ("slstm", ("slstm",)),
    "group_norm_weight": (True, (True,)),
    "num_states": (4, (4,)),
    "num_gates": (4, (4,)),
    "forward_clipval": (None, (None,)),
    "initial_val": (0.0, (0.0, 0)),
}
SUPPORTED_FEEDFORWARD: dict[str, tuple[object, tuple[object, ...]]] = {
    "ff_type": ("ffn_gated", ("ffn_gated",)),
    "bias": (False, (False,)),
    "act_fn": ("gelu", ("gelu", "relu", "swish", "selu", "sigmoid", "relu^2")),
}


class _Section:
    """One mapping of the config; leaves are resolved one by one, so unresolvable others do not matter."""

    def __init__(self, config: Any, path: str, file: Path) -> None:
        self.config, self.path, self.file = config, path, file

    def names(self) -> list[str]:
        node = self._node()
        return [] if node is None else [str(k) for k in node]

    def _node(self) -> Any:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            node = OmegaConf.select(self.config, self.path) if self.path else self.config
        except OmegaConfBaseException as error:
            raise self._cannot_resolve(self.path, error) from None
        if node is not None and not OmegaConf.is_dict(node):
            raise CheckpointError(f"{self.file}: {self.path}: expected a mapping, got {node!r}")
        return node

    def get(self, name: str, default: Any = _ABSENT) -> Any:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        node = self._node()
        path = f"{self.path}.{name}"
        if node is None or name not in node:
            if default is _ABSENT:
                raise CheckpointError(f"{self.file}: {path}: missing")
            return default
        try:
            value = node[name]
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            raise self._cannot_resolve(path, error) from None

    def integer(self, name: str, default: Any = _ABSENT) -> int:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(f"{self.file}: {self.path}.{name}: expected an integer, got {value!r}")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{self.file}: {self.path}.{name}: expected a number, got {value!r}")
        return float(value)

    def require(self, options: dict[str, tuple[object, tuple[object, ...]]]) -> None:
        for name, (default, supported) in options.items():
            value = self.get(name, default)
            # `in` alone would take 1 for True
            if not any(value == s and isinstance(value, bool) == isinstance(s, bool) for s in supported):
                absent = " (the default of the training code)" if name not in self.names() else ""
                raise CheckpointError(
                    f"{self.file}: {self.path}.{name} = {value!r}{absent} is not supported; "
                    f"supported: {', '.join(repr(s) for s in supported)}"
                )

    def _cannot_resolve(self, path: str, error: Exception) -> CheckpointError:
        reason = str(error).splitlines()[0]
        return CheckpointError(f"{self.file}: {path}: cannot be resolved ({reason})")


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
        raise CheckpointError(f"{file}: not a readable YAML config: {str(error).splitlines()[0]}") from None
    if not OmegaConf.is_dict(config) or "agent_params" not in config:
        raise CheckpointError(f"{file}: agent_params: missing; expected the .hydra/config.yaml of a training run")
    agent = _Section(config, "agent_params", file)
    model = _Section(config, "agent_params.model_kwargs", file)
    huggingface = _Section(config, "agent_params.huggingface", file)
    stack = _Section(config, "agent_params.huggingface.xlstm_config", file)

    _check_options(agent, model, huggingface, stack)
    # running statistics of an environment wrapper, which no checkpoint holds
    _Section(config, "env_params", file).require({"norm_obs": (False, (False,))})
    hidden_size, num_blocks = stack.integer("embedding_dim"), stack.integer("num_blocks")
    mlstm = _Section(config, f"{stack.path}.mlstm_block.mlstm", file)
    slstm = _Section(config, f"{stack.path}.slstm_block.slstm", file)
    feedforward = _Section(config, f"{stack.path}.slstm_block.feedforward", file)

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
    act_dim = _Section(config, "agent_params.replay_buffer_kwargs", file).get("max_act_dim", None)
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


def _check_options(agent: _Section, model: _Section, huggingface: _Section, stack: _Section) -> None:
    agent.require(SUPPORTED_AGENT)
    if agent.get("target_return_type", "fixed") == "infer":
        raise CheckpointError(
            f"{agent.file}: agent_params.target_return_type = 'infer' is not supported: return-to-go would be "
            f"predicted by the model at every step; supported: types that choose a target before the episode"
        )
    unknown = sorted(set(model.names()) - set(SUPPORTED_OPTIONS) - IGNORED_OPTIONS - SIZE_OPTIONS)
    if unknown:
        raise CheckpointError(
            f"{model.file}: {model.path}.{unknown[0]} = {model.get(unknown[0])!r} is not supported: "
            f"this option of the training code is not known"
        )
    model.require(SUPPORTED_OPTIONS)
    huggingface.require(SUPPORTED_HUGGINGFACE)
    stack.require(SUPPORTED_STACK)
    known = {"hidden_size", "n_layer", "n_head", "xlstm_config", *SUPPORTED_HUGGINGFACE}
    inert = {"max_ep_len", "max_length", "activation_function", "use_fast_attn", "n_positions", "n_inner"}
    for name in huggingface.names():
        if name not in known | inert and not name.endswith(("dropout", "pdrop", "_range", "_epsilon")):
            raise CheckpointError(
                f"{huggingface.file}: {huggingface.path}.{name} = {huggingface.get(name)!r} is not supported: "
                f"this option of the training code is not known"
            )


def _width(section: _Section, hidden_size: int, default_factor: float) -> int:
    """Width of a projection by the xlstm package's rule: factor * hidden size, rounded to a multiple."""
    multiple = section.integer("round_proj_up_to_multiple_of", 64)
    width = section.number("proj_factor", default_factor) * hidden_size
    if section.get("round_proj_up_dim_up", True):
        return round_up(width, multiple)
    return int(width // multiple * multiple)
