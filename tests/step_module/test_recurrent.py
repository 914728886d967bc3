"""Torch's recurrent layers as linear ones: the same numbers, and matrices that a precision applies to."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lram_export import ExportOptions, Field, StepPolicy, export_bundle
from lram_export.benchmark.compare import compare_bundles
from lram_export.bundle.bundle import Bundle
from lram_export.episodes.steps import random_steps, save_steps
from lram_export.lowering import LoweredModule, lower
from lram_export.quantization.quantize import QuantizationOptions, quantize
from lram_export.step_module.graph import ModuleGraph
from lram_export.step_module.recurrent import TWINS, twin_of, with_linear_layers
from lram_export.step_module.tracing import trace
from lram_export.verification.verify import checkpoint_steps, verify_against_checkpoint, verify_targets
from tests.conftest import SLOW
from tests.step_module.modules import choosing

ROWS = 3
WITHIN = 1e-6
LAYERS: dict[str, Callable[..., Any]] = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN": nn.RNN,
    "RNN with ReLU": partial(nn.RNN, nonlinearity="relu"),
}
CELLS: dict[str, Callable[..., Any]] = {
    "LSTMCell": nn.LSTMCell,
    "GRUCell": nn.GRUCell,
    "RNNCell": nn.RNNCell,
    "RNNCell with ReLU": partial(nn.RNNCell, nonlinearity="relu"),
}


def tensors(found: Any) -> list[Tensor]:
    """All that a layer returned, in a row."""
    return [found] if isinstance(found, Tensor) else [tensor for part in found for tensor in tensors(part)]


@torch.no_grad()
def assert_same(layer: Any, *arguments: Any) -> None:
    twin = twin_of(layer)
    expected, found = tensors(layer(*arguments)), tensors(twin(*arguments))
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, atol=WITHIN, rtol=WITHIN)
    assert set(map(id, twin.parameters())) == set(map(id, layer.parameters()))
    assert isinstance(twin, type(layer)) and repr(twin).startswith(type(layer).__name__)


@given(
    kind=st.sampled_from(sorted(LAYERS)),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    layers=st.integers(1, 3),
    steps=st.integers(1, 5),
    rows=st.integers(0, 4),
    flags=st.tuples(*[st.booleans()] * 4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_a_twin_of_a_layer_computes_what_the_layer_does(
    kind: str, sizes: tuple[int, int], layers: int, steps: int, rows: int, flags: tuple[bool, ...], seed: int
) -> None:
    torch.manual_seed(seed)
    bias, batch_first, dropout, started = flags
    options = {"bias": bias, "batch_first": batch_first, "dropout": 0.5 if dropout and layers > 1 else 0.0}
    layer = LAYERS[kind](*sizes, num_layers=layers, **options).eval()
    of_rows = (rows,) if rows else ()  # none: unbatched
    shape = (*of_rows, steps) if batch_first else (steps, *of_rows)
    arguments: list[Any] = [torch.randn(*shape, sizes[0])]
    if started:
        state = [torch.randn(layers, *of_rows, sizes[1]) for _ in range(2 if kind == "LSTM" else 1)]
        arguments.append(tuple(state) if len(state) > 1 else state[0])
    assert_same(layer, *arguments)


@given(
    kind=st.sampled_from(sorted(CELLS)),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    rows=st.integers(0, 4),
    flags=st.tuples(*[st.booleans()] * 2),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_a_twin_of_a_cell_computes_what_the_cell_does(
    kind: str, sizes: tuple[int, int], rows: int, flags: tuple[bool, ...], seed: int
) -> None:
    torch.manual_seed(seed)
    bias, started = flags
    of_rows = (rows,) if rows else ()
    arguments: list[Any] = [torch.randn(*of_rows, sizes[0])]
    if started:
        state = [torch.randn(*of_rows, sizes[1]) for _ in range(2 if kind == "LSTMCell" else 1)]
        arguments.append(tuple(state) if len(state) > 1 else state[0])
    assert_same(CELLS[kind](*sizes, bias=bias).eval(), *arguments)


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_what_code_reads_of_a_layer_it_reads_of_its_twin(kind: str) -> None:
    layer = LAYERS[kind](4, 5, num_layers=2, batch_first=True).eval()
    twin: Any = twin_of(layer)
    names = ("input_size", "hidden_size", "num_layers", "batch_first", "bias", "bidirectional", "proj_size", "mode")
    assert [getattr(twin, name) for name in names] == [getattr(layer, name) for name in names]
    twin.flatten_parameters()
    assert twin.weight_hh_l1 is layer.weight_hh_l1 and twin.all_weights[1][0] is layer.weight_ih_l1
    assert not twin.training and not twin.get_submodule("1.of_state").training
    assert type(layer) is not type(twin) and layer.weight_ih_l0 in set(layer.parameters())


class Gated(nn.Module):
    """Two layers of a GRU that get a sequence of one, and a head that gets it, too: (rows, 1, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(12, 32, 2, batch_first=True, dropout=0.1), nn.Linear(32, 4)

    def forward(self, x: Tensor, hidden: Tensor) -> Any:
        assert isinstance(self.gru, nn.GRU)
        self.gru.flatten_parameters()
        start = hidden.view(len(x), self.gru.num_layers, self.gru.hidden_size).transpose(0, 1).contiguous()
        out, after = self.gru(x[:, None], start)
        return torch.tanh(self.head(out))[:, 0], after.transpose(0, 1).reshape(len(x), -1)


class Celled(nn.Module):
    """A cell in a list, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.ModuleList([nn.LSTMCell(12, 40, bias=False)]), nn.Linear(40, 4)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        cells: Any = self.cells
        h, c = cells[0](x, (h, c))
        return self.head(h), (h, c)


class Listening(nn.Module):
    """Steps lead, as torch has it without ``batch_first``, up to the head; a sequence of a few looks back."""

    def __init__(self, steps: int = 1) -> None:
        super().__init__()
        self.steps, self.lstm, self.head = steps, nn.LSTM(6, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        out, (h, c) = self.lstm(x.view(len(x), self.steps, 6).transpose(0, 1), (h[None], c[None]))
        return self.head(out)[-1], (h[0], c[0])


def gated() -> StepPolicy:
    torch.manual_seed(0)
    return StepPolicy(Gated(), observation=12, action=4, state={"hidden": Field(64, initial=torch.linspace(-1, 1, 64))})


def celled() -> StepPolicy:
    torch.manual_seed(1)
    return StepPolicy(Celled(), observation=12, action=4, state={"h": 40, "c": 40})


def listening(steps: int = 1) -> StepPolicy:
    torch.manual_seed(2)
    return StepPolicy(Listening(steps), observation=6 * steps, action=3, state={"h": 32, "c": 32})


NAMES = {
    choosing: ("lstm.of_input", "lstm.of_state", "head"),
    gated: ("gru.0.of_input", "gru.0.of_state", "gru.1.of_input", "gru.1.of_state", "head"),
    celled: ("cells.0.of_input", "cells.0.of_state", "head"),
}
"""Policies, and the matrices of their steps."""
MOST = 0.9
"""Part of the weights that codes hold, at least."""


def lowered(policy: StepPolicy) -> LoweredModule:
    return lower(policy, None, name="policy", batch_size=ROWS)


def export(policy: StepPolicy, path: Path, precision: str, targets: tuple[str, ...], **options: Any) -> Bundle:
    quantization = QuantizationOptions(precision, **options)
    return export_bundle(policy, None, path, ExportOptions(targets, ROWS, report=False, quantization=quantization))


def names_of(bundle: Bundle) -> tuple[str, ...]:
    assert bundle.manifest.quantization is not None
    return tuple(matrix.name for matrix in bundle.manifest.quantization.matrices)


# 16 bits are written in one form for all layers, int8g in that of int4: one policy of them is enough for every change
QUANTIZED = [
    pytest.param(make, precision, marks=SLOW if precision in ("fp16", "int8g") and make is not celled else ())
    for make in NAMES
    for precision in ("int8", "int8g", "int4", "fp16")
]


@pytest.mark.parametrize(("make", "precision"), QUANTIZED, ids=lambda value: getattr(value, "__name__", value))
def test_recurrent_layers_are_quantized_and_every_target_is_the_users_own_module(
    make: Callable[[], StepPolicy], precision: str, tmp_path: Path
) -> None:
    targets = ("pytorch", "onnxruntime", "openvino", *(("native",) if precision != "fp16" else ()))
    bundle = export(make(), tmp_path / "policy.lram", precision, targets)
    manifest = bundle.manifest
    assert names_of(bundle) == NAMES[make] == tuple(manifest.model["matrices"])
    assert manifest.quantization is not None
    assert sum(math.prod(m.shape) for m in manifest.quantization.matrices) > MOST * manifest.parameters
    assert all(result.passed for result in verify_targets(bundle, targets, threads=1).values())
    inputs = checkpoint_steps(bundle, None, 100, seed=3)
    compared = verify_against_checkpoint(bundle, make(), targets, inputs=inputs, threads=1)
    assert compared.passed, [result.failures() for result in compared.results.values()]


@pytest.mark.parametrize("make", NAMES, ids=lambda make: make.__name__)
def test_in_float32_a_policy_is_as_its_user_wrote_it(make: Callable[[], StepPolicy]) -> None:
    policy = make()
    before = {name: tensor.clone() for name, tensor in policy.module.state_dict().items()}
    found = lowered(policy)
    assert found.graph.policy_module is policy.module and found.matrix_names() == ("head",)
    assert found.model["matrices"].keys() == {"head"}
    quantizable = found.quantizable()
    assert quantizable.own is policy and quantizable.quantizable() is quantizable
    assert quantizable.source == found.source and quantizable.parameters == found.parameters
    assert quantizable.matrix_names() == NAMES[make]
    after = policy.module.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_the_reference_of_a_quantized_policy_is_the_users_own_layer_with_what_codes_stand_for() -> None:
    policy = choosing()
    quantized = quantize(lowered(policy), QuantizationOptions("int4"))
    assert isinstance(quantized, LoweredModule) and quantized.quantization is not None
    codes = quantized.quantization.matrices["lstm.of_state"]
    layer: Any = quantized.own.module.lstm
    layers = quantized.graph.layers()
    assert type(quantized.own.module.lstm) is nn.LSTM and layer is not policy.module.lstm
    np.testing.assert_array_equal(layer.weight_hh_l0.detach().numpy(), codes.dequantize())
    assert layer._flat_weights[1] is layer.weight_hh_l0 is layers["lstm.of_state"].weight
    assert layer.bias_hh_l0 is policy.module.lstm.bias_hh_l0
    assert not torch.equal(layer.weight_hh_l0, policy.module.lstm.weight_hh_l0)


@pytest.mark.parametrize("make", [gated, pytest.param(listening, marks=SLOW)])
def test_calibration_finds_the_inputs_of_recurrent_layers_wherever_steps_of_a_sequence_lead(
    make: Callable[[], StepPolicy], tmp_path: Path
) -> None:
    policy, recording, costs = make(), tmp_path / "steps.npz", {}
    save_steps(random_steps(policy.spec(ROWS), None, 200, seed=11, episode=40), recording)
    for label, precision, recordings in (
        ("nearest", "int4", ()),
        ("calibrated", "int4", (recording,)),
        *([("activations", "w8a8", (recording,))] if make is gated else []),
    ):
        targets = ("pytorch", "onnxruntime") if precision == "int4" else ("onnxruntime", "native")
        bundle = export(policy, tmp_path / f"{label}.lram", precision, targets, calibration=recordings)
        assert bundle.manifest.quantization is not None and bundle.manifest.quantization.cost is not None
        assert len(names_of(bundle)) >= 3
        costs[label] = bundle.manifest.quantization.cost["relative_error"]
        inputs = checkpoint_steps(bundle, recording, 100, seed=3)
        assert verify_against_checkpoint(bundle, policy, targets, inputs=inputs, threads=1).passed
    assert costs["calibrated"] < costs["nearest"] and costs.get("activations", 0) < 0.1


@pytest.mark.slow
def test_auto_chooses_among_the_matrices_of_recurrent_layers_and_they_can_be_kept(tmp_path: Path) -> None:
    policy, recording = choosing(), tmp_path / "steps.npz"
    save_steps(random_steps(policy.spec(ROWS), None, 600, seed=11, episode=30), recording)
    targets, calibrated = ("onnxruntime", "openvino", "native"), {"calibration": (recording,)}
    bundle = export(policy, tmp_path / "auto.lram", "auto", targets, max_disagreement=0.02, **calibrated)
    entry = bundle.manifest.quantization
    assert entry is not None and entry.auto is not None
    assert [group["name"] for group in entry.auto["groups"]] == list(NAMES[choosing])
    inputs = checkpoint_steps(bundle, recording, 100, seed=3)
    assert verify_against_checkpoint(bundle, policy, targets, inputs=inputs, threads=1).passed
    kept = export(policy, tmp_path / "kept.lram", "int8", targets, keep_fp32=("lstm.of_state",))
    assert names_of(kept) == ("lstm.of_input", "head")
    in_float32 = export(policy, tmp_path / "float32.lram", "fp32", targets)
    difference = compare_bundles(in_float32, kept, threads=1).difference
    assert 0 < difference.relative_error < 0.05


class Own(nn.LSTM):
    """Computes something else."""

    def forward(self, *arguments: Any) -> Any:
        return super().forward(-arguments[0], *arguments[1:])


class Layer(nn.Module):
    """Something that is done with a layer, and a head."""

    def __init__(self, layer: nn.Module, use: Callable[[Any, Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.layer, self.use, self.head = layer, use, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.use(self.layer, x))
        return found


def once(layer: Any, x: Tensor) -> Tensor:
    found: Tensor = layer(x[None])[0][0]
    return found


def hooked() -> nn.Module:
    layer = nn.GRU(4, 8)
    layer.register_forward_pre_hook(lambda module, arguments: (2 * arguments[0],))
    return layer


def tied() -> nn.Module:
    layer = nn.LSTM(8, 8)
    layer.weight_hh_l0 = layer.weight_ih_l0
    return layer


def named_twice(module: Layer) -> Layer:
    module.other = module.layer
    return module


def packed(layer: Any, x: Tensor) -> Tensor:
    sequence = nn.utils.rnn.PackedSequence(x, torch.tensor([len(x)]))
    found: Tensor = layer(sequence)[0].data
    return found


LEFT_ALONE: dict[str, Callable[[], Layer]] = {
    "bidirectional": lambda: Layer(nn.LSTM(4, 8, bidirectional=True), once, 16),
    "projections": lambda: Layer(nn.LSTM(4, 8, proj_size=3), once, 3),
    "a subclass": lambda: Layer(Own(4, 8), once),
    "a hook": lambda: Layer(hooked(), once),
    "a parametrization": lambda: Layer(
        nn.utils.parametrizations.weight_norm(nn.GRUCell(4, 8), "weight_hh"), lambda layer, x: layer(x)
    ),
    "tied weights": lambda: Layer(tied(), lambda layer, x: once(layer, x.repeat(1, 2))),
    "weights that are read": lambda: Layer(nn.RNN(4, 8), lambda layer, x: once(layer, x) + layer.weight_hh_l0.sum()),
    "run twice": lambda: Layer(nn.GRUCell(8, 8), lambda layer, x: layer(layer(x.repeat(1, 2)))),
    "a packed sequence": lambda: Layer(nn.LSTM(4, 8), packed),
    "two names": lambda: named_twice(Layer(nn.LSTM(4, 8), once)),
    "not run": lambda: Layer(nn.LSTM(4, 8), lambda layer, x: x.repeat(1, 2)),
}


@pytest.mark.parametrize("what", LEFT_ALONE)
def test_what_linear_layers_cannot_equal_is_left_alone(what: str) -> None:
    torch.manual_seed(0)
    module = LEFT_ALONE[what]()
    found = lowered(StepPolicy(module, observation=4, action=2))
    assert found.facts.recurrent == () and found.matrix_names() == ("head",) and found.quantizable() is found
    assert with_linear_layers(found.own, found.facts.recurrent) is found.own


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_a_layer_that_is_run_once_has_a_twin_without_a_state_only_its_input_is_multiplied(kind: str) -> None:
    layer = {**LAYERS, **CELLS}[kind](4, 8)

    def use(layer: Any, x: Tensor) -> Tensor:
        found = layer(x[None]) if isinstance(layer, nn.RNNBase) else layer(x)
        return tensors(found)[0].view(len(x), -1)

    found = lowered(StepPolicy(Layer(layer, use), observation=4, action=2)).quantizable()
    assert found.facts.recurrent == ("layer",) and found.matrix_names() == ("layer.of_input", "head")


def test_a_layer_may_be_kept_elsewhere_and_be_the_policy_itself() -> None:
    module: Any = Layer(nn.GRU(4, 8), once)
    module.kept = [module.layer]
    found = lowered(StepPolicy(module, observation=4, action=2)).quantizable()
    copied: Any = found.step_policy.module
    assert copied.layer is copied.kept[0] and type(copied.layer) is TWINS[nn.GRU]
    assert module.layer is module.kept[0] and type(module.layer) is nn.GRU
    cell = lowered(StepPolicy(nn.GRUCell(4, 8), observation={"x": 4, "h": 8}, action=8)).quantizable()
    assert cell.matrix_names() == ("of_input", "of_state") and cell.model["class"] == "GRUCell"


def test_of_a_sequence_the_input_has_one_product_and_the_state_many(tmp_path: Path) -> None:
    policy = listening(steps=4)
    targets = ("pytorch", "onnxruntime", "openvino", "native")
    bundle = export(policy, tmp_path / "policy.lram", "int8", targets)
    assert names_of(bundle) == ("lstm.of_input", "head")
    recording = tmp_path / "steps.npz"
    save_steps(random_steps(policy.spec(ROWS), None, 300, seed=11, episode=40), recording)
    calibrated = export(policy, tmp_path / "fitted.lram", "int4", ("onnxruntime",), calibration=(recording,))
    inputs = checkpoint_steps(calibrated, None, 50, seed=3)
    assert verify_against_checkpoint(calibrated, listening(4), ("onnxruntime",), inputs=inputs, threads=1).passed


def test_a_linear_layer_that_is_used_twice_stays_float32_on_every_target(tmp_path: Path) -> None:
    module = Layer(nn.Linear(4, 4), lambda layer, x: layer(torch.tanh(layer(x))), 4)
    targets = ("pytorch", "onnxruntime", "openvino", "native")
    bundle = export(StepPolicy(module, observation=4, action=2), tmp_path / "policy.lram", "int8", targets)
    assert names_of(bundle) == ("head",)


def test_a_layer_whose_weights_were_replaced_is_what_it_is_now(tmp_path: Path) -> None:
    policy, other = choosing(), choosing()
    other.module.lstm.weight_hh_l0 = nn.Parameter(policy.module.lstm.weight_hh_l0.detach().clone())
    bundle = export(policy, tmp_path / "policy.lram", "int8", ("onnxruntime",))
    inputs = checkpoint_steps(bundle, None, 20, seed=3)
    assert verify_against_checkpoint(bundle, other, ("onnxruntime",), inputs=inputs, threads=1).passed


def test_a_twin_is_traced_into_products_and_nothing_recurrent() -> None:
    found = lowered(gated()).quantizable()

    def operators(graph: ModuleGraph) -> set[str]:
        return {str(node.target) for node in trace(graph).graph.nodes}

    assert "aten.linear.default" in operators(found.graph) and "aten.gru.input" not in operators(found.graph)
    assert "aten.gru.input" in operators(ModuleGraph(found.own, ROWS))
