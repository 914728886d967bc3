"""The safety envelope of the C library is that of Python, to the bit: the same steps, resets and holds in both."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lram_export import ExportOptions, StepPolicy, export_bundle
from lram_export.bundle.bundle import Bundle
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.envelope import Envelope
from lram_export.runtimes import load_verifier
from lram_export.spec.interface import FieldInterface, Interface, Limits, Safety, Scaling
from lram_export.spec.tensors import StepSpec
from tests.conftest import load_golden
from tests.targets.test_native_install import prefix, pytestmark  # noqa: F401

ROWS, STEPS = 3, 400
Arrays = list[np.ndarray[Any, Any]]


class Account(ctypes.Structure):
    """`lram_account`."""

    _fields_ = (("consecutive", ctypes.c_uint64), ("stopped", ctypes.c_uint64), ("is_stopped", ctypes.c_int))


class CState:
    """A state of the C library, without Python's binding."""

    def __init__(self, library: Path, model: Path, spec: StepSpec) -> None:
        self.library, self.spec = ctypes.CDLL(str(library)), spec
        self.library.lram_last_error.restype = ctypes.c_char_p
        self.model, self.state = ctypes.c_void_p(), ctypes.c_void_p()
        self.must("lram_open", str(model).encode(), None, ctypes.byref(self.model))
        self.must("lram_state_create", self.model, spec.batch_size, ctypes.byref(self.state))

    def must(self, function: str, *arguments: Any) -> None:
        status = getattr(self.library, function)(*arguments)
        assert status == 0, self.library.lram_last_error().decode()

    def step(self, inputs: Arrays) -> Arrays:
        outputs = [np.zeros(t.shape, t.dtype) for t in self.spec.outputs]
        given, wanted = (
            (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays)) for arrays in (inputs, outputs)
        )
        counts = ctypes.c_size_t(len(inputs)), ctypes.c_size_t(len(outputs))
        self.must("lram_step_fields", self.state, given, counts[0], wanted, counts[1])
        return outputs

    def reset(self, row: int) -> None:
        self.must("lram_state_reset", self.state, ctypes.byref(ctypes.c_int(row)), ctypes.c_size_t(1))

    def hold(self, action: np.ndarray[Any, Any]) -> None:
        self.must("lram_state_hold", self.state, ctypes.c_size_t(0), ctypes.c_void_p(action.ctypes.data))

    def account(self, row: int) -> tuple[Account, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        account = Account()
        clamped, slowed = (np.zeros(self.spec.outputs[0].shape[1], np.uint64) for _ in range(2))
        arrays = (ctypes.c_void_p(counts.ctypes.data) for counts in (clamped, slowed))
        self.must("lram_state_account", self.state, ctypes.c_size_t(0), row, ctypes.byref(account), *arrays)
        return account, clamped, slowed

    def close(self) -> None:
        self.library.lram_state_free(self.state)
        self.library.lram_close(self.model)


@pytest.fixture
def library(prefix: Path) -> Path:  # noqa: F811
    """The shared library itself."""
    (found,) = (path for path in prefix.glob("lib*/**/liblram.so*") if not path.is_symlink())
    return found


def robot(actions: int, most_clamps: int) -> Interface:
    of = FieldInterface(
        limits=Limits(-1.1, tuple(np.linspace(0.3, 1.3, actions))),
        scaling=Scaling(1.7, 0.1),
        safety=Safety(tuple(np.linspace(0.1, 0.9, actions)), most_clamps, tuple(np.linspace(-0.3, 0.3, actions))),
    )
    return Interface(50.0, {}, {"action": of})


@pytest.fixture(params=["module", "bins"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Bundle, Any]]:
    """One with an envelope, and what its actions can be."""
    path = tmp_path / "robot.lram"
    if request.param == "module":
        torch.manual_seed(0)
        policy = StepPolicy(torch.nn.Linear(4, 3), observation=4, action=3)
        options = ExportOptions(("native",), ROWS, report=False, interface=robot(3, 2))
        yield export_bundle(policy, None, path, options), None
    else:
        golden = load_golden("state_ms")
        checkpoint = load_checkpoint(golden.checkpoint)
        options = ExportOptions(("native",), ROWS, report=False, interface=robot(golden.task.action_dim, 4))
        yield export_bundle(checkpoint, golden.task, path, options), checkpoint.config.head.values()


def test_both_hold_and_count_the_same(bundle: tuple[Bundle, Any], library: Path) -> None:
    made, values = bundle
    spec, random = made.manifest.spec, np.random.default_rng(7)
    envelope = Envelope(spec, made.manifest.interface, values)
    runtime = load_verifier("native", made.load_artifact("native"), 1)[0]
    state = CState(library, made.path / "native" / "model.lrn", spec)
    for step in range(STEPS):
        inputs = [random.normal(scale=2, size=t.shape).astype(np.float32) for t in spec.inputs]
        first = inputs[-1]  # it is `is_first`
        first[:] = random.random(ROWS) < (1 if step == 0 else 0.04)
        if random.random() < 0.05:
            row = int(random.integers(ROWS))
            state.reset(row)
            envelope.start([row])
            runtime.reset([row])
        if random.random() < 0.1:  # also where an episode starts in this step
            held = random.normal(scale=0.5, size=spec.outputs[0].shape).astype(np.float32)
            state.hold(held)
            envelope.hold(held, range(ROWS))
        envelope.start(first > 0, with_this_step=True)
        expected = {t.name: np.array(v) for t, v in zip(spec.outputs, runtime.step(*inputs), strict=True)}
        envelope.apply(expected)
        for tensor, found in zip(spec.outputs, state.step(inputs), strict=True):
            np.testing.assert_array_equal(found, expected[tensor.name], err_msg=f"{tensor.name} at step {step}")
    counts = envelope.counts()["action"]
    for row in range(ROWS):
        account, clamped, slowed = state.account(row)
        np.testing.assert_array_equal(clamped, counts.clamped[row])
        np.testing.assert_array_equal(slowed, counts.slowed[row])
        assert (account.stopped, account.consecutive) == (counts.stopped[row], counts.consecutive[row])
    assert counts.clamped.any() and counts.slowed.any() and counts.stopped.any()
    runtime.close()
    state.close()
