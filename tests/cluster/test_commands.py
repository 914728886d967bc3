"""Commands on a cluster give what they give alone, and go on where they were ended."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lram_export.cluster.connection import Connection
from lram_export.rollouts import episode_folder
from tests.cluster.conftest import LINE
from tests.conftest import GOLDEN, fail, succeed
from tests.rollouts.line import OPTIONS

CHECKPOINT = GOLDEN / "state_m" / "model.zip"


class TestRecord:
    def command(self, bundle: Path, output: Path, environment: str = LINE) -> list[str | Path]:
        command = ["record", bundle, "--env", f"gym/{environment}", "--seed", "1", "--target", "onnxruntime"]
        return [*command, "-o", output, "--episodes"]

    def test_the_same_file(self, cluster: Connection, line: Path, tmp_path: Path) -> None:
        succeed(*self.command(line, tmp_path / "alone.npz"), "2")
        succeed(*self.command(line, tmp_path / "cluster.npz"), "2", "--ray")
        with np.load(tmp_path / "alone.npz") as alone, np.load(tmp_path / "cluster.npz") as found:
            assert set(alone.files) == set(found.files)
            assert all(np.array_equal(alone[name], found[name]) for name in alone.files)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.npz", "cluster.npz"]

    def test_episodes_of_before_are_kept_of_another_policy_refused(
        self, cluster: Connection, line: Path, tmp_path: Path
    ) -> None:
        """Seed 2 kills its process: the recording fails, and what was played stays."""
        output = tmp_path / "steps.npz"
        command = self.command(line, output, "LramClusterDies-v0")
        code, text = fail(*command, "3", "--ray")
        assert code == 1 and "its worker died 3 times" in text and not output.exists()
        kept = tmp_path / f"steps.npz{episode_folder.SUFFIX}"
        assert "gym_LramClusterDies-v0.1.npz" in {path.name for path in kept.iterdir()}
        done = succeed(*command, "1", "--ray")
        assert "played before" in done.stderr and "nothing was left to do" in done.stderr
        assert output.exists() and not kept.exists()
        kept.mkdir()
        (kept / episode_folder.MARKER).write_text("{}")
        output.unlink()
        code, text = fail(*command, "1", "--ray")
        assert code == 2 and "holds episodes of another recording" in text


@pytest.mark.slow
def test_verify_gives_the_same(cluster: Connection, line: Path) -> None:
    command = ["verify", line, "--checkpoint", CHECKPOINT, "--steps", "70", "--json"]
    assert json.loads(succeed(*command, "--ray").stdout) == json.loads(succeed(*command).stdout)
    code, text = fail("verify", line, "--ray")
    assert code == 2 and "only with --checkpoint" in text


def without_times(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of a sweep, but for how long a step took."""
    return [{k: v for k, v in cell.items() if k != "speed"} for cell in document["cells"]]


@pytest.mark.slow
def test_a_sweep_gives_the_same_and_goes_on(cluster: Connection, tmp_path: Path) -> None:
    command = ["sweep", CHECKPOINT, *OPTIONS, "--targets", "onnxruntime,native", "--precisions", "fp32,int8"]
    command += ["--steps", "10", "--env", f"gym/{LINE}", "--episodes", "2", "--json", "-o"]
    alone = json.loads(succeed(*command, tmp_path / "alone").stdout)
    found = json.loads(succeed(*command, tmp_path / "cluster", "--ray").stdout)
    assert without_times(found) == without_times(alone) and found["failed"] == 0
    again = json.loads(succeed(*command, tmp_path / "cluster", "--ray").stdout)
    assert again["done"] == 0 and again["cells"] == found["cells"]
    assert not list((tmp_path / "cluster" / "results").glob("*.jsonl"))


@pytest.mark.slow
def test_sweeps_of_two_checkpoints_go_on_after_their_driver_was_killed(tmp_path: Path) -> None:
    """3 precisions x 3 targets each; every one has a command and a folder of its own, and a cluster of its own."""
    sizes = ["--observation-dim", "3", "--action-dim", "1", "--target-return", "0", "--reward-scale", "1"]
    for name in ("state_m", "state_ms"):
        command = ["sweep", GOLDEN / name / "model.zip", *sizes, "--targets", "onnxruntime,openvino,native"]
        command += ["--steps", "10", "--env", "gym/Pendulum-v1", "--episodes", "2", "--json", "-q", "-o"]
        folder = tmp_path / name
        with subprocess.Popen(
            [sys.executable, "-m", "lram_export", *command, folder, "--ray"], stdout=subprocess.DEVNULL
        ) as driver:
            deadline = time.monotonic() + 500
            while len(list(folder.glob("results/*.json"))) < 4 and driver.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert driver.poll() is None, "it had ended before it was killed"
            driver.kill()
        again = subprocess.run(
            [sys.executable, "-m", "lram_export", *command, folder, "--ray"], capture_output=True, text=True, check=True
        )
        found = json.loads(again.stdout)
        assert found["kept"] >= 3 and found["done"] >= 3 and found["failed"] == 0
        alone = json.loads(succeed(*command, tmp_path / f"{name}-alone").stdout)
        assert without_times(found) == without_times(alone)
        assert [cell["status"] for cell in found["cells"]] == ["done"] * 9
