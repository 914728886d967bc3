"""The plugin in LeRobot itself: what lerobot-eval and lerobot-rollout call.

Run by `make test-lerobot`, which writes what is played: ``python -m pytest integrations/lerobot/tests --cases FOLDER``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies import get_policy_class, make_pre_post_processors
from lerobot.rollout.inference.sync import SyncInferenceEngine
from lerobot.utils.import_utils import register_third_party_plugins

from lram_export import camera, load_policy
from lram_export.errors import UsageError
from lram_export.integrations.robot_policy import BUNDLE_FOLDER

register_third_party_plugins()


@pytest.fixture
def metaworld(cases: Path) -> Path:
    """A policy that sees 39 numbers."""
    return cases / "metaworld"


@pytest.fixture
def sees(cases: Path) -> Path:
    """A policy that sees 12 numbers and an image."""
    return cases / "sees"


def opened(folder: Path, **options: Any) -> Any:
    """As lerobot-rollout does it."""
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    for name, value in options.items():
        setattr(config, name, value)
    return get_policy_class(config.type).from_pretrained(folder, config=config, revision=None)


def states(rows: int, steps: int = 40, size: int = 39) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(rows).standard_normal((steps, rows, size), np.float32)


@pytest.mark.parametrize("target", ["native", "onnxruntime"])
@pytest.mark.parametrize("rows", [1, 2])
def test_not_an_action_differs(metaworld: Path, target: str, rows: int) -> None:
    policy, different = opened(metaworld, target=target), 0
    with load_policy(metaworld / BUNDLE_FOLDER, target, batch=rows) as expected:
        for _ in range(2):
            policy.reset()
            expected.reset()
            for state in states(rows):
                found = policy.select_action({"observation.state": torch.from_numpy(state), "task": [""] * rows})
                assert found.shape == (rows, 4) and found.dtype == torch.float32
                different += int((found.numpy() != expected.act(state)).sum())
    assert different == 0


def test_a_chunk_is_one_action(metaworld: Path) -> None:
    one, other = opened(metaworld), opened(metaworld)
    for state in states(1, 5):
        chunk = one.predict_action_chunk({"observation.state": torch.from_numpy(state)})
        assert chunk.shape == (1, 1, 4)
        assert torch.equal(chunk[:, 0], other.select_action({"observation.state": torch.from_numpy(state)}))


def test_the_engine_of_lerobot_rollout(sees: Path) -> None:
    """Frames as a robot gives them, through LeRobot's own preparation, processors and engine."""
    policy, image = opened(sees), load_policy(sees / BUNDLE_FOLDER).interface.observation["camera"].image
    config = policy.config
    before, after = make_pre_post_processors(
        config,
        pretrained_path=str(sees),
        preprocessor_overrides={
            "device_processor": {"device": "cpu"},
            "rename_observations_processor": {"rename_map": {"observation.images.front": "observation.images.camera"}},
        },
    )
    joints = config.action_feature_names
    features = {"action": {"dtype": "float32", "shape": (6,), "names": joints}}
    engine = SyncInferenceEngine(policy, before, after, features, joints, "reach", "cpu", "arm")
    rng, different = np.random.default_rng(1), 0
    with load_policy(sees / BUNDLE_FOLDER) as expected:
        for _ in range(2):
            engine.reset()
            expected.reset()
            for _ in range(10):
                state = rng.standard_normal(12).astype(np.float32)
                frame = rng.integers(0, 256, (48, 64, 3), np.uint8)
                found = engine.get_action({"observation.state": state, "observation.images.front": frame})
                given = {"proprio": state, "camera": camera.prepare(frame, image, layout="hwc")}
                assert found is not None
                different += int((found.numpy() != expected.act(given)).sum())
    assert different == 0


def test_rows_may_change_when_an_episode_starts(metaworld: Path) -> None:
    policy = opened(metaworld)
    one, two = (torch.from_numpy(states(rows, 1)[0]) for rows in (1, 2))
    first = policy.select_action({"observation.state": one})
    with pytest.raises(ValueError, match=r"observation.state: expected 1 rows.*got 2; call reset\(\) first"):
        policy.select_action({"observation.state": two})
    policy.reset()
    assert policy.select_action({"observation.state": two}).shape == (2, 4)
    policy.reset()
    assert torch.equal(policy.select_action({"observation.state": one}), first)


def test_wrong_observations_are_named(metaworld: Path, sees: Path) -> None:
    policy, eyes = opened(metaworld), opened(sees)
    state = torch.zeros(1, 12)
    for each, given, words in (
        (
            policy,
            {"observation.environment_state": state},
            "observation.state: expected a tensor with rows, got nothing",
        ),
        (
            policy,
            {"observation.state": torch.zeros(39)},
            r"observation.state: expected a tensor with rows, got \(39,\)",
        ),
        (policy, {"observation.state": state}, r"state: expected shape \(1, 39\), got \(1, 12\)"),
        (
            eyes,
            {"observation.state": state, "observation.images.camera": torch.full((1, 3, 8, 8), 255.0)},
            "observation.images.camera: expected numbers from 0 to 1, got 255 to 255",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            each.select_action(given)


def test_it_is_saved_whole_and_opened_again(metaworld: Path, tmp_path: Path) -> None:
    policy = opened(metaworld)
    policy.save_pretrained(tmp_path / "saved")
    names = {path.relative_to(metaworld) for path in metaworld.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path / "saved") for path in (tmp_path / "saved").rglob("*") if path.is_file()} == names
    state = {"observation.state": torch.from_numpy(states(1, 1)[0])}
    assert torch.equal(opened(tmp_path / "saved").select_action(state), policy.select_action(state))


def test_processors_made_anew_are_those_of_the_folder(metaworld: Path, tmp_path: Path) -> None:
    for pipeline in make_pre_post_processors(PreTrainedConfig.from_pretrained(metaworld)):
        pipeline.save_pretrained(tmp_path)
        name = f"{pipeline.name}.json"
        assert json.loads((tmp_path / name).read_text()) == json.loads((metaworld / name).read_text())


def test_what_is_not_done_is_said(metaworld: Path, tmp_path: Path) -> None:
    policy = opened(metaworld)
    for call in (lambda: policy.forward({}), policy.get_optim_params, policy.config.get_optimizer_preset):
        with pytest.raises(UsageError, match="a bundle acts and is not trained"):
            call()
    with pytest.raises(UsageError, match=f"upload the whole folder: hf upload OWNER/NAME {metaworld}"):
        policy.push_model_to_hub(None)
    shutil.copytree(metaworld, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / BUNDLE_FOLDER)
    with pytest.raises(UsageError, match=r"copy: no bundle\.lram in it; expected the folder that"):
        opened(tmp_path / "copy")
    config = PreTrainedConfig.from_pretrained(metaworld)
    with pytest.raises(UsageError, match="a policy is not made anew"):
        get_policy_class(config.type)(config)
    config.output_features["action"].shape = (7,)
    with pytest.raises(UsageError, match=r"action: the bundle has shape \(4,\), and this says \(7,\)"):
        get_policy_class(config.type).from_pretrained(metaworld, config=config)
