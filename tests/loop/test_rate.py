"""At which rate the loop steps, and what a faster controller is sent meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lram_export import load_policy
from lram_export.errors import UsageError
from lram_export.loop.control import Loop
from lram_export.loop.program import RATE as OTHERWISE
from lram_export.loop.program import Wishes, options_of
from lram_export.loop.rehearsal import Rehearsal
from tests.conftest import ExportFunction, succeed
from tests.deploy.test_deploy import unpack
from tests.loop.robots import FakeTime
from tests.rated import RATE, rated

STEPS = 6


@pytest.fixture
def bundle(exported: ExportFunction, shared_folder: Path) -> Path:
    return rated(exported, shared_folder)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr("lram_export.loop.clock.time", fake)
    return fake


def rehearsed(time: FakeTime, bundle: Path, **wishes: Any) -> list[tuple[float, Any]]:
    """When a rehearsal sent what, in steps of the policy."""
    options, found, start = options_of(Wishes(bundle, steps=STEPS, **wishes)), [], time.now
    with load_policy(bundle, threads=1) as policy:
        robot = Rehearsal.of_bundle(bundle, policy)
        act = robot.act
        robot.act = lambda action: (found.append(((time.now - start) * options.rate, action)), act(action))[1]  # type: ignore[method-assign]
        Loop(policy, robot, options).run()
    return found


def expected(bundle: Path) -> list[Any]:
    """The policy's own actions in a rehearsal."""
    with load_policy(bundle, threads=1) as policy:
        robot = Rehearsal.of_bundle(bundle, policy)
        observation, actions = robot.reset(), []
        for _ in range(STEPS):
            actions.append(policy.act(observation, reward=robot.act(actions[-1]) if actions else None))
            observation = robot.observe()
    return actions


@pytest.mark.parametrize(
    ("wished", "rate", "warned"),
    [(None, RATE, False), (RATE, RATE, False), (20.0, 20, True)],
)
def test_the_rate_is_the_bundles_unless_told_another(
    bundle: Path, wished: float | None, rate: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert options_of(Wishes(bundle, rate=wished)).rate == rate
    line = f"{bundle} was trained at {RATE} Hz, controlled at {rate} Hz"
    assert caplog.messages == ([line] if warned else [])


def test_where_nobody_says_a_rate_it_is_as_before(exported: ExportFunction) -> None:
    bundle = exported("state_ms", targets=("onnxruntime",))
    assert options_of(Wishes(bundle)).rate == OTHERWISE == 50


def test_a_faster_controller_gets_each_action_again(time: FakeTime, bundle: Path) -> None:
    sent = rehearsed(time, bundle, controller_rate=4 * RATE)
    assert np.allclose([when for when, _ in sent], np.arange(4 * STEPS) / 4)
    np.testing.assert_array_equal([action for _, action in sent], np.repeat(expected(bundle), 4, axis=0))


def test_or_what_lies_on_the_line_to_it(time: FakeTime, bundle: Path) -> None:
    actions = expected(bundle)
    assert len({action.tobytes() for action in actions}) > 2
    found = rehearsed(time, bundle, controller_rate=4 * RATE, between="linear")
    sent = np.stack([action for _, action in found]).reshape(STEPS, 4, -1)
    before = actions[0]  # the first is held
    for step, action in zip(sent, actions, strict=True):
        line = [(before * np.float64(4 - k) + action * np.float64(k)) / 4 for k in (1, 2, 3)]
        np.testing.assert_array_equal(step, np.float32([*np.reshape(line, (3, -1)), action.ravel()]))
        before = action


@pytest.mark.parametrize("between", ["hold", "linear"])
def test_one_action_per_step_is_the_policys_own(time: FakeTime, bundle: Path, between: str) -> None:
    sent = rehearsed(time, bundle, controller_rate=RATE, between=between)
    np.testing.assert_array_equal([action for _, action in sent], expected(bundle))


@pytest.mark.parametrize("between", ["hold", "linear"])
def test_rewards_reach_the_policy_once_per_step(time: FakeTime, exported: ExportFunction, between: str) -> None:
    """A rehearsal has one for each step, however many actions that is."""
    bundle = exported("state_ms", feedback="observed", targets=("onnxruntime",))
    sent = rehearsed(time, bundle, controller_rate=150.0, between=between)
    np.testing.assert_array_equal([action for _, action in sent][2::3], expected(bundle))


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"controller_rate": 250.0}, f"controller_rate: expected a whole multiple of the policy's {RATE} Hz"),
        ({"controller_rate": 50.0}, "got 50 Hz"),
        ({"between": "linear"}, "--between: only with --controller-rate"),
        ({"resume": True}, "--resume: only with --state"),
        ({"robot": "robot", "observations": Path("seen.npz")}, "--robot, --observations: give one of them"),
    ],
)
def test_what_does_not_fit_is_refused(bundle: Path, wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options_of(Wishes(bundle, **wishes))


def test_choices_have_nothing_between_them(exported: ExportFunction) -> None:
    bundle = exported("image_m", targets=("onnxruntime",))
    with pytest.raises(UsageError, match="between: linear is for actions of float32, got int64"):
        options_of(Wishes(bundle, controller_rate=100.0, between="linear"))
    assert options_of(Wishes(bundle, controller_rate=100.0)).between.ticks == 2


def test_a_kit_rehearses_at_the_rate_of_its_bundle(bundle: Path, tmp_path: Path) -> None:
    succeed("deploy", bundle, "-o", tmp_path / "kit.tar.gz", "-q")
    kit = unpack(tmp_path / "kit.tar.gz", tmp_path / "unpacked")
    assert "--rate" not in (kit / "lram-control.service.in").read_text()
    program = [sys.executable, kit / "control_loop.py", next(kit.glob("*.lram")), "--steps", "20"]
    options = ["--controller-rate", str(5 * RATE), "--between", "linear"]
    done = subprocess.run([*program, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    assert done.stdout.startswith(f"20 steps at {RATE} Hz, actions at {5 * RATE} Hz (linear): p50 ")
    refused = subprocess.run([*program, "--controller-rate", "250"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and refused.stderr.startswith("error: controller_rate: expected a whole multiple")
