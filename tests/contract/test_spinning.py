"""Whether threads may look for work between two steps: nothing of a result depends on it, and where not they sleep."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lram_export import ExportOptions, export_bundle, load_policy
from lram_export.errors import UsageError
from lram_export.runtimes import RUNTIMES
from lram_export.runtimes.onnxruntime import STOP_SPINNING
from lram_export.targets.tvm import virtual_machine
from tests.conftest import ExportFunction
from tests.loop.robots import follower

OBSERVATIONS = np.random.default_rng(0).standard_normal((8, 204)).astype(np.float32)
SPUN_AT_MOST = 0.01
"""Seconds of processor time after a step by threads that sleep: they took 0.0001, one that spins 0.03."""


def logits(bundle: Path, target: str, spin: bool) -> Any:
    with load_policy(bundle, target, threads=2, spin=spin) as policy:
        found = []
        for observation in OBSERVATIONS:
            policy.act(observation)
            found.append(policy.action_logits)
        return np.stack(found)


@pytest.mark.parametrize("target", list(RUNTIMES))
def test_it_changes_no_bit_of_a_result(target: str, exported: ExportFunction) -> None:
    bundle = exported("state_ms")
    np.testing.assert_array_equal(logits(bundle, target, spin=True), logits(bundle, target, spin=False))


@pytest.mark.parametrize("target", ["native", "onnxruntime"])
def test_threads_that_shall_not_spin_sleep_after_a_step(target: str, exported: ExportFunction) -> None:
    with load_policy(exported("state_ms"), target, threads=2, spin=False) as policy:
        spun = []
        for observation in OBSERVATIONS:
            policy.act(observation)
            before = time.process_time()
            time.sleep(0.04)
            spun.append(time.process_time() - before)
    assert np.median(spun) < SPUN_AT_MOST


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rated") / "follower.lram"  # says 50 Hz
    export_bundle(follower(), None, path, ExportOptions(("onnxruntime",), report=False, reference_steps=20))
    return path


def spins(policy: Any) -> bool:
    said: str = policy.runtime._session.get_session_options().get_session_config_entry(STOP_SPINNING)
    return said == "0"


def test_by_default_the_rate_of_the_bundle_decides_also_after_a_swap(rated: Path, exported: ExportFunction) -> None:
    with load_policy(rated) as policy:
        assert not spins(policy)
    with load_policy(exported("state_ms"), "onnxruntime") as policy:  # says no rate
        assert spins(policy)
    with load_policy(rated, spin=True) as policy:
        assert spins(policy)
        policy.swap(rated)
        assert spins(policy)


def test_it_is_a_boolean(rated: Path) -> None:
    with pytest.raises(UsageError, match="spin: expected True, False or None, got 'no'"):
        load_policy(rated, spin="no")  # type: ignore[arg-type]


def test_of_tvm_the_environment_or_the_first_policy_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TVM_THREAD_POOL_SPIN_COUNT"
    monkeypatch.setenv(name, "5")
    virtual_machine.settle_spinning(spin=False)
    assert os.environ[name] == "5"
    monkeypatch.delenv(name)
    virtual_machine.settle_spinning(spin=False)
    virtual_machine.settle_spinning(spin=True)
    assert os.environ[name] == virtual_machine.SPIN_COUNTS[False]
