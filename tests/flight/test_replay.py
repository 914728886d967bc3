"""Flights taken again: the same bits on what flew, the reference beside it; files that are not whole, or not ours."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.writer import Writer

from lram_export import load_policy
from lram_export.bundle.bundle import Bundle
from lram_export.episodes.steps import load_steps
from lram_export.errors import LramError
from lram_export.flight.archive import arrays
from lram_export.flight.reader import Flight, read_flight
from lram_export.flight.recorder import FlightRecorder
from lram_export.flight.steps import FlightStep
from lram_export.flight.stretches import to_take
from lram_export.rollouts.observations import read_recording, run_recording
from lram_export.verification.flights import replay_flight
from tests.conftest import ExportFunction, cli, fail, load_golden, succeed
from tests.flight.flights import fly

TARGETS = ("native", "onnxruntime", "pytorch")


@pytest.fixture(scope="module")
def bundle(exported: ExportFunction) -> Path:
    return exported("state_ms", feedback="observed", targets=TARGETS)


@pytest.fixture(scope="module")
def flight(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Flight:
    with load_policy(bundle, target="native") as policy:
        return fly(policy, bundle, tmp_path_factory.mktemp("flight") / "night.mcap")[0]


def again(flight: Flight, path: Path, change: Callable[[FlightStep], FlightStep | None]) -> Flight:
    """The same flight with other steps, or without them."""
    recorder = FlightRecorder(path)
    for header in flight.headers:
        recorder.begin(header)
    for step in flight.steps():
        changed = change(step)
        if changed is not None:
            recorder.step(changed)
    recorder.close()
    return read_flight(path)


def test_what_flew_acts_the_same_to_the_bit_and_so_does_what_computes_the_same(bundle: Path, flight: Flight) -> None:
    replays = replay_flight(Bundle.open(bundle), flight, TARGETS, threads=None)
    assert [(replay.target, replay.steps, replay.different) for replay in replays] == [(t, 60, 0) for t in TARGETS]
    assert [replay.same for replay in replays] == [True, False, False]
    assert all(replay.passed for replay in replays)


@pytest.mark.parametrize("name", ["image_m", "dt_state", "mamba_state"])
def test_other_policies_act_the_same_to_the_bit(exported: ExportFunction, tmp_path: Path, name: str) -> None:
    bundle = exported(name, targets=("onnxruntime",))
    with load_policy(bundle) as policy:
        flight, loop = fly(policy, bundle, tmp_path / "night.mcap", steps=40, beginning=20)
    (replay,) = replay_flight(Bundle.open(bundle), flight, ["onnxruntime"], threads=None)
    assert (replay.steps, replay.different, replay.same) == (40, 0, True)
    assert loop.account.episodes == 2


def test_a_flight_that_goes_on_with_an_episode_says_why_it_is_not_taken_again(bundle: Path, tmp_path: Path) -> None:
    loop = ("loop", bundle, "--target", "native", "--rate", "1000", "--steps", "20", "--state", tmp_path / "run.npz")
    succeed(*loop, "--record", tmp_path / "first.mcap")
    succeed(*loop, "--resume", "--record", second := tmp_path / "second.mcap")
    for command in (("verify", bundle, "--recording", second), ("run", bundle, "--observations", second)):
        options = ("-o", tmp_path / "actions.npz") if command[0] == "run" else ()
        assert fail(*command, *options)[1].endswith(
            f"{second}: no step to take again: it goes on with an episode that began before it (--resume), and none "
            f"begins in it"
        )


def test_rows_that_fly_together_are_taken_again_together(exported: ExportFunction, tmp_path: Path) -> None:
    bundle = exported("state_ms", batch=3, targets=("onnxruntime",))
    with load_policy(bundle) as policy:
        flight, _ = fly(policy, bundle, tmp_path / "night.mcap")
    (replay,) = replay_flight(Bundle.open(bundle), flight, ["onnxruntime"], threads=None)
    assert (replay.steps, replay.different) == (60, 0)


def test_an_action_that_was_altered_is_found(bundle: Path, flight: Flight, tmp_path: Path) -> None:
    def altered(step: FlightStep) -> FlightStep:
        if step.step != 17:
            return step
        action = step.outputs["action"].copy()
        action.flat[0] = np.nextafter(action.flat[0], np.float32(9))
        return dataclasses.replace(step, outputs={"action": action})

    changed = again(flight, tmp_path / "altered.mcap", altered)
    (replay,) = replay_flight(Bundle.open(bundle), changed, ["native"], threads=None)
    assert (replay.different, replay.first, replay.passed) == (1, 17, False) and replay.largest < 1e-6
    report = fail_verify(bundle, changed.path)
    assert "1 action not the same to the bit" in report and "the first at step 17; FAILED" in report


def fail_verify(bundle: Path, path: Path) -> str:
    result = cli("verify", bundle, "--target", "native", "--recording", path)
    assert result.exit_code == 1
    return " ".join(result.output.split())


def test_an_own_step_that_differs_fails_though_another_bundle_flew_too(
    bundle: Path, flight: Flight, tmp_path: Path
) -> None:
    recorder = FlightRecorder(tmp_path / "two.mcap")
    recorder.begin(flight.header)
    for step in flight.steps():
        if step.step == 5:
            step.outputs = {"action": step.outputs["action"] + np.float32(1)}
        if step.step == 30:
            recorder.begin(dataclasses.replace(flight.header, number=1, digest="ab" * 32))
        step.bundle = int(step.step >= 30)
        recorder.step(step)
    recorder.close()
    (replay,) = replay_flight(Bundle.open(bundle), read_flight(recorder.path), ["native"], threads=None)
    assert (replay.different, replay.own_different, replay.passed) == (1, 1, False)


def test_a_step_that_was_taken_without_inputs_is_refused(flight: Flight, tmp_path: Path) -> None:
    crafted = again(flight, tmp_path / "crafted.mcap", lambda step: dataclasses.replace(step, inputs={}))
    assert "step 0: took no is_first" in fail("flight", crafted.path)[1]


def test_after_a_step_that_is_missing_nothing_is_taken_again_until_the_next_episode(
    flight: Flight, tmp_path: Path
) -> None:
    changed = again(flight, tmp_path / "gap.mcap", lambda step: None if step.step == 10 else step)
    assert (changed.count, changed.missing) == (59, 1)
    starts = [taken.step.step for taken in to_take(flight) if taken.starts]
    assert starts[0] == 0 and len(starts) == 2
    assert [taken.step.step for taken in to_take(changed)] == [*range(10), *range(starts[1], 60)]


def test_what_another_bundle_flew_is_not_taken_again(bundle: Path, flight: Flight, tmp_path: Path) -> None:
    other = dataclasses.replace(flight, headers=(dataclasses.replace(flight.header, weights="ab" * 32),))
    with pytest.raises(LramError, match=r"flown with other weights, abababababab, than .*state_ms"):
        replay_flight(Bundle.open(bundle), other, ["native"], threads=None)


def test_on_another_processor_bits_may_differ(bundle: Path, flight: Flight) -> None:
    board = dataclasses.replace(flight.header.place, machine="a board")
    elsewhere = dataclasses.replace(flight, headers=(dataclasses.replace(flight.header, place=board),))
    (replay,) = replay_flight(Bundle.open(bundle), elsewhere, ["native"], threads=None)
    assert not replay.same and replay.flown.endswith("a board")


def test_a_flight_of_another_step_is_refused(exported: ExportFunction, flight: Flight) -> None:
    other = Bundle.open(exported("image_m", targets=("onnxruntime",)))
    with pytest.raises(LramError, match=r"inputs: expected observation of uint8 .*, got observation of f"):
        replay_flight(other, flight, ["onnxruntime"], threads=None)


def test_a_flight_is_a_recording_for_every_command_that_takes_one(bundle: Path, flight: Flight, tmp_path: Path) -> None:
    spec, recording = Bundle.open(bundle).manifest.spec, read_recording(flight.path, Bundle.open(bundle).manifest.spec)
    steps = load_steps(flight.path, spec)
    taken = list(to_take(flight))
    assert len(steps) == len(recording) == len(taken) == 60
    for name in ("observation", "return_to_go", "reward", "is_first"):
        assert np.array_equal(steps[name], np.stack([t.step.inputs[name] for t in taken]))
    with load_policy(bundle, target="native") as policy:
        result = run_recording(policy, recording)
    assert np.array_equal(result.actions, np.stack([t.step.outputs["action"][0] for t in taken]))
    succeed("record", bundle, "--target", "native", "--observations", flight.path, "-o", tmp_path / "steps.npz")
    assert np.array_equal(load_steps(tmp_path / "steps.npz", spec)["return_to_go"], steps["return_to_go"])


def test_an_archive_has_every_step_and_is_a_recording(flight: Flight, tmp_path: Path, bundle: Path) -> None:
    path = tmp_path / "night.npz"
    succeed("flight", flight.path, "-o", path)
    found, spec = dict(np.load(path)), Bundle.open(bundle).manifest.spec
    assert load_steps(path, spec)["observation"].tobytes() == load_steps(flight.path, spec)["observation"].tobytes()
    steps = list(flight.steps())
    assert found["flight_step"].tolist() == list(range(60))
    assert found["flight_output_action"].tobytes() == np.stack([step.outputs["action"] for step in steps]).tobytes()
    kinds = found["flight_faults"].tobytes().decode().split("\n")
    assert [kinds[n - 1] if n else "" for n in found["flight_fault"]] == [step.fault for step in steps]
    bad = steps.index(next(step for step in steps if step.fault == "not finite"))
    assert (
        np.isnan(found["flight_reading_observation"][bad]).sum() == 1 and found["flight_reading_observation_known"][bad]
    )
    assert {name: values.tobytes() for name, values in arrays(flight).items()} == {
        name: values.tobytes() for name, values in found.items()
    }


def test_pytorch_and_the_flight_in_one_command(bundle: Path, flight: Flight) -> None:
    golden = load_golden("state_ms")
    result = succeed(
        "verify", bundle, "--target", "native", "--checkpoint", golden.checkpoint, "--recording", flight.path, "--json"
    )  # fmt: skip
    told = json.loads(result.stdout)
    assert told["targets"]["native"]["steps"] == 60 and told["passed"] and told["computation"]["passed"]
    assert [(of["target"], of["different"]) for of in told["flight"]] == [("native", 0)]


def test_a_flight_in_words_and_in_json(flight: Flight) -> None:
    shown = " ".join(succeed("flight", flight.path).output.split())
    assert "60 in" in shown and "2 episodes" in shown and "missing 2, not finite 1" in shown
    told = json.loads(succeed("flight", flight.path, "--json").stdout)
    assert told["faults"] == {"missing": 2, "not finite": 1} and told["whole"] and told["replayable_steps"] == 60
    assert told["bundles"][0]["target"] == "native"


def test_a_recording_that_is_no_flight_still_needs_a_checkpoint(bundle: Path, flight: Flight, tmp_path: Path) -> None:
    succeed("flight", flight.path, "-o", tmp_path / "night.npz")
    code, line = fail("verify", bundle, "--recording", tmp_path / "night.npz")
    assert code == 2 and "only with --checkpoint" in line and "those of a flight" in line


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_flight_that_is_cut_off_is_read_as_far_as_it_goes(flight: Flight, data: st.DataObject) -> None:
    whole = flight.path.read_bytes()
    path = flight.path.with_name("cut.mcap")
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        found = read_flight(path)
    except LramError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        return
    assert not found.whole
    steps = [step.step for step in found.steps()]
    assert steps == list(range(len(steps)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flight_with_a_wrong_byte_is_refused_or_reads_as_steps(flight: Flight, data: st.DataObject) -> None:
    whole = bytearray(flight.path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = flight.path.with_name("wrong.mcap")
    path.write_bytes(whole)
    try:
        assert all(isinstance(step, FlightStep) for step in read_flight(path).steps())
    except LramError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


def test_an_mcap_of_others_is_no_flight(tmp_path: Path) -> None:
    path = tmp_path / "other.mcap"
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        writer.finish()
    code, line = fail("flight", path)
    assert code == 1 and line.endswith(
        f"{path}: not a flight of this program: no metadata 'lram_export.flight'; record one with loop --record"
    )


def test_what_is_no_mcap_is_no_flight(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "text.mcap").write_text("hello, this is a text and nothing else")
    assert "not a flight of this program" in fail("flight", tmp_path / "text.mcap")[1]
    assert "not a flight of this program" in fail("verify", bundle, "--recording", tmp_path / "text.mcap")[1]


def test_without_the_package_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, bundle: Path, tmp_path: Path
) -> None:

    monkeypatch.setitem(sys.modules, "mcap", None)
    code, line = fail("loop", bundle, "--steps", "1", "--record", tmp_path / "a.mcap")
    assert code == 2 and line.endswith("Install it with: pip install 'lram-export[flight]'")
    assert not list(tmp_path.iterdir())
