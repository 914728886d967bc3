"""What a policy says of its robot: read, written, checked, put together, and what it computes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lram_export.spec.images import COLOURS, INTERPOLATIONS, LAYOUTS, PROCGEN
from lram_export.spec.interface import (
    UNITS,
    FieldInterface,
    Interface,
    Limits,
    Normalization,
    Safety,
    Scaling,
    clamped,
    normalized,
    read_interface,
    scaled,
)
from lram_export.spec.json_fields import Fields, parse_json
from lram_export.spec.tensors import StepSpec, TensorSpec

SPEC = StepSpec(
    2,
    (
        TensorSpec("joints", (2, 3), "float32", 1e9),
        TensorSpec("eye", (2, 3, 8, 8), "uint8"),
        TensorSpec("is_first", (2,), "float32"),
    ),
    (
        TensorSpec("torque", (2, 3), "float32"),
        TensorSpec("mode", (2, 1), "int64"),
        TensorSpec("mode_logits", (2, 4), "float32"),
    ),
    (),
)
numbers = st.floats(-1000, 1000, width=32)
positive = st.floats(2**-10, 2.0**10, width=32)


def of(strategy: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    """One number for all elements, or three."""
    return strategy | st.tuples(strategy, strategy, strategy)


observed = st.builds(
    FieldInterface,
    elements=st.none() | st.just(("hip", "knee", "ankle")),
    units=st.none() | st.tuples(st.sampled_from(UNITS)) | st.just(("rad", "rad", "m")),
    normalization=st.none() | st.builds(Normalization, of(numbers), of(positive), st.none() | positive),
)
safety = st.builds(Safety, of(positive)) | st.builds(Safety, st.none(), st.none(), of(numbers))
acted = st.builds(
    FieldInterface,
    units=st.none() | st.tuples(st.sampled_from(UNITS)),
    scaling=st.none() | st.builds(Scaling, of(positive), of(numbers)),
    limits=st.none() | st.builds(lambda low, width: Limits(low, low + width), numbers, st.floats(1, 100, width=32)),
) | st.builds(FieldInterface, scaling=st.none() | st.builds(Scaling, of(positive), of(numbers)), safety=safety)


@given(observed, acted, st.none() | positive)
def test_what_is_written_is_read_and_fits_the_step(
    one: FieldInterface, other: FieldInterface, rate: float | None
) -> None:
    fields = {"joints": one}, {"torque": other}
    empty = FieldInterface()
    interface = Interface(rate, *({name: f for name, f in side.items() if f != empty} for side in fields))
    assert read_interface(Fields.of(parse_json(json.dumps(interface.to_json())), "")) == interface
    interface.check(SPEC)
    interface.check(interface.of(SPEC))
    assert interface.and_also(Interface()) == Interface().and_also(interface) == interface.and_also(interface)


@given(st.lists(numbers, min_size=6, max_size=6), observed, acted)
def test_numbers_are_those_of_the_formula(values: list[float], one: FieldInterface, other: FieldInterface) -> None:
    x = np.array(values, np.float32).reshape(2, 3)
    if one.normalization is not None:
        n = one.normalization
        expected = (x.astype(np.float64) - n.mean) / n.deviation
        if n.clip is not None:
            expected = np.clip(expected, -n.clip, n.clip)
        found = normalized(x, SPEC.inputs[0], n)
        rounding = 1e-6 * (np.abs(x) + np.abs(n.mean)) / np.asarray(n.deviation)
        assert (np.abs(found - expected) <= rounding + 1e-6 * np.abs(expected) + 1e-6).all()
    before = scaled(x, SPEC.outputs[0], other)
    after = clamped(before, SPEC.outputs[0], other)
    assert after.dtype == np.float32
    if other.limits is not None:
        low, high = np.float32(other.limits.low), np.float32(other.limits.high)
        assert (after >= low).all() and (after <= high).all()
        assert ((after == before) | (before < low) | (before > high)).all()


WRONG = {
    "an unknown field": ({"rates": 3}, "rates: unknown field; known: rate, observation, action"),
    "a rate": ({"rate": 0}, r"rate: expected a number from 1e-06 to 1e\+06, got 0"),
    "limits the wrong way round": (
        {"action": {"torque": {"limits": {"low": [0, 0, 2], "high": 1}}}},
        "action.torque.limits: expected low below high, got 2 and 1 at element 2",
    ),
    "an unknown unit": (
        {"action": {"torque": {"units": "Nm"}}},
        r"action.torque.units: expected one of 1, rad, .*got 'Nm'",
    ),
    "no deviation": (
        {"observation": {"joints": {"normalization": {"deviation": [1, 0, 1]}}}},
        "observation.joints.normalization.deviation: expected positive numbers, got 0",
    ),
    "a negative clip": (
        {"observation": {"joints": {"normalization": {"clip": -1}}}},
        "observation.joints.normalization.clip: expected a positive number, got -1",
    ),
    "a scale of 0": (
        {"action": {"torque": {"scaling": {"scale": 0}}}},
        "action.torque.scaling.scale: expected numbers that are not zero",
    ),
    "an empty safety": (
        {"action": {"torque": {"safety": {}}}},
        "action.torque.safety: expected most_change, most_clamps or safe_action, got none",
    ),
    "an action that may not change": (
        {"action": {"torque": {"safety": {"most_change": [1, 0, 1]}}}},
        "action.torque.safety.most_change: expected positive numbers, got 0",
    ),
    "a bound without a safe action": (
        {"action": {"torque": {"safety": {"most_clamps": 3}}}},
        "action.torque.safety.most_clamps: expected safe_action beside it",
    ),
    "no clamp at all": (
        {"action": {"torque": {"safety": {"most_clamps": 0, "safe_action": 0}}}},
        r"action.torque.safety.most_clamps: expected .*1.*, got 0",
    ),
    "safety of what is observed": (
        {"observation": {"joints": {"safety": {"safe_action": 0}}}},
        "observation.joints.safety: unknown field; known: elements, units, limits, normalization, image",
    ),
    "a name twice": (
        {"action": {"torque": {"elements": ["a", "b", "a"]}}},
        "action.torque.elements: expected different names, got 'a' twice",
    ),
    "numbers that are text": (
        {"observation": {"joints": {"normalization": {"mean": ["a"]}}}},
        r"observation.joints.normalization.mean.0: expected a number",
    ),
    "an image of an unknown layout": (
        {"observation": {"eye": {"image": {**PROCGEN.to_json(), "layout": "whc"}}}},
        "observation.eye.image.*layout.*whc",
    ),
}
UNFIT = {
    "another field": (
        Interface(observation={"wheels": FieldInterface(units=("m",))}),
        "observation.wheels: .* joints, eye",
    ),
    "what the step API fills": (
        Interface(action={"mode_logits": FieldInterface(units=("m",))}),
        "action.mode_logits: ",
    ),
    "too few names": (
        Interface(observation={"joints": FieldInterface(elements=("a", "b"))}),
        "observation.joints.elements: expected 3 names, got 2",
    ),
    "too few choices": (
        Interface(action={"mode": FieldInterface(elements=("stand", "walk"))}),
        "action.mode.elements: expected 4 names, got 2",
    ),
    "too many units": (
        Interface(observation={"joints": FieldInterface(units=("m", "m"))}),
        "observation.joints.units: expected 1 or 3, got 2",
    ),
    "statistics of another length": (
        Interface(observation={"joints": FieldInterface(normalization=Normalization((0.0, 1.0)))}),
        "observation.joints.normalization.mean: expected 1 or 3 numbers, got 2",
    ),
    "pixels that are normalized": (
        Interface(observation={"eye": FieldInterface(normalization=Normalization())}),
        "observation.eye.normalization: only of numbers, float32; this field is uint8",
    ),
    "a bound on clamps where nothing is clamped": (
        Interface(action={"torque": FieldInterface(safety=Safety(None, 3, 0.0))}),
        "action.torque.safety.most_clamps: expected limits of the action",
    ),
    "a safe action beyond the limits": (
        Interface(action={"torque": FieldInterface(limits=Limits(-1.0, 1.0), safety=Safety(None, 3, (0.0, 2.0, 0.0)))}),
        "action.torque.safety.safe_action: expected numbers within the limits, -1 to 1 at element 1, got 2",
    ),
    "changes of another length": (
        Interface(action={"torque": FieldInterface(safety=Safety((1.0, 2.0)))}),
        "action.torque.safety.most_change: expected 1 or 3 numbers, got 2",
    ),
    "choices that are clamped": (
        Interface(action={"mode": FieldInterface(limits=Limits(0.0, 1.0))}),
        "action.mode.limits: only of numbers, float32; this field is int64",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_meant_is_refused_in_one_line(wrong: str) -> None:
    document, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message) as caught:
        read_interface(Fields.of(document, ""))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("unfit", UNFIT)
def test_what_does_not_fit_the_step_is_refused(unfit: str) -> None:
    interface, message = UNFIT[unfit]
    with pytest.raises(ValueError, match=message):
        interface.check(SPEC)


def test_two_that_contradict_each_other_are_refused() -> None:
    one, other = (Interface(action={"torque": FieldInterface(limits=Limits(-n, n))}) for n in (1.0, 2.0))
    with pytest.raises(
        ValueError, match=r"action.torque.limits: the policy's own file says .*1\.0.*the interface .*2\.0"
    ):
        one.and_also(other)


def test_what_was_clamped_is_an_output_and_what_was_chosen_is_told_by_its_scores() -> None:
    limits = FieldInterface(limits=Limits(-1.0, 1.0))
    names = [t.name for t in Interface(action={"torque": limits}).of(SPEC).outputs]
    assert names == ["torque", "mode", "mode_logits", "torque_unclamped"]
    outputs = (TensorSpec("action", (1, 2), "float32"), TensorSpec("action_logits", (1, 2, 5), "float32"))
    chosen = StepSpec(1, SPEC.inputs, outputs, ())
    assert Interface(action={"action": limits}).of(chosen).outputs == outputs


def test_an_observation_may_be_as_large_as_the_network_takes_it_once_it_is_normalized() -> None:
    def limit(normalization: Normalization) -> float | None:
        interface = Interface(observation={"joints": FieldInterface(normalization=normalization)})
        return interface.of(SPEC).inputs[0].limit

    assert limit(Normalization(0.0, 10.0)) == 1e10
    assert limit(Normalization((0.0, -5.0, 1.0), (1.0, 0.1, 1.0))) == 9.9e7
    assert (limit(Normalization(0.0, 1.0, 5.0)) or 0) > 1e38
    with pytest.raises(ValueError, match=r"normalization\.deviation: 1e-10 is so small"):
        limit(Normalization(0.0, 1e-10))


def test_the_json_schema_knows_the_fields_and_choices_that_are_read() -> None:
    schema = json.loads((Path(__file__).parents[2] / "docs" / "interface.schema.json").read_text())
    observation = schema["properties"]["observation"]["additionalProperties"]["properties"]
    action = schema["properties"]["action"]["additionalProperties"]["properties"]
    assert set(schema["properties"]) == {field.name for field in dataclasses.fields(Interface)}
    assert {*observation, *action} == {field.name for field in dataclasses.fields(FieldInterface)}
    for name, kind in (("normalization", Normalization), ("limits", Limits)):
        assert set(observation[name]["properties"]) == {field.name for field in dataclasses.fields(kind)}
    for name, kind in (("scaling", Scaling), ("safety", Safety)):
        assert set(action[name]["properties"]) == {field.name for field in dataclasses.fields(kind)}
    assert observation["units"]["oneOf"][0]["enum"] == list(UNITS)
    image = observation["image"]["properties"]
    assert set(image) == set(PROCGEN.to_json())
    assert image["layout"]["enum"] == list(LAYOUTS) and image["colour"]["enum"] == list(COLOURS)
    assert image["interpolation"]["enum"] == [*INTERPOLATIONS, None]
