"""The recorder: what the loop did is in the file, and nothing the disk does is the loop's affair."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest

from lram_export import ExportOptions, Policy, export_bundle, load_policy
from lram_export.errors import UsageError
from lram_export.flight.header import FlightHeader
from lram_export.flight.place import here
from lram_export.flight.reader import Flight, read_flight
from lram_export.flight.recorder import FlightRecorder, Recorder, open_recorder
from lram_export.flight.steps import UNKNOWN, FlightStep
from lram_export.interpolation import LINEAR, Between
from lram_export.loop.control import Loop, SafeStopError
from lram_export.spec.interface import Safety
from tests.loop.robots import NAN, FakeTime, Scripted, follower, options


class Kept(Recorder):
    """Keeps what a loop tells."""

    def __init__(self) -> None:
        self.headers: list[FlightHeader] = []
        self.steps: list[FlightStep] = []
        self.events: list[tuple[int, str]] = []

    def begin(self, header: FlightHeader) -> None:
        self.headers.append(header)

    def step(self, step: FlightStep) -> None:
        self.steps.append(step)

    def event(self, kind: str, text: str, step: int, seconds: float) -> None:
        self.events.append((step, kind))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorder") / "follower.lram"
    policy = follower(most=100.0, safety=Safety(most_change=(5.0, 1000.0)))
    export_bundle(policy, None, path, ExportOptions(("native",), report=False, reference_steps=20))
    return path


@pytest.fixture
def policy(bundle: Path) -> Iterator[Policy]:
    with load_policy(bundle) as loaded:
        yield loaded


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr("lram_export.loop.clock.time", fake)
    return fake


def looped(policy: Policy, time: FakeTime, readings: list[Any], events: tuple[Any, ...] = (), **said: Any) -> Kept:
    """What a loop over readings tells."""
    kept, robot = Kept(), Scripted(time, readings, events)
    loop = Loop(policy, robot, options(**{"steps": len(readings), **said}), recorder=kept)
    loop.run()
    return kept


def test_a_step_has_what_was_read_what_went_in_and_what_came_out(policy: Policy, time: FakeTime) -> None:
    kept = looped(policy, time, [[1, 2], NAN, [3, 4]])
    first, second, third = kept.steps
    assert [step.step for step in kept.steps] == [0, 1, 2]
    assert [round(1000 * step.time) for step in kept.steps] == [0, 20, 40]
    assert [step.fault for step in kept.steps] == ["", "not finite", ""] and "observation" in second.why
    assert not first.reading and np.isnan(second.reading["observation"][0, 0])
    assert second.inputs["observation"].tolist() == [[1.0, 2.0]]  # it coasts over the last good one
    assert [step.inputs["is_first"].tolist() for step in kept.steps] == [[1.0], [0.0], [0.0]]
    assert third.outputs["action"].tolist() == [[3.0, 4.0]] and [a.tolist() for a in third.sent] == [[3.0, 4.0]]
    assert kept.events == [(0, "episode"), (1, "fault"), (2, "recovered"), (3, "ended")]


def test_a_step_that_waits_has_no_inputs(policy: Policy, time: FakeTime) -> None:
    kept = looped(policy, time, [[1, 2], None, [3, 4]], by="hold")
    assert [step.stepped for step in kept.steps] == [True, False, True]
    waiting = kept.steps[1]
    assert not waiting.inputs and not waiting.outputs and np.isnan(waiting.seconds)
    assert [action.tolist() for action in waiting.sent] == [[1.0, 2.0]]


def test_what_limits_and_safety_did_is_in_the_step(policy: Policy, time: FakeTime) -> None:
    kept = looped(policy, time, [[1, 60], [2, 20], [20, 20]])
    assert kept.steps[0].clamped["action"].tolist() == [[False, True]]
    assert not kept.steps[1].clamped
    held = kept.steps[2]
    assert held.chosen["action"].tolist() == [[20.0, 20.0]] and held.outputs["action"].tolist() == [[7.0, 20.0]]


def test_every_action_of_a_faster_controller_is_there(policy: Policy, time: FakeTime) -> None:
    kept = looped(policy, time, [[0, 0], [4, 4]], between=Between(4, LINEAR))
    assert [len(step.sent) for step in kept.steps] == [4, 4]
    assert [action[0] for action in kept.steps[1].sent] == [1.0, 2.0, 3.0, 4.0]
    assert [round(1000 * at) for at in kept.steps[1].sent_at] == [20, 25, 30, 35]


def test_an_action_that_did_not_arrive_is_not_there(policy: Policy, time: FakeTime) -> None:
    kept, robot = Kept(), Scripted(time, [[1, 2], [2, 3], [3, 4]])
    robot.failing = {1}
    Loop(policy, robot, options(steps=3), recorder=kept).run()
    assert [len(step.sent) for step in kept.steps] == [1, 0, 1]
    assert kept.steps[1].fault == "not sent" and kept.steps[1].stepped


def test_the_step_that_stops_the_robot_is_there(policy: Policy, time: FakeTime) -> None:
    kept, robot = Kept(), Scripted(time, [[1, 2], None, None, None])
    with pytest.raises(SafeStopError):
        Loop(policy, robot, options(bridge=2), recorder=kept).run()
    assert [step.fault for step in kept.steps] == ["", "missing", "missing", "missing"]
    assert [kind for _, kind in kept.events] == ["episode", "fault", "stopped", "ended"]


def test_a_reading_that_failed_is_not_the_one_before(policy: Policy, time: FakeTime) -> None:
    kept = looped(policy, time, [[1, 2], OSError("bus"), [3, 4]])
    assert kept.steps[1].fault == "missing" and not kept.steps[1].reading


def test_steps_without_an_action_have_no_latency(policy: Policy, time: FakeTime) -> None:
    kept, robot = Kept(), Scripted(time, [None, [1, 2], None, None])
    with pytest.raises(SafeStopError):
        Loop(policy, robot, options(bridge=1), recorder=kept).run()
    assert [np.isnan(step.latency) for step in kept.steps] == [True, False, False, True]


def test_the_reward_that_a_step_was_given_is_kept_though_the_robot_fills_its_array_anew(
    policy: Policy, time: FakeTime
) -> None:
    kept, robot = Kept(), Scripted(time, [[1, 2], [2, 3], [3, 4]])
    robot.reward, act = np.zeros(1), robot.act

    def acting(action: Any) -> Any:
        robot.reward += 1
        return act(action)

    robot.act = acting  # type: ignore[method-assign]
    Loop(policy, robot, options(steps=3), recorder=kept).run()
    given = [None if step.reward is None else step.reward.tolist() for step in kept.steps]
    assert given == [None, [1.0], [2.0]]


def test_a_reward_of_an_odd_shape_costs_no_flight(policy: Policy, time: FakeTime, tmp_path: Path) -> None:
    recorder, robot = FlightRecorder(tmp_path / "odd.mcap"), Scripted(time, [[1, 2], [2, 3]])
    robot.reward = np.zeros(3)
    Loop(policy, robot, options(steps=2), recorder=recorder).run()
    recorder.close()
    assert [step.reward for step in read_flight(recorder.path).steps()] == [None, None]


def test_a_second_loop_counts_what_it_clamped_itself(policy: Policy, time: FakeTime) -> None:
    assert looped(policy, time, [[1, 60]]).steps[0].clamped
    assert not looped(policy, time, [[1, 2]]).steps[0].clamped


def test_a_zero_whose_sign_safety_changed_is_an_action_that_it_changed(
    policy: Policy, time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def negative(outputs: Any) -> None:
        outputs["action"][outputs["action"] == 0] = -0.0

    monkeypatch.setattr(policy._envelope, "apply", negative)
    (step,) = looped(policy, time, [[0, 1]]).steps
    assert np.signbit(step.outputs["action"][0, 0]) and not np.signbit(step.chosen["action"][0, 0])


def test_after_a_swap_to_a_bundle_without_safety_nothing_is_held(
    policy: Policy, time: FakeTime, tmp_path: Path
) -> None:
    kept, robot, path = Kept(), Scripted(time, [[0, 2], [20, 3], [21, 4]]), tmp_path / "plain.lram"
    export_bundle(follower(most=100.0), None, path, ExportOptions(("native",), report=False, reference_steps=20))

    def swapping() -> None:
        if len(robot.sent) == 2:
            policy.swap(path)

    robot.event = swapping  # type: ignore[method-assign, assignment]
    Loop(policy, robot, options(steps=3), recorder=kept).run()
    assert kept.steps[1].chosen and not kept.steps[2].chosen
    assert policy.chosen["action"].tolist() == [[21.0, 4.0]]


def test_a_recorder_that_cannot_begin_leaves_no_robot_moving(policy: Policy, time: FakeTime) -> None:
    class Broken(Kept):
        def begin(self, header: FlightHeader) -> None:
            raise RuntimeError("can't start new thread")

    robot = Scripted(time, [[1, 2]])
    with pytest.raises(SafeStopError, match="can't start new thread"):
        Loop(policy, robot, options(steps=1), recorder=Broken()).run()
    assert robot.calls == ["stop", "close"]


def test_the_motors_have_stopped_before_the_flight_is_said_to_have_ended(policy: Policy, time: FakeTime) -> None:
    robot, calls = Scripted(time, [[1, 2]]), []

    class Ending(Kept):
        def event(self, kind: str, text: str, step: int, seconds: float) -> None:
            calls.append((kind, "close" in robot.calls))

    Loop(policy, robot, options(steps=1), recorder=Ending()).run()
    assert calls == [("episode", False), ("ended", True)]


def test_another_bundle_is_told_before_its_first_step(policy: Policy, time: FakeTime, bundle: Path) -> None:
    kept, robot = Kept(), Scripted(time, [[1, 2], [2, 3], [3, 4]])
    events = iter([None])

    def swapped() -> None:
        next(events, None)
        if len(robot.sent) == 2:
            policy.swap(bundle)

    robot.event = swapped  # type: ignore[method-assign, assignment]
    Loop(policy, robot, options(steps=3), recorder=kept).run()
    assert [header.number for header in kept.headers] == [0, 1]
    assert [step.bundle for step in kept.steps] == [0, 0, 1] and (2, "swapped") in kept.events
    assert kept.headers[0].digest == kept.headers[1].digest != ""


def test_a_step_in_which_the_bundles_changed_says_that_nobody_knows_which_took_it(
    policy: Policy, time: FakeTime, bundle: Path
) -> None:
    kept, robot = Kept(), Scripted(time, [[1, 2], [2, 3], [3, 4]])
    act = policy.act

    def acting(*given: Any, **said: Any) -> Any:
        if len(robot.sent) == 1:
            policy.swap(bundle)
        return act(*given, **said)

    policy.act = acting  # type: ignore[method-assign]
    Loop(policy, robot, options(steps=3), recorder=kept).run()
    assert [step.bundle for step in kept.steps] == [0, UNKNOWN, 1]


def header_of(policy: Policy) -> FlightHeader:
    return FlightHeader(0, "a", "", "", "native", "fp32", 1, here("native"), 50.0, 1, 10**18, policy.spec, None, "0")


def test_a_loop_that_is_faster_than_the_disk_drops_steps_and_counts_them(policy: Policy, tmp_path: Path) -> None:
    recorder, many = FlightRecorder(tmp_path / "fast.mcap"), 30_000
    recorder.begin(header_of(policy))
    observation = np.zeros((1, 2), np.float32)
    for number in range(many):
        recorder.step(FlightStep(number, number / 50, reading={"observation": observation}))
    recorder.close()
    flight = read_flight(recorder.path)
    assert 0 < recorder.dropped < many and recorder.recorded == flight.count == many - recorder.dropped
    last = list(flight.steps())[-1]
    assert last.dropped == last.step + 1 - flight.count == flight.missing
    assert str(recorder).endswith(f"{recorder.recorded:,} steps recorded, {recorder.dropped:,} left out")


def test_where_nothing_began_nothing_is_left(tmp_path: Path) -> None:
    FlightRecorder(tmp_path / "none.mcap").close()
    assert not list(tmp_path.iterdir())


def flown(tmp_path: Path, policy: Policy, steps: int) -> Flight:
    recorder = FlightRecorder(tmp_path / "flight.mcap")
    recorder.begin(header_of(policy))
    for number in range(steps):
        recorder.step(FlightStep(number, number / 50))
    recorder.close()
    return read_flight(recorder.path)


def test_a_file_that_was_closed_is_whole(tmp_path: Path, policy: Policy) -> None:
    flight = flown(tmp_path, policy, 10)
    assert flight.whole and flight.count == 10 and flight.missing == 0
    assert flight.header == header_of(policy)


LOOP = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from lram_export.cli import main
main(sys.argv[1:])
"""


def test_a_disk_that_is_full_ends_the_recording_and_not_the_loop(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "full.mcap"
    words = ["loop", str(bundle), "--rate", "4000", "--steps", "8000", "--record", str(path)]
    ran = subprocess.run([sys.executable, "-c", LOOP, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("8,000 steps at 4000 Hz")
    assert f"warning: {path}: recording ended, the loop goes on without: OSError" in ran.stderr
    assert "ended early: OSError" in ran.stdout and path.stat().st_size <= 100_000
    flight = read_flight(path)
    assert not flight.whole and 0 < flight.count < 8000


def test_a_loop_that_is_killed_leaves_what_it_wrote(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "killed.mcap"
    words = [sys.executable, "-m", "lram_export", "loop", str(bundle), "--rate", "2000", "--steps", "0"]
    (tmp_path / "endless.py").write_text(ENDLESS)
    with subprocess.Popen([*words, "--robot", "endless", "--record", str(path)], cwd=tmp_path) as process:
        try:  # the first chunk may be half written
            while not path.exists() or path.stat().st_size < 20_000 or read_flight(path).count <= 100:
                assert process.poll() is None
                sleep(0.01)
        finally:
            process.kill()
    flight = read_flight(path)
    assert not flight.whole and flight.count > 100
    assert [step.step for step in flight.steps()] == list(range(flight.count))


ENDLESS = """
import numpy as np


class Robot:
    def reset(self):
        return self.observe()

    def observe(self):
        return np.random.default_rng().uniform(-1, 1, 2).astype(np.float32)

    def act(self, action):
        return None

    def close(self):
        pass
"""


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("there.mcap", "--record: {}: is there already; choose another name, or a folder"),
        ("no/where.mcap", "--record: {}: No such file or directory"),
        ("flight.bag", "--record: {}: expected a file that ends in .mcap, or a folder that is there"),
    ],
)
def test_a_place_where_no_flight_can_go_is_refused(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "there.mcap").write_bytes(b"mine")
    with pytest.raises(UsageError) as error:
        open_recorder(tmp_path / place)
    assert str(error.value) == message.format(tmp_path / place)
    assert (tmp_path / "there.mcap").read_bytes() == b"mine"


def test_flights_in_a_folder_are_named_by_the_time_and_never_replaced(tmp_path: Path) -> None:
    recorders = [open_recorder(tmp_path) for _ in range(3)]
    paths = [recorder.path for recorder in recorders]
    assert len(set(paths)) == 3 and {path.suffix for path in paths} == {".mcap"}
    for recorder in recorders:
        recorder.close()


def test_a_recorder_that_failed_counts_what_it_does_not_record(
    policy: Policy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = FlightRecorder(tmp_path / "flight.mcap")
    recorder.begin(header_of(policy))
    with caplog.at_level(logging.WARNING):
        recorder.step(FlightStep(0, 0.0, bundle=-1))  # no message can hold that
        while not recorder.failure:
            os.sched_yield()
        recorder.step(FlightStep(1, 0.02))
        recorder.close()
    assert recorder.dropped == 1 and "the loop goes on without" in caplog.text
