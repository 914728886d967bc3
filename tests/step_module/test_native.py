"""Modules on the native engine: its operations are PyTorch's, for any number of rows and threads."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lram_export import ExportOptions, Field, StepPolicy, _native, export_bundle, load_policy
from lram_export.errors import StepError, UsageError
from lram_export.exporters.native.module import header
from lram_export.exporters.native.program.tape import broadcast
from lram_export.exporters.native.program.translation import translate
from lram_export.lowering import lower
from lram_export.targets.native.program import BufferKind, Function, Operation, Reduction, write_program
from tests.step_module.modules import POLICIES

ROOT = Path(__file__).parents[2]
SHAPE = (3, 8)
Function_ = Callable[[Tensor], Any]


class Of(nn.Module):
    """A function of an observation (rows, 3, 8), flattened."""

    def __init__(self, function: Function_) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.function(x)
        return found.float().flatten(1)


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return make()


class Layer(nn.Module):
    """A layer behind others."""

    def __init__(self, layer: nn.Module, before: Function_ = lambda x: x) -> None:
        super().__init__()
        self.layer, self.before = layer.eval(), before

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(self.before(x))
        return found.flatten(1)


def image(x: Tensor) -> Tensor:
    """(rows, 2, 4, 6)."""
    return torch.cat([x.flatten(1), -x.flatten(1)], 1).view(-1, 2, 4, 6)


POINTWISE: dict[str, Function_] = {
    "add": lambda x: x + 2 * x[:, :1],
    "alpha": lambda x: torch.sub(x, x.flip(2), alpha=0.3),
    "reversed": lambda x: 1 - x,
    "divide": lambda x: x / (2 + x.abs()),
    "floor divide": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
    "truncated": lambda x: torch.div(x, 0.3, rounding_mode="trunc"),
    "remainder": lambda x: torch.remainder(x, 0.7) + torch.remainder(x, -0.7),
    "power": lambda x: x**2 + x.abs() ** 0.5 + (x.abs() + 0.1) ** 1.7 + 2.0**x,
    "least": lambda x: torch.minimum(x, x.flip(1)) + torch.maximum(x, torch.zeros(())),
    "compare": lambda x: (x > 0.1) + 2.0 * (x <= -0.2) + 4.0 * (x == x) + 8.0 * (x != 0) + (x >= 0).float() + (x < 0),
    "zeros": lambda x: (x * 0 > -(x * 0)).float() + (x * 0 == -(x * 0)),
    "logic": lambda x: ((x > 0) & (x < 1)) | ~(x > -1) ^ (x > 0.5),
    "logical": lambda x: torch.logical_xor(x > 0, x > 1) | torch.logical_not(x > 0),
    "where": lambda x: torch.where(x > 0, x, 2 * x[:, :, :1]),
    "masked": lambda x: x.masked_fill(x > 0.5, 3.0),
    "clamp": lambda x: x.clamp(-0.5, 0.5) + x.clamp(min=0) + x.clamp_max(0.1) + torch.clamp(x, x - 1, x.flip(2)),
    "rounding": lambda x: (3 * x).round() + (3 * x).floor() + (3 * x).ceil() + (3 * x).trunc() + x.sign(),
    "halves": lambda x: ((8 * x).round() / 2).round(),
    "roots": lambda x: x.abs().sqrt() + (x.abs() + 0.1).rsqrt() + (x.abs() + 1).reciprocal(),
    "exponents": lambda x: torch.exp(x) + torch.expm1(1e-3 * x) * 1e3 + torch.exp2(x),
    "logarithms": lambda x: torch.log(x.abs() + 0.1) + torch.log1p(1e-3 * x.abs()) * 1e3 + torch.log2(x.abs() + 1),
    "angles": lambda x: torch.sin(3 * x) + torch.cos(3 * x) + torch.atan(x) + torch.atan2(x, x.flip(2)),
    "sigmoids": lambda x: torch.sigmoid(x) + torch.tanh(x) + torch.erf(x) + functional.silu(x),
    "rectifiers": lambda x: functional.relu(x) + functional.elu(x) + functional.leaky_relu(x, 0.2) + functional.selu(x),
    "others": lambda x: functional.softplus(x) + functional.mish(x) + functional.hardswish(x) + functional.hardtanh(x),
    "gelu": lambda x: functional.gelu(x) + functional.gelu(x, approximate="tanh"),
    "gated": lambda x: functional.glu(x, 2),
    "softmax": lambda x: functional.softmax(x, 2) + functional.log_softmax(x, 1),
    "types": lambda x: (3 * x).to(torch.int64).float() + (x > 0).to(torch.int64).float() + x.bool().float(),
    "nothing": lambda x: torch.nan_to_num(torch.where(torch.isnan(x), 1.0, x)),
    "products of three": lambda x: torch.addcmul(x, x, x.flip(1), value=0.5) + torch.lerp(x, x.flip(2), 0.3),
}
MOVEMENT: dict[str, Function_] = {
    "transposed": lambda x: x.transpose(1, 2) * 2,
    "permuted": lambda x: x.view(-1, 3, 2, 4).permute(0, 3, 1, 2) + 0,
    "sliced": lambda x: x[:, 1:, ::3],
    "chosen": lambda x: x[:, [2, 0]] + x[:, :2, 3:4],
    "joined": lambda x: torch.cat([x[:, :1], torch.ones(1, 1, 8).expand(x.shape[0], 1, 8), 2 * x], 1),
    "interleaved": lambda x: torch.stack([x, 2 * x], 3),
    "repeated": lambda x: x.repeat(1, 2, 1) + x.repeat_interleave(2, 1).flip(1),
    "filled up": lambda x: functional.pad(x, (1, 2, 1, 0), value=7.0),
    "rolled": lambda x: x.roll(3, 2).flip(1),
    "triangles": lambda x: torch.tril(x) + torch.triu(x, 1) * 2,
    "windows": lambda x: x.unfold(2, 4, 2),
    "parts": lambda x: x.split([3, 5], 2)[1] + x.chunk(2, 2)[0][:, :, :1],
    "taken": lambda x: torch.index_select(x, 2, torch.tensor([7, 0, 0, 2])),
    "diagonal": lambda x: torch.diagonal(x, 0, 1, 2),
}
REDUCTIONS: dict[str, Function_] = {
    "sums": lambda x: x.sum(1) + x.mean(1, keepdim=True)[:, 0] + x.sum((1, 2))[:, None],
    "products": lambda x: x.prod(2),
    "largest": lambda x: x.amax(1) + x.amin((1, 2))[:, None] + x.max(1).values + x.min(1)[0],
    "places": lambda x: x.argmax(1).float() + 2.0 * x.argmin(1) + x.max(1).indices,
    "equal places": lambda x: (x * 0).argmax(2).float() + 3.0 * x.sign().argmin(2),
    "truths": lambda x: (x > 1).any(2).float() + (x > -1).all(2),
    "spreads": lambda x: x.var(2) + x.std(1, unbiased=False).mean(1, keepdim=True),
    "norms": lambda x: x.norm(dim=2) + functional.normalize(x, dim=2).sum(2) + x.abs().sum(2),
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "sequence": lambda: Layer(nn.Linear(8, 5)),
    "some of a sequence": lambda: Layer(nn.Linear(8, 5), lambda x: torch.tanh(torch.cat([x, x[:, :1]], 1))[:, :2]),
    "wide": lambda: Layer(nn.Linear(24, 70, bias=False), lambda x: x.flatten(1)),
    "layer norm": lambda: Layer(nn.LayerNorm(8)),
    "layer norm without weights": lambda: Layer(nn.LayerNorm((3, 8), elementwise_affine=False)),
    "group norm": lambda: Layer(nn.GroupNorm(2, 4), lambda x: torch.cat([x, x[:, :1]], 1)),
    "batch norm": lambda: Layer(nn.BatchNorm1d(3)),
    "rms norm": lambda: Layer(nn.RMSNorm(8)),
    "bilinear": lambda: Of(lambda x: torch.bmm(x, x.transpose(1, 2))),
    "einsum": lambda: Of(lambda x: torch.einsum("bij,bkj->bik", x, x * 2)),
    "attention": lambda: Layer(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
    "lstm": lambda: Layer(Last(nn.LSTM(8, 16, 2, batch_first=True))),
    "gru": lambda: Layer(Last(nn.GRU(8, 16, batch_first=True, bias=False))),
    "convolution": lambda: Layer(nn.Conv2d(2, 5, 3, 2, 1), image),
    "dilated": lambda: Layer(nn.Conv2d(2, 33, (2, 3), (1, 2), (0, 1), (2, 1)), image),
    "depthwise": lambda: Layer(nn.Conv2d(2, 4, 3, padding=1, groups=2, bias=False), image),
    "of a sequence": lambda: Layer(nn.Conv1d(3, 4, 3)),
    "pooled": lambda: Layer(nn.MaxPool2d(3, 2, 1), image),
    "means": lambda: Layer(nn.AvgPool2d(2, 1, 1), image),
    "adaptive": lambda: Layer(nn.AdaptiveAvgPool2d((2, 3)), image),
    "adaptive, unequal": lambda: Layer(nn.AdaptiveAvgPool2d((3, 4)), image),
    "of all": lambda: Layer(nn.AdaptiveAvgPool2d(1), image),
    "enlarged": lambda: Layer(nn.Upsample(scale_factor=2), image),
    "shuffled": lambda: Layer(nn.PixelShuffle(2), lambda x: x.flatten(1).view(-1, 4, 2, 3)),
    "weight norm": lambda: Layer(nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))),
    "parameters": lambda: Layer(nn.PReLU(3)),
}


class Last(nn.Module):
    """The last output of a layer that gives more."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)[0]
        return found


CASES = {
    **{name: (lambda f=f: Of(f)) for name, f in {**POINTWISE, **MOVEMENT, **REDUCTIONS}.items()},
    **LAYERS,
}


def compiled(module: nn.Module, path: Path, rows: int = 1) -> Any:
    """A module of an observation as a model of the engine, without all that is around it."""
    with torch.no_grad():
        width = module.eval()(torch.rand(1, *SHAPE)).shape[1]
    lowered = lower(StepPolicy(module, observation=Field(SHAPE), action=width), None, name="case", batch_size=rows)
    program = translate(lowered)
    write_program(path, program, header(lowered, program))
    return width


def stepped(path: Path, width: int, x: NDArray[np.float32], threads: int = 1) -> NDArray[np.float32]:
    state = _native.State(_native.Model(str(path), threads=threads), len(x))
    found = np.zeros((len(x), width), np.float32)
    state.bind([np.ascontiguousarray(x), np.ones(len(x), np.float32)], [found])
    state.step()
    return found


Compiled = Callable[[str], tuple[nn.Module, Path, Any]]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """A case's module, the engine's model of it, which is the same for every instruction set, and its width."""
    folder = tmp_path_factory.mktemp("cases")

    @functools.cache
    def make(name: str) -> tuple[nn.Module, Path, Any]:
        module, path = seeded(CASES[name]).eval(), folder / f"{len(list(folder.iterdir()))}.lrn"
        return module, path, compiled(module, path)

    return make


@pytest.mark.parametrize("name", CASES)
def test_what_pytorch_computes_the_engine_computes(name: str, case: Compiled) -> None:
    module, path, width = case(name)
    for rows in (1, 5, 70):  # by products of few tokens, then by those of many
        x = np.random.default_rng(rows).normal(size=(rows, *SHAPE)).astype(np.float32)
        with torch.no_grad():
            expected = module(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(stepped(path, width, x), expected, atol=2e-5, rtol=2e-5, err_msg=f"{rows} rows")


@pytest.mark.parametrize("isa", _native.instruction_sets())
def test_every_instruction_set_computes_the_same(isa: str, case: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRAM_ISA", isa)
    for name in ("wide", "lstm", "convolution", "attention", "sigmoids", "rectifiers", "places", "clamp"):
        module, path, width = case(name)
        for rows in (1, 33):
            x = np.random.default_rng(rows).normal(size=(rows, *SHAPE)).astype(np.float32)
            with torch.no_grad():
                expected = module(torch.from_numpy(x)).numpy()
            np.testing.assert_allclose(stepped(path, width, x), expected, atol=2e-5, rtol=2e-5)


def test_the_bits_of_a_row_depend_neither_on_threads_nor_on_the_other_rows(tmp_path: Path) -> None:
    wide = seeded(
        lambda: Layer(nn.Sequential(nn.Linear(24, 1100), nn.Tanh(), nn.Linear(1100, 1100)), lambda x: x.flatten(1))
    )
    width = compiled(wide, tmp_path / "model.lrn", 4)
    x = np.random.default_rng(0).normal(size=(200, *SHAPE)).astype(np.float32)
    for rows in (1, 2, 15, 200):
        one = stepped(tmp_path / "model.lrn", width, x[:rows])
        for threads in (2, 3):
            np.testing.assert_array_equal(stepped(tmp_path / "model.lrn", width, x[:rows], threads), one)
    many = stepped(tmp_path / "model.lrn", width, x)
    np.testing.assert_array_equal(stepped(tmp_path / "model.lrn", width, x[::-1])[::-1], many)


REFUSED: dict[str, tuple[Function_, str]] = {
    "computed index": (lambda x: torch.gather(x, 1, (x > 0).long()), "an index that is computed"),
    "whole numbers": (lambda x: (x > 0).long() * 3 + 1, "'mul' of numbers of type int64"),
    "double": (lambda x: x.double() * 2, "numbers of type float64"),
    "sorted": (lambda x: torch.sort(x, 1)[0], "the operator 'sort'"),
    "cumulative": (lambda x: torch.cumsum(x, 1), "the operator 'cumsum'"),
    "decimals": (lambda x: torch.round(x, decimals=1), "'round' with decimals"),
    "put in": (
        lambda x: torch.scatter(x, 2, torch.zeros(len(x), 3, 1, dtype=torch.int64), 5.0),
        "'scatter' as it is called here",
    ),
    "added up": (
        lambda x: x.transpose(0, 1).index_put((torch.tensor([1, 1]),), torch.ones(()), accumulate=True).transpose(0, 1),
        "'index_put' as it is called here",
    ),
    "bits": (lambda x: x.view(torch.int32), "'view' as it is called here"),
    "sums of double": (lambda x: x.sum(2, dtype=torch.float64), "numbers of type float64"),
    "transposed": (
        lambda x: functional.conv_transpose1d(x, torch.ones(3, 2, 2)),
        "transposed convolutions",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_engine_has_no_kernel_for_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    function, told = REFUSED[name]
    policy = StepPolicy(Of(function), observation=Field(SHAPE), action=Of(function)(torch.zeros(1, *SHAPE)).shape[1])
    message = (
        rf"target 'native' has no kernel for {re.escape(told)} \(test_native.py, line \d+\); the module runs on pyt"
    )
    with pytest.raises(UsageError, match=message):
        export_bundle(policy, None, tmp_path / "x.lram", ExportOptions(("native",), report=False))
    assert not list(tmp_path.iterdir())


def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    class Summing(nn.Module):
        def forward(self, x: Tensor, total: Tensor) -> Any:
            return 1 / (x + total), total + x

    policy = StepPolicy(Summing(), observation=2, action=2, state={"total": Field(2, initial=1.0)})
    path = tmp_path / "sum.lram"
    export_bundle(policy, None, path, ExportOptions(("native",), 2, report=False))
    with load_policy(path) as loaded:
        loaded.act(np.ones((2, 2)))
        before = loaded.state()
        with pytest.raises(StepError, match="action: expected finite values, got others in row 1; nothing has changed"):
            loaded.act(np.array([[1.0, 1.0], [1.0, -2.0]]))
        assert all(np.array_equal(before[name], value) for name, value in loaded.state().items())
        assert np.allclose(loaded.act(np.ones((2, 2))), 1 / 3)


def test_states_are_handed_on_saved_and_put_back(tmp_path: Path) -> None:
    path = tmp_path / "echoing.lram"
    export_bundle(POLICIES["echoing"](), None, path, ExportOptions(("native",), 3, report=False))
    with load_policy(path) as policy:
        steps = np.random.default_rng(1).normal(size=(6, 3, 4)).astype(np.float32)
        for step in steps[:3]:
            policy.act(step)
        saved = policy.state()
        np.testing.assert_array_equal(saved["state.kept"], np.tile(np.float32([1, -2]), (3, 1)))
        after = [policy.act(step) for step in steps[3:]]
        policy.load_state(saved)
        for step, expected in zip(steps[3:], after, strict=True):
            np.testing.assert_array_equal(policy.act(step), expected)


def test_numbers_of_the_format_are_those_of_the_engine() -> None:
    source = (ROOT / "kernels/native/src/kernels/program/program.h").read_text()
    layout = (ROOT / "kernels/native/src/program/format.h").read_text()

    def names(text: str, enum: str) -> list[str]:
        body = re.sub(r"//.*", "", text.split(f"enum class {enum}")[1].split("{")[1].split("}")[0])
        return re.findall(r"[a-z_]+", re.sub(r"= \d+", "", body))

    for text, enum in ((source, Function), (source, Reduction), (layout, Operation), (layout, BufferKind)):
        assert [member.name.lower() for member in enum] == names(text, enum.__name__)
    assert f"kFunctions = {len(Function)};" in source and f"kReductions = {len(Reduction)};" in source


extents = st.integers(1, 3)


@settings(max_examples=200, deadline=None)
@given(st.lists(extents, max_size=5), st.data())
def test_two_loops_go_through_operands_as_broadcasting_does(shape: list[int], data: st.DataObject) -> None:
    operands = []
    for _ in range(data.draw(st.integers(1, 3))):
        shown = [1 if data.draw(st.booleans()) else extent for extent in shape]
        operands.append(shown[data.draw(st.integers(0, len(shown))) :] if math.prod(shown[:0]) else shown)
    views = broadcast(shape, operands)
    if views is None:
        return
    assert views.times * views.count == math.prod(shape)
    for operand, view in zip(operands, views.operands, strict=True):
        values = torch.arange(math.prod(operand)).view(operand)
        expected = torch.broadcast_to(values, shape).reshape(-1).tolist()
        places = [t * view.outer + i * view.inner for t, i in itertools.product(range(views.times), range(views.count))]
        assert places == expected
