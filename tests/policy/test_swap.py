"""Another bundle in place of the one that runs, between two steps."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lram_export import BundleError, ExportOptions, LramError, Policy, StepPolicy, export_bundle, load_policy
from lram_export.checkpoints.checkpoint import Checkpoint
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.checkpoints.random import random_checkpoint
from lram_export.errors import UsageError
from lram_export.loop.warmup import warm_up
from lram_export.quantization.quantize import QuantizationOptions
from lram_export.spec.interface import FieldInterface, Interface, Limits, Scaling
from lram_export.swapping import load_settled
from lram_export.system.renaming import exchange
from tests.conftest import ExportFunction, load_golden

TARGETS = ("native", "onnxruntime")
RATE = 200.0
OBSERVATIONS = np.random.default_rng(0).standard_normal((256, 39)).astype(np.float32)


@pytest.fixture(scope="module")
def golden() -> Checkpoint:
    return load_checkpoint(load_golden("state_m").checkpoint)


Made = Callable[..., Path]


@pytest.fixture(scope="module")
def made(golden: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Exports of the golden checkpoint, or of random weights of its sizes, once each."""
    folder, task = tmp_path_factory.mktemp("swap"), load_golden("state_m").task

    def make(precision: str = "fp32", seed: int | None = None) -> Path:
        path = folder / f"{precision}-{seed}.lram"
        if not path.exists():
            checkpoint = golden
            if seed is not None:
                found = random_checkpoint(golden.config, Path("random"), seed=seed)
                checkpoint = Checkpoint(found.path, found.config, found.weights, f"{seed:064x}")
            quantization = QuantizationOptions(precision)
            options = ExportOptions(TARGETS, reference_steps=8, quantization=quantization, report=False)
            export_bundle(checkpoint, task, path, options)
        return path

    return make


@pytest.fixture
def policy(made: Made) -> Iterator[Policy]:
    with load_policy(made(), "native", threads=1) as policy:
        yield policy


def act(policy: Policy, steps: int = 5) -> list[Any]:
    return [policy.act(observation) for observation in OBSERVATIONS[:steps]]


class TestState:
    @pytest.mark.parametrize("target", [None, *TARGETS])
    def test_it_is_kept_where_the_weights_are_the_same(self, policy: Policy, made: Made, target: str | None) -> None:
        policy.reset(target_return=2.0)
        act(policy)
        state, outputs, old = policy.state(), policy.outputs, policy.runtime
        assert policy.swap(made("int8"), target) is True
        assert policy.origin is not None and policy.origin.target == (target or "native")
        assert bytes(policy.state()["precision"]).decode() == policy.origin.precision == "int8"
        assert all(np.array_equal(outputs[name], values) for name, values in policy.outputs.items())
        with load_policy(made("int8"), target or "native", threads=1) as expected:
            expected.load_state(state)
            np.testing.assert_array_equal(act(policy), act(expected))
        with pytest.raises(RuntimeError, match="the policy is closed"):
            old.state()

    def test_all_rows_start_anew_where_they_are_not_and_aim_at_what_they_did(self, policy: Policy, made: Made) -> None:
        policy.reset(target_return=2.0)
        policy.act(OBSERVATIONS[0])
        policy.act(OBSERVATIONS[0], 0.5)
        assert policy.swap(made(seed=1)) is False
        assert policy.return_to_go.tolist() == [2.0]
        with load_policy(made(seed=1), "native", threads=1) as expected:
            expected.reset(target_return=2.0)
            np.testing.assert_array_equal(act(policy), act(expected))
        policy.reset()
        assert policy.return_to_go.tolist() == [2.0]

    def test_one_that_was_lost_is_none(self, policy: Policy, made: Made) -> None:
        expected = act(policy)
        policy.runtime._state["memory"][...] = np.nan  # type: ignore[attr-defined]
        with pytest.raises(LramError):
            policy.act(OBSERVATIONS[0])
        assert policy.swap(made()) is False
        np.testing.assert_array_equal(act(policy), expected)

    def test_a_policy_around_a_runtime_takes_one_too(self, policy: Policy, made: Made) -> None:
        bare = Policy(policy.runtime, policy.task)
        assert bare.swap(made(), "onnxruntime") is False
        act(bare)
        bare.close()

    def test_what_takes_over_can_be_warmed_up_first(self, policy: Policy, made: Made) -> None:
        expected = act(policy)
        policy.reset()
        seen: list[Policy] = []

        def prepare(other: Policy) -> None:
            warm_up(other)
            seen.append(other)

        act(policy, 3)
        assert policy.swap(made("int8"), prepare=prepare) is True
        assert seen[0].runtime is policy.runtime
        policy.swap(made(), prepare=warm_up)
        policy.reset()
        np.testing.assert_array_equal(act(policy), expected)

    def test_where_that_fails_the_policy_is_as_it_was(self, policy: Policy, made: Made) -> None:
        def prepare(_: Policy) -> None:
            raise LramError("no")

        runtime = policy.runtime
        with pytest.raises(LramError, match="no"):
            policy.swap(made("int8"), prepare=prepare)
        assert policy.runtime is runtime
        act(policy)


class TestRefusals:
    @pytest.fixture
    def others(self, exported: ExportFunction, made: Made, tmp_path: Path) -> dict[str, Path]:
        damaged = tmp_path / "damaged.lram"
        shutil.copytree(made(), damaged)
        model = damaged / "native" / "model.lrn"
        model.write_bytes(model.read_bytes()[:-1])
        export = [*load_golden("state_m").task_options]
        export[export.index("--reward-scale") + 1] = "2"
        return {
            "missing": tmp_path / "none.lram",
            "damaged": damaged,
            "wider": exported("state_ms", targets=("native",)),
            "game": exported("image_m", targets=("native",)),
            "observed": exported("state_m", "observed", targets=("native",)),
            "scaled": exported("state_m", targets=("native",), options=export),
        }

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("missing", "none.lram: no such bundle"),
            ("damaged", r"model.lrn: \d+ bytes, the manifest says"),
            ("wider", r"input observation: expected float32 of shape \(1, 39\), .* got float32 of shape \(1, 204\)"),
            ("game", r"input observation: expected float32 of shape \(1, 39\), .* got uint8 of shape \(1, 3, 64, 64\)"),
            ("observed", "reward_feedback: expected none, as in the policy that runs, got observed"),
            ("scaled", "reward_scale: expected 1.0, as in the policy that runs, got 2.0"),
        ],
    )
    def test_the_policy_runs_on_untouched(
        self, policy: Policy, others: dict[str, Path], name: str, message: str, made: Made
    ) -> None:
        act(policy)
        before, origin, runtime = policy.state(), policy.origin, policy.runtime
        with pytest.raises(LramError, match=message) as caught:
            policy.swap(others[name])
        assert "\n" not in str(caught.value)
        after = policy.state()
        assert all(np.array_equal(before[key], after[key]) for key in before)
        assert policy.origin is origin and policy.runtime is runtime
        act(policy)

    def test_a_target_that_it_does_not_have(self, policy: Policy, made: Made) -> None:
        with pytest.raises(UsageError, match="no artifact for target 'tvm'"):
            policy.swap(made("int8"), "tvm")
        act(policy)

    def test_what_is_asked_beyond_the_limits_of_the_new_weights(
        self, policy: Policy, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import lram_export.conditioning as conditioning

        def refuse(*_: Any) -> None:
            raise ValueError("return_to_go: expected finite values of magnitude up to 1 (beyond, float32 overflows)")

        monkeypatch.setattr(conditioning, "check_saved", refuse)
        expected = act(policy)
        policy.reset()
        with pytest.raises(ValueError, match="return_to_go: expected finite values"):
            policy.swap(made(seed=1))
        np.testing.assert_array_equal(act(policy), expected)

    def test_a_closed_policy_says_so_before_anything_is_loaded(self, policy: Policy) -> None:
        policy.close()
        with pytest.raises(RuntimeError, match="the policy is closed"):
            policy.swap("nothing.lram")


class Loop(threading.Thread):
    """A control loop at a rate, and everything that it did."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self._policy, self.go_on = policy, threading.Event()
        self.go_on.set()
        self.outputs: list[Any] = []
        self.errors: list[BaseException] = []

    def run(self) -> None:
        """Step until told to stop; an error does not end it."""
        due = time.perf_counter()
        while self.go_on.is_set():
            try:
                self.outputs.append(self._policy.step(OBSERVATIONS[len(self.outputs) % len(OBSERVATIONS)]))
            except BaseException as error:
                self.errors.append(error)
                return
            due = max(due + 1 / RATE, time.perf_counter())
            time.sleep(max(0.0, due - time.perf_counter()))


def changes(outputs: list[Any], paths: tuple[Path, Path], kept: bool) -> int:
    """How often the policy changed from one bundle to the other; fails where a step is that of neither."""

    def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
        return all(np.array_equal(one[name], other[name]) for name in ("action", "action_logits"))

    with load_policy(paths[0], "native", threads=1) as one, load_policy(paths[1], "native", threads=1) as two:
        now, other, found = one, two, 0
        for number, output in enumerate(outputs):
            observation, before = OBSERVATIONS[number % len(OBSERVATIONS)], now.state()
            if same(now.step(observation), output):
                continue
            # the other goes on where the last step left off, or starts an episode
            if kept:
                other.load_state(before)
            else:
                other.reset()
            if same(other.step(observation), output):
                now, other, found = other, now, found + 1
                continue
            now.reset()  # there and back between two steps
            assert not kept and same(now.step(observation), output), f"step {number} is torn"
            found += 2
    return found


@pytest.mark.parametrize("kept", [True, False], ids=["another precision", "other weights"])
def test_a_folder_is_replaced_fifty_times_under_a_control_loop(kept: bool, made: Made, tmp_path: Path) -> None:
    pair = (made(), made("int8")) if kept else (made(), made(seed=1))
    live, spare = tmp_path / "live.lram", tmp_path / "spare.lram"
    shutil.copytree(pair[0], live)
    shutil.copytree(pair[1], spare)
    with load_policy(live, "native", threads=1) as policy:
        loop = Loop(policy)
        loop.start()
        try:
            for _ in range(50):
                if not exchange(live, spare):
                    pytest.skip("this file system exchanges no folders")
                assert policy.swap(live) is kept
                time.sleep(2 / RATE)
        finally:
            loop.go_on.clear()
            loop.join()
    assert loop.errors == []
    found = changes(loop.outputs, pair, kept)
    assert 0 < found <= 50 and found % 2 == 0  # where states are kept, one there and back between two steps is unseen


def test_a_folder_that_is_replaced_while_it_is_loaded(made: Made, tmp_path: Path) -> None:
    """Whatever comes of a swap, the loop acts as one of the two."""
    pair = (made(), made(seed=1))
    live, spare = tmp_path / "live.lram", tmp_path / "spare.lram"
    shutil.copytree(pair[0], live)
    shutil.copytree(pair[1], spare)
    stop, taken = threading.Event(), 0

    def replace() -> None:
        rng = np.random.default_rng(0)
        while not stop.wait(rng.uniform(0.02, 0.1)):
            exchange(live, spare)

    with load_policy(live, "native", threads=1) as policy:
        loop, replacing = Loop(policy), threading.Thread(target=replace)
        loop.start()
        replacing.start()
        try:
            for _ in range(30):
                try:
                    policy.swap(live)
                    taken += 1
                except BundleError as error:
                    assert "replaced 10 times while it was loaded" in str(error)
                time.sleep(1.5 / RATE)
        finally:
            stop.set()
            loop.go_on.clear()
            replacing.join()
            loop.join()
    assert loop.errors == [] and taken > 0
    assert changes(loop.outputs, pair, kept=False) <= taken


class TestLoading:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "manifest.json").write_text("0")
        return tmp_path

    def test_what_was_replaced_meanwhile_is_loaded_again(self, folder: Path) -> None:
        class Loaded:
            def __init__(self) -> None:
                self.closed = 0

            def close(self) -> None:
                self.closed += 1

        loads: list[Loaded] = []

        def load() -> Loaded:
            if len(loads) < 3:
                (folder / "manifest.json").write_text(json.dumps(len(loads) + 1))
            loads.append(Loaded())
            if len(loads) == 2:
                raise BundleError("a file of the one with the manifest of the other")
            return loads[-1]

        assert load_settled(folder, load) is loads[3]
        assert [each.closed for each in loads] == [1, 0, 1, 0]

    def test_one_that_never_stays_is_given_up(self, folder: Path) -> None:
        def load() -> Any:
            (folder / "manifest.json").write_text(str(time.perf_counter_ns()))
            raise BundleError("damaged")

        with pytest.raises(BundleError, match="replaced 10 times while it was loaded; try again when it stays"):
            load_settled(folder, load)


def test_a_policy_of_another_robot_is_not_taken(tmp_path: Path) -> None:
    def made(name: str, units: str, scale: float) -> Path:
        action = FieldInterface(units=(units,), scaling=Scaling(scale), limits=Limits(-1.0, 1.0))
        robot = Interface(50.0, {}, {"action": action})
        policy = StepPolicy(torch.nn.Linear(3, 2), observation=3, action=2, interface=robot)
        path = tmp_path / f"{name}.lram"
        export_bundle(policy, None, path, ExportOptions(("onnxruntime",), report=False))
        return path

    first, stronger, other = made("one", "N*m", 1.0), made("two", "N*m", 2.0), made("three", "rad", 1.0)
    with load_policy(first) as policy:
        assert policy.interface.rate == 50.0 and policy.interface.action["action"].units == ("N*m",)
        policy.swap(stronger)
        assert policy.interface.action["action"].scaling == Scaling(2.0)
        with pytest.raises(UsageError, match=r"three\.lram: units of action: .*N\*m.*rad") as caught:
            policy.swap(other)
        assert "\n" not in str(caught.value)
        assert policy.interface.action["action"].scaling == Scaling(2.0)
