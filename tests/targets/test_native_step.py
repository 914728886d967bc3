"""The target `native` takes plain inputs in one call of the engine, and says of all others what every target says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lram_export import Bundle
from lram_export.conditioning import ReturnConditioning
from lram_export.runtimes import load_runtime
from lram_export.runtimes.base import BaseRuntime
from lram_export.runtimes.native import NativeRuntime
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tensors import MAX_FLOAT32
from tests.conftest import ExportFunction

Inputs = list[NDArray[Any]]


@pytest.fixture
def bundle(exported: ExportFunction) -> Path:
    return exported("state_ms", "observed", targets=("native",))


@pytest.fixture
def runtime(bundle: Path) -> Iterator[NativeRuntime]:
    found = load_runtime("native", Bundle.open(bundle).load_artifact("native"), 2)
    assert isinstance(found, NativeRuntime)
    yield found
    found.close()


def inputs_of(runtime: NativeRuntime, step: int) -> Inputs:
    drawn = np.random.default_rng(step).standard_normal
    found: Inputs = [drawn(tensor.shape).astype(tensor.dtype) for tensor in runtime.spec.inputs]
    found[-1][:] = step == 0
    return found


def checked_one_by_one(runtime: NativeRuntime, inputs: Inputs) -> Any:
    """As a runtime steps that has no such call."""
    return BaseRuntime.step(runtime, *inputs)


def test_plain_inputs_take_one_call_and_give_the_same_bits(runtime: NativeRuntime, bundle: Path) -> None:
    other = load_runtime("native", Bundle.open(bundle).load_artifact("native"), 1)
    for step in range(8):
        inputs = inputs_of(runtime, step)
        expected = checked_one_by_one(other, inputs)  # type: ignore[arg-type]
        assert runtime._episodes.step_with(tuple(inputs)) is True
        for found, wanted in zip(runtime._outputs, expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    for name, value in runtime.state().items():
        np.testing.assert_array_equal(value, other.state()[name])
    other.close()


TAKEN_ANOTHER_WAY: dict[str, Callable[[NDArray[Any]], Any]] = {
    "every other value of a longer array": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "read only": lambda x: (x.setflags(write=False), x)[1],
    "under a mask": lambda x: np.ma.array(x),
}
REFUSED: dict[str, Callable[[NDArray[Any]], Any]] = {
    "another type": lambda x: x.astype(np.float64),
    "whole numbers of the same size": lambda x: x.astype(np.int32),
    "the other byte order": lambda x: x.astype(">f4"),
    "another shape of as many": lambda x: x.reshape(-1),
    "a row too many": lambda x: np.concatenate([x, x]),
    "a list": lambda x: x.tolist(),
    "a number": lambda x: 1.0,
    "nothing": lambda x: None,
    "NaN": lambda x: np.where(np.arange(x.size) == 3, np.float32(np.nan), x),
    "an infinity": lambda x: np.where(np.arange(x.size) == 3, np.float32(-np.inf), x),
    "beyond the limit": lambda x: np.where(np.arange(x.size) == 3, np.float32(MAX_FLOAT32), x),
}


@pytest.mark.parametrize("kind", TAKEN_ANOTHER_WAY)
def test_odd_arrays_that_mean_the_same_give_the_same(runtime: NativeRuntime, kind: str) -> None:
    inputs = inputs_of(runtime, 0)
    expected = [array.copy() for array in runtime.step(*inputs)]
    runtime.reset()
    inputs[0] = TAKEN_ANOTHER_WAY[kind](inputs[0])
    for found, wanted in zip(runtime.step(*inputs), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_refused_in_the_same_words_and_changes_nothing(runtime: NativeRuntime, kind: str) -> None:
    runtime.step(*inputs_of(runtime, 0))
    before, inputs = runtime.state(), inputs_of(runtime, 1)
    inputs[0] = REFUSED[kind](inputs[0])
    assert runtime._episodes.step_with(tuple(inputs)) is False
    said = []
    for step in (lambda: runtime.step(*inputs), lambda: checked_one_by_one(runtime, inputs)):
        with pytest.raises(ValueError, match="observation: expected") as caught:
            step()
        said.append(str(caught.value))
    assert said[0] == said[1]
    for name, value in runtime.state().items():
        np.testing.assert_array_equal(value, before[name])


def test_other_flags_and_numbers_of_inputs_are_refused(runtime: NativeRuntime) -> None:
    inputs = inputs_of(runtime, 1)
    with pytest.raises(ValueError, match="inputs: expected 4 "):
        runtime.step(*inputs[:-1])
    inputs[-1][:] = 0.5
    with pytest.raises(ValueError, match=r"is_first: expected 0 or 1, got \[0.5\]"):
        runtime.step(*inputs)


@pytest.mark.parametrize("scale", [1.0, 3.0, 1e-3, 1e30])
def test_a_reward_that_is_a_number_is_scaled_as_one_in_an_array(bundle: Path, scale: float) -> None:
    manifest = Bundle.open(bundle).manifest
    task = TaskSpec("custom", "state", 204, "continuous", 8, 1.0, scale, "observed")
    told = ReturnConditioning(manifest.spec, task)
    told.start([0], np.ones(1, np.float32))
    for first in (np.zeros(1, np.float32), np.ones(1, np.float32)):
        for reward in (0.0, -0.0, 0.1, 1 / 3, -7.25, 1e-40, 1e-300, np.float32(0.3), np.float64(2.7)):
            found, wanted = told.inputs(reward, first), told.inputs(np.array([reward]), first)
            for name, value in wanted.items():
                assert (found[name].dtype, found[name].tobytes()) == (value.dtype, value.tobytes())
        for reward in (np.nan, np.inf, -1e300):
            said = []
            for given in (reward, np.array([reward])):
                try:
                    said.append([value.tobytes() for value in told.inputs(given, first).values()])
                except ValueError as error:
                    said.append([str(error).encode()])
            assert said[0] == said[1]
