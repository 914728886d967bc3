"""What a user may say of a module."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lram_export import Field, StepPolicy
from lram_export.errors import UsageError
from lram_export.lowering import lower
from lram_export.spec.interface import FieldInterface, Interface, Limits
from tests.step_module.modules import seeing


def policy(**said: Any) -> StepPolicy:
    return StepPolicy(nn.Linear(3, 3), **{"observation": 3, "action": 3, **said})


def test_the_interface_is_what_was_said_with_rows_and_the_start_of_an_episode() -> None:
    spec = seeing().spec(4)
    assert [(t.name, t.shape, t.dtype) for t in spec.inputs] == [
        ("proprio", (4, 12), "float32"),
        ("camera", (4, 3, 16, 16), "uint8"),
        ("is_first", (4,), "float32"),
    ]
    assert [(t.name, t.shape, t.dtype) for t in spec.outputs] == [
        ("action", (4, 6), "float32"),
        ("value", (4,), "float32"),
    ]
    (state,) = spec.states
    assert (state.name, state.shape, state.initial) == ("state.hidden", (4, 48), None)


def test_an_initial_value_may_be_a_number_an_array_or_a_tensor() -> None:
    made = policy(
        state={
            "a": 2,
            "b": Field(2, initial=3),
            "c": Field((2,), initial=torch.tensor([1.0, 2.0])),
            "d": Field(2, initial=np.ones(2)),
        }
    )
    assert [state.initial for state in made.spec(1).states] == [0.0, 3.0, None, 1.0]
    np.testing.assert_array_equal(made.initial_tensors()["state.c"], [1, 2])


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"observation": {}}, "observation: expected 1 to 15 fields, got 0"),
        ({"observation": -3}, r"observation: observation: expected a shape without rows, such as \(48,\), got -3"),
        ({"observation": "12"}, "expected a shape without rows, such as .48,., got '12'"),
        ({"observation": {"a b": 3}}, "observation: expected names of letters, digits and underscores, got 'a b'"),
        ({"observation": {"x": Field(3, "float64")}}, "observation: x: expected float32 or uint8, got 'float64'"),
        ({"observation": {"reward": 3}}, "'reward': a name that is used already; choose another"),
        ({"observation": {"is_first": ()}}, "expected an observation beside 'is_first'"),
        ({"observation": {"x": 3, "is_first": 3}}, r"is_first: expected shape \(\) and float32"),
        ({"action": {"x": 3, "is_first": ()}}, "'is_first' is an observation and an action"),
        ({"action": Field(3, "uint8")}, "action: action: expected float32 or int64, got 'uint8'"),
        ({"state": 12}, "state: expected shapes by name, got 12"),
        ({"state": {"h": Field(3, "int64")}}, "state: h: expected float32, got 'int64'"),
        (
            {"state": {"h": Field(3, initial=np.zeros(4))}},
            r"state: h: initial: expected .* of shape \(3,\), got float64",
        ),
        ({"state": {"h": Field(3, initial=float("nan"))}}, "state: h: initial: expected a finite number"),
        ({"state": {"h": Field(3, initial=1e60)}}, "state: h: initial: expected values within float32"),
        ({"module": 3}, "module: expected a torch module, got int"),
        ({"module": nn.Linear}, "module: expected a module, got the class Linear; call it"),
        ({"observation": Field(3, initial=1)}, "initial: only a state has a value at the start of an episode"),
        ({"observation": {"file": 3}}, "'file': a name that is used already; choose another"),
        ({"action": {"x": 3, "actions": 3}}, "'actions': a name that is used already; choose another"),
    ],
)
def test_what_cannot_be_is_refused_by_name(said: dict[str, Any], told: str) -> None:
    module = said.pop("module", nn.Linear(3, 3))
    with pytest.raises(UsageError, match=f"^StepPolicy: .*{told}"):
        StepPolicy(module, **{"observation": 3, "action": 3, **said})


def test_a_compiled_module_is_what_it_was_compiled_of() -> None:
    module = nn.Linear(3, 3)
    made = StepPolicy(torch.compile(module), observation=3, action=3)
    assert made.module is module and made.name == "Linear"


def test_limits_of_an_action_that_a_module_chooses_itself_are_refused() -> None:
    class Bins(nn.Module):
        def forward(self, observation: Any) -> Any:
            logits = observation.reshape(-1, 2, 3)
            return logits.argmax(-1).float(), logits

    said = Interface(action={"action": FieldInterface(limits=Limits(0.0, 1.0))})
    chosen = StepPolicy(Bins(), observation=6, action={"action": 2, "action_logits": (2, 3)}, interface=said)
    with pytest.raises(UsageError, match=r"interface: action\.action: scaling and limits are of numbers .*computed"):
        lower(chosen, None, name="bins")
