"""What the training code can say of a Decision Transformer: read, asked for, or refused by name."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lram_export.backbones.decision_transformer import original
from lram_export.backbones.decision_transformer.config import DecisionTransformerConfig
from lram_export.checkpoints.checkpoint import Checkpoint, Hints
from lram_export.checkpoints.loading import CheckpointSource, load_checkpoint
from lram_export.checkpoints.random import random_checkpoint
from lram_export.checkpoints.training_config import read_hydra_config
from lram_export.errors import CheckpointError, LramError, UsageError
from lram_export.model.config import ModelConfig, lram_encoders
from lram_export.model.heads import ActionBins
from tests.conftest import GOLDEN

AGENT, HUGGINGFACE, MODEL = "agent_params", "agent_params.huggingface", "agent_params.model_kwargs"
CONFIG = GOLDEN / "dt_state" / ".hydra" / "config.yaml"
HEAD_ROWS = 8 * 274


def read(folder: Path, section: str, **values: Any) -> DecisionTransformerConfig:
    """The backbone in the config of a training run with some options changed; of None an option is taken away."""
    config = yaml.safe_load(CONFIG.read_text())
    options = config
    for name in section.split("."):
        options = options[name]
    for name, value in values.items():
        options.pop(name, None)
        if value is not None:
            options[name] = value
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    backbone = read_hydra_config(file, HEAD_ROWS).backbone
    assert isinstance(backbone, DecisionTransformerConfig)
    return backbone


def test_every_size_is_read(tmp_path: Path) -> None:
    sizes = {"hidden_size": 96, "n_layer": 2, "n_head": 6, "n_inner": 100, "max_length": 20, "layer_norm_epsilon": 1e-6}
    assert read(tmp_path, HUGGINGFACE, **sizes) == DecisionTransformerConfig(96, 2, 6, 100, 20, norm_epsilon=1e-6)


def test_what_is_absent_is_what_the_training_code_takes(tmp_path: Path) -> None:
    absent = dict.fromkeys(("hidden_size", "n_layer", "n_head", "n_positions"))
    assert read(tmp_path, HUGGINGFACE, **absent) == DecisionTransformerConfig(128, 3, 1, 512, 16)
    assert read(tmp_path, AGENT, eval_context_len=None).context_length == 5


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (HUGGINGFACE, {"use_fast_attn": False}, r"huggingface.use_fast_attn = False is not supported; supported: True"),
        (HUGGINGFACE, {"use_fast_attn": None}, r"use_fast_attn = False \(the default of the training code\) is not"),
        (HUGGINGFACE, {"attn_pdrop": 0.1}, r"attn_pdrop = 0.1 is not supported; supported: 0"),
        (HUGGINGFACE, {"attn_pdrop": None}, r"attn_pdrop = 0.1 \(the default of the training code\) is not supported"),
        (HUGGINGFACE, {"activation_function": "gelu_new"}, r"activation_function = 'gelu_new' is not supported"),
        (HUGGINGFACE, {"activation_function": None}, r"activation_function = 'relu' \(the default"),
        (HUGGINGFACE, {"scale_attn_weights": False}, r"scale_attn_weights = False is not supported"),
        (HUGGINGFACE, {"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx = True is not"),
        (HUGGINGFACE, {"reorder_and_upcast_attn": True}, r"reorder_and_upcast_attn = True is not supported"),
        (HUGGINGFACE, {"rope": True}, r"rope = True is not supported"),
        (HUGGINGFACE, {"rms_norm": True}, r"rms_norm = True is not supported"),
        (HUGGINGFACE, {"embed_rms_norm": True}, r"embed_rms_norm = True is not supported"),
        (HUGGINGFACE, {"add_cross_attention": True}, r"add_cross_attention = True is not supported"),
        (HUGGINGFACE, {"n_head": 5}, r"config.yaml: num_heads: expected a divisor of hidden_size 64, got 5"),
        (
            HUGGINGFACE,
            {"n_positions": 47},
            r"n_positions: expected at least 48, 3 for each of the 16 steps of .*, got 47",
        ),
        (HUGGINGFACE, {"n_inner": "wide"}, r"n_inner: expected an integer, got 'wide'"),
        (HUGGINGFACE, {"sliding_window": 4}, r"huggingface.sliding_window = 4 is not supported: this option"),
        (
            MODEL,
            {"global_pos_embds": False},
            r"model_kwargs.global_pos_embds = False is not supported; supported: True",
        ),
        (MODEL, {"global_pos_embds": None}, r"global_pos_embds = False \(the default of the training code\) is not"),
        (AGENT, {"eval_context_len": 1}, r"context_length: expected 2 to 1024, got 1"),
        (AGENT, {"eval_context_len": "all"}, r"agent_params.eval_context_len: expected an integer, got 'all'"),
        (AGENT, {"reset_inf_cache_freq": 7}, r"agent_params.reset_inf_cache_freq = 7 is not supported"),
        (AGENT, {"persist_context": True}, r"agent_params.persist_context = True is not supported"),
    ],
)
def test_options_that_are_not_supported(section: str, values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        read(tmp_path, section, **values)
    assert "\n" not in str(error.value)


def test_options_that_do_not_matter_may_have_any_value(tmp_path: Path) -> None:
    before = read(tmp_path, AGENT, eval_context_len=16)
    names = [name for names in original.INERT_HUGGINGFACE.values() for name in names if name != "max_length"]
    assert read(tmp_path, HUGGINGFACE, **dict.fromkeys(names, "any")) == before


SMALL = ModelConfig(DecisionTransformerConfig(24, 2, 3, 40, 6), ActionBins(8, 256, 18), lram_encoders(7, None))


def zip_of(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda weights: None) -> tuple[Path, Checkpoint]:
    """What training saves of a random model: matrices (in, out), unused positions, a table of words."""
    checkpoint = random_checkpoint(SMALL, folder)
    weights = {k: w.t() if original.MATRIX.fullmatch(k) else w for k, w in checkpoint.weights.items()}
    weights["encoder.wpe.weight"] = torch.cat([weights["encoder.wpe.weight"], torch.randn(11, 24)])
    weights["encoder.wte.weight"] = torch.zeros(1, 24)
    change(weights)
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        archive.writestr("policy.pth", buffer.getvalue())
    return folder / "model.zip", checkpoint


def test_without_a_config_the_weights_and_the_user_tell(tmp_path: Path) -> None:
    path, expected = zip_of(tmp_path)
    found = load_checkpoint(path, hints=Hints(act_dim=8, num_heads=3, context_length=6))
    assert found.config == SMALL
    assert all(torch.equal(found.weights[name], weight) for name, weight in expected.weights.items())
    assert "encoder.wte.weight" in found.skipped


@pytest.mark.parametrize(
    ("hints", "error", "message"),
    [
        ({}, UsageError, r"--num-heads: the weights do not show it \(heads of width 64 in the published models\)"),
        ({"num_heads": 3}, UsageError, r"--context-length: the weights do not show it \(50 in the published models\)"),
        (
            {"num_heads": 5, "context_length": 6},
            CheckpointError,
            "num_heads: expected a divisor of hidden_size 24, got",
        ),
        ({"num_heads": 3, "context_length": 10}, UsageError, "--context-length: expected at most 9, as .*29 positions"),
    ],
)
def test_what_must_be_said(hints: dict[str, int], error: type[LramError], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        load_checkpoint(zip_of(tmp_path)[0], hints=Hints(act_dim=8, **hints))


def test_what_the_weights_of_another_backbone_show_is_not_to_be_said(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "mamba_state" / "model.zip", tmp_path / "model.zip")
    with pytest.raises(UsageError, match=r"--num-heads: the weights of .* show it; leave it out"):
        load_checkpoint(tmp_path / "model.zip", hints=Hints(num_heads=3))


@pytest.mark.parametrize(
    ("name", "context", "message"),
    [
        ("dt_state", "ring", "expected one of window, cache, got 'ring'"),
        ("mamba_state", "window", "a model of backbone 'mamba' acts in one way only"),
    ],
)
def test_a_way_to_act_that_a_model_does_not_have(name: str, context: str, message: str) -> None:
    with pytest.raises(UsageError, match=rf"^--context: .*model\.zip: {message}$"):
        CheckpointSource(GOLDEN / name / "model.zip", context=context).load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("encoder.h.1.attn.c_attn.weight"), r"encoder.h.1.attn.c_attn.weight: missing"),
        (lambda w: w.pop("encoder.wpe.weight"), r"encoder.wpe.weight: missing"),
        (lambda w: w.update({"encoder.h.4.ln_1.weight": torch.ones(24)}), r"expected blocks 0, 1, .*, got \[0, 1, 4"),
        (
            lambda w: w.update({"encoder.h.0.mlp.c_fc.weight": w["encoder.h.0.mlp.c_fc.weight"].t()}),
            r"c_fc.weight: the config expects shape \(24, 24\), the weights have \(24, 40\)|h.0.mlp.c_",
        ),
    ],
)
def test_weights_that_are_no_transformer(change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(zip_of(tmp_path, change)[0], hints=Hints(act_dim=8, num_heads=3, context_length=6))
