"""Several processes play: the same results to the bit, whatever goes wrong in one of them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from lram_export.bundle.bundle import Bundle
from lram_export.errors import LramError, UsageError
from lram_export.policy import load_policy
from lram_export.rollouts.evaluation import (
    REFERENCE,
    Evaluation,
    EvaluationOptions,
    ReferenceSource,
    evaluate,
    reference_policy,
)
from lram_export.rollouts.recorded_episodes import EpisodePlan, record_episodes, record_in_parallel
from lram_export.rollouts.workers import WorkerDied, Workers, share
from tests.conftest import GOLDEN, ExportFunction, fail, succeed
from tests.rollouts.line import LINE, OPTIONS, LineEnv
from tests.rollouts.squares import Squares

NAMES: dict[str, dict[str, Any]] = {
    "Line": {},
    "Breaks": {"breaks_at": 5, "only_seed": 2},
    "Dies": {"breaks_at": 5, "only_seed": 2, "dies": True},
    "Stays": {"breaks_in_close": True},
}


@pytest.fixture(autouse=True, scope="module")
def line_environments() -> Iterator[None]:
    """Registered in this process only: on seed 2 one breaks and one kills its process; one does not close."""
    for name, arguments in NAMES.items():
        gymnasium.register(f"LramTest{name}-v0", entry_point=LineEnv, kwargs=arguments)
    yield
    for name in NAMES:
        gymnasium.registry.pop(f"LramTest{name}-v0")


@pytest.fixture(scope="module")
def line(exported: ExportFunction) -> Path:
    return exported("state_m", targets=("onnxruntime", "pytorch"), options=OPTIONS)


def options_of(*names: str, parallel: int = 1, **settings: Any) -> EvaluationOptions:
    environments = tuple(f"gym/LramTest{name}-v0" for name in names)
    return EvaluationOptions(environments, ("onnxruntime",), episodes=4, parallel=parallel, **settings)


def outcome(evaluation: Evaluation) -> list[Any]:
    """Everything but times."""
    results = [
        (r.environment, r.policy, r.precision, r.target_return, r.agreement, r.episodes) for r in evaluation.results
    ]
    return [results, evaluation.failure]


def children() -> set[int]:
    task = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    found = {int(pid) for pid in task.read_text().split()}
    return {pid for pid in found if "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text()}


class TestEvaluation:
    def test_two_processes_give_what_one_gives_to_the_bit(self, line: Path) -> None:
        bundle = Bundle.open(line)
        alone = evaluate(bundle, options_of("Line"), reference_policy(bundle, None))
        both = evaluate(bundle, options_of("Line", parallel=2), ReferenceSource())
        assert outcome(both) == outcome(alone)
        assert [e.seed for e in both.results[1].episodes] == [0, 1, 2, 3]
        assert both.results[1].agreement is not None and both.results[1].agreement.steps == 48
        assert both.results[0].policy_seconds > 0 and both.results[1].environment_seconds > 0
        assert children() == set()

    def test_a_source_of_the_reference_serves_one_process_too(self, line: Path) -> None:
        bundle = Bundle.open(line)
        loaded = evaluate(bundle, options_of("Line"), reference_policy(bundle, None))
        assert outcome(evaluate(bundle, options_of("Line"), ReferenceSource())) == outcome(loaded)

    def test_a_loaded_reference_is_refused(self, line: Path) -> None:
        bundle = Bundle.open(line)
        with reference_policy(bundle, None) as reference, pytest.raises(UsageError, match="what it is made of"):
            evaluate(bundle, options_of("Line", parallel=2), reference)

    @pytest.mark.parametrize("processes", [1, 2, 3])
    def test_an_environment_that_breaks_leaves_the_results_of_earlier_seeds(self, processes: int, line: Path) -> None:
        result = evaluate(Bundle.open(line), options_of("Breaks", "Line", parallel=processes), None)
        assert result.failure == "gym/LramTestBreaks-v0: failed in step: RuntimeError: the simulator"
        assert [[e.seed for e in r.episodes] for r in result.results] == [[0, 1], [0, 1, 2, 3]]
        assert children() == set()

    def test_a_process_that_dies_is_a_failure_of_its_episode_and_the_rest_goes_on(self, line: Path) -> None:
        alone = evaluate(Bundle.open(line), options_of("Line"), None)
        result = evaluate(Bundle.open(line), options_of("Dies", "Line", parallel=2), None)
        assert result.failures == {
            "gym/LramTestDies-v0": (
                "gym/LramTestDies-v0: failed in the episode of seed 2: its process died (SIGKILL; out of memory?)"
            )
        }
        assert [e.seed for e in result.results[0].episodes] == [0, 1]
        assert result.results[1].episodes == alone.results[0].episodes
        assert children() == set()

    @pytest.mark.parametrize("processes", [1, 2])
    def test_an_environment_that_does_not_close_is_told(self, processes: int, line: Path) -> None:
        for names in (("Stays",), ("Stays", "Line")):
            result = evaluate(Bundle.open(line), options_of(*names, parallel=processes), None)
            assert result.failure == "gym/LramTestStays-v0: failed in close: RuntimeError: does not end"
            assert [len(r.episodes) for r in result.results] == [4] * len(names)

    def test_what_does_not_fit_is_refused_before_anything_is_played(self, line: Path) -> None:
        options = dataclasses.replace(options_of(parallel=2), environments=(f"gym/{LINE}", "gym/Pendulum-v1"))
        with pytest.raises(UsageError, match="gym/Pendulum-v1: its actions are"):
            evaluate(Bundle.open(line), options, None)
        assert children() == set()

    def test_a_reference_that_is_not_there_is_said_as_ever(self, exported: ExportFunction) -> None:
        bundle = exported("state_m", targets=("onnxruntime",), options=OPTIONS)
        code, text = fail("evaluate", bundle, "--env", f"gym/{LINE}", "--parallel", "2")
        assert code == 2 and "no artifact for 'pytorch' to compare with; add --checkpoint" in text

    def test_the_command_line(self, line: Path) -> None:
        command = ["evaluate", line, "--env", f"gym/{LINE}", "--episodes", "2", "--checkpoint"]
        command += [GOLDEN / "state_m" / "model.zip", "--target", "onnxruntime", "--json", "-q"]
        documents = [json.loads(succeed(*command, "--parallel", n).stdout) for n in ("1", "2")]
        for document in documents:
            for result in document["results"]:
                del result["steps_per_second"], result["policy_share"]
        assert [d["options"].pop("parallel") for d in documents] == [1, 2]
        assert documents[0] == documents[1]
        assert [r["policy"] for r in documents[1]["results"]] == [REFERENCE, "onnxruntime"]
        alone = ("--env", f"gym/{LINE}", "--episodes", "2", "--no-reference", "--parallel", "2", "-q")
        text = succeed("evaluate", line, *alone).stdout
        assert "steps/s: of each of 2 processes" in text
        assert fail(*command, "--parallel", "0")[0] == 2


class TestRecording:
    def test_two_processes_record_the_same_to_the_bit(self, line: Path) -> None:
        plan = EpisodePlan((f"gym/{LINE}", "gym/LramTestBreaks-v0"), 2, 7)
        with load_policy(line, "onnxruntime", threads=1) as policy:
            alone = record_episodes(policy, plan)
        both = record_in_parallel(line, "onnxruntime", plan, 2, threads=1)
        assert alone.inputs.keys() == both.inputs.keys()
        assert all(np.array_equal(alone[name], both[name]) for name in alone.inputs)
        assert len(both) == 48 and both["is_first"].sum() == 4
        assert np.array_equal(alone.environment, both.environment) and alone.environments == both.environments

    @pytest.mark.parametrize(
        ("name", "words"),
        [("Breaks", "failed in step: RuntimeError: the simulator"), ("Dies", "seed 2: its process died (SIGKILL")],
    )
    def test_a_failure_leaves_nothing(self, name: str, words: str, line: Path, tmp_path: Path) -> None:
        command = ["record", line, "--env", f"gym/LramTest{name}-v0", "--seed", "0", "--episodes", "4"]
        code, text = fail(*command, "-o", tmp_path / "steps.npz", "--target", "onnxruntime", "--parallel", "2")
        assert code == 1 and text.startswith(f"error: gym/LramTest{name}-v0: ") and words in text
        assert list(tmp_path.iterdir()) == [] and children() == set()

    def test_the_command_line(self, line: Path, tmp_path: Path) -> None:
        for n in ("1", "2"):
            output = ["-o", tmp_path / f"{n}.npz", "--target", "onnxruntime", "-q", "--parallel", n]
            succeed("record", line, "--env", f"gym/{LINE}", "--episodes", "3", *output)
        with np.load(tmp_path / "1.npz") as one, np.load(tmp_path / "2.npz") as two:
            assert set(one.files) == set(two.files)
            assert all(np.array_equal(one[name], two[name]) for name in one.files)

    def test_logged_observations_are_stepped_over_by_one(self, line: Path, tmp_path: Path) -> None:
        np.savez(tmp_path / "seen.npz", observations=np.zeros((3, 3), np.float32))
        command = ["record", line, "--observations", tmp_path / "seen.npz", "-o", tmp_path / "steps.npz"]
        code, text = fail(*command, "--parallel", "2")
        assert code == 2 and "--parallel: only with --env" in text


def test_a_sweep_plays_in_several_processes(tmp_path: Path) -> None:
    """Every cell in the same ones; what was played in one process counts for several."""
    command = ["sweep", GOLDEN / "state_m" / "model.zip", "-o", tmp_path / "grid", *OPTIONS, "--steps", "10", "--json"]
    command += ["--targets", "onnxruntime,native", "--precisions", "fp32", "--env", f"gym/{LINE}", "-q"]
    first = json.loads(succeed(*command, "--episodes", "3", "--parallel", "2").stdout)
    again = json.loads(succeed(*command, "--episodes", "3").stdout)
    assert again["done"] == 0 and again["cells"] == first["cells"]
    more = json.loads(succeed(*command, "--episodes", "4").stdout)
    for cell, before in zip(more["cells"], first["cells"], strict=True):
        episodes = [c["environments"][f"gym/{LINE}"]["episodes"] for c in (cell, before)]
        assert episodes[0][:3] == episodes[1] and len(episodes[0]) == 4
    assert children() == set()


STOPS = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])


@STOPS
def test_a_signal_ends_all_processes(number: signal.Signals, code: int, exported: ExportFunction) -> None:
    """As from a terminal, Ctrl-C goes to all of them; the one that was started says one line."""
    sizes = ["--observation-dim", "3", "--action-dim", "1", "--target-return", "0", "--reward-scale", "1"]
    bundle = exported("state_m", targets=("onnxruntime",), options=sizes)
    command = [sys.executable, "-m", "lram_export", "evaluate", bundle, "--env", "gym/Pendulum-v1", "--no-reference"]
    process = subprocess.Popen(
        [*command, "--episodes", "100000", "--parallel", "2", "-q"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while len(_busy_in(process.pid)) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(_busy_in(process.pid)) >= 3
        time.sleep(1)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert process.returncode == code
        assert out == "" and len(err.splitlines()) <= 1 and "Traceback" not in err
        while _busy_in(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _busy_in(process.pid) == []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _busy_in(session: int) -> list[int]:
    """Processes of a session that are alive, without Python's own for resources."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, own = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            tracker = "resource_tracker" in (folder / "cmdline").read_text()
        except OSError:
            continue
        if int(own) == session and state != "Z" and not tracker:
            found.append(int(folder.name))
    return found


class TestWorkers:
    def test_results_come_in_the_order_of_the_tasks(self, tmp_path: Path) -> None:
        with Workers(3) as workers:
            assert list(workers.results(Squares(tmp_path / "journal"), range(10))) == [n * n for n in range(10)]
            assert len(children()) == 3
        assert children() == set()

    def test_they_serve_several_jobs_and_close_what_each_has_opened(self, tmp_path: Path) -> None:
        with Workers(2) as workers:
            for name in ("a", "b"):
                assert list(workers.results(Squares(tmp_path / name), range(4))) == [0, 1, 4, 9]
                lines = (tmp_path / name).read_text().split("\n")[:-1]
                assert len([line for line in lines if line.startswith("open")]) == 2
                assert len([line for line in lines if line.startswith("close")]) == 2
            assert {line.split()[1] for line in (tmp_path / "a").read_text().splitlines()} == {
                line.split()[1] for line in (tmp_path / "b").read_text().splitlines()
            }

    def test_no_more_processes_than_tasks_and_none_for_none(self, tmp_path: Path) -> None:
        with Workers(5) as workers:
            assert list(workers.results(Squares(tmp_path / "journal"), [])) == []
            assert children() == set()
            assert list(workers.results(Squares(tmp_path / "journal"), [3])) == [9]
            assert len(children()) == 1

    def test_an_error_comes_in_its_turn(self, tmp_path: Path) -> None:
        """Whatever was faster: 13 fails before 0 is done."""
        with Workers(2) as workers:
            results = workers.results(Squares(tmp_path / "journal"), [0, 13, 2])
            assert next(results) == 0
            with pytest.raises(LramError, match=r"^ZeroDivisionError: unlucky number$"):
                next(results)
            assert children() == set()
            assert list(workers.results(Squares(tmp_path / "journal"), [2, 3])) == [4, 9]  # and they start again

    def test_a_process_that_ends_is_told(self, tmp_path: Path) -> None:
        with Workers(2) as workers, pytest.raises(WorkerDied, match=r"^its process died \(exit code 7\)$"):
            list(workers.results(Squares(tmp_path / "journal"), [0, 1, -1, 2]))

    def test_a_job_that_cannot_be_made_ready_is_told(self, tmp_path: Path) -> None:
        with Workers(2) as workers, pytest.raises(LramError, match=r"^FileNotFoundError: "):
            list(workers.results(Squares(tmp_path / "nowhere" / "journal"), [0, 1]))

    def test_whoever_takes_no_more_results_ends_them(self, tmp_path: Path) -> None:
        with Workers(2) as workers:
            results = workers.results(Squares(tmp_path / "journal"), range(8))
            assert next(results) == 0
            results.close()
            assert children() == set()

    def test_a_script_without_a_guard_says_what_it_lacks(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(
            "from pathlib import Path\n"
            "from lram_export.rollouts.workers import Workers\n"
            "from tests.rollouts.squares import Squares\n"
            "list(Workers(2).results(Squares(Path('journal')), [1]))\n"
        )
        done = subprocess.run(
            [sys.executable, script],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
            timeout=60,
        )
        assert done.returncode == 1
        assert "belongs below: if __name__ == '__main__':" in done.stderr.splitlines()[-1]

    def test_fewer_than_one_is_refused(self) -> None:
        with pytest.raises(UsageError, match="--parallel: expected 1 process or more, got 0"):
            Workers(0)

    def test_threads_are_shared(self) -> None:
        assert [share(4, n) for n in (1, 2, 3, 8)] == [4, 2, 1, 1]


def test_an_environment_that_cannot_be_handed_over_is_refused(line: Path) -> None:
    gymnasium.register("LramTestLocked-v0", entry_point=LineEnv, kwargs={"nan_at": threading.Lock()})
    try:
        with pytest.raises(UsageError, match="--parallel: gym/LramTestLocked-v0 cannot be handed to another process"):
            evaluate(Bundle.open(line), options_of("Locked", parallel=2), None)
    finally:
        gymnasium.registry.pop("LramTestLocked-v0")
