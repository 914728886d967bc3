"""Saved states know whose they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lram_export import Bundle, Policy, load_policy
from tests.conftest import ExportFunction, load_golden

OBSERVATION = np.zeros(204, np.float32)


@pytest.fixture
def bundle(exported: ExportFunction) -> Path:
    return exported("state_ms", targets=("onnxruntime", "pytorch"))


def test_a_state_says_of_which_weights_and_precision_it_is_and_survives_a_file(bundle: Path, tmp_path: Path) -> None:
    with load_policy(bundle, threads=1) as policy:
        policy.act(OBSERVATION)
        state = policy.state()
        assert state["weights"].tobytes().hex() == Bundle.open(bundle).manifest.source["sha256"]
        assert bytes(state["precision"]).decode() == "fp32"
        assert all(array.dtype == np.float32 for name, array in state.items() if name not in ("weights", "precision"))
        np.savez(tmp_path / "state.npz", **state)  # type: ignore[arg-type]
        policy.act(OBSERVATION)
        expected = policy.action_logits
        policy.reset()
        with np.load(tmp_path / "state.npz", allow_pickle=False) as file:
            policy.load_state(dict(file))
            policy.load_state(file)
        policy.act(OBSERVATION)
        np.testing.assert_array_equal(policy.action_logits, expected)


def test_one_of_other_weights_is_refused_unless_forced(bundle: Path) -> None:
    with load_policy(bundle, threads=1) as policy:
        policy.act(OBSERVATION)
        state = policy.state()
        own = state["weights"].tobytes().hex()
        state["weights"] = state["weights"] ^ 0xFF
        other = state["weights"].tobytes().hex()
        policy.reset()
        message = (
            rf"^weights: the state is of other weights, {other[:12]}, than this policy, {own[:12]}; "
            rf"load_state\(state, force=True\) takes it all the same$"
        )
        with pytest.raises(ValueError, match=message):
            policy.load_state(state)
        assert policy.state()["is_first"].tolist() == [1]
        policy.load_state(state, force=True)
        assert policy.state()["is_first"].tolist() == [0]


def test_one_that_says_nothing_is_taken(bundle: Path) -> None:
    with load_policy(bundle, threads=1) as policy:
        policy.act(OBSERVATION)
        state = {name: array for name, array in policy.state().items() if name not in ("weights", "precision")}
        policy.reset()
        policy.load_state(state)
        assert policy.state()["is_first"].tolist() == [0]


def test_a_run_goes_on_at_another_target_and_precision(bundle: Path, exported: ExportFunction) -> None:
    options = [*load_golden("state_ms").task_options, "--precision", "int8"]
    coarse = exported("state_ms", targets=("onnxruntime",), options=options)
    with load_policy(bundle, "pytorch", threads=1) as one, load_policy(coarse, threads=1) as other:
        one.act(OBSERVATION)
        other.load_state(one.state())
        assert bytes(other.state()["precision"]).decode() == "int8"
        other.act(OBSERVATION)
        one.load_state(other.state())


def test_around_a_runtime_of_the_callers_a_state_says_nothing_and_any_is_taken(bundle: Path) -> None:
    with load_policy(bundle, threads=1) as policy:
        bare = Policy(policy.runtime, policy.task)
        assert not {"weights", "precision"} & set(bare.state())
        bare.load_state(policy.state())
