"""A sweep fills a grid: one bundle per precision, what is done is not done again, a failure costs its cell only."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from lram_export import Bundle, LramError
from lram_export.benchmark.bench import BenchOptions, BenchReport, BenchResult, Contender, bench_together
from lram_export.checkpoints.loading import load_checkpoint
from lram_export.episodes.batches import batch_episodes, runtime_outputs, split_episodes
from lram_export.episodes.steps import random_steps, save_steps
from lram_export.errors import UsageError
from lram_export.exporters import EXPORTERS
from lram_export.lowering import lower
from lram_export.quantization.episode_runs import outputs
from lram_export.spec.parity import TOLERANCES
from lram_export.spec.tasks import resolve_task
from lram_export.sweep.folder import Cell, Outcome, check_sweep, open_sweep
from lram_export.sweep.grid import SweepOptions, impossible, installed_targets
from lram_export.system.load import MachineLoad
from tests.conftest import GOLDEN, cli, fail, load_golden, succeed

STATE_M = GOLDEN / "state_m" / "model.zip"
ENVIRONMENT = "LramTestSweep-v0"
TASK = ["--observation-dim", "3", "--action-dim", "2", "--target-return", "10", "--reward-scale", "5"]
TARGETS, PRECISIONS = ("pytorch", "native"), ("fp32", "fp16")
GRID = ["--targets", ",".join(TARGETS), "--precisions", ",".join(PRECISIONS), "--steps", "10", "--threads", "1"]
PLAYED = ["--env", f"gym/{ENVIRONMENT}", "--episodes", "2"]
NOT_POSSIBLE = ("fp16", "native")


class LineEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A point that the first action value moves; succeeds for even seeds."""

    observation_space = gymnasium.spaces.Box(-10, 10, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.even, self.count = seed is not None and seed % 2 == 0, 0
        self.position = self.np_random.normal(size=3).astype(np.float32)
        return self.position.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.count += 1
        self.position[0] += 0.1 * action[0]
        return self.position.copy(), 1.0, False, self.count == 4, {"is_success": self.even}


@pytest.fixture(autouse=True, scope="module")
def environment() -> Iterator[None]:
    gymnasium.register(ENVIRONMENT, entry_point=LineEnv)
    yield
    gymnasium.registry.pop(ENVIRONMENT)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a whole grid, and what was printed. Copy it before anything is changed."""
    folder = tmp_path_factory.mktemp("sweeps") / "sweep"
    return folder, run(folder, *PLAYED)


@pytest.fixture
def copy(swept: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(swept[0], tmp_path / "sweep"))


def arguments(folder: Path, *options: str | Path) -> list[str | Path]:
    """The command with the task and the grid, where the options do not say otherwise."""
    usual = [*TASK, *GRID]
    pairs = [pair for pair in zip(usual[::2], usual[1::2], strict=True) if pair[0] not in options]
    return ["sweep", STATE_M, "-o", folder, *(part for pair in pairs for part in pair), *options]


def run(folder: Path, *options: str | Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(succeed(*arguments(folder, *options), "--json").stdout)
    return document


def cells(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(c["precision"], c["target"]): c for c in document["cells"]}


def inodes(folder: Path) -> dict[str, tuple[int, int]]:
    """Whatever is written anew gets another inode or time."""
    found = {p: p.stat() for p in folder.rglob("*") if p.is_file() and p.name != "sweep.json"}
    return {str(p.relative_to(folder)): (s.st_ino, s.st_mtime_ns) for p, s in found.items()}


def poison(monkeypatch: pytest.MonkeyPatch, target: str, error: Exception) -> None:
    """The exporter of a target fails from now on."""

    def refuse(policy: object, directory: Path, progress: object) -> None:
        (directory / "half").write_text("written")
        raise error

    monkeypatch.setattr(f"{EXPORTERS[target].module}.export", refuse)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """In place of the benchmark, for tests of everything else; tells what it was asked to time."""
    asked: list[list[str]] = []

    def bench_together(contenders: Sequence[Contender], *_: object) -> BenchReport:
        asked.append([c.name for c in contenders])
        numbers = {f.name: 1.0 for f in dataclasses.fields(BenchResult)}
        results = [
            BenchResult(**{**numbers, "target": c.target, "parity": None})  # type: ignore[arg-type]
            for c in contenders
        ]
        return BenchReport(1e9, (1e9, 1e9), 1e9, (1e9, 1e9), tuple(results), MachineLoad(1, None, None, None))

    monkeypatch.setattr("lram_export.sweep.steps.bench_together", bench_together)
    return asked


class TestGrid:
    def test_every_possible_cell_has_every_number(self, swept: tuple[Path, dict[str, Any]]) -> None:
        found = cells(swept[1])
        assert list(found) == [("fp32", "pytorch"), ("fp32", "native"), ("fp16", "pytorch"), NOT_POSSIBLE]
        for name, cell in found.items():
            if name == NOT_POSSIBLE:
                continue
            assert cell["status"] == "done" and cell["failures"] == {}
            assert cell["parity"]["passed"] and cell["size"] > 0
            assert 0 < cell["speed"]["p50_ms"] <= cell["speed"]["p99_ms"] and cell["speed"]["steps"] == 10
            assert cell["speed"]["floor_ratio"] > 0 and cell["speed"]["bandwidth"] > 0
            assert cell["disagreement"]["steps"] == 64
            played = cell["environments"][f"gym/{ENVIRONMENT}"]
            assert [e["seed"] for e in played["episodes"]] == [0, 1]
            assert played["success"]["value"] == 0.5 and played["return"]["value"] == 4.0

    def test_all_cells_are_timed_in_one_run(self, swept: tuple[Path, dict[str, Any]]) -> None:
        assert len({c["speed"]["bandwidth"] for c in swept[1]["cells"] if c["speed"]}) == 1

    def test_float32_cells_act_like_the_reference_and_half_precision_nearly(
        self, swept: tuple[Path, dict[str, Any]]
    ) -> None:
        found = cells(swept[1])
        for target in ("pytorch", "native"):
            assert found["fp32", target]["disagreement"]["max_logit_error"] <= TOLERANCES["fp32"].logit
        half = found["fp16", "pytorch"]["disagreement"]
        assert found["fp32", "pytorch"]["disagreement"]["relative_error"] < half["relative_error"] < 0.05

    def test_an_impossible_cell_says_why(self, swept: tuple[Path, dict[str, Any]]) -> None:
        cell = cells(swept[1])[NOT_POSSIBLE]
        assert cell["status"] == "not possible" and "native runs fp32, int8" in cell["impossible"]
        assert cell["speed"] is None and cell["failures"] == {}

    def test_one_verified_bundle_per_precision(self, swept: tuple[Path, dict[str, Any]]) -> None:
        assert sorted(p.name for p in swept[0].glob("*")) == ["fp16.lram", "fp32.lram", "results", "sweep.json"]
        assert Bundle.open(swept[0] / "fp32.lram").targets == ("pytorch", "native")
        assert Bundle.open(swept[0] / "fp16.lram").targets == ("pytorch",)

    def test_the_size_counts_codes_that_lie_in_the_bundle(self, swept: tuple[Path, dict[str, Any]]) -> None:
        found, bundle = cells(swept[1]), Bundle.open(swept[0] / "fp16.lram")
        half = found["fp16", "pytorch"]["size"]
        assert bundle.manifest.quantization is not None
        assert half == bundle.artifact("pytorch").size + bundle.manifest.quantization.file.size
        assert 0.4 < half / found["fp32", "pytorch"]["size"] < 0.9

    def test_the_table_names_every_cell(self, copy: Path) -> None:
        lines = succeed(*arguments(copy, *PLAYED), "-q").stdout.splitlines()
        table = [line.replace("│", " ").split() for line in lines if "pytorch" in line or "native" in line]
        assert [row[:2] for row in table[:4]] == [
            [c.precision, c.target] for c in SweepOptions(TARGETS, PRECISIONS).cells
        ]
        assert table[3][2:4] == ["not", "possible"]
        assert any("50% (9 to 91)" in line for line in lines)
        assert any("not possible: fp16 native: native runs" in line for line in lines)

    def test_w8a8_needs_a_calibration(self) -> None:
        options = SweepOptions(("pytorch",), ("fp32", "w8a8"))
        assert impossible(Cell("w8a8", "pytorch"), options) == "w8a8 needs --calibration"
        assert impossible(Cell("fp32", "pytorch"), options) is None

    def test_by_default_all_installed_targets_but_the_reference(self) -> None:
        assert "onnxruntime" in installed_targets() and "pytorch" not in installed_targets()


class TestResume:
    def test_nothing_is_done_twice(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for target in ("pytorch", "native"):
            poison(monkeypatch, target, RuntimeError("called again"))
        before = inodes(copy)
        document = run(copy, *PLAYED)
        assert inodes(copy) == before
        assert (document["done"], document["kept"]) == (0, 12)  # 3 cells; export, compare, bench, play

    def test_what_options_change_is_done_again_and_nothing_else(self, copy: Path) -> None:
        before = inodes(copy)
        document = run(copy, "--env", f"gym/{ENVIRONMENT}", "--episodes", "3")
        assert (document["done"], document["kept"]) == (3, 9)
        assert {n for n, stat in inodes(copy).items() if stat != before[n]} == {
            f"results/{c}.json" for c in ("fp32-pytorch", "fp32-native", "fp16-pytorch")
        }

    def test_times_are_measured_all_again_or_not_at_all(self, copy: Path, timed: list[list[str]]) -> None:
        path = copy / "results" / "fp16-pytorch.json"
        document = json.loads(path.read_text())
        del document["steps"]["bench"]
        path.write_text(json.dumps(document))
        found = run(copy, *PLAYED)
        assert (found["done"], found["kept"]) == (3, 9)
        assert timed == [["fp32 pytorch", "fp32 native", "fp16 pytorch"]]
        run(copy, *PLAYED)
        assert len(timed) == 1

    def test_a_damaged_bundle_is_exported_again(self, copy: Path, timed: list[list[str]]) -> None:
        (copy / "fp16.lram" / "pytorch" / "model.safetensors").write_bytes(b"")
        (copy / "results" / "fp32-native.json").write_text("{")
        before = inodes(copy)
        assert run(copy)["failed"] == 0 and len(timed) == 1
        after = inodes(copy)
        assert after["fp16.lram/manifest.json"] != before["fp16.lram/manifest.json"]
        assert Bundle.open(copy / "fp16.lram").check_files() is None

    def test_another_checkpoint_or_task_is_refused(self, copy: Path) -> None:
        before = inodes(copy)
        other = [a if a != STATE_M else GOLDEN / "state_ms" / "model.zip" for a in arguments(copy)]
        code, line = fail(*other)
        assert code == 2 and "is a sweep of another checkpoint" in line and "--force" in line
        code, line = fail(*arguments(copy, "--target-return", "11"))
        assert code == 2 and "is a sweep of another task" in line
        assert inodes(copy) == before

    def test_force_starts_anew(self, copy: Path, timed: list[list[str]]) -> None:
        (copy / "results" / "of-before.json").write_text("{}")
        document = run(copy, "--targets", "native", "--force")
        assert document["kept"] == 0 and document["done"] == 3 and timed == [["fp32 native"]]
        assert sorted(p.name for p in copy.rglob("*.json") if p.parent.name == "results") == ["fp32-native.json"]

    def test_what_a_killed_sweep_left_is_removed(self, copy: Path) -> None:
        (copy / ".fp32.lram.abcdefgh.lram-tmp").mkdir()
        run(copy)
        assert not list(copy.glob(".*"))

    def test_two_sweeps_in_one_folder_are_refused(self, copy: Path) -> None:
        identity = json.loads((copy / "sweep.json").read_text())
        with open_sweep(copy, identity, force=False):
            code, line = fail(*arguments(copy))
        assert code == 2 and "another sweep is at work" in line


class TestFailures:
    def test_a_failing_exporter_costs_its_cell_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: list[list[str]]
    ) -> None:
        folder = tmp_path / "sweep"
        with monkeypatch.context() as patch:
            poison(patch, "native", RuntimeError("out of\ntiles"))
            result = cli(*arguments(folder, "--precisions", "fp32", "--json"))
        assert result.exit_code == 1 and "Traceback" not in result.output
        assert result.stderr.splitlines()[-1].startswith("error: 1 of 2 cells failed")
        found = cells(json.loads(result.stdout))
        assert found["fp32", "native"]["failures"] == {"export": "RuntimeError: out of tiles"}
        assert found["fp32", "pytorch"]["status"] == "done" and found["fp32", "pytorch"]["speed"]
        assert not (folder / "fp32.lram" / "native").exists()
        again = run(folder, "--precisions", "fp32")  # the failed cell is tried again
        assert again["failed"] == 0 and cells(again)["fp32", "native"]["speed"]
        assert timed == [["fp32 pytorch"], ["fp32 pytorch", "fp32 native"]]

    def test_a_target_that_is_wrong_is_not_timed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "lram_export.spec.parity.TOLERANCES", {**TOLERANCES, "fp32": TOLERANCES["fp32"].__class__(0, 0)}
        )
        result = cli(*arguments(tmp_path / "sweep", "--targets", "native"))
        assert result.exit_code == 1
        assert "failed: fp32 native: export: native: not what the reference model does" in result.stdout
        assert not (tmp_path / "sweep" / "fp32.lram").exists()

    def test_a_model_that_a_target_cannot_run_is_not_possible(
        self, copy: Path, monkeypatch: pytest.MonkeyPatch, timed: list[list[str]]
    ) -> None:
        poison(monkeypatch, "native", UsageError("native: head width: expected a multiple of 16, got 12"))
        options = ("--precisions", "int8")
        document = run(copy, *options)
        assert cells(document)["int8", "native"]["status"] == "not possible"
        assert "multiple of 16" in cells(document)["int8", "native"]["impossible"]
        assert run(copy, *options)["done"] == 0 and timed == [["int8 pytorch"]]

    def test_a_step_that_fails_leaves_the_cells_other_numbers(
        self, copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def explode(*_: object) -> None:
            raise RuntimeError("exploded")

        monkeypatch.setattr(LineEnv, "step", explode)
        result = cli(*arguments(copy, "--env", f"gym/{ENVIRONMENT}", "--episodes", "1", "--json"))
        assert result.exit_code == 1
        for name, cell in cells(json.loads(result.stdout)).items():
            if name != NOT_POSSIBLE:
                assert "failed in step: RuntimeError: exploded" in cell["failures"][f"evaluate gym/{ENVIRONMENT}"]
                assert cell["speed"] and cell["disagreement"] and not cell["environments"]

    def test_a_process_that_fails_while_timing(self, copy: Path) -> None:
        """The benchmark goes on with the others."""
        whole, broken = Bundle.open(copy / "fp32.lram"), Bundle.open(copy / "fp16.lram")
        (copy / "fp16.lram" / "pytorch" / "model.safetensors").unlink()
        told: dict[str, str] = {}
        contenders = [Contender("broken", broken, "pytorch"), Contender("whole", whole, "pytorch")]
        options = BenchOptions((), threads=1, steps=10)
        report = bench_together(contenders, options, failed=lambda c, error: told.update({c.name: str(error)}))
        assert list(told) == ["broken"] and "model.safetensors: missing" in told["broken"]
        assert [(r.target, r.precision) for r in report.results] == [("pytorch", "fp32")]
        with pytest.raises(LramError, match="missing"):
            bench_together(contenders, options)


class TestWrongUse:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                ("--targets", "tpu"),
                "--targets: expected some of pytorch, onnxruntime, openvino, native, tensorrt, tvm, got 'tpu'",
            ),
            (("--targets", ","), "--targets: expected one or more different names, got ''"),
            (("--targets", "native,native"), "--targets: expected one or more different names, got 'native,native'"),
            (
                ("--precisions", "int3"),
                "--precisions: expected some of fp32, fp16, bf16, int8, int8g, int4, w8a8, got 'int3'",
            ),
            (("--targets", "native", "--precisions", "fp16"), "no cell of this grid is possible: native runs fp32"),
            (("--precisions", "w8a8"), "no cell of this grid is possible: w8a8 needs --calibration"),
            (("--recording", "no.npz"), "Invalid value for '--recording': File 'no.npz' does not exist"),
            (("--calibration", "no.npz"), "Invalid value for '--calibration': File 'no.npz' does not exist"),
            (("--calibration", str(STATE_M)), "--calibration: there is nothing to calibrate at fp32, fp16"),
            (("--keep-fp32", "gates"), "--keep-fp32: 'gates' fits no matrix; this model has: blocks.0.proj_up"),
            (("--env", "nowhere/x"), "--env: unknown environment 'nowhere/x'"),
            (("--env", "gym/Pendulum-v1"), "--env gym/Pendulum-v1: its actions are"),
            (("--observation-dim", "205"), "the task has 205, the model takes at most 204"),
            (("--steps", "9"), "Invalid value for '--steps'"),
        ],
    )
    def test_wrong_options_leave_no_folder(self, options: tuple[str, ...], message: str, tmp_path: Path) -> None:
        code, line = fail(*arguments(tmp_path / "sweep", *options))
        assert (code, message in line) == (2, True), line
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_of_somebody_else_is_never_touched(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        for force in ([], ["--force"]):
            code, line = fail(*arguments(tmp_path, *force))
            assert code == 2 and "sweep.json" in line
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]

    def test_a_file_and_a_parent_that_does_not_exist(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        assert "is a file" in fail(*arguments(tmp_path / "file"))[1]
        assert "does not exist; create it first" in fail(*arguments(tmp_path / "no" / "sweep"))[1]

    def test_a_recording_that_does_not_fit(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "steps.npz", is_first=np.ones((1, 1), np.float32))
        code, line = fail(*arguments(tmp_path / "sweep", "--recording", tmp_path / "steps.npz"))
        assert code == 1 and "steps.npz: observation: missing" in line
        assert not (tmp_path / "sweep").exists()

    def test_a_marker_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "sweep.json").write_text("[]")
        with pytest.raises(LramError, match="add --force"), open_sweep(tmp_path, {"task": {}}, force=False):
            pass
        check_sweep(tmp_path, force=True)


class TestRecordings:
    def test_disagreement_is_over_the_recorded_steps(self, copy: Path, tmp_path: Path, timed: list[list[str]]) -> None:
        task = resolve_task(observation_dim=3, action_dim=2, target_return=10, reward_scale=5)
        spec = Bundle.open(copy / "fp32.lram").manifest.spec
        save_steps(random_steps(spec, task, 20, seed=5), tmp_path / "steps.npz")
        options = ("--targets", "native", "--recording", tmp_path / "steps.npz")
        (cell, _) = run(copy, *options)["cells"]
        assert cell["disagreement"]["steps"] == 20
        assert run(copy, *options)["done"] == 0 and len(timed) == 1

    @pytest.mark.parametrize("rows", [1, 3])
    def test_a_runtime_runs_episodes_like_the_step_graph(self, rows: int) -> None:
        """However many rows the runtime has, and in the same order."""
        golden = load_golden("state_ms")
        task = resolve_task("metaworld/reach-v2")
        policy = lower(load_checkpoint(golden.checkpoint), task, name="policy", batch_size=rows)
        episodes = split_episodes([random_steps(policy.spec, task, n, seed=n, episode=3) for n in (7, 4)])
        assert len({len(e) for e in episodes}) > 1
        expected = outputs(policy.graph, batch_episodes(episodes))
        actual = runtime_outputs(policy.reference(), episodes)
        assert len(actual["action"]) == sum(len(e) for e in episodes)
        np.testing.assert_array_equal(actual["action"], expected["action"])
        np.testing.assert_allclose(actual["action_logits"], expected["action_logits"], atol=1e-4)


class TestFolder:
    def test_a_result_counts_only_as_long_as_it_is_made_with_the_same(self, tmp_path: Path) -> None:
        cell = Cell("int8", "native")
        with open_sweep(tmp_path / "sweep", {"task": {"name": "x"}}, force=False) as folder:
            folder.keep(cell, "export", Outcome({"steps": (1, 2)}, {"size": 3}))
            assert folder.done(cell, "export", {"steps": [1, 2]}) == {"size": 3}
            assert folder.done(cell, "export", {"steps": [1]}) is None
            folder.keep(cell, "bench", Outcome({}, failure="too slow"))
            assert folder.done(cell, "bench", {}) is None
            assert folder.done(cell, "export", {"steps": [1, 2]}) == {"size": 3}
        with open_sweep(tmp_path / "sweep", {"task": {"name": "x"}}, force=False) as folder:
            assert folder.done(cell, "export", {"steps": [1, 2]}) == {"size": 3}

    def test_an_interrupt_leaves_the_results_so_far(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        before = inodes(copy)
        with monkeypatch.context() as patch:
            patch.setattr("lram_export.sweep.steps.bench_together", interrupt)
            assert cli(*arguments(copy, *PLAYED, "--steps", "12")).exit_code == 130
        assert inodes(copy) == before
        assert run(copy, *PLAYED)["done"] == 0
