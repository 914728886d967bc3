"""A bundle acts for any number of rows, whatever it was exported for, on every target."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from lram_export import Bundle, ExportOptions, Field, StepPolicy, export_bundle
from lram_export.checkpoints.random import random_checkpoint
from lram_export.episodes.steps import StepSequence, random_steps
from lram_export.quantization.quantize import QuantizationOptions
from lram_export.runtimes import Runtime, load_verifier
from lram_export.runtimes.stacked import StackedRuntime
from lram_export.spec.rows import ROWS
from lram_export.system.devices import Platform, find_device
from tests.bundle.test_older_schemas import OLDER
from tests.contract.test_backbones import MODELS, TASK

TARGETS = ("pytorch", "onnxruntime", "openvino", "native", "tvm", "tensorrt")
GRAPHS = ("onnxruntime", "openvino", "tensorrt")
"""Targets whose artifact is a graph."""
STEPS, EPISODE = 30, 9
CLOSE = 2e-5
"""Sums in another order."""
CLOSE_OF_ALL_ROWS = 5e-3
"""ONNX Runtime scales 8-bit activations by the largest of all rows."""


def close(target: str, precision: str) -> float:
    return CLOSE_OF_ALL_ROWS if (target, precision) == ("onnxruntime", "int8") else CLOSE


class Moving(nn.Module):
    """Two observations, and a state that starts as a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(9, 12), nn.Linear(12, 3)

    def forward(self, joints: Tensor, goal: Tensor, hidden: Tensor) -> Any:
        hidden = self.cell(torch.cat([joints, goal], -1), hidden)
        return {"action": torch.tanh(self.head(hidden)), "value": hidden.mean(-1)}, hidden


class RowByRow(nn.Module):
    """It goes through its rows in Python: its graph has as many parts as it was traced with rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor, total: Tensor) -> Any:
        total = total + x
        return torch.stack([self.layer(row) for row in total]), total


def moving() -> StepPolicy:
    torch.manual_seed(0)
    initial = torch.linspace(-1, 1, 12)
    return StepPolicy(
        Moving(),
        observation={"joints": 6, "goal": 3},
        action={"action": 3, "value": ()},
        state={"hidden": Field(12, initial=initial)},
    )


def row_by_row() -> StepPolicy:
    torch.manual_seed(0)
    return StepPolicy(RowByRow(), observation={"x": 4}, action={"action": 2}, state={"total": 4})


MODULES: dict[str, Callable[[], StepPolicy]] = {"module": moving, "row by row": row_by_row}
CASES = {
    "xlstm": ("xlstm with an sLSTM block", "fp32", 1),
    "xlstm int8": ("xlstm with an sLSTM block", "int8", 1),
    "mamba": ("mamba of odd sizes, with biases and layer norms", "fp32", 1),
    "transformer": ("transformer over its window", "fp32", 1),
    "transformer with a cache": ("transformer with a cache", "fp32", 1),
    "module": ("module", "fp32", 1),
    "module of three rows": ("module", "fp32", 3),
}
"""What is exported -> the model, its precision, for how many rows."""

Made = Callable[[str, str, int], Bundle]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Each bundle once, for all targets."""

    @functools.cache
    def make(name: str, precision: str, batch: int) -> Bundle:
        options = ExportOptions(
            GRAPHS if name == "row by row" else TARGETS,
            batch,
            reference_steps=8,
            quantization=QuantizationOptions(precision),
            platform=Platform(device=find_device("agx-orin")),
            report=False,
        )
        path = tmp_path_factory.mktemp("rows") / "policy.lram"
        if name in MODULES:
            return export_bundle(MODULES[name](), None, path, options)
        return export_bundle(random_checkpoint(MODELS[name], Path("random"), seed=1), TASK, path, options)

    return make


@pytest.fixture(autouse=True)
def gpu() -> None:
    """Without a simulated GPU, the target `tensorrt` runs on its stand-in."""


def load(bundle: Bundle, target: str, rows: int) -> Runtime:
    runtime, _ = load_verifier(target, bundle.load_artifact(target, rows), 1)
    assert runtime.spec.batch_size == rows
    return runtime


def episodes(bundle: Bundle, rows: int) -> StepSequence:
    """Rows that start an episode at different steps."""
    return random_steps(bundle.manifest.spec.with_batch(rows), bundle.manifest.task, STEPS, seed=3, episode=EPISODE)


def run(runtime: Runtime, inputs: StepSequence) -> list[np.ndarray]:
    """The outputs that are computed, of all steps."""
    runtime.reset()
    steps = [[output[i].copy() for i in runtime.spec.computed] for output in map(_arrays(runtime), inputs)]
    return [np.stack(column) for column in zip(*steps, strict=True)]


def _arrays(runtime: Runtime) -> Callable[[Any], tuple[np.ndarray, ...]]:
    return lambda arguments: runtime.step(*arguments).arrays


def some_rows(rows: int) -> list[int]:
    return sorted({0, 1, rows // 2, rows - 1} & set(range(rows)))


def check_rows(bundle: Bundle, target: str, rows: int, tolerance: float, one: Runtime) -> Runtime:
    """Each row is what it is alone; returns the runtime."""
    runtime, inputs = load(bundle, target, rows), episodes(bundle, rows)
    together = run(runtime, inputs)
    for row in some_rows(rows):
        alone = run(one, inputs.map(lambda values, row=row: values[:, row : row + 1]))  # type: ignore[misc]
        for every, single in zip(together, alone, strict=True):
            np.testing.assert_allclose(every[:, row], single[:, 0], atol=tolerance, rtol=tolerance)
    return runtime


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_every_row_is_what_it_is_alone(case: str, target: str, made: Made) -> None:
    name, precision, batch = CASES[case]
    bundle = made(name, precision, batch)
    one = load(bundle, target, 1)
    in_parts = target == "tvm" or (target == "pytorch" and name in MODULES)
    assert isinstance(one, StackedRuntime) == (in_parts and batch != 1)
    for rows in (3, 64) if batch == 1 else (1, 2, 3, 4):
        runtime = check_rows(bundle, target, rows, close(target, precision), one)
        assert isinstance(runtime, StackedRuntime) == (in_parts and rows != batch)
        runtime.close()
    one.close()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", ["xlstm", "transformer with a cache", "module"])
def test_states_are_saved_loaded_and_reset_row_by_row(case: str, target: str, made: Made) -> None:
    bundle = made(*CASES[case])
    check_states(load(bundle, target, 3), episodes(bundle, 3))


def check_states(runtime: Runtime, inputs: StepSequence) -> None:
    steps = list(inputs)
    runtime.reset()
    fresh = runtime.state()
    for arguments in steps[:5]:
        runtime.step(*arguments)
    saved = runtime.state()
    assert all(saved[t.name].shape == t.shape for t in runtime.spec.states)
    expected = [array.copy() for array in runtime.step(*steps[5])]
    runtime.load_state(saved)
    for found, array in zip(runtime.step(*steps[5]), expected, strict=True):
        np.testing.assert_array_equal(found, array)
    runtime.load_state(saved)
    runtime.reset([1])
    for name, values in runtime.state().items():
        np.testing.assert_array_equal(values[[0, 2]], saved[name][[0, 2]])
        np.testing.assert_array_equal(values[1], fresh[name][1])
    runtime.close()


@pytest.mark.parametrize("target", GRAPHS)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_module_that_writes_its_rows_into_its_graph_acts_part_after_part(batch: int, target: str, made: Made) -> None:
    bundle = made("row by row", "fp32", batch)
    one = load(bundle, target, 1)
    for rows in (1, 2, 3, 5):
        runtime = check_rows(bundle, target, rows, CLOSE, one)
        assert isinstance(runtime, StackedRuntime) == (rows != batch)
        runtime.close()
    one.close()
    check_states(load(bundle, target, 3), episodes(bundle, 3))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_bundle_of_an_earlier_version_acts_part_after_part(target: str) -> None:
    bundle = Bundle.open(OLDER / "schema-3.lram")
    one = load(bundle, target, 1)
    runtime = check_rows(bundle, target, 3, close(target, "int8"), one)
    assert isinstance(runtime, StackedRuntime)
    check_states(runtime, episodes(bundle, 3))
    one.close()


def test_the_graph_names_its_rows(made: Made) -> None:
    for name, batch, expected in (("module", 3, ROWS), ("row by row", 2, "")):
        bundle = made(name, "fp32", batch)
        for target in ("onnxruntime", "tensorrt"):
            graph = onnx.load(bundle.path / target / "model.onnx", load_external_data=False).graph
            first = [value.type.tensor_type.shape.dim[0] for value in (*graph.input, *graph.output)]
            assert {size.dim_param for size in first} == {expected}
            assert expected or {size.dim_value for size in first} == {batch}
