"""The loop of C++ is that of Python: the same script of readings, events, failures and delays in both, and the same
actions to the bit, the same counts, the same end."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lram_export import ExportOptions, export_bundle, load_policy
from lram_export.bundle.bundle import Bundle
from lram_export.interpolation import Between
from lram_export.loop.control import Loop, LoopOptions, SafeStopError
from lram_export.loop.warmup import warm_up
from lram_export.spec.interface import Safety
from tests.conftest import ExportFunction
from tests.loop.robots import FakeTime, follower
from tests.targets.test_native_install import prefix, pytestmark, run  # noqa: F401

DRIVER = Path(__file__).parent.parent.parent / "kernels" / "native" / "tests" / "loop_driver.cpp"
READINGS = 150
EVENTS = {"none": None, "new": "new episode", "done": "done"}


@dataclass
class Script:
    """What a robot does, drawn at random, in an order of its own for each kind of thing.

    Attributes:
        readings: seconds that it takes, and what comes: numbers, None, or an exception.
        events: after each step.
        acts: seconds that sending takes, whether it fails, and the reward.
        holds: seconds that it takes to say so, and what; None: it fails.
        brought: rewards that are asked for; NaN: that fails. Where there is none left, it is not known.
    """

    readings: list[tuple[float, Any]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    acts: list[tuple[float, bool, float | None]] = field(default_factory=list)
    holds: list[tuple[float, list[float] | None]] = field(default_factory=list)
    brought: list[float] = field(default_factory=list)

    @classmethod
    def drawn(
        cls, seed: int, size: int, spread: float, options: LoopOptions, rewards: float, large: bool, asked: bool
    ) -> Script:
        """``spread``: of the observations; ``rewards``: how often one is known.

        ``large``: some observations are too large for the arithmetic of a step; ``asked``: for rewards, too.
        """
        random, script, before = np.random.default_rng(seed), cls(), None
        while len(script.readings) < READINGS:
            good = random.normal(scale=spread, size=size).astype(np.float32)
            kind = random.choice(7, p=[0.72, 0.06, 0.06, 0.04, 0.04, 0.02, 0.06])
            bad = good.copy()
            bad[random.integers(size)] = (np.nan, np.inf, 1e30)[random.integers(2 + large)]
            reading = (good, None, bad, OSError("encoder"), good[:-1], np.append(good, 1.0), before)[kind]
            before = reading if kind == 0 else before
            script.readings.append((float(random.choice([0.0, 0.713], p=[0.94, 0.06])), reading))
        script.events = random.choice([*EVENTS], size=4 * READINGS, p=[0.93, 0.05, 0.02]).tolist()
        for _ in range(READINGS * options.between.ticks):
            late = float(random.choice([0.0, 0.0137, 0.0519], p=[0.95, 0.04, 0.01]))
            known = random.random() < rewards
            script.acts.append((late, bool(random.random() < 0.02), float(random.normal()) if known else None))
            held = random.normal(size=size).tolist() if random.random() < 0.9 else None
            script.holds.append((float(random.choice([0.0, 0.307], p=[0.8, 0.2])), held))
        if asked:
            script.brought = np.where(random.random(READINGS) < 0.95, random.normal(size=READINGS), np.nan).tolist()
        return script

    def lines(self) -> Iterator[str]:
        """As the driver reads it."""
        for late, reading in self.readings:
            yield f"late {late.hex()}"
            if isinstance(reading, Exception) or reading is None:
                yield "missing" if reading is None else "throw"
            else:
                yield f"reading {' '.join(float(value).hex() for value in reading)}"
        yield from (f"event {event}" for event in self.events)
        for late, fails, reward in self.acts:
            yield f"act {late.hex()} {'fail' if fails else 'fine'} {'' if reward is None else reward.hex()}"
        yield from (f"brought {reward.hex()}" for reward in self.brought)
        for late, held in self.holds:
            yield f"holds {late.hex()} {'' if held is None else ' '.join(float(value).hex() for value in held)}"


class Scripted:
    """A robot of a script."""

    def __init__(self, script: Script, time: FakeTime) -> None:
        self._time, self._holds, self._brought = time, iter(script.holds), iter(script.brought)
        self._readings, self._events, self._acts = iter(script.readings), iter(script.events), iter(script.acts)
        self.lines: list[str] = []
        self.sent: list[tuple[float, list[float]]] = []
        self.end = lambda: None

    def reset(self) -> Any:
        self.lines.append("reset")
        return self.observe()

    def observe(self) -> Any:
        late, reading = next(self._readings, (0.0, self))
        self._time.now += late
        if reading is self:
            self.end()
            return None
        if isinstance(reading, Exception):
            raise reading
        return reading

    def act(self, action: Any) -> float | None:
        late, fails, reward = next(self._acts)
        self._time.now += late
        self.lines.append("act")
        self.sent.append((self._time.now, action.tolist()))
        if fails:
            raise OSError("bus is busy")
        return reward

    def event(self) -> str | None:
        return EVENTS[next(self._events, "none")]

    def holds(self) -> Any:
        late, held = next(self._holds)
        self._time.now += late
        if held is None:
            raise OSError("encoder")
        return held

    def brought(self) -> float | None:
        reward = next(self._brought, None)
        if reward is not None and np.isnan(reward):
            raise OSError("camera")
        return reward

    def stop(self) -> None:
        self.lines.append("stop")

    def close(self) -> None:
        self.lines.append("close")


@pytest.fixture(scope="module")
def driver(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Built as a program of a user's is, of what was installed."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(driver LANGUAGES CXX)\nfind_package(lram 0.1 REQUIRED)\n"
        f"add_executable(driver {DRIVER})\ntarget_link_libraries(driver PRIVATE lram::loop)\n"
        f"add_executable(whole {DRIVER})\ntarget_link_libraries(whole PRIVATE lram::loop_static)\n"
    )
    run("cmake", "-S", folder, "-B", folder / "built", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", folder / "built")
    assert "liblram" not in run("readelf", "-d", folder / "built" / "whole")
    return folder / "built" / "driver"


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr("lram_export.loop.clock.time", fake)
    return fake


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Follows what it observes, by so much a tick."""
    path = tmp_path_factory.mktemp("loop") / "follower.lram"
    policy = follower(safety=Safety(most_change=1.5))
    export_bundle(policy, None, path, ExportOptions(("native",), report=False, reference_steps=20))
    return path


def compare(bundle: Path, script: Script, options: LoopOptions, driver: Path, time: FakeTime) -> Counter[str]:
    """Run a script in both, and assert that nothing differs; the faults that there were."""
    chosen = [str(options.rate), options.between.ticks, options.between.between, options.steps]
    given = [driver, bundle / "native" / "model.lrn", *chosen, options.bridge, options.by, options.frozen]
    text = "\n".join(script.lines())
    done = subprocess.run([*map(str, given)], input=text, capture_output=True, text=True, check=True, timeout=60)

    time.now, stopped = 100.0, []
    with load_policy(bundle, "native", threads=1) as policy:
        warm_up(policy)
        robot = Scripted(script, time)
        loop = Loop(policy, robot, options)
        robot.end = loop.end
        try:
            loop.run()
        except SafeStopError as error:
            stopped.append(str(error))
        counts = policy.counts()

    found = [line.partition(" ") for line in done.stdout.splitlines()]
    assert [name for name, *_ in found if name in ("reset", "act", "stop", "close")] == robot.lines
    sent = np.array([[float.fromhex(word) for word in rest.split()] for name, _, rest in found if name == "act"])
    assert len(sent) == len(robot.sent) > 0
    np.testing.assert_array_equal(sent[:, 1:], np.array([action for _, action in robot.sent]))
    np.testing.assert_allclose(sent[:, 0], [when for when, _ in robot.sent], atol=1e-6, rtol=0)
    # of the last fault the words may differ, not the kind
    ends = [rest.split(": ")[:3] for name, _, rest in found if name == "stopped"]
    assert ends == [line.split(": ")[:3] for line in stopped]
    account = loop.account
    for name in ("steps", "episodes", "missed", "bridged", "stale"):
        assert (name, " ", str(getattr(account, name))) in found, name
    faults = {rest.rpartition(" ")[0]: int(rest.rpartition(" ")[2]) for name, _, rest in found if name == "fault"}
    assert faults == account.faults
    said = next(rest for name, _, rest in found if name == "text")
    assert said.split(", faults")[0] == str(account).split(", faults")[0]
    if counts:
        for name in ("clamped", "slowed"):
            numbers = [int(rest) for word, _, rest in found if word == name]
            assert numbers == getattr(counts["action"], name)[0].tolist()
    return account.faults


OPTIONS = {
    "coast": {"by": "coast"},
    "hold": {"by": "hold"},
    "frozen": {"frozen": 1},
    "linear": {"between": (4, "linear")},
    "linear-hold": {"between": (4, "linear"), "by": "hold"},
    "stopped": {"bridge": 2},
    "steps": {"steps": 60},
}


def options_of(name: str) -> LoopOptions:
    said: dict[str, Any] = {"rate": 50.0, "bridge": 8, **OPTIONS[name]}
    return LoopOptions(**{**said, "between": Between(*said.get("between", ()))})


@pytest.mark.parametrize("name", OPTIONS)
def test_of_a_module_that_is_held_to_limits(name: str, module: Path, driver: Path, time: FakeTime) -> None:
    found: Counter[str] = Counter()
    for seed in range(8):
        script = Script.drawn(seed, 2, 3.0, options_of(name), rewards=0.5, large=True, asked=seed > 5)
        found += compare(module, script, options_of(name), driver, time)
    assert {"missing", "unusable", "not finite", "out of limits", "not sent", "no result", "stale"} <= {*found}
    assert ("frozen" in found) == (name == "frozen")


@pytest.mark.parametrize("feedback", ["none", "observed"])
@pytest.mark.parametrize("name", ["coast", "linear-hold"])
def test_of_a_network_that_aims_at_a_return(
    feedback: str, name: str, exported: ExportFunction, driver: Path, time: FakeTime
) -> None:
    bundle = exported("state_ms", feedback=feedback, targets=("native",))
    size = Bundle.open(bundle).manifest.spec.inputs[0].size
    found: Counter[str] = Counter()
    for seed in range(4):
        # in C++ only the step finds out what is too large, and so not one that fails for want of a reward
        observed = feedback == "observed"
        script = Script.drawn(seed, size, 1.0, options_of(name), 0.9, large=not observed, asked=observed and seed > 1)
        found += compare(bundle, script, options_of(name), driver, time)
    assert ("no result" in found) == (feedback == "observed")
    assert ("out of limits" in found) == (feedback == "none")
    assert {"missing", "not finite", "not sent"} <= {*found}
