"""What a policy says of its robot is done in the graph of every target, as it is done outside of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lram_export import ExportOptions, StepPolicy, export_bundle
from lram_export.bundle.bundle import Bundle
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.episodes.steps import StepSequence, random_steps
from lram_export.lowering import LoweredPolicy, lower
from lram_export.quantization.quantize import QuantizationOptions
from lram_export.runtimes import Runtime, load_verifier
from lram_export.spec.interface import FieldInterface, Interface, Limits, Normalization, Scaling
from lram_export.spec.tasks import resolve_task
from lram_export.spec.tensors import UNCLAMPED
from lram_export.targets.backbones import targets_of
from tests.conftest import SLOW, load_golden

ROWS, STEPS = 3, 1000
TARGETS = ("pytorch", "onnxruntime", "openvino", "native", "tvm", "tensorrt")
GOLDEN = ("state_ms", "mamba_state", "dt_state")
TASK = resolve_task("metaworld/reach-v2")
rng = np.random.default_rng(3)


def some(count: int, low: float, high: float) -> tuple[float, ...]:
    return tuple(map(float, rng.uniform(low, high, count).astype(np.float32)))


def around(observations: int, actions: int, mean: float) -> Interface:
    """Every number another, and most of them clipped or clamped now and then."""
    normalization = Normalization(some(observations, -mean, mean), some(observations, 0.3, 3), 1.5)
    scaling = Scaling(some(actions, -3, -1), some(actions, -0.5, 0.5))
    limits = Limits(some(actions, -1.5, -1), some(actions, 0.5, 1.5))
    return Interface(
        50.0,
        {"observation": FieldInterface(normalization=normalization)},
        {"action": FieldInterface(scaling=scaling, limits=limits)},
    )


class Cell(torch.nn.Module):
    """An LSTM without a head's limits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.out = torch.nn.LSTMCell(7, 24), torch.nn.Linear(24, 4)

    def forward(self, x: Any, h: Any, c: Any) -> Any:
        h, c = self.cell(x, (h, c))
        return 3 * self.out(h), h, c


def source(name: str) -> tuple[Any, Any]:
    if name == "module":
        return StepPolicy(Cell(), observation=7, action=4, state={"h": 24, "c": 24}), None
    return load_checkpoint(load_golden(name).checkpoint), TASK


def interface_of(policy: LoweredPolicy, name: str) -> Interface:
    # the original code pads a transformer's window with zeros before it normalizes: outside of it that cannot be done
    mean = 0.0 if name == "dt_state" else 2.0
    return around(policy.spec.inputs[0].shape[1], policy.spec.outputs[0].shape[1], mean)


Made = Callable[[str, str], tuple[Bundle, LoweredPolicy]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle that knows its robot, and the policy that knows nothing of it, with the same weights."""
    found: dict[tuple[str, str], tuple[Bundle, LoweredPolicy]] = {}

    def make(name: str, precision: str) -> tuple[Bundle, LoweredPolicy]:
        if (name, precision) not in found:
            policy, task = source(name)
            plain = lower(policy, task, name="plain", batch_size=ROWS)
            targets = (
                TARGETS if name == "module" else [t for t in TARGETS if t in targets_of(load_golden(name).backbone)]
            )
            if (name, precision) == ("module", "int8"):
                targets = [target for target in targets if target not in ("tvm", "tensorrt")]
            options = ExportOptions(
                tuple(targets),
                ROWS,
                16,
                report=False,
                quantization=QuantizationOptions(precision),
                interface=interface_of(plain, name),
            )
            path = tmp_path_factory.mktemp("robot") / f"{name}-{precision}.lram"
            found[name, precision] = export_bundle(policy, task, path, options), plain
        return found[name, precision]

    return make


def by_hand(
    policy: LoweredPolicy, interface: Interface, inputs: StepSequence
) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """The reference, with numbers made fit outside of it: float64, rounded once."""
    normalization = interface.normalizations["observation"]
    of = interface.scalings["action"]
    assert of.scaling is not None and of.limits is not None and normalization.clip is not None
    reference = policy.reference()
    for given in inputs:
        raw = np.asarray(given[0], np.float64)
        network = np.clip((raw - normalization.mean) / normalization.deviation, -normalization.clip, normalization.clip)
        output = reference.step(network.astype(np.float32), *given[1:])
        before = output["action"].astype(np.float64) * of.scaling.scale + of.scaling.offset
        named = {t.name: np.array(values) for t, values in zip(policy.spec.outputs, output, strict=True)}
        yield {**named, "action": np.clip(before, of.limits.low, of.limits.high), "action" + UNCLAMPED: before}
    reference.close()


def runtime_of(bundle: Bundle, target: str) -> Runtime:
    return load_verifier(target, bundle.load_artifact(target), 1)[0]


Steps = list[tuple[Any, dict[str, np.ndarray[Any, Any]]]]


@pytest.fixture(scope="module")
def expected_steps(made: Made) -> Callable[[str, int], Steps]:
    """Inputs, and what is expected of them, which the reference takes longer for than all targets together."""

    @functools.cache
    def steps(name: str, count: int) -> Steps:
        bundle, plain = made(name, "fp32")
        inputs = random_steps(plain.spec, plain.task, count, seed=5)
        inputs["observation"][...] *= 3
        return list(zip(inputs, by_hand(plain, bundle.manifest.interface, inputs), strict=True))

    return steps


LENGTHS = [
    ("module", STEPS),
    *((name, 60) for name in GOLDEN),
    pytest.param("state_ms", STEPS, marks=SLOW),
]
"""Steps of a policy; over more of them `test_precisions.py` shows that no error grows, without an interface."""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("name", "steps"), LENGTHS)
def test_raw_observations_give_the_actions_of_a_robot(
    made: Made, expected_steps: Callable[[str, int], Steps], name: str, steps: int, target: str
) -> None:
    bundle, _ = made(name, "fp32")
    if target not in bundle.targets:
        pytest.skip(f"{name} does not run on {target}")
    runtime = runtime_of(bundle, target)
    spec, far, clamped = bundle.manifest.spec, 0, 0
    for given, expected in expected_steps(name, steps):
        found = runtime.step(*given)
        different = np.abs(found["action"] - expected["action"]) > 1e-5
        clamped += int((expected["action"] != expected["action" + UNCLAMPED]).sum())
        if name == "module":
            assert not different.any()
            np.testing.assert_allclose(found["action" + UNCLAMPED], expected["action" + UNCLAMPED], atol=1e-5)
        else:
            far += int(different.sum())
            np.testing.assert_allclose(found["action_logits"], expected["action_logits"], atol=2e-4)
    runtime.close()
    actions = steps * spec.outputs[0].size
    assert 0.02 * actions < clamped < 0.98 * actions
    assert far <= 0.002 * actions  # logits that are tied


BESIDE_ANOTHER = [pytest.param(name, "int8", marks=SLOW) for name in ("state_ms", "dt_state")]
"""What is done behind a head knows of no backbone: at int8 one of each kind of head is enough for every change."""


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "fp32") for name in ("module", *GOLDEN)), ("module", "int8"), ("mamba_state", "int8"), *BESIDE_ANOTHER],
)
def test_actions_are_within_their_limits_to_the_bit_on_every_target_and_precision(
    made: Made, name: str, precision: str
) -> None:
    bundle, plain = made(name, precision)
    of = bundle.manifest.interface.action["action"]
    assert of.limits is not None
    low, high = np.float32(of.limits.low), np.float32(of.limits.high)
    inputs = random_steps(plain.spec, plain.task, 20, seed=1)
    for target in bundle.targets:
        runtime = runtime_of(bundle, target)
        for given in inputs:
            action = runtime.step(*given)["action"]
            assert ((action >= low) & (action <= high)).all()
        runtime.close()


def test_a_bundle_without_one_is_what_it_was(tmp_path: Path) -> None:
    policy, task = source("state_m")
    bundle = export_bundle(policy, task, tmp_path / "p.lram", ExportOptions(("native",), report=False))
    assert not bundle.manifest.interface
    assert bundle.manifest.to_json()["interface"] is None
    assert bundle.artifact("native").tools["format"] == "3"


def test_statistics_of_the_original_agent_are_the_bundles(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(load_golden("state_m").checkpoint)
    normalization = Normalization(some(39, -1, 1) + (0.0,) * 165, some(39, 0.5, 2) + (1e-8,) * 165)
    normalized = dataclasses.replace(checkpoint, normalization=normalization)
    bundle = export_bundle(normalized, TASK, tmp_path / "p.lram", ExportOptions(("onnxruntime",), report=False))
    found = bundle.manifest.interface.observation["observation"].normalization
    assert found == Normalization(normalization.mean[:39], normalization.deviation[:39])  # type: ignore[index]
