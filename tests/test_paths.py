"""Whoever uses the library gives a path as a text or as a Path."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lram_export
from lram_export import Bundle, ExportOptions, export_bundle, load_policy
from lram_export.benchmark.compare import compare_bundles
from lram_export.checkpoints.folder import save_checkpoint
from lram_export.checkpoints.loading import CheckpointSource, load_checkpoint
from lram_export.checkpoints.random import random_checkpoint
from lram_export.deploy.kit import write_kit
from lram_export.episodes.steps import load_steps, random_steps, save_steps
from lram_export.quantization.calibration import load_calibration
from lram_export.quantization.quantize import QuantizationOptions
from lram_export.report.collect import ReportOptions, collect
from lram_export.rollouts.observations import read_recording
from lram_export.rollouts.video import record_video
from lram_export.step_module.loading import load_step_policy
from lram_export.sweep.grid import SweepOptions
from lram_export.sweep.sweep import sweep
from lram_export.trainers.loading import TrainerOptions, load_trainer_policy
from lram_export.verification.verify import checkpoint_steps, verify_against_checkpoint
from tests.conftest import GOLDEN

POLICY = """
import torch, lram_export
def make():
    torch.manual_seed(0)
    return lram_export.StepPolicy(torch.nn.Sequential(torch.nn.Linear(4, 2)), observation=4, action=2)
"""
FUNCTIONS: tuple[Callable[..., Any], ...] = (
    *(export_bundle, load_policy, Bundle.open, load_checkpoint, CheckpointSource, save_checkpoint, random_checkpoint),
    *(load_step_policy, load_trainer_policy, TrainerOptions, save_steps, load_steps, load_calibration),
    *(QuantizationOptions, checkpoint_steps, compare_bundles, ReportOptions, collect, read_recording, record_video),
    *(sweep, SweepOptions, write_kit),
)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_what_takes_a_path_takes_a_text(function: Callable[..., Any]) -> None:
    kinds = [str(parameter.annotation) for parameter in inspect.signature(function).parameters.values()]
    paths = [kind for kind in kinds if "Path" in kind]
    assert paths and all("str | Path" in kind for kind in paths)


def test_every_public_function_is_looked_at() -> None:
    public = [getattr(lram_export, name) for name in lram_export.__all__]
    taking = [f for f in public if inspect.isfunction(f) and "Path" in str(inspect.signature(f))]
    assert taking and set(taking) <= set(FUNCTIONS)


def test_a_policy_goes_the_whole_way_by_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("policy.py").write_text(POLICY)
    policy = load_step_policy("policy.py:make")
    save_steps(random_steps(policy.spec(1), None, 60, seed=1, episode=20), "steps.npz")
    assert len(load_steps("steps.npz", policy.spec(1))) == 60
    options = ExportOptions(report=False, quantization=QuantizationOptions("int4", calibration=("steps.npz",)))
    bundle = export_bundle(policy, None, "policy.lram", options)
    assert bundle.path == Path("policy.lram") and bundle.manifest.name == "policy"
    with load_policy("policy.lram") as loaded:
        assert loaded.spec == Bundle.open("policy.lram").manifest.spec
    inputs = checkpoint_steps(bundle, "steps.npz", None, seed=0)
    assert verify_against_checkpoint(bundle, policy, ("onnxruntime",), inputs=inputs, threads=1).passed
    assert compare_bundles(bundle, bundle, recording="steps.npz", threads=1).difference.steps == 60
    assert collect(bundle, options=ReportOptions(recording="steps.npz", time=False), checkpoint=policy).rows
    assert write_kit(bundle, "robot.tar.gz").path == Path("robot.tar.gz")


def test_so_does_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = load_checkpoint(str(GOLDEN / "state_m" / "model.zip"))
    save_checkpoint(checkpoint, "saved")
    assert CheckpointSource("saved").load().config == checkpoint.config
    assert random_checkpoint(checkpoint.config, "drawn").path == Path("drawn/config.json")
