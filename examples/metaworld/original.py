"""Write a checkpoint as the original training code does: `model.zip` with `.hydra/config.yaml` beside it."""

from __future__ import annotations

import io
import json
import platform
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

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
        archive.writestr("policy.pth", _torch_bytes({k: w.detach().contiguous() for k, w in weights.items()}))
        archive.writestr("system_info.txt", f"Python: {platform.python_version()}\nPyTorch: {torch.__version__}\n")
    return file


def hydra_config(config: ModelConfig, training: Training) -> dict[str, Any]:
    """The part of the original config that says what the model is; everything else is left to its defaults."""
    return {
        "agent_params": {
            "kind": "MDDXLSTM",
            "huggingface": {
                "max_length": training.context,
                "n_layer": config.backbone.num_blocks,
                "hidden_size": config.backbone.hidden_size,
                "n_head": config.backbone.num_heads,
                "xlstm_config": {
                    "mlstm_block": {
                        "mlstm": {
                            "conv1d_kernel_size": config.backbone.conv_kernel_size,
                            "qkv_proj_blocksize": config.backbone.qkv_block_size,
                            "num_heads": config.backbone.num_heads,
                            "proj_factor": config.backbone.inner_size / config.backbone.hidden_size,
                        }
                    },
                    "slstm_block": {
                        "slstm": {
                            "backend": "vanilla",
                            "num_heads": config.backbone.slstm_num_heads,
                            "conv1d_kernel_size": config.backbone.conv_kernel_size,
                        },
                        "feedforward": {
                            "proj_factor": config.backbone.ffn_size / config.backbone.hidden_size,
                            "act_fn": config.backbone.ffn_activation,
                        },
                    },
                    "context_length": training.context * 3,
                    "num_blocks": config.backbone.num_blocks,
                    "embedding_dim": config.backbone.hidden_size,
                    "slstm_at": list(config.backbone.slstm_at),
                },
            },
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


def _torch_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
