"""Write a checkpoint as the original training code does: `model.zip` with `.hydra/config.yaml` beside it."""

from __future__ import annotations

import io
import json
import platform
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lram_export.backbones.decision_transformer.config import DecisionTransformerConfig
from lram_export.backbones.decision_transformer.original import MATRIX
from lram_export.backbones.mamba.config import MambaConfig
from lram_export.backbones.xlstm.config import XLSTMConfig
from lram_export.model.config import ModelConfig
from lram_export.system.files import atomic_file


@dataclass(frozen=True)
class Training:
    """What the config file says about the run: batches trained, steps per sequence, batch size, seed."""

    batches: int
    context: int
    batch_size: int
    seed: int


def save_original(weights: dict[str, Tensor], config: ModelConfig, training: Training, folder: Path) -> Path:
    """Write ``folder/model.zip`` and ``folder/.hydra/config.yaml``; returns the zip's path."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / ".hydra" / "config.yaml", force=True) as temporary:
        temporary.write_text(yaml.safe_dump(hydra_config(config, training), sort_keys=False), encoding="utf-8")
    file = folder / "model.zip"
    with atomic_file(file, force=True) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr("data", json.dumps({"num_timesteps": training.batches, "seed": training.seed}))
        archive.writestr("pytorch_variables.pth", _torch_bytes({"state_mean": None, "state_std": None}))
        archive.writestr("policy.pth", _torch_bytes(as_saved(weights)))
        archive.writestr("system_info.txt", f"Python: {platform.python_version()}\nPyTorch: {torch.__version__}\n")
    return file


def hydra_config(config: ModelConfig, training: Training) -> dict[str, Any]:
    """The part of the original config that says what the model is; everything else is left to its defaults."""
    kind, huggingface, model = AGENTS[config.backbone.kind](config.backbone, training)
    return {
        "agent_params": {
            "kind": kind,
            "huggingface": {"max_length": training.context, "n_layer": config.backbone.num_blocks, **huggingface},
            "model_kwargs": {
                "reward_condition": True,
                "tokenize_a": True,
                "action_channels": config.head.action_channels,
                "discrete_actions": config.head.discrete_actions,
                "state_dim": config.encoder("state").dim,
                "image_shape": None if config.encoder("image") is None else list(config.encoder("image").shape),
                "use_time_embds": False,
                "action_condition": False,
                "shared_a_head": True,
                **model,
            },
            "replay_buffer_kwargs": {"max_act_dim": config.head.act_dim, "max_state_dim": config.encoder("state").dim},
            "batch_size": training.batch_size,
            "stochastic_policy": False,
            "loss_fn": "ce",
            "target_return_type": "predefined",
            "eval_context_len": training.context,
        },
        "env_params": {"envid": "mt45_v2", "norm_obs": False, "reward_scale": {"mt50": 200}},
        "run_params": {"total_timesteps": training.batches},
        "seed": training.seed,
    }


Agent = tuple[str, dict[str, Any], dict[str, Any]]
"""What the training code calls it, and what it says beyond the others in ``huggingface`` and ``model_kwargs``."""


def _xlstm(sizes: XLSTMConfig, training: Training) -> Agent:
    convolution = {"conv1d_kernel_size": sizes.conv_kernel_size}
    mlstm = {
        **convolution,
        "qkv_proj_blocksize": sizes.qkv_block_size,
        "num_heads": sizes.num_heads,
        "proj_factor": sizes.inner_size / sizes.hidden_size,
    }
    slstm = {"backend": "vanilla", "num_heads": sizes.slstm_num_heads, **convolution}
    feedforward = {"proj_factor": sizes.ffn_size / sizes.hidden_size, "act_fn": sizes.ffn_activation}
    stack = {
        "mlstm_block": {"mlstm": mlstm},
        "slstm_block": {"slstm": slstm, "feedforward": feedforward},
        "context_length": training.context * 3,
        "num_blocks": sizes.num_blocks,
        "embedding_dim": sizes.hidden_size,
        "slstm_at": list(sizes.slstm_at),
    }
    return "MDDXLSTM", {"hidden_size": sizes.hidden_size, "n_head": sizes.num_heads, "xlstm_config": stack}, {}


def _mamba(sizes: MambaConfig, training: Training) -> Agent:
    huggingface = {
        "d_model": sizes.hidden_size,
        "d_intermediate": 0,
        "d_state": sizes.state_size,
        "d_conv": sizes.conv_kernel_size,
        "expand": sizes.inner_size // sizes.hidden_size,
        "dt_rank": sizes.dt_rank,
    }
    return "MDDMamba", huggingface, {}


def _decision_transformer(sizes: DecisionTransformerConfig, training: Training) -> Agent:
    huggingface = {
        "hidden_size": sizes.hidden_size,
        "n_head": sizes.num_heads,
        "n_inner": sizes.ffn_size,
        "n_positions": 3 * sizes.context_length,
        "activation_function": "gelu",
        "use_fast_attn": True,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0),
    }
    return "MDDT", huggingface, {"global_pos_embds": True}


AGENTS: dict[str, Callable[[Any, Training], Agent]] = {
    "xlstm": _xlstm,
    "mamba": _mamba,
    "decision_transformer": _decision_transformer,
}


def as_saved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as the training code lays them out: GPT-2's matrices are (in, out)."""
    return {
        name: (weight.t() if MATRIX.fullmatch(name) else weight).detach().contiguous()
        for name, weight in weights.items()
    }


def _torch_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
