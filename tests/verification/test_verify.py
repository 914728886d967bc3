"""The comparison itself: it must see what it is there to see, and the error must not grow with the run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lram_export import Bundle
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.checkpoints.random import preset_config
from lram_export.episodes.steps import RecordedSteps, load_steps, save_steps
from lram_export.errors import LramError
from lram_export.model.specification import step_spec
from lram_export.spec.parity import TOLERANCES, ParityMeter, relative_error
from lram_export.spec.tasks import resolve_task
from lram_export.spec.tensors import StepSpec, TensorSpec
from lram_export.verification.drift import UNNAMED, drift, steps_since_start
from lram_export.verification.verify import checkpoint_steps, verify_against_checkpoint
from tests.conftest import GOLDEN, SLOW, ExportFunction
from tests.models import lram_steps

BOUND = TOLERANCES["fp32"]
LOGITS = np.array([[[0.1, 0.7, 0.2], [0.5, 0.1, 0.4]]], np.float32)
ACTION = np.array([[1, 0]], np.float32)


CHOSEN = (TensorSpec("action", (1, 2), "float32"), TensorSpec("action_logits", (1, 2, 3), "float32"))


def meter_of(*outputs: TensorSpec) -> ParityMeter:
    return ParityMeter(StepSpec(1, (), outputs, ()))


def compare(logits: np.ndarray, action: np.ndarray = ACTION, expected: np.ndarray = LOGITS) -> ParityMeter:
    meter = meter_of(*CHOSEN)
    meter.add_step((ACTION, expected), (ACTION, expected))
    meter.add_step((ACTION, expected), (action, logits))
    return meter


def changed(index: tuple[int, ...], value: float) -> np.ndarray:
    logits = LOGITS.copy()
    logits[index] = value
    return logits


class TestMeter:
    def test_equal_passes(self) -> None:
        result = compare(LOGITS).result()
        assert result.passed and result.max_logit_error == 0 and result.actions == 4

    def test_the_worst_logit_is_found_and_told(self) -> None:
        result = compare(changed((0, 1, 2), 0.41)).result()
        assert not result.passed
        assert result.worst is not None
        assert (result.worst.step, result.worst.row, result.worst.index) == (1, 0, (1, 2))
        (line,) = result.failures()
        assert "step 1, row 0, logit [1, 2]: reference 0.4, target 0.41" in line

    def test_an_error_within_the_tolerance_passes(self) -> None:
        assert compare(LOGITS + np.float32(0.5 * BOUND.logit)).result().passed

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_not_a_number_never_passes(self, value: float) -> None:
        result = compare(changed((0, 0, 0), value)).result()
        assert not result.passed and result.max_logit_error == np.inf

    def test_values_that_were_not_chosen_from_any_are_compared_themselves(self) -> None:
        torque, value = TensorSpec("torque", (1, 2), "float32"), TensorSpec("value", (1,), "float32")
        for wrong in (0, 1):
            meter = meter_of(torque, value)
            expected = (np.array([[0.5, -0.5]], np.float32), np.ones(1, np.float32))
            actual = [values.copy() for values in expected]
            actual[wrong].flat[-1] += np.float32(0.5)
            meter.add_step(expected, expected)
            meter.add_step(expected, actual)
            result = meter.result()
            assert not result.passed and result.max_logit_error == 0.5 and result.actions == 0
            assert result.worst is not None and result.worst.step == 1
            assert meter.errors.tolist() == [[0.0], [0.5]]

    def test_no_steps_never_pass(self) -> None:
        assert not meter_of(*CHOSEN).result().passed

    def test_a_different_action_passes_only_at_a_tie(self) -> None:
        tied = LOGITS.copy()
        tied[0, 1] = [0.4, 0.1, 0.4 - 0.5 * BOUND.logit]
        other = tied.copy()
        other[0, 1, 2] += 0.9 * BOUND.logit
        result = compare(other, np.array([[1, 2]], np.float32), tied).result()
        assert result.passed and result.actions_different == 1
        assert result.largest_tie == pytest.approx(0.5 * BOUND.logit, rel=0.01)

        wide = meter_of(*CHOSEN)
        wide.add_step((ACTION, LOGITS), (np.array([[1, 2]], np.float32), changed((0, 1, 2), 0.51)))
        assert wide.result().largest_tie == pytest.approx(0.1, rel=1e-3) and not wide.result().passed

    def test_a_wrong_decoding_of_right_logits_never_passes(self) -> None:
        result = compare(LOGITS, np.array([[1, 2]], np.float32)).result()
        assert not result.passed and result.largest_tie == np.inf

    def test_states_count_by_their_worst_tensor(self) -> None:
        meter = compare(LOGITS)
        good, bad = np.ones(4, np.float32), np.full(4, 1.01, np.float32)
        meter.add_state({"state.0.C": good, "state.0.n": good}, {"state.0.C": good, "state.0.n": bad})
        result = meter.result()
        assert not result.passed and result.worst_state == "state.0.n"
        assert result.state_error == pytest.approx(0.01, rel=1e-3)

    def test_a_state_with_nan_never_passes(self) -> None:
        meter = compare(LOGITS)
        meter.add_state({"state.0.C": np.ones(2)}, {"state.0.C": np.array([1.0, np.nan])})
        assert not meter.result().passed
        assert relative_error(np.zeros(2), np.array([0.0, 3.0])) == 3.0

    def test_result_round_trip(self) -> None:
        result = compare(changed((0, 1, 2), 0.41)).result()
        assert type(result).from_json(result.to_json()) == result
        assert dataclasses.asdict(result)["worst"]["index"] == (1, 2)


class TestDrift:
    def test_environments_are_told_apart_and_steps_count_from_the_start_of_their_episode(self, tmp_path: Path) -> None:
        """Two episodes of 10 steps each: the second environment has an error a thousand times as large."""
        is_first = (np.arange(20) % 10 == 0).astype(np.float32)[:, None]
        zeros = np.zeros((20, 1), np.float32)
        errors = np.where(np.arange(20) < 10, 1e-6, 1e-3)[:, None]
        environment = np.repeat(np.arange(2, dtype=np.int32), 10)
        steps = lram_steps(np.zeros((20, 1, 39), np.float32), zeros, zeros, is_first)
        recorded = RecordedSteps(steps.inputs, environment, ("a/one", "b/zwölf"))
        save_steps(recorded, tmp_path / "steps.npz")
        spec = step_spec(preset_config("16m"), resolve_task("metaworld/reach-v2"))
        found = drift(errors, load_steps(tmp_path / "steps.npz", spec))
        assert found == {"a/one": [1e-6] * 10, "b/zwölf": [1e-3] * 10}

    def test_an_error_that_grows_within_every_episode_shows(self) -> None:
        is_first = np.zeros((30, 2), np.float32)
        is_first[[0, 15], 0] = is_first[[0, 10, 20], 1] = 1  # rows start episodes at different times
        zeros = np.zeros((30, 2), np.float32)
        steps = lram_steps(np.zeros((30, 2, 3), np.float32), zeros, zeros, is_first)
        position = steps_since_start(is_first)
        assert position[14:17, 0].tolist() == [14, 0, 1] and position[9:11, 1].tolist() == [9, 0]
        stretches = drift(position.astype(np.float64), steps)[UNNAMED]
        assert stretches == sorted(stretches) and stretches[-1] == 14 and stretches[0] <= 1

    def test_a_recording_whose_environments_do_not_fit_is_refused(self, tmp_path: Path) -> None:
        zeros = np.zeros((4, 1), np.float32)
        steps = lram_steps(np.zeros((4, 1, 39), np.float32), zeros, zeros, zeros + 1)
        recorded = RecordedSteps(steps.inputs, np.array([0, 0, 1, 2], np.int32), ("a", "b"))
        save_steps(recorded, tmp_path / "steps.npz")
        spec = step_spec(preset_config("16m"), resolve_task("metaworld/reach-v2"))
        with pytest.raises(LramError, match=r"steps.npz: environment: expected numbers from 0 to 1, got 0 to 2"):
            load_steps(tmp_path / "steps.npz", spec)


@pytest.mark.parametrize("steps", [300, pytest.param(1000, marks=SLOW)])
def test_the_error_does_not_grow_over_many_steps(steps: int, exported: ExportFunction) -> None:
    """One long run, slowly forgetting heads and an sLSTM block, episodes of thousands of steps."""
    bundle = Bundle.open(exported("state_ms"))
    checkpoint = load_checkpoint(GOLDEN / "state_ms" / "model.zip")
    inputs = checkpoint_steps(bundle, None, steps, seed=1)
    meter = verify_against_checkpoint(bundle, checkpoint, ["onnxruntime"], inputs=inputs, threads=1).meters[
        "onnxruntime"
    ]
    assert meter.result().passed, meter.result().failures()
    # the typical error: the largest of a tenth of an episode is one step's, three times that of another tenth or more
    position = steps_since_start(inputs["is_first"])
    tenth = (int(position.max()) + 1) // 10
    beginning, end = (np.median(meter.errors[part]) for part in (position < tenth, position >= 9 * tenth))
    assert end <= 1.5 * beginning, (beginning, end)
