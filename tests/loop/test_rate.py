"""At which rate the kit's loop steps, and what a faster controller is sent meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lram_export import load_policy
from lram_export.errors import UsageError
from lram_export.interpolation import Between
from tests.conftest import ExportFunction, succeed
from tests.deploy.test_deploy import kit_module, unpack
from tests.rated import RATE, rated

STEPS = 6


@pytest.fixture
def bundle(exported: ExportFunction, shared_folder: Path) -> Path:
    return rated(exported, shared_folder)


class Clock:
    """Time that passes in a loop's sleep alone, and where a test lets it."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Any:
    module = kit_module("control_loop")
    monkeypatch.setattr(module, "time", clock)
    return module


def rehearsed(loop: Any, clock: Clock, bundle: Path, *options: str) -> list[tuple[float, Any]]:
    """When a rehearsal sent what, in steps of the policy."""
    robot, found = loop.Rehearsal(bundle), []
    act = robot.act
    rate, between = loop.pace(loop.parse([str(bundle), *options]))
    start = clock.now
    robot.act = lambda action: (found.append(((clock.now - start) * rate, action)), act(action))[1]
    with load_policy(bundle, threads=1) as policy:
        loop.control(policy, robot, loop.Account(), rate, STEPS, 0, between)
    return found


def expected(loop: Any, bundle: Path) -> list[Any]:
    """The policy's own actions in a rehearsal."""
    robot = loop.Rehearsal(bundle)
    with load_policy(bundle, threads=1) as policy:
        observation, actions = robot.reset(), []
        for _ in range(STEPS):
            actions.append(policy.act(observation, reward=robot.act(actions[-1]) if actions else None))
            observation = robot.observe()
    return actions


@pytest.mark.parametrize(
    ("options", "rate", "warned"),
    [((), RATE, False), (("--rate", str(RATE)), RATE, False), (("--rate", "20"), 20, True)],
)
def test_the_rate_is_the_bundles_unless_told_another(
    loop: Any, bundle: Path, options: tuple[str, ...], rate: float, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert loop.pace(loop.parse([str(bundle), *options]))[0] == rate
    line = f"warning: {bundle} was trained at {RATE} Hz, controlled at {rate} Hz\n"
    assert capsys.readouterr().err == (line if warned else "")


def test_where_nobody_says_a_rate_it_is_as_before(loop: Any, exported: ExportFunction) -> None:
    bundle = exported("state_ms", targets=("onnxruntime",))
    assert loop.pace(loop.parse([str(bundle)]))[0] == loop.RATE == 50


def test_a_faster_controller_gets_each_action_again(loop: Any, clock: Clock, bundle: Path) -> None:
    sent = rehearsed(loop, clock, bundle, "--controller-rate", str(4 * RATE))
    assert np.allclose([when for when, _ in sent], np.arange(4 * STEPS) / 4)
    np.testing.assert_array_equal([action for _, action in sent], np.repeat(expected(loop, bundle), 4, axis=0))


def test_or_what_lies_on_the_line_to_it(loop: Any, clock: Clock, bundle: Path) -> None:
    actions = expected(loop, bundle)
    assert len({action.tobytes() for action in actions}) > 2
    options = ("--controller-rate", str(4 * RATE), "--between", "linear")
    sent = np.stack([action for _, action in rehearsed(loop, clock, bundle, *options)]).reshape(STEPS, 4, -1)
    before = actions[0]  # the first is held
    for found, action in zip(sent, actions, strict=True):
        line = [(before * np.float64(4 - k) + action * np.float64(k)) / 4 for k in (1, 2, 3)]
        np.testing.assert_array_equal(found, np.float32([*np.reshape(line, (3, -1)), action.ravel()]))
        before = action


@pytest.mark.parametrize("between", ["hold", "linear"])
def test_one_action_per_step_is_the_policys_own(loop: Any, clock: Clock, bundle: Path, between: str) -> None:
    sent = rehearsed(loop, clock, bundle, "--controller-rate", str(RATE), "--between", between)
    np.testing.assert_array_equal([action for _, action in sent], expected(loop, bundle))


@pytest.mark.parametrize("between", ["hold", "linear"])
def test_rewards_reach_the_policy_once_per_step(
    loop: Any, clock: Clock, exported: ExportFunction, between: str
) -> None:
    """A rehearsal has one for each step, however many actions that is."""
    bundle = exported("state_ms", feedback="observed", targets=("onnxruntime",))
    sent = rehearsed(loop, clock, bundle, "--controller-rate", "150", "--between", between)
    np.testing.assert_array_equal([action for _, action in sent][2::3], expected(loop, bundle))


def test_rewards_of_all_ticks_are_added_up(loop: Any) -> None:
    seen: list[Any] = []

    class Both:
        def reset(self) -> int:
            return 0

        observe = reset

        def act(self, *arguments: Any, **named: Any) -> Any:
            if "reward" not in named:
                return 0.5
            seen.append(named["reward"])
            return np.zeros(2, np.float32)

    loop.control(Both(), Both(), loop.Account(), 50, 3, 0, Between(4))
    assert seen == [None, 2.0, 2.0]


class Slow:
    """A policy and a robot in one; some steps take their time."""

    def __init__(self, clock: Clock, seconds: dict[int, float]) -> None:
        self._clock, self._seconds = clock, seconds
        self.steps, self.sent = 0, []  # type: ignore[var-annotated]

    def reset(self) -> int:
        return 0

    observe = reset

    def act(self, given: Any, **named: Any) -> Any:
        if "reward" not in named:
            self.sent.append((round(1000 * (self._clock.now - 100)), given.tolist()[0]))
            return None
        self._clock.now += self._seconds.get(self.steps, 0.0)
        self.steps += 1
        return np.float32([10 * (self.steps - 1)])


@pytest.mark.parametrize(
    ("seconds", "sent", "missed"),
    [
        # steps of 20 ms, ticks of 5 ms: what is over is left out, and the next step begins in time
        (0.012, [(32, 2.5), (32, 7.5), (35, 10), (40, 12.5)], 1),
        (0.001, [(21, 2.5), (25, 5), (30, 7.5), (35, 10), (40, 12.5)], 0),
        # longer than the period: the next step starts at once, and goes on from where the robot is
        (0.050, [(70, 2.5), (70, 6.875), (75, 11.25)], 1),
    ],
)
def test_a_late_step_is_counted_and_nothing_is_made_up_for(
    loop: Any, clock: Clock, seconds: float, sent: list[tuple[int, float]], missed: int
) -> None:
    both, account = Slow(clock, {1: seconds}), loop.Account()
    loop.control(both, both, account, 50, 3, 0, Between(4, "linear"))
    assert both.sent[:4] == [(0, 0), (5, 0), (10, 0), (15, 0)]
    assert both.sent[4 : 4 + len(sent)] == sent and account.missed == missed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--controller-rate", "250"), f"controller_rate: expected a whole multiple of the policy's {RATE} Hz"),
        (("--controller-rate", "50"), "got 50 Hz"),
        (("--between", "linear"), "--between: only with --controller-rate"),
    ],
)
def test_what_does_not_fit_is_refused(loop: Any, bundle: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        loop.pace(loop.parse([str(bundle), *options]))


def test_choices_have_nothing_between_them(loop: Any, exported: ExportFunction) -> None:
    bundle = str(exported("image_m", targets=("onnxruntime",)))
    with pytest.raises(UsageError, match="between: linear is for actions of float32, got int64"):
        loop.pace(loop.parse([bundle, "--controller-rate", "100", "--between", "linear"]))
    assert loop.pace(loop.parse([bundle, "--controller-rate", "100"]))[1].ticks == 2


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
    assert refused.returncode == 1 and refused.stderr.startswith("error: controller_rate: expected a whole multiple")
