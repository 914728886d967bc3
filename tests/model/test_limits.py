"""Inputs whose arithmetic would leave float32: how large is too large, and what is said about it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lram_export.bundle.manifest import read_manifest
from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.checkpoints.random import random_checkpoint
from lram_export.errors import UsageError
from lram_export.lowering import lower
from lram_export.model.limits import LARGEST_TOKEN, input_limits
from lram_export.spec.tasks import TaskSpec
from tests.conftest import ExportFunction, load_golden
from tests.models import lram, lram_inputs, reference_model

CONFIG = lram(32, 1, 2, 64, state_dim=7, image_shape=None)
TASK = TaskSpec("custom", "state", 5, "continuous", 8, 1.0, 1.0)


def checkpoint_with(factor: float) -> Checkpoint:
    """Random weights, those of the encoders times a factor."""
    checkpoint = random_checkpoint(CONFIG, Path("random"), 0)
    scaled = {n: w * factor if n.startswith("embed_state") else w for n, w in checkpoint.weights.items()}
    return dataclasses.replace(checkpoint, weights=scaled)


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(1e-12, 1e9), seed=st.integers(0, 2**32 - 1))
def test_within_its_limit_an_observation_embeds_as_in_double_precision(factor: float, seed: int) -> None:
    checkpoint = checkpoint_with(factor)
    limit = input_limits(checkpoint.weights, CONFIG.encoders_of(TASK), TASK)["observation"]
    signs = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)).sign()
    worst = checkpoint.weights["embed_state.weight"][:, :5].sign()  # of each row: the largest sum there is
    one = torch.ones(1)
    single, double = (reference_model(checkpoint).to(t) for t in (torch.float32, torch.float64))
    for observation in (*(limit * signs), *(limit * worst)):
        inputs = lram_inputs(observation[None], one, one)
        token = double.embed_state(observation.double())  # type: ignore[misc]
        assert token.abs().max() <= LARGEST_TOKEN * 1.0001
        expected = double.embed({name: t.double() for name, t in inputs.items()})
        torch.testing.assert_close(single.embed(inputs).double(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("factor", [1e16, float("nan"), float("inf")])
def test_weights_that_leave_no_sensible_input_are_not_exported(factor: float) -> None:
    with pytest.raises(UsageError, match=r"embed_state: weights .* a step would leave float32"):
        lower(checkpoint_with(factor), TASK, name="broken")


def test_a_manifest_keeps_the_limits_of_its_checkpoint(exported: ExportFunction) -> None:
    text = (exported("state_ms", targets=["onnxruntime"]) / "manifest.json").read_text()
    manifest = read_manifest(text)
    checkpoint = load_checkpoint(load_golden("state_ms").checkpoint)
    encoders = checkpoint.config.encoders_of(manifest.task)
    assert manifest.spec.limits == input_limits(checkpoint.weights, encoders, manifest.task)
    assert set(manifest.spec.limits) == {"observation", "return_to_go", "reward"}
    assert read_manifest(manifest.dumps()) == manifest


def test_an_input_without_its_limit_is_refused(exported: ExportFunction) -> None:
    text = (exported("state_ms", targets=["onnxruntime"]) / "manifest.json").read_text()
    manifest = read_manifest(text)
    without = dataclasses.replace(manifest, spec=manifest.spec.with_limits({})).dumps()
    with pytest.raises(ValueError, match=r"specification.inputs: observation.limit: missing"):
        read_manifest(without)
    limits = {**manifest.spec.limits, "observation": -1.0}
    broken = dataclasses.replace(manifest, spec=manifest.spec.with_limits(limits))
    with pytest.raises(ValueError, match=r"specification.inputs\[0\].limit: expected a number from 1 to"):
        read_manifest(broken.dumps())
