"""One contract for every policy of one's own, on every target and precision that runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lram_export import ExportOptions, Policy, StepPolicy, export_bundle, load_policy
from lram_export.bundle.bundle import Bundle
from lram_export.episodes.steps import StepSequence, random_steps, save_steps
from lram_export.errors import UsageError
from lram_export.quantization.quantize import QuantizationOptions
from lram_export.runtimes import load_verifier
from lram_export.step_module.graph import returned
from lram_export.system.devices import Platform
from lram_export.verification.verify import checkpoint_steps, verify_against_checkpoint, verify_targets
from tests.step_module.modules import POLICIES

ROWS, STEPS = 3, 1000
TARGETS = ("pytorch", "onnxruntime", "openvino", "native")
"""At every precision, but for `native` and fp16."""
IN_FLOAT32 = (*TARGETS, "tensorrt", "tvm")
PRECISIONS = ("fp32", "int8", "int4", "fp16")
CLOSE = {"fp32": 1e-5, "int8": 5e-4, "int4": 5e-4, "fp16": 5e-4}
"""Of values of about 1: of quantized ones against the module with what the codes stand for."""

SIZES = {"large": 1e5, "small": 1e-5}
"""How large outputs are that are not about 1."""

Made = Callable[[str, str], Bundle]


def targets_at(precision: str) -> tuple[str, ...]:
    """Those of :data:`TARGETS` that run a precision."""
    return tuple(target for target in TARGETS if (target, precision) != ("native", "fp16"))


def close(name: str, one: Any, other: Any) -> bool:
    """Whether an output of one target is that of another."""
    return np.allclose(one, other, atol=1e-5 * SIZES.get(name, 1), rtol=1e-5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    found: dict[tuple[str, str], Bundle] = {}

    def make(name: str, precision: str) -> Bundle:
        if (name, precision) not in found:
            path = tmp_path_factory.mktemp("own") / f"{name}-{precision}.lram"
            targets = IN_FLOAT32 if precision == "fp32" else targets_at(precision)
            options = ExportOptions(
                targets, ROWS, report=False, quantization=QuantizationOptions(precision), reference_steps=32
            )
            found[name, precision] = export_bundle(POLICIES[name](), None, path, options)
        return found[name, precision]

    return make


def by_hand(policy: StepPolicy, inputs: StepSequence) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """What the module itself gives, called row by row as its user would: a new episode begins with a new state."""
    fresh = [torch.as_tensor(field.initial).float().expand(field.shape)[None] for field in policy.state.values()]
    states = [fresh for _ in range(ROWS)]
    names = list(policy.observation)
    for number in range(len(inputs)):
        rows = []
        for row in range(ROWS):
            if inputs["is_first"][number, row]:
                states[row] = fresh
            given = [torch.tensor(inputs[name][number, row : row + 1]) for name in names]
            with torch.no_grad():
                found = returned(policy.module(*given, *states[row]), tuple(policy.action))
            states[row] = list(found[len(policy.action) :])
            rows.append([tensor.numpy()[0] for tensor in found[: len(policy.action)]])
        yield {name: np.stack([row[i] for row in rows]) for i, name in enumerate(policy.action)}


CASES = [
    (name, precision)
    for name in POLICIES
    for precision in PRECISIONS
    if precision == "fp32" or name == "seeing" or (precision == "int8" and name != "counting")  # which has no matrix
]


@pytest.mark.parametrize("target", IN_FLOAT32)
@pytest.mark.parametrize("name", POLICIES)
def test_a_thousand_steps_with_resets_are_those_of_the_module(name: str, target: str, made: Made) -> None:
    bundle, policy = made(name, "fp32"), POLICIES[name]()
    policy.module.eval()
    inputs = random_steps(bundle.manifest.spec, None, STEPS, seed=7, episode=97)
    runtime, _ = load_verifier(target, bundle.load_artifact(target), 1)
    largest = {output.name: 0.0 for output in bundle.manifest.spec.outputs}
    for arguments, expected in zip(inputs, by_hand(policy, inputs), strict=True):
        output = runtime.step(*arguments)
        for key, values in expected.items():
            error = np.abs(output[key].astype(np.float64) - values) / np.maximum(SIZES.get(key, 1), np.abs(values))
            largest[key] = max(largest[key], float(error.max()))
    runtime.close()
    assert all(error <= CLOSE["fp32"] for error in largest.values()), largest


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_what_was_exported_verifies_itself_and_against_the_module(name: str, precision: str, made: Made) -> None:
    bundle = made(name, precision)
    targets = targets_at(precision)
    recorded = verify_targets(bundle, targets, threads=1)
    assert all(result.passed for result in recorded.values())
    inputs = checkpoint_steps(bundle, None, 200, seed=3)
    compared = verify_against_checkpoint(bundle, POLICIES[name](), targets, inputs=inputs, threads=1)
    assert compared.passed, [result.failures() for result in compared.results.values()]
    assert all(result.max_logit_error <= CLOSE[precision] for result in compared.results.values())
    if precision == "int8":
        assert compared.recorded.cost is not None and 0 < compared.recorded.cost.measured.relative_error < 0.05


@pytest.mark.parametrize("target", [*TARGETS, "tvm"])
@pytest.mark.parametrize("name", POLICIES)
def test_rows_start_again_alone_and_a_state_goes_on_on_another_target(name: str, target: str, made: Made) -> None:
    bundle = made(name, "fp32")
    inputs = random_steps(bundle.manifest.spec, None, 12, seed=5)
    names = [t.name for t in bundle.manifest.spec.inputs[:-1]]
    steps = [{n: inputs[n][i] for n in names} for i in range(12)]
    with load_policy(bundle.path, target) as policy, load_policy(bundle.path, "onnxruntime") as other:
        before = [policy.step(step) for step in steps[:6]]
        policy.reset([1])
        assert policy.state()["is_first"].tolist() == [0, 1, 0]
        other.load_state(policy.state())
        after = [policy.step(step) for step in steps[6:]]
        for step, expected in zip(steps[6:], after, strict=True):
            found = other.step(step)
            assert all(close(key, found[key], expected[key]) for key in expected)
        other.reset()
        again = [other.step({n: np.roll(v, 1, axis=0) for n, v in step.items()}) for step in steps[:6]]
    for one, rolled in zip(before, again, strict=True):
        assert all(close(key, np.roll(one[key], 1, axis=0), rolled[key]) for key in one)


@pytest.mark.parametrize("target", [*TARGETS, "tvm"])
@pytest.mark.parametrize("name", POLICIES)
def test_an_episode_that_starts_with_a_step_and_a_history_are_as_calls_one_by_one(
    name: str, target: str, made: Made
) -> None:
    bundle = made(name, "fp32")
    inputs = random_steps(bundle.manifest.spec, None, 12, seed=5)
    names = [t.name for t in bundle.manifest.spec.inputs[:-1]]
    steps = [{n: inputs[n][i] for n in names} for i in range(12)]
    with load_policy(bundle.path, target) as policy, load_policy(bundle.path, target) as plain:
        policy.prime({n: inputs[n][:6] for n in names})
        for step in steps[:6]:
            expected = plain.step(step)
        for number, step in enumerate(steps[6:]):
            mask = [False, number == 0, number in (0, 3)]
            plain.reset(mask)
            expected, found = plain.step(step), policy.step(step, first=mask)
            assert all(np.array_equal(found[key], expected[key]) for key in expected)
            before, after = plain.state(), policy.state()
            assert all(np.array_equal(before[key], after[key]) for key in before)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alone") / "seeing.lram"
    export_bundle(POLICIES["seeing"](), None, path, ExportOptions(report=False))
    return path


class TestStepApi:
    @pytest.fixture
    def policy(self, alone: Path) -> Iterator[Policy]:
        with load_policy(alone) as policy:
            yield policy

    def test_one_robot_needs_no_rows(self, policy: Policy) -> None:
        observation = {"proprio": np.zeros(12), "camera": np.zeros((3, 16, 16), np.uint8)}
        action = policy.act(observation)
        assert action.shape == (6,) and action.dtype == np.float32
        policy.reset()
        outputs = policy.step(observation)
        assert set(outputs) == {"action", "value"} and outputs["value"].shape == ()
        np.testing.assert_array_equal(outputs["action"], action)
        policy.reset()
        with_rows = policy.step({name: values[None] for name, values in observation.items()})
        assert with_rows["action"].shape == (1, 6) and with_rows["value"].shape == (1,)

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            (np.zeros(12), "observation: expected a mapping with proprio, camera, got ndarray"),
            ({"proprio": np.zeros(12)}, "camera: missing"),
            (
                {"proprio": np.zeros(12), "camera": np.zeros((3, 16, 16), np.uint8), "lidar": np.zeros(3)},
                "lidar: unknown; this policy takes proprio, camera",
            ),
            (
                {"proprio": np.zeros(11), "camera": np.zeros((3, 16, 16), np.uint8)},
                r"proprio: expected float32 of shape \(12,\) or \(1, 12\), got float64 of shape \(11,\)",
            ),
            (
                {"proprio": np.zeros((1, 12)), "camera": np.zeros((3, 16, 16), np.uint8)},
                "expected rows in all of proprio, camera, or in none of them",
            ),
            (
                {"proprio": np.full(12, np.nan), "camera": np.zeros((3, 16, 16), np.uint8)},
                "proprio: expected finite values",
            ),
        ],
    )
    def test_what_does_not_fit_is_named(self, given: Any, told: str, policy: Policy) -> None:
        with pytest.raises(ValueError, match=told):
            policy.act(given)

    def test_outputs_that_are_not_there_are_no_attributes(self, policy: Policy) -> None:
        with pytest.raises(AttributeError, match="no output 'action_logits'; it has: action, value"):
            _ = policy.action_logits

    def test_a_whole_number_is_what_gymnasium_takes(self, tmp_path: Path) -> None:
        path = tmp_path / "choosing.lram"
        export_bundle(POLICIES["choosing"](), None, path, ExportOptions(report=False))
        with load_policy(path) as policy:
            action = policy.act(np.zeros(10))
            assert isinstance(action, np.int64) and action == policy.action_logits[0].argmax()
            np.testing.assert_array_equal(policy.act({"observation": np.zeros(10)}), policy.action_logits[0].argmax())


@pytest.mark.parametrize(
    ("target", "precision", "told"),
    [
        ("tvm", "int8", "runs a module of one's own at fp32 only, not at int8; it runs on pytorch, onnxruntime"),
    ],
)
def test_what_a_target_cannot_do_it_says_before_anything_is_left(
    target: str, precision: str, told: str, tmp_path: Path
) -> None:
    options = ExportOptions((target,), report=False, quantization=QuantizationOptions(precision))
    with pytest.raises(UsageError, match=f"target '{target}' {told}"):
        export_bundle(POLICIES["plain"](), None, tmp_path / "x.lram", options)
    assert not list(tmp_path.iterdir())


def test_tvm_compiles_a_module_only_for_processors_that_can_verify_it_here(tmp_path: Path) -> None:
    options = ExportOptions(("tvm",), report=False, platform=Platform(processors=("aarch64",)))
    with pytest.raises(UsageError, match="--platform aarch64: a module of one's own is compiled for processors that"):
        export_bundle(POLICIES["plain"](), None, tmp_path / "x.lram", options)


def test_calibrated_codes_are_fitted_to_recordings_and_inputs_may_be_rounded(tmp_path: Path) -> None:
    policy = POLICIES["seeing"]()
    spec = policy.spec(ROWS)
    save_steps(random_steps(spec, None, 400, seed=11, episode=40), tmp_path / "steps.npz")
    costs = {}
    for precision, recordings in (
        ("int4", ()),
        ("int4", (tmp_path / "steps.npz",)),
        ("w8a8", (tmp_path / "steps.npz",)),
    ):
        options = QuantizationOptions(precision, calibration=recordings)
        bundle = export_bundle(
            policy,
            None,
            tmp_path / "own.lram",
            ExportOptions(
                ("pytorch", "onnxruntime") if precision == "int4" else ("onnxruntime",),
                force=True,
                report=False,
                quantization=options,
            ),
        )
        entry = bundle.manifest.quantization
        assert entry is not None and entry.method == ("gptq" if recordings else "round-to-nearest")
        costs[precision, bool(recordings)] = entry.cost["relative_error"]  # type: ignore[index]
    assert costs["int4", True] < costs["int4", False] and costs["w8a8", True] < 0.1


def test_every_report_shows_what_there_is(tmp_path: Path) -> None:
    for name in ("seeing", "choosing", "plain"):
        bundle = export_bundle(POLICIES[name](), None, tmp_path / f"{name}.lram", ExportOptions())
        page = (bundle.path / "report.html").read_text()
        assert f"{type(POLICIES[name]().module).__name__}" in page and "Does what the reference model does" in page
        assert ("nothing is chosen from scores" in page) == (name != "choosing")
