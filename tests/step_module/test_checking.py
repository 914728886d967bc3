"""A module that is not one step as a pure function is refused, with the line where it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lram_export import Field, StepPolicy
from lram_export.errors import UsageError
from lram_export.step_module.checking import check_module
from tests.step_module.modules import POLICIES, Seeing

HERE = Path(__file__).name


class WritesItsBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.memory.add_(1)
        return x + self.memory


class SetsItsBuffer(WritesItsBuffer):
    def forward(self, x: Tensor) -> Tensor:
        self.memory = self.memory + x
        return x


class SetsAnAttribute(nn.Module):
    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        return x


class WritesAnAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept = torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        self.kept.mul_(2)
        return x + self.kept


class CountsInAPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Counter()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


class Counter(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class WritesItsInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return x + 1


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class MixesRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0)


class MixesChoices(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)).argmax(-1)


class MixesALittle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2e-5 * torch.tanh(x - x.mean(dim=0))


class MixesStarts(nn.Module):
    def forward(self, x: Tensor, is_first: Tensor, hidden: Tensor) -> Any:
        hidden = hidden * (1 - is_first[0]) + x
        return hidden, hidden


class RemembersInADict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        last = self.memory.get("x", x)
        self.memory["x"] = x
        return x if last.shape != x.shape else last + (x - last).clamp(-4, 4)


MEMORY: list[Tensor] = []


class RemembersOutside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        last = MEMORY[-1] if MEMORY and MEMORY[-1].shape == x.shape else x
        MEMORY.append(x)
        return last + (x - last).clamp(-0.1, 0.1)


class SetsInAMethodAndATuple(nn.Module):
    def reset(self) -> None:
        self.hidden = None

    def forward(self, x: Tensor) -> Tensor:
        y, self.hidden = x * 2, x
        return y


class UsesNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("module", "told", "line"),
    [
        (WritesItsBuffer, "it writes its buffer 'memory'", "self.memory.add_(1)"),
        (SetsItsBuffer, "it sets its buffer 'memory'", "self.memory = self.memory + x"),
        (SetsAnAttribute, "it sets its attribute 'last'", "self.last = x"),
        (WritesAnAttribute, "it writes", "self.kept.mul_(2)"),
        (CountsInAPart, "it sets its attribute 'part.calls'", "self.calls += 1"),
        (SetsInAMethodAndATuple, "it sets its attribute 'hidden'", "y, self.hidden = x * 2, x"),
        (Draws, "it draws random numbers", "return x + torch.randn_like(x)"),
        (WritesItsInput, "it writes its input 'x'", "x.mul_(2)"),
        (Branches, "its control flow depends on data", "if x.sum() > 0:"),
        (UsesNumpy, "cannot be traced", "return torch.from_numpy(x.numpy() * 2)"),
        (Fails, "RuntimeError: mat1 and mat2 shapes cannot be multiplied", "return x @ torch.zeros(5, 3)"),
    ],
)
def test_the_message_names_what_and_the_line(module: type[nn.Module], told: str, line: str) -> None:
    number = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.strip() == line)
    with pytest.raises(UsageError) as error:
        check_module(StepPolicy(module(), observation={"x": 3}, action=3))
    text = str(error.value)
    assert text.startswith(f"{module.__name__}: ") and told in text and "\n" not in text
    assert f"{HERE}:{number}: {line})" in text


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (MixesRows, {}),
        (MixesALittle, {}),
        (MixesChoices, {"action": Field((), "int64")}),
        (MixesStarts, {"observation": {"x": 3, "is_first": ()}, "state": {"hidden": 3}}),
    ],
)
def test_rows_that_depend_on_each_other_are_refused(module: type[nn.Module], said: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="a row of output 'action' depends on the other rows"):
        check_module(StepPolicy(module(), **{"observation": 3, "action": 3, **said}))


@pytest.mark.parametrize("module", [RemembersInADict, RemembersOutside])
def test_a_memory_that_is_no_state_is_noticed_wherever_it_is(module: type[nn.Module]) -> None:
    with pytest.raises(UsageError, match="not a pure function of observations and state: "):
        check_module(StepPolicy(module(), observation=3, action=3))


def test_the_users_module_is_left_as_it_was_but_in_evaluation_mode() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    weight, random = module[0].weight.clone(), torch.get_rng_state()
    check_module(StepPolicy(module, observation=3, action=3))
    assert all(parameter.requires_grad for parameter in module.parameters()) and not module.training
    assert torch.equal(module[0].weight, weight) and torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            {"action": {"action": 5, "value": ()}},
            r"output 'action': expected float32 of shape \(3, 5\) with 3 rows, the module returned float32 of shape "
            r"\(3, 6\) \(.*modules.py:\d+: def forward\)",
        ),
        ({"action": {"action": 6, "values": ()}}, r"returned outputs \['action', 'value'\], expected"),
        ({"state": {"hidden": 48, "more": 3}}, "TypeError: .*takes 4 positional arguments but 5 were given"),
    ],
)
def test_what_comes_back_is_what_was_said(said: dict[str, Any], told: str) -> None:
    given = {
        "observation": POLICIES["seeing"]().observation,
        "action": {"action": 6, "value": ()},
        "state": {"hidden": 48},
        **said,
    }
    with pytest.raises(UsageError, match=told):
        check_module(StepPolicy(Seeing(), **given))


class ReturnsAWiderState(nn.Module):
    def forward(self, x: Tensor, hidden: Tensor) -> Any:
        return x, torch.cat([hidden, hidden], -1)


class ReturnsNoState(nn.Module):
    def forward(self, x: Tensor, hidden: Tensor) -> Any:
        return x + hidden


def test_a_state_of_another_shape_or_none_at_all_is_named() -> None:
    with pytest.raises(UsageError, match=r"state 'hidden': expected float32 of shape \(3, 3\) .* got|returned"):
        check_module(StepPolicy(ReturnsAWiderState(), observation=3, action=3, state={"hidden": 3}))
    with pytest.raises(
        UsageError, match=r"expected 1 output \(action\) and 1 state \(hidden\), the module returned 1 tensor"
    ):
        check_module(StepPolicy(ReturnsNoState(), observation=3, action=3, state={"hidden": 3}))


def test_weights_are_float32_and_finite() -> None:
    for change, told in ((nn.Module.double, "float64, expected float32; call module.float"),):
        with pytest.raises(UsageError, match=told):
            check_module(StepPolicy(change(nn.Linear(3, 3)), observation=3, action=3))
    with pytest.raises(UsageError, match="weight has no shape yet; call the module once"):
        check_module(StepPolicy(nn.LazyLinear(3), observation=3, action=3))
    broken = nn.Linear(3, 3)
    with torch.no_grad():
        broken.weight[0, 0] = float("nan")
    with pytest.raises(UsageError, match="weight: expected finite values"):
        check_module(StepPolicy(broken, observation=3, action=3))


class Twice(nn.Module):
    """Of its layers one is used twice, one shares its weight, one is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.twice, self.never, self.one = (nn.Linear(3, 3) for _ in range(4))
        self.other = nn.Linear(3, 3)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(self.twice(self.twice(self.used(x)))))


def test_matrices_that_can_be_quantized_are_read_by_one_product() -> None:
    assert check_module(StepPolicy(Twice(), observation=3, action=3)).products == ("used",)
    assert check_module(POLICIES["seeing"]()).products == ("camera.3", "encoder.0", "head", "value")
    assert check_module(POLICIES["counting"]()).products == ()
