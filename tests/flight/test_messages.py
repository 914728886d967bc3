"""Steps as messages: others read them, and they come back to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from lram_export.flight.events import LOG_TYPE, FlightEvent, decode_log, encode_log
from lram_export.flight.steps import TYPE, FlightStep, Messages
from lram_export.spec.tensors import StateSpec, StepSpec, TensorSpec

SPEC = StepSpec(
    2,
    (
        TensorSpec("camera", (2, 3), "uint8"),
        TensorSpec("Pose", (2, 2, 2), "float32"),
        TensorSpec("pose", (2, 1), "float32"),
        TensorSpec("is_first", (2,), "float32"),
    ),
    (TensorSpec("action", (2, 3), "float32"), TensorSpec("gear_", (2, 1), "int64")),
    (StateSpec("state.0.h", (2, 4), "float32"),),
)
NUMBERS = st.floats(width=32) | st.just(float("nan"))


def arrays(group: str) -> st.SearchStrategy[dict[str, NDArray[Any]]]:
    """Any of the tensors that a group of a step can hold."""
    tensors = {
        "inputs": SPEC.inputs, "reading": SPEC.inputs[:3], "outputs": SPEC.outputs, "chosen": SPEC.outputs,
        "clamped": [TensorSpec(t.name, t.shape, "bool") for t in SPEC.outputs],
    }[group]  # fmt: skip

    def made(tensor: TensorSpec) -> st.SearchStrategy[NDArray[Any]]:
        element = {"float32": NUMBERS, "uint8": st.integers(0, 255), "bool": st.booleans()}.get(
            tensor.dtype, st.integers(-(2**63), 2**63 - 1)
        )
        values = st.lists(element, min_size=tensor.size, max_size=tensor.size)
        return values.map(lambda found: np.array(found, tensor.dtype).reshape(tensor.shape))

    found = {tensor.name: made(tensor) for tensor in tensors}
    return st.fixed_dictionaries(found) if group == "inputs" else st.fixed_dictionaries({}, optional=found)


STEPS = st.builds(
    FlightStep,
    step=st.integers(0, 2**63),
    time=st.floats(),
    seconds=st.floats(),
    latency=st.floats(),
    missed=st.integers(0, 2**63),
    dropped=st.integers(0, 2**63),
    bundle=st.integers(0, 2**32 - 1),
    stepped=st.booleans(),
    fault=st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=9),
    why=st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=9),
    reading=arrays("reading"),
    inputs=arrays("inputs"),
    outputs=arrays("outputs"),
    chosen=arrays("chosen"),
    clamped=arrays("clamped"),
    reward=st.none() | st.lists(st.floats(), min_size=2, max_size=2).map(np.array),
    sent=st.lists(st.lists(NUMBERS, min_size=6, max_size=6).map(lambda v: np.float32(v).reshape(2, 3)), max_size=3),
    sent_at=st.lists(st.floats(), max_size=3),
)


def flat(step: FlightStep) -> list[object]:
    """All that is in a step, so that NaN is what it is."""
    found: list[object] = []
    for value in vars(step).values():
        if isinstance(value, dict):
            found += [(name, array.dtype.name, array.shape, array.tobytes()) for name, array in sorted(value.items())]
        elif isinstance(value, np.ndarray):
            found.append(value.tobytes())
        elif isinstance(value, list):
            found += [np.asarray(item).tobytes() for item in value]
        else:
            found.append(np.float64(value).tobytes() if isinstance(value, float) else value)
    return found


@settings(deadline=None)
@given(STEPS)
def test_a_step_comes_back_to_the_bit(step: FlightStep) -> None:
    messages = Messages(SPEC)
    assert flat(messages.decode(messages.encode(step))) == flat(step)


@pytest.fixture(scope="module")
def store() -> Any:
    """The types of ROS 2, and ours as its definition says."""
    found = get_typestore(Stores.ROS2_HUMBLE)
    found.register(get_types_from_msg(Messages(SPEC).definition, TYPE))
    return found


@settings(deadline=None)
@given(step=STEPS)
def test_a_reader_of_ros_finds_the_same_and_would_write_the_same_bytes(store: Any, step: FlightStep) -> None:
    messages = Messages(SPEC)
    data = messages.encode(step)
    read: Any = store.deserialize_cdr(data, TYPE)
    assert (read.step, read.bundle, read.fault) == (step.step, step.bundle, step.fault)
    for name, field in (("camera", "input_camera"), ("Pose", "input_pose"), ("pose", "input_pose2")):
        expected = step.inputs.get(name, np.empty(0, np.uint8))
        assert getattr(read, field).tobytes() == expected.tobytes()
    assert bytes(store.serialize_cdr(read, TYPE)) == data


@settings(deadline=None)
@given(STEPS, st.data())
def test_what_is_cut_off_is_refused_in_a_line(step: FlightStep, data: st.DataObject) -> None:
    messages = Messages(SPEC)
    whole = messages.encode(step)
    size = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match=r"\w"):
        messages.decode(whole[:size])


def test_another_number_of_elements_is_refused() -> None:
    wide = StepSpec(1, SPEC.inputs, SPEC.outputs, SPEC.states)
    step = FlightStep(0, 0.0, inputs={"pose": np.zeros((2, 1), np.float32)})
    narrow = StepSpec(1, (*SPEC.inputs[:2], TensorSpec("pose", (3, 1), "float32"), SPEC.inputs[3]), SPEC.outputs, ())
    with pytest.raises(ValueError, match=r"input_pose: expected 3 numbers, got 2"):
        Messages(narrow).decode(Messages(wide).encode(step))


@settings(deadline=None)
@given(
    at=st.integers(0, 2**31 * 10**9 - 1),
    text=st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20),
)
def test_an_event_is_a_log_of_ros_and_comes_back(store: Any, at: int, text: str) -> None:
    data = encode_log(at, "fault", text)
    read: Any = store.deserialize_cdr(data, LOG_TYPE)
    assert (read.stamp.sec, read.stamp.nanosec, read.level) == (at // 10**9, at % 10**9, 30)
    assert (read.name, read.msg) == ("lram.fault", text)
    assert bytes(store.serialize_cdr(read, LOG_TYPE)) == data
    assert decode_log(data, at, 7) == FlightEvent(at, 7, "fault", text)
