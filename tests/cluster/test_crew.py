"""A crew of a cluster: the same results in the same order, whatever dies; what it cannot do is said before."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from lram_export.bundle.bundle import Bundle
from lram_export.cluster.connection import Connection, find_cluster, parse_address
from lram_export.cluster.crew import RayCrew
from lram_export.cluster.demand import Demand, demand
from lram_export.cluster.nodes import NodeFacts, facts_here, objection, other_processor
from lram_export.errors import LramError, UsageError
from lram_export.rollouts.evaluation import EvaluationOptions, ReferenceSource, evaluate, reference_policy
from lram_export.rollouts.workers import WorkerDied
from tests.cluster.conftest import LINE
from tests.cluster.jobs import Words
from tests.conftest import GOLDEN, ExportFunction, fail, succeed
from tests.rollouts.test_parallel import outcome

SMALL = Demand(1, 100_000_000)


@pytest.fixture
def words(tmp_path: Path) -> Words:
    (tmp_path / "words.txt").write_text("zero one two three four five six seven")
    return Words(tmp_path / "words.txt", tmp_path)


class TestCrew:
    def test_results_come_in_the_order_of_the_tasks(self, cluster: Connection, words: Words) -> None:
        known: dict[int, Any] = {}
        with RayCrew(cluster, SMALL) as crew:
            found = list(crew.results(words, [-4, 1, 2, 301, 102, 3], known.__setitem__))
            assert found == ["four", "one", "two", "five", "six", "three"]
            assert known == dict(enumerate(found)) and next(iter(known)) != 0
            assert sum(crew.report.nodes.values()) == 6 and crew.report.retried == 0
        assert list(crew.results(words, [])) == []

    def test_ray_prints_nothing_into_what_a_command_prints(
        self, cluster: Connection, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from ray._private import worker

        worker.print_to_stdstream({"lines": ["a node is dead"], "pid": "raylet", "is_err": False}, ignore_prefix=False)
        assert capsys.readouterr() == ("", "")

    def test_files_travel_and_are_removed_and_what_was_opened_is_closed(
        self, cluster: Connection, words: Words, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LRAM_TEST_WORD", "there")
        with RayCrew(cluster, SMALL) as crew:
            assert list(crew.results(words, range(4))) == [f"{word} there" for word in ("zero", "one", "two", "three")]
            assert list(crew.results(words, [5])) == ["five there"]
        opened = [line.split() for line in (words.folder / "opened").read_text().splitlines()]
        assert all(path != str(words.file) and not Path(path).exists() for _, path in opened)
        closed = (words.folder / "closed").read_text().split()
        assert sorted(closed) == sorted(pid for pid, _ in opened)

    def test_a_worker_that_dies_is_replaced_and_its_task_done_again(self, cluster: Connection, words: Words) -> None:
        with RayCrew(cluster, SMALL) as crew:
            assert list(crew.results(words, [1, -3, 2, 3])) == ["one", "five", "two", "three"]
            assert crew.report.retried == 1 and len(crew.report.lost) == 1
            assert list(crew.results(words, [6])) == ["six"]

    @pytest.mark.slow
    def test_a_task_that_always_kills_is_given_up_in_its_turn(self, cluster: Connection, words: Words) -> None:
        with RayCrew(cluster, SMALL) as crew:
            results = crew.results(words, [1, -2, 2])
            assert next(results) == "one"
            with pytest.raises(WorkerDied, match=r"^its worker died 3 times, last on node .+ \(.+\)$"):
                next(results)

    def test_what_stands_for_a_lost_task_lets_the_rest_go_on(self, cluster: Connection, words: Words) -> None:
        job = Words(words.file, words.folder, stands_in=True)
        with RayCrew(cluster, SMALL) as crew:
            found = list(crew.results(job, [1, -2, -1, 2]))
        assert found[0] == "one" and found[3] == "two"
        assert found[1].startswith("lost: its worker died 3 times")
        assert found[2] == f"lost: {words.file}: says nothing"

    def test_a_node_that_cannot_do_it_is_named_before_anything_is_done(self, cluster: Connection, words: Words) -> None:
        job = Words(words.file, words.folder, why_unfit="target 'words': needs a tongue")
        with (
            RayCrew(cluster, SMALL) as crew,
            pytest.raises(UsageError, match=r"--ray: node [\d.]+: target 'words': ne"),
        ):
            list(crew.results(job, [1]))
        assert not (words.folder / "opened").exists()

    def test_a_node_with_another_version_is_named(
        self, cluster: Connection, words: Words, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The node's own environment says it: the variable is not one that travels."""
        monkeypatch.setenv("LRAM_CLUSTER_TEST_VERSION", "2")
        monkeypatch.setattr("lram_export.cluster.crew._NOT_SENT", ("LRAM_CLUSTER_TEST_VERSION",))
        with RayCrew(cluster, SMALL) as crew, pytest.raises(UsageError, match=r"words is 1 there and 2 here; install"):
            list(crew.results(words, [1]))

    def test_no_room_is_said_with_what_there_is(self, cluster: Connection, words: Words) -> None:
        with (
            RayCrew(cluster, Demand(1000, 1)) as crew,
            pytest.raises(UsageError, match=r"no node has room for a worker, which needs 1,000 CPUs .* has \d+ CPU"),
        ):
            list(crew.results(words, [1]))


class TestEvaluation:
    def options(self, *names: str) -> EvaluationOptions:
        return EvaluationOptions(names, ("onnxruntime",), episodes=4)

    def test_the_same_as_alone_to_the_bit(self, cluster: Connection, line: Path) -> None:
        bundle, options = Bundle.open(line), self.options(f"gym/{LINE}", "gym/LramClusterBreaks-v0")
        alone = evaluate(bundle, options, reference_policy(bundle, None))
        with RayCrew(cluster, demand(bundle, ("onnxruntime",), 1, True)) as crew:
            assert outcome(evaluate(bundle, options, ReferenceSource(), workers=crew)) == outcome(alone)
        assert alone.failure is not None

    @pytest.mark.slow
    def test_an_environment_that_kills_is_reported_and_the_rest_goes_on(self, cluster: Connection, line: Path) -> None:
        bundle, options = Bundle.open(line), self.options("gym/LramClusterDies-v0", f"gym/{LINE}")
        with RayCrew(cluster, SMALL) as crew:
            found = evaluate(bundle, options, None, workers=crew)
        assert [len(r.episodes) for r in found.results] == [2, 4]
        assert (
            found.failure is not None
            and "gym/LramClusterDies-v0: failed in the episode of seed 2: its w" in found.failure
        )

    def test_the_command_line_and_results_that_are_kept(self, cluster: Connection, line: Path, tmp_path: Path) -> None:
        kept = tmp_path / "results.jsonl"
        command = ["evaluate", line, "--env", f"gym/{LINE}", "--checkpoint", GOLDEN / "state_m" / "model.zip"]
        command += ["--target", "onnxruntime", "--json", "--episodes"]
        alone = json.loads(succeed(*command, "3").stdout)
        first = json.loads(succeed(*command, "2", "--results", kept, "--ray").stdout)
        assert len(kept.read_text().splitlines()) == 3
        with kept.open("a") as file:
            file.write('{"environment": "gym/L')  # its writer was killed
        again = succeed(*command, "3", "--results", kept, "--ray")
        assert "2 seeds played before" in again.stderr
        assert sum(json.loads(again.stdout)["cluster"]["done"].values()) == 1 + 1  # the check, and a seed
        second = json.loads(again.stdout)
        for document in (alone, second):
            document.pop("cluster", None)
            for result in document["results"]:
                del result["steps_per_second"], result["policy_share"]
        assert second == alone and first["cluster"]["tasks_done_again"] == 0
        code, text = fail(*command, "3", "--results", kept, "--no-reward")
        assert code == 2 and "holds results with other options (rewards: True, now False)" in text

    def test_several_processes_and_a_cluster_contradict(self, line: Path) -> None:
        code, text = fail("evaluate", line, "--env", f"gym/{LINE}", "--parallel", "2", "--ray")
        assert code == 2 and "--parallel: not with --ray" in text

    def test_what_is_no_address_says_where_to_write_the_option(self, line: Path) -> None:
        code, text = fail("evaluate", "--ray", line, line, "--env", f"gym/{LINE}")
        assert code == 2 and "--ray: expected HOST:PORT, got" in text and "write --ray last" in text


class TestAddresses:
    def test_nobody_there_is_said_within_seconds(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(LramError, match=rf"--ray 127.0.0.1:{port}: no cluster is there \(Connection refused\)"):
            find_cluster(f"127.0.0.1:{port}")
        assert time.monotonic() - began < 4

    def test_somebody_else_there_is_said_within_seconds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lram_export.cluster.connection.SECONDS_TO_ANSWER", 3.0)
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            with pytest.raises(LramError, match="something answers there, but it is no Ray cluster"):
                find_cluster(f"127.0.0.1:{other.getsockname()[1]}")

    @pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:0", "host:70000", "ray://host:10001", "a b:1"])
    def test_what_is_no_address(self, text: str) -> None:
        with pytest.raises(UsageError, match=r"--ray: expected HOST:PORT, got"):
            parse_address(text)

    def test_addresses(self) -> None:
        assert parse_address("10.0.0.1:6379") == ("10.0.0.1", 6379)
        assert parse_address("[::1]:6379") == ("::1", 6379)


class TestNodes:
    HERE = NodeFacts({"Python": "3.11.7", "lram-export": "0.1.0", "metaworld": "3.1.1"}, None, "A", ("avx2",))

    def test_the_same_is_fine(self) -> None:
        assert objection(self.HERE, NodeFacts({**self.HERE.versions, "more": "1"})) is None

    def test_another_version_is_named(self) -> None:
        there = NodeFacts({**self.HERE.versions, "lram-export": "0.0.9"})
        assert objection(self.HERE, there) == (
            "lram-export is 0.0.9 there and 0.1.0 here; install the same, as results depend on it"
        )

    def test_what_is_missing_is_named(self) -> None:
        there = NodeFacts({"Python": "3.11.7", "lram-export": "0.1.0"})
        assert objection(self.HERE, there) == "metaworld is not installed there; 3.1.1 is here"

    def test_what_the_node_cannot_do_is_said(self) -> None:
        assert objection(self.HERE, NodeFacts(self.HERE.versions, "target 'tvm': no")) == "target 'tvm': no"

    def test_another_processor_is_a_note(self) -> None:
        there = NodeFacts(self.HERE.versions, None, "B", ("avx2", "avx512f"))
        assert other_processor(self.HERE, self.HERE) is None
        assert other_processor(self.HERE, there) == "another processor (B), whose results may differ in the last bits"

    def test_here_names_what_everything_depends_on(self) -> None:
        assert set(facts_here({"numpy": "2"}).versions) == {"Python", "Ray", "lram-export", "numpy"}


@contextmanager
def long_evaluation(exported: ExportFunction, kept: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that plays for hours on a cluster of its own, and has kept some results."""
    sizes = ["--observation-dim", "3", "--action-dim", "1", "--target-return", "0", "--reward-scale", "1"]
    bundle = exported("state_m", targets=("onnxruntime",), options=sizes)
    command = [sys.executable, "-m", "lram_export", "evaluate", bundle, "--env", "gym/Pendulum-v1", "--no-reference"]
    process = subprocess.Popen(
        [*command, "--episodes", "1000000", "--results", kept, "-q", "--ray"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (kept.exists() and len(kept.read_text().splitlines()) > 20):
            time.sleep(0.2)
        yield process
        assert len(kept.read_text().splitlines()) > 20
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and _of_cluster(process.pid):
            time.sleep(0.2)
        assert _of_cluster(process.pid) == {}
    finally:
        process.kill()
        for left in _of_cluster(process.pid):
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
@pytest.mark.slow
def test_a_signal_ends_the_cluster_and_keeps_results(
    number: signal.Signals, code: int, exported: ExportFunction, tmp_path: Path
) -> None:
    with long_evaluation(exported, tmp_path / "results.jsonl") as process:
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, err = process.communicate(timeout=30)
        assert process.returncode == code and "Traceback" not in err and len(err.splitlines()) <= 1


@pytest.mark.slow
def test_a_command_whose_cluster_dies_says_so_and_keeps_results(exported: ExportFunction, tmp_path: Path) -> None:
    """Ray would end its process, without an exception that could be caught."""
    with long_evaluation(exported, tmp_path / "results.jsonl") as process:
        (raylet,) = (pid for pid, command in _of_cluster(process.pid).items() if "/raylet/raylet\0" in command)
        os.kill(raylet, signal.SIGKILL)
        _, err = process.communicate(timeout=90)
        assert process.returncode == 1 and "Traceback" not in err
        assert "error: --ray: the cluster of this machine is gone: its raylet has ended" in err.splitlines()


def _of_cluster(driver: int) -> dict[int, str]:
    """Processes of the cluster that a driver started, and their commands: its session's name ends with the driver's
    id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"_{driver}/" in command and "/.ray." in command:
            found[int(folder.name)] = command
    return found
