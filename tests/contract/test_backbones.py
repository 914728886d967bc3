"""What every backbone does, on every target and at every precision: written once.

Beside those of the package a backbone of a few lines goes through it (`tests/backbones/leaky`): whoever adds one runs
these tests, by adding a line to :data:`MODELS`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from lram_export import Bundle, Policy, load_policy
from lram_export.backbones import registry
from lram_export.backbones.decision_transformer.config import DecisionTransformerConfig
from lram_export.backbones.mamba.config import MambaConfig
from lram_export.backbones.protocol import BackboneConfig
from lram_export.backbones.registry import BACKBONES, backbone_module
from lram_export.checkpoints.checkpoint import Checkpoint, Hints
from lram_export.checkpoints.folder import load_folder, save_checkpoint
from lram_export.checkpoints.random import random_checkpoint
from lram_export.checkpoints.training_file import load_training_file
from lram_export.episodes.steps import random_steps
from lram_export.errors import CheckpointError, UsageError
from lram_export.export import ExportOptions, TargetFailure, export_bundle
from lram_export.exporters import EXPORTERS, support
from lram_export.lowering import LoweredModel, lower
from lram_export.model.config import ModelConfig, lram_encoders
from lram_export.model.encoders import StateEncoder
from lram_export.model.heads import ActionBins
from lram_export.model.matrices import checkpoint_keys, matrix_shapes
from lram_export.quantization.quantize import QuantizationOptions
from lram_export.quantization.stagewise import stages
from lram_export.spec.parity import tolerance
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tokens import PLAIN
from lram_export.targets.limits import Asked, refusal
from lram_export.verification.verify import checkpoint_steps, verify_against_checkpoint
from tests.backbones.leaky.config import LeakyConfig
from tests.conftest import GOLDEN, SLOW
from tests.models import lram

HEAD = ActionBins(act_dim=3, action_channels=16, discrete_actions=4)
SIZES = {"state_dim": 7, "image_shape": None, "act_dim": 3, "action_channels": 16, "discrete_actions": 4}


def lram_of(backbone: BackboneConfig) -> ModelConfig:
    """An LRAM around a backbone."""
    return ModelConfig(backbone, HEAD, lram_encoders(7, None))


TRANSFORMER = DecisionTransformerConfig(32, 2, num_heads=2, ffn_size=48, context_length=4)
MODELS: dict[str, ModelConfig] = {
    "xlstm": lram(32, 2, 2, 64, **SIZES),  # type: ignore[arg-type]
    "xlstm with an sLSTM block": lram(
        32,
        3,
        2,
        64,
        slstm_at=(1,),
        slstm_num_heads=2,
        ffn_size=64,
        **SIZES,  # type: ignore[arg-type]
    ),
    "xlstm that sees nothing but observations": dataclasses.replace(
        lram(32, 2, 2, 64, slstm_at=(0,), slstm_num_heads=2, ffn_size=64, **SIZES),  # type: ignore[arg-type]
        encoders=(StateEncoder(7),),
        tokens=PLAIN,
    ),
    "mamba": lram_of(MambaConfig(32, 2, 64, state_size=16, dt_rank=2)),
    "mamba of odd sizes, with biases and layer norms": lram_of(
        MambaConfig(28, 3, 52, 5, 3, conv_kernel_size=3, bias=True, conv_bias=False, rms_norm=False, norm_epsilon=1e-3)
    ),
    "transformer over its window": lram_of(TRANSFORMER),
    "transformer with a cache": lram_of(TRANSFORMER).in_context("cache"),
    "leaky": lram_of(LeakyConfig(32)),
    "leaky that sees nothing but observations": ModelConfig(LeakyConfig(32), HEAD, (StateEncoder(7),), PLAIN),
}
SELDOM = ("xlstm", "mamba", "leaky that sees nothing but observations")
"""Those whose every part another one has, too."""
TASK = TaskSpec("custom", "state", 5, "continuous", 2, 3.0, 2.0)
BATCH = 2
TARGETS = ("pytorch", "onnxruntime", "openvino", "native", "tvm")
PRECISIONS = ("fp32", "int8", "int8g", "int4")


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BACKBONES, "leaky", "tests.backbones.leaky")
        yield


@pytest.fixture(scope="module", params=[pytest.param(name, marks=SLOW) if name in SELDOM else name for name in MODELS])
def model(request: pytest.FixtureRequest) -> ModelConfig:
    return MODELS[request.param]


@pytest.fixture(scope="module")
def checkpoint(model: ModelConfig) -> Checkpoint:
    return random_checkpoint(model, Path("random"), seed=1)


@pytest.fixture(scope="module")
def policy(checkpoint: Checkpoint) -> LoweredModel:
    return lower(checkpoint, TASK, name="contract", batch_size=BATCH)


def test_its_weights_are_those_of_the_reference(model: ModelConfig) -> None:
    with torch.device("meta"):
        reference = backbone_module(model.backbone.kind, "reference").build(model.backbone)
    expected = {f"encoder.{name}": tuple(value.shape) for name, value in reference.state_dict().items()}
    found = {weight.name: weight.shape for weight in model.backbone.weights()}
    assert found == {name: shape for name, shape in expected.items() if name in found}
    assert not [name for name, _ in reference.named_parameters() if f"encoder.{name}" not in found]


def test_a_config_survives_json(model: ModelConfig) -> None:
    assert ModelConfig.from_json(json.loads(json.dumps(model.to_json()))) == model


def test_a_checkpoint_survives_its_folder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(checkpoint, tmp_path / "own")
    again = load_folder(tmp_path / "own")
    assert again.config == checkpoint.config
    assert all(torch.equal(again.weights[name], weight) for name, weight in checkpoint.weights.items())


def test_a_step_gives_states_of_the_shapes_it_takes(policy: LoweredModel) -> None:
    inputs = [torch.zeros(t.shape) for t in (*policy.spec.inputs, *policy.spec.states)]
    _, _, *states = policy.graph(*inputs)
    assert [tuple(state.shape) for state in states] == [state.shape for state in policy.spec.states]
    assert all(state.dtype == torch.float32 for state in states)


def test_an_episode_starts_from_the_initial_values_whatever_the_state_held(policy: LoweredModel) -> None:
    spec = policy.spec
    start = policy.reference_model.initial_state(BATCH, TASK)
    inputs = [torch.randn(t.shape, generator=torch.Generator().manual_seed(3)) for t in spec.inputs[:-1]]
    first = torch.ones(BATCH)
    expected = policy.graph(*inputs, first, *(start[t.name] for t in spec.states))
    for garbage in (7.0, float("nan")):
        found = policy.graph(*inputs, first, *(torch.full(t.shape, garbage) for t in spec.states))
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(one, other)


def test_every_matrix_is_reached_by_one_stage_of_the_calibration(policy: LoweredModel) -> None:
    names = policy.matrix_names()
    reached = [name for stage in stages(policy.graph, names) for name in stage.matrices]
    assert sorted(reached) == sorted(names)
    assert set(names) <= set(checkpoint_keys(policy.checkpoint.config))


def test_the_step_equals_the_reference_over_episodes(policy: LoweredModel) -> None:
    """64 steps, rows start again at different times in between."""
    spec = policy.spec
    state = policy.reference_model.initial_state(BATCH, TASK)
    ours = list(state.values())
    for arguments in random_steps(spec, TASK, 64, seed=5):
        tensors = [torch.tensor(values) for values in arguments]
        named = dict(zip((t.name for t in spec.inputs), tensors, strict=True))
        _, state = policy.reference_model.step(named, state)
        _, _, *ours = policy.graph(*tensors, *ours)
        for name, found in zip((t.name for t in spec.states), ours, strict=True):
            torch.testing.assert_close(found, state[name], atol=2e-4, rtol=2e-4)


@dataclass(frozen=True)
class Exported:
    """One bundle for all targets, and why some are not in it."""

    path: Path
    precision: str
    failures: dict[str, TargetFailure]

    def load(self, target: str) -> Policy:
        """The policy on a target; skips the test where the target cannot run it, with its own message as the reason."""
        failure = self.failures.get(target)
        if failure is not None:
            assert failure.impossible, failure.reason
            pytest.skip(failure.reason)
        return load_policy(self.path, target, threads=1)


@pytest.fixture(
    scope="module", params=[pytest.param(p, marks=SLOW) if p in ("int8g", "int4") else p for p in PRECISIONS]
)
def bundle(
    checkpoint: Checkpoint, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """An export verifies every target against the reference, so there being one is the first test."""
    failures: dict[str, TargetFailure] = {}
    quantization = QuantizationOptions(request.param)
    options = ExportOptions(TARGETS, BATCH, reference_steps=40, quantization=quantization, report=False)
    path = tmp_path_factory.mktemp("contract") / "policy.lram"
    return Exported(export_bundle(checkpoint, TASK, path, options, failures=failures).path, request.param, failures)


@pytest.mark.parametrize("target", TARGETS)
class TestTargets:
    def test_it_is_there_unless_the_table_of_limits_says_why_not(
        self, bundle: Exported, model: ModelConfig, target: str
    ) -> None:
        failure = bundle.failures.get(target)
        assert (None if failure is None else failure.reason) == refusal(target, Asked.at(model, bundle.precision))
        found = support(model)[target]
        assert (failure is None) == (bundle.precision in found.precisions)
        assert failure is None or failure.reason == found.refusal

    def test_it_acts_and_goes_on_from_a_saved_state(self, bundle: Exported, target: str) -> None:
        with bundle.load(target) as policy:
            steps = random_steps(policy.spec, TASK, 12, seed=8)["observation"]
            for observation in steps[:6]:
                policy.act(observation, None)
            saved = policy.state()
            expected = [(policy.act(observation), policy.action_logits) for observation in steps[6:]]
            policy.reset()
            policy.act(steps[0])
            policy.load_state(saved)
            for observation, (action, logits) in zip(steps[6:], expected, strict=True):
                np.testing.assert_array_equal(policy.act(observation), action)
                np.testing.assert_array_equal(policy.action_logits, logits)

    def test_an_index_that_is_none_is_refused_and_changes_nothing(self, bundle: Exported, target: str) -> None:
        with bundle.load(target) as policy:
            policy.act(random_steps(policy.spec, TASK, 1, seed=8)["observation"][0])
            before = policy.state()
            for tensor in policy.spec.states:
                for wrong in () if tensor.role != "index" else (0.5, -1, (tensor.limit or 0) + 1, np.nan):
                    index = before[tensor.name].copy()
                    index[-1] = wrong
                    with pytest.raises(ValueError, match=rf"^{tensor.name}: expected whole numbers .*got {wrong:g}$"):
                        policy.load_state({**before, tensor.name: index})
            for name, values in policy.state().items():
                np.testing.assert_array_equal(values, before[name])

    def test_a_reset_row_starts_like_a_fresh_policy_and_leaves_the_other_alone(
        self, bundle: Exported, target: str
    ) -> None:
        with bundle.load(target) as policy, bundle.load(target) as undisturbed:
            steps = random_steps(policy.spec, TASK, 8, seed=9)["observation"]
            fresh = policy.state()
            for observation in steps[:5]:
                policy.act(observation)
                undisturbed.act(observation)
            policy.reset([1])
            state, other = policy.state(), undisturbed.state()
            for name in (t.name for t in policy.spec.states):
                np.testing.assert_array_equal(state[name][1], fresh[name][1])
                np.testing.assert_array_equal(state[name][0], other[name][0])
            policy.act(steps[5])
            undisturbed.act(steps[5])
            close = 2 * tolerance(bundle.precision, "float32").logit
            found, expected = policy.action_logits[0], undisturbed.action_logits[0]
            assert np.abs(found - expected).max() <= close * max(1.0, float(np.linalg.norm(expected)))

    def test_an_episode_that_starts_with_a_step_is_one_after_a_reset_to_the_bit(
        self, bundle: Exported, target: str
    ) -> None:
        with bundle.load(target) as policy, bundle.load(target) as resetting:
            steps = random_steps(policy.spec, TASK, 12, seed=9)["observation"]
            for number, observation in enumerate(steps):
                mask = [number in (5, 9), number == 9]
                resetting.reset(mask)
                np.testing.assert_array_equal(policy.act(observation, first=mask), resetting.act(observation))
                np.testing.assert_array_equal(policy.action_logits, resetting.action_logits)
                found, expected = policy.state(), resetting.state()
                assert [name for name in expected if not np.array_equal(found[name], expected[name])] == []

    def test_a_history_in_one_call_is_its_steps_to_the_bit(self, bundle: Exported, target: str) -> None:
        with bundle.load(target) as policy, bundle.load(target) as acting:
            steps = random_steps(policy.spec, TASK, 8, seed=9)["observation"]
            rewards = np.random.default_rng(1).standard_normal((8, BATCH))
            policy.prime(steps, rewards)
            for observation, reward in zip(steps, rewards, strict=True):
                acting.act(observation, reward)
            found, expected = policy.state(), acting.state()
            assert [name for name in expected if not np.array_equal(found[name], expected[name])] == []
            np.testing.assert_array_equal(policy.action_logits, acting.action_logits)


def test_a_bundle_is_verified_against_its_checkpoint(bundle: Exported, checkpoint: Checkpoint) -> None:
    opened = Bundle.open(bundle.path)
    inputs = checkpoint_steps(opened, None, 16, seed=3)
    compared = verify_against_checkpoint(opened, checkpoint, opened.targets, inputs=inputs, threads=1)
    assert compared.codes is not False and compared.cost is not False and compared.recorded.parity.passed
    for target, meter in compared.meters.items():
        assert meter.result().passed, (target, meter.result().failures())


def of_one_shape(config: ModelConfig) -> tuple[str, str] | None:
    """Two of the backbone's matrices that could be equal, the last ones; None if there are none."""
    shapes = {name: shape for name, shape in matrix_shapes(config, TASK).items() if name.startswith("blocks.")}
    pairs = [(a, b) for a, b in itertools.combinations(shapes, 2) if shapes[a] == shapes[b]]
    return pairs[-1] if pairs else None


@pytest.mark.parametrize("name", [name for name in MODELS if of_one_shape(MODELS[name]) and name not in SELDOM])
def test_two_equal_matrices_stay_two(name: str, tmp_path: Path) -> None:
    """Graphs keep equal constants once, under one name: the other must not be lost, nor quantized twice."""
    model = MODELS[name]
    one, other = of_one_shape(model) or ("", "")
    keys = checkpoint_keys(model)
    checkpoint = random_checkpoint(model, Path("random"), seed=1)
    weights = {**checkpoint.weights, keys[other]: checkpoint.weights[keys[one]].clone()}
    equal, failures = dataclasses.replace(checkpoint, weights=weights), dict[str, TargetFailure]()
    options = ExportOptions(
        ("pytorch", "onnxruntime", "openvino", "native"),
        reference_steps=8,
        quantization=QuantizationOptions("int8"),
        report=False,
    )
    bundle = export_bundle(equal, TASK, tmp_path / "policy.lram", options, failures=failures)
    assert all(failure.impossible for failure in failures.values()) and len(bundle.targets) >= 3
    quantization = bundle.manifest.quantization
    assert quantization is not None and {one, other} <= {matrix.name for matrix in quantization.matrices}


@pytest.mark.parametrize("kind", BACKBONES)
def test_an_option_of_the_training_that_nobody_knows_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    folder = {"xlstm": "state_ms", "mamba": "mamba_state", "decision_transformer": "dt_state"}[kind]
    text = (GOLDEN / folder / ".hydra" / "config.yaml").read_text()
    assert "\n  huggingface:\n" in text
    for section, line in (("huggingface", "    new_option: 3"), ("agent_params", "  new_option: 3")):
        changed = text.replace("\n  huggingface:\n", f"\n  huggingface:\n{line}\n", 1)
        if section == "agent_params":
            changed = text.replace("agent_params:\n", f"agent_params:\n{line}\n", 1)
        (tmp_path / "config.yaml").write_text(changed)
        with pytest.raises(CheckpointError, match=rf"{section}.new_option = 3 is not supported"):
            load_training_file(GOLDEN / folder / "model.zip", tmp_path / "config.yaml", Hints(), None)


def test_a_target_without_kernels_says_where_the_backbone_runs(tmp_path: Path) -> None:
    leaky = random_checkpoint(MODELS["leaky"], Path("random"), seed=1)
    for target in ("native", "tvm"):
        with pytest.raises(
            UsageError, match=rf"target '{target}' has no kernels for backbone 'leaky'; it runs on .*onnx"
        ):
            export_bundle(leaky, TASK, tmp_path / f"{target}.lram", ExportOptions((target,), report=False))
        assert not list(tmp_path.iterdir())


def test_every_target_is_in_the_contract() -> None:
    assert set(TARGETS) == set(EXPORTERS) - {"tensorrt"}  # whose engines need a GPU: tests/targets/test_tensorrt.py
