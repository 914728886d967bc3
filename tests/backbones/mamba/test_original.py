"""What the training code can say of a Mamba: read, inferred, or refused by name."""

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

from lram_export.backbones.mamba import original
from lram_export.backbones.mamba.config import MambaConfig
from lram_export.checkpoints.checkpoint import Hints
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.checkpoints.random import random_checkpoint
from lram_export.checkpoints.training_config import read_hydra_config
from lram_export.errors import CheckpointError
from lram_export.model.config import ModelConfig, lram_encoders
from lram_export.model.heads import ActionBins
from tests.conftest import GOLDEN

HUGGINGFACE, MODEL = "huggingface", "model_kwargs"
CONFIG = GOLDEN / "mamba_state" / ".hydra" / "config.yaml"
HEAD_ROWS = 8 * 274


def changed(folder: Path, section: str, values: dict[str, Any]) -> Path:
    """The config of a training run with some options changed; of None an option is taken away."""
    config = yaml.safe_load(CONFIG.read_text())
    options = config["agent_params"][section]
    for name, value in values.items():
        options.pop(name, None)
        if value is not None:
            options[name] = value
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def read(folder: Path, section: str, **values: Any) -> MambaConfig:
    """The backbone of :func:`changed`."""
    backbone = read_hydra_config(changed(folder, section, values), HEAD_ROWS).backbone
    assert isinstance(backbone, MambaConfig)
    return backbone


def test_every_size_is_read(tmp_path: Path) -> None:
    values = {"d_model": 88, "n_layer": 2, "d_state": 8, "d_conv": 3, "expand": 1.5, "dt_rank": 5, "norm_epsilon": 1e-6}
    found = read(tmp_path, HUGGINGFACE, **values, bias=True, conv_bias=False, rms_norm=False)
    assert found == MambaConfig(88, 2, 132, 8, 5, 3, True, False, False, 1e-6)


def test_what_is_absent_is_what_the_training_code_takes(tmp_path: Path) -> None:
    found = read(tmp_path, HUGGINGFACE, d_model=None, n_layer=None)
    assert found == MambaConfig(2560, 64, 5120, state_size=16, dt_rank=160)
    assert read(tmp_path, HUGGINGFACE, d_model=100, dt_rank="auto").dt_rank == 7


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (MODEL, {"ssm_cfg": {"layer": "Mamba2"}}, r"model_kwargs.ssm_cfg = {'layer': 'Mamba2'} is not supported"),
        (MODEL, {"ssm_cfg": {"d_state": 64}}, r"model_kwargs.ssm_cfg = .* supported: None"),
        (HUGGINGFACE, {"d_intermediate": 128}, r"huggingface.d_intermediate = 128 is not supported; supported: 0"),
        (HUGGINGFACE, {"d_intermediate": None}, r"huggingface.d_intermediate: missing"),
        (HUGGINGFACE, {"embed_rms_norm": True}, r"embed_rms_norm = True is not supported"),
        (HUGGINGFACE, {"add_cross_attention": True}, r"add_cross_attention = True is not supported"),
        (HUGGINGFACE, {"rms_norm": "yes"}, r"rms_norm = 'yes' is not supported; supported: True, False"),
        (HUGGINGFACE, {"bias": 1}, r"bias = 1 is not supported"),
        (HUGGINGFACE, {"d_state": 0}, r"config.yaml: state_size: expected 1 to 1024, got 0"),
        (HUGGINGFACE, {"d_conv": 1}, r"config.yaml: conv_kernel_size: expected 2 to 64, got 1"),
        (HUGGINGFACE, {"dt_rank": "all"}, r"dt_rank: expected an integer, got 'all'"),
        (HUGGINGFACE, {"expand": "two"}, r"expand: expected a number, got 'two'"),
        (HUGGINGFACE, {"expand": float("inf")}, r"expand: expected a number, got inf"),
        (HUGGINGFACE, {"norm_epsilon": 0}, r"norm_epsilon: expected a number from 1e-12 to 1, got 0"),
        (HUGGINGFACE, {"chunk_size": 256}, r"huggingface.chunk_size = 256 is not supported: this option"),
        (MODEL, {"layers": 2}, r"model_kwargs.layers = 2 is not supported: this option"),
    ],
)
def test_options_that_are_not_supported(section: str, values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        read(tmp_path, section, **values)
    assert "\n" not in str(error.value)


def test_options_that_do_not_matter_may_have_any_value(tmp_path: Path) -> None:
    before = read(tmp_path, HUGGINGFACE)
    for section, reasons in ((HUGGINGFACE, original.INERT_HUGGINGFACE), (MODEL, original.INERT_MODEL)):
        names = [name for names in reasons.values() for name in names]
        assert read(tmp_path, section, **dict.fromkeys(names, "any")) == before


@pytest.mark.parametrize(
    "backbone",
    [
        MambaConfig(24, 3, 40, state_size=5, dt_rank=3, conv_kernel_size=3),
        MambaConfig(24, 1, 40, 5, 3, 2, bias=True, conv_bias=False, rms_norm=False),
    ],
)
def test_without_a_config_the_weights_tell(backbone: MambaConfig, tmp_path: Path) -> None:
    config = ModelConfig(backbone, ActionBins(8, 256, 18), lram_encoders(7, None))
    found = load_checkpoint(write(tmp_path, random_checkpoint(config, tmp_path).weights), hints=Hints(act_dim=8))
    assert found.config == config
    assert "norm epsilon 1e-5, as in the published models" in found.assumptions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({"encoder.layers.0.mixer.dt_bias": torch.ones(4)}), "dt_bias: these are weights of Mamba2"),
        (lambda w: w.update({"encoder.layers.0.mlp.fc1.weight": torch.ones(4, 4)}), "mlp.fc1.weight: unknown weight"),
        (
            lambda w: w.update({"encoder.layers.4.mixer.D": torch.ones(4)}),
            r"expected blocks 0, 1, .*, got \[0, 1, 4",
        ),
        (lambda w: w.pop("encoder.layers.1.mixer.x_proj.weight"), "layers.1.mixer.x_proj.weight: missing"),
        (lambda w: w.pop("encoder.norm_f.weight"), "encoder.norm_f.weight: missing"),
    ],
)
def test_weights_that_are_no_mamba(change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    config = ModelConfig(MambaConfig(24, 2, 40, 5, 3), ActionBins(8, 256, 18), lram_encoders(7, None))
    weights = dict(random_checkpoint(config, tmp_path).weights)
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(write(tmp_path, weights), hints=Hints(act_dim=8))


def test_a_config_of_another_size_is_noticed(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "mamba_state" / "model.zip", tmp_path / "model.zip")
    config = changed(tmp_path, HUGGINGFACE, {"d_state": 8})
    with pytest.raises(CheckpointError, match=r"A_log: the config expects shape \(128, 8\), the weights have"):
        load_checkpoint(tmp_path / "model.zip", config)


def write(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A `model.zip` of weights."""
    content = io.BytesIO()
    torch.save(weights, content)
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        archive.writestr("policy.pth", content.getvalue())
    return folder / "model.zip"
